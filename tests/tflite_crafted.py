"""Small .tflite files put together from their schema, as no converter makes them any more."""

from __future__ import annotations

from collections.abc import Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


def packed(model: schema.ModelT) -> bytes:
    """The .tflite file of an object of the schema."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def crafted_file(
    output: Sequence[int],
    kind: str = "FLOAT32",
    *,
    scale: float = 1.0,
    custom: str = "",
    reads: Sequence[int] = (1, 3),
    any_size: bool = False,
    side: int = 4,
) -> bytes:
    """A file that pools an image of three channels by 2, and gives the numbers.

    Args:
        output: the shape of these; there are 12 of an image of 4 x 4 pixels.
        kind: of all tensors: "FLOAT32", "UINT8".
        scale: of the tensor between the two operations; others than floats have 1.
        custom: the second operation is of this name, which no runtime has.
        reads: the tensors that it takes; there are four.
        side: height and width of the image, pixels.
        any_size: the image may be of any size, as long as that gives `output`.
    """
    model = schema.ModelT()
    model.version, model.description = 3, "crafted"
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(np.array(output, "<i4").tobytes(), "uint8")
    graph = schema.SubGraphT()
    pooled = [1, side // 2, side // 2, 3]
    graph.tensors = [_tensor(shape, kind) for shape in ([1, side, side, 3], pooled, output)]
    graph.tensors.append(_tensor([len(output)], "INT32"))
    graph.tensors[3].buffer = 1
    if any_size:
        graph.tensors[0].shape, graph.tensors[1].shape = [1, 1, 1, 3], [1, 1, 1, 3]
        graph.tensors[0].shapeSignature = [-1, -1, -1, 3]
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
    return packed(model)


def crafted_sine(*, kernel: int = 5, scale: float = 1.0) -> bytes:
    """An int8 classifier, as the converter leaves a layer without an integer form: in float.

    CONV_2D of an image of 4 x 4 pixels, DEQUANTIZE, SIN, QUANTIZE, RESHAPE to 16 classes.

    Args:
        kernel: the weights of the convolution.
        scale: of the integers that the sine becomes.
    """
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version = 3
    constants = [
        [kernel] * 3,
        [0, 0, 0, 0],
        [1, 0, 0, 0, 16, 0, 0, 0],
    ]  # kernel, bias, shape: as bytes
    model.buffers = [schema.BufferT() for _ in range(1 + len(constants))]
    for buffer, content in zip(model.buffers[1:], constants, strict=True):
        buffer.data = np.array(content, "uint8")
    kinds = {
        "image": ([1, 4, 4, 3], "INT8"),
        "convolved": ([1, 4, 4, 1], "INT8"),
        "real": ([1, 4, 4, 1], "FLOAT32"),
        "sine": ([1, 4, 4, 1], "FLOAT32"),
        "quantized": ([1, 4, 4, 1], "INT8"),
        "scores": ([1, 16], "INT8"),
        "kernel": ([1, 1, 1, 3], "INT8"),
        "bias": ([1], "INT32"),
        "shape": ([2], "INT32"),
    }
    for name, (shape, kind) in kinds.items():
        tensor = _tensor(shape, kind)
        tensor.name = name
        if kind == "INT8" or name == "bias":
            parameters = tensor.quantization = schema.QuantizationParametersT()
            parameters.scale = [scale if name in ("quantized", "scores") else 1.0]
            parameters.zeroPoint = [-128 if name == "image" else 0]
        graph.tensors = [*(graph.tensors or []), tensor]
    for number in range(3):
        graph.tensors[6 + number].buffer = 1 + number
    convolution, reshape = schema.Conv2DOptionsT(), schema.ReshapeOptionsT()
    convolution.strideW = convolution.strideH = 1
    reshape.newShape = [1, 16]
    names = ("CONV_2D", "DEQUANTIZE", "SIN", "QUANTIZE", "RESHAPE")
    model.operatorCodes = [_code(name) for name in names]
    model.operatorCodes[0].version = 3  # of int8
    model.operatorCodes[1].version = 2
    graph.operators = [
        _operation(0, [0, 6, 7], [1], schema.BuiltinOptions.Conv2DOptions, convolution),
        *(_operation(n, [n], [n + 1], 0, None) for n in (1, 2, 3)),
        _operation(4, [4, 8], [5], schema.BuiltinOptions.ReshapeOptions, reshape),
    ]
    graph.inputs, graph.outputs = [0], [5]
    model.subgraphs = [graph]
    return packed(model)


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
    code: int, inputs: list[int], outputs: list[int], kind: int, options: object | None
) -> schema.OperatorT:
    operation = schema.OperatorT()
    operation.opcodeIndex, operation.inputs, operation.outputs = code, inputs, outputs
    operation.builtinOptionsType, operation.builtinOptions = kind, options
    return operation
