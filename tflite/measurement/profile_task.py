"""The task that profiles one file on this machine, in a child process (`kapps.tflite.child`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kapps._errors import InputError
from kapps.tflite.measurement.profile_on_board import profile


def work(request: dict[str, Any], emit: Callable[..., None]) -> dict[str, Any]:
    path: str = request["path"]
    emit(at=path)
    try:
        return profile(**request)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: no profile of it: {error}") from error
