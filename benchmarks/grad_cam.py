"""What Grad-CAM costs, in forward passes of the same images through ResNet-50.

    KERAS_BACKEND=tensorflow python benchmarks/grad_cam.py [--size=224] [--rounds=15]

All of it takes turns in one process, so that it shares the machine's drift; medians. Random weights
cost what any weights do. It prints the section "Cost" of docs/explain.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
from machine import measured_on

import kapps
from kapps import explain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    model = kapps.ResNet50(input_shape=(arguments.size, arguments.size, 3))
    backend = keras.backend.backend()
    print(
        f"`benchmarks/grad_cam.py`, {measured_on('keras', backend)}: ResNet-50, {arguments.size} "
        f"px, on {backend}, medians of {arguments.rounds} rounds in turns. `model(x)` runs layer "
        "by layer, as Grad-CAM does; `predict` and `predict_on_batch` are compiled.\n"
    )
    print(f"| Images | Grad-CAM, ms | {' | '.join(f'{name}, ms' for name in PASSES)} |")
    print("|---:|---:|" + "---:|" * len(PASSES))
    for count in (1, 8):
        images = np.random.default_rng(0).uniform(0, 255, (count, *model.input_shape[1:]))
        cam, *passes = _medians(model, images.astype("float32"), arguments.rounds)
        cells = (f"{one:.0f} (Grad-CAM {cam / one:.2f})" for one in passes)
        print(f"| {count} | {cam:.0f} | {' | '.join(cells)} |", flush=True)


PASSES: dict[str, Callable[[keras.Model, np.ndarray], object]] = {
    "`model(x)`": lambda model, x: keras.ops.convert_to_numpy(model(x, training=False)),
    "`predict`": lambda model, x: model.predict(x, verbose=0),
    "`predict_on_batch`": lambda model, x: model.predict_on_batch(x),
}


def _medians(model: keras.Model, images: np.ndarray, rounds: int) -> list[float]:
    """Milliseconds of Grad-CAM, and of the forward passes."""
    functions = [explain.grad_cam, *PASSES.values()]
    for function in functions:  # what is compiled, is compiled here
        function(model, images)
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            function(model, images)
            found.append(1000 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


if __name__ == "__main__":
    main()
