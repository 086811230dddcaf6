"""Labels and metadata inside a .tflite file, as MediaPipe and Android read them.

The metadata is a flatbuffer of its own (schema `metadata_schema.fbs`, file identifier M001) in a
buffer of the model that is named TFLITE_METADATA; the label file lies in a zip archive appended to
the model. The published writers do not run on current Pythons, so the few tables that an image
classifier needs are written here with `flatbuffers.Builder`.

Schema: https://github.com/google-ai-edge/mediapipe/blob/master/mediapipe/tasks/metadata/metadata_schema.fbs
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import number_types

from kapps._errors import InputError, is_whole
from kapps._files import sha256
from kapps.tflite.file_facts import Content

BUFFER_NAME = "TFLITE_METADATA"
LABEL_FILE = "labels.txt"
WEIGHTS_FILE = "weights.sha256"
_IDENTIFIER = b"M001"
# The newest field written here (Content, NormalizationOptions, TENSOR_AXIS_LABELS) is as old as
# the schema itself.
_MIN_PARSER_VERSION = "1.0.0"
_MAX_LABEL_BYTES = 16 * 2**20  # ImageNet-21k's labels take 0.5 MiB

# Numbers of the schema's enums and unions.
_DESCRIPTIONS, _TENSOR_AXIS_LABELS = 1, 2
_RGB, _GRAYSCALE = 1, 2
_FEATURE_PROPERTIES, _IMAGE_PROPERTIES = 1, 2
_NORMALIZATION_OPTIONS = 1


@dataclass(frozen=True)
class Metadata:
    """What a .tflite file says about itself.

    `mean` and `std` are the normalization that the app has to apply to 0..255 pixels, `(x - mean) /
    std`: (0.0,) and (1.0,) in files from kapps, which normalize in the graph.

    `weights_sha256` is that of the weights that the file was made from, 64 hexadecimal digits: of
    the file `weights_name`, or, where that is "", of the weights in memory (see the function of
    this name). It lies in the file in the form of sha256sum, so that beside the weights
    `unzip -p model.tflite weights.sha256 | sha256sum --check` compares the two.
    """

    name: str
    labels: tuple[str, ...]
    description: str = ""
    version: str = ""
    author: str = ""
    licence: str = ""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    weights_sha256: str = ""
    weights_name: str = ""
    min_parser_version: str = _MIN_PARSER_VERSION


def pixels_to_input(
    pixels: np.ndarray,
    metadata: Metadata | None,
    dtype: np.typing.DTypeLike,
    quantization: tuple[float, int] = (0.0, 0),
) -> np.ndarray:
    """What a file's input takes for images, as Android and MediaPipe fill it.

    A uint8 input gets the bytes of the image, whatever its quantization: the file's scale and zero
    point say what these mean (MediaPipe's image_preprocessing_graph.cc). A float input gets
    `(pixels - mean) / std` of the metadata, and other integers the same, quantized.

    Args:
        pixels: images in 0..255, channels last, of any type.
        metadata: of the file; None if it has none, which stands for a mean of 0 and a std of 1.
        dtype: of the input.
        quantization: its (scale, zero point); a scale of 0 stands for an input of floats.

    Raises:
        InputError: mean or std are not one number, nor one a channel, or a std is 0.
    """
    dtype = np.dtype(dtype)
    if dtype == np.uint8:
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    value = pixels.astype("float32")
    if metadata is not None and (metadata.mean, metadata.std) != ((0.0,), (1.0,)):
        # A vector that a file leaves out, or empty, stands for its default.
        mean, std = (np.array(v or (d,)) for v, d in ((metadata.mean, 0.0), (metadata.std, 1.0)))
        if {mean.size, std.size} - {1, pixels.shape[-1]} or not std.all():
            raise InputError(
                f"its metadata states mean {metadata.mean} and std {metadata.std} for images of "
                f"{pixels.shape[-1]} channels: expected one number each, or one a channel, and no "
                "std of 0"
            )
        value = ((value - mean) / std).astype("float32")
    scale, zero_point = quantization
    if scale and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        value = np.clip(np.rint(value / scale) + zero_point, limits.min, limits.max)
    return value.astype(dtype)


def check_labels(labels: Sequence[str] | Mapping[str, int], classes: int) -> tuple[str, ...]:
    """The labels as a tuple, one a class, in the order of the model's outputs.

    Args:
        labels: in that order; or by label the index of its output, as Keras's `class_indices`.
        classes: how many outputs the model has.

    Raises:
        InputError: not one label a class, or a label that the one-a-line file cannot hold.
    """
    if isinstance(labels, str):
        raise InputError("labels: expected a list of strings, one a class, got a single string")
    if isinstance(labels, Set):
        raise InputError(
            "labels: a set has no order; expected a list of strings, in the order of the outputs"
        )
    if isinstance(labels, Mapping):
        labels = _by_index(labels)
    labels = tuple(labels)
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip() or len(label.splitlines()) != 1:
            raise InputError(f"labels: label {index} is {label!r}; expected one non-empty line")
    if len(labels) != classes:
        raise InputError(f"labels: {len(labels)} labels for a model of {classes} classes")
    return labels


def _by_index(labels: Mapping[str, int]) -> list[str]:
    indices = list(labels.values())
    if not all(map(is_whole, indices)) or sorted(indices) != list(range(len(indices))):
        raise InputError(
            "labels: expected a dict of the index of each label's output, from 0 on and without "
            f"gaps, got the values {', '.join(repr(i) for i in indices[:8])}"
        )
    return sorted(labels, key=lambda label: labels[label])


def weights_sha256(model: Any, path: str | os.PathLike[str] | None = None) -> tuple[str, str]:
    """The SHA-256 of a model's weights, 64 hexadecimal digits, and the name of their file.

    With the `path` of the file that they were loaded from it is that file's, as of sha256sum.
    Without one it is that of the weights in memory, and the name is "": for each variable, in the
    model's order, its number of dimensions and each dimension as 8-byte little-endian integers, and
    its values in little-endian order. Names do not count, nor does how a file lays them out:
    a model into which the same weights are loaded has the same sum.

    Raises:
        InputError: the file cannot be read, or its name is of several lines.
    """
    if path is not None:
        name = Path(path).name
        if len(name.splitlines()) != 1:
            raise InputError(f"weights: the file's name {name!r} is of several lines; rename it")
        try:
            return sha256(path), name
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
    digest = hashlib.sha256()
    for weight in model.weights:  # one at a time: all of them are a copy of the model
        value = weight.numpy()
        digest.update(struct.pack(f"<{value.ndim + 1}q", value.ndim, *value.shape))
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        digest.update(little.reshape(-1).view("uint8").data)
    return digest.hexdigest(), ""


def with_metadata(model: bytes, metadata: Metadata) -> bytes:
    """The image classifier `model`, a .tflite file's content, with metadata and label file in it.

    Raises:
        InputError: no .tflite file, or one that carries metadata already.
    """
    output = io.BytesIO()
    write_with_metadata(output, model, metadata)
    return output.getvalue()


def write_with_metadata(file: IO[bytes], model: Content, metadata: Metadata) -> None:
    """As `with_metadata`, into an empty file that is open for reading and writing.

    Nothing of the model is copied in memory, where it may be of hundreds of MiB.
    """
    root = _root(model, "the model")
    if _metadata_bytes(root) is not None:
        raise InputError("the model already carries metadata; add it to a freshly converted one")
    tensors = root.Subgraphs(0).Tensors
    _, height, width, channels = tensors(root.Subgraphs(0).Inputs(0)).ShapeAsNumpy().tolist()
    payload = _encode(metadata, height, width, channels)
    files = {LABEL_FILE: "".join(f"{label}\n" for label in metadata.labels)}
    if metadata.weights_sha256:
        files[WEIGHTS_FILE] = f"{metadata.weights_sha256}  {metadata.weights_name or '-'}\n"
    file.write(_head(root, payload))
    file.write(model)
    file.write(bytes(-len(model) % 16))
    _append_files(file, files)


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """What the .tflite file at `path` says about itself.

    The file is not trusted: nothing is extracted, and no label file of over 16 MiB is read.

    Raises:
        InputError: no such file, no .tflite file, no metadata in it, or malformed metadata.
    """
    metadata = find_metadata(path)
    if metadata is None:
        raise InputError(f"{path} carries no metadata; convert the model with kapps.tflite.convert")
    return metadata


def find_metadata(path: str | os.PathLike[str]) -> Metadata | None:
    """As `read_metadata`, and None for a .tflite file that carries no metadata.

    Raises:
        InputError: no such file, no .tflite file, or malformed metadata.
    """
    try:
        with open(path, "rb") as file:
            content = _mapped(file)
            payload = _metadata_bytes(_root(content, str(path)))
            return None if payload is None else _parsed(payload, file, path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _mapped(file: IO[bytes]) -> Any:
    """The content of a file of which, of hundreds of MiB, a few KiB are looked at."""
    size = os.fstat(file.fileno()).st_size
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


def _parsed(payload: bytes, file: IO[bytes], path: str | os.PathLike[str]) -> Metadata:
    if payload[4:8] != _IDENTIFIER:
        raise InputError(f"{path}: its metadata is not of the {_IDENTIFIER.decode()} format")
    try:
        metadata, label_file = _decode(payload)
        labels = tuple(_read_member(file, label_file).splitlines()) if label_file else ()
        weights_file = metadata.pop("weights_file")
        digest, name = _parse_sum(_read_member(file, weights_file)) if weights_file else ("", "")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # zipfile alone knows ten ways to fail on a damaged file
        raise InputError(f"{path}: malformed metadata ({error})") from error
    return Metadata(labels=labels, weights_sha256=digest, weights_name=name, **metadata)


# The model: a flatbuffer to which a buffer is added, and a zip behind it.


def _root(content: Any, where: str) -> Any:
    """The model's root table; `schema` is generated code without types."""
    if len(content) < 8 or content[4:8] != b"TFL3":
        raise InputError(f"{where} is no .tflite file")
    return schema.Model.GetRootAs(content, 0)


def _metadata_bytes(root: Any) -> bytes | None:
    try:
        for index in range(root.MetadataLength()):
            entry = root.Metadata(index)
            if entry.Name() == BUFFER_NAME.encode():
                return root.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    except Exception as error:  # the generated code checks nothing
        raise InputError(f"malformed .tflite file ({error})") from error
    return None


def _head(root: Any, payload: bytes) -> bytes:
    """What goes in front of a model to give it one more buffer and metadata entry.

    The old file stays as it is, as the tail of the new one. A flatbuffer is written back to front
    and its references are relative and point forward, so a new root in front can refer to
    everything in the old file. Hence no weight is copied, and as the head is a multiple of 16 bytes
    long, all weights stay aligned, as XNNPACK needs them.
    """
    builder = flatbuffers.Builder(len(payload) + 65536)

    def old(position: int) -> int:
        return -position  # the builder counts from its end, where the old file begins

    name = builder.CreateString(BUFFER_NAME)
    data = _aligned_bytes(builder, payload)
    schema.BufferStart(builder)
    schema.BufferAddData(builder, data)
    buffer = schema.BufferEnd(builder)
    schema.MetadataStart(builder)
    schema.MetadataAddName(builder, name)
    schema.MetadataAddBuffer(builder, root.BuffersLength())
    entry = schema.MetadataEnd(builder)

    buffers = [old(root.Buffers(i)._tab.Pos) for i in range(root.BuffersLength())]
    entries = [old(root.Metadata(i)._tab.Pos) for i in range(root.MetadataLength())]
    new_buffers = _offsets(builder, [*buffers, buffer])
    new_entries = _offsets(builder, [*entries, entry])

    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, root.Version())
    schema.ModelAddBuffers(builder, new_buffers)
    schema.ModelAddMetadata(builder, new_entries)
    for slot, add in (
        (4 + 2 * 1, schema.ModelAddOperatorCodes),
        (4 + 2 * 2, schema.ModelAddSubgraphs),
        (4 + 2 * 3, schema.ModelAddDescription),
        (4 + 2 * 5, schema.ModelAddMetadataBuffer),
        (4 + 2 * 7, schema.ModelAddSignatureDefs),
    ):
        field = root._tab.Offset(slot)
        if field:
            add(builder, old(root._tab.Indirect(root._tab.Pos + field)))
    builder.Finish(schema.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _aligned_bytes(builder: flatbuffers.Builder, data: bytes) -> int:
    builder.StartVector(1, len(data), 16)
    builder.head = builder.head - len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    return builder.EndVector()


def _append_files(file: IO[bytes], files: dict[str, str]) -> None:
    # The file starts with the model, so offsets in the archive count from the model's first byte;
    # stored, not deflated, because the readers map it. The date is fixed: same input, same bytes.
    with zipfile.ZipFile(file, "a", compression=zipfile.ZIP_STORED) as archive:
        for name, text in files.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, text)


def _read_member(file: IO[bytes], name: str) -> str:
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(name)
        if info.file_size > _MAX_LABEL_BYTES:
            raise InputError(f"its file {name!r} has {info.file_size} bytes: refused")
        with archive.open(info) as member:
            return member.read(_MAX_LABEL_BYTES).decode("utf-8")


def _parse_sum(text: str) -> tuple[str, str]:
    """The digest and the file's name of a line of sha256sum."""
    match = re.fullmatch(r"([0-9a-f]{64})  (.+)\n?", text)
    if match is None:
        raise ValueError(f"{WEIGHTS_FILE} is not of sha256sum's form")
    return match[1], "" if match[2] == "-" else match[2]


# The metadata flatbuffer: one helper a kind of value, slots numbered as in the schema.


def _encode(metadata: Metadata, height: int, width: int, channels: int) -> bytes:
    b = flatbuffers.Builder(1024)
    size = _table(b, {0: ("uint32", width), 1: ("uint32", height)})
    color = _RGB if channels == 3 else _GRAYSCALE if channels == 1 else 0
    image = _table(b, {0: ("int8", color), 1: ("offset", size)})
    scaling = _table(
        b, {0: ("offset", _floats(b, metadata.mean)), 1: ("offset", _floats(b, metadata.std))}
    )
    unit = _table(b, {0: ("uint8", _NORMALIZATION_OPTIONS), 1: ("offset", scaling)})
    pixels = {
        0: ("offset", b.CreateString("image")),
        1: ("offset", b.CreateString(f"Image of {height} x {width} pixels, values 0 to 255.")),
        3: ("offset", _table(b, {0: ("uint8", _IMAGE_PROPERTIES), 1: ("offset", image)})),
        4: ("offset", _offsets(b, [unit])),
        5: ("offset", _range(b, 0.0, 255.0)),
    }
    file = _table(
        b,
        {
            0: ("offset", b.CreateString(LABEL_FILE)),
            1: ("offset", b.CreateString("The name of each class, one a line.")),
            2: ("int8", _TENSOR_AXIS_LABELS),
        },
    )
    scores = {
        0: ("offset", b.CreateString("probability")),
        1: ("offset", b.CreateString("Probability of each class, 0 to 1.")),
        3: (
            "offset",
            _table(b, {0: ("uint8", _FEATURE_PROPERTIES), 1: ("offset", _table(b, {}))}),
        ),
        5: ("offset", _range(b, 0.0, 1.0)),
        6: ("offset", _offsets(b, [file])),
    }
    graph = {
        2: ("offset", _offsets(b, [_table(b, pixels)])),
        3: ("offset", _offsets(b, [_table(b, scores)])),
    }
    if metadata.weights_sha256:
        weights = {
            0: ("offset", b.CreateString(WEIGHTS_FILE)),
            1: ("offset", b.CreateString("SHA-256 of the weights that the model was made from.")),
            2: ("int8", _DESCRIPTIONS),
        }
        weights_files = {6: ("offset", _offsets(b, [_table(b, weights)]))}
    else:
        weights_files = {}
    root = {
        0: ("offset", b.CreateString(metadata.name)),
        1: ("offset", b.CreateString(metadata.description)),
        2: ("offset", b.CreateString(metadata.version)),
        3: ("offset", _offsets(b, [_table(b, graph)])),
        4: ("offset", b.CreateString(metadata.author)),
        5: ("offset", b.CreateString(metadata.licence)),
        **weights_files,
        7: ("offset", b.CreateString(metadata.min_parser_version)),
    }
    b.Finish(_table(b, root), file_identifier=_IDENTIFIER)
    return bytes(b.Output())


def _table(b: flatbuffers.Builder, fields: dict[int, tuple[str, int]]) -> int:
    """A table from slot -> (kind, value); children have been written before it."""
    b.StartObject(max(fields, default=-1) + 1)
    for slot, (kind, value) in fields.items():
        if kind == "offset":
            b.PrependUOffsetTRelativeSlot(slot, value, 0)
        elif kind == "int8":
            b.PrependInt8Slot(slot, value, 0)
        elif kind == "uint8":
            b.PrependUint8Slot(slot, value, 0)
        else:
            b.PrependUint32Slot(slot, value, 0)
    return int(b.EndObject())


def _offsets(b: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


def _floats(b: flatbuffers.Builder, values: Sequence[float]) -> int:
    b.StartVector(4, len(values), 4)
    for value in reversed(values):
        b.PrependFloat32(value)
    return int(b.EndVector())


def _range(b: flatbuffers.Builder, low: float, high: float) -> int:
    return _table(b, {0: ("offset", _floats(b, [high])), 1: ("offset", _floats(b, [low]))})


# Reading it back: `flatbuffers.Table` checks nothing, callers catch what a bad offset raises.


def _decode(payload: bytes) -> tuple[dict[str, Any], str]:
    """The fields of `Metadata` but the labels and the weights' sum, which are files of their own;
    "weights_file" and the label file's name ("" for none)."""
    root = flatbuffers.Table(payload, struct.unpack_from("<I", payload)[0])
    fields: dict[str, Any] = {
        "name": _text(root, 0),
        "description": _text(root, 1),
        "version": _text(root, 2),
        "author": _text(root, 4),
        "licence": _text(root, 5),
        "min_parser_version": _text(root, 7),
        "weights_file": next(
            (WEIGHTS_FILE for file in _tables(root, 6) if _text(file, 0) == WEIGHTS_FILE), ""
        ),
    }
    label_file = ""
    for graph in _tables(root, 3)[:1]:
        for tensor in _tables(graph, 2)[:1]:
            for unit in _tables(tensor, 4):
                if _byte(unit, 0) == _NORMALIZATION_OPTIONS:
                    options = _child(unit, 1)
                    fields |= {"mean": _numbers(options, 0), "std": _numbers(options, 1)}
        for tensor in _tables(graph, 3)[:1]:
            for file in _tables(tensor, 6):
                if _byte(file, 2) == _TENSOR_AXIS_LABELS and not label_file:
                    label_file = _text(file, 0)
    return fields, label_file


def _at(table: flatbuffers.Table, slot: int) -> int:
    """The absolute position of a field, 0 if the table lacks it."""
    offset = table.Offset(4 + 2 * slot)
    return int(table.Pos + offset) if offset else 0


def _text(table: flatbuffers.Table, slot: int) -> str:
    at = _at(table, slot)
    return bytes(table.String(at)).decode("utf-8") if at else ""


def _byte(table: flatbuffers.Table, slot: int) -> int:
    at = _at(table, slot)
    return int(table.Get(number_types.Uint8Flags, at)) if at else 0


def _child(table: flatbuffers.Table, slot: int) -> flatbuffers.Table:
    at = _at(table, slot)
    if not at:
        raise ValueError(f"table without its field {slot}")
    return flatbuffers.Table(table.Bytes, table.Indirect(at))


def _tables(table: flatbuffers.Table, slot: int) -> list[flatbuffers.Table]:
    offset = table.Offset(4 + 2 * slot)
    if not offset:
        return []
    start, count = table.Vector(offset), table.VectorLen(offset)
    if start + 4 * count > len(table.Bytes):
        raise ValueError(f"vector of {count} entries past the end")
    return [
        flatbuffers.Table(table.Bytes, table.Indirect(start + 4 * index)) for index in range(count)
    ]


def _numbers(table: flatbuffers.Table, slot: int) -> tuple[float, ...]:
    offset = table.Offset(4 + 2 * slot)
    if not offset:
        return ()
    start, count = table.Vector(offset), table.VectorLen(offset)
    numbers = struct.unpack_from(f"<{count}f", table.Bytes, start)
    if not np.isfinite(numbers).all():  # JSON has no such number
        raise InputError("its mean or std is no finite number")
    return numbers
