"""Files that are either wholly there or not at all, and what is in them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import string
import tempfile
from collections.abc import Callable, Iterator
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
    temporary = target.with_name(f".{target.stem}-{unique()}{suffix}")
    with _in_the_end(temporary.unlink):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch(exist_ok=False)
        except OSError as error:
            raise InputError(
                f"cannot write {target}: {error.strerror}; choose a folder that you may write"
            ) from error
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise InputError(
                f"cannot write {target}: {error.strerror}; free some space, or choose another disk"
            ) from error


@contextlib.contextmanager
def temporary_folder(
    parent: str | os.PathLike[str] | None = None, *, prefix: str = "kapps-"
) -> Iterator[Path]:
    """Yields a new folder, in `parent` or where temporary files go, and removes it in the end."""
    folder = Path(parent or tempfile.gettempdir(), f"{prefix}{unique()}")
    with _in_the_end(lambda: shutil.rmtree(folder, ignore_errors=True)):
        folder.mkdir(0o700)
        yield folder


@contextlib.contextmanager
def _in_the_end(remove: Callable[[], object]) -> Iterator[None]:
    """Calls it after the block, and again, should a signal end it or come right before.

    What cannot be removed stays: it was not there, or the block's own error tells of the trouble.
    """
    try:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                remove()
    finally:
        with contextlib.suppress(OSError):
            remove()


def unique() -> str:
    """Eight characters for a name that nobody else has, like those of tempfile.

    Which makes the file or folder before its caller has the name: a signal that comes between the
    two leaves it behind.
    """
    return "".join(secrets.choice(f"{string.ascii_lowercase}{string.digits}_") for _ in range(8))


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
