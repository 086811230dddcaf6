"""Why XNNPACK, the CPU delegate, leaves an operation to the plain kernels.

The rules are those of its `Visit...Node` functions, as of LiteRT of August 2026:
https://github.com/google-ai-edge/LiteRT/blob/main/tflite/delegates/xnnpack/xnnpack_delegate.cc
"""

from __future__ import annotations

from typing import Any

UNKNOWN = "unknown reason"

# Types that the activations of an operation may have.
_FLOAT = {"FLOAT32", "FLOAT16"}
_SIGNED = _FLOAT | {"INT8"}
_ANY = _SIGNED | {"UINT8"}

_FLOAT_ONLY = (
    "ABS AVERAGE_POOL_2D CEIL COS DIV EXP FLOOR GELU HARD_SWISH LOG MAXIMUM MINIMUM NEG PRELU RELU "
    "RELU6 RELU_N1_TO_1 ROUND RSQRT SIN SOFTMAX SQRT SQUARE SQUARED_DIFFERENCE"
)
_OTHER = (
    "ADD BATCH_MATMUL CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE "
    "EXPAND_DIMS FULLY_CONNECTED LEAKY_RELU LOGISTIC MAX_POOL_2D MEAN MUL PAD QUANTIZE REDUCE_MAX "
    "REDUCE_MIN RESHAPE RESIZE_BILINEAR SLICE SPACE_TO_DEPTH SPLIT STRIDED_SLICE SUB SUM TANH "
    "TRANSPOSE TRANSPOSE_CONV"
)
_TYPES = (dict.fromkeys(_OTHER.split(), _ANY) | dict.fromkeys(_FLOAT_ONLY.split(), _FLOAT)) | {
    "ELU": _SIGNED
}

# Inputs that have to be constants: their positions.
_CONSTANT = {
    "CONV_2D": (1, 2),
    "DEPTHWISE_CONV_2D": (1, 2),
    "TRANSPOSE_CONV": (0, 1),
    "MEAN": (1,),
    "SUM": (1,),
    "PAD": (1,),
    "RESIZE_BILINEAR": (1,),
    "SLICE": (1, 2),
    "SPLIT": (0,),
    "STRIDED_SLICE": (1, 2, 3),
    "TRANSPOSE": (1,),
}
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_MOST_DIMENSIONS = 6


def reason(
    name: str,
    custom: bool,
    inputs: list[dict[str, Any] | None],
    outputs: list[dict[str, Any]],
    stride: list[int],
) -> str:
    """One line that says why, or `UNKNOWN`.

    Args:
        name: the operation, as the schema has it.
        custom: it is none of the schema's.
        inputs: its tensors, as `inspection.task` describes them; None for one left out.
        outputs: the same.
        stride: of a STRIDED_SLICE, if it is constant.
    """
    data = [tensor for tensor in inputs if tensor and not tensor["constant"]]
    types = {tensor["dtype"] for tensor in [*data, *outputs]}
    if custom and name.startswith("Flex"):
        return "a TensorFlow operation: it runs only where the Flex delegate is linked in"
    if custom:
        return "a custom operation: it runs only where the app brings it"
    if name == "SHAPE":
        return "a shape is not known before it runs; convert with a static batch"
    if name not in _TYPES:
        return "XNNPACK has no such operation"
    floats = types & _FLOAT
    if name in ("QUANTIZE", "DEQUANTIZE"):
        return _conversion(name, data, outputs)
    if name == "RESHAPE" and len(data) > 1:
        return "its shape is computed; convert with a static batch"
    for position in _CONSTANT.get(name, ()):
        tensor = inputs[position] if position < len(inputs) else None
        if tensor is not None and not tensor["constant"]:
            return f"its input {position} is not constant"
    allowed = _TYPES[name]
    if not types <= allowed:
        wrong = ", ".join(sorted(types - allowed)).lower()
        if types <= _ANY:
            return f"XNNPACK has it for float only, and here it is {wrong}"
        return f"XNNPACK computes in float and 8 bits only, and here it is {wrong}"
    if len(types) > 1 and name not in ("BATCH_MATMUL",):
        return f"mixed types: {', '.join(sorted(types)).lower()}"
    if any(-1 in tensor["signature"] for tensor in [*data, *outputs]):
        return "a dimension is not fixed; convert with a static batch"
    if any(len(tensor["shape"]) > _MOST_DIMENSIONS for tensor in [*data, *outputs]):
        return f"over {_MOST_DIMENSIONS} dimensions"
    if name == "CONCATENATION" and not 2 <= len(inputs) <= 5:
        return f"XNNPACK joins 2 to 5 tensors, and here are {len(inputs)}"
    if name == "SPLIT" and not 2 <= len(outputs) <= 4:
        return f"XNNPACK splits into 2 to 4 tensors, and here are {len(outputs)}"
    if name == "STRIDED_SLICE" and any(step != 1 for step in stride):
        return "XNNPACK slices with stride 1 only"
    if name in _WEIGHTED:
        weights = inputs[0 if name == "TRANSPOSE_CONV" else 1] if len(inputs) > 1 else None
        if weights and floats and weights["dtype"] not in _FLOAT:
            what = weights["dtype"].lower()
            if name == "DEPTHWISE_CONV_2D":
                return f"{what} weights for float activations: XNNPACK has no depthwise form of it"
            return f"{what} weights for float activations, of a form that XNNPACK lacks"
        if name != "FULLY_CONNECTED" and (len(inputs) < 3 or inputs[2] is None):
            return "no bias"
    if not floats and any(not tensor["quantization"] for tensor in [*data, *outputs]):
        return "integers without a scale"
    return UNKNOWN


def _conversion(name: str, data: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> str:
    types = [tensor["dtype"] for tensor in [*data, *outputs]]
    if name == "DEQUANTIZE" and not data:
        return "weights made float again, for an operation that is not in the delegate"
    if set(types) <= {"INT8", "UINT8"} and len(set(types)) > 1:
        return "XNNPACK does not go from uint8 to int8 or back; take int8 or float32 I/O"
    if not set(types) <= _ANY:
        wrong = ", ".join(sorted(set(types) - _ANY)).lower()
        return f"XNNPACK computes in float and 8 bits only, and here it is {wrong}"
    return UNKNOWN
