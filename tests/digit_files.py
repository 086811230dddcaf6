"""Files that classify digits, and the digits that they were not trained on."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np
from trained import trained_once

import kapps
from kapps.tflite import QUANTIZATIONS, convert
from kapps.tools import data, pipeline

DEMO = Path(os.environ.get("KAPPS_DEMO", Path(__file__).parents[1] / "build" / "demo"))


def files(folder: Path) -> list[Path]:
    """Those of the demonstration, or, where `make demo` has not run, of a LeNet5, in `folder`."""
    return sorted(DEMO.glob("*.tflite")) or _lenet(folder)


def held_out(size: int, n: int) -> np.ndarray:
    """The first digits of the test split: uint8 (n, size, size, 3)."""
    return _digits(data.load("digits").test, size)[0][:n]


def _lenet(folder: Path) -> list[Path]:
    images, labels = _digits(data.load("digits").train, 32)

    def train(model: keras.Model) -> None:
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(images, labels, epochs=4, verbose=0)

    model = trained_once(kapps.LeNet5(input_shape=(32, 32, 3), classes=10), train, __file__)
    paths = []
    for name in QUANTIZATIONS:
        paths.append(folder / f"LeNet5_{name}.tflite")
        some = images[:200]
        calibration = {"calibration": some} if name == "int8" else {}
        convert(model, paths[-1], quantization=name, verification=some, **calibration)
    return paths


def _digits(source: data.Source, size: int) -> tuple[np.ndarray, np.ndarray]:
    return pipeline.images(source, kapps.EvalTransform(size, 1.0, "bilinear"))
