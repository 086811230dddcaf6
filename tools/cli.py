"""What all binaries share: help, flags, errors of one line, exit codes, JSON."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from absl import app, flags, logging

from kapps._errors import InputError, printable
from kapps.tools.json_files import to_json, write_json
from kapps.tools.preemption import Stopped, handled
from kapps.tools.streams import forgiving

flags.disclaim_key_flags()  # what is defined here belongs to the program that asks for it

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # warnings and errors only

_SECONDS_TO_END = 20  # after a signal: for what has to be put back, on a phone as well


class _Ended(SystemExit):
    """SIGTERM or SIGHUP, as an exception: what was begun is cleared away."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


def run(main: Callable[[list[str]], int | None], *, files: str = "") -> NoReturn:
    """Parses the flags, calls `main(argv)` and exits with what it returns.

    A program that takes arguments besides flags says what they are, such as `files="FILE..."`, and
    finds them in argv[1:]: at least one, unless they stand in brackets, "[FILE...]".

    Exit codes: 0, or what `main` returns; 2 for a user's mistake (a wrong flag or an `InputError`)
    and for an output that cannot be written, told in one line on stderr; 130 when interrupted, 143
    and 129 when ended by SIGTERM and SIGHUP. A reader of the output that leaves changes nothing.
    """
    module = sys.modules[main.__module__]
    program = _program()

    def parse(argv: list[str]) -> list[str]:
        with _in_one_line(program):
            own = flags.FLAGS.get_key_flags_for_module(module)
            if {"--help", "-help", "-h"} & set(argv[1:]):
                _print_help(program, files, module.__doc__ or "", own)
                sys.exit(0)
            try:
                rest = flags.FLAGS(argv)
            except flags.Error as error:
                raise InputError(str(error)) from error
            if flags.FLAGS["verbosity"].using_default_value:
                flags.FLAGS.verbosity = logging.WARNING  # or app.run would make it INFO
            if files and not files.startswith("[") and not rest[1:]:
                raise InputError(f"{files} must be given; --help says more")
            if rest[1:] and not files:
                raise InputError(f"unexpected argument {rest[1]!r}; --help lists the flags")
            return rest

    def guarded(argv: list[str]) -> int | None:
        with _in_one_line(program):
            code = main(argv)
            _flush()
            return code
        raise AssertionError("_in_one_line ends or passes on")

    with (
        forgiving(),
        _ended_by_signals(),
        handled([signal.SIGINT], _interrupt),
        _interrupts_heard(),
    ):
        app.run(guarded, flags_parser=parse)
    raise AssertionError("app.run does not return")


@contextlib.contextmanager
def _in_one_line(program: str) -> Iterator[None]:
    """What a user did or sees to, as one line on stderr and an exit code."""
    try:
        yield
    except InputError as error:
        _tell(program, str(error))
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        _tell(program, "interrupted; the same command continues where it can")
        _leave(130, interrupt)
    except _Ended as ended:
        _tell(program, f"ended by {ended.name}; the same command continues where it can")
        _leave(int(ended.code or 0), ended)
    except Stopped as stopped:
        print(f"{program}: {stopped}", file=sys.stderr)
        sys.exit(stopped.code)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP are exceptions within; under nohup a hangup stays ignored."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:  # once: `timeout` sends it twice
            signal.signal(each, lambda number, frame: None)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SECONDS_TO_END)
        raise _Ended(number)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Python's own way, and an end where a library takes the exception for one of its own."""
    timer = threading.Timer(_SECONDS_TO_END, os._exit, (130,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


@contextlib.contextmanager
def _interrupts_heard() -> Iterator[None]:
    """An interrupt that Python has to ignore, as in a finalizer, comes again a little later.

    Loading TensorFlow and Keras takes seconds, in which garbage is collected time and again, and
    one of the libraries has Python call it then.
    """
    before = sys.unraisablehook

    def hook(ignored: sys.UnraisableHookArgs) -> None:
        main = threading.main_thread().ident
        if main is not None and issubclass(ignored.exc_type, KeyboardInterrupt):
            threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
        else:
            before(ignored)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _leave(code: int, error: BaseException) -> NoReturn:
    """Ends at once: threads of TensorFlow that still call Python can hang Python's own way out.

    What `error` cut off before its block began, such as a `with` statement, is closed first.
    """
    traceback.clear_frames(error.__traceback__)
    with contextlib.suppress(InputError):
        _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def required(*holders: flags.FlagHolder) -> tuple[str, ...]:
    """The values of flags that must be given.

    Raises:
        InputError: some are not; the message names them.
    """
    missing = [f"--{holder.name}" for holder in holders if not holder.value]
    if missing:
        raise InputError(f"{' and '.join(missing)} must be given; --help lists the flags")
    return tuple(holder.value for holder in holders)


def check_output(holder: flags.FlagHolder) -> None:
    """Checks a flag that names a file to write, before any work.

    Raises:
        InputError: it took a model for that file, as in `--output *.tflite`.
    """
    if holder.value is not None and holder.value.endswith(".tflite"):
        raise InputError(
            f"--{holder.name} took {holder.value}, a model, for the file to write: name that first,"
            f" as in --{holder.name}=results.json {holder.value}"
        )


def define_json() -> flags.FlagHolder[str | None]:
    """The flag --json, which means the same in all programs: see `put_out`."""
    return flags.DEFINE_string(
        "json", None, "file to write the figures to as well; - for stdout, in place of the text"
    )


def put_out(text: str, values: Any, json: flags.FlagHolder[str | None]) -> None:
    """Prints what a program has found out, and writes it as JSON where --json says so.

    Raises:
        InputError: it cannot be written.
    """
    if json.value != "-":
        print(text, flush=True)  # first: a full disk is not to lose it
    if json.value is not None:
        write_figures(values, json)


def write_figures(values: Any, json: flags.FlagHolder[str | None]) -> None:
    """Writes what a program has found out where --json says, which has to be given.

    Raises:
        InputError: it cannot be written.
    """
    if json.value == "-":
        print(to_json(values), end="", flush=True)
    else:
        write_json(json.value, values)


def _program() -> str:
    """The console script's name, also for `python -m`: kapps-train."""
    stem = Path(sys.argv[0]).stem.replace("_", "-")
    return stem if stem.startswith("kapps") else f"kapps-{stem}"


def _tell(program: str, message: str) -> None:
    print(f"{program}: error: {printable(message)}", file=sys.stderr)


def _print_help(program: str, files: str, doc: str, own: list[flags.Flag]) -> None:
    print(doc.strip(), f"\n\nusage: {program} [flags] {files}".rstrip(), end="\n\n")
    for flag in sorted(own, key=lambda f: f.name):
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        print(f"  --{flag.name}: {flag.help}{default}")
    _flush()
