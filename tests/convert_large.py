"""Converts a network of hundreds of MiB to int8, and prints what that took: FOLDER."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

from kapps import tflite


def status(name: str) -> float:
    """MiB, of this process."""
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{name}:")
    ]
    return int(line.split()[1]) / 1024


def main() -> None:
    x = image = keras.Input((32, 32, 3))
    x = layers.Conv2D(512, 4, strides=4, activation="relu")(x)
    x = layers.Conv2D(2560, 8, name="large")(x)
    x = layers.Dense(10, activation="softmax")(layers.Flatten()(x))
    model = keras.Model(image, x)
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), np.uint8)
    images = images.repeat(8, axis=1).repeat(8, axis=2)
    model(images[:1].astype("float32"), training=False)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building the network has left
    Path("/proc/self/clear_refs").write_text("5")  # the highest is what it is now
    before = status("VmRSS")
    tflite.convert(model, Path(sys.argv[1], "net.tflite"), quantization="int8", calibration=images)
    weights = sum(weight.numpy().nbytes for weight in model.weights) / (1 << 20)
    print(json.dumps({"weights": weights, "peak": status("VmHWM") - before}))


if __name__ == "__main__":
    main()
