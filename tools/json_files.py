"""The JSON that kapps writes, and reads again."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from kapps._errors import InputError
from kapps._files import write_text


def to_json(values: Any) -> str:
    """The values as text; null stands for the numbers that JSON does not have (infinity, NaN)."""
    return json.dumps(finite(values), indent=2, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Writes a file of them, wholly or not at all.

    Raises:
        InputError: it cannot be written.
    """
    write_text(path, to_json(values))


def read_json(path: str | os.PathLike[str], remedy: str) -> dict[str, Any] | None:
    """The object in a file, or None if there is no such file.

    Raises:
        InputError: it cannot be read, or holds something else; `remedy` says what to do.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # writing there tells of the second
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged; {remedy}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged; {remedy}")
    return values


def finite(values: Any) -> Any:
    """The values with None for the numbers that JSON does not have."""
    if isinstance(values, dict):
        return {name: finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
