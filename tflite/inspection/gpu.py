"""Which operations TensorFlow Lite's GPU delegate would leave to the CPU, and why.

The rules are those of the delegate's source as of LiteRT of August 2026 (commit f674577), which
https://ai.google.dev/edge/litert/performance/gpu gives in outline; nothing is tried here:

- tflite/delegates/gpu/common/model_builder.cc: the newest version of an operation, the types of its
  tensors, their dimensions, and that one piece is taken, the largest, by default;
- tflite/tools/versioning/gpu_compatibility.cc: its inputs and options;
- tflite/graph_info.cc and tflite/delegates/utils.cc: the pieces, and weights in float16.

A graph with tensors whose size shows only while it runs is refused whole, which is not told here.
LiteRT's newer GPU accelerator, ML Drift, takes more, by rules that are not published.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

# "NAME=3": up to version 3 of it; without a number, any.
_ELEMENTWISE_1 = "ABS COS ELU EXP FLOOR GELU LOG LOGISTIC NEG RSQRT SIGN SIN SQRT SQUARE TANH"
_ELEMENTWISE_2 = "DIV FLOOR_DIV FLOOR_MOD LOGICAL_AND MAXIMUM MINIMUM POW SQUARED_DIFFERENCE SUB"
_LOGICAL = "EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL NOT_EQUAL"
_REDUCTIONS = "REDUCE_MAX REDUCE_MIN REDUCE_PROD SUM MEAN"
_OTHER = """
ADD=2 ADD_N=2 AVERAGE_POOL_2D=2 BATCH_MATMUL CAST CONCATENATION=2 CONV_2D=6 CUMSUM=1 DENSIFY=1
DEPTHWISE_CONV_2D=6 DEPTH_TO_SPACE DEQUANTIZE=3 FULLY_CONNECTED=9 GATHER=1 HARD_SWISH LEAKY_RELU=2
LSTM=4 MAX_POOL_2D=2 MIRROR_PAD=2 MUL=3 ONE_HOT=1 PACK PAD=2 PADV2=2 PRELU=1 QUANTIZE=2 RELU=2
RELU6=2 RELU_0_TO_1=2 RELU_N1_TO_1=2 RESHAPE=1 RESIZE_BILINEAR=3 RESIZE_NEAREST_NEIGHBOR=3 SELECT=1
SELECT_V2=1 SLICE=2 SOFTMAX=2 SPACE_TO_DEPTH=2 SPLIT SPLIT_V STRIDED_SLICE=4 TILE TRANSPOSE=4
TRANSPOSE_CONV=3 UNPACK
"""
_CUSTOM = (
    "Convolution2DTransposeBias",
    "MaxPoolingWithArgmax2D",
    "MaxUnpooling2D",
    "Resampler",
)


def _newest() -> dict[str, int | None]:
    found: dict[str, int | None] = dict.fromkeys(_REDUCTIONS.split())
    for names in (_ELEMENTWISE_1, _ELEMENTWISE_2, _LOGICAL):
        found |= dict.fromkeys(names.split(), 2)
    for entry in _OTHER.split():
        name, _, version = entry.partition("=")
        found[name] = int(version) if version else None
    return found


_NEWEST = _newest()
_ONE_INPUT = {*_ELEMENTWISE_1.split(), "HARD_SWISH", "QUANTIZE", "RESHAPE", "TILE", "TRANSPOSE"} | {
    *("CAST", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "AVERAGE_POOL_2D", "MAX_POOL_2D"),
    *("PAD", "PADV2", "MIRROR_PAD", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
    *_REDUCTIONS.split(),
}
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
_SWITCHES = ("CAST", "SELECT", "SELECT_V2")

_FLOATS = {"FLOAT32", "FLOAT16"}
_ANY = _FLOATS | {"INT8", "UINT8"}
# What else an operation takes, and gives.
_MORE_IN = {
    "CAST": {"BOOL", "INT32"},
    "ONE_HOT": {"INT32"},
    "SELECT": {"BOOL"},
    "SELECT_V2": {"BOOL"},
    "LOGICAL_AND": {"BOOL"},
    "GATHER": {"INT32"},
}
_MORE_OUT = {"CAST": {"INT32", "BOOL"}, "LOGICAL_AND": {"BOOL"}} | {
    name: {"BOOL"} for name in _LOGICAL.split()
}
_MOST_DIMENSIONS = 4
_ONE_PIECE = "in a smaller piece: the delegate takes one, the largest (max_delegated_partitions=1)"
_HALF_WEIGHTS = "float16 weights made float again: left to the CPU where another operation is"


def refusals(
    operations: Sequence[Mapping[str, Any]], tensors: Sequence[Mapping[str, Any]]
) -> list[str]:
    """For each operation of a graph why the delegate leaves it to the CPU; "" if it takes it.

    Args:
        operations: as `inspection.task` describes them, with their `options`.
        tensors: the same; those that are computed from constants only count as constant.
    """
    graph = _Graph(operations, tensors)
    reasons = [graph.reason(op) for op in operations]
    halves = [
        op["name"] == "DEQUANTIZE" and graph.is_constant_half(op["inputs"]) for op in operations
    ]
    if all(half or not why for half, why in zip(halves, reasons, strict=True)):
        return [""] * len(reasons)
    reasons = [_HALF_WEIGHTS if half else why for half, why in zip(halves, reasons, strict=True)]
    largest = max(pieces_of(operations, [not why for why in reasons]), key=len, default=[])
    inside = set(largest)
    return [why or ("" if number in inside else _ONE_PIECE) for number, why in enumerate(reasons)]


def pieces_of(operations: Sequence[Mapping[str, Any]], taken: Sequence[bool]) -> list[list[int]]:
    """The numbers of the operations of each piece, if a delegate takes these.

    A piece is closed when nothing more of its kind has all that it needs: as the runtime does it.
    """
    waiting = [{t for t in op["inputs"] if t >= 0} for op in operations]
    made = {t for op in operations for t in op["outputs"]}
    ready: set[int] = {t for needed in waiting for t in needed} - made
    left = list(range(len(operations)))
    found: list[list[int]] = []
    kind: bool | None = None
    piece: list[int] = []
    while left:
        start = len(left)
        for number in list(left):
            if waiting[number] <= ready and kind in (None, taken[number]):
                kind = taken[number]
                piece.append(number)
                left.remove(number)
                ready.update(operations[number]["outputs"])
        if len(left) < start:
            continue
        if kind is None:
            break  # a circle: no sound file has one
        if kind:
            found.append(piece)
        kind, piece = None, []
    return [*found, piece] if kind and piece else found


class _Graph:
    def __init__(
        self, operations: Sequence[Mapping[str, Any]], tensors: Sequence[Mapping[str, Any]]
    ) -> None:
        self._tensors = tensors
        self._readers: dict[int, list[Mapping[str, Any]]] = collections.defaultdict(list)
        for op in operations:
            for t in op["inputs"]:
                self._readers[t].append(op)

    def is_constant_half(self, inputs: Sequence[int]) -> bool:
        tensor = self._tensors[inputs[0]] if inputs and inputs[0] >= 0 else None
        return bool(tensor and tensor["constant"] and tensor["dtype"] == "FLOAT16")

    def reason(self, op: Mapping[str, Any]) -> str:
        name = op["name"]
        if op["custom"]:
            return "" if name in _CUSTOM else "a custom operation that the GPU delegate lacks"
        if name not in _NEWEST:
            return "the GPU delegate has no such operation"
        newest = _NEWEST[name]
        if newest is not None and op["version"] > newest:
            return f"it is version {op['version']}, and the GPU delegate has up to {newest}"
        inputs = [None if t < 0 else self._tensors[t] for t in op["inputs"]]
        outputs = [self._tensors[t] for t in op["outputs"] if t >= 0]
        if not outputs:
            return "it has no output"
        return (
            self._logical(op)
            or _structure(name, inputs, outputs, op["options"])
            or _types(name, inputs, outputs)
        )

    def _logical(self, op: Mapping[str, Any]) -> str:
        """A comparison is taken together with the one operation that makes numbers of it."""
        if op["name"] not in _LOGICAL.split():
            return ""
        readers = self._readers[op["outputs"][0]] if op["outputs"] else []
        if len(readers) == 1 and readers[0]["name"] in _SWITCHES and readers[0]["outputs"]:
            result = self._tensors[readers[0]["outputs"][0]]
            return "" if result["dtype"] in _FLOATS else "its result does not become float"
        return "its result goes elsewhere than into one CAST or SELECT"


def _structure(
    name: str,
    inputs: Sequence[Mapping[str, Any] | None],
    outputs: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> str:
    """What is wrong with inputs, outputs and options."""
    given = [tensor for tensor in inputs if tensor]
    computed = [tensor for tensor in given if not tensor["constant"]]
    constants = len(given) - len(computed)
    if options.get("FusedActivationFunction") == _SIGN_BIT:
        return "its activation is SIGN_BIT"
    if name == "RESHAPE" and len(computed) > 1:
        return "its shape is computed; convert with a static batch"
    if name in _ONE_INPUT and len(computed) != 1:
        return f"it has {len(computed)} inputs that are computed, and the GPU delegate takes 1"
    if name in _ELEMENTWISE_1.split() and constants:
        return "an input is constant"
    if name in _REDUCTIONS.split() and (
        constants != 1 or len(given) < 2 or given[1]["dtype"] != "INT32"
    ):
        return "its axes are no constant int32"
    if name in _ELEMENTWISE_2.split() and (len(computed), constants) not in ((2, 0), (1, 1)):
        return f"it has {len(computed)} computed and {constants} constant inputs"
    if name in _CONVOLUTIONS and not (1 <= len(computed) <= 2 and len(outputs) == 1):
        return f"it has {len(computed)} inputs that are computed, and the GPU delegate takes 1 or 2"
    if name in ("ADD", "MUL", "ADD_N", "BATCH_MATMUL") and len(given) != 2:
        return f"it has {len(given)} inputs, and the GPU delegate takes 2"
    if name in ("ADD", "MUL") and not _broadcasts(*(tensor["shape"] for tensor in given)):
        shapes = " and ".join("x".join(map(str, tensor["shape"])) for tensor in given)
        return f"the GPU delegate does not broadcast {shapes}"
    if name == "FULLY_CONNECTED":
        return _fully_connected(given, outputs, options, len(computed))
    return _options(name, given, outputs, options)


_SIGN_BIT = 5  # of the schema's ActivationFunctionType


def _broadcasts(first: Sequence[int], second: Sequence[int]) -> bool:
    if len(first) < 2 or len(second) < 2 or len(first) == len(second):
        return True
    longer, shorter = sorted((first, second), key=len, reverse=True)
    if len(longer) != 4:
        return False
    if len(shorter) == 3:
        return longer[0] == 1
    return (longer[0] == 1 and list(shorter) == [1, 1]) or (
        longer[0] == shorter[0] and longer[3] == shorter[1]
    )


def _fully_connected(
    given: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    computed: int,
) -> str:
    if options.get("WeightsFormat"):
        return "its weights are shuffled"
    if computed > 2:
        return f"it has {computed} inputs that are computed, and the GPU delegate takes 2"
    if not given or given[0]["constant"]:
        return "its input is constant"
    if options.get("KeepNumDims") and len(given[0]["shape"]) != len(outputs[0]["shape"]):
        return "it keeps its dimensions, and has others than its input"
    return ""


def _options(
    name: str,
    given: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> str:
    first = len(given[0]["shape"]) if given else 0
    match name:
        case "DEPTHWISE_CONV_2D" if first != 4 or len(outputs[0]["shape"]) != 4:
            return f"{first} dimensions, and the GPU delegate takes 4"
        case "DEPTHWISE_CONV_2D" if outputs[0]["shape"][3] != given[0]["shape"][3] * options.get(
            "DepthMultiplier", 0
        ):
            return "its depth multiplier is not that of its shapes"
        case "SLICE" | "STRIDED_SLICE" if first not in (3, 4):
            return f"{first} dimensions, and the GPU delegate slices 3 or 4"
        case "STRIDED_SLICE" if any(
            options.get(f"{mask}Mask") for mask in ("Ellipsis", "NewAxis", "ShrinkAxis")
        ):
            return "it adds or drops a dimension"
        case "SOFTMAX" if options.get("Beta") != 1:
            return "its beta is not 1"
        case "RESIZE_BILINEAR" if options.get("AlignCorners") and options.get("HalfPixelCenters"):
            return "it aligns corners and has half-pixel centers"
        case "DEPTH_TO_SPACE" | "SPACE_TO_DEPTH" if options.get("BlockSize", 0) < 2:
            return "its block size is below 2"
        case "MIRROR_PAD" if options.get("Mode"):
            return "it mirrors symmetrically, and the GPU delegate by reflection only"
        case "PAD" | "PADV2" | "MIRROR_PAD" if len(given) < 2 or list(given[1]["shape"]) not in (
            [3, 2],
            [4, 2],
        ):
            return "it pads others than 3 or 4 dimensions"
        case "GATHER" if len(given) > 1 and len(given[1]["shape"]) != 1:
            return "its indices are not of one dimension"
        case "GATHER" if len(given) > 1 and given[1]["dtype"] != "INT32":
            return "its indices are not int32"
        case "CAST":
            types = (given[0]["dtype"], outputs[0]["dtype"])
            numbers = {"FLOAT32", "INT32"}
            if set(types) <= numbers or (
                "BOOL" in types and types[0] != types[1] and set(types) <= {"BOOL", *_FLOATS}
            ):
                return ""
            return f"the GPU delegate does not go from {types[0].lower()} to {types[1].lower()}"
        case "SELECT" | "SELECT_V2" if given and given[0]["dtype"] not in {"BOOL", *_FLOATS}:
            return "its condition is neither bool nor float"
        case "ONE_HOT" if given and given[0]["dtype"] != "INT32":
            return "its indices are not int32"
    return ""


def _types(
    name: str,
    inputs: Sequence[Mapping[str, Any] | None],
    outputs: Sequence[Mapping[str, Any]],
) -> str:
    """What is wrong with the types of what is computed, and with the dimensions."""
    given = [tensor for tensor in inputs if tensor]
    if any(len(tensor["shape"]) > _MOST_DIMENSIONS for tensor in [*given, *outputs]):
        return f"over {_MOST_DIMENSIONS} dimensions"
    for tensors, more in ((given, _MORE_IN), (outputs, _MORE_OUT)):
        for tensor in tensors:
            kind = tensor["dtype"]
            if tensor["constant"]:
                continue
            if kind not in _ANY | more.get(name, set()):
                return f"the GPU delegate computes in float and 8 bits only, here is {kind.lower()}"
            if kind in ("INT8", "UINT8"):
                quantization = tensor["quantization"]
                if not quantization:
                    return "integers without a scale"
                if quantization["axis"] is not None:
                    return "what it computes has a scale for each channel"
    return ""
