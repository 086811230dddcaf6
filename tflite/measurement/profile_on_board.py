"""Profiles a .tflite file operation by operation with LiteRT's own profiler: here, or on a board.

It needs the standard library, Python 3.8 and ai-edge-litert 2.3, whose Python interface has no
profiler: this calls the C interface of its libLiteRt.so, as
https://github.com/google-ai-edge/LiteRT/tree/main/litert/c declares it (litert_profiler.h,
litert_compiled_model.h). It prints a line of JSON: {"result": ...} or {"error": what the user can
mend}.

  python3 profile.py REQUEST.json
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

_OLDEST = (2, 3)
_CPU = 1  # kLiteRtHwAcceleratorCpu
_WRITE = 1  # kLiteRtTensorBufferLockModeWrite
_FLOAT32, _FLOAT16 = 1, 10  # of LiteRtElementType
_MOST_RANK = 8
# Of LiteRtProfilerEventType: an operation of the file, and one inside a delegate, of two kinds.
_INVOKE, _OPERATOR, _INSIDE = 1, 2, (4, 8)
_WARMUP = 3
_MOST_RUNS = 2000


class _Layout(ctypes.Structure):
    _fields_ = [
        ("rank", ctypes.c_uint, 7),
        ("has_strides", ctypes.c_uint, 1),
        ("dimensions", ctypes.c_int32 * _MOST_RANK),
        ("strides", ctypes.c_uint32 * _MOST_RANK),
    ]


class _Type(ctypes.Structure):
    _fields_ = [("element", c_int), ("layout", _Layout)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("tag", c_char_p),
        ("kind", c_int),
        ("start_us", c_uint64),
        ("took_us", c_uint64),
        ("memory", c_size_t * 6),
        ("index", c_uint64),
        ("other", c_uint64),
        ("source", c_int),
    ]


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    try:
        found: dict[str, Any] = {"result": profile(**request)}
    except (OSError, RuntimeError, ValueError) as error:
        found = {"error": str(error)}
    print(json.dumps(found), flush=True)


def profile(
    path: str, threads: int, input_shape: list[int] | None, runs: int, seconds: float
) -> dict[str, Any]:
    """The time of each operation, summed over the faster half of the runs, the undisturbed ones.

    Args:
        path: the file.
        threads: of the runtime.
        input_shape: of its single input, if that has no fixed size.
        runs: at least.
        seconds: at least.

    Returns:
        {"runs": in that half, "whole_us": of them, "operations": a list of [operation, number,
        piece, microseconds of them], in the order in which they ran}; the number is that in the
        file and the piece None, or of a delegate's the number within the piece.

    Raises:
        OSError: there is no LiteRT here, or one too old.
        RuntimeError: it does not run the file.
    """
    version = _version()
    if version < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        raise OSError(f"a profile needs ai-edge-litert {needed} or newer: install that")
    spec = importlib.util.find_spec("ai_edge_litert")
    folder = next(iter(spec.submodule_search_locations or [])) if spec else ""
    model = _Model(ctypes.CDLL(os.path.join(folder, "libLiteRt.so")), path, threads, input_shape)
    for _ in range(_WARMUP):
        model.run()
    names: list[tuple[str, int, int | None]] = []
    found: list[tuple[int, list[int]]] = []  # of each run the whole and each operation
    until = time.monotonic() + seconds
    while len(found) < runs or (time.monotonic() < until and len(found) < _MOST_RUNS):
        events, whole = _operations(model.profiled_run())
        names = names or [event[:3] for event in events]
        if [event[:3] for event in events] != names:
            raise RuntimeError("other operations run from one time to the next")
        found.append((whole, [event[3] for event in events]))
    faster = sorted(found)[: (len(found) + 1) // 2]
    totals = [sum(times[n] for _, times in faster) for n in range(len(names))]
    return {
        "runs": len(faster),
        "whole_us": sum(whole for whole, _ in faster),
        "operations": [[*names[n], total] for n, total in enumerate(totals)],
    }


def _version() -> tuple[int, ...]:
    from importlib import metadata

    try:
        said = metadata.version("ai-edge-litert")
    except metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in said.split(".")[:2] if part.isdigit())


def _operations(
    events: list[tuple[str, int, int, int]],
) -> tuple[list[tuple[str, int, int | None, int]], int]:
    """Of one run's events (name, kind, index, microseconds) the operations, and the whole time.

    A piece of a delegate counts its operations from 0.
    """
    found: list[tuple[str, int, int | None, int]] = []
    piece, last, whole = -1, None, 0
    for name, kind, index, took in events:
        if kind == _OPERATOR:
            found.append((name, index, None, took))
            last = None
        elif kind in _INSIDE:
            if last is None or index <= last:
                piece += 1
            last = index
            found.append((name, index, piece, took))
        elif kind == _INVOKE and name == "Invoke":
            whole += took
    return found, whole


class _Model:
    """A file in LiteRT's C interface; nothing of it is given back: the process ends soon."""

    def __init__(
        self, library: Any, path: str, threads: int, input_shape: list[int] | None
    ) -> None:
        self._library = library
        self._kept: list[Any] = []
        environment, model, options = c_void_p(), c_void_p(), c_void_p()
        self._call("LiteRtCreateEnvironment", 0, None, byref(environment))
        self._call("LiteRtCreateModelFromFile", environment, os.fsencode(path), byref(model))
        self._call("LiteRtCreateOptions", byref(options))
        self._call("LiteRtSetOptionsHardwareAccelerators", options, c_int(_CPU))
        self._option(options, "runtime_options_string", "enable_profiling = true\n")
        self._option(options, "xnnpack", f"num_threads = {int(threads)}\n")
        self._compiled, self._profiler = c_void_p(), c_void_p()
        self._call("LiteRtCreateCompiledModel", environment, model, options, byref(self._compiled))
        if input_shape is not None:
            shape = (c_int * len(input_shape))(*input_shape)
            self._call(
                "LiteRtCompiledModelResizeInputTensor",
                *(self._compiled, c_size_t(0), c_size_t(0), shape, c_size_t(len(input_shape))),
            )
        self._call("LiteRtCompiledModelGetProfiler", self._compiled, byref(self._profiler))
        graph = c_void_p()
        self._call("LiteRtGetModelSubgraph", model, c_size_t(0), byref(graph))
        self._inputs = self._buffers(environment, graph, "Input")
        self._outputs = self._buffers(environment, graph, "Output")

    def run(self) -> None:
        self._call(
            "LiteRtRunCompiledModel",
            *(self._compiled, c_size_t(0)),
            *(c_size_t(len(self._inputs)), self._inputs),
            *(c_size_t(len(self._outputs)), self._outputs),
        )

    def profiled_run(self) -> list[tuple[str, int, int, int]]:
        self._call("LiteRtStartProfiler", self._profiler)
        self.run()
        self._call("LiteRtStopProfiler", self._profiler)
        number = c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, byref(number))
        events = (_Event * number.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, number, events)
        return [
            ((e.tag or b"?").decode("utf-8", "replace"), e.kind, e.index, e.took_us) for e in events
        ]

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name)
        function.restype = c_int
        status = function(*arguments)
        if status:
            raise RuntimeError(f"LiteRT does not run it: {name} gives status {status}")

    def _option(self, options: c_void_p, name: str, text: str) -> None:
        payload, option = ctypes.create_string_buffer(text.encode()), c_void_p()
        self._kept.append(payload)
        self._call(
            "LiteRtCreateOpaqueOptions",
            *(name.encode(), ctypes.cast(payload, c_void_p), _KEEP, byref(option)),
        )
        self._call("LiteRtAddOpaqueOptions", options, option)

    def _buffers(self, environment: c_void_p, graph: c_void_p, end: str) -> Any:
        """A buffer for each input or output of the graph; inputs are filled with pixels."""
        number = c_size_t()
        self._call(f"LiteRtGetNumSubgraph{end}s", graph, byref(number))
        layouts = (_Layout * number.value)()
        if end == "Output":
            self._call(
                "LiteRtGetCompiledModelOutputTensorLayouts",
                *(self._compiled, c_size_t(0), number, layouts, ctypes.c_bool(True)),
            )
        buffers = (c_void_p * number.value)()
        for index in range(number.value):
            at = c_size_t(index)
            tensor, needs, buffer, kind = c_void_p(), c_void_p(), c_void_p(), _Type()
            self._call(f"LiteRtGetSubgraph{end}", graph, at, byref(tensor))
            self._call("LiteRtGetRankedTensorType", tensor, byref(kind))
            if end == "Input":
                self._call(
                    "LiteRtGetCompiledModelInputTensorLayout",
                    *(self._compiled, c_size_t(0), at, byref(layouts[index])),
                )
            kind.layout = layouts[index]
            self._call(
                f"LiteRtGetCompiledModel{end}BufferRequirements",
                *(self._compiled, c_size_t(0), at, byref(needs)),
            )
            self._call(
                "LiteRtCreateManagedTensorBufferFromRequirements",
                *(environment, byref(kind), needs, byref(buffer)),
            )
            if end == "Input":
                self._fill(buffer, kind.element)
            buffers[index] = buffer.value
        return buffers

    def _fill(self, buffer: c_void_p, element: int) -> None:
        """Ordinary pixels: the time does not depend on the values, unless they are denormal."""
        size, memory = c_size_t(), c_void_p()
        self._call("LiteRtGetTensorBufferPackedSize", buffer, byref(size))
        self._call("LiteRtLockTensorBuffer", buffer, byref(memory), c_int(_WRITE))
        if element == _FLOAT32:
            count = size.value // 4
            values = (ctypes.c_float * count)(*(n * 37 % 128 for n in range(count)))
            ctypes.memmove(memory, values, 4 * count)
        elif element == _FLOAT16:
            ctypes.memmove(memory, b"\x00\x54" * (size.value // 2), size.value)  # 64.0
        else:
            ctypes.memset(memory, 0, size.value)
        self._call("LiteRtUnlockTensorBuffer", buffer)


# What LiteRT calls with a payload that it no longer needs: ours stays with the model.
_KEEP: Callable[..., Any] = ctypes.CFUNCTYPE(None, c_void_p)(lambda payload: None)

if __name__ == "__main__":
    main()
