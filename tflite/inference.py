"""Running a Keras model over images, in inference and in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

_MOST_BYTES = 16 << 20
"""Of the largest feature map of a batch; more is no faster. A graph frees a map once nothing needs
it, so that some five times as much is in use; called eagerly, a model keeps them all."""
_MOST_IMAGES = 64


def batches(model: Any, images: np.ndarray) -> Iterator[list[np.ndarray]]:
    """The outputs of a model, of Keras 3 or of tf_keras, for batches of images.

    Args:
        model: it is called with `training=False`: layers that augment hand on what they get, which
            Keras's do not by default.
        images: (n, height, width, channels), as the model takes them, of any type.

    Yields:
        For as many images as the memory allows, in order, each output as an array.
    """
    call = _graph(model)
    size = images_at_once(model)
    for start in range(0, len(images), size):
        outputs = call(keras.ops.convert_to_tensor(images[start : start + size].astype("float32")))
        yield [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]


def _graph(model: Any) -> Any:
    def call(x: Any) -> Any:
        return model(x, training=False)

    if keras.config.backend() != "tensorflow":
        return call
    import tensorflow as tf

    return tf.function(call, autograph=False, reduce_retracing=True)


def images_at_once(model: Any) -> int:
    """How many images the model takes at once, by the size of its largest feature map."""
    return max(1, min(_MOST_IMAGES, _MOST_BYTES // max(1, 4 * _largest(model))))


def _largest(model: Any) -> int:
    """The number of values of the largest feature map for one image."""
    largest = 0
    for layer in model.layers:
        if hasattr(layer, "layers"):  # a model within the model
            largest = max(largest, _largest(layer))
        for node in layer._inbound_nodes:
            for tensor in keras.tree.flatten(node.outputs):
                largest = max(largest, math.prod(n or 1 for n in tensor.shape[1:]))
    return largest
