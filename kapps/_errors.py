"""The error for a user's mistake, and the wording for unknown names."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable

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


def is_number(value: object) -> bool:
    """Whether it is a finite real number, of Python or NumPy."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(builder: str, name: str, value: object) -> None:
    """Raises an `InputError` if the builder's parameter is no whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{builder}: {name} must be a whole number above 0, not {value!r}")
