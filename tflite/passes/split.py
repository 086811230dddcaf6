"""The export pass that splits a convolution whose output is only taken in slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps.custom_layers import ChannelSlice
from kapps.tflite.passes.folding import is_channelwise, is_linear
from kapps.tflite.passes.graph import Call, Graph, edited, identity, replace

_TILE = 16  # output channels that XNNPACK's float kernels compute at once, on x86; on ARM 8


def split_sliced_convolutions(model: keras.Model) -> keras.Model:
    """With a 1x1 convolution for each slice of one that nothing takes whole.

    So nothing is copied to cut it. Exact: each channel is the sum of the same products. Slices of
    less than 16 channels, which a kernel computes at once, stay slices, of one convolution that
    they share. A new convolution has the name of the first slice that it gives.
    """
    return replace(model, _split_sliced_convolutions)


def _split_sliced_convolutions(graph: Graph) -> Mapping[keras.Operation, Call]:
    replaced: dict[keras.Operation, Call] = {}
    for conv in graph.layers:
        if type(conv) is not layers.Conv2D or not is_linear(graph, conv):
            continue
        slices: list[Any] = sorted(graph.after(conv) or [], key=lambda user: _bounds(user))
        if len(slices) < 2 or any(type(user) is not ChannelSlice for user in slices):
            continue
        bounds = [_bounds(user) for user in slices]
        if conv.groups != 1 or conv.kernel_size != (1, 1) or conv.strides != (1, 1):
            continue
        if not is_channelwise(conv.activation):
            continue
        # Side by side and all: what is left out, or taken twice, is not worth the thought.
        if [0, *(stop for _, stop in bounds)] != [*(start for start, _ in bounds), conv.filters]:
            continue
        groups = _groups(slices)
        if len(groups) == 1:
            continue
        replaced[conv] = identity
        for group in groups:
            replaced.update(_pieces(graph, conv, group))
    return replaced


def _bounds(layer: Any) -> tuple[int, int]:
    return (layer.start, layer.stop) if type(layer) is ChannelSlice else (-1, -1)


def _groups(slices: list[Any]) -> list[list[Any]]:
    """Neighbours that share a convolution."""
    groups: list[list[Any]] = []
    open_group = False
    for piece in slices:
        small = piece.stop - piece.start < _TILE
        if small and open_group:
            groups[-1].append(piece)
        else:
            groups.append([piece])
        open_group = small
    return groups


def _pieces(graph: Graph, conv: Any, group: list[Any]) -> dict[keras.Operation, Call]:
    start, stop = group[0].start, group[-1].stop
    weights = [np.asarray(w)[..., start:stop] for w in conv.get_weights()]
    shared: Any = edited(graph, conv, weights, filters=stop - start, name=group[0].name)
    if len(group) == 1:
        return {group[0]: shared}
    outputs: dict[int, Any] = {}  # of the shared convolution, by its input

    def cut(piece: Any) -> Call:
        name = piece.name if piece is not group[0] else f"{piece.name}_slice"
        own = ChannelSlice(piece.start - start, piece.stop - start, name=name)

        def call(x: Any) -> Any:
            if id(x) not in outputs:
                outputs[id(x)] = shared(x)
            return own(outputs[id(x)])

        return call

    return {piece: cut(piece) for piece in group}
