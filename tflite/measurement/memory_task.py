"""The task that measures, in a child process (`kapps.tflite.child`), the memory of one file."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

from kapps.tflite.interpreter import load_interpreter

_RUNS = 3  # the first allocates what the others use
_UNITS_IN_A_MB = 1 << 20 if sys.platform == "darwin" else 1 << 10  # getrusage: bytes, or KiB


def work(request: dict[str, Any], emit: Callable[..., None]) -> float:
    """By how many MB the process's peak resident memory grows when it loads and runs the file."""
    emit(at=request["path"])
    before = _peak()
    interpreter = load_interpreter(request["path"], request["threads"], request.get("input_shape"))
    for details in interpreter.get_input_details():
        # Else its memory would not count; where it lies, for an array of ours would count as well.
        interpreter.tensor(details["index"])().fill(0)
    for _ in range(_RUNS):
        interpreter.invoke()
    return (_peak() - before) / _UNITS_IN_A_MB


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
