"""The range of each tensor of a network over images, of a network of any size.

As TensorFlow's calibrator finds them, by the same kernels. That has two copies of the file in
memory; here the network runs in parts, from files, so that neither its weights nor what all of its
layers give are in memory at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kapps.tflite.file_facts import FINEST, OPERATORS, WEIGHTED
from kapps.tflite.large.filling import Weights, write

_PART_BYTES = 192 << 20  # of what the operations of a part give
_BETWEEN_BYTES = 128 << 20  # of what some images have left between two parts


@dataclass(frozen=True)
class _Part:
    path: Path
    inputs: list[int]
    outputs: list[int]
    found: list[int]  # the tensors whose range it finds; to the runtime they are outputs as well


def find_ranges(
    model: Any, weights: Mapping[int, Weights], images: Iterable[np.ndarray], folder: Path
) -> dict[int, tuple[float, float]]:
    """The smallest and the largest value of each float tensor that is no constant, by its number.

    Args: see `watch`.
    """
    ranges: dict[int, tuple[float, float]] = {}

    def widen(number: int, values: np.ndarray) -> None:
        low, high = ranges.get(number, (np.inf, -np.inf))
        ranges[number] = min(low, float(values.min())), max(high, float(values.max()))

    watch(model, weights, images, folder, widen)
    return ranges


def watch(
    model: Any,
    weights: Mapping[int, Weights],
    images: Iterable[np.ndarray],
    folder: Path,
    see: Callable[[int, np.ndarray], object],
) -> None:
    """Shows the values of each float tensor that is no constant, of one image after the other.

    Args:
        model: of floats, as `filling.read` gives it.
        weights: what its buffers hold.
        images: inputs of it, with a batch of 1.
        folder: for files, as large as the weights.
        see: is given a tensor's number and its values, which it must not keep.
    """
    graph = model.subgraphs[0]
    (image,) = graph.inputs
    parts = list(_parts(model, weights, folder))
    between = max(sum(_bytes(graph.tensors[n]) for n in part.inputs) for part in parts)
    needed = [{n for later in parts[i + 1 :] for n in later.inputs} for i in range(len(parts))]
    for group in _groups(images, max(1, _BETWEEN_BYTES // between)):
        for pixels in group:
            see(image, pixels)
        values = [{image: pixels} for pixels in group]
        for part, kept in zip(parts, needed, strict=True):
            interpreter = Interpreter(
                str(part.path),
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            interpreter.allocate_tensors()
            for value in values:
                for number in part.inputs:
                    interpreter.set_tensor(number, value[number])
                interpreter.invoke()
                for number in part.found:
                    see(number, interpreter.tensor(number)())
                for number in [n for n in value if n not in kept]:
                    del value[number]
                for number in part.outputs:
                    value[number] = interpreter.get_tensor(number)


def made_computable(
    model: Any, weights: Mapping[int, Weights], ranges: dict[int, tuple[float, float]]
) -> None:
    """Widens the ranges of what is too fine for any kernel (`file_facts.too_fine`), in place.

    As of a layer whose ReLU gives zeros alone, which training leaves behind now and then. Nothing
    is lost: so narrow a range lies within one step of the layer's own sums.
    """
    graph = model.subgraphs[0]
    for op in graph.operators:  # in their order, for what one gives is what the next is given
        name = OPERATORS.get(model.operatorCodes[op.opcodeIndex].builtinCode)
        if name not in WEIGHTED or op.inputs[0] not in ranges or op.outputs[0] not in ranges:
            continue
        number = graph.tensors[op.inputs[1]].buffer
        if number in weights:
            largest = float(weights[number].stand_in.largest.max())
        elif model.buffers[number].data is not None:
            kernel = np.asarray(model.buffers[number].data, "uint8").view("float32")
            largest = float(np.abs(kernel).max())
        else:
            continue
        needed = _width(ranges[op.inputs[0]]) * largest / 127 / (FINEST / 2)
        low, high = ranges[op.outputs[0]]
        if _width((low, high)) < needed:
            ranges[op.outputs[0]] = low, min(low, 0.0) + needed


def set_ranges(model: Any, ranges: Mapping[int, tuple[float, float]]) -> None:
    """Notes the range of each tensor in a file of floats, where a quantizer looks for it."""
    for number, (low, high) in ranges.items():
        tensor = model.subgraphs[0].tensors[number]
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.min, tensor.quantization.max = [low], [high]


def _width(found: tuple[float, float]) -> float:
    """Of the range with zero, which a quantizer has in each."""
    return max(found[1], 0.0) - min(found[0], 0.0)


def _groups(images: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    group: list[np.ndarray] = []
    for image in images:
        group.append(image)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _bytes(tensor: Any) -> int:
    return 4 * int(np.prod(tensor.shape))


def _parts(model: Any, weights: Mapping[int, Weights], folder: Path) -> Iterator[_Part]:
    graph = model.subgraphs[0]
    constant = {n for n, t in enumerate(graph.tensors) if model.buffers[t.buffer].data is not None}
    for index, operators in enumerate(_split(graph)):
        first = graph.operators.index(operators[0])
        made = {n for op in operators for n in op.outputs}
        read = {n for op in operators for n in op.inputs if n >= 0 and n not in constant}
        after = {n for op in graph.operators[first + len(operators) :] for n in op.inputs}
        inputs = sorted(read - made)
        outputs = sorted(made & after)
        floats = schema.TensorType.FLOAT32
        found = sorted(n for n in made if graph.tensors[n].type == floats)
        part = copy.copy(model)
        part.signatureDefs = part.metadata = part.metadataBuffer = None
        part.subgraphs = [copy.copy(graph), *model.subgraphs[1:]]
        part.subgraphs[0].operators = operators
        # As an output a tensor has memory of its own; others give theirs to the next.
        part.subgraphs[0].inputs, part.subgraphs[0].outputs = inputs, sorted({*outputs, *found})
        used = {graph.tensors[n].buffer for op in operators for n in op.inputs if n >= 0}
        part.buffers = [
            buffer if number in used or number not in weights else schema.BufferT()
            for number, buffer in enumerate(model.buffers)
        ]
        path = folder / f"{index}.tflite"
        with open(path, "wb") as file:
            write(file, part, {n: w for n, w in weights.items() if n in used})
        yield _Part(path, inputs, outputs, found)


def _split(graph: Any) -> Iterator[list[Any]]:
    part: list[Any] = []
    size = 0
    for op in graph.operators:
        given = sum(_bytes(graph.tensors[n]) for n in op.outputs)
        if part and size + given > _PART_BYTES:
            yield part
            part, size = [], 0
        part.append(op)
        size += given
    yield part
