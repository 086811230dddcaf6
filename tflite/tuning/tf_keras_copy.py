"""A Keras 3 model rebuilt, layer by layer, in tf_keras (Keras 2), and its weights brought back.

tensorflow-model-optimization knows tf_keras only. The copy computes the same numbers with layers of
the same names, whose weights have the same shapes, so that either side can take over the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from kapps import custom_layers
from kapps._block_skipping import nodes_in_order
from kapps._errors import InputError
from kapps.tflite.passes import remove_training_layers
from kapps.tflite.passes.graph import flattened, leaves
from kapps.tflite.passes.graph import rebuild as copied
from kapps.tflite.passes.shuffle import as_before_removal, remove_channel_shuffle
from kapps.tflite.tuning.branches import merged, split


class ImageNormalization(tf_keras.layers.Layer):
    """As `kapps.custom_layers.ImageNormalization`; `mean` and `std` are of 0..1, by channel."""

    def build(self, input_shape: tuple[Any, ...]) -> None:
        channels = (input_shape[-1],)
        self.mean = self.add_weight("mean", channels, initializer="zeros", trainable=False)
        self.std = self.add_weight("std", channels, initializer="ones", trainable=False)
        super().build(input_shape)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        return (tf.cast(images, tf.float32) * (1 / 255) - self.mean) / self.std


class ChannelSlice(tf_keras.layers.Layer):
    """As `kapps.custom_layers.ChannelSlice`."""

    def __init__(self, start: int, stop: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start, self.stop = start, stop

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x[..., self.start : self.stop]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "start": self.start, "stop": self.stop}


class ChannelShuffle(tf_keras.layers.Layer):
    """As `kapps.custom_layers.ChannelShuffle`."""

    def __init__(self, groups: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups = groups

    def call(self, x: tf.Tensor) -> tf.Tensor:
        _, height, width, channels = x.shape
        x = tf.reshape(x, (-1, height * width, self.groups, channels // self.groups))
        return tf.reshape(tf.transpose(x, (0, 1, 3, 2)), (-1, height, width, channels))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "groups": self.groups}


class ChannelPad(tf_keras.layers.Layer):
    """As `kapps.custom_layers.ChannelPad`."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = channels

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.channels - x.shape[-1])))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "channels": self.channels}


class NearestDoubling2D(tf_keras.layers.Layer):
    """As `kapps.custom_layers.NearestDoubling2D`, of maps of known size."""

    def call(self, maps: list[tf.Tensor]) -> tf.Tensor:
        x, like = maps
        _, height, width, channels = x.shape
        x = tf.concat([x, x], axis=-1)
        x = tf.concat([x, x], axis=2)
        x = tf.reshape(x, (-1, 2 * height, 2 * width, channels))
        if like.shape[1] % 2:
            x = tf.concat([x[:, :1], x], axis=1)
        return tf.concat([x[:, :, :1], x], axis=2) if like.shape[2] % 2 else x


class LayerScale(tf_keras.layers.Layer):
    """As `kapps.custom_layers.LayerScale`."""

    def __init__(self, start: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start = start

    def build(self, input_shape: tuple[Any, ...]) -> None:
        start = tf_keras.initializers.Constant(self.start)
        self.gamma = self.add_weight("gamma", (input_shape[-1],), initializer=start)
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x * self.gamma

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "start": self.start}


class MultiQueryAttention(tf_keras.layers.Layer):
    """As `kapps.custom_layers.MultiQueryAttention`; the queries may come scaled already."""

    def __init__(self, heads: int, scaled: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.scaled = heads, scaled

    def call(self, maps: list[tf.Tensor]) -> tf.Tensor:
        queries, keys, values = maps
        _, height, width, _ = queries.shape
        _, rows, columns, channels = keys.shape
        depth = values.shape[-1]
        if not self.scaled:
            queries = queries * channels**-0.5
        queries = tf.reshape(queries, (-1, height * width * self.heads, channels))
        keys = tf.reshape(keys, (-1, rows * columns, channels))
        values = tf.reshape(values, (-1, rows * columns, depth))
        fit = tf.nn.softmax(tf.matmul(queries, keys, transpose_b=True))
        return tf.reshape(tf.matmul(fit, values), (-1, height, width, self.heads * depth))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "heads": self.heads, "scaled": self.scaled}


def _hard_sigmoid(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.relu6(x + 3) / 6


# Keras 3's own formulas; tf_keras knows two of these names by other ones.
ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": lambda x: x * _hard_sigmoid(x),
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "sigmoid": tf.nn.sigmoid,
    "silu": tf.nn.silu,
    "softmax": tf.nn.softmax,
    "tanh": tf.nn.tanh,
}


class Activation(tf_keras.layers.Layer):
    """One of `ACTIVATIONS`."""

    def __init__(self, kind: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind = kind

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return ACTIVATIONS[self.kind](x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind}


@dataclass(frozen=True)
class Node:
    """One call of a layer in a graph; tensors are known by names of their own.

    A node without inputs is an input of the graph.
    """

    layer: Any
    inputs: tuple[str, ...]
    output: str


# Names of arguments that say how to start or to train, not what is computed.
_NOT_COMPUTED = ("_initializer", "_regularizer", "_constraint")
_DROPPED = {"dtype", "synchronized", "quantization_config", "lora_rank", "lora_alpha", "activation"}

# What a layer becomes; configurations fit but for what is dropped.
_SAME = (
    "Add",
    "AveragePooling2D",
    "BatchNormalization",
    "Concatenate",
    "Conv2D",
    "Dense",
    "DepthwiseConv2D",
    "Flatten",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "MaxPooling2D",
    "Multiply",
    "Reshape",
    "ZeroPadding2D",
)
_CLASSES: dict[type, Any] = {
    **{getattr(keras.layers, name): getattr(tf_keras.layers, name) for name in _SAME},
    custom_layers.ImageNormalization: ImageNormalization,
    custom_layers.ChannelPad: ChannelPad,
    custom_layers.ChannelShuffle: ChannelShuffle,
    custom_layers.ChannelSlice: ChannelSlice,
    custom_layers.LayerScale: LayerScale,
    custom_layers.MultiQueryAttention: MultiQueryAttention,
    custom_layers.NearestDoubling2D: NearestDoubling2D,
}

# Activations that Keras also has as layers, by the argument values that make them the same thing.
_ACTIVATION_LAYERS: dict[type, tuple[str, dict[str, Any]]] = {
    keras.layers.Softmax: ("softmax", {"axis": -1}),
}


def prepared(model: keras.Model) -> keras.Model:
    """The Keras 3 model that `rebuild` copies layer by layer: nothing is nested in it."""
    return remove_channel_shuffle(merged(_inference(model)))


def _inference(model: keras.Model) -> keras.Model:
    return remove_training_layers(flattened(model))


def rebuild(model: keras.Model) -> tf_keras.Model:
    """The model in tf_keras, with its weights, and without the layers that act in training only.

    Branches are merged where `branches.merged` can, and channels are in the order of
    `remove_channel_shuffle`, as in a file to come; `copy_weights` knows.

    Fused activations become layers of their own, named `<layer>_activation`.

    Args:
        model: a functional or Sequential Keras 3 model with one input and one output. Layers of
            models nested in it are named as `leaves` does.

    Raises:
        InputError: the graph is not known, or has a layer that is not supported; it is named.
    """
    if keras.config.backend() != "tensorflow":
        raise InputError(
            f"tuning runs on TensorFlow, and Keras on {keras.config.backend()}: save the weights, "
            "and tune in a process with KERAS_BACKEND=tensorflow"
        )
    graph = prepared(model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise InputError(
            f"model {model.name!r} has {len(graph.inputs)} inputs and {len(graph.outputs)} "
            "outputs; tuning takes models with one of each"
        )
    image = tf_keras.Input(graph.inputs[0].shape[1:], name=graph.inputs[0].name)
    tensors = {id(graph.inputs[0]): image}
    made: dict[int, tuple[Any, Any]] = {}  # by the Keras 3 layer, which may be called repeatedly
    for node in nodes_in_order(graph):
        if node.is_input:
            continue
        layer = node.operation
        if id(layer) not in made:
            made[id(layer)] = _counterpart(layer)
        main, activation = made[id(layer)]
        inputs = [tensors[id(tensor)] for tensor in node.input_tensors]
        x = main(inputs[0] if len(inputs) == 1 else inputs)
        tensors[id(node.outputs[0])] = x if activation is None else activation(x)
    rebuilt = tf_keras.Model(image, tensors[id(graph.outputs[0])], name=model.name)
    for layer in graph.layers:
        if layer.weights:
            made[id(layer)][0].set_weights(layer.get_weights())
    return rebuilt


def _counterpart(layer: Any) -> tuple[Any, Any]:
    """The tf_keras layer, and the one for its fused activation or None."""
    kind, name = type(layer), getattr(layer, "name", "?")
    if not isinstance(layer, keras.layers.Layer):  # a bare op shares the name of a layer's class
        raise InputError(
            f"operation {name!r} ({kind.__name__}) cannot be tuned: build the model from layers, "
            f"such as keras.layers.{kind.__name__}"
        )
    config = layer.get_config()
    if kind in (keras.layers.Activation, keras.layers.ReLU, *_ACTIVATION_LAYERS):
        return Activation(_activation(layer, config), name=name), None
    if kind not in _CLASSES:
        raise InputError(
            f"layer {name!r} ({kind.__name__}) cannot be tuned; supported are "
            f"{', '.join(sorted({known.__name__ for known in _CLASSES}))} and Activation"
        )
    if config.get("data_format") == "channels_first":
        raise InputError(f"layer {name!r} is channels_first; build the model channels_last")
    if kind is custom_layers.ImageNormalization:
        config = {key: config[key] for key in ("name", "trainable")}
    config = {
        key: value
        for key, value in config.items()
        if key not in _DROPPED and not key.endswith(_NOT_COMPUTED)
    }
    if kind is keras.layers.BatchNormalization:
        # As Keras 3 computes it; tf_keras's fused kernel divides by n - 1 in training.
        config["fused"] = False
    try:
        counterpart = _CLASSES[kind](**config)
    except (TypeError, ValueError) as error:
        raise InputError(f"layer {name!r} ({kind.__name__}) cannot be tuned: {error}") from error
    activation = layer.get_config().get("activation", "linear")
    if activation == "linear":
        return counterpart, None
    fused = Activation(_known(activation, name), name=f"{name}_activation")
    return counterpart, fused


def _activation(layer: Any, config: dict[str, Any]) -> str:
    name = layer.name
    if isinstance(layer, keras.layers.ReLU):
        if config["negative_slope"] or config["threshold"] or config["max_value"] not in (None, 6):
            raise InputError(f"layer {name!r}: of ReLU only plain and max_value=6 are tuned")
        return "relu" if config["max_value"] is None else "relu6"
    for kind, (same, needed) in _ACTIVATION_LAYERS.items():
        if type(layer) is kind:
            if any(config[key] != value for key, value in needed.items()):
                raise InputError(f"layer {name!r}: expected {needed} to tune it")
            return same
    return _known(config["activation"], name)


def _known(activation: Any, where: str) -> str:
    if activation == "swish":
        return "silu"
    if activation not in ACTIVATIONS:
        raise InputError(
            f"layer {where!r}: activation {activation!r} cannot be tuned; supported are "
            f"{', '.join(sorted(ACTIVATIONS))}"
        )
    return str(activation)


def nodes(model: tf_keras.Model) -> Iterator[Node]:
    """The calls of a tf_keras graph, each after those that it depends on."""
    for node in nodes_in_order(model):
        inputs = () if node.is_input else tuple(map(str, node.flat_input_ids))
        yield Node(node.layer, inputs, str(node.flat_output_ids[0]))


def output_of(model: tf_keras.Model) -> str:
    """The name, as in `nodes`, of the output's tensor."""
    return str(id(model.outputs[0]))


def copy_weights(values: dict[str, list[np.ndarray]], model: keras.Model) -> keras.Model:
    """A copy of a Keras 3 model with these weights of what `rebuild` made of it, by layer.

    The weights of layers that are not named stay as they are.

    Raises:
        InputError: a layer is unknown, or its weights have other shapes.
    """
    copy = copied(model)
    for new, old in _pairs(copy, model):
        for attribute, value in vars(old).items():  # what kapps.save_weights names weights by
            if attribute.startswith("checkpoint_") and not hasattr(new, attribute):
                setattr(new, attribute, value)
    inference = _inference(model)
    trained = merged(inference)
    fitting = leaves(trained)
    for name, weights in values.items():
        layer = fitting.get(name)
        if layer is None or [w.shape for w in weights] != [tuple(w.shape) for w in layer.weights]:
            raise InputError(
                f"the weights of layer {name!r} do not fit model {model.name!r}: pass the model "
                "that the tuned one was made of"
            )
    known = leaves(copy)
    for name, weights in split(inference, as_before_removal(trained, values)).items():
        known[name].set_weights(weights)
    return copy


def _pairs(copy: Any, model: Any) -> Iterator[tuple[Any, Any]]:
    """The layers of both, the models themselves and nested ones included."""
    yield copy, model
    if isinstance(model, keras.Model):
        for layer in model.layers:
            yield from _pairs(copy.get_layer(layer.name), layer)
