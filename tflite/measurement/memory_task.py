"""The task that measures, in a child process (`kapps.tflite.child`), the memory of one file."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from kapps.tflite.interpreter import load_interpreter

_RUNS = 3  # the first allocates what the others use
_UNITS_IN_A_MB = 1 << 20 if sys.platform == "darwin" else 1 << 10  # getrusage: bytes, or KiB


def work(request: dict[str, Any], emit: Callable[..., None]) -> float:
    """By how many MB the process's peak resident memory grows when it loads and runs the file."""
    emit(at=request["path"])
    before = _peak()
    interpreter = load_interpreter(request["path"], request["threads"], request.get("input_shape"))
    for details in interpreter.get_input_details():
        # Else its memory would not count; in its place, for an array of ours would count as well.
        if details["dtype"] is np.bytes_:  # which has no such place
            interpreter.set_tensor(details["index"], np.zeros(details["shape"], np.bytes_))
        else:
            interpreter.tensor(details["index"])().fill(0)
    for _ in range(_RUNS):
        interpreter.invoke()
    return (_peak() - before) / _UNITS_IN_A_MB


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
