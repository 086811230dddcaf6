"""Export as a pipeline of graph passes: each takes a Keras model and returns an equivalent one.

A pass never changes the model that it is given: it rebuilds the graph from new layers, and leaves
alone what it does not understand. Layers keep their names; one that takes in another, such as a
convolution its batch norm and activation, keeps its own. `PASSES` says which run, in which order,
and for which quantization of the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps._errors import InputError
from kapps._heads import without_auxiliary_heads
from kapps._network import has_auxiliary_heads
from kapps.custom_layers import DropBlock2D, StochasticDepth
from kapps.tflite.passes.branches import merge_branches
from kapps.tflite.passes.folding import (
    average_pool_as_conv,
    fold_batch_norm,
    fold_normalization,
    fuse_activations,
    relu6_gates,
    relu6_hard_swish,
)
from kapps.tflite.passes.graph import in_float32
from kapps.tflite.passes.graph import rebuild as rebuild  # of this module's name too
from kapps.tflite.passes.pooling import pad_in_max_pooling
from kapps.tflite.passes.shuffle import remove_channel_shuffle
from kapps.tflite.passes.split import split_sliced_convolutions
from kapps.tflite.passes.stem import pair_pixels

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
    *(
        getattr(layers, name)
        for name in (
            *("AugMix", "CutMix", "MixUp", "RandAugment", "RandomBrightness"),
            *("RandomColorDegeneration", "RandomColorJitter", "RandomContrast"),
            *("RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomGaussianBlur"),
            *("RandomGrayscale", "RandomHue", "RandomInvert", "RandomPerspective"),
            *("RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness"),
            *("RandomShear", "RandomTranslation", "RandomZoom"),
        )
        if hasattr(layers, name)  # some are of a later Keras
    ),
)


def remove_training_layers(model: keras.Model) -> keras.Model:
    """Without the layers that act in training only: dropout, noise, augmentation, DropBlock.

    Exact, because each of them returns its input at inference.
    """
    return rebuild(model, keep=lambda layer: not isinstance(layer, _TRAINING_ONLY))


def float32(model: keras.Model) -> keras.Model:
    """With all layers in float32, whatever dtype policy they were built under.

    Under mixed_float16 and mixed_bfloat16 the weights are float32 as they are; others are cast. A
    model computes the same then, but for the rounding of halves.
    """
    if all(
        layer.dtype_policy.name == "float32"
        for layer in model._flatten_layers()
        if not isinstance(layer, keras.Model)
    ):
        return model
    return rebuild(model, changes=lambda layer: _in_float32(layer.get_config(), layer))


def _in_float32(config: dict[str, Any], layer: Any = None) -> dict[str, Any]:
    """What differs in a configuration, and in those nested in it."""
    changes: dict[str, Any] = {}
    for key, value in config.items():
        if key == "dtype" and (layer is None or isinstance(layer, keras.Layer)):
            changes[key] = "float32"
        elif isinstance(value, dict):
            changes[key] = value | _in_float32(value)
    return changes


def static_batch(model: keras.Model) -> keras.Model:
    """With a batch of exactly 1.

    Exact, because at inference no layer looks across the batch. A variable batch would put SHAPE,
    STRIDED_SLICE and PACK around every reshape, and cut the graph into pieces for a delegate.
    """
    return rebuild(model, batch_size=1)


def remove_auxiliary_heads(model: keras.Model) -> keras.Model:
    """With the main output only, where a kapps model has further ones for training.

    GoogLeNet, GoogLeNetOriginal and InceptionV3 have them if asked to (`aux`). A model of several
    outputs from elsewhere keeps them all. This is the one place that asks a model for them.
    """
    if has_auxiliary_heads(model):
        return rebuild(without_auxiliary_heads(model))
    return model


@dataclasses.dataclass(frozen=True)
class Pass:
    """One step of the export.

    Attributes:
        run: takes a Keras model and returns a new one that computes the same, or the model itself
            if there is nothing to do.
        quantizations: of the file, for which it runs; empty for all.
    """

    run: Callable[[keras.Model], keras.Model]
    quantizations: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What `run` is called."""
        return self.run.__name__


# In this order: what is dropped first, then what makes layers adjacent, then what uses that.
PASSES: tuple[Pass, ...] = (
    Pass(remove_auxiliary_heads),
    Pass(float32),
    Pass(remove_training_layers),
    Pass(fold_batch_norm),
    Pass(merge_branches),
    Pass(fold_normalization),
    Pass(fuse_activations),
    Pass(relu6_gates),
    Pass(relu6_hard_swish, ("int8", "mixed", "int16x8")),
    Pass(average_pool_as_conv, ("int8", "mixed")),
    Pass(remove_channel_shuffle),
    Pass(pad_in_max_pooling),
    Pass(split_sliced_convolutions),
    Pass(pair_pixels, ("int8", "mixed")),
    Pass(static_batch),
)


def run_passes(
    model: keras.Model,
    *,
    quantization: str = "float32",
    passes: Sequence[Pass] = PASSES,
) -> keras.Model:
    """The model after those of `passes` that are for a file of that quantization.

    Raises:
        InputError: the graph of the model is not known, or a layer of it cannot be copied.
    """
    with in_float32():
        for step in passes:
            if not step.quantizations or quantization in step.quantizations:
                model = step.run(model)
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
