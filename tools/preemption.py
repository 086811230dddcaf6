"""Signals that ask a run to end, and a run that ends with all it has done saved."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

SECONDS_TO_SAVE = 30
"""After a signal: whoever sent it will kill the process soon."""


class Stopped(Exception):
    """A signal has ended a run, whose state is saved: the same call goes on from there."""

    def __init__(self, number: int, saved: str) -> None:
        """Takes the signal, and what is saved as a clause: "step 12 is saved"."""
        name = signal.Signals(number).name
        super().__init__(f"ended by {name}, {saved}; the same command goes on from there")
        self.code = 128 + number
        """The exit code of a program that ends by it."""


class Request:
    """Whether the run is asked to end, and by which signal."""

    number: int | None = None


@contextlib.contextmanager
def requests() -> Iterator[Request]:
    """Within it SIGTERM and SIGHUP are requests; under nohup a hangup stays ignored.

    To be entered when the strategy is made: TensorFlow takes SIGTERM for itself there. A run that
    has not ended `SECONDS_TO_SAVE` after the first request is ended where it is.
    """
    request = Request()

    def note(number: int, frame: FrameType | None) -> None:
        if request.number is None:
            request.number = number
            timer = threading.Timer(SECONDS_TO_SAVE, _give_up, (number,))
            timer.daemon = True
            timer.start()
            timers.append(timer)

    timers: list[threading.Timer] = []
    in_main = threading.current_thread() is threading.main_thread()  # others may set no handler
    try:
        with handled((signal.SIGTERM, signal.SIGHUP) if in_main else (), note):
            yield request
    finally:
        for timer in timers:
            timer.cancel()


@contextlib.contextmanager
def handled(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Within it these signals go to the handler; one that is ignored, as under nohup, stays so."""
    before = {
        number: signal.signal(number, handler)
        for number in numbers
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, signal.SIG_DFL if was is None else was)  # None: set in C


def _give_up(number: int) -> None:
    print(
        f"{signal.Signals(number).name}: the step takes longer than {SECONDS_TO_SAVE} s; the last "
        "checkpoint stands",
        file=sys.stderr,
        flush=True,
    )
    os._exit(128 + number)
