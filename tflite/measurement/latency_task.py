"""The task that `kapps.tflite.measurement.latency` runs in a child process (`kapps.tflite.child`).

The time of each run goes into files, because there may be millions: "0.npy" in the request's
`folder` holds those of the first file, float64 (runs,) in milliseconds, and so on.

A process of its own also means that no TensorFlow shares the cores: kapps loads none unless it is
used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kapps.tflite.interpreter import load_interpreter, operations

_LOADS = 3  # of each file, in turns; the median counts
_BETWEEN_MESSAGES = 0.1  # seconds


def work(request: dict[str, Any], emit: Callable[..., None]) -> list[dict[str, Any]]:
    interpreters: list[Any] = []
    results: list[dict[str, Any]] = []
    loads: list[list[float]] = [[] for _ in request["paths"]]
    # What the runtime itself needs to start, and what its first file takes longer, is no file's.
    for number in (0, *(number for _ in range(_LOADS - 1) for number in range(len(loads)))):
        emit(at=request["paths"][number])
        loads[number].append(_load(request, number)[1])
    del loads[0][0]
    for number, path in enumerate(request["paths"]):
        emit(at=path)
        interpreter, took = _load(request, number)
        results.append(
            {
                "initialization_ms": float(np.median([*loads[number], took])),
                "operations": [
                    {
                        "op_name": op["op_name"],
                        "inputs": [int(t) for t in op["inputs"]],
                        "outputs": [int(t) for t in op["outputs"]],
                    }
                    for op in operations(interpreter)
                ],
            }
        )
        for details in interpreter.get_input_details():
            # The time does not depend on the values, if they are ordinary pixels.
            image = np.random.default_rng(0).integers(0, 128, details["shape"])
            interpreter.set_tensor(details["index"], image.astype(details["dtype"]))
        for _ in range(request["warmup"]):
            interpreter.invoke()
        interpreters.append(interpreter)
    share, told = 0.0, time.monotonic()
    totals = [0.0] * len(results)
    samples: list[list[float]] = [[] for _ in results]
    while share < 1:
        for number, (path, interpreter) in enumerate(
            zip(request["paths"], interpreters, strict=True)
        ):
            emit(at=path)
            interpreter.invoke()  # finds the caches full of another model: it does not count
            turn = 0.0
            while turn < request["turn_ms"]:
                began = time.perf_counter_ns()
                interpreter.invoke()
                took = (time.perf_counter_ns() - began) / 1e6
                samples[number].append(took)
                turn += took
            totals[number] += turn
        share = min(1.0, min(map(len, samples)) / request["min_runs"])
        if request["min_seconds"]:
            share = min(share, min(totals) / (1e3 * request["min_seconds"]))
        if share == 1 or time.monotonic() - told > _BETWEEN_MESSAGES:
            emit(share=share)
            told = time.monotonic()
    for number, times in enumerate(samples):
        np.save(Path(request["folder"], f"{number}.npy"), np.asarray(times, "float64"))
    return results


def _load(request: dict[str, Any], number: int) -> tuple[Any, float]:
    """An interpreter of the file of this number, and how long that took, in milliseconds."""
    start = time.perf_counter()
    interpreter = load_interpreter(
        request["paths"][number], request["threads"], request.get("input_shape")
    )
    return interpreter, 1e3 * (time.perf_counter() - start)
