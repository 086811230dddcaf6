"""What can be removed of a network so that the rest still fits together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import layers

from kapps._blocks import block_of, counting, is_within
from kapps._errors import InputError, unknown
from kapps._features import cuts
from kapps._layers import layer_name
from kapps.custom_layers import ChannelPad

_CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)
# What belongs to the convolution before it.
_BEHIND = (layers.Activation, layers.BatchNormalization, layers.Dropout, layers.ReLU)


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """A tensor of a graph, and what stands in its place."""

    name: str
    removed: Any
    kept: Any
    """Of the same shape, or of fewer channels: the others are zeros."""

    def stand_in(self, kept: Any) -> Any:
        """What becomes of the value of `kept`."""
        channels = self.removed.shape[-1]
        if kept.shape[-1] == channels:
            return kept
        return ChannelPad(channels, name=f"{layer_name(self.name)}_zeros".replace("/", "_"))(kept)


class Anatomy:
    """What of a network can be removed.

    Args:
        model: that the calls are of.
        calls: of layers, in the order of execution, the inputs included: nodes of a Keras graph, or
            calls of `kapps.explain`.
        outputs: their last tensors.
    """

    def __init__(self, model: keras.Model, calls: Sequence[Any], outputs: Sequence[Any]) -> None:
        self._model, self._outputs = model, {id(tensor) for tensor in outputs}
        trunk = {id(call) for call in cuts(calls)}
        self._calls = calls = [call for call in calls if call.input_tensors]
        self._makers = {id(tensor): call for call in calls for tensor in call.outputs}
        self._readers: dict[int, list[Any]] = {}
        for call in calls:
            for tensor in call.input_tensors:
                self._readers.setdefault(id(tensor), []).append(call)
        self._blocks = counting(map(self._path, calls))
        self._block = {id(call): block_of(_name(call), self._blocks) for call in calls}
        merges = self._merges()
        self._removals = [
            *merges,
            *self._plain_blocks({id(removal.removed) for removal in merges}),
            *self._convolutions(trunk),
        ]
        order = {id(tensor): i for i, call in enumerate(calls) for tensor in call.outputs}
        self._removals.sort(key=lambda removal: order[id(removal.removed)])

    @property
    def names(self) -> tuple[str, ...]:
        """Of the blocks that can be removed, in the order of execution."""
        return tuple(removal.name for removal in self._removals)

    def removal(self, name: str) -> Removal:
        """See `lesion`.

        Raises:
            InputError: there is no such block, or it cannot be removed.
        """
        wanted = layer_name(name) if isinstance(name, str) else ""
        for removal in self._removals:
            own = layer_name(removal.name)
            if wanted in (own, f"{own}_add", _name(self._makers[id(removal.removed)])):
                return removal
        group = [call for call in self._calls if is_within(_name(call), wanted)]
        convolutions = [call for call in group if isinstance(call.operation, _CONVOLUTIONS)]
        if len(convolutions) == 1:
            group = self._with_what_follows(convolutions[0])
        found = self._left_out(name, group)
        if found is not None:
            return found
        if not group:
            known = {path for call in self._calls if (path := self._path(call))}
            raise unknown(f"block of {self._model.name}", name, {*self.names, *known})
        raise InputError(
            f"{name} of {self._model.name} cannot be removed: it has no shortcut around it, and "
            f"what follows needs its shape; these can: {self._proposals(wanted) or 'none'}"
        )

    def _proposals(self, wanted: str) -> str:
        """The blocks that can be removed, and the convolutions within what was asked for."""
        inside = [
            self._path(call) or _name(call)
            for call in self._calls
            if is_within(_name(call), wanted)
            and isinstance(call.operation, _CONVOLUTIONS)
            and self._left_out("", self._with_what_follows(call)) is not None
        ]
        return ", ".join(dict.fromkeys([*inside, *self.names]))

    def _path(self, call: Any) -> str:
        """The layer's in the checkpoint; "" where it has none.

        Files of Keras do not keep it, and a name has underscores where the path may have dots.
        """
        holder, _, own = _name(call).rpartition("/")
        built = getattr(self._model, "kapps_builder", None) and _has_kernel(call.operation)
        named = own.replace("_", ".") if built else ""
        path = getattr(call.operation, "checkpoint_path", named)
        return f"{holder}/{path}" if holder and path else path

    # --- What has a shortcut ---------------------------------------------------------------------

    def _merges(self) -> list[Removal]:
        pairs = [(call, kept) for call, kept in zip(self._calls, self._shortcuts(), strict=True)]
        found = [(call, kept) for call, kept in pairs if kept is not None]
        blocks = [self._block[id(call)] for call, _ in found]
        return [
            Removal(
                self._blocks[block]
                if block is not None and blocks.count(block) == 1
                else _name(call).removesuffix("_add"),
                call.outputs[0],
                kept,
            )
            for (call, kept), block in zip(found, blocks, strict=True)
        ]

    def _shortcuts(self) -> Iterable[Any]:
        """For each call the summand that stays if the others are removed; None if there is none."""
        bits = {id(call): 1 << i for i, call in enumerate(self._calls)}
        weighted = sum(bits[id(call)] for call in self._calls if _has_kernel(call.operation))
        behind: dict[int, int] = {}  # what a tensor is computed by
        for call in self._calls:
            sources = [behind.get(id(tensor), 0) for tensor in call.input_tensors]
            made = bits[id(call)]
            for source in sources:
                made |= source
            behind.update((id(tensor), made) for tensor in call.outputs)
            yield _shortcut(call, sources, weighted)

    # --- What has none ---------------------------------------------------------------------------

    def _plain_blocks(self, merged: set[int]) -> list[Removal]:
        found = []
        for own, name in self._blocks.items():
            group = [call for call in self._calls if self._block[id(call)] == own]
            if merged.isdisjoint(id(tensor) for call in group for tensor in call.outputs):
                found.append(self._left_out(name, group))
        return [removal for removal in found if removal is not None]

    def _convolutions(self, trunk: set[int]) -> list[Removal]:
        """Those outside of all blocks, and with no path around them."""
        found = [
            self._left_out(self._path(call) or _name(call), self._with_what_follows(call))
            for call in self._calls
            if isinstance(call.operation, _CONVOLUTIONS)
            and id(call) in trunk
            and self._block[id(call)] is None
        ]
        return [removal for removal in found if removal is not None]

    def _left_out(self, name: str, group: Sequence[Any]) -> Removal | None:
        """The removal of all these calls; None where their output is not of their input's shape."""
        made = {id(tensor) for call in group for tensor in call.outputs}
        members = {id(call) for call in group}
        entries = {id(t): t for call in group for t in call.input_tensors if id(t) not in made}
        exits = [
            tensor
            for call in group
            for tensor in call.outputs
            if id(tensor) in self._outputs
            or any(id(reader) not in members for reader in self._readers.get(id(tensor), ()))
        ]
        if len(entries) != 1 or len(exits) != 1:
            return None
        (entry,) = entries.values()
        same = tuple(entry.shape) == tuple(exits[0].shape) and len(entry.shape) == 4
        known = None not in entry.shape[1:]
        if not same or not (known or all(_keeps_sides(call.operation) for call in group)):
            return None
        return Removal(name, exits[0], entry)

    def _with_what_follows(self, call: Any) -> list[Any]:
        """A convolution with the padding before it, its batch norm and its activation."""
        group, last = [call], call
        before = self._makers.get(id(call.input_tensors[0]))
        if before is not None and isinstance(before.operation, layers.ZeroPadding2D):
            group.insert(0, before)
        kinds = list(_BEHIND)
        while len(readers := self._readers.get(id(last.outputs[0]), [])) == 1:
            (last,) = readers
            kind = next((kind for kind in kinds if isinstance(last.operation, kind)), None)
            if kind is None:
                break
            kinds.remove(kind)
            group.append(last)
        return group


def _shortcut(call: Any, sources: Sequence[int], weighted: int) -> Any:
    """Of a sum, or of channels one behind the other, what has fewest layers of its own."""
    operation, inputs = call.operation, call.input_tensors
    dense = isinstance(operation, layers.Concatenate)
    if len(inputs) < 2 or not (dense or _adds(operation)):
        return None
    own = []
    for i, source in enumerate(sources):
        for other in (*sources[:i], *sources[i + 1 :]):
            source &= ~other
        own.append(((source & weighted).bit_count(), source.bit_count()))
    least = min(own)
    kept = inputs[own.index(least)]
    if own.count(least) > 1 or any(kernels == 0 for kernels, _ in sorted(own)[1:]):
        return None
    if dense:
        behind = operation.axis in (-1, len(kept.shape) - 1) and len(kept.shape) == 4
        return kept if behind and kept is inputs[0] and least == (0, 0) else None
    return kept if tuple(kept.shape) == tuple(call.outputs[0].shape) else None


def _adds(operation: Any) -> bool:
    """Whether it is a layer that adds, or the operation behind a plus sign."""
    if isinstance(operation, keras.Layer):
        return isinstance(operation, layers.Add)
    return type(operation).__name__ == "Add"


def _name(call: Any) -> str:
    """Of its layer; of a call of `kapps.explain`, with the nested models' before it."""
    return getattr(call, "name", None) or call.operation.name


def _has_kernel(operation: Any) -> bool:
    return any(len(weight.shape) > 1 for weight in getattr(operation, "weights", ()))


def _keeps_sides(operation: Any) -> bool:
    """Whether a map that it takes keeps its height and width, whatever they are."""
    if isinstance(operation, (layers.ZeroPadding2D, layers.Cropping2D)):
        return False
    strides, padding = getattr(operation, "strides", 1), getattr(operation, "padding", "same")
    return strides in (1, (1, 1)) and padding == "same"
