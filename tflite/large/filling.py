"""The weights, put into a file in which others stand for them.

Nothing of the size of a network is held in memory: a flatbuffer refers forward to its parts, so
that the weights follow the small file in which they are missing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kapps.tflite.file_facts import OPERATORS
from kapps.tflite.inspection.versions import newest, oldest_runtime
from kapps.tflite.large.stand_ins import StandIn
from kapps.tflite.passes.graph import filters_at_once

_TYPES: dict[int, np.dtype[Any]] = {
    schema.TensorType.FLOAT32: np.dtype("float32"),
    schema.TensorType.FLOAT16: np.dtype("float16"),
    schema.TensorType.INT8: np.dtype("int8"),
}


@dataclass(frozen=True, eq=False)
class Weights:
    """What a buffer of a file has to hold."""

    stand_in: StandIn
    dtype: np.dtype[Any]
    scales: np.ndarray | None
    """Of int8, for each filter, and of the precision that TensorFlow divides by."""

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.stand_in.kernel.shape) * self.dtype.itemsize

    def parts(self) -> Iterator[bytes]:
        """The content, some filters at a time."""
        kernel = self.stand_in.kernel
        for some in filters_at_once(kernel.shape):
            part = np.ascontiguousarray(kernel[..., some].transpose(3, 0, 1, 2))
            if self.scales is not None:
                # As TensorFlow: halves go away from zero, and -128 is not used.
                part = (part * (1 / self.scales[some, None, None, None])).astype("float64")
                part = np.clip(np.trunc(part + np.copysign(0.5, part)), -127, 127)
            yield part.astype(self.dtype).tobytes()


class NotFound(Exception):
    """A stand-in is not in the file as it was given: the converter has done something to it."""


def packed(model: Any) -> bytearray:
    """The file of an object of the schema's."""
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    content: bytearray = builder.Output()  # of its own
    return content


def unpacked(content: bytes) -> Any:
    """The file as an object of the schema's, without buffers that lie behind the flatbuffer."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.data is None and buffer.offset > 1:
            buffer.data = np.frombuffer(content, "uint8", count=buffer.size, offset=buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def read(content: bytes, stand_ins: Sequence[StandIn]) -> tuple[Any, dict[int, Weights]]:
    """The file as an object in which tensors have their real shapes, and what buffers have to hold.

    Raises:
        NotFound: so it is.
    """
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    weights: dict[int, Weights] = {}
    left = list(stand_ins)
    for graph in model.subgraphs:
        shaped = {}
        for number, tensor in enumerate(graph.tensors):
            stand_in = _found(model, tensor, left)
            if stand_in is None:
                continue
            weights[tensor.buffer] = Weights(
                stand_in, _TYPES[tensor.type], _scales(graph, number, stand_in)
            )
            left.remove(stand_in)
            shaped[number] = stand_in.real_shape
        for op in graph.operators:
            # float16: the weights are computed from those of the file.
            if len(op.inputs) == 1 and op.inputs[0] in shaped:
                shaped[op.outputs[0]] = shaped[op.inputs[0]]
        for number, shape in shaped.items():
            graph.tensors[number].shape = np.array(shape, "int32")
    if left:
        raise NotFound
    _restate_versions(model)
    return model, weights


_GROUPED = 6  # the version of CONV_2D with groups


def _restate_versions(model: Any) -> None:
    """Of CONV_2D, and of the oldest runtime, where no convolution is in groups any more."""
    convolutions = schema.BuiltinOperator.CONV_2D
    for number, code in enumerate(model.operatorCodes):
        if (code.builtinCode, code.version) == (convolutions, _GROUPED):
            code.version = max(
                _version(graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]])
                for graph in model.subgraphs
                for op in graph.operators
                if op.opcodeIndex == number
            )
    runtimes = [
        oldest_runtime(OPERATORS[code.builtinCode], code.version) for code in model.operatorCodes
    ]
    oldest = newest([runtime for runtime in runtimes if runtime is not None])
    if oldest is None or None in runtimes:
        return
    note_runtime(model, oldest)


def note_runtime(model: Any, oldest: str) -> None:
    """Notes the oldest runtime of a file, where the converter has noted one."""
    text = oldest if oldest.count(".") > 1 else f"{oldest}.0"
    for note in model.metadata or []:
        if note.name == b"min_runtime_version":
            data = text.encode().ljust(len(model.buffers[note.buffer].data), b"\0")
            model.buffers[note.buffer].data = np.frombuffer(data, "uint8")


def _version(image: Any, kernel: Any) -> int:
    """Of a convolution, as tensorflow/compiler/mlir/lite/tools/versioning/op_version.cc has it."""
    if image.shape[3] != kernel.shape[3]:
        return _GROUPED
    if image.type == schema.TensorType.INT8:
        return 3
    if kernel.type == schema.TensorType.INT8:
        return 5 if len(kernel.quantization.scale) > 1 else 2
    return 1


def _found(model: Any, tensor: Any, stand_ins: Sequence[StandIn]) -> StandIn | None:
    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type not in _TYPES:
        return None
    for stand_in in stand_ins:
        if tuple(tensor.shape) == stand_in.shape:
            values = np.asarray(data, "uint8").view(_TYPES[tensor.type])
            if stand_in.is_in(values):
                return stand_in
    return None


def _scales(graph: Any, number: int, stand_in: StandIn) -> np.ndarray | None:
    tensor = graph.tensors[number]
    if tensor.type != schema.TensorType.INT8:
        return None
    scales = np.asarray(tensor.quantization.scale, "float32")
    largest = stand_in.largest if len(scales) > 1 else stand_in.largest.max(keepdims=True)
    used = largest > 0  # a filter of zeros has any scale
    if not np.allclose(scales[used], largest[used] / 127, rtol=1e-6, atol=0):
        raise NotFound
    (op,) = [op for op in graph.operators if number in op.inputs]
    if graph.tensors[op.outputs[0]].type == schema.TensorType.FLOAT32:  # dynamic
        scales = np.where(used, largest.astype("float64") / 127, 1)
    return np.broadcast_to(scales, stand_in.largest.shape)


def write(file: IO[bytes], model: Any, weights: Mapping[int, Weights]) -> None:
    """The model, whose buffers of these numbers hold `weights`, into an empty file."""
    kept = {number: model.buffers[number].data for number in weights}
    for number in weights:
        model.buffers[number].data = np.zeros(1, "uint8")  # so that there is a reference
    head = packed(model)
    for number, data in kept.items():
        model.buffers[number].data = data
    root = schema.Model.GetRootAs(head, 0)
    end = len(head)
    places = []
    for number, content in weights.items():
        table = root.Buffers(number)._tab
        reference = table.Pos + table.Offset(4)
        start = -(-(end + 4) // 16) * 16  # aligned, with the length before it
        struct.pack_into("<I", head, reference, start - 4 - reference)
        places.append((start, content))
        end = start + content.size
    file.write(head)
    for start, content in places:
        file.write(bytes(start - 4 - file.tell()))
        file.write(struct.pack("<I", content.size))
        for part in content.parts():
            file.write(part)
