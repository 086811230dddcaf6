"""What of a tuned file is to be computed in floats, as in one that is quantized after training.

The converter makes integers of all that has integers before and behind it. It cannot be told what
to leave: what it made is taken back in the file.
"""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from kapps.tflite.file_facts import better_in_float, read_graph
from kapps.tflite.large.filling import packed, unpacked

_FLOAT = schema.TensorType.FLOAT32
_NAMES = schema.BuiltinOperator
_VERSIONS = {_NAMES.DEQUANTIZE: 2, _NAMES.QUANTIZE: 1}  # from int8, and to it


def in_float(content: bytes) -> bytes:
    """The file with `file_facts.better_in_float` in floats, between DEQUANTIZE and QUANTIZE.

    The weights of an attention, which nothing has made integers of in training, stay floats on
    their way from the softmax to the product.
    """
    graph = read_graph(content)
    better = {id(op) for op in better_in_float(graph)}
    if not better:
        return content
    file = _File(content)
    chosen = [
        op
        for op, told in zip(file.graph.operators, graph.operations, strict=True)
        if id(told) in better
    ]
    file.spare_quantization(chosen)
    for op in chosen:
        file.move_to_floats(op)
    return bytes(packed(file.model))


class _File:
    """A file as an object of the schema's, whose main graph is changed."""

    def __init__(self, content: bytes) -> None:
        self.model = unpacked(content)
        self.graph = self.model.subgraphs[0]
        self.floats: dict[int, int] = {}  # by the number of a tensor of integers that of its floats
        self.unused: list[int] = []
        for op in self.graph.operators:
            if self._code(op) == _NAMES.DEQUANTIZE:
                self.floats[int(op.inputs[0])] = int(op.outputs[0])

    def spare_quantization(self, chosen: list[Any]) -> None:
        """Leaves out what makes integers of the floats of a softmax that only the `chosen` read."""
        weights = {
            int(op.outputs[0]) for op in self.graph.operators if self._code(op) == _NAMES.SOFTMAX
        }
        others = [op for op in self.graph.operators if not any(op is each for each in chosen)]
        read = {int(n) for op in others for n in op.inputs} | {int(n) for n in self.graph.outputs}
        for op in others:
            source, target = int(op.inputs[0]), int(op.outputs[0])
            is_float = self.graph.tensors[source].type == _FLOAT
            if self._code(op) != _NAMES.QUANTIZE or not is_float or source not in weights:
                continue
            if target not in read:
                self.floats[target] = source
                self.unused.append(target)
                self._place(op, [])

    def move_to_floats(self, op: Any) -> None:
        """Has an operation take floats, and give them."""
        tensors = self.graph.tensors
        before: list[Any] = []
        behind: list[Any] = []
        inputs, outputs = ([int(n) for n in numbers] for numbers in (op.inputs, op.outputs))
        for n in inputs:
            if tensors[n].type != _FLOAT and n not in self.floats:
                self.floats[n] = self._new_tensor(n)
                before.append(self._conversion(_NAMES.DEQUANTIZE, n, self.floats[n]))
        op.inputs = [self.floats.get(n, n) for n in inputs]
        for i, n in enumerate(outputs):
            if tensors[n].type != _FLOAT:
                outputs[i] = self._new_tensor(n)
                behind.append(self._conversion(_NAMES.QUANTIZE, outputs[i], n))
        op.outputs = outputs
        self._place(op, [*before, op, *behind])

    def _place(self, op: Any, others: list[Any]) -> None:
        """Puts them in the place of an operation."""
        place = next(i for i, each in enumerate(self.graph.operators) if each is op)
        self.graph.operators[place : place + 1] = others

    def _new_tensor(self, of: int) -> int:
        """One of floats, of the same shape."""
        old, new = self.graph.tensors[of], schema.TensorT()
        new.name, new.type, new.buffer = old.name + b"_in_float", _FLOAT, 0
        new.shape, new.shapeSignature, new.hasRank = old.shape, old.shapeSignature, old.hasRank
        if self.unused:
            number = self.unused.pop()
            self.graph.tensors[number] = new
            return number
        self.graph.tensors.append(new)
        return len(self.graph.tensors) - 1

    def _conversion(self, code: int, source: int, target: int) -> Any:
        codes = self.model.operatorCodes
        known = [i for i, each in enumerate(codes) if each.builtinCode == code]
        if not known:
            new = schema.OperatorCodeT()
            new.builtinCode = new.deprecatedBuiltinCode = code
            new.version = _VERSIONS[code]
            known = [len(codes)]
            codes.append(new)
        op = schema.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = known[0], [source], [target]
        return op

    def _code(self, op: Any) -> int:
        return int(self.model.operatorCodes[op.opcodeIndex].builtinCode)
