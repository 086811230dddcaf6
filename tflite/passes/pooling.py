"""The export pass that pads a max-pooling without copying the feature map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import layers

from kapps.tflite.passes.folding import is_linear
from kapps.tflite.passes.graph import Call, Graph, copy_layer, identity, replace

_NOT_NEGATIVE = (keras.activations.relu, keras.activations.relu6)


def pad_in_max_pooling(model: keras.Model) -> keras.Model:
    """With the zeros around a 3x3 max-pooling at stride 2 left to the pooling itself.

    TFLite's pooling pads at both ends only where the size is odd, and an even one is behind a PAD
    of its own, which copies the map; the PAD of a convolution costs nothing. So the convolution
    before makes one more row and column, which makes the size odd, and one more row and column
    leaves the pooling. Every convolution of stride 2 behind it then pads at one end only, and does
    not see them. Exact: all else is computed as before.

    For a pooling between a convolution with ReLU at stride 2, and convolutions 3x3 at stride 2 that
    pad, with or without 1x1 convolutions before.
    """
    return replace(model, _pad_in_max_pooling)


def _pad_in_max_pooling(graph: Graph) -> Mapping[keras.Operation, Call]:
    replaced: dict[keras.Operation, Call] = {}
    for pool in graph.layers:
        if type(pool) is not layers.MaxPooling2D or not graph.once(pool):
            continue
        padding: Any = graph.before(pool)
        conv: Any = graph.before(padding) if padding is not None else None
        before: Any = graph.before(conv) if conv is not None else None
        ends = _ends(graph, pool)
        if (
            ends is None
            or (pool.pool_size, pool.strides, pool.padding) != ((3, 3), (2, 2), "valid")
            or not _pads_one(padding)
            or type(before) is not layers.ZeroPadding2D
            or graph.only_after(before) is not conv
            or type(conv) is not layers.Conv2D
            or not is_linear(graph, conv)
            or conv.activation not in _NOT_NEGATIVE
            or (conv.strides, conv.padding, conv.dilation_rate) != ((2, 2), "valid", (1, 1))
            or graph.only_after(conv) is not padding
            or graph.only_after(padding) is not pool
        ):
            continue
        sizes = graph.inputs(before)[0].shape[1:3]
        outputs = graph.output(conv).shape[1:3]
        if None in sizes or any(size % 4 for size in outputs):
            continue
        more = tuple(
            (first, 2 * output + kernel - size - first)
            for (first, _), output, kernel, size in zip(
                before.padding, outputs, conv.kernel_size, sizes, strict=True
            )
        )
        replaced[before] = copy_layer(before, padding=more)
        replaced[padding] = identity
        replaced[pool] = copy_layer(pool, padding="same")
        replaced.update({end: copy_layer(end, padding=((1, 0), (1, 0))) for end in ends})
    return replaced


def _ends(graph: Graph, layer: keras.Operation) -> list[keras.Operation] | None:
    """The paddings of the convolutions that the map ends in; None if it goes elsewhere too."""
    users = graph.after(layer)
    if not users:
        return None
    ends: list[keras.Operation] = []
    for user in users:
        following: Any = graph.only_after(user)
        if _pads_one(user):
            if (
                type(following) not in (layers.Conv2D, layers.DepthwiseConv2D)
                or (following.kernel_size, following.strides) != ((3, 3), (2, 2))
                or (following.padding, following.dilation_rate) != ("valid", (1, 1))
            ):
                return None
            found: list[keras.Operation] | None = [user]
        elif _is_pointwise(graph, user):
            found = _ends(graph, user)
        else:
            return None
        if found is None:
            return None
        ends += found
    return ends


def _pads_one(layer: Any) -> bool:
    return type(layer) is layers.ZeroPadding2D and layer.padding == ((1, 1), (1, 1))


def _is_pointwise(graph: Graph, layer: Any) -> bool:
    return (
        type(layer) is layers.Conv2D
        and is_linear(graph, layer)
        and layer.kernel_size == layer.strides == (1, 1)
    )
