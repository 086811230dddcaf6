"""The graph that quantization-aware training trains: a tf_keras model with quantization emulated.

It is made of tensorflow-model-optimization's wrappers, but placed here: its own placement knows no
squeeze-and-excitation, hard-swish, slice or input normalization, quantizes depthwise kernels per
tensor, and can swap the inputs of a concatenation
(https://github.com/tensorflow/model-optimization/issues/1061).

What the placement follows is what the int8 kernels of TensorFlow Lite do: one quantization behind
each fused group of layers (convolution, batch norm, activation), weights by output channel, and one
common range for all tensors that operations such as a concatenation or a pooling tie together
(https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import (
    QuantizeLayer,
)
from tensorflow_model_optimization.quantization.keras import (
    QuantizeConfig,
    QuantizeWrapperV2,
)
from tensorflow_model_optimization.quantization.keras.quantizers import Quantizer

from kapps._errors import InputError
from kapps.tflite.tuning import tf_keras_copy
from kapps.tflite.tuning.tf_keras_copy import Node

_L = tf_keras.layers
KERNELS = {_L.Conv2D: "kernel", _L.DepthwiseConv2D: "depthwise_kernel", _L.Dense: "kernel"}

# Operations whose output has the quantization of their inputs.
_SAME_RANGE = (
    _L.AveragePooling2D,
    _L.Concatenate,
    _L.Flatten,
    _L.MaxPooling2D,
    _L.GlobalMaxPooling2D,
    _L.Reshape,
    _L.ZeroPadding2D,
    tf_keras_copy.ChannelPad,
    tf_keras_copy.ChannelShuffle,
    tf_keras_copy.ChannelSlice,
)

# Those of them behind which the converter needs no reminder of it. Where one of the others has two
# users, it leaves the second in float.
_MOVES = (
    _L.Flatten,
    _L.Reshape,
    _L.ZeroPadding2D,
    tf_keras_copy.ChannelPad,
    tf_keras_copy.ChannelShuffle,
    tf_keras_copy.ChannelSlice,
)

_FACTORS = (_L.BatchNormalization, tf_keras_copy.LayerScale)
_NEXT_TO_NOTHING = 1e-15

_EMA = 0.99  # what a moving range keeps at each step; fine-tuning has some hundred steps
_LEAST_SCALE = 2.0**-10  # of a channel's weights, share of the largest: else its bias overflows


class _WeightQuantizer(Quantizer):
    """Weights of 8 bits, symmetric: by output channel, and of a dense layer all alike.

    The converter refuses a dense layer by channel ("mismatched quantized axes").

    Args:
        layer: the layer; see `Projection` for what its weights at the start decide.
        scale: what the kernel is multiplied by before it is quantized, broadcast against it.
    """

    def __init__(self, layer: Any, scale: np.ndarray | float) -> None:
        self.scale, self.kind = np.asarray(scale, "float32"), type(layer)
        self.projection = Projection.of(getattr(layer, KERNELS[self.kind]).numpy())

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: dict[str, Any], **kwargs: Any
    ) -> tf.Tensor:
        kernel = self.projection(inputs) * self.scale
        shape = kernel.shape
        if self.kind is _L.Dense:
            largest = tf.stop_gradient(tf.maximum(tf.reduce_max(tf.abs(kernel)), 1e-6))
            return tf.quantization.fake_quant_with_min_max_vars(
                kernel, -largest, largest, narrow_range=True
            )
        if self.kind is _L.DepthwiseConv2D:  # both last axes are output channels
            kernel = tf.reshape(kernel, (*shape[:2], shape[2] * shape[3]))
        largest = tf.reduce_max(tf.abs(kernel), axis=list(range(len(kernel.shape) - 1)))
        largest = tf.maximum(largest, _LEAST_SCALE * tf.reduce_max(largest))
        largest = tf.stop_gradient(tf.maximum(largest, 1e-6))
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            kernel, -largest, largest, narrow_range=True
        )
        return tf.reshape(kernel, shape)

    def get_config(self) -> dict[str, Any]:
        return {"scale": self.scale.tolist()}


class Projection:
    """What keeps a kernel pruned and clustered while it is trained on.

    Weights that are exactly zero from pruning stay zero; weights that share a value from clustering
    move together, by the mean of what each would.
    """

    def __init__(self, mask: np.ndarray | None, cluster: np.ndarray | None) -> None:
        self.mask, self.cluster = mask, cluster

    @classmethod
    def of(cls, weights: np.ndarray) -> Projection:
        """Told from the numbers: trained floats are neither exactly zero nor equal by chance."""
        zeros = float(np.mean(weights == 0))
        values, cluster = np.unique(weights, return_inverse=True)
        clustered = 1 < len(values) <= min(256, weights.size // 4)
        return cls(
            (weights != 0).astype("float32") if 0.05 <= zeros < 1 else None,
            cluster.reshape(-1).astype("int32") if clustered else None,
        )

    def __call__(self, kernel: tf.Tensor) -> tf.Tensor:
        if self.cluster is not None:
            flat, number = tf.reshape(kernel, (-1,)), int(self.cluster.max()) + 1
            means = tf.math.unsorted_segment_mean(flat, self.cluster, number)
            kernel = tf.reshape(tf.gather(means, self.cluster), kernel.shape)
        return kernel if self.mask is None else kernel * self.mask


class _Weights(QuantizeConfig):
    """Quantizes a layer's kernel, by `quantizer`; what comes out is quantized further on."""

    def __init__(self, attribute: str, quantizer: _WeightQuantizer) -> None:
        self.attribute, self.quantizer = attribute, quantizer

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Quantizer]]:
        return [(getattr(layer, self.attribute), self.quantizer)]

    def set_quantize_weights(self, layer: Any, quantize_weights: Sequence[tf.Tensor]) -> None:
        setattr(layer, self.attribute, quantize_weights[0])

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        return []

    def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:
        pass

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        return []

    def get_config(self) -> dict[str, Any]:
        return {"attribute": self.attribute}


class _Fixed(Quantizer):
    """A range that is known beforehand."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: dict[str, Any], **kwargs: Any
    ) -> tf.Tensor:
        return tf.quantization.fake_quant_with_min_max_args(inputs, self.low, self.high)

    def get_config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high}


class _Moving(Quantizer):
    """The range of a tensor, or the common one of several: one quantizer, a layer for each of them.

    Each member's is the moving average of what the batches had, from the first batch on; the common
    one is from the smallest to the largest. Before the first training step nothing is quantized.

    Attributes:
        final: whether the ranges are known for good, so that a file can be made.
    """

    def __init__(self) -> None:
        self.final = False
        self._members: list[dict[str, tf.Variable]] = []

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, tf.Variable]:
        names = ("low", "high", "steps")
        own = {n: layer.add_weight(n, (), trainable=False, initializer="zeros") for n in names}
        self._members.append(own)
        return own

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: dict[str, tf.Variable], **kwargs: Any
    ) -> tf.Tensor:
        own = weights
        if training:
            keep = tf.where(own["steps"] > 0, _EMA, 0.0)
            for n, batch in (
                ("low", tf.minimum(tf.reduce_min(inputs), 0)),
                ("high", tf.maximum(tf.reduce_max(inputs), 0)),
            ):
                own[n].assign(keep * own[n] + (1 - keep) * tf.stop_gradient(batch))
            own["steps"].assign_add(1)
        low = tf.reduce_min([member["low"] for member in self._members])
        high = tf.reduce_max([member["high"] for member in self._members])
        high = tf.maximum(high, low + 1e-6)
        quantized = tf.quantization.fake_quant_with_min_max_vars(inputs, low, high)
        return quantized if self.final else tf.where(own["steps"] > 0, quantized, inputs)

    def finish(self, where: str) -> None:
        """Raises an `InputError` if there is nothing to quantize by."""
        if not all(int(member["steps"]) for member in self._members):
            raise InputError(
                f"{where} has not been trained since it was made quantization-aware, and knows no "
                "ranges; train it first, if only for a few steps"
            )
        self.final = True

    def get_config(self) -> dict[str, Any]:
        return {}


class _SubtractMean(tf_keras.layers.Layer):
    """x - mean by channel, over rows of width * channels: three values do not vectorize."""

    def __init__(self, mean: np.ndarray, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean = mean

    def call(self, x: tf.Tensor) -> tf.Tensor:
        _, height, width, channels = x.shape
        rows = tf.reshape(x, (-1, height, width * channels))
        rows = rows - np.tile(self.mean, width)
        return tf.reshape(rows, (-1, height, width, channels))


class _Mean(tf_keras.layers.Layer):
    """The mean of each window as a depthwise convolution of equal weights, which are quantized.

    As `passes.average_pool_as_conv` has it: of an integer AVERAGE_POOL_2D XNNPACK takes none.
    """

    def __init__(self, size: tuple[int, int], stride: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size, self.stride = size, stride

    def call(self, x: tf.Tensor) -> tf.Tensor:
        share = 1 / math.prod(self.size)
        kernel = tf.fill((*self.size, x.shape[-1], 1), share)
        kernel = tf.quantization.fake_quant_with_min_max_args(
            kernel, -share, share, narrow_range=True
        )
        return tf.nn.depthwise_conv2d(x, kernel, (1, self.stride, self.stride, 1), "VALID")


class _Affine(tf_keras.layers.Layer):
    """act(x + shift) * scale, for constants."""

    def __init__(
        self, shift: float = 0.0, scale: np.ndarray | float = 1.0, act: str = "", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.shift, self.scale, self.act = shift, scale, act

    def call(self, x: tf.Tensor) -> tf.Tensor:
        if self.shift:
            x = x + self.shift
        if self.act:
            x = tf_keras_copy.ACTIVATIONS[self.act](x)
        return x if np.all(self.scale == 1) else x * self.scale


class _Pass(tf_keras.layers.Layer):
    """A depthwise convolution of one pixel that gives what comes in, times `scale`.

    What a batch norm is folded into where it has no layer with a kernel before it: by channel, the
    integers of its factors are exact, and its bias has 32 bits.
    """

    def __init__(self, scale: np.ndarray | float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, x: tf.Tensor) -> tf.Tensor:
        kernel = np.broadcast_to(np.asarray(self.scale, "float32"), (1, 1, x.shape[-1]))
        return tf.nn.depthwise_conv2d(x, kernel[..., None], (1, 1, 1, 1), "VALID")


@dataclass(frozen=True)
class _Value:
    """A tensor that stands for `scale` times what it holds: the next kernel takes the scale up."""

    tensor: Any
    scale: np.ndarray | float = 1.0
    positive: bool = False  # nowhere below 0


def quantized(model: tf_keras.Model) -> tf_keras.Model:
    """The model with quantization emulated; it shares its layers, and so its weights.

    Raises:
        InputError: a layer has no int8 form here; it is named.
    """
    return _Builder(model).build()


def stands_for(model: tf_keras.Model) -> dict[str, tuple[str, np.ndarray | float]]:
    """What the tensors of the file of a `quantized` model hold, of the float `model` it is made of.

    Returns:
        For each layer that has a tensor the layer of `model` whose output it stands for, mostly
        itself, and what the tensor is to be multiplied by to be that output.
    """
    builder = _Builder(model)
    builder.build()
    return {
        node.layer.name: (builder.activated.get(node.layer.name, node.layer.name), value.scale)
        for node in builder.nodes
        for value in [builder.values[node.output]]
    }


def finish(model: tf_keras.Model) -> None:
    """Fixes the ranges of a `quantized` model, so that a file can be made of it.

    A factor of a channel that is exactly zero becomes one that is next to nothing: the converter
    leaves layers in float whose kernel has a scale of zero.

    Raises:
        InputError: it has not been trained.
    """
    for layer in model.layers:
        if isinstance(layer, _FACTORS) and getattr(layer, "gamma", None) is not None:
            layer.gamma.assign(tf.where(layer.gamma == 0, _NEXT_TO_NOTHING, layer.gamma))
        quantizer = getattr(layer, "quantizer", None)
        if isinstance(quantizer, _Moving):
            quantizer.finish(f"model {model.name!r}")


def is_quantized(model: tf_keras.Model) -> bool:
    """Whether `quantized` made it."""
    return any(isinstance(layer, QuantizeLayer) for layer in model.layers)


def weights_of(model: tf_keras.Model) -> dict[str, list[np.ndarray]]:
    """The weights of a `quantized` model as a float model has them, by the layer's own name."""
    values = {}
    for layer in model.layers:
        if isinstance(layer, QuantizeWrapperV2):
            variable, quantizer, _ = layer._weight_vars[0]
            bias = [layer.layer.bias.numpy()] if layer.layer.use_bias else []
            values[layer.layer.name] = [quantizer.projection(variable).numpy(), *bias]
        elif isinstance(layer, _FACTORS):
            values[layer.name] = layer.get_weights()
    return values


class _Builder:
    def __init__(self, model: tf_keras.Model) -> None:
        self.model = model
        self.output = tf_keras_copy.output_of(model)
        self.nodes, self.activated = _activate_before_concat(list(tf_keras_copy.nodes(model)))
        self.consumers: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in node.inputs:
                self.consumers[name].append(node)
        self.group = _common_ranges(self.nodes)
        self.ranges: dict[str, _Moving] = defaultdict(_Moving)
        self.values: dict[str, _Value] = {}
        self.plain: dict[str, _Value] = {}  # of `values`, those whose scale was multiplied out
        self.wrapped: set[int] = set()

    def build(self) -> tf_keras.Model:
        for node in self.nodes:
            if not node.inputs:
                image = tf_keras.Input(self.model.input_shape[1:], name=node.layer.name)
                pixels = QuantizeLayer(_Fixed(0, 255), name="quantize_image")(image)
                self.values[node.output] = _Value(pixels, positive=True)
            else:
                self.values[node.output] = self._call(node)
        result = self._materialize(self.output, self.model.layers[-1].name)
        return tf_keras.Model(image, result.tensor, name=self.model.name)

    def _call(self, node: Node) -> _Value:
        layer = node.layer
        kind = type(layer)
        if kind in KERNELS:
            return self._weighted(node)
        if kind is tf_keras_copy.ImageNormalization:
            return self._normalization(node)
        if kind is tf_keras_copy.Activation:
            return self._activation(node)
        if kind is _L.BatchNormalization:
            return self._batch_norm(node)
        if kind is tf_keras_copy.LayerScale:
            return self._layer_scale(node)
        if kind is tf_keras_copy.MultiQueryAttention:
            return self._attention(node)
        if kind is _L.Multiply:
            values = [self.values[name] for name in node.inputs]
            scale = np.prod([np.asarray(v.scale, "float32") for v in values], axis=0)
            if any(np.ndim(v.scale) for v in values):
                values, scale = [self._materialize(n, layer.name) for n in node.inputs], 1.0
            positive = all(value.positive for value in values)
            product = layer([value.tensor for value in values])
            return self._quantize(node, _Value(product, _plain(scale), positive))
        if kind is _L.Add or (kind is _L.Concatenate):
            values = [self.values[name] for name in node.inputs]
            if any(np.ndim(v.scale) or v.scale != values[0].scale for v in values):
                values = [self._materialize(name, layer.name) for name in node.inputs]
            result = layer([value.tensor for value in values])
            positive = all(value.positive for value in values)
            return self._quantize(node, _Value(result, values[0].scale, positive))
        if kind is tf_keras_copy.NearestDoubling2D:
            value, like = (self.values[name] for name in node.inputs)
            return replace(value, tensor=layer([value.tensor, like.tensor]))  # on the grid already
        if kind in (_L.GlobalAveragePooling2D, *_SAME_RANGE):
            value = self.values[node.inputs[0]]
            if kind is _L.AveragePooling2D and layer.padding == "valid":
                size, strides = layer.pool_size, layer.strides
                if strides[0] == strides[1]:  # a depthwise convolution has one
                    layer = _Mean(size, strides[0], name=layer.name)
            moved = (_L.Flatten, _L.Reshape, tf_keras_copy.ChannelPad, tf_keras_copy.ChannelShuffle)
            if np.ndim(value.scale) and kind in (*moved, tf_keras_copy.ChannelSlice):
                value = self._materialize(node.inputs[0], layer.name)
            return self._quantize(node, replace(value, tensor=layer(value.tensor)))
        raise InputError(f"layer {layer.name!r} ({kind.__name__}) has no int8 form for training")

    def _weighted(self, node: Node) -> _Value:
        """A convolution or dense layer, whose kernel takes up the scale of what comes in."""
        layer = node.layer
        if id(layer) in self.wrapped:
            raise InputError(f"layer {layer.name!r} is used twice; give each use its own layer")
        self.wrapped.add(id(layer))
        value = self.values[node.inputs[0]]
        if np.ndim(value.scale) and getattr(layer, "groups", 1) > 1:
            value = self._materialize(node.inputs[0], layer.name)
        attribute = KERNELS[type(layer)]
        scale = value.scale
        if np.ndim(scale):  # by input channel, which is the last axis but one of every kernel
            scale = np.asarray(scale)[:, None]
        wrapper = QuantizeWrapperV2(layer, _Weights(attribute, _WeightQuantizer(layer, scale)))
        return self._quantize(node, _Value(wrapper(value.tensor)))

    def _normalization(self, node: Node) -> _Value:
        layer, value = node.layer, self.values[node.inputs[0]]
        mean, std = 255 * layer.mean.numpy(), 255 * layer.std.numpy()
        name = layer.name
        x = value.tensor
        if mean.any():
            x = _SubtractMean(mean, name=f"{name}_mean")(x)
            # One range for all channels: what is lost of 256 levels is how far the means differ.
            limits = _Fixed(float(-mean.max()), float(255 - mean.min()))
            x = QuantizeLayer(limits, name=f"quantize_{name}")(x)
        return _Value(x, 1 / std)

    def _batch_norm(self, node: Node) -> _Value:
        layer, source = node.layer, node.inputs[0]
        value = self.values[source]
        if type(self._producer(source).layer) in KERNELS and len(self.consumers[source]) == 1:
            return self._quantize(node, _Value(layer(value.tensor)))
        if len(value.tensor.shape) != 4 or layer.axis != [3]:
            raise InputError(
                f"layer {layer.name!r}: a batch normalization of vectors that does not directly "
                "follow a convolution or dense layer of its own has no int8 form for training; use "
                "int8 with calibration"
            )
        x = _Pass(value.scale, name=f"{layer.name}_pass")(value.tensor)
        return self._quantize(node, _Value(layer(x)))

    def _layer_scale(self, node: Node) -> _Value:
        """Folded, as a batch norm, into the kernel before."""
        layer, source = node.layer, node.inputs[0]
        if not self._is_weighted(self._producer(source)) or len(self.consumers[source]) > 1:
            raise InputError(
                f"layer {layer.name!r}: a LayerScale that does not directly follow a convolution, "
                "dense layer or batch normalization of its own has no int8 form for training; use "
                "int8 with calibration"
            )
        return self._quantize(node, _Value(layer(self.values[source].tensor)))

    def _attention(self, node: Node) -> _Value:
        """In floats between integers: see `file_facts.better_in_float`.

        The factor of the queries goes into the kernel before, if there is one.
        """
        layer, source = node.layer, node.inputs[0]
        queries, *others = (self._materialize(name, layer.name) for name in node.inputs)
        factor = float(others[0].tensor.shape[-1] ** -0.5)
        # By channel, as else the converter does not fold it.
        factors = np.full(queries.tensor.shape[-1], factor, "float32")
        x = _Affine(scale=factors, name=f"{layer.name}_queries")(queries.tensor)
        x = QuantizeLayer(_Moving(), name=f"quantize_{layer.name}_queries")(x)
        if self._fused(self._producer(source)):
            self.values[source] = _Value(x, 1 / factor)
        attention = tf_keras_copy.MultiQueryAttention(layer.heads, scaled=True, name=layer.name)
        return self._quantize(node, _Value(attention([x, *(value.tensor for value in others)])))

    def _activation(self, node: Node) -> _Value:
        layer, source = node.layer, node.inputs[0]
        kind, name, value = layer.kind, layer.name, self.values[source]
        if kind == "relu" and value.positive:
            return self._quantize(node, value) if self._fused(self._producer(source)) else value
        if kind == "relu":
            return self._quantize(node, replace(value, tensor=layer(value.tensor), positive=True))
        value = self._materialize(source, name)
        x = value.tensor
        if kind == "relu6":
            return self._quantize(node, _Value(layer(x), positive=True))
        if kind == "gelu":  # in floats between integers, as `_attention`
            return self._quantize(node, _Value(layer(x)))
        if kind == "hard_sigmoid":  # 3 goes into a bias, and 1/6 into the next kernel
            x = _Affine(3.0, act="relu6", name=name)(x)
            return self._quantize(node, _Value(x, 1 / 6, positive=True))
        if kind == "hard_silu":  # likewise; a HARD_SWISH would leave the delegate
            gate = _Affine(3.0, act="relu6", name=f"{name}_gate")(x)
            gate = QuantizeLayer(_Fixed(0, 6), name=f"quantize_{name}_gate")(gate)
            return self._quantize(node, _Value(_L.Multiply(name=name)([x, gate]), 1 / 6))
        if kind in ("sigmoid", "silu", "softmax"):
            # The int8 kernels of both have this fixed scale: 1/256, from 0.
            function = "softmax" if kind == "softmax" else "sigmoid"
            y = _Affine(act=function, name=name if kind != "silu" else f"{name}_gate")(x)
            y = QuantizeLayer(_Fixed(0, 255 / 256), name=f"quantize_{name}_{function}")(y)
            if kind != "silu":
                return _Value(y, positive=True)
            return self._quantize(node, _Value(_L.Multiply(name=name)([x, y])))
        raise InputError(f"layer {name!r}: activation {kind!r} has no int8 form for training")

    def _producer(self, name: str) -> Node:
        return next(node for node in self.nodes if node.output == name)

    def _materialize(self, name: str, consumer: str) -> _Value:
        """The value with its scale multiplied out, by an operation of its own."""
        value = self.values[name]
        if np.all(value.scale == 1):
            return value
        if name not in self.plain:
            scaled = f"{consumer}_scaled_{len(self.plain)}"
            x = _Affine(scale=value.scale, name=scaled)(value.tensor)
            x = QuantizeLayer(_Moving(), name=f"quantize_{scaled}")(x)
            self.plain[name] = _Value(x, positive=value.positive)
        return self.plain[name]

    def _quantize(self, node: Node, value: _Value) -> _Value:
        """With quantization behind it, if nothing that is fused with it follows."""
        if self._fused(node):
            return value
        if isinstance(node.layer, _MOVES):
            return value  # on the grid already
        group = self.group[node.output]
        name = f"quantize_{node.layer.name}"
        return replace(value, tensor=QuantizeLayer(self.ranges[group], name=name)(value.tensor))

    def _fused(self, node: Node) -> bool:
        """Whether what follows is computed by the same int8 operation."""
        followers = self.consumers[node.output]
        if len(followers) != 1 or node.output == self.output:
            return False
        following = followers[0]
        layer = following.layer
        if isinstance(layer, _L.BatchNormalization):
            return type(node.layer) in KERNELS
        if isinstance(layer, tf_keras_copy.LayerScale):
            return self._is_weighted(node)
        if isinstance(layer, tf_keras_copy.MultiQueryAttention):
            return self._is_weighted(node) and following.inputs[0] == node.output
        if not isinstance(layer, tf_keras_copy.Activation):
            return False
        if layer.kind == "relu":
            return self._is_weighted(node) or isinstance(node.layer, _L.Add)
        return self._is_weighted(node) and layer.kind in ("relu6", "hard_sigmoid")

    def _is_weighted(self, node: Node) -> bool:
        """Whether it is a layer with a kernel, or what is folded into one."""
        return type(node.layer) in (*KERNELS, *_FACTORS)


def _plain(scale: Any) -> np.ndarray | float:
    return scale if np.ndim(scale) else float(scale)


def _activate_before_concat(nodes: list[Node]) -> tuple[list[Node], dict[str, str]]:
    """A ReLU behind a concatenation as one on each of its inputs, where a convolution fuses it.

    Also, by the name of such a concatenation, that of the ReLU.
    """
    consumers: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        for name in node.inputs:
            consumers[name].append(node)
    result: list[Node] = []
    renamed: dict[str, str] = {}
    activated: dict[str, str] = {}
    for node in nodes:
        following = consumers[node.output]
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        if (
            isinstance(node.layer, _L.Concatenate)
            and len(following) == 1
            and getattr(following[0].layer, "kind", "") == "relu"
        ):
            relu = following[0]
            inputs = []
            for i, name in enumerate(node.inputs):
                each = tf_keras_copy.Activation("relu", name=f"{relu.layer.name}_{i}")
                result.append(Node(each, (name,), f"{name}/{relu.layer.name}"))
                inputs.append(result[-1].output)
            renamed[relu.output] = node.output
            activated[node.layer.name] = relu.layer.name
            node = replace(node, inputs=tuple(inputs))
        if node.output not in renamed:
            result.append(node)
    return result, activated


def _common_ranges(nodes: list[Node]) -> dict[str, str]:
    """For each tensor the name of one of those that it shares its range with."""
    parent = {node.output: node.output for node in nodes}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in nodes:
        if isinstance(node.layer, _SAME_RANGE):
            for name in node.inputs:
                parent[root(name)] = root(node.output)
    return {name: root(name) for name in parent}
