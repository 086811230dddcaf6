"""The error for a user's mistake, and the wording for unknown names."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import SupportsInt, TypeGuard

_MOST = 20  # names in one message


class InputError(ValueError):
    """A user's mistake: the message alone says what was wrong, where, and the remedy.

    Binaries print it as one line and exit with code 2; anything else is a bug and keeps its
    traceback.
    """


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not among the known ones; proposes the nearest."""
    names = sorted(known)
    by_lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.5)
    if close:
        remedy = f"did you mean {' or '.join(by_lower[c] for c in close)}?"
    else:
        rest = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
        remedy = f"known: {', '.join(names[:_MOST])}{rest}"
    return InputError(f"unknown {kind} {str(name)!r}; {remedy}")


def printable(text: object) -> str:
    """The text as one line without control characters, whatever a name or a file put into it."""
    return "".join(c if c.isprintable() else " " for c in " ".join(str(text).split()))


def one_line(text: object, limit: int = 500) -> str:
    """The text as one printable line of at most `limit` characters; what is cut ends in "..."."""
    line = printable(text)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def is_number(value: object) -> bool:
    """Whether it is a finite real number, of Python or NumPy."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    return is_whole(value) or math.isfinite(value)  # of a huge whole number it cannot tell


def is_whole(value: object) -> TypeGuard[SupportsInt]:
    """Whether it is a whole number, of Python or NumPy; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_whole(where: str, name: str, value: object, *, least: int | None = None) -> int:
    """The value as an `int`.

    Raises:
        InputError: it is no whole number, or below `least`, which is 1 unless it is said. `where`
            is the builder or function whose parameter it is.
    """
    if not is_whole(value) or int(value) < (1 if least is None else least):
        bound = " above 0" if least is None else f", {least} or more"
        raise InputError(f"{where}: {name} must be a whole number{bound}, not {value!r}")
    return int(value)
