"""Files of results, which may come from elsewhere: read up to a limit, each value checked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from kapps._errors import InputError, one_line

_T = TypeVar("_T")

_MOST_TEXT = 1000  # characters of a value
_MOST_TEXTS = 100  # texts of a value

# What the fields of results may be. Any text in them is printable as well.
Line = Annotated[str, msgspec.Meta(max_length=_MOST_TEXT)]
Name = Annotated[str, msgspec.Meta(max_length=_MOST_TEXT, pattern=r"\S")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Count = Annotated[int, msgspec.Meta(gt=0, lt=1 << 53)]
Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, lt=1e9)]
Megabytes = Milliseconds


def read_json(path: str | os.PathLike[str], *, most_bytes: int, kind: str) -> Any:
    """What a JSON file holds, not checked yet.

    Args:
        path: the file.
        most_bytes: a larger one is refused.
        kind: what the message says that it is not.

    Raises:
        InputError: no such file, too large, or no JSON.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(most_bytes + 1)
        if len(text) > most_bytes:
            raise InputError(f"{path} is no {kind}: over {most_bytes >> 20} MiB")
        return json.loads(text)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no {kind}: {one_line(error)}") from error


def checked(values: Any, kind: type[_T], at: str) -> _T:
    """A dataclass from a JSON object that has just its fields, each of the field's type.

    Args:
        values: the object, of anything that `json.loads` gives.
        kind: the dataclass; types as above say what a field may be.
        at: the file, and the place in it, for the message.

    Raises:
        InputError: it is none such; the message names the field.
    """
    if not isinstance(values, dict):
        raise InputError(f"{at}: expected an object")
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if wrong := sorted(set(values) ^ set(known)):
        what = "missing" if wrong[0] in known else "unknown"
        raise InputError(f"{at}.{one_line(wrong[0])}: {what}")
    for name, value in values.items():
        if not _are_printable(value):
            raise _wrong(at, name, f"expected at most {_MOST_TEXTS} lines of text", value)
    try:
        return msgspec.convert(values, kind, dec_hook=_file_name)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        name = re.split(r"\W", place)[0]
        what = what[:1].lower() + what[1:]
        what = what if what.startswith("expected") else f"expected another value ({what})"
        raise _wrong(at, name, what.partition(", got")[0], values[name]) from error


def _wrong(at: str, name: str, what: str, value: object) -> InputError:
    return InputError(f"{at}.{name}: {what}, got {one_line(json.dumps(value))[:80]}")


def _are_printable(value: Any) -> bool:
    """Whether the texts in it are short lines that a table and a picture can show."""
    if isinstance(value, str):
        return len(value) <= _MOST_TEXT and value.isprintable()
    if isinstance(value, Mapping):
        texts = [*value, *value.values()]
        return len(texts) <= 2 * _MOST_TEXTS and all(map(_are_printable, texts))
    if isinstance(value, Sequence):
        return all(_are_printable(each) for each in value if not isinstance(each, float))
    return True


def _file_name(kind: type, value: Any) -> Any:
    """For the fields that are a `Path`: of it the name is kept in files."""
    if not isinstance(value, str) or not value or "/" in value:
        raise ValueError("Expected a file's name")
    return kind(value) if kind is Path else value
