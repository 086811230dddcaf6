"""The export pass that makes one convolution of several whose outputs are added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers

from kapps.tflite.passes.folding import affine_of, is_linear, own_batch_norm
from kapps.tflite.passes.graph import Call, Graph, edited, identity, replace, values_of


@dataclass(frozen=True)
class BranchSum:
    """A sum of branches, each a convolution or a batch norm alone, of one and the same map.

    Attributes:
        total: the layer that gives it; a summand may be a sum itself.
        branches: the convolutions, which may have a batch norm behind them, and batch norms.
        main: the convolution that remains when they are merged.
    """

    total: Any
    branches: tuple[Any, ...]
    main: Any


def merge_branches(
    model: keras.Model, keep: Callable[[Graph, BranchSum], bool] = lambda graph, found: False
) -> keras.Model:
    """With one convolution in the place of a sum of convolutions of the same map.

    MobileOne is trained so, and meant to run so (Vasu et al. 2023, section 3.2; the idea is that of
    Ding et al. 2021, "RepVGG"). The branches may be of several sizes, if their windows have the
    same centres, and one may be a batch norm alone; those behind the convolutions go into these.
    What remains has the name of the first branch of the largest size. Exact but for the rounding of
    float32: kernels are added in float64.

    Args:
        model: the model.
        keep: says which sums stay as they are.
    """

    def plan(graph: Graph) -> Mapping[keras.Operation, Call]:
        replaced: dict[keras.Operation, Call] = {}
        for each in branch_sums(graph):
            if keep(graph, each):
                continue
            for layer in each.branches:
                for gone in (layer, own_batch_norm(graph, layer)):
                    if gone is not None:
                        replaced[gone] = identity
            replaced[each.main] = edited(graph, each.main, _merged(graph, each), use_bias=True)
            _leave_out_sums(graph, each.total, each.main, replaced)
        return replaced

    return replace(model, plan)


def branch_sums(graph: Graph) -> list[BranchSum]:
    """The sums that can be merged."""
    found: list[BranchSum] = []
    inner: set[keras.Operation] = set()
    for total in reversed(graph.layers):  # the sum before its summands, which may be sums
        if type(total) is not layers.Add or total in inner or not graph.once(total):
            continue
        branches = _branches(graph, total)
        kernels = [x for x in branches if type(x) is not layers.BatchNormalization]
        if len(branches) < 2 or not kernels:
            continue
        main = max(kernels, key=lambda layer: getattr(layer, "kernel_size", ()))
        maps = {id(_source(graph, layer)) for layer in branches}
        if len(maps) == 1 and all(_fits(graph, layer, main) for layer in branches):
            found.append(BranchSum(total, tuple(branches), main))
            inner.update(_sums_in(graph, total))
    return found


def _sums_in(graph: Graph, total: keras.Operation) -> Iterator[keras.Operation]:
    """The sums that a sum is of, and those that these are of."""
    for tensor in graph.inputs(total):
        source = tensor._keras_history.operation
        if type(source) is layers.Add:
            yield source
            yield from _sums_in(graph, source)


def _branches(graph: Graph, total: keras.Operation) -> list[Any]:
    """The convolutions and batch norms that a sum is of; none if there is anything else in it."""
    found: list[Any] = []
    for tensor in graph.inputs(total):
        source: Any = tensor._keras_history.operation
        if graph.after(source) != [total]:
            return []
        if type(source) is layers.Add:
            inner = _branches(graph, source)
            if not inner:
                return []
            found += inner
        elif type(source) is layers.BatchNormalization:
            before = graph.before(source)
            found.append(before if own_batch_norm(graph, before) is source else source)
        elif is_linear(graph, source):
            found.append(source)
        else:
            return []
    return found


def _padding(graph: Graph, layer: Any) -> Any:
    """The layer of zeros that a convolution alone takes; None if there is none."""
    before: Any = graph.before(layer)
    is_own = type(before) is layers.ZeroPadding2D and graph.after(before) == [layer]
    return before if is_own else None


def _source(graph: Graph, layer: Any) -> KerasTensor:
    """The map that a branch is computed from."""
    padding = _padding(graph, layer)
    return graph.inputs(layer if padding is None else padding)[0]


def _fits(graph: Graph, layer: Any, main: Any) -> bool:
    """Whether a branch is a kernel in the centre of the kernel of `main`."""
    shape = graph.output(layer).shape
    if type(main) is layers.Dense or shape != graph.output(main).shape:
        return False
    if type(layer) is layers.BatchNormalization:
        return layer.axis in (-1, 3) and main.strides == (1, 1)
    if type(layer) is not type(main) or getattr(layer, "depth_multiplier", 1) != 1:
        return False
    if type(layer) is layers.Conv2D and layer.groups != 1:
        return False
    if layer.strides != main.strides or layer.dilation_rate != (1, 1):
        return False
    if layer.activation is not keras.activations.linear:
        return False
    if any(size % 2 == 0 or size > most for size, most in _sides(layer, main)):
        return False
    reach = tuple(2 * (size // 2,) for size in layer.kernel_size)
    padding = _padding(graph, layer)
    if padding is not None:
        return layer.padding == "valid" and padding.padding == reach
    return reach == ((0, 0), (0, 0)) or (layer.padding == "same" and layer.strides == (1, 1))


def _sides(layer: Any, main: Any) -> list[tuple[int, int]]:
    return list(zip(layer.kernel_size, main.kernel_size, strict=True))


def _merged(graph: Graph, found: BranchSum) -> list[np.ndarray]:
    """Kernel and bias of the sum."""
    main = found.main
    depthwise = type(main) is layers.DepthwiseConv2D
    kernel = np.zeros(main.kernel.shape)
    bias = np.zeros(graph.output(main).shape[-1])
    for layer in found.branches:
        if type(layer) is layers.BatchNormalization:
            factors, offset = affine_of(layer)
            middle = tuple(size // 2 for size in main.kernel_size)
            kernel[middle] += factors[:, None] if depthwise else np.diag(factors)
            bias += offset
            continue
        norm = own_batch_norm(graph, layer)
        factors, offset = np.ones_like(bias), np.zeros_like(bias)
        if norm is not None:
            factors, offset = affine_of(norm)
        rows, columns = (
            slice((most - size) // 2, (most + size) // 2) for size, most in _sides(layer, main)
        )
        by_filter = np.reshape(factors, (-1, 1)) if depthwise else factors
        kernel[rows, columns] += values_of(layer.kernel)[...] * by_filter
        bias += offset + (np.asarray(layer.bias.numpy()) * factors if layer.use_bias else 0)
    return [kernel.astype("float32"), bias.astype("float32")]


def _leave_out_sums(
    graph: Graph, total: Any, main: Any, replaced: dict[keras.Operation, Call]
) -> bool:
    """Has each sum hand on the summand that `main` is in; says whether there is one."""
    chosen = None
    for i, tensor in enumerate(graph.inputs(total)):
        source = tensor._keras_history.operation
        is_sum = type(source) is layers.Add
        if source in (main, own_batch_norm(graph, main)) or (
            is_sum and _leave_out_sums(graph, source, main, replaced)
        ):
            chosen = i
    replaced[total] = lambda tensors: tensors[chosen or 0]
    return chosen is not None
