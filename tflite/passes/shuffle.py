"""The export pass that removes ShuffleNetV2's channel shuffles.

A unit of ShuffleNetV2 moves channels only: it interleaves two halves, hands one half on and
convolves the other. Convolutions do not mind the order of their channels, if their kernels are
ordered alike. So no channel has to move for the order's sake: what a convolution needs is gathered
from the layers that made it, and the permutation is in its kernel. The layers that make channels
order them by who needs them, so that each takes one slice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps.custom_layers import ChannelShuffle, ChannelSlice
from kapps.tflite.passes.folding import is_channelwise, is_linear
from kapps.tflite.passes.graph import Call, Graph, edited, replace

_Orders = list[tuple[keras.Operation, str]]
"""Layers whose weights are permuted, and on which side: "in", "out", or "both" at once."""

_MOST_PIECES = 16  # per gathering: more would cost what they save

_MOST_INPUTS = 4  # of one concatenation, such that old versions of XNNPACK take it too

_MOVERS = (ChannelShuffle, ChannelSlice, layers.Concatenate)

# What treats every channel alike, and has no weights.
_ALIKE = (
    layers.Activation,
    layers.AveragePooling2D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.MaxPooling2D,
    layers.ReLU,
    layers.ZeroPadding2D,
)


def remove_channel_shuffle(model: keras.Model) -> keras.Model:
    """Without channel shuffles, where the layers around can be ordered in their weights instead.

    Exact: weights are permuted, and a convolution adds up the same products in another order. What
    is gathered for a layer is named `<layer>_gathered`.
    """
    return replace(model, _plan)


def as_before_removal(
    model: keras.Model, values: Mapping[str, list[np.ndarray]]
) -> dict[str, list[np.ndarray]]:
    """Weights of `remove_channel_shuffle(model)`, by layer, in the order that `model` has them."""
    orders = {layer.name: sides for layer, sides in _new_orders(_understood(Graph(model))).items()}
    return {
        name: _permuted(
            weights,
            {side: np.argsort(order).tolist() for side, order in orders.get(name, {}).items()},
        )
        for name, weights in values.items()
    }


def _plan(graph: Graph) -> Mapping[keras.Operation, Call]:
    understood = _understood(graph)
    permuted = {
        layer: edited(graph, layer, _permuted(layer.get_weights(), sides))
        for layer, sides in _new_orders(understood).items()
    }
    replaced: dict[keras.Operation, Call] = dict(permuted)
    for moves in understood:
        replaced.update(moves.replaced(permuted))
    return replaced


def _understood(graph: Graph) -> list[_Moves]:
    found = (_Moves(graph, group) for group in _groups(graph))
    return [moves for moves in found if moves.understood()]


def _new_orders(understood: list[_Moves]) -> dict[Any, dict[str, list[int]]]:
    """By layer whose weights change the new order of the channels, by side."""
    orders: dict[Any, dict[str, list[int]]] = {}
    for moves in understood:
        for layer, side, order in moves.orders():
            orders.setdefault(layer, {})[side] = order  # of two groups, one at either side
    return orders


def _groups(graph: Graph) -> Iterator[list[keras.Operation]]:
    """The layers that only move channels, in groups that hang together and shuffle."""
    group_of: dict[keras.Operation, list[keras.Operation]] = {}
    for layer in graph.layers:
        if type(layer) not in _MOVERS or not graph.once(layer):
            continue
        axis = getattr(layer, "axis", -1)
        rank = len(graph.output(layer).shape)
        if rank != 4 or axis not in (-1, 3):
            continue
        group = [layer]
        for tensor in graph.inputs(layer):
            before = group_of.get(tensor._keras_history.operation, [])
            if before is not group:
                group[:0] = before
                for mover in before:
                    group_of[mover] = group
        group_of[layer] = group
    for group in {id(group): group for group in group_of.values()}.values():
        if any(type(mover) is ChannelShuffle for mover in group):
            yield list(dict.fromkeys(group))


def _permuted(values: list[np.ndarray], orders: Mapping[str, list[int]]) -> list[np.ndarray]:
    """A layer's weights with the channels of each side in another order."""
    values = list(values)
    if "both" in orders:  # vectors, and the kernel of a depthwise convolution
        order = orders["both"]
        values = [v[:, :, order] if v.ndim == 4 else v[order] for v in values]
    if "in" in orders:
        values[0] = values[0][..., orders["in"], :]
    if "out" in orders:
        values = [v[..., orders["out"]] for v in values]
    return values


class _Gathered:
    """Stands for a tensor that is not made unless a layer needs it."""

    def __init__(self, tensor: int) -> None:
        self.tensor = tensor


class _Moves:
    """What a group of movers does, and how the layers around it do without.

    A channel is known as (tensor, index), of the tensors that enter the group.
    """

    def __init__(self, graph: Graph, movers: list[keras.Operation]) -> None:
        self.graph, self.movers = graph, movers
        self.entering: dict[int, keras.KerasTensor] = {}
        self.channels: dict[int, list[tuple[int, int]]] = {}  # of each tensor of the group
        self.needed: dict[int, list[keras.Operation]] = {}  # tensors that leave, and their users
        self.changed: dict[int, _Orders] = {}  # by tensor, entering and leaving
        self.order: dict[int, list[int]] = {}  # of the channels of each entering tensor
        self.pieces: dict[int, list[tuple[int, int, int]]] = {}  # (tensor, start, stop)

    def understood(self) -> bool:
        """Whether all that the group feeds can be ordered in its weights."""
        for mover in self.movers:
            users = self.graph.after(mover)
            if users is None:
                return False
            tensor = id(self.graph.output(mover))
            self.channels[tensor] = self._moved(mover)
            outside = [user for user in users if user not in self.movers]
            if not outside:
                continue
            changed = [_ordered_in(self.graph, user) for user in outside]
            if None in changed or len(set(self.channels[tensor])) < len(self.channels[tensor]):
                return False
            self.needed[tensor] = outside
            self.changed[tensor] = [item for items in changed for item in items or []]
        self._sort()
        for tensor in self.needed:
            self.pieces[tensor] = list(self._runs(tensor))
        return all(len(pieces) <= _MOST_PIECES for pieces in self.pieces.values())

    def _moved(self, mover: Any) -> list[tuple[int, int]]:
        """The channels that a mover gives."""
        parts = []
        for tensor in self.graph.inputs(mover):
            if id(tensor) not in self.channels:
                self.entering[id(tensor)] = tensor
                self.channels[id(tensor)] = [(id(tensor), i) for i in range(tensor.shape[-1])]
            parts.append(self.channels[id(tensor)])
        if type(mover) is ChannelShuffle:
            size = len(parts[0]) // mover.groups
            return [parts[0][j * size + i] for i in range(size) for j in range(mover.groups)]
        if type(mover) is ChannelSlice:
            return parts[0][mover.start : mover.stop]
        return list(itertools.chain(*parts))

    def _sort(self) -> None:
        """Orders the channels of what enters by who needs them, where its maker can do that."""
        users: dict[tuple[int, int], list[int]] = {}
        for number, tensor in enumerate(self.needed):
            for channel in self.channels[tensor]:
                users.setdefault(channel, []).append(number)
        for key, tensor in self.entering.items():
            self.order[key] = list(range(tensor.shape[-1]))
            changed = _ordered_out(self.graph, tensor._keras_history.operation, self.movers)
            if changed is not None:
                self.changed[key] = changed
                needed_by = [users.get((key, i), []) for i in self.order[key]]
                self.order[key].sort(key=needed_by.__getitem__)

    def _runs(self, tensor: int) -> Iterator[tuple[int, int, int]]:
        """The slices of entering tensors that hold the channels of `tensor`, the newest first."""
        for key in reversed(self.entering):
            wanted = {i for source, i in self.channels[tensor] if source == key}
            start = None
            for position, index in enumerate([*self.order[key], None]):
                if index in wanted and start is None:
                    start = position
                if index not in wanted and start is not None:
                    yield key, start, position
                    start = None

    def orders(self) -> Iterator[tuple[keras.Operation, str, list[int]]]:
        """The layers whose weights change: side, and new order of the channels there."""
        for tensor, layers_changed in self.changed.items():
            order = self.order.get(tensor)
            if order is None:
                number = {channel: i for i, channel in enumerate(self.channels[tensor])}
                order = [
                    number[key, self.order[key][position]]
                    for key, start, stop in self.pieces[tensor]
                    for position in range(start, stop)
                ]
            for layer, side in layers_changed:
                yield layer, side, order

    def replaced(self, others: Mapping[keras.Operation, Call]) -> dict[keras.Operation, Call]:
        """The movers, which make nothing, and the layers that gather what they need."""
        made: dict[int, Any] = {}  # entering tensors, anew
        cut: dict[tuple[int, int, int], Any] = {}
        gathered: dict[int, Any] = {}

        def move(mover: keras.Operation) -> Call:
            def call(values: Any) -> _Gathered:
                values = values if isinstance(values, (list, tuple)) else [values]
                for tensor, value in zip(self.graph.inputs(mover), values, strict=True):
                    if not isinstance(value, _Gathered):
                        made[id(tensor)] = value
                return _Gathered(id(self.graph.output(mover)))

            return call

        def piece(key: int, start: int, stop: int) -> Any:
            if (key, start, stop) not in cut:
                x = made[key]
                if (start, stop) != (0, x.shape[-1]):
                    source = self.entering[key]._keras_history.operation.name
                    x = ChannelSlice(start, stop, name=f"{source}_{start}_{stop}")(x)
                cut[key, start, stop] = x
            return cut[key, start, stop]

        def gather(tensor: int, name: str) -> Any:
            if tensor not in gathered:
                parts = [piece(*which) for which in self.pieces[tensor]]
                number = itertools.count(1)
                while len(parts) > 1:  # the oldest, and so the smallest, twice
                    last = parts[max(0, len(parts) - _MOST_INPUTS) :]
                    parts = parts[: -len(last)]
                    suffix = f"_{next(number)}" if parts else ""
                    parts.append(layers.Concatenate(name=f"{name}_gathered{suffix}")(last))
                gathered[tensor] = parts[0]
            return gathered[tensor]

        def user(layer: Any) -> Call:
            return lambda value: others[layer](gather(value.tensor, layer.name))

        users = [layer for outside in self.needed.values() for layer in outside]
        return {mover: move(mover) for mover in self.movers} | {u: user(u) for u in users}


def _ordered_in(graph: Graph, layer: Any) -> _Orders | None:
    """What has to change for the layer to take channels in any order; None if that cannot be."""
    if is_linear(graph, layer) and type(layer) is not layers.DepthwiseConv2D:
        return [(layer, "in")] if getattr(layer, "groups", 1) == 1 else None
    if not _by_channel(graph, layer):
        return None
    changed: _Orders = [(layer, "both")]
    users = graph.after(layer)
    for following in [_ordered_in(graph, user) for user in users or []] or [None]:
        if following is None:
            return None
        changed += following
    return changed


def _ordered_out(graph: Graph, layer: Any, movers: list[keras.Operation]) -> _Orders | None:
    """What has to change for the layer to give its channels in any order, to `movers` alone."""
    users = graph.after(layer)
    if users is None or not all(user in movers for user in users):
        return None
    changed: _Orders = []
    while True:
        if is_linear(graph, layer) and type(layer) is not layers.DepthwiseConv2D:
            return [*changed, (layer, "out")] if getattr(layer, "groups", 1) == 1 else None
        if not _by_channel(graph, layer):
            return None
        changed.append((layer, "both"))
        source = graph.before(layer)
        if source is None or graph.only_after(source) is not layer:
            return None
        layer = source


def _by_channel(graph: Graph, layer: Any) -> bool:
    """Whether each output channel is made of the input channel of the same number, and no other."""
    if type(layer) is layers.DepthwiseConv2D:
        return is_linear(graph, layer) and layer.depth_multiplier == 1
    if type(layer) is layers.BatchNormalization:
        return layer.axis in (-1, len(graph.output(layer).shape) - 1)
    if type(layer) is layers.Activation and not is_channelwise(layer.activation):
        return False
    return type(layer) in _ALIKE
