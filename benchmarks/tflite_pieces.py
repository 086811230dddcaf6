"""Into how many pieces the XNNPACK delegate takes the files of the newest mobile networks.

    python benchmarks/tflite_pieces.py [--nets=MobileNetV4ConvSmall,...] > docs/tflite_pieces.md

Each network is built with random weights and its dropout and stochastic depth, converted to float32
and int8, and made quantization-aware, trained for three steps and converted: the pieces, and what
is left in float, hang on the layers and not on their weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import keras
import numpy as np
from machine import measured_on

import kapps
from kapps.tflite import Runner, convert, file_facts, quantize_aware, tuning

NETS = (
    *("MobileNetV4ConvSmall_050", "MobileNetV4ConvSmall", "MobileNetV4ConvMedium"),
    *("MobileNetV4ConvLarge", "MobileNetV4HybridMedium", "MobileNetV4HybridLarge"),
    *("MobileOneS0", "GhostNetV2"),
)
SIDE = 64  # pixels

_EXPLANATION = """Random weights, {side} px. 1 piece is best: each further one costs a way to the
plain kernels and back. In float: the operations of the int8 file that are not computed in integers,
since the delegate has no integer form of them. Trained for int8: `quantize_aware`, three steps, and
the file of it: integers where no tensor is of floats, or else what is in float.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default=",".join(NETS))
    chosen = parser.parse_args().nets.split(",")
    warnings.filterwarnings("ignore", "weak check")  # of random weights
    print("# Pieces of the delegate\n")
    print(f"`benchmarks/tflite_pieces.py`, {measured_on('tensorflow', 'keras', 'ai-edge-litert')}.")
    print("\n" + _EXPLANATION.format(side=SIDE))
    print(
        "| Network | float32: pieces | int8: pieces | int8: in float | Trained for int8: pieces |"
    )
    print("|---|---:|---:|---|---|", flush=True)
    for net in chosen:
        keras.utils.set_random_seed(0)
        model = kapps.get_builder(net)(
            input_shape=(SIDE, SIDE, 3), classes=10, drop_path_rate=0.1, dropout_rate=0.2
        )
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.5
        for _ in range(8):  # or the maps of GhostNetV2 grow to 1e5, and no float32 file is exact
            model(_pixels().astype("float32"), training=True)
        # Random weights tell images apart by the rounding of the deepest: their answers are evened.
        head = model.layers[-1]
        head.set_weights([0.01 * weight for weight in head.get_weights()])
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join(_cells(model, Path(folder)))} |", flush=True)


def _cells(model: keras.Model, folder: Path) -> list[str]:
    cells = [f"`{model.name}`"]
    for quantization in ("float32", "int8"):
        path = folder / f"{quantization}.tflite"
        convert(model, path, quantization=quantization, calibration=_pixels())  # type: ignore[arg-type]
        cells.append(str(Runner(path).delegate_pieces))
    cells.append(_in_float(path) or "none")
    return [*cells, _trained(model, folder / "tuned.tflite")]


def _in_float(path: Path) -> str:
    kept = file_facts.float_operations(file_facts.read_graph(path.read_bytes()))
    counted = Counter(operation.name for operation in kept)
    return ", ".join(f"{n} {name}" for name, n in sorted(counted.items()))


def _trained(model: keras.Model, path: Path) -> str:
    try:
        tuned = quantize_aware(model)
    except kapps.InputError as error:
        print(error, file=sys.stderr)
        return f"refused: {str(error).partition(';')[0]}"
    for _ in range(3):
        tuned(_pixels().astype("float32"), training=True)
    path.write_bytes(tuning.tflite_bytes(tuned))
    kept = _in_float(path)
    return f"{Runner(path).delegate_pieces}, {f'in float {kept}' if kept else 'integers'}"


def _pixels() -> np.ndarray:
    """Squares of colors, which no check takes for noise."""
    coarse = np.random.default_rng(1).integers(0, 256, (16, 4, 4, 3), np.uint8)
    return np.kron(coarse, np.ones((1, SIDE // 4, SIDE // 4, 1), np.uint8))


if __name__ == "__main__":
    main()
