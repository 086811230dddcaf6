"""Cross-layer equalization: channels of one tensor brought to like ranges, which share a scale.

Nagel et al. 2019 (arXiv:1906.04721), section 4.1: a channel divided by a positive factor where it
is made, and multiplied by it in the kernels that read it, leaves the network what it is. They
balance the kernels of two layers, each quantized with one scale. Here kernels have a scale for each
output channel, so that the factors cost nothing where a channel is made; what has one scale is the
tensor between, and each output channel of the kernels after it. So these two are balanced.

Between the layers may be what computes with positive factors as without: a ReLU, a sum with another
such tensor, as of a whole stage of residual blocks, and pooling. A ReLU6 may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kapps.tflite.refinement.constants import Weighted, name_of, weighted
from kapps.tflite.refinement.statistics import Channels

_CARRIERS = ("ADD", "AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "RELU")
_HOMOGENEOUS = (
    schema.ActivationFunctionType.NONE,
    schema.ActivationFunctionType.RELU,
)


@dataclass(eq=False)
class _Tie:
    """Tensors whose channels have common factors, the layers that make them, and that read them."""

    tensors: list[int]
    makers: list[Weighted] = field(default_factory=list)
    readers: list[Weighted] = field(default_factory=list)


def equalize(model: Any, channels: Mapping[int, Channels]) -> dict[int, Channels]:
    """Equalizes a network in place.

    Args:
        model: a file of floats as an object of the schema's.
        channels: of its tensors.

    Returns:
        Those of the tensors of the new network; the same if there is nothing to equalize.
    """
    found = dict(channels)
    for tie in _ties(model, channels):
        largest = np.max([channels[n].largest for n in tie.tensors], axis=0).astype("float64")
        kernels = np.max([_largest_by_input(layer) for layer in tie.readers], axis=0)
        factors = np.ones_like(largest)
        used = (largest > 0) & (kernels > 0)
        factors[used] = np.sqrt(largest[used] / kernels[used])
        if used.any():
            factors[used] /= np.exp(np.log(factors[used]).mean())
        for layer in tie.makers:
            shape = np.ones(layer.kernel.ndim, int)
            shape[layer.axis] = -1
            layer.set_kernel(layer.kernel / factors.reshape(shape))
            if layer.bias is not None:
                layer.set_bias(layer.bias / factors)
        # Read anew: a layer may be among the makers of one tensor and the readers of another.
        for layer in tie.readers:
            layer.set_kernel(layer.kernel * _by_input(layer, factors))
        for number in tie.tensors:
            found[number] = channels[number].over(factors)
    return found


def _largest_by_input(layer: Weighted) -> np.ndarray:
    """The largest magnitude in a kernel for each channel that it reads."""
    largest = np.abs(layer.kernel).max(axis=tuple(range(layer.kernel.ndim - 1)))
    if layer.name == "DEPTHWISE_CONV_2D":
        # Each has a scale of its own, so that whatever its channel is multiplied by is free.
        return np.ones_like(largest)
    return largest


def _by_input(layer: Weighted, factors: np.ndarray) -> np.ndarray:
    if layer.name == "DEPTHWISE_CONV_2D":
        return np.repeat(factors, layer.kernel.shape[-1] // len(factors))
    return factors


def _ties(model: Any, channels: Mapping[int, Channels]) -> Iterator[_Tie]:
    """One after the other, with the kernels as they are by then."""
    graph = model.subgraphs[0]
    parents: dict[int, int] = {}

    def root(number: int) -> int:
        while parents.get(number, number) != number:
            number = parents[number]
        return number

    for op in graph.operators:
        if _carries(model, op, channels):
            for number in _tensors_through(model, op):
                parents[root(int(number))] = root(int(op.outputs[0]))
    groups: dict[int, list[int]] = {}
    for number in channels:
        groups.setdefault(root(number), []).append(number)
    for tensors in groups.values():
        tie = _tie(model, tensors, channels)
        if tie is not None:
            yield tie


def _tie(model: Any, tensors: list[int], channels: Mapping[int, Channels]) -> _Tie | None:
    """The tensors with all that makes and reads them; None if something of it needs them as is."""
    graph = model.subgraphs[0]
    own = set(tensors)
    if own & {int(n) for n in (*graph.inputs, *graph.outputs)}:
        return None
    tie = _Tie(tensors)
    layers = {id(layer.op): layer for layer in weighted(model)}
    size = len(channels[tensors[0]].low)
    for op in graph.operators:
        makes = own & {int(n) for n in op.outputs}
        reads = own & {int(n) for n in op.inputs}
        if not makes and not reads:
            continue
        layer = layers.get(id(op))
        if layer is None:
            if not _carries(model, op, channels):
                return None
            continue
        if makes:
            if _activation(op) not in _HOMOGENEOUS or layer.kernel.shape[layer.axis] != size:
                return None
            tie.makers.append(layer)
        if reads:
            if len(reads & {int(n) for n in op.inputs[1:]}) or not _reads_all(layer, size):
                return None
            tie.readers.append(layer)
    return tie if tie.makers and tie.readers else None


def _reads_all(layer: Weighted, size: int) -> bool:
    """Whether a kernel tells the channels apart: not in groups, nor flattened pixels."""
    if layer.name == "DEPTHWISE_CONV_2D":
        return layer.kernel.shape[-1] % size == 0
    return bool(layer.kernel.shape[-1] == size)


def _carries(model: Any, op: Any, channels: Mapping[int, Channels]) -> bool:
    """Whether what the operation gives has the factors of what it is given."""
    if name_of(model, op) == "MEAN":
        return _keeps_channels(model, op)
    if name_of(model, op) not in _CARRIERS or _activation(op) not in _HOMOGENEOUS:
        return False
    inputs = _tensors_through(model, op)
    shapes = {len(channels[n].low) for n in (*inputs, int(op.outputs[0])) if n in channels}
    return all(n in channels for n in inputs) and len(shapes) == 1


def _tensors_through(model: Any, op: Any) -> list[int]:
    """Its inputs but for a constant that says how: the padding, or the axes of a mean."""
    count = 2 if name_of(model, op) == "ADD" else 1
    return [int(n) for n in op.inputs[:count]]


def _keeps_channels(model: Any, op: Any) -> bool:
    """Of a mean: over the height and the width alone."""
    graph = model.subgraphs[0]
    data = model.buffers[graph.tensors[op.inputs[1]].buffer].data
    if data is None:
        return False
    rank = len(graph.tensors[op.inputs[0]].shape)
    axes = np.asarray(data, "uint8").view("int32") % rank
    return bool(rank == 4 and set(axes.tolist()) == {1, 2})


def _activation(op: Any) -> int:
    return getattr(op.builtinOptions, "fusedActivationFunction", _HOMOGENEOUS[0])
