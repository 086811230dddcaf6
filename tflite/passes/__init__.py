"""Export as a pipeline of graph passes: each takes a Keras model and returns an equivalent one.

A pass never changes the model that it is given: it rebuilds the graph from new layers with the same
names and weights. `PASSES` says which run, and in which order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps._custom_layers import DropBlock2D, StochasticDepth
from kapps._errors import InputError

Pass = Callable[[keras.Model], keras.Model]

# Layers that Keras documents as active in training only.
_TRAINING_ONLY = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout2D,
    DropBlock2D,
    StochasticDepth,
)


def rebuild(
    model: keras.Model,
    *,
    keep: Callable[[keras.Layer], bool] = lambda layer: True,
    batch_size: int | None = None,
) -> keras.Model:
    """A copy of a functional model with some layers left out: names, weights and the rest stay.

    Args:
        model: the model; models nested in it are rebuilt too, and stay nested.
        keep: says of each layer whether it stays; one that goes hands its input on.
        batch_size: the batch dimension of the inputs, None for a variable one.

    Raises:
        InputError: the model is no functional or Sequential one, so its graph is not known.
    """
    if not isinstance(model, (keras.Sequential, keras.models.Model)) or not model.built:
        raise InputError(f"expected a built Keras model, got {type(model).__name__}")
    try:
        # As a plain functional model: the same graph, without what `compile` left.
        graph = keras.Model(_plain(model.inputs), _plain(model.outputs), name=model.name)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"model {model.name!r} is no functional model, so its graph is not known; "
            "build it from layers called on keras.Input"
        ) from error
    copies: dict[int, tuple[keras.Layer, keras.Layer]] = {}

    def call(layer: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.Layer) and not keep(layer):
            return args[0]
        if id(layer) not in copies:
            nested = isinstance(layer, keras.Model)
            copies[id(layer)] = layer, rebuild(layer, keep=keep) if nested else _copy(layer)
        return copies[id(layer)][1](*args, **kwargs)

    names = [layer.name for layer in graph.layers if isinstance(layer, layers.InputLayer)]
    inputs = [
        keras.Input(batch_shape=(batch_size, *x.shape[1:]), dtype=x.dtype, name=name)
        for x, name in zip(graph.inputs, names, strict=True)
    ]
    copy = keras.models.clone_model(
        graph,
        input_tensors=_plain(inputs),
        clone_function=lambda layer: layer,  # `call` copies: it also sees the arguments
        call_function=call,
    )
    for layer, layer_copy in copies.values():
        if isinstance(layer, keras.Layer):  # a bare op has no weights
            layer_copy.set_weights(layer.get_weights())
    return copy


def _plain(tensors: list[keras.KerasTensor]) -> Any:
    """One tensor without a list around it: a model gives back what it was built with."""
    return tensors[0] if len(tensors) == 1 else tensors


def _copy(layer: keras.Operation) -> keras.Operation:
    try:
        return layer.__class__.from_config(layer.get_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be copied: {error} "
            "Write it as a layer class with get_config."
        ) from error


def remove_training_layers(model: keras.Model) -> keras.Model:
    """Without the layers that act in training only: dropout, noise, stochastic depth, DropBlock.

    Exact, because each of them returns its input at inference.
    """
    return rebuild(model, keep=lambda layer: not isinstance(layer, _TRAINING_ONLY))


def static_batch(model: keras.Model) -> keras.Model:
    """With a batch of exactly 1.

    Exact, because at inference no layer looks across the batch. A variable batch would put SHAPE,
    STRIDED_SLICE and PACK around every reshape, and cut the graph into pieces for a delegate.
    """
    return rebuild(model, batch_size=1)


PASSES: tuple[Pass, ...] = (remove_training_layers, static_batch)


def run_passes(model: keras.Model) -> keras.Model:
    """The model after all `PASSES`."""
    for export_pass in PASSES:
        model = export_pass(model)
    return model


# ITU-R BT.601, as in PIL's convert("L") and OpenCV's COLOR_RGB2GRAY.
_LUMA = (0.299, 0.587, 0.114)


def rgb_input(model: keras.Model) -> keras.Model:
    """A model for gray images, as one that takes RGB images.

    MediaPipe and Android's camera give RGB only, and refuse a model of one channel. The luma is
    computed in the graph; for an image whose three channels are equal it is that channel, to
    rounding.

    Raises:
        InputError: the model does not take one channel.
    """
    height, width, channels = model.input_shape[1:]
    if channels != 1:
        raise InputError(f"model {model.name!r} takes {channels} channels; expected 1")
    luma = layers.Conv2D(1, 1, use_bias=False, name="rgb_to_gray")
    image = keras.Input((height, width, 3), name="image")
    rgb = keras.Model(image, rebuild(model)(luma(image)), name=model.name)
    luma.set_weights([np.reshape(np.array(_LUMA, "float32"), (1, 1, 3, 1))])
    return rgb
