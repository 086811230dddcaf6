"""LeNet-5: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition".

`LeNet5` is the modern form: full connections between the first two convolutions, ReLU, max-pooling
and a softmax. Its layer names are those of the network in PyTorch's tutorial "Training a
Classifier". `LeNet5Original` is the network of the paper's section II.B, with the paper's names.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers, ops

from kapps._errors import InputError
from kapps._layers import act, conv, dense, flat_dense, max_pool
from kapps._model import Architecture, Net, model


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

# The targets of F6: the digits drawn on 7x12 pixels, in the manner of the paper's figure 3.
_BITMAPS = """
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
..###.. ...##.. ..###.. .#####. ....##. ####### ..####. ####### .#####. .#####.
.##.##. ..###.. .##.##. ##...## ...###. ##..... .##.... .....## ##...## ##...##
##...## .####.. ##...## .....## ..####. ##..... ##..... .....## ##...## ##...##
##...## ...##.. .....## .....## .##.##. ##..... ##..... ....##. ##...## ##...##
##...## ...##.. ....##. ..####. ##..##. ######. ######. ....##. .#####. .######
##...## ...##.. ...##.. ..####. ##..##. .....## ##...## ...##.. ##...## .....##
##...## ...##.. ..##... .....## ####### .....## ##...## ...##.. ##...## .....##
##...## ...##.. .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
.##.##. ...##.. ##..... ##...## ....##. ##...## ##...## ..##... ##...## ....##.
..###.. .###### ####### .#####. ....##. .#####. .#####. ..##... .#####. .####..
....... ....... ....... ....... ....... ....... ....... ....... ....... .......
"""


def digit_bitmaps() -> np.ndarray:
    """The ten digits, (10, 84), row by row of 7 pixels: 1 for ink, -1 for the ground."""
    digits = zip(*(line.split() for line in _BITMAPS.strip().splitlines()), strict=True)
    return np.array([[1 if p == "#" else -1 for p in "".join(rows)] for rows in digits], "float32")


@keras.saving.register_keras_serializable("kapps")
def scaled_tanh(x: Any) -> Any:
    """1.7159 tanh(2/3 x): the paper's squashing function, 1 at 1 and -1 at -1 (appendix A)."""
    return 1.7159 * ops.tanh(x * (2 / 3))


@keras.saving.register_keras_serializable("kapps")
class ChannelGather(layers.Layer):
    """The channels of these indices, in this order; one may come several times."""

    def __init__(self, indices: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.indices = tuple(indices)

    def call(self, x: Any) -> Any:
        return ops.take(x, self.indices, axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], len(self.indices))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "indices": self.indices}


@keras.saving.register_keras_serializable("kapps")
class Subsampling(layers.Layer):
    """The sum of every 2x2 pixels, times a coefficient, plus a bias; both trained, one a channel.

    The coefficients start as the paper's weights do: within 2.4 / fan-in, which is 4 (appendix A).
    """

    pool_size, strides, padding = (2, 2), (2, 2), "valid"  # for kapps.profile

    def build(self, input_shape: tuple[Any, ...]) -> None:
        shape = (input_shape[-1],)
        start = keras.initializers.RandomUniform(-0.6, 0.6)
        self.coefficient = self.add_weight(shape=shape, initializer=start, name="coefficient")
        self.bias = self.add_weight(shape=shape, initializer="zeros", name="bias")
        self.checkpoint_variables = {"weight": self.coefficient, "bias": self.bias}

    def call(self, x: Any) -> Any:
        return ops.average_pool(x, 2, 2, "valid") * (4 * self.coefficient) + self.bias

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, *sides, channels = input_shape
        return (batch, *(None if s is None else s // 2 for s in sides), channels)

    def compute_macs(self, input_shape: tuple[int, ...]) -> int:
        """One multiplication an output; a batch dimension, if there is one, is not counted."""
        height, width, channels = input_shape[-3:]
        return (height // 2) * (width // 2) * channels


@keras.saving.register_keras_serializable("kapps")
class BitmapDistance(layers.Layer):
    """Minus the squared distance of 84 features to the bitmap of each digit: (batch, classes).

    The paper's output units, Euclidean radial basis functions, give the distance itself, a penalty
    that is smallest at the answer. The sign makes it the logit of a class. There is nothing to
    train.
    """

    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes

    def call(self, x: Any) -> Any:
        bitmaps = ops.convert_to_tensor(digit_bitmaps()[: self.classes], dtype=x.dtype)
        return -ops.sum(ops.square(ops.expand_dims(x, 1) - bitmaps), axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], self.classes)

    def compute_macs(self, input_shape: tuple[int, ...]) -> int:
        """A square for each feature and class."""
        return input_shape[-1] * self.classes

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "classes": self.classes}


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
