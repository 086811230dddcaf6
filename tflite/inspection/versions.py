"""From an operation's version to the oldest TensorFlow Lite runtime that has it.

Converters note the runtime that a whole file needs; the table is for files without that note, as
other tools write them, and tells which operation is to blame.
"""

from __future__ import annotations

import re

# The runtime that brought version 1, 2, 3, ... of an operation; "-": there is no such version.
# From the table in LiteRT's tflite/converter/tools/versioning/runtime_version.cc as of August 2026,
# the operations of convolutional networks (and "2.3" for "2.3.0"). Up to 2.20 these are versions of
# TensorFlow; some of the later ones carry the number of a release to come.
# https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/tools/versioning/runtime_version.cc
_TABLE = """
ABS 1.13 2.4 2.5 2.6 2.12
ADD 1.5 1.14 2.4 2.6 2.13 2.23
ADD_N 1.14
ARG_MAX 1.9 1.14 2.9
ARG_MIN 1.9 1.14 2.9
ASSIGN_VARIABLE 2.6
AVERAGE_POOL_2D 1.5 1.14 2.3
BATCH_MATMUL 2.3 2.3 2.4 2.5
BATCH_TO_SPACE_ND 1.6 1.14 2.3 2.12
BROADCAST_TO - 2.5 2.5 2.23
CALL_ONCE 2.5
CAST 1.5 2.7 2.8 2.9 2.12 2.15 2.17 2.21 2.23
CEIL 1.14
CONCATENATION 1.5 1.14 2.3 2.14 2.21 2.23 2.23
CONV_2D 1.5 1.14 1.14 2.3 2.4 2.9 2.11 2.15
CONV_3D 2.5
COS 1.14 2.23
CUMSUM 2.4
DENSIFY 2.2
DEPTHWISE_CONV_2D 1.5 1.12 1.14 2.2 2.3 2.3 2.11
DEPTH_TO_SPACE 2.1 2.5
DEQUANTIZE 1.13.1 1.14 1.15 2.2 2.7 2.18 2.21 2.22 2.23
DIV 1.6 2.3
ELU 1.14
EQUAL 1.14 1.14 2.3 2.13 2.21
EXP 1.7 2.12
EXPAND_DIMS 1.10
FILL 1.13 2.3 2.5 2.12 2.23
FLOOR 1.9
FLOOR_DIV 1.14 1.14 2.13
FLOOR_MOD 1.13 2.13
FULLY_CONNECTED 1.5 1.10 1.14 1.14 2.0 2.1 2.3 2.3 2.3 2.11 2.15 2.17 2.18 2.21
GATHER 1.6 1.14 1.15 2.4 2.5 2.13 2.15 2.23
GATHER_ND 1.14 2.3 2.5 2.13 2.16 2.23
GELU 2.9 2.9 2.23
GREATER 1.14 1.14
GREATER_EQUAL 1.14 1.14 2.13
HARD_SWISH 1.15
IF 1.15
L2_NORMALIZATION 1.5 1.14
L2_POOL_2D 1.5
LEAKY_RELU 1.13.1 2.3
LESS 1.14 1.14 2.13
LESS_EQUAL 1.14 1.14
LOCAL_RESPONSE_NORMALIZATION 1.5
LOG 1.14 2.15
LOGICAL_AND 1.11
LOGICAL_NOT 1.11
LOGICAL_OR 1.11
LOGISTIC 1.14 1.14 2.3
LOG_SOFTMAX 1.14 1.14
MAXIMUM 1.14 1.14 2.3 2.3
MAX_POOL_2D 1.5 1.14 2.3
MEAN 1.6 1.14 2.4
MINIMUM 1.14 1.14 2.3 2.3
MIRROR_PAD 1.13.1 2.3 2.12
MUL 1.5 1.14 1.15 2.3 2.6 2.11 2.13 2.23
NEG 1.9
NOT_EQUAL 1.14 1.14 2.3 2.21
ONE_HOT 1.11
PACK 1.11 1.14 2.3 2.13 2.23
PAD 1.5 1.14 2.4 2.6 2.20 2.23
PADV2 1.9 1.14 2.4 2.6 2.20 2.23
POW 1.10
PRELU 1.8
QUANTIZE 1.14 1.15 2.7 2.21 2.21 2.21
RANGE 1.13 2.14
RANK 1.14
READ_VARIABLE 2.6
REDUCE_ALL 2.6
REDUCE_ANY 1.11
REDUCE_MAX 1.11 1.14 2.5
REDUCE_MIN 1.11 1.14 2.5
REDUCE_PROD 1.11 2.6
RELU 1.5 2.1 2.5
RELU6 1.5 1.14 2.5
RELU_0_TO_1 2.10
RELU_N1_TO_1 1.5
RESHAPE 1.5
RESIZE_BILINEAR 1.7 1.14 2.2 2.5
RESIZE_NEAREST_NEIGHBOR 1.13.1 1.14 2.3 2.4
REVERSE_V2 1.14 2.2 2.5 2.23
ROUND 1.14
RSQRT 1.10 2.5 2.15
SELECT 1.14 1.14 2.12 2.12
SELECT_V2 2.2 2.12
SHAPE 1.10
SIGN 2.11 2.12
SIN 1.9 2.23
SLICE 1.14 1.14 1.14 2.4 2.5 2.14 2.21 2.23
SOFTMAX 1.5 1.14 2.3 2.23
SPACE_TO_BATCH_ND 1.6 1.14 2.3 2.12
SPACE_TO_DEPTH 1.5 1.14
SPLIT 1.5 1.14 1.14 2.3 2.23
SPLIT_V 1.13.1 2.3 2.23
SQRT 1.10 2.21
SQUARE 1.12
SQUARED_DIFFERENCE 1.13.1 2.5
SQUEEZE 1.6 2.5
STRIDED_SLICE 1.6 1.14 2.1 2.2 2.5 2.6 2.14 2.14
SUB 1.6 1.14 2.3 2.4 2.4
SUM 1.10 1.15
TANH 1.14 1.14 2.3
TILE 1.10.1 2.2 2.8
TOPK_V2 1.7 1.14 2.13
TRANSPOSE 1.6 1.14 1.15 2.3 2.4 2.12 2.14.4 2.22 2.23
TRANSPOSE_CONV 1.9 2.2 2.3 2.13 2.15
UNPACK 1.11 1.14 2.2 2.3 2.22 2.23
VAR_HANDLE 2.6
WHERE 1.14 2.8
WHILE 1.15
ZEROS_LIKE 1.12
"""

_RUNTIMES = {name: runtimes for name, *runtimes in map(str.split, _TABLE.strip().splitlines())}


# Weights of 4 bits for activations of floats have no version of their own. So files of
# EfficientNetLite0 by ai-edge-quantizer 0.10.0 were run on TensorFlow Lite 2.14 and 2.16 to 2.20,
# and on LiteRT 1.0.1 to 2.3.0: before these, convolutions end the process (up to 2.17) or give
# other numbers (2.18, LiteRT 1.0.1), and blocks give other numbers (up to 2.19, LiteRT 1.2.0).
_FOUR_BITS = {"CONV_2D": "2.19", "DEPTHWISE_CONV_2D": "2.19", "FULLY_CONNECTED": "2.14"}
NEWEST_OF_FOUR_BITS = "2.20"  # of blocks that have a scale each
# The oldest LiteRT that computes the same, by TensorFlow Lite's number; measured likewise.
_LITERT = {"2.14": (1, 0), "2.19": (1, 1), "2.20": (1, 3)}


def too_old(runtime: str, oldest: str) -> str:
    """The runtime to install, if `runtime` is too old for weights of 4 bits; "" if it is not.

    Args:
        runtime: "ai-edge-litert 1.0.1", "tflite-runtime 2.14.0"; any other is not known to be old.
        oldest: what `oldest_runtime` gives for the file.
    """
    name, _, version = runtime.partition(" ")
    if not is_version(version) or oldest not in _LITERT:
        return ""
    has, litert = tuple(map(int, version.split("."))), _LITERT[oldest]
    needed = {"ai-edge-litert": litert, "tflite-runtime": tuple(map(int, oldest.split(".")))}
    if has >= needed.get(name, ()):
        return ""
    return f"ai-edge-litert {litert[0]}.{litert[1]}"


def oldest_runtime(
    operation: str, version: int, *, four_bits: bool = False, blocks: bool = False
) -> str | None:
    """The oldest runtime with this version of the operation, such as "2.3"; None if not known.

    Args:
        operation: its name in the schema.
        version: of it.
        four_bits: its weights have 4 bits.
        blocks: blocks of these have a scale each.
    """
    runtimes = _RUNTIMES.get(operation, [])
    found = runtimes[version - 1] if 1 <= version <= len(runtimes) else "-"
    if found == "-":
        return None
    needed = [_FOUR_BITS.get(operation, found)] if four_bits else []
    return newest([found, *needed, *([NEWEST_OF_FOUR_BITS] if blocks else [])])


def is_version(text: str) -> bool:
    """Whether it is a version such as "2.3.0"; a file's note may be any text."""
    return re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}", text, re.ASCII) is not None


def newest(runtimes: list[str]) -> str | None:
    """The newest of them, by number; None if there are none."""
    return max(runtimes, key=lambda text: tuple(map(int, text.split("."))), default=None)
