"""How long the big networks take to build, beside those of its peers, in one process.

    python benchmarks/build_time.py [--rounds=5] > docs/build_time.md

The peers are keras.applications and, where it is installed, ZeroModels (`pip install zeromodels`).
Each round builds every network once, in turn, so that all share the machine's drift. What counts is
the time per layer, and its ratio to that of the slowest of keras.applications.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import importlib
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable

import keras

import kapps

PEERS = ("DenseNet201", "EfficientNetB7", "InceptionResNetV2", "NASNetLarge", "ResNet152V2")
# Those of them that ZeroModels has, by the classifier and what differs from its defaults.
ZEROMODELS = {
    "DenseNet201": ("densenet", "DenseNet", {"depths": (6, 12, 48, 32)}),
    "EfficientNetB7": (
        "efficientnet",
        "EfficientNet",
        {"width_coefficient": 2.0, "depth_coefficient": 3.1, "image_size": 600},
    ),
    "InceptionResNetV2": ("inception_resnetv2", "InceptionResNetV2", {}),
}
OURS = ("DenseNet264", "EfficientNetB7", "EfficientNetV2XL", "ResNet152V2", "SENet154")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    builders: dict[tuple[str, str], Callable[[], keras.Model]] = {}
    for source, module, names in (
        ("keras.applications", keras.applications, PEERS),
        ("kapps", kapps, OURS),
    ):
        for name in names:
            builders[source, name] = functools.partial(getattr(module, name), weights=None)
    builders |= zeromodels()
    keras.applications.MobileNetV2(weights=None)  # what the first model alone pays for
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in builders}
    layers: dict[tuple[str, str], int] = {}
    for _ in range(rounds):
        for key, builder in builders.items():
            gc.collect()
            start = time.perf_counter()
            model = builder()
            seconds[key].append(time.perf_counter() - start)
            layers[key] = len(model.layers)
            del model
            keras.backend.clear_session()
    each = {key: 1e3 * statistics.median(seconds[key]) / layers[key] for key in builders}
    slowest = max(each[key] for key in builders if key[0] == "keras.applications")
    print("# Building the big networks\n")
    print(f"`benchmarks/build_time.py`, {datetime.date.today()}, on {platform.machine()}, ", end="")
    print(f"Python {platform.python_version()}, keras {keras.__version__} on ", end="")
    print(f"{keras.backend.backend()}; medians of {rounds} interleaved rounds in one process.\n")
    print("| Library | Network | Layers | Seconds | ms a layer | Ratio to the slowest of Keras |")
    print("|---|---|---:|---:|---:|---:|")
    for key in sorted(builders, key=each.__getitem__, reverse=True):
        print(
            f"| {key[0]} | `{key[1]}` | {layers[key]} | {statistics.median(seconds[key]):.2f} "
            f"| {each[key]:.2f} | {each[key] / slowest:.2f} |"
        )


def zeromodels() -> dict[tuple[str, str], Callable[[], keras.Model]]:
    """The builders of ZeroModels; none where it is not installed."""
    if importlib.util.find_spec("zeromodels") is None:
        return {}
    found: dict[tuple[str, str], Callable[[], keras.Model]] = {}
    for net, (family, name, changes) in ZEROMODELS.items():
        module = importlib.import_module(f"zeromodels.models.{family}")
        builder = getattr(module, f"{name}ImageClassify")
        found["zeromodels", net] = functools.partial(builder, **changes)
    return found


if __name__ == "__main__":
    main()
