"""Converts a network of hundreds of MiB to int8, and prints what the benchmark measures of it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import keras
import numpy as np
from keras import layers

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "conversion_memory.py"


def main() -> None:
    x = image = keras.Input((32, 32, 3))
    x = layers.Conv2D(512, 4, strides=4, activation="relu")(x)
    x = layers.BatchNormalization()(layers.Conv2D(2560, 8, name="large")(x))
    x = layers.Dense(10, activation="softmax")(layers.Flatten()(x))
    model = keras.Model(image, x)
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), np.uint8)
    images = images.repeat(8, axis=1).repeat(8, axis=2)
    model(images[:1].astype("float32"), training=False)
    held = runpy.run_path(str(BENCHMARK))["held"]
    print(json.dumps(held(model, images, "int8")))


if __name__ == "__main__":
    main()
