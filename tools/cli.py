"""What all binaries share: help, errors of one line, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from kapps._errors import InputError, printable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # warnings and errors only


def run(main: Callable[[list[str]], int | None], *, files: str = "") -> NoReturn:
    """Parses the flags, calls `main(argv)` and exits with what it returns.

    A program that takes arguments besides flags says what they are, such as `files="FILE..."`, and
    finds them in argv[1:]: at least one.

    Exit codes: 0, or what `main` returns; 2 for a user's mistake (a wrong flag or an `InputError`),
    told in one line on stderr; 130 when interrupted.
    """
    module = sys.modules[main.__module__]
    program = _program()

    def parse(argv: list[str]) -> list[str]:
        own = flags.FLAGS.get_key_flags_for_module(module)
        if {"--help", "-help", "-h"} & set(argv[1:]):
            _print_help(program, files, module.__doc__ or "", own)
            sys.exit(0)
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            _fail(program, str(error))
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.WARNING  # or app.run would make it INFO
        if files and not rest[1:]:
            _fail(program, f"{files} must be given; --help says more")
        if rest[1:] and not files:
            _fail(program, f"unexpected argument {rest[1]!r}; --help lists the flags")
        return rest

    def guarded(argv: list[str]) -> int | None:
        try:
            return main(argv)
        except InputError as error:
            _fail(program, str(error))
        except KeyboardInterrupt:
            _fail(program, "interrupted; the same command continues where it can", 130)

    app.run(guarded, flags_parser=parse)
    raise AssertionError("app.run does not return")


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


def _program() -> str:
    """The console script's name, also for `python -m`: kapps-train."""
    stem = Path(sys.argv[0]).stem.lstrip("_").removesuffix("_main").replace("_", "-")
    return stem if stem.startswith("kapps") else f"kapps-{stem}"


def _fail(program: str, message: str, code: int = 2) -> NoReturn:
    print(f"{program}: error: {printable(message)}", file=sys.stderr)
    sys.exit(code)


def _print_help(program: str, files: str, doc: str, own: list[flags.Flag]) -> None:
    print(doc.strip(), f"\n\nusage: {program} [flags] {files}".rstrip(), end="\n\n")
    for flag in sorted(own, key=lambda f: f.name):
        default = "" if flag.default in (None, "") else f" (default: {flag.default})"
        print(f"  --{flag.name}: {flag.help}{default}")
