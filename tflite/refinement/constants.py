"""The weights in a file of floats, read and replaced."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kapps.tflite.file_facts import OPERATORS

_AXES = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
"""Of the output channels in a kernel, each of which has a scale of its own in a file of integers;
the axis of the input channels is the last one of each."""


def name_of(model: Any, op: Any) -> str:
    """The operation's, as the schema has it; "" for one that the schema does not know."""
    return OPERATORS.get(model.operatorCodes[op.opcodeIndex].builtinCode, "")


@dataclass(frozen=True, eq=False)
class Weighted:
    """An operation with a kernel and a bias of floats.

    Attributes:
        op: of the schema.
        name: of the operation.
        kernel: not to be written to.
        bias: not to be written to; None if there is none.
    """

    model: Any
    op: Any
    name: str
    kernel: np.ndarray
    bias: np.ndarray | None

    @property
    def axis(self) -> int:
        """Of the output channels in the kernel."""
        return _AXES[self.name]

    @property
    def output(self) -> str:
        """The name of the tensor that it gives."""
        return str(self.model.subgraphs[0].tensors[self.op.outputs[0]].name.decode())

    def set_kernel(self, values: np.ndarray) -> None:
        """Of the same shape."""
        set_constant(self.model, self.op, 1, values)

    def set_bias(self, values: np.ndarray) -> None:
        """(output channels,); of an operation that has one."""
        set_constant(self.model, self.op, 2, values)


def weighted(model: Any) -> Iterator[Weighted]:
    """The convolutions and dense layers of the main graph whose kernels are in the file."""
    for op in model.subgraphs[0].operators:
        name = name_of(model, op)
        kernel = _values(model, op, 1) if name in _AXES else None
        if kernel is not None:
            yield Weighted(model, op, name, kernel, _values(model, op, 2))


def _values(model: Any, op: Any, position: int) -> np.ndarray | None:
    if position >= len(op.inputs) or op.inputs[position] < 0:
        return None
    tensor = model.subgraphs[0].tensors[op.inputs[position]]
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type != schema.TensorType.FLOAT32:
        return None
    return np.asarray(data, "uint8").view("float32").reshape(tensor.shape)


def set_constant(model: Any, op: Any, position: int, values: np.ndarray) -> None:
    """Puts floats in the place of a constant input of an operation.

    Equal constants share a tensor or a buffer in a file: this one has its own from now on.
    """
    graph = model.subgraphs[0]
    number = int(op.inputs[position])
    old = graph.tensors[number]
    users = collections.Counter(int(n) for other in graph.operators for n in other.inputs)
    shared = users[number] > 1 or sum(t.buffer == old.buffer for t in graph.tensors) > 1
    data = np.frombuffer(np.ascontiguousarray(values, "float32").tobytes(), "uint8")
    if not shared:
        model.buffers[old.buffer].data = data
        return
    buffer = schema.BufferT()
    buffer.data = data
    model.buffers.append(buffer)
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type = old.name, old.shape, old.type
    tensor.hasRank = old.hasRank
    tensor.buffer = len(model.buffers) - 1
    graph.tensors.append(tensor)
    op.inputs = [*op.inputs[:position], len(graph.tensors) - 1, *op.inputs[position + 1 :]]
