"""The export passes that fold one layer's constants into another layer's weights.

All of them are exact but for the rounding of float32: each weight is computed in float64 and
rounded once. Layers that are called more than once, have a class of their own, or whose weights are
quantized are left alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kapps.custom_layers import ChannelShuffle, ChannelSlice, ImageNormalization, _SameShape
from kapps.tflite.passes.graph import (
    Call,
    Graph,
    Scaled,
    copy_layer,
    edited,
    identity,
    replace,
    values_of,
)

_LINEAR = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)


_CHANNELWISE = (
    *("elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "leaky_relu", "linear", "mish"),
    *("relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh"),
)


def is_linear(graph: Graph, layer: Any) -> bool:
    """Whether the layer is a convolution or dense, called once, with plain float weights."""
    return (
        type(layer) in _LINEAR
        and graph.once(layer)
        and getattr(layer, "quantization_mode", None) is None
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "data_format", "channels_last") != "channels_first"
    )


def _activation(layer: Any) -> str | None:
    """The name of what an activation layer computes: "relu", "relu6", "hard_silu" ..., or None."""
    if type(layer) is layers.Activation:
        name = getattr(layer.activation, "__name__", None)
        return name if getattr(keras.activations, str(name), None) is layer.activation else None
    if type(layer) is layers.ReLU and not layer.negative_slope and not layer.threshold:
        return {None: "relu", 6.0: "relu6"}.get(layer.max_value)
    return None


def is_channelwise(activation: Any) -> bool:
    """Whether an activation function treats every value alone, as softmax does not."""
    return any(activation is getattr(keras.activations, name, None) for name in _CHANNELWISE)


def _is_plain(layer: Any) -> bool:
    return layer.activation is keras.activations.linear


def _bias(graph: Graph, layer: Any) -> np.ndarray:
    """In float64; a layer without one has one of zeros."""
    if layer.use_bias:
        return np.asarray(layer.bias.numpy(), "float64")
    return np.zeros(graph.output(layer).shape[-1])


def _scaled(
    graph: Graph, layer: Any, factors: np.ndarray | float, bias: np.ndarray, **changes: Any
) -> keras.Operation:
    """The layer with its kernel times `factors` and this bias, if it needs one."""
    use_bias = layer.use_bias or bool(bias.any())
    kernel = Scaled(values_of(layer.kernel), factors)
    biases = [bias.astype("float32")] if use_bias else []
    return edited(graph, layer, [kernel, *biases], use_bias=use_bias, **changes)


@keras.saving.register_keras_serializable("kapps")
class PixelNormalization(_SameShape):
    """(image - mean) / std, for images of fixed width; `mean` and `std` are of 0..255, by channel.

    The constants are repeated along a row. A broadcast over three values does not vectorize; one
    over the rows of an image, of width times channels values, does.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean, self.std = tuple(mean), tuple(std)

    def call(self, images: Any) -> Any:
        x = ops.cast(images, self.compute_dtype)
        if any(self.mean):
            x = x - self._row(self.mean, x.shape[2])
        if any(value != 1 for value in self.std):
            x = x * self._row(tuple(1 / value for value in self.std), x.shape[2])
        return x

    def _row(self, values: tuple[float, ...], width: int) -> Any:
        if len(set(values)) == 1:
            return ops.convert_to_tensor(values[0], dtype=self.compute_dtype)
        row = np.tile(np.array(values, self.compute_dtype), (1, 1, width, 1))
        return ops.convert_to_tensor(row)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mean": self.mean, "std": self.std}


def fold_normalization(model: keras.Model) -> keras.Model:
    """With the std of the image normalization in the kernel of the convolution that follows.

    The mean is subtracted from the image, row by row. It cannot go into the bias of a convolution
    that pads: the zeros of the padding stand for normalized pixels. Where no convolution follows,
    or more than one layer, the std stays, row by row too.
    """
    return replace(model, _fold_normalization)


def _fold_normalization(graph: Graph) -> Mapping[keras.Operation, Call]:
    replaced: dict[keras.Operation, Call] = {}
    for layer in graph.layers:
        if type(layer) is not ImageNormalization or not graph.once(layer):
            continue
        if len(graph.output(layer).shape) != 4 or graph.output(layer).shape[2] is None:
            continue
        mean, std = (255 * np.asarray(value, "float64") for value in layer.get_weights())
        following = graph.only_after(layer)
        if type(following) is layers.ZeroPadding2D:
            following = graph.only_after(following)
        # The kernel of a grouped convolution does not tell the channels apart.
        if is_linear(graph, following) and getattr(following, "groups", 1) == 1:
            factors = 1 / std[:, None]  # the last axis but one, of any kernel, is the channels'
            replaced[following] = _scaled(graph, following, factors, _bias(graph, following))
            std = np.ones_like(std)
        replaced[layer] = PixelNormalization(
            tuple(mean.tolist()), tuple(std.tolist()), name=layer.name, dtype=layer.dtype_policy
        )
    return replaced


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """With batch normalization in the weights of the convolution or dense layer before it.

    The layer before keeps its name.
    """
    return replace(model, _fold_batch_norm)


def _fold_batch_norm(graph: Graph) -> Mapping[keras.Operation, Call]:
    replaced: dict[keras.Operation, Call] = {}
    for layer in graph.layers:
        norm = own_batch_norm(graph, layer)
        if norm is None:
            continue
        scale, offset = affine_of(norm)
        factors = scale
        if type(layer) is layers.DepthwiseConv2D:  # its outputs are of input, then multiplier
            factors = scale.reshape(layer.kernel.shape[2:])
        replaced[layer] = _scaled(graph, layer, factors, _bias(graph, layer) * scale + offset)
        replaced[norm] = identity
    return replaced


def own_batch_norm(graph: Graph, layer: Any) -> Any:
    """The batch normalization that can go into a layer's weights; None if there is none."""
    norm: Any = graph.only_after(layer) if is_linear(graph, layer) else None
    if type(norm) is not layers.BatchNormalization or not _is_plain(layer):
        return None
    return norm if norm.axis in (-1, len(graph.output(layer).shape) - 1) else None


def affine_of(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a batch normalization multiplies each channel by, and what it adds; in float64."""
    values = [np.asarray(value, "float64") for value in norm.get_weights()]
    gamma = values.pop(0) if norm.scale else np.ones_like(values[-1])
    beta = values.pop(0) if norm.center else np.zeros_like(values[-1])
    mean, variance = values
    scale = gamma / np.sqrt(variance + norm.epsilon)
    return scale, beta - mean * scale


def fuse_activations(model: keras.Model) -> keras.Model:
    """With ReLU and ReLU6 in the convolution or dense layer before, which keeps its name.

    A ReLU of a concatenation is first drawn into what is concatenated; where that is not negative
    anyway, it goes.
    """
    return replace(replace(model, _relu_before_concat), _fuse_activations)


def _fuse_activations(graph: Graph) -> Mapping[keras.Operation, Call]:
    replaced: dict[keras.Operation, Call] = {}
    for layer in graph.layers:
        following = graph.only_after(layer)
        activation = _activation(following)
        if activation not in ("relu", "relu6") or not is_linear(graph, layer):
            continue
        if _is_plain(layer):
            replaced[layer] = edited(graph, layer, None, activation=activation)
            replaced[following] = identity
    return replaced


def _relu_before_concat(graph: Graph) -> Mapping[keras.Operation, Call]:
    replaced: dict[keras.Operation, Call] = {}
    for concat in graph.layers:
        relu: Any = graph.only_after(concat) if type(concat) is layers.Concatenate else None
        if _activation(relu) != "relu":
            continue
        sources = [tensor._keras_history.operation for tensor in graph.inputs(concat)]
        positive = [_not_negative(graph, source) for source in sources]
        for source, done in zip(sources, positive, strict=True):
            if not done and not (is_linear(graph, source) and graph.after(source) == [concat]):
                break
        else:
            replaced[concat] = _relu_parts(concat, relu.name, positive)
            replaced[relu] = identity
    return replaced


def _relu_parts(concat: keras.Operation, name: str, positive: list[bool]) -> Call:
    def call(tensors: list[Any]) -> Any:
        parts = [
            tensor if done else layers.ReLU(name=f"{name}_{i}")(tensor)
            for i, (tensor, done) in enumerate(zip(tensors, positive, strict=True))
        ]
        return copy_layer(concat)(parts)

    return call


_KEEPS_SIGN = (
    layers.Add,
    layers.AveragePooling2D,
    layers.Concatenate,
    layers.GlobalAveragePooling2D,
    layers.MaxPooling2D,
    layers.ZeroPadding2D,
)


def _not_negative(graph: Graph, layer: keras.Operation) -> bool:
    """Whether no output of the layer can be negative."""
    if not graph.once(layer):
        return False
    if _activation(layer) in ("relu", "relu6"):
        return True
    if is_linear(graph, layer):
        return layer.activation in (keras.activations.relu, keras.activations.relu6)
    return type(layer) in _KEEPS_SIGN and all(
        _not_negative(graph, tensor._keras_history.operation) for tensor in graph.inputs(layer)
    )


# What hands a factor on: f(a x) = a f(x) for all a above 0.
_HOMOGENEOUS = (
    layers.AveragePooling2D,
    layers.Flatten,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.MaxPooling2D,
    layers.Reshape,
    layers.ZeroPadding2D,
    ChannelShuffle,
    ChannelSlice,
)


@dataclasses.dataclass
class _Factors:
    """By what the kernel and the bias of a layer are to be multiplied."""

    kernel: float = 1.0
    bias: float = 1.0


class _Scaling:
    """Factors of tensors, taken back in the weights of the layers that they reach."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.factors: dict[keras.Operation, _Factors] = {}

    def undo(self, layer: keras.Operation, factor: float) -> bool:
        """Makes up for `layer` giving `factor` times what it did; False if that cannot be."""
        found: list[tuple[keras.Operation, float, float]] = []
        if not self._follow(layer, factor, found, set()):
            return False
        for reached, kernel, bias in found:
            factors = self.factors.setdefault(reached, _Factors())
            factors.kernel *= kernel
            factors.bias *= bias
        return True

    def _follow(
        self,
        layer: keras.Operation,
        factor: float,
        found: list[tuple[keras.Operation, float, float]],
        seen: set[int],
    ) -> bool:
        """Adds to `found` the layers whose weights change, with the factors of kernel and bias."""
        users = self.graph.after(layer)
        if not users:
            return False
        for user in users:
            if id(user) in seen:  # it takes two scaled tensors, such as a product of them
                return False
            seen.add(id(user))
            if is_linear(self.graph, user):
                found.append((user, 1 / factor, 1.0))
                continue
            if type(user) is layers.Add:
                for tensor in self.graph.inputs(user):
                    source = tensor._keras_history.operation
                    if source is layer:
                        continue
                    # The other summand grows by the same factor, if it is of a plain convolution.
                    if not (is_linear(self.graph, source) and _is_plain(source)):
                        return False
                    if self.graph.after(source) != [user]:
                        return False
                    found.append((source, factor, factor))
            elif not (
                type(user) in _HOMOGENEOUS
                or type(user) is layers.Multiply
                or _activation(user) == "relu"
            ):
                return False
            if not self._follow(user, factor, found, seen):
                return False
        return True

    def replaced(
        self, biases: Mapping[keras.Operation, float], activation: str = "linear"
    ) -> dict[keras.Operation, Call]:
        """The layers with their factors; those of `biases` get that added, and the activation."""
        result: dict[keras.Operation, Call] = {}
        for layer in {**self.factors, **biases}:
            factors = self.factors.get(layer, _Factors())
            bias = _bias(self.graph, layer) * factors.bias + biases.get(layer, 0.0)
            changes = {"activation": activation} if layer in biases else {}
            result[layer] = _scaled(self.graph, layer, factors.kernel, bias, **changes)
        return result


def relu6_gates(model: keras.Model) -> keras.Model:
    """With hard-sigmoid gates as ReLU6.

    hard_sigmoid(x) is relu6(x + 3) / 6. The 3 goes into the bias of the convolution or dense layer
    before, which gets the ReLU6 as its activation and keeps its name; the 1/6 goes through the
    product into the kernel of the next one. Where there is none, the gate is left alone.
    """
    return replace(model, _relu6_gates)


def _relu6_gates(graph: Graph) -> Mapping[keras.Operation, Call]:
    scaling = _Scaling(graph)
    biases: dict[keras.Operation, float] = {}
    gates: dict[keras.Operation, Call] = {}
    for gate in graph.layers:
        source = graph.before(gate) if _activation(gate) == "hard_sigmoid" else None
        if not is_linear(graph, source) or not _is_plain(source):
            continue
        if graph.only_after(source) is gate and scaling.undo(gate, 6.0):
            biases[source] = 3.0
            gates[gate] = identity
    return {**scaling.replaced(biases, "relu6"), **gates}


@keras.saving.register_keras_serializable("kapps")
class ShiftedReLU6(_SameShape):
    """relu6(x + 3): six times the hard sigmoid, which is one operation in a .tflite file."""

    def call(self, x: Any) -> Any:
        return ops.relu6(x + 3.0)


def relu6_hard_swish(model: keras.Model) -> keras.Model:
    """With hard-swish as x * relu6(x + 3), and the 1/6 in the kernels of what follows.

    For integers: of HARD_SWISH XNNPACK has no integer form, and each one cuts the graph. The
    product keeps the layer's name; the ReLU6 is named `<layer>_gate`. Where the 1/6 finds no
    kernel, the activation is left alone.
    """
    return replace(model, _relu6_hard_swish)


def _relu6_hard_swish(graph: Graph) -> Mapping[keras.Operation, Call]:
    scaling = _Scaling(graph)
    swishes = {
        layer: _hard_swish_6(layer.name)
        for layer in graph.layers
        if _activation(layer) == "hard_silu" and graph.once(layer) and scaling.undo(layer, 6.0)
    }
    return {**scaling.replaced({}), **swishes}


def _hard_swish_6(name: str) -> Call:
    return lambda x: layers.Multiply(name=name)([x, ShiftedReLU6(name=f"{name}_gate")(x)])


def average_pool_as_conv(model: keras.Model) -> keras.Model:
    """With average pooling as a depthwise convolution of equal weights.

    For integers: XNNPACK takes no quantized AVERAGE_POOL_2D, and each one cuts the graph. Only
    pooling without padding of its own, whose windows are all of the same size.
    """
    return replace(model, _average_pool_as_conv)


def _average_pool_as_conv(graph: Graph) -> Mapping[keras.Operation, Call]:
    replaced: dict[keras.Operation, Call] = {}
    for layer in graph.layers:
        if type(layer) is not layers.AveragePooling2D or not graph.once(layer):
            continue
        if layer.padding != "valid" or layer.data_format != "channels_last":
            continue
        if layer.strides[0] != layer.strides[1]:  # a depthwise convolution has one
            continue
        shape = graph.inputs(layer)[0].shape
        conv = layers.DepthwiseConv2D(
            layer.pool_size, layer.strides, use_bias=False, name=layer.name
        )
        conv.build(shape)
        size = (*layer.pool_size, shape[-1], 1)
        conv.set_weights([np.full(size, 1 / math.prod(layer.pool_size), "float32")])
        replaced[layer] = conv
    return replaced
