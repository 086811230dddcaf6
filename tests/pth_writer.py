"""Writes .pth files without PyTorch: good ones, and any other that a test wants.

With the instructions of the pickle format,
https://github.com/python/cpython/blob/main/Lib/pickletools.py, one after the other.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

import numpy as np


def pickled(instructions: bytes) -> bytes:
    return b"\x80\x02" + instructions + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<i", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def tuple_of(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def storage(kind: str = "torch\nFloatStorage", key: str = "0", count: int = 6, **view) -> bytes:
    words = [text("storage"), b"c" + kind.encode() + b"\n", text(key), text("cpu"), number(count)]
    return tuple_of(*words, *view.values()) + b"Q"


def tensor(where: bytes, offset=0, shape=(2, 3), strides=(3, 1)) -> bytes:
    sizes = [tuple_of(*map(number, sizes)) for sizes in (shape, strides)]
    arguments = tuple_of(where, number(offset), *sizes, b"\x89", b"N")
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def state(value: bytes) -> bytes:
    """A dictionary of one tensor."""
    return pickled(b"}" + text("w") + value + b"s")


def zipped(
    data: bytes,
    *storages: bytes,
    byteorder: bytes = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("net/data.pkl", data)
        archive.writestr("net/byteorder", byteorder)
        for key, elements in enumerate(storages or (bytes(24),)):
            archive.writestr(f"net/data/{key}", elements)
    return file.getvalue()


def legacy(data: bytes, *storages: bytes, little: bool = True, count: int | None = None) -> bytes:
    """`count` in place of the number of float32 elements."""
    storages = storages or (bytes(24),)
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": little})
    content = b"".join(pickle.dumps(value, 2) for value in head) + data
    content += pickle.dumps([str(key) for key in range(len(storages))], 2)
    for elements in storages:
        content += struct.pack("<q", len(elements) // 4 if count is None else count) + elements
    return content


WRAPPERS = {"zip": zipped, "legacy": legacy}
FORMS = tuple(WRAPPERS)


def write_pth(tensors: dict[str, np.ndarray], form: str) -> bytes:
    """The file of a dictionary of float32 tensors."""
    items = b""
    for key, (name, value) in enumerate(tensors.items()):
        strides = [stride // value.itemsize for stride in value.strides]
        where = storage(key=str(key), count=value.size)
        items += text(name) + tensor(where, 0, value.shape, strides) + b"s"
    return WRAPPERS[form](pickled(b"}" + items), *(value.tobytes() for value in tensors.values()))
