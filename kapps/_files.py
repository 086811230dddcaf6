"""Files that are either wholly there or not at all, and what is in them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kapps._errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and moves it there once the block has succeeded.

    A link stays, and what it leads to is replaced. The temporary file keeps the suffix of `path`
    (writers choose their format by it). It is flushed to the disk before the move, so that a crash
    or a full disk leaves either the old file or the new one. On failure the temporary file is
    removed and `path` stays as it was.

    Raises:
        InputError: `path` is no regular file, the folder cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file in it")
    if target.exists() and not target.is_file():  # /dev/null, a pipe: it would be replaced
        raise InputError(f"cannot write {path}: it is no regular file; name another one")
    suffix = "".join(target.suffixes[-2:])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=suffix, dir=target.parent)
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror}; choose a folder that you may write"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes it 0600
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise InputError(
                f"cannot write {target}: {error.strerror}; free some space, or choose another disk"
            ) from error
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, as UTF-8, with `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy(file: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Copies a file's content to `path`, with `atomic_write`."""
    with atomic_write(path) as temporary:
        shutil.copyfile(file, temporary)


def sha256(file: str | os.PathLike[str]) -> str:
    """The digest of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
