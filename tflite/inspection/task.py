"""The task that `kapps.tflite.inspection` runs in a child process (`kapps.tflite.child`)."""

from __future__ import annotations

import mmap
import os
import re
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kapps._errors import InputError, one_line
from kapps.tflite.file_facts import TYPES, buffer_bytes, is_custom, operator_name
from kapps.tflite.inspection.gpu import refusals
from kapps.tflite.inspection.options import options_of
from kapps.tflite.inspection.reasons import reason
from kapps.tflite.inspection.versions import oldest_runtime
from kapps.tflite.interpreter import NoSize, delegated, load_interpreter, operations
from kapps.tflite.metadata import read_metadata

MOST_BYTES = 4 << 30  # of a file; a flatbuffer holds 2 GiB
_MOST = 100_000  # tensors, operations, ... of a file; EfficientNetV2XL has some 3,000
_MOST_TEXT = 200  # characters of a name
_MOST_STRIDE = 8

_RUNTIME = f"LiteRT {version('ai-edge-litert')}"
# Sound files that only this runtime cannot run: they are described all the same.
_NOT_HERE = re.compile(r"unresolved custom op|Didn't find op for builtin opcode|Flex delegate")


def work(request: dict[str, Any], emit: Callable[..., None]) -> dict[str, Any]:
    """What the file at `path` is, as `Inspection` of `kapps.tflite.inspection` has it, in JSON."""
    path = request["path"]
    emit(at=path)
    size = _check(path)
    running, failure = [], ""
    try:
        running = operations(load_interpreter(path, 1, request.get("input_shape")))
    except NoSize as error:
        failure = one_line(error).removeprefix(f"{one_line(path)} ")
    except InputError as error:
        cause = error.__cause__ or error  # it does not name the file, as the page does already
        if not _NOT_HERE.search(str(cause)):
            raise
        failure = one_line(cause)
    with open(path, "rb") as file:
        # Never closed: what an error holds of it would forbid that, and hide the error.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    root = schema.Model.GetRootAs(content, 0)
    buffers = [
        buffer_bytes(root.Buffers(i)) for i in range(_count(root.BuffersLength(), "buffers"))
    ]
    graphs = [
        _graph(root, root.Subgraphs(i), buffers)
        for i in range(_count(root.SubgraphsLength(), "subgraphs"))
    ]
    if not graphs:
        raise InputError(f"{path} has no graph")
    entries = {
        _text(root.Metadata(i).Name()): root.Metadata(i).Buffer()
        for i in range(_count(root.MetadataLength(), "metadata entries"))
    }
    sizes = {name: _size(buffers, index) for name, index in entries.items()}
    described = {
        "schema_version": root.Version(),
        "description": _text(root.Description()),
        "signatures": [_signature(root, i) for i in range(_count(root.SignatureDefsLength()))],
        "min_runtime_version": _min_runtime_version(root, entries),
    }
    weights = sum(buffers[i] for i in {t["buffer"] for g in graphs for t in g["tensors"]})
    _delegate(graphs[0]["operations"], running)
    for graph in graphs:
        _explain(graph, delegated=graph is graphs[0] and not failure)
    metadata, metadata_error = _metadata(path, entries)
    attached = _attached(path)
    return {
        **described,
        "path": str(path),
        "size_bytes": size,
        "weight_bytes": weights,
        "metadata_bytes": sum(sizes.values()),
        "attached_bytes": sum(attached.values()),
        "runtime": _RUNTIME,
        "failure": failure,
        "subgraphs": graphs,
        "pieces": sum(op["op_name"] == "DELEGATE" for op in running),
        "entries": sizes,
        "attached": attached,
        "metadata": metadata,
        "metadata_error": metadata_error,
    }


def _check(path: str) -> int:
    """The size of what may be a .tflite file."""
    if not Path(path).exists():
        raise InputError(f"no such file: {path}")
    if not Path(path).is_file():
        raise InputError(f"{path} is no regular file")
    try:
        with open(path, "rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(8)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not size:
        raise InputError(f"{path} is empty")
    if head[4:8] != b"TFL3":
        raise InputError(f"{path} is no .tflite file: it lacks the identifier TFL3")
    if size > MOST_BYTES:
        raise InputError(f"{path} has {size} bytes; over {MOST_BYTES >> 30} GiB is refused")
    return size


def _count(number: int, what: str = "entries") -> int:
    if number > _MOST:
        raise InputError(f"{number} {what}: over {_MOST} are refused")
    return number


def _text(value: bytes | None) -> str:
    """Printable, and not endless: it comes from the file."""
    text = (value or b"")[: 4 * _MOST_TEXT].decode("utf-8", "replace")[:_MOST_TEXT]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _numbers(values: Any) -> list[int]:
    """A vector of the schema, which is 0 where it is missing."""
    return np.atleast_1d(values)[:_MOST].astype(int).tolist() if np.ndim(values) else []


# The flatbuffer.


def _size(buffers: list[int], index: int) -> int:
    return buffers[index] if index < len(buffers) else 0


def _graph(root: Any, graph: Any, buffers: list[int]) -> dict[str, Any]:
    count = _count(graph.TensorsLength(), "tensors")
    tensors = [_tensor(graph.Tensors(i), i, buffers) for i in range(count)]
    return {
        "name": _text(graph.Name()),
        "tensors": tensors,
        "inputs": _indices(graph.InputsAsNumpy(), count),
        "outputs": _indices(graph.OutputsAsNumpy(), count),
        "operations": [
            _operation(root, graph.Operators(i), i, tensors)
            for i in range(_count(graph.OperatorsLength(), "operations"))
        ],
    }


def _tensor(tensor: Any, index: int, buffers: list[int]) -> dict[str, Any]:
    shape = _numbers(tensor.ShapeAsNumpy())
    return {
        "index": index,
        "name": _text(tensor.Name()),
        "dtype": TYPES.get(tensor.Type(), f"type {tensor.Type()}"),
        "shape": shape,
        "signature": _numbers(tensor.ShapeSignatureAsNumpy()) or shape,
        "quantization": _quantization(tensor.Quantization(), index),
        "block": _block(tensor.Quantization()),
        "buffer": tensor.Buffer() if tensor.Buffer() < len(buffers) else 0,
        "constant": _size(buffers, tensor.Buffer()) > 0,
        "bytes": _size(buffers, tensor.Buffer()),
    }


def _quantization(parameters: Any, index: int) -> dict[str, Any] | None:
    if parameters is None or not parameters.ScaleLength():
        return None
    scales = parameters.ScaleAsNumpy()
    if not np.isfinite(scales).all():
        raise InputError(f"tensor {index} has a scale that is no finite number")
    zeros = parameters.ZeroPointAsNumpy() if parameters.ZeroPointLength() else np.zeros(1, int)
    return {
        "scales": len(scales),
        "axis": int(parameters.QuantizedDimension()) if len(scales) > 1 else None,
        "scale": [float(np.min(scales)), float(np.max(scales))],
        "zero_point": [int(np.min(zeros)), int(np.max(zeros))],
    }


def _block(parameters: Any) -> int:
    """How many weights share a scale that lies in a tensor of its own; 0 if none does."""
    blockwise = schema.QuantizationDetails.BlockwiseQuantization
    if parameters is None or parameters.DetailsType() != blockwise:
        return 0
    details, table = schema.BlockwiseQuantization(), parameters.Details()
    details.Init(table.Bytes, table.Pos)
    return max(0, int(details.BlockSize()))


def _indices(values: Any, count: int) -> list[int]:
    """Numbers of tensors, -1 for one that is left out."""
    indices = _numbers(values)
    for index in indices:
        if not -1 <= index < count:
            raise InputError(f"tensor {index} of {count} is referred to")
    return indices


def _operation(root: Any, operator: Any, index: int, tensors: list[Any]) -> dict[str, Any]:
    code = operator.OpcodeIndex()
    if code >= root.OperatorCodesLength():
        raise InputError(f"operation {index} has code {code} of {root.OperatorCodesLength()}")
    code = root.OperatorCodes(code)
    custom = is_custom(code)
    name = _text(code.CustomCode()) if custom else operator_name(code)
    inputs = _indices(operator.InputsAsNumpy(), len(tensors))
    weights = [tensors[n] for n in inputs[1:2] if n >= 0 and tensors[n]["dtype"] == "INT4"]
    blocks = any(tensor["block"] for tensor in weights)
    return {
        "index": index,
        "name": name,
        "custom": custom,
        "version": code.Version(),
        "inputs": inputs,
        "outputs": _indices(operator.OutputsAsNumpy(), len(tensors)),
        "oldest_runtime": None
        if custom
        else oldest_runtime(name, code.Version(), four_bits=bool(weights), blocks=blocks),
        "stride": _stride(root, operator, name, tensors),
        "options": {} if custom else options_of(operator, name),
        "piece": None,
        "reason": "",
    }


def _stride(root: Any, operator: Any, name: str, tensors: list[Any]) -> list[int]:
    """The constant strides of a STRIDED_SLICE."""
    if name != "STRIDED_SLICE" or operator.InputsLength() != 4:
        return []
    tensor = tensors[operator.Inputs(3)]
    if not tensor["constant"] or tensor["dtype"] != "INT32":
        return []
    data = root.Buffers(tensor["buffer"]).DataAsNumpy()
    if not np.ndim(data) or len(data) % 4 or len(data) > 4 * _MOST_STRIDE:
        return []
    return _numbers(np.frombuffer(data.tobytes(), "<i4"))


def _signature(root: Any, index: int) -> dict[str, Any]:
    signature = root.SignatureDefs(index)

    def names(length: int, get: Callable[[int], Any]) -> dict[str, int]:
        return {_text(get(i).Name()): get(i).TensorIndex() for i in range(_count(length))}

    return {
        "name": _text(signature.SignatureKey()),
        "subgraph": signature.SubgraphIndex(),
        "inputs": names(signature.InputsLength(), signature.Inputs),
        "outputs": names(signature.OutputsLength(), signature.Outputs),
    }


def _min_runtime_version(root: Any, entries: dict[str, int]) -> str:
    """What the converter noted: a version, filled up with zeros."""
    index = entries.get("min_runtime_version", root.BuffersLength())
    if index >= root.BuffersLength():
        return ""
    data = root.Buffers(index).DataAsNumpy()
    return _text(data[:16].tobytes().strip(b"\0")) if np.ndim(data) else ""


# The delegate.


def _delegate(described: list[dict[str, Any]], running: list[dict[str, Any]]) -> None:
    """Notes for each operation which delegate piece has it."""
    for operation, piece in zip(described, delegated(running), strict=False):
        operation["piece"] = piece


def _explain(graph: dict[str, Any], *, delegated: bool) -> None:
    """Says of what is in no delegate piece why, and of what the GPU's would not take."""
    tensors = graph["tensors"]
    constants = {t["index"] for t in tensors if t["constant"]}
    for op in graph["operations"]:
        inputs = [
            None if t < 0 else {**tensors[t], "constant": t in constants} for t in op["inputs"]
        ]
        outputs = [tensors[t] for t in op["outputs"] if t >= 0]
        if all(t < 0 or t in constants for t in op["inputs"]):
            constants.update(op["outputs"])  # such as float16 weights that are made float32
        stride = op.pop("stride")
        if op["piece"] is None and (delegated or op["custom"]):
            op["reason"] = reason(op["name"], op["custom"], inputs, outputs, stride)
    known = [{**t, "constant": t["index"] in constants} for t in tensors]
    for op, why in zip(graph["operations"], refusals(graph["operations"], known), strict=True):
        op["gpu_reason"] = why
    for op in graph["operations"]:
        del op["options"]
    for tensor in tensors:
        del tensor["buffer"]


# What else is in the file.


def _metadata(path: str, entries: dict[str, int]) -> tuple[dict[str, Any] | None, str]:
    if "TFLITE_METADATA" not in entries:
        return None, ""
    try:
        metadata = read_metadata(path)
    except InputError as error:
        return None, str(error).removeprefix(f"{path}: ")  # the page begins with the path
    return {**vars(metadata), "labels": list(metadata.labels)}, ""


def _attached(path: str) -> dict[str, int]:
    """The files in the zip behind the model, by name, and the bytes that they take in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()[:_MOST]
            return {_text(info.filename.encode()): info.compress_size for info in infos}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return {}
