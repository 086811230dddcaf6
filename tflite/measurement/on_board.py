"""Measures .tflite files on a Linux board, where `kapps.tflite.measurement.board` sends it.

It needs nothing of kapps: the standard library, numpy and ai-edge-litert (or tflite-runtime), and
Python 3.7. It prints lines of JSON: {"at": index of the file}, {"share": done, 0 to 1}, and at the
end {"result": ...} or {"error": what the user can mend}.

  python3 remote_measure.py REQUEST.json
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Callable  # of Python 3.7 too
from typing import Any

# Turns as on the host (`latency_task`): equally long, after one run that does not count.
_TURN_MS = 50.0
_TELL_MS = 500.0


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    interpreter_class, runtime = find_interpreter()
    if interpreter_class is None:
        return emit(error="no interpreter")
    threads = request["threads"]

    def load(path: str) -> Any:
        interpreter = interpreter_class(path, num_threads=threads)
        if request["input_shape"] is not None:
            (details,) = interpreter.get_input_details()
            if -1 in list(details.get("shape_signature", [-1])):
                interpreter.resize_tensor_input(details["index"], request["input_shape"])
        interpreter.allocate_tensors()
        return interpreter

    memory = []
    # What the imports have freed is not to serve a file unseen: `child` does the same.
    with contextlib.suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    for index, path in enumerate(request["files"]):
        emit(at=index)
        memory.append(in_child(functools.partial(peak_of, load, path)))
    interpreters, results = [], []
    for path in request["files"][:1]:
        load(path)  # what the runtime itself needs to start is no file's
    for index, path in enumerate(request["files"]):
        emit(at=index)
        start = time.perf_counter()
        interpreter = load(path)
        seconds = time.perf_counter() - start
        set_inputs(interpreter)
        for _ in range(request["warmup"]):
            interpreter.invoke()
        interpreters.append(interpreter)
        results.append(
            {
                "initialization_ms": 1e3 * seconds,
                "peak_memory_bytes": memory[index],
                "operations": operations(interpreter),
                "samples_ms": [],
            }
        )
    emit(at=None)
    share = told = 0.0
    totals = [0.0] * len(results)
    while share < 1:
        for index, interpreter in enumerate(interpreters):
            interpreter.invoke()
            turn = 0.0
            while turn < _TURN_MS:
                began = time.perf_counter_ns()
                interpreter.invoke()
                took = (time.perf_counter_ns() - began) / 1e6
                results[index]["samples_ms"].append(round(took, 6))
                turn += took
            totals[index] += turn
        share = min(1.0, min(len(r["samples_ms"]) for r in results) / request["min_runs"])
        if request["min_seconds"]:
            share = min(share, min(totals) / (1e3 * request["min_seconds"]))
        if sum(totals) - told > _TELL_MS:  # seldom: sending it takes time of the same cores
            emit(share=share)
            told = sum(totals)
    emit(share=1.0)
    cpus = sorted(os.sched_getaffinity(0))
    return emit(result={"runtime": runtime, "cpus": cpus, "files": results})


def emit(**message: object) -> None:
    print(json.dumps(message), flush=True)


def find_interpreter() -> tuple[Any, str]:
    """The interpreter's class and its name and version, or (None, "")."""
    try:
        import ai_edge_litert
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter, f"ai-edge-litert {getattr(ai_edge_litert, '__version__', '')}".strip()
    except ImportError:
        pass
    try:
        package = importlib.import_module("tflite_runtime")
        interpreter = importlib.import_module("tflite_runtime.interpreter").Interpreter
        return interpreter, f"tflite-runtime {getattr(package, '__version__', '')}".strip()
    except ImportError:
        return None, ""


def set_inputs(interpreter: Any) -> None:
    """Ordinary pixels: the time does not depend on the values, unless they are denormal."""
    import numpy as np

    for details in interpreter.get_input_details():
        image = np.random.RandomState(0).randint(0, 128, details["shape"])
        interpreter.set_tensor(details["index"], image.astype(details["dtype"]))


def operations(interpreter: Any) -> list[dict[str, Any]] | None:
    """The operations of the graph as it runs, delegates included; None if it does not tell."""
    try:
        return [
            {
                "op_name": op["op_name"],
                **{n: [int(t) for t in op[n]] for n in ("inputs", "outputs")},
            }
            for op in interpreter._get_ops_details()
        ]
    except Exception:
        return None


def peak_of(load: Callable[[str], Any], path: str) -> int | None:
    """By how much this process grows, at the most, to load the file and to run it once: bytes."""
    import numpy as np

    before = memory_of("VmRSS")
    interpreter = load(path)
    for details in interpreter.get_input_details():  # as `memory_task` does
        if details["dtype"] is np.bytes_:
            interpreter.set_tensor(details["index"], np.zeros(details["shape"], np.bytes_))
        else:
            interpreter.tensor(details["index"])().fill(0)
    interpreter.invoke()
    after = memory_of("VmHWM")
    return None if before is None or after is None else max(after - before, 0)


def memory_of(field: str) -> int | None:
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None


def in_child(task: Callable[[], Any]) -> Any:
    """What `task` returns in a process of its own, so that only its own memory counts.

    A file that kills the interpreter kills this process too: `at` has said which one it was.
    """
    readable, writable = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(readable)
            try:
                value = {"value": task()}
            except Exception as error:
                value = {"error": f"{type(error).__name__}: {error}"}
            with os.fdopen(writable, "w") as pipe:
                json.dump(value, pipe)
        finally:
            os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    value = json.loads(text)
    if "error" in value:
        emit(error=value["error"])
        sys.exit(0)
    return value["value"]


if __name__ == "__main__":
    main()
