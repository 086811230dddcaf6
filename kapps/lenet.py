"""LeNet-5: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition".

`LeNet5` is the modern form: full connections between the first two convolutions, ReLU, max-pooling
and a softmax. Its layer names are those of the network in PyTorch's tutorial "Training a
Classifier". `LeNet5Original` is the network of the paper's section II.B, with the paper's names.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import KerasTensor, layers

from kapps._errors import InputError
from kapps._layers import act, conv, dense, flat_dense, max_pool
from kapps._model import model
from kapps._network import Architecture, Net
from kapps.custom_layers import (
    BitmapDistance,
    ChannelGather,
    Subsampling,
    digit_bitmaps,
    scaled_tanh,
)


def _features(x: KerasTensor, net: Net) -> KerasTensor:
    """5x5, ReLU, max-pool, 5x5, ReLU, max-pool: C1 to S4 of the paper's figure 2."""
    x = act(conv(x, 6, 5, "conv1", bias=True, padding="valid"), "relu", "relu1")
    x = max_pool(x, 2, 2, "pool1")
    x = act(conv(x, 16, 5, "conv2", bias=True, padding="valid"), "relu", "relu2")
    return max_pool(x, 2, 2, "pool2")


def _head(x: KerasTensor, net: Net) -> KerasTensor:
    """C5 as a convolution over the whole map, ReLU, F6, ReLU, output."""
    x = act(flat_dense(x, 120, "fc1"), "relu", "relu3")
    x = layers.Flatten(name="flatten")(x)
    x = act(dense(x, 84, "fc2"), "relu", "relu4")
    return net.classifier(net.dropout(x), "fc3")


# Table I of the paper: the maps of S2 that each map of C3 sees. They differ, so that the maps of
# C3 have to extract different features; all together are 60 of the 96 possible connections.
_C3_INPUTS = (
    *(tuple(sorted((i + k) % 6 for k in range(3))) for i in range(6)),  # three in a row
    *(tuple(sorted((i + k) % 6 for k in range(4))) for i in range(6)),  # four in a row
    (0, 1, 3, 4),
    (1, 2, 4, 5),
    (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)


def _started(x: KerasTensor) -> KerasTensor:
    """Redraws the kernel of the layer that made `x` as the paper does, within 2.4 / fan-in."""
    kernel = x._keras_history.operation.kernel
    limit = 2.4 / float(np.prod(kernel.shape[:-1]))
    kernel.assign(keras.random.uniform(kernel.shape, -limit, limit))
    return x


def _squash(x: KerasTensor, path: str) -> KerasTensor:
    return layers.Activation(scaled_tanh, name=f"{path}_squash")(x)


def _table_conv(x: KerasTensor) -> KerasTensor:
    """C3, 5x5: a grouped convolution for the maps that see three, four and all maps of S2."""
    maps = []
    for i, rows in enumerate((_C3_INPUTS[:6], _C3_INPUTS[6:15], _C3_INPUTS[15:])):
        inputs = ChannelGather(tuple(j for row in rows for j in row), name=f"c3_{i}_inputs")(x)
        y = conv(inputs, len(rows), 5, f"c3.{i}", groups=len(rows), bias=True, padding="valid")
        maps.append(_started(y))
    return layers.Concatenate(name="c3")(maps)


def _subsample(x: KerasTensor, path: str) -> KerasTensor:
    layer = Subsampling(name=path)
    layer.checkpoint_path = path
    return layer(x)


def _original_features(x: KerasTensor, net: Net) -> KerasTensor:
    """5x5, squash, subsampling, squash, 5x5 of table I, squash, subsampling, squash: C1 to S4."""
    x = _squash(_started(conv(x, 6, 5, "c1", bias=True, padding="valid")), "c1")
    x = _squash(_subsample(x, "s2"), "s2")
    x = _squash(_table_conv(x), "c3")
    return _squash(_subsample(x, "s4"), "s4")


def _original_head(x: KerasTensor, net: Net) -> KerasTensor:
    """C5 as a convolution over the whole map, squash, F6, squash, distance to the bitmaps."""
    most = len(digit_bitmaps())
    if net.classes > most:
        raise InputError(
            f"LeNet5Original: classes={net.classes}, but its output compares with the bitmaps of "
            f"the {most} digits; take at most {most} classes, or LeNet5"
        )
    x = _squash(_started(flat_dense(x, 120, "c5")), "c5")
    x = layers.Flatten(name="flatten")(x)
    x = _squash(_started(dense(x, 84, "f6")), "f6")
    return net.activate(BitmapDistance(net.classes, name="output")(net.dropout(x)))


# Mean and standard deviation are those of MNIST's training images.
@model(size=32, channels=1, min_size=16, classes=10, mean=(0.1307,), std=(0.3081,))
def LeNet5() -> Architecture:
    """LeNet-5, modern form: 61,706 parameters at 32x32x1."""
    return Architecture(_features, _head)


# The ground becomes -0.1 and ink 1.175 (section II.B), which are 0 and 255 in MNIST's files.
@model(size=32, channels=1, min_size=16, classes=10, mean=(0.1 / 1.275,), std=(1 / 1.275,))
def LeNet5Original() -> Architecture:
    """LeNet-5 as published: 60,000 parameters and 340,908 connections at 32x32x1.

    Partial connections in C3, subsampling with trained coefficients, a scaled tanh, and output
    units that measure the distance to a drawn bitmap of each digit. The logits are minus the
    squared distances. `classes` is at most 10: the first digits.
    """
    return Architecture(_original_features, _original_head)
