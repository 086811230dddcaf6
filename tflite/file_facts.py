"""What a .tflite file is, asked by all that tell it: one answer to each question.

    graph = read_graph(content)
    quantization(graph), [op.name for op in float_operations(graph)]

The questions are put to anything of the form of `Graph`, such as a `Subgraph` of an `Inspection`.
`read_graph` trusts its bytes: foreign ones are read in a child process.
"""

from __future__ import annotations

import collections
import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ai_edge_litert import schema_py_generated as schema

Content = bytes | mmap.mmap
"""Of a file: in memory or, where it is large, on the disk."""

_FLOATS = ("FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16")
_BYTES = ("INT8", "UINT8", "INT4", "INT2")  # UINT8: of TensorFlow 1
# What carries the weights of a network: in these is decided how it computes.
WEIGHTED = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "TRANSPOSE_CONV",
    "CONV_3D",
    "BATCH_MATMUL",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
)
FINEST = 256
"""The steps of an output that one of its sum of products has to stay below."""
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")  # they change the type, and compute nothing

TUNED = "/quant_"
"""What quantization-aware training puts before the names of layers with kernels."""

TYPES = {number: name for name, number in vars(schema.TensorType).items() if name[0] != "_"}
OPERATORS = {
    number: name for name, number in vars(schema.BuiltinOperator).items() if name[0] != "_"
}


class Tensor(Protocol):
    """A tensor: its type as the schema names it, and whether its content is in the file."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def constant(self) -> bool: ...


class Operation(Protocol):
    """An operation, and the numbers of its tensors; -1 is one that is left out."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> Sequence[int]: ...
    @property
    def outputs(self) -> Sequence[int]: ...


_Op = TypeVar("_Op", bound=Operation)
_Op_co = TypeVar("_Op_co", bound=Operation, covariant=True)


class Graph(Protocol[_Op_co]):
    """The main graph of a file."""

    @property
    def tensors(self) -> Sequence[Tensor]: ...
    @property
    def operations(self) -> Sequence[_Op_co]: ...


@dataclass(frozen=True)
class PlainTensor:
    """See `Tensor`."""

    name: str
    dtype: str
    constant: bool
    scale: float = 0.0
    """Of integers, the largest of all channels; 0.0 of floats."""


@dataclass(frozen=True)
class PlainOperation:
    """See `Operation`."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class PlainGraph:
    """See `Graph`."""

    tensors: tuple[PlainTensor, ...]
    operations: tuple[PlainOperation, ...]


def quantization(graph: Graph[Operation]) -> str:
    """How the file was quantized, in the words of `convert`.

    "int8" and "int16x8": most operations with weights give integers, or, in a file without any,
    most operations. Some may still compute in float (`float_operations`), and those convert their
    inputs and outputs. "mixed": of those with weights some give 8-bit integers, and some floats.
    "dynamic": floats are computed, from weights of 8 bits. "int4": some of them of 4 bits;
    "int4_blockwise": and the scales of their blocks in FLOAT16. "float16": from
    weights of 16 bits. Otherwise "float32".
    """
    computed = [op for op in graph.operations if op.name not in _CONVERSIONS]
    products = {id(op) for op in _products(graph)}  # which carry no weights
    weighted = [op for op in computed if op.name in WEIGHTED and id(op) not in products]
    types = collections.Counter(
        graph.tensors[op.outputs[0]].dtype
        for op in weighted or computed
        if op.outputs and op.outputs[0] >= 0
    )
    floats, words = (sum(types[name] for name in names) for names in (_FLOATS, ("INT16",)))
    integers = sum(types[name] for name in _BYTES)
    if weighted and integers and floats:
        return "mixed"
    if words > max(floats, integers):
        return "int16x8"
    if integers > floats:
        return "int8"
    weights = {tensor.dtype for tensor in graph.tensors if tensor.constant}
    if "INT4" in weights:
        return "int4_blockwise" if "FLOAT16" in weights else "int4"
    if weights & set(_BYTES):
        return "dynamic"
    return "float16" if "FLOAT16" in weights else "float32"


def variant(graph: Graph[Operation], *said: str) -> str:
    """The quantization, and "int8-qat" for int8 that came from quantization-aware training.

    Args:
        graph: kapps.tflite.quantize_aware leaves its mark on the names of its tensors.
        said: what else may say so of files of others, such as the file's name and description: the
            words "qat" or "quantization-aware".
    """
    found = quantization(graph)
    if found != "int8":
        return found
    words = " ".join(said).replace("_", " ")
    tuned = any(TUNED in tensor.name for tensor in graph.tensors)
    if tuned or re.search(r"\bqat\b|quantization[- ]aware", words, re.IGNORECASE):
        return "int8-qat"
    return found


def float_operations(graph: Graph[_Op]) -> list[_Op]:
    """The operations that compute in float: all with a float tensor among inputs or outputs.

    QUANTIZE and DEQUANTIZE compute nothing, wherever they are; they change the type for those that
    do, or of the graph's own input and output.
    """
    return [
        op
        for op in graph.operations
        if op.name not in _CONVERSIONS
        and any(graph.tensors[t].dtype in _FLOATS for t in (*op.inputs, *op.outputs) if t >= 0)
    ]


def better_in_float(graph: Graph[_Op]) -> list[_Op]:
    """The operations of a file of floats that XNNPACK does not take as integers, but as floats.

    They are GELU, the matrix product of two tensors that are computed, and the softmax that goes
    into one: attention. Each would cut the graph in LiteRT 2.3.0.
    """
    products = _products(graph)
    multiplied = {tensor for op in products for tensor in op.inputs}
    return [
        op
        for op in graph.operations
        if op.name == "GELU"
        or (op.name == "SOFTMAX" and op.outputs[0] in multiplied)
        or any(op is product for product in products)
    ]


def _products(graph: Graph[_Op]) -> list[_Op]:
    """The matrix products of two tensors that are computed."""
    return [
        op
        for op in graph.operations
        if op.name == "BATCH_MATMUL" and not any(graph.tensors[t].constant for t in op.inputs)
    ]


def too_fine(graph: PlainGraph) -> list[PlainOperation]:
    """The integer operations whose output is to be so fine that no kernel can compute it.

    A sum of products of integers is scaled to the output by less than 256: XNNPACK prepares nothing
    else, and in LiteRT 2.3.0 its refusal frees memory twice, which ends the process.
    """
    found = []
    for op in graph.operations:
        if op.name in WEIGHTED and len(op.inputs) > 1:
            given, weights, output = (
                graph.tensors[n].scale for n in (*op.inputs[:2], op.outputs[0])
            )
            if output and given * weights / output >= FINEST:
                found.append(op)
    return found


def is_custom(code: Any) -> bool:
    """Whether an `OperatorCode` of the schema is of none of the schema's operations."""
    return _number(code) == schema.BuiltinOperator.CUSTOM


def operator_name(code: Any) -> str:
    """The name of an operation, from its `OperatorCode`; a custom one's is its own."""
    if is_custom(code):
        return (code.CustomCode() or b"").decode("utf-8", "replace")
    return OPERATORS.get(_number(code), f"operation {_number(code)}")


def _number(code: Any) -> int:
    """Old files have the first field only, files with newer operations 127 there."""
    return int(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))


def read_graph(content: Content) -> PlainGraph:
    """The main graph of a .tflite file with this content."""
    root = schema.Model.GetRootAs(content, 0)
    graph = root.Subgraphs(0)
    codes = [operator_name(root.OperatorCodes(i)) for i in range(root.OperatorCodesLength())]
    sizes = {i: buffer_bytes(root.Buffers(i)) for i in range(root.BuffersLength())}

    def numbers(length: int, get: Any) -> tuple[int, ...]:
        return tuple(int(get(i)) for i in range(length))

    tensors = (graph.Tensors(i) for i in range(graph.TensorsLength()))
    operators = (graph.Operators(i) for i in range(graph.OperatorsLength()))
    return PlainGraph(
        tuple(
            PlainTensor(
                (tensor.Name() or b"").decode("utf-8", "replace"),
                TYPES.get(tensor.Type(), f"type {tensor.Type()}"),
                sizes.get(tensor.Buffer(), 0) > 0,
                _scale(tensor.Quantization()),
            )
            for tensor in tensors
        ),
        tuple(
            PlainOperation(
                codes[op.OpcodeIndex()],
                numbers(op.InputsLength(), op.Inputs),
                numbers(op.OutputsLength(), op.Outputs),
            )
            for op in operators
        ),
    )


def _scale(quantization: Any) -> float:
    length = quantization.ScaleLength() if quantization else 0
    return float(quantization.ScaleAsNumpy().max()) if length else 0.0


def buffer_bytes(buffer: Any) -> int:
    """The bytes in a buffer of the schema; beyond 2 GiB they lie behind the flatbuffer."""
    return int(buffer.DataLength() or (buffer.Size() if buffer.Offset() > 1 else 0))
