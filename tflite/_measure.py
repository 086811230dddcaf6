"""The child process of `kapps.tflite.latency`: a request on stdin, JSON lines on stdout.

A process of its own, so that no TensorFlow shares the cores (kapps loads none unless it is used),
and so that a file that kills the interpreter kills nothing else. A line names the file at hand
before it is touched.
"""

import json
import sys
import time
from typing import Any

# Files take turns, so that all see the same drift of the machine; turns of a few runs, because
# the first run of a turn, which does not count, finds the caches full of another model.
_TURN = 8


def main() -> None:
    import numpy as np

    from kapps._errors import InputError
    from kapps.tflite.interpreter import delegate_pieces, load_interpreter

    def emit(**message: object) -> None:
        print(json.dumps(message), flush=True)

    request = json.load(sys.stdin)
    interpreters: list[Any] = []
    results: list[dict[str, Any]] = []
    for path in request["paths"]:
        emit(at=path)
        start = time.perf_counter()
        try:
            interpreter = load_interpreter(path, request["threads"])
        except InputError as error:
            emit(error=str(error))
            return
        pieces = delegate_pieces(interpreter)
        results.append(
            {
                "initialization_ms": 1e3 * (time.perf_counter() - start),
                "delegate_pieces": pieces,
                "ms": [],
            }
        )
        for details in interpreter.get_input_details():
            # The time does not depend on the values, if they are ordinary pixels.
            image = np.random.default_rng(0).integers(0, 128, details["shape"])
            interpreter.set_tensor(details["index"], image.astype(details["dtype"]))
        for _ in range(request["warmup"]):
            interpreter.invoke()
        interpreters.append(interpreter)
    start, share = time.perf_counter(), 0.0
    while share < 1:
        for path, interpreter, result in zip(request["paths"], interpreters, results, strict=True):
            emit(at=path)
            interpreter.invoke()
            for _ in range(_TURN):
                began = time.perf_counter_ns()
                interpreter.invoke()
                result["ms"].append((time.perf_counter_ns() - began) / 1e6)
        share = min(1.0, len(results[0]["ms"]) / request["min_runs"])
        if request["min_seconds"]:
            seconds = time.perf_counter() - start
            share = min(share, seconds / (request["min_seconds"] * len(results)))
        emit(share=share)
    emit(results=results)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, which a script has first: its modules are not to hide others
    main()
