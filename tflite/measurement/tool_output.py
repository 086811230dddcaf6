"""What `benchmark_model` says of the times that it measured: its result file, and its text.

Two tools go by this name, and both are official: TensorFlow Lite's,
https://github.com/google-ai-edge/LiteRT/tree/main/tflite/tools/benchmark, and LiteRT's newer one,
https://github.com/google-ai-edge/LiteRT/blob/main/litert/tools/benchmark_litert_model.h, which is
built on the former. What they say of where operations ran is read in `tool_placement`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from kapps.tflite.measurement.protobuf import Value, fields_of

CLASSIC, NEWER = "TensorFlow Lite's benchmark_model", "LiteRT's benchmark_model"


def which_tool(text: str) -> str:
    """Which of the two has printed this: CLASSIC, NEWER, or "" if it does not show."""
    if re.search(r"= BENCHMARK RESULTS =|\bbenchmark_litert_model\.(h|cc)\b", text):
        return NEWER
    return CLASSIC if re.search(r"\bInference timings in us: ", text) else ""


def unconsumed(text: str) -> tuple[str, ...]:
    """The flags that this build does not have: "--use_nnapi=true" and the like.

    The line is of `BenchmarkModel::ParseFlags` in tflite/tools/benchmark/benchmark_model.cc.
    """
    found = re.search(r"\bUnconsumed cmdline flags: ([^\n]*)", text)
    return tuple(found.group(1).split()) if found else ()


@dataclass(frozen=True)
class Launch:
    """What one launch of the tool tells; None is what this build of it does not tell.

    Attributes:
        runs: how many were measured.
        mean_ms: the mean; std_ms is the standard deviation.
        p50_ms: the median; p95_ms likewise.
        initialization_ms: loading the file and applying the delegate.
        peak_memory_mb: by how many MB (2^20 bytes) the peak grew since the tool started.
    """

    runs: int
    mean_ms: float
    std_ms: float
    p50_ms: float | None
    p95_ms: float | None
    initialization_ms: float | None
    peak_memory_mb: float | None


def parse_result(content: bytes) -> Launch | None:
    """The file that `--result_file_path` makes: a `tflite.tools.benchmark.BenchmarkResult`.

    The message is defined in tflite/tools/benchmark/proto/benchmark_result.proto of
    https://github.com/google-ai-edge/LiteRT. None if it is no such message, or lacks a figure.
    """
    try:
        message = dict(fields_of(content))
        latency, memory, misc = (
            dict(fields_of(part)) if isinstance(part := message.get(number, b""), bytes) else {}
            for number in (2, 3, 4)
        )
    except ValueError:
        return None
    mean, std, median, runs = (
        _number(fields.get(number))
        for fields, number in ((latency, 1), (latency, 4), (latency, 5), (misc, 2))
    )
    if mean is None or std is None or runs is None:
        return None
    footprint = _number(memory.get(2))
    return Launch(
        runs=int(runs),
        mean_ms=mean,
        std_ms=std,
        p50_ms=median,
        p95_ms=_number(latency.get(7)),
        initialization_ms=_number(latency.get(8)),
        peak_memory_mb=None if footprint is None else _megabytes(footprint / 1024),
    )


def _number(value: Value | None) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def parse_text(text: str) -> Launch | None:
    """What the tool prints: the last line of `count=... avg=... std=...`, in microseconds.

    The line before it, of the same form, is of the warm-up. Old builds tell no percentiles. None
    if there is no such line for the warm-up and one for the runs.
    """
    lines = re.findall(r"\bcount=\d{1,12} [^\n]*", text)
    if len(lines) < 2:
        return None
    figures = {name: _decimal(value) for name, value in re.findall(r"(\w+)=([\w.+-]+)", lines[-1])}
    runs, mean, std = figures.get("count"), figures.get("avg"), figures.get("std")
    median, p95 = figures.get("median"), figures.get("p95")
    if mean is None and (all_same := figures.get("curr")) is not None:
        # "count=3 curr=1200 (all same)"
        mean, std, median, p95 = all_same, 0.0, all_same, all_same
    if runs is None or mean is None or std is None:
        return None
    number = r"([\d.]{1,20}(?:e[+-]?\d{1,3})?)"
    init = re.search(rf"\bInit: {number}, First inference", text)
    init_us = _decimal(init.group(1)) if init else None
    # The newer tool's, which come in ms and with two digits.
    if (init := re.search(rf"\bModel initialization: {{1,9}}{number} ms", text)) is not None:
        init_us = 1e3 * (_decimal(init.group(1)) or 0.0)
    memory = re.search(
        rf"(?:Memory footprint delta .{{0,60}}overall=|Overall footprint: {{1,9}}){number}", text
    )
    return Launch(
        runs=int(runs),
        mean_ms=mean / 1e3,
        std_ms=std / 1e3,
        p50_ms=None if median is None else median / 1e3,
        p95_ms=None if p95 is None else p95 / 1e3,
        initialization_ms=None if init_us is None else init_us / 1e3,
        peak_memory_mb=_megabytes(_decimal(memory.group(1))) if memory else None,
    )


def _megabytes(value: float | None) -> float | None:
    """The value, if it can be a size of memory."""
    return value if value is not None and 0 <= value < 1e6 else None


def _decimal(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
