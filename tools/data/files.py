"""What is looked at in each image file when a data set is loaded."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from typing import TypeVar

from kapps.tools.data.images import BadImage

_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|BM|GIF8[79]a|RIFF....WEBP|II[*+]\0|MM\0[*+]", re.DOTALL
)
_THREADS = 16  # of which most wait for the disk
_WHOLE, _PART = 1 << 16, 1 << 14  # bytes: of what is longer, three parts are looked at

_T = TypeVar("_T")


def fault(file: str) -> BadImage | None:
    """What is wrong with the start of a file, before hours of training have gone by."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(12)
    except OSError as error:
        return BadImage(f"{file}: cannot be read: {error.strerror}", file)
    if not _SIGNATURE.match(start):
        return BadImage(f"{file} is no image, though its name says so; replace or remove it", file)
    return None


def digest(file: str) -> bytes:
    """SHA-256 of a file's size and of its content, or of three parts of it if it is long.

    Other files with the same are of no harm: they come into the same split.
    """
    try:
        with open(file, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            digest = hashlib.sha256(size.to_bytes(8, "little"))
            if size <= _WHOLE:
                digest.update(opened.read())
            else:
                for start in (0, (size - _PART) // 2, size - _PART):
                    opened.seek(start)
                    digest.update(opened.read(_PART))
    except OSError as error:
        raise BadImage(f"{file}: cannot be read: {error.strerror}", file) from error
    return digest.digest()


def in_threads(function: Callable[[str], _T], files: Sequence[str]) -> list[_T]:
    with ThreadPool(_THREADS) as pool:
        return pool.map(function, files, chunksize=64)
