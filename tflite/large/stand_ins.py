"""A network of small kernels in the place of large ones, which can be told from one another.

A stand-in has two things of the kernel that it stands for. The magnitude of all its values in an
output channel is the largest of the kernel there, from which a quantizer takes that channel's
scale. Their signs, one an output channel, are of no other: so it is found again in a file, whatever
its numbers have become. A dense layer is a convolution over one pixel there, and stays one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps.tflite.passes.folding import is_linear
from kapps.tflite.passes.graph import (
    Call,
    Graph,
    Scaled,
    filters_at_once,
    over_one_pixel,
    rebuild,
    undrawn,
    values_of,
)

LEAST_BYTES = 64 << 20
"""Of the weights of a network that is worth it; the others are converted in a GB as they are."""

_LEAST_KERNEL_BYTES = 128 << 10
_LEAST_DENSE_BYTES = 16 << 20  # a dense layer becomes a convolution by it
_LEAST_NUMBERS = 1024  # of a stand-in: below these TensorFlow leaves a kernel in floats


@dataclass(frozen=True, eq=False)
class StandIn:
    """What stands for a kernel, and the kernel.

    Attributes:
        kernel: of the real convolution, (height, width, channels, filters).
        channels: of the small kernel: real ones by the number of groups.
        largest: the largest magnitude in each filter, (filters,).
        signs: of the small kernel's values in each filter, (filters,).
    """

    kernel: np.ndarray | Scaled
    channels: int
    largest: np.ndarray
    signs: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """In a file: (filters, height, width, channels)."""
        height, width, _, filters = self.kernel.shape
        return (filters, height, width, self.channels)

    @property
    def real_shape(self) -> tuple[int, ...]:
        """The same of the kernel that it stands for."""
        height, width, channels, filters = self.kernel.shape
        return (filters, height, width, channels)

    def is_in(self, values: np.ndarray) -> bool:
        """Whether these, of a tensor of its shape, are its own: as floats, or quantized.

        Of quantized ones only the signs are looked at: the magnitude is in the scale.
        """
        rows = values.reshape(len(self.signs), -1)
        if not np.all(rows == rows[:, :1]):
            return False
        if values.dtype == np.int8:
            return bool(np.all((np.sign(rows[:, 0]) == self.signs) | (self.largest == 0)))
        return np.array_equal(rows[:, 0], (self.signs * self.largest).astype(values.dtype))


class _InGroups(layers.Conv2D):
    """A convolution whose kernel has fewer channels than its input, under the same name.

    Keras compiles one by XLA, which no converter can look into.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        import tensorflow as tf

        return tf.nn.convolution(
            inputs,
            kernel,
            list(self.strides),
            self.padding.upper(),
            data_format="NHWC",
            dilations=list(self.dilation_rate),
        )


def is_large(model: keras.Model) -> bool:
    """Whether it is worth it, by `LEAST_BYTES`."""
    return sum(math.prod(weight.shape) for weight in model.weights) * 4 >= LEAST_BYTES


def with_stand_ins(model: keras.Model) -> tuple[keras.Model, list[StandIn]]:
    """The model with small kernels in the place of large ones, and what they stand for.

    The kernels are not copied: they are looked at where the model has them.
    """
    stand_ins: list[StandIn] = []
    random = np.random.default_rng(0)

    def plan(graph: Graph) -> dict[keras.Operation, Call]:
        return {
            layer: small
            for layer in graph.layers
            if (small := _small(graph, layer, stand_ins, random)) is not None
        }

    return rebuild(model, plan=plan), stand_ins


def _small(
    graph: Graph, layer: Any, stand_ins: list[StandIn], random: np.random.Generator
) -> Call | None:
    """What is called in the place of the layer, whose stand-in joins the others.

    None if there is nothing to gain.
    """
    if not is_linear(graph, layer) or layer.compute_dtype != "float32":
        return None
    config, kernel = layer.get_config(), values_of(layer.kernel)
    dense = type(layer) is layers.Dense and len(graph.output(layer).shape) == 2
    if dense:  # over a map of one pixel: it is the same
        config = {key: config[key] for key in ("name", "dtype", "use_bias", "activation")}
        config |= {"filters": layer.units, "kernel_size": 1}
        kernel = over_one_pixel(kernel)
    elif type(layer) is not layers.Conv2D or layer.groups != 1:
        return None
    *_, channels, filters = kernel.shape
    numbers = math.prod(kernel.shape)
    common = math.gcd(channels, filters)
    if numbers * 4 < (_LEAST_DENSE_BYTES if dense else _LEAST_KERNEL_BYTES) or common == 1:
        return None
    groups = max(
        n for n in range(1, common + 1) if common % n == 0 and numbers // n >= _LEAST_NUMBERS
    )
    largest = np.zeros(filters, "float32")
    for some in filters_at_once(kernel.shape):
        largest[some] = np.abs(kernel[..., some]).max(axis=(0, 1, 2))
    signs = random.choice(np.array([-1, 1], "float32"), filters)
    stand_ins.append(StandIn(kernel, channels // groups, largest, signs))
    small = _InGroups.from_config({**config, "groups": groups})
    with undrawn(small):
        small.build((None, None, None, channels))
    value = np.broadcast_to(signs * largest, small.kernel.shape)
    small.set_weights([value, *map(keras.ops.convert_to_numpy, layer.weights[1:])])
    return _dense(small, channels) if dense else small


def _dense(conv: Any, channels: int) -> Call:
    def call(x: Any) -> Any:
        x = layers.Reshape((1, 1, channels), name=f"{conv.name}_pixel")(x)
        return layers.Reshape((conv.filters,), name=f"{conv.name}_scores")(conv(x))

    return call
