"""How much memory `kapps.tflite.convert` takes beyond the model, check of the file included.

    python benchmarks/conversion_memory.py [--images=16] > docs/conversion_memory.md

Each file is made in a process of its own, of a network of 1,000 classes at its own size. What
counts is the highest resident memory of that process during `convert`, less what it held before:
the network, TensorFlow, and the images. Files that are mapped count as well, though the system can
take their memory back at any time; the last column is without them. The weights are drawn, and the
batch norms know the images, as after training. Linux only.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Small and usual ones, the largest images, the largest layers and the most weights of all; and one
# of others, whose largest layer is a dense one.
NETWORKS = (
    *("MobileNetV2", "ResNet50", "WideResNet101_2", "ResNeXt101", "SENet154", "EfficientNetB4"),
    *("EfficientNetB7", "VGG19_BN", "AlexNet", "EfficientNetV2L", "EfficientNetV2XL"),
    "keras.applications.VGG16",
)
QUANTIZATIONS = ("float32", "int8")
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--calm", nargs=2, help="network, and where its weights go")
    parser.add_argument("--one", nargs=3, help="network, its weights, and quantization")
    arguments = parser.parse_args()
    if arguments.calm:
        calm(*arguments.calm, arguments.images)
        return
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.images)))
        return
    from importlib.metadata import version

    print("# Memory of a conversion\n")
    print(
        f"`benchmarks/conversion_memory.py`, {datetime.date.today()}, on {platform.machine()} with "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, tensorflow "
        f"{version('tensorflow')}, keras {version('keras')}; {arguments.images} images for "
        "calibration and check. 1.5 GB are 1,431 MiB. Files that are mapped count in the first "
        "figure, and not in the second: the system can take their memory back at any time.\n"
    )
    print(
        "| Network | Input | Weights, MiB | File | Highest beyond the model, MiB "
        "| Without mapped files, MiB | Seconds |"
    )
    print("|---|---:|---:|---|---:|---:|---:|", flush=True)
    for network in arguments.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            weights = str(Path(folder, "calm.weights.h5"))
            _run("--calm", network, weights, images=arguments.images)
            for quantization in QUANTIZATIONS:
                found = json.loads(
                    _run("--one", network, weights, quantization, images=arguments.images)
                )
                print(
                    f"| `{network}` | {found['size']} px | {found['weights']:.0f} | {quantization} "
                    f"| {found['peak']:.0f} | {found['unmapped']:.0f} | {found['seconds']:.0f} |",
                    flush=True,
                )


def _run(*arguments: str, images: int) -> str:
    """The last line that this program prints, as a process of its own."""
    command = [sys.executable, __file__, f"--images={images}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.returncode}, {done.stderr}")
    return done.stdout.splitlines()[-1] if done.stdout else ""


def _network(name: str, count: int) -> tuple[Any, Any]:
    """A network, and images of its size."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    import numpy as np

    import kapps

    *others, builder = name.split(".")
    model = getattr(keras.applications if others else kapps, builder)(weights=None)
    size = model.input_shape[1]
    # Smooth colors: noise would be warned of.
    coarse = np.random.default_rng(0).uniform(0, 255, (count, 4, 4, 3))
    images = np.stack([np.kron(image, np.ones((size // 4 + 1,) * 2 + (1,))) for image in coarse])
    return model, images[:, :size, :size].astype("uint8")


def calm(name: str, path: str, count: int) -> None:
    """Writes weights with which a network's feature maps are of the size of a trained one's.

    Of drawn weights alone those of a deep network reach 1e14, and no two roundings agree.
    """
    import keras
    import tensorflow as tf
    from keras import layers

    model, images = _network(name, count)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics become those of the images
    values = images.astype("float32")
    tf.function(lambda x: model(x, training=True))(values)
    # Noise of a rounding is not to decide between classes.
    last = [layer for layer in model.layers if hasattr(layer, "kernel")][-1]
    given = keras.Model(model.inputs, last.input).predict(values, verbose=0, batch_size=4)
    last.kernel.assign(last.kernel / given.std() / 10)
    model.save_weights(path)


def measure(name: str, path: str, quantization: str, count: int) -> dict[str, float]:
    """Sizes in MiB, and seconds."""
    model, images = _network(name, count)
    model.load_weights(path)
    return {"size": model.input_shape[1], **held(model, images, quantization)}


def held(model: Any, images: Any, quantization: str) -> dict[str, float]:
    """What a conversion of this model holds beyond it: MiB, and seconds."""
    from kapps import tflite
    from kapps.tflite.memory import give_back_free_memory

    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        give_back_free_memory()  # what building the network has left
        Path("/proc/self/clear_refs").write_text("5")  # the highest is what it is now
        before, own, start = _status("VmRSS"), _status("RssAnon"), time.perf_counter()
        # A process, for what holds Python's lock holds its threads as well.
        watch = [sys.executable, "-S", "-c", _WATCH, str(os.getpid())]
        with subprocess.Popen(watch, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as watcher:
            tflite.convert(
                model, Path(folder, "net.tflite"), quantization=quantization, calibration=images
            )
            highest = int(watcher.communicate()[0]) / 1024
        seconds = time.perf_counter() - start
        peak = _status("VmHWM")
    weights = sum(math.prod(weight.shape) for weight in model.weights) * 4
    return {
        "weights": weights / MIB,
        "peak": peak - before,
        "unmapped": highest - own,
        "seconds": seconds,
    }


# The highest KiB that belong to the process alone, until its standard input is closed.
_WATCH = """
import select, sys
highest = 0
while not select.select([sys.stdin], [], [], 0.01)[0]:
    with open(f"/proc/{sys.argv[1]}/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                highest = max(highest, int(line.split()[1]))
print(highest)
"""


def _status(name: str) -> float:
    """MiB, of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


if __name__ == "__main__":
    main()
