"""The progress of all programs, on stderr: a bar in a terminal, else lines."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

_REFRESH_SECONDS = 0.5  # of the bar
_LINE_SECONDS = 30
_LINE = "{desc}{n_fmt} of {total_fmt} {unit}, {remaining} left, {rate_fmt}{postfix}"


def progress_bar(
    total: int, unit: str, description: str = "", *, initial: int = 0, show: bool = True
) -> tqdm[Any]:
    """A bar with rate and estimated time left.

    Where stderr is no terminal (a log file, a pipe) it is a line soon after the start, one every
    half minute and one at the end, each of them whole.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=f"{description}: " if description else "",
        unit=unit,
        initial=initial,
        disable=not show,
        mininterval=_REFRESH_SECONDS if terminal else _LINE_SECONDS,
        dynamic_ncols=terminal,
        bar_format=None if terminal else _LINE,
        file=None if terminal else _Lines(sys.stderr, f"?{unit}/s"),
    )


class _Lines:
    """What tqdm writes to redraw its bar, as lines.

    Args:
        file: gets the lines.
        idle: what a text holds while there is no rate yet: it is no progress.
    """

    def __init__(self, file: TextIO, idle: str) -> None:
        self._file, self._idle = file, idle
        self._waiting, self._due = "", -float("inf")

    def write(self, text: str) -> None:
        """Takes a bar that begins with a carriage return, or the line feed behind the last one."""
        bar = text.strip()
        if bar:
            self._waiting = "" if self._idle in bar else bar
        if self._waiting and (text == "\n" or time.monotonic() >= self._due):
            self._file.write(f"{self._waiting}\n")
            self._file.flush()
            self._waiting, self._due = "", time.monotonic() + _LINE_SECONDS

    def flush(self) -> None:
        """Lines are flushed when they are written."""
