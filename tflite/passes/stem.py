"""The export pass that lets integer kernels read an image two pixels at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps.tflite.passes.folding import is_linear
from kapps.tflite.passes.graph import Call, Graph, copy_layer, identity, replace

_LANES = 8  # channels that XNNPACK's 8-bit convolutions read at once, filled up with zeros


def pair_pixels(model: keras.Model) -> keras.Model:
    """With the two pixels of each even and odd column side by side, as the channels of one.

    XNNPACK's 8-bit convolutions fill up the channels of every pixel to 8. Three of them, in a
    kernel of 3 x 3, make 72 products where 27 count; as 3 x 2 pairs of six there are 48. Exact: the
    image is only viewed in another way, and the places of the kernel that are new hold zeros.

    For convolutions of stride 2 along an even width on at most four channels, where it saves
    products.
    """
    return replace(model, _pair_pixels)


def _pair_pixels(graph: Graph) -> Mapping[keras.Operation, Call]:
    replaced: dict[keras.Operation, Call] = {}
    for conv in graph.layers:
        if type(conv) is not layers.Conv2D or not is_linear(graph, conv):
            continue
        padding = graph.before(conv)
        if type(padding) is not layers.ZeroPadding2D or graph.only_after(padding) is not conv:
            padding = None
        pairs = _pairs(graph, conv, padding)
        if pairs is None:
            continue
        replaced[conv] = pairs
        if padding is not None:
            replaced[padding] = identity
    return replaced


def _pairs(graph: Graph, conv: Any, padding: Any) -> Call | None:
    """The same on pairs, padding included; None where that is not possible or no gain."""
    _, height, width, channels = graph.inputs(conv if padding is None else padding)[0].shape
    _, rows, columns, _ = graph.output(conv).shape
    kernel = np.asarray(conv.get_weights()[0])
    if (
        None in (height, width)
        or width % 2
        or 2 * channels > _LANES
        or conv.groups != 1
        or conv.strides != (2, 2)
        or conv.dilation_rate != (1, 1)
        or (conv.padding != "valid" and padding is not None)
    ):
        return None
    (top, bottom), (left, _) = ((0, 0), (0, 0)) if padding is None else padding.padding
    if conv.padding == "same":
        top, bottom = _same(height, rows, kernel.shape[0])
        left, _ = _same(width, columns, kernel.shape[1])
    # A column of the output reads the pixels -left, ..., size - 1 - left from its own on.
    size = kernel.shape[1]
    first, last = -left // 2, (size - 1 - left) // 2
    right = columns - 1 + last - (width // 2 - 1)
    if last - first + 1 >= size or right < 0:
        return None
    paired = np.zeros((kernel.shape[0], last - first + 1, 2, *kernel.shape[2:]), kernel.dtype)
    for offset in range(size):
        pair, side = divmod(offset - left, 2)
        paired[:, pair - first, side] = kernel[:, offset]
    paired = paired.reshape(*paired.shape[:2], 2 * channels, -1)
    copy: Any = copy_layer(conv, kernel_size=paired.shape[:2], strides=(2, 1), padding="valid")
    copy.build((1, height + top + bottom, width // 2 - first + right, 2 * channels))
    copy.set_weights([paired, *conv.get_weights()[1:]])
    view = layers.Reshape((height, width // 2, 2 * channels), name=f"{conv.name}_pairs")
    pad = layers.ZeroPadding2D(((top, bottom), (-first, right)), name=f"{conv.name}_padding")
    return lambda x: copy(pad(view(x)))


def _same(size: int, outputs: int, kernel: int) -> tuple[int, int]:
    """What "same" pads before and after, at stride 2."""
    total = max(2 * (outputs - 1) + kernel - size, 0)
    return total // 2, total - total // 2
