"""How long each operation of a file takes: what a profile is, where it is from, and its table.

A profile is made in runs of its own: a profiler takes time of what it looks at, and no figure of a
benchmark is from such runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kapps._errors import one_line
from kapps.tflite import child, tables
from kapps.tflite.results import Line, Milliseconds, Name, Share

RUNS, SECONDS = 20, 1.0  # of a profile, at least
_MOST_LINES = 12  # of a table; --output has all
_MOST = 20_000  # operations


@dataclass(frozen=True)
class Profiled:
    """One operation of a profile.

    Attributes:
        operation: its kind: as the schema has it, or a delegate's own name for what it runs.
        name: which of its kind it is, as the profiler tells it.
        mean_ms: its time in one run of the file, which profilers note in whole microseconds. On
            this machine, and on boards without the tool, of the faster half of the runs.
        share: of the sum of all times.
    """

    operation: Name
    name: Line
    mean_ms: Milliseconds
    share: Share


def of_times(times: Sequence[tuple[str, str, float]]) -> tuple[Profiled, ...]:
    """A profile, worst first, of (operation, name, ms in one run)."""
    total = sum(ms for *_, ms in times)
    found = [
        Profiled(
            one_line(operation)[:200] or "?",
            one_line(name)[:200],
            ms,
            min(1.0, ms / total) if total else 0.0,
        )
        for operation, name, ms in times
    ]
    return tuple(sorted(found, key=lambda each: -each.mean_ms))


def on_host(
    paths: Sequence[str | os.PathLike[str]],
    *,
    threads: int,
    input_shape: Sequence[int] | None,
    time_limit: float,
) -> list[tuple[Profiled, ...]]:
    """A profile of each file on this machine, by LiteRT's own profiler.

    Raises:
        InputError: a file does not run there; the message names it.
    """
    requests: list[dict[str, Any]] = [
        {
            "path": os.path.abspath(path),
            "threads": threads,
            "input_shape": None if input_shape is None else list(input_shape),
            "runs": RUNS,
            "seconds": SECONDS,
        }
        for path in paths
    ]
    answers = child.run_each("measurement.profile_task", requests, time_limit=time_limit)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return [of_runs(answer) for answer in answers]


def of_runs(result: Any) -> tuple[Profiled, ...]:
    """What `profile_on_board` found, if it can be true.

    Raises:
        ValueError, KeyError, TypeError: it cannot.
    """
    runs, operations = result["runs"], result["operations"]
    if type(runs) is not int or runs < 1 or not isinstance(operations, list):
        raise ValueError("no profile")
    if len(operations) > _MOST:
        raise ValueError(f"over {_MOST} operations")
    times = []
    for operation, number, piece, total in operations:
        if not isinstance(operation, str) or type(number) is not int or type(total) is not int:
            raise TypeError("no operation of a profile")
        if not 0 <= total < 1 << 53:
            raise ValueError(f"{total} is no time")
        where = f"operation {number}" if piece is None else f"piece {int(piece)}, {number}"
        times.append((operation, where, total / runs / 1e3))
    return of_times(times)


_ROW = re.compile(
    r"^[ \t]*(\S.*?)[ \t]+(?:\d+\.\d+[ \t]+){1,2}(\d+\.\d+)[ \t]+\d+\.\d+%[ \t]+\d+\.\d+%"
    r"[ \t]+-?\d+\.\d+[ \t]+(\d+)[ \t]+(\S.*)$"
)
_REGULAR = "Operator-wise Profiling Info for Regular Benchmark Runs:"
_WITHIN = "Delegate internal:"
_PIECE = re.compile(r"(Delegate/)?(TfLite\w*Delegate\w*|YNNPackDelegate|LITERT_\w+|DELEGATE)")


def of_tool(text: str) -> tuple[Profiled, ...]:
    """The profile in the text of `benchmark_model`; empty if there is none.

    Its tables are of StatsCalculator in tensorflow/core/util/stats_calculator.cc and of
    litert/runtime/profiler_summarizer.cc; LiteRT's tool counts the calls of all runs, and
    TensorFlow Lite's those of one. What a delegate tells of itself comes in place of the delegate.
    """
    _, _, after = text.rpartition(_REGULAR)
    primary, _, within = after.partition(_WITHIN)
    rows, inside = _rows(primary), _rows(within)
    if inside:
        rows = [row for row in rows if not _PIECE.fullmatch(row[0])] + inside
    if not rows:
        return ()
    runs = min(calls for *_, calls in rows)
    return of_times([(op, name, ms * calls / runs) for op, name, ms, calls in rows])


def _rows(text: str) -> list[tuple[str, str, float, int]]:
    """(operation, name, ms of a call, calls) of the first table, which is in the order of runs."""
    lines = iter(text.splitlines())
    found: list[tuple[str, str, float, int]] = []
    for line in lines:
        if re.search("= Run Order =", line):
            break
    for line in lines:
        row = _ROW.match(line)
        if row and int(row[3]) and float(row[2]) < 1e9 and len(found) < _MOST:
            found.append((row[1], row[4], float(row[2]), int(row[3])))
        elif found:
            break
    return found


def table(profile: Sequence[Profiled]) -> str:
    """The slowest operations for a terminal."""
    shown = [
        (f"{each.mean_ms:.3f}", f"{100 * each.share:.1f}", each.operation, each.name)
        for each in profile[:_MOST_LINES]
    ]
    told = tables.aligned(("ms", "%", "operation", "which"), shown, right=(0, 1))
    if more := len(profile) - len(shown):
        rest = profile[_MOST_LINES:]
        told += f"\n... and {more} more, {sum(each.mean_ms for each in rest):.3f} ms together"
    return told
