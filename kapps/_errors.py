"""The error for a user's mistake, and the wording for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
        remedy = f"known: {', '.join(names)}"
    return InputError(f"unknown {kind} {str(name)!r}; {remedy}")
