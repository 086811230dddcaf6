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

from kapps.tflite.interpreter import delegate_pieces, load_interpreter

_BETWEEN_MESSAGES = 0.1  # seconds


def work(request: dict[str, Any], emit: Callable[..., None]) -> list[dict[str, Any]]:
    interpreters: list[Any] = []
    results: list[dict[str, Any]] = []
    for path in request["paths"]:
        emit(at=path)
        start = time.perf_counter()
        interpreter = load_interpreter(path, request["threads"])
        pieces = delegate_pieces(interpreter)
        results.append(
            {
                "initialization_ms": 1e3 * (time.perf_counter() - start),
                "delegate_pieces": pieces,
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
