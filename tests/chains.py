"""Networks that differ in nothing but depth, shortcuts and batch norm."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers


def chain(
    depth: int,
    *,
    residual: bool = False,
    bn: bool = False,
    kernels: Any = "glorot_uniform",
) -> keras.Model:
    """So many 3x3 convolutions of 8 channels, each with ReLU, with or without shortcuts.

    Args:
        depth: the convolutions behind the first one.
        residual: whether what each makes is added to what it takes.
        bn: whether batch norm follows each, its statistics those of the last batch in training.
        kernels: what they start from.
    """
    options: dict[str, Any] = {"padding": "same", "kernel_initializer": kernels}
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, name="stem", **options)(layers.Rescaling(1 / 128, -1)(image))
    for i in range(depth):
        y = layers.Conv2D(8, 3, name=f"conv{i}", **options)(x)
        y = layers.BatchNormalization(momentum=0.0)(y) if bn else y
        y = layers.ReLU()(y)
        x = layers.Add(name=f"sum{i}")([y, x]) if residual else y
    x = layers.Dense(10, name="fc")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, x, name="chain")
