"""Files of int8 with the layers that lose most in floats: as many as a target takes.

    mixed(content, images, quantize, target_loss=0.005).trade.table()

How sensitive a layer with weights is says the drift of a file in which it alone is of integers: by
that one sees it, which the errors of all the others would hide. The most sensitive 1, 2, 4, ... are
left in floats together until the file is within the target, and the numbers between the last two
halved until the fewest are found. What lies between layers in floats, such as a sum, is in floats
too: else its integers would lose what these do not.

Integers of 16 bits are no third kind here: XNNPACK has none for convolutions, so that such a layer
is ten times slower than in floats, and less exact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kapps._errors import InputError
from kapps.tflite import tables
from kapps.tflite.refinement import Judge, refined, some
from kapps.tflite.refinement.constants import weighted
from kapps.tflite.verification import Verification

if TYPE_CHECKING:  # it needs TensorFlow
    from kapps.tflite.converter import Quantize

_SENSED = 32  # images, on which one layer after the other is left in floats


@dataclass(frozen=True)
class TradePoint:
    """A file with some layers in floats.

    Attributes:
        in_float: the layers, the most sensitive first.
        loss: the share of the calibration images, 0 to 1, that it puts into another class than the
            float network; see `Verification.agreement`.
        drift: see `Verification.drift`.
        size_bytes: of the file, without metadata.
    """

    in_float: tuple[str, ...]
    loss: float
    drift: float
    size_bytes: int


@dataclass(frozen=True)
class Trade:
    """What leaving layers in floats buys.

    Attributes:
        layers: how many have weights.
        points: the files that were tried, by how many layers they have in floats.
        chosen: the first of them within the target.
    """

    layers: int
    points: tuple[TradePoint, ...]
    chosen: TradePoint

    def table(self) -> str:
        """The curve, as text of fixed columns."""
        rows = [
            [
                f"{len(point.in_float)} of {self.layers}",
                *(f"{point.loss:.4f}", f"{point.drift:.2g}", f"{point.size_bytes / 2**20:.2f}"),
                "chosen" if point is self.chosen else "",
            ]
            for point in self.points
        ]
        header = ("in float", "loss", "drift", "MiB", "")
        return tables.aligned(header, rows, right=range(4))


@dataclass(frozen=True)
class Mixed:
    """A file of int8 with layers in floats.

    Attributes:
        content: of the file.
        steps: see `kapps.tflite.refinement`.
        trade: how it was chosen.
    """

    content: bytes
    steps: tuple[str, ...]
    trade: Trade


def mixed(
    content: bytes,
    images: np.ndarray,
    quantize: Quantize,
    *,
    target_loss: float,
    named: Callable[[str], str] = str,
) -> Mixed:
    """The smallest file that was found within the target.

    Args:
        content: of the file of floats.
        images: to calibrate and to judge on, (n, height, width, channels), in 0..255.
        quantize: makes a file of integers of one of floats with the range of each tensor.
        target_loss: the largest `TradePoint.loss`.
        named: the name of a layer, of that of the tensor that it gives.

    Raises:
        InputError: no file is within the target; it has the best one.
    """
    base = refined(content, images, quantize)
    judge = Judge(content, images)
    graph = schema.ModelT.InitFromPackedBuf(content, 0)
    layers = [layer.output for layer in weighted(graph)]
    order: list[str] = []
    tried: dict[int, tuple[TradePoint, bytes]] = {}

    def make(in_float: Collection[str]) -> bytes:
        return quantize(base.prepared(in_float), in_float=[*in_float, *_between(graph, in_float)])

    def meets(count: int) -> bool:
        if count and not order:
            order.extend(_by_sensitivity(layers, Judge(content, some(images, _SENSED)), make))
        made = make(order[:count])
        figures = judge(made)
        tried[count] = _point(figures, [named(name) for name in order[:count]], made), made
        return tried[count][0].loss <= target_loss

    reached = next((count for count in _doubling(len(layers)) if meets(count)), None)
    points = [point for _, (point, _) in sorted(tried.items())]
    if reached is None:
        best = min(points, key=lambda point: (point.loss, point.drift))
        raise InputError(
            f"no file loses at most {target_loss:g} of {len(images)} calibration images; the best "
            f"loses {best.loss:.4f}, drift {best.drift:.2g}, with {len(best.in_float)} of "
            f"{len(layers)} layers in float; use float16, or a larger target_loss"
        )
    short = max((count for count in tried if count < reached), default=reached)
    while reached - short > 1:
        middle = (reached + short) // 2
        if meets(middle):
            reached = middle
        else:
            short = middle
    points = [point for _, (point, _) in sorted(tried.items())]
    chosen, made = tried[reached]
    return Mixed(made, base.steps, Trade(len(layers), tuple(points), chosen))


def _doubling(most: int) -> Iterator[int]:
    """0, 1, 2, 4, ... and `most` at last."""
    yield 0
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def _point(figures: Verification, in_float: Sequence[str], made: bytes) -> TradePoint:
    return TradePoint(tuple(in_float), 1 - figures.agreement, figures.drift, len(made))


def _by_sensitivity(
    layers: Sequence[str], judge: Judge, make: Callable[[Collection[str]], bytes]
) -> list[str]:
    """The layers, first that which makes a file drift most that has no other in integers."""
    drift = {
        name: judge(make([other for other in layers if other != name])).drift for name in layers
    }
    return sorted(layers, key=drift.__getitem__, reverse=True)


def _between(model: Any, in_float: Collection[str]) -> list[str]:
    """The outputs of operations without weights that have floats before or behind them alone.

    Not of the last one, whose output has the range of probabilities as integers only.
    """
    graph = model.subgraphs[0]
    weights = {id(layer.op) for layer in weighted(model)}
    makers = {int(n): op for op in graph.operators for n in op.outputs}
    readers: dict[int, list[Any]] = {}
    for op in graph.operators:
        for n in op.inputs:
            readers.setdefault(int(n), []).append(op)
    floats = {
        id(op)
        for op in graph.operators
        if id(op) in weights and graph.tensors[op.outputs[0]].name.decode() in in_float
    }
    found: list[str] = []
    ends = {int(n) for n in graph.outputs}
    for operators in (graph.operators, graph.operators[::-1]):  # by what is before, then behind
        for op in operators:
            if id(op) in weights | floats or ends & {int(n) for n in op.outputs}:
                continue
            near = (
                [makers[int(n)] for n in op.inputs if int(n) in makers]
                if operators is graph.operators
                else [reader for n in op.outputs for reader in readers.get(int(n), [])]
            )
            if near and all(id(other) in floats for other in near):
                floats.add(id(op))
                found += [graph.tensors[n].name.decode() for n in op.outputs]
    return found
