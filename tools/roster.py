"""What a worker knows of all workers of its run, from their reports and by its own clock.

Clocks of different machines differ, and so do the times of files on a share: a worker counts as
alive if its report changed while this one looked on. What an earlier start has left behind never
changes, and so counts for nothing.

A start is complete when all workers list the same processes. From then on a worker that is another
process was started again, without those that still wait for its predecessor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

ENDED, FAILED = "ended", "failed"
"""The last phases."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a worker says of itself."""

    process: str
    """Random: a process id may come again, and each container counts its own."""
    pid: int
    host: str
    beat: int
    """Which report of this process it is."""
    phase: str
    step: int
    sees: tuple[str | None, ...]
    """The `process` of each worker, None for one that it does not know to be alive."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Report:
        """Raises KeyError, TypeError or ValueError where they are no report."""
        return cls(
            process=str(values["process"]),
            pid=int(values["pid"]),
            host=str(values["host"]),
            beat=int(values["beat"]),
            phase=str(values["phase"]),
            step=int(values["step"]),
            sees=tuple(values["sees"]),
        )


@dataclasses.dataclass
class _Seen:
    """One worker; times are seconds of this process's monotonic clock."""

    report: Report | None = None
    alive: bool = False
    """Whether the report has changed while this process looked on."""
    beaten: float = 0.0
    """When it last changed."""
    moved: float = 0.0
    """When phase or step last did."""


class Roster:
    """The workers of a run, as one of them sees them.

    Args:
        names: of all workers, as the user knows them: addresses.
        index: this worker.
        still: seconds without news after which a worker is a suspect.
    """

    def __init__(self, names: Sequence[str], index: int, still: float) -> None:
        self._names, self._index, self._still = tuple(names), index, still
        self._seen = [_Seen() for _ in names]
        self._complete_at: float | None = None
        self._agreed: list[str | None] = []

    def note(self, index: int, report: Report | None, now: float, *, first: bool = False) -> None:
        """Takes in a worker's report, which None leaves as it was.

        Args:
            index: the worker.
            report: what it says now.
            now: seconds, of any clock that only this process reads.
            first: nothing was looked at before: the report may be of any age.
        """
        seen = self._seen[index]
        before = seen.report
        if report is None or report == before:
            return
        seen.report = report
        if first:
            return
        seen.alive, seen.beaten = True, now
        if before is None or (before.phase, before.step) != (report.phase, report.step):
            seen.moved = now

    def processes(self) -> list[str | None]:
        """That of each worker, None for one that is not known to be alive."""
        return [s.report.process if s.alive and s.report else None for s in self._seen]

    def is_complete(self, now: float) -> bool:
        """Whether all are there and agree about it; once that was so, it stays so."""
        own = self.processes()
        agree = all(seen.report and list(seen.report.sees) == own for seen in self._seen)
        if self._complete_at is None and agree and None not in own:
            self._complete_at, self._agreed = now, own
        return self._complete_at is not None

    def replaced(self) -> str | None:
        """Of a complete start: which worker was started again without this one, in words."""
        for i, process in enumerate(self.processes() if self._agreed else ()):
            if process != self._agreed[i]:
                return f"{self._who(i)} was started again since this process began"
        return None

    def idle(self, now: float) -> float:
        """Seconds in which, after a complete start, no worker came to a new step or phase."""
        if self._complete_at is None:
            return 0.0
        return now - max(self._complete_at, *(seen.moved for seen in self._seen))

    def suspects(self, now: float) -> list[str]:
        """A sentence for each worker that is missing, dead, frozen, or behind the others."""
        return [text for i in range(len(self._names)) if (text := self._suspicion(i, now))]

    def places(self) -> str:
        """Where all are, in words: "workers 0, 2 at step 7 (train), worker 1 at step 7 (save)"."""
        groups: dict[str, list[str]] = {}
        for i, seen in enumerate(self._seen):
            if seen.report:
                place = f"at step {seen.report.step} ({seen.report.phase})"
                groups.setdefault(place, []).append(str(i))
        return ", ".join(
            f"worker{'s'[: len(group) - 1]} {', '.join(group)} {place}"
            for place, group in groups.items()
        )

    def _suspicion(self, index: int, now: float) -> str | None:
        seen, who = self._seen[index], self._who(index)
        report = seen.report
        if report is None or not seen.alive:
            return f"{who} has not come"
        if report.phase in (ENDED, FAILED):
            return f"{who} has {report.phase}, at step {report.step}"
        silent, stands = now - seen.beaten, now - seen.moved
        if silent > self._still:
            return (
                f"{who} has not reported for {silent:.0f} s: it is dead, frozen, or cut off from "
                "the run's folder"
            )
        ahead = max(other.report.step for other in self._seen if other.report and other.alive)
        if report.step < ahead and stands > self._still:
            return (
                f"{who} has been at step {report.step} ({report.phase}) for {stands:.0f} s, while "
                f"others are at step {ahead}"
            )
        return None

    def _who(self, index: int) -> str:
        seen, place = self._seen[index], self._names[index]
        if seen.report and seen.alive:
            place += f", process {seen.report.pid} on {seen.report.host}"
        return f"worker {index} of {len(self._names)} ({place})"
