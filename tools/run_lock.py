"""One process at a time writes into a run's folder."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from types import TracebackType

from kapps._errors import InputError, one_line
from kapps.tools.json_files import read_json, to_json

_WEIGHTS = ("best.safetensors", "last.safetensors", "weights.safetensors")
_FILES = ("config.json", "head.json", "result.json", *_WEIGHTS, *(f"{w}.sha256" for w in _WEIGHTS))
_RANDOM = "[a-z0-9_]" * 8  # of kapps._files.unique


class RunLock:
    """Keeps other processes out of a run's folder: a context manager.

    What a process that was killed was just writing there is removed.

    The kernel holds it, on the file `lock`, and lets it go when the process ends in whatever way.
    The file says who holds it. It stays: were it removed, one process could hold the old file while
    another one makes a new one.

    Over NFS, Linux asks the server, and it holds between machines (but for mounts with `nolock` or
    `local_lock`); the server lets go of a machine that crashed after some 90 s. Shares that know no
    locks give a line on stderr, and none.

    Args:
        folder: the run's.
        patience: seconds to wait for a process on another machine to end, or its machine to be
            given up. One on this machine is not waited for.
    """

    def __init__(self, folder: Path, *, patience: float = 120.0) -> None:
        self._path, self._patience = folder / "lock", patience
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Raises InputError where another process holds it, or the folder cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(
                f"cannot write {self._path}: {error.strerror}; choose a folder that you may write"
            ) from error
        self._descriptor = descriptor
        try:
            self._lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._say(descriptor, to_json(_me()))
        self._remove_leftovers()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Lets go of it."""
        assert self._descriptor is not None
        self._say(self._descriptor, "")
        os.close(self._descriptor)

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + self._patience
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = self._holder()
            except OSError as error:
                print(
                    f"{self._path} cannot be locked ({error.strerror}): see to it yourself that no "
                    "other process trains there",
                    file=sys.stderr,
                )
                return
            who = (
                f"{self._path.parent} is being trained by process {holder.get('pid', '?')} on "
                f"{holder.get('host', '?')} since {holder.get('since', '?')}"
            )
            if holder.get("host") == socket.gethostname() or time.monotonic() >= deadline:
                raise InputError(f"{one_line(who)}; end that one, or choose another --workdir")
            if not told:
                print(f"{one_line(who)}; waiting for its end", file=sys.stderr)
            told = True
            time.sleep(min(1.0, self._patience / 10))

    def _remove_leftovers(self) -> None:
        """The temporary files of `kapps._files.atomic_write`.

        Only those of a run's own files: other programs may be writing theirs into the folder.
        """
        names = [Path(name) for name in _FILES]
        patterns = [f".{name.stem}-{_RANDOM}{''.join(name.suffixes)}" for name in names]
        for pattern in (*patterns, f"features/.*-{_RANDOM}*.npy"):
            for leftover in self._path.parent.glob(pattern):
                with contextlib.suppress(OSError):
                    leftover.unlink()

    def _holder(self) -> dict[str, object]:
        """Empty in the moment in which it has the lock, and has not written yet."""
        with contextlib.suppress(InputError):
            return read_json(self._path, "") or {}
        return {}

    def _say(self, descriptor: int, text: str) -> None:
        """For people to read: a full disk is no reason to stop."""
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)


def _me() -> dict[str, object]:
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
