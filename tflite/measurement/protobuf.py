"""Protobuf messages without their classes: those of TensorFlow and of LiteRT do not go together.

Both packages register the messages of the benchmark tool under the same names, and who comes second
fails. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

Value = bytes | float | int


def fields_of(message: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a message, in order: varints and floats, and bytes for what is longer.

    Raises:
        ValueError: it is no message.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("an endless varint")

    try:
        while at < len(message):
            key = varint()
            match key & 7:
                case 0:
                    yield key >> 3, signed(varint())
                case 1:
                    yield key >> 3, struct.unpack_from("<d", message, at)[0]
                    at += 8
                case 2:
                    size = varint()
                    if at + size > len(message):
                        raise ValueError("a field beyond the end")
                    yield key >> 3, message[at : at + size]
                    at += size
                case 5:
                    yield key >> 3, struct.unpack_from("<f", message, at)[0]
                    at += 4
                case kind:
                    raise ValueError(f"an unknown wire type, {kind}")
    except (IndexError, struct.error) as error:
        raise ValueError("a field beyond the end") from error


def signed(value: int) -> int:
    """A varint as the two's complement that it is of a negative number."""
    return value - (1 << 64) if value >> 63 else value
