"""Whether all workers of a run are there and go on; a process that waits in vain for one ends.

Each worker writes worker-<index>.json into a folder that they share, about once a second, and reads
those of the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType

from kapps._errors import InputError, printable
from kapps.tools.json_files import read_json, to_json
from kapps.tools.roster import ENDED, FAILED, Report, Roster

WORKER_FAILED = 75
"""Exit code of a process that ended because of another worker, or because nothing went on.
EX_TEMPFAIL of sysexits.h: the same command, started again on all of them, may well succeed."""

_STILL = 5  # intervals without news after which a worker is a suspect
_MOST_AT_ONCE = 16  # files to read in an interval; with more workers it is longer
_MOST_FOREIGN = 3  # one may come from the end of an earlier start


class Watch:
    """Reports on this worker, and watches the others, from a thread: a context manager.

    The process ends with exit code `WORKER_FAILED`, and with one line on stderr that says which
    worker is to blame, when

    - not all workers are there within `start_timeout`,
    - nothing goes on for `step_timeout` after that, on any worker: no new step and no new phase,
    - a worker was started again without this one, or another process is the same worker.

    TensorFlow makes its strategy in a call that waits for the other workers without an end, and
    meanwhile lets no thread of Python run: `wait` comes before that. Should such a call outlast the
    timeouts nevertheless, the process ends with exit code 1 and the traceback of every thread.

    Args:
        folder: a folder that all workers share, such as one in the run's.
        index: this worker.
        names: of all workers, as the user knows them: addresses.
        start_timeout: seconds.
        step_timeout: seconds, longer than any step takes; a first one compiles. None: endless.
        on_end: ends the process with the code that it is given.
        interval: seconds between reports; with more than 16 workers, longer in proportion.
    """

    def __init__(
        self,
        folder: Path,
        index: int,
        names: Sequence[str],
        *,
        start_timeout: float,
        step_timeout: float | None,
        on_end: Callable[[int], object] = os._exit,
        interval: float = 1.0,
    ) -> None:
        self._files = [folder / f"worker-{i}.json" for i in range(len(names))]
        self._index, self._start_timeout, self._step_timeout = index, start_timeout, step_timeout
        self._on_end = on_end
        self._interval = interval * max(1.0, len(names) / _MOST_AT_ONCE)
        self._roster = Roster(names, index, _STILL * self._interval)
        self._process, self._host = secrets.token_hex(8), socket.gethostname()
        self._phase, self._step, self._beat, self._foreign = "start", 0, 0, 0
        self._now = self._entered = 0.0
        self._told = False
        self._complete, self._stop, self._lock = Event(), Event(), Lock()
        self._thread = Thread(target=self._run, name="watch", daemon=True)

    def phase(self, name: str) -> None:
        """Says what this worker does now, such as "train" or "save"; a new phase is progress."""
        self._phase = name

    def beat(self, step: int) -> None:
        """Says how many steps this worker has done, of any kind: a number that grows."""
        self._step = step

    def wait(self) -> None:
        """Returns when all workers are there, which takes an interval or two after the last."""
        self._complete.wait()

    def suspects(self) -> list[str]:
        """A sentence for each worker that is missing, dead, frozen, or behind the others."""
        with self._lock:
            return self._roster.suspects(self._now)

    def __enter__(self) -> Watch:
        """Raises InputError where the folder cannot be written."""
        folder = self._files[self._index].parent
        self._now = self._entered = time.monotonic()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f".{self._files[self._index].stem}-*.json"):
                leftover.unlink(missing_ok=True)  # of a process that was killed while it wrote
            self._look(first=True)
            self._write()
        except OSError as error:
            raise InputError(
                f"cannot write {folder}: {error.strerror}; choose a folder that you may write"
            ) from error
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tells the others that this worker has ended, or failed; its file stays."""
        self._stop.set()
        self._thread.join()
        self._phase = FAILED if isinstance(error, Exception) else ENDED
        with contextlib.suppress(OSError):
            self._write()

    # What follows is the thread's.

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    why = self._tick()
                    complete = self._roster.is_complete(self._now)
                if why is not None:
                    _tell(f"{why}; exit code {WORKER_FAILED}")
                    self._on_end(WORKER_FAILED)
                    return
                self._arm(self._step_timeout if complete else self._start_timeout)
                if complete:
                    self._complete.set()  # not before: who waits may let this thread run no more
                # A start is soon complete where all are there.
                if self._stop.wait(self._interval if complete else self._interval / 4):
                    return
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _arm(self, limit: float | None) -> None:
        """Has a thread in C end the process, unless this one comes here again in time."""
        if limit is None:
            faulthandler.cancel_dump_traceback_later()
        else:  # later than this thread, which says more, would do it
            faulthandler.dump_traceback_later(limit + 10 * self._interval, exit=True, file=2)

    def _tick(self) -> str | None:
        """A look at the others and a report; why this process has to end, if it has to."""
        self._now = time.monotonic()
        self._look()
        try:
            self._write()
        except OSError as error:  # a full disk, say, which may have room again
            if not self._told:
                _tell(f"cannot write {self._files[self._index]}: {error.strerror}; going on")
            self._told = True
        if self._foreign >= _MOST_FOREIGN:
            return (
                f"another process is worker {self._index} as well, in "
                f"{self._files[self._index].parent}; end it, or give each an index of its own"
            )
        if self._roster.is_complete(self._now):
            return self._halted()
        return self._missing() if self._now - self._entered > self._start_timeout else None

    def _missing(self) -> str:
        suspects = self._roster.suspects(self._now)
        if suspects:
            remedy = "start the same command there, and look at what it says"
        else:
            suspects = ["they do not see one another alike: some are left from an earlier start"]
            remedy = "end all workers, and start them again"
        return (
            f"the workers did not come together within {self._start_timeout:g} s: "
            f"{'; '.join(suspects)}; {remedy}, or raise --start_timeout"
        )

    def _halted(self) -> str | None:
        replaced = self._roster.replaced()
        if replaced:
            return f"{replaced}; start this one again as well"
        idle = self._roster.idle(self._now)
        if self._step_timeout is None or idle <= self._step_timeout:
            return None
        suspects = self._roster.suspects(self._now) or [self._roster.places()]
        return (
            f"no worker has got on for {idle:.0f} s: {'; '.join(suspects)}; start all workers "
            "again, which go on from the last checkpoint, or raise --step_timeout if steps take "
            "so long"
        )

    def _look(self, *, first: bool = False) -> None:
        for index in range(len(self._files)):
            report = self._read(index)
            if index != self._index:
                self._roster.note(index, report, self._now, first=first)
            elif not first:
                foreign = report is not None and report.process != self._process
                self._foreign = self._foreign + 1 if foreign else 0

    def _read(self, index: int) -> Report | None:
        """None as well where it cannot be read now."""
        try:
            return Report.of(read_json(self._files[index], "") or {})
        except (InputError, KeyError, TypeError, ValueError):
            return None

    def _write(self) -> None:
        self._beat += 1
        report = Report(
            process=self._process,
            pid=os.getpid(),
            host=self._host,
            beat=self._beat,
            phase=self._phase,
            step=self._step,
            sees=tuple(self._roster.processes()),
        )
        self._roster.note(self._index, report, self._now)
        # Not `atomic_write`: it flushes to the disk, and sets the umask of all threads.
        file = self._files[self._index]
        temporary = file.with_name(f".{file.stem}-{self._process}.json")
        temporary.write_text(to_json(dataclasses.asdict(report)), encoding="utf-8")
        os.replace(temporary, file)


def _tell(message: str) -> None:
    """Past Python's own stream, whose lock the main thread may hold for good."""
    os.write(2, f"kapps: {printable(message)}\n".encode(errors="backslashreplace"))
