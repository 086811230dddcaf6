"""Small .tflite files put together from their schema, as no converter makes them any more."""

from __future__ import annotations

from collections.abc import Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


def crafted_file(
    output: Sequence[int],
    kind: str = "FLOAT32",
    *,
    scale: float = 1.0,
    custom: str = "",
    reads: Sequence[int] = (1, 3),
) -> bytes:
    """A file that pools an image of 4 x 4 pixels and three channels, and gives 12 numbers.

    Args:
        output: the shape of these.
        kind: of all tensors: "FLOAT32", "UINT8".
        scale: of the tensor between the two operations; others than floats have 1.
        custom: the second operation is of this name, which no runtime has.
        reads: the tensors that it takes; there are four.
    """
    model = schema.ModelT()
    model.version, model.description = 3, "crafted"
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(np.array(output, "<i4").tobytes(), "uint8")
    graph = schema.SubGraphT()
    graph.tensors = [_tensor(shape, kind) for shape in ([1, 4, 4, 3], [1, 2, 2, 3], output)]
    graph.tensors.append(_tensor([len(output)], "INT32"))
    graph.tensors[3].buffer = 1
    if kind != "FLOAT32" or scale != 1:
        for number, tensor in enumerate(graph.tensors[:3]):
            parameters = tensor.quantization = schema.QuantizationParametersT()
            parameters.scale, parameters.zeroPoint = [scale if number == 1 else 1.0], [0]
    pool, reshape = schema.Pool2DOptionsT(), schema.ReshapeOptionsT()
    pool.strideW = pool.strideH = pool.filterWidth = pool.filterHeight = 2
    pool.padding = schema.Padding.VALID
    reshape.newShape = list(output)
    second = "CUSTOM" if custom else "RESHAPE"
    model.operatorCodes = [_code("AVERAGE_POOL_2D"), _code(second)]
    if custom:
        model.operatorCodes[1].customCode = custom
    graph.operators = [
        _operation(0, [0], [1], schema.BuiltinOptions.Pool2DOptions, pool),
        _operation(1, list(reads), [2], schema.BuiltinOptions.ReshapeOptions, reshape),
    ]
    if custom:
        graph.operators[1].builtinOptionsType, graph.operators[1].builtinOptions = 0, None
    graph.inputs, graph.outputs = [0], [2]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor(shape: Sequence[int], kind: str) -> schema.TensorT:
    tensor = schema.TensorT()
    tensor.shape, tensor.type, tensor.buffer = list(shape), getattr(schema.TensorType, kind), 0
    tensor.name = "x".join(map(str, shape))
    return tensor


def _code(name: str) -> schema.OperatorCodeT:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version = 1
    return code


def _operation(
    code: int, inputs: list[int], outputs: list[int], kind: int, options: object
) -> schema.OperatorT:
    operation = schema.OperatorT()
    operation.opcodeIndex, operation.inputs, operation.outputs = code, inputs, outputs
    operation.builtinOptionsType, operation.builtinOptions = kind, options
    return operation
