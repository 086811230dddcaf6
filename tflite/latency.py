"""How long one image takes on this machine.

What is measured here is the host, never a phone: the device is part of every result.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kapps._errors import InputError


@dataclass(frozen=True)
class Latency:
    """The time that a .tflite file takes for one image, in milliseconds.

    Attributes:
        file: the file.
        device: where it was measured, such as "host: Intel(R) Xeon(R) CPU @ 2.20GHz, 2 cores".
        threads: of the interpreter.
        runs: how many runs were measured, after the warm-up.
        p50_ms: the median; p90_ms and p99_ms likewise.
        mean_ms: the mean; std_ms is the standard deviation.
        initialization_ms: loading the file and applying the delegate.
        delegate_pieces: into how many pieces the delegate took the graph; 1 is best, 0 is none.
    """

    file: Path
    device: str
    threads: int
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    std_ms: float
    initialization_ms: float
    delegate_pieces: int


def measure(
    paths: Sequence[str | os.PathLike[str]],
    *,
    threads: int = 1,
    warmup: int = 8,
    min_runs: int = 64,
    min_seconds: float = 1.0,
    time_limit: float = 600.0,
    progress: Callable[[float], object] | None = None,
) -> list[Latency]:
    """Measures .tflite files on this machine, one image at a time, in turns, in a fresh process.

    Args:
        paths: the files; they share the machine's drift, so compare what was measured together.
        threads: of the interpreter.
        warmup: runs of each file before the first that counts.
        min_runs: measured runs of each file, at least.
        min_seconds: measured time, at least, for each file on average.
        time_limit: seconds after which the process is ended.
        progress: called now and then with the share that is done, 0 to 1.

    Raises:
        InputError: a file is not there or does not load, or the process died or took too long; the
            message names the file at hand.
    """
    if threads < 1 or warmup < 0 or min_runs < 1 or min_seconds < 0:
        raise InputError("measure: threads and min_runs are at least 1, the others at least 0")
    files = [Path(path) for path in paths]
    for file in files:
        if not file.is_file():
            raise InputError(f"no such file: {file}")
    if not files:
        return []
    request = {
        "paths": [str(file.resolve()) for file in files],
        "threads": threads,
        "warmup": warmup,
        "min_runs": min_runs,
        "min_seconds": min_seconds,
    }
    results = _run(request, time_limit, progress or (lambda share: None))
    device = host_device()
    latencies = []
    for file, result in zip(files, results, strict=True):
        times = np.array(result["ms"])
        p50, p90, p99 = np.percentile(times, [50, 90, 99])
        latencies.append(
            Latency(
                file=file,
                device=device,
                threads=threads,
                runs=len(times),
                p50_ms=float(p50),
                p90_ms=float(p90),
                p99_ms=float(p99),
                mean_ms=float(times.mean()),
                std_ms=float(times.std()),
                initialization_ms=result["initialization_ms"],
                delegate_pieces=result["delegate_pieces"],
            )
        )
    return latencies


def host_device() -> str:
    """This machine's processor, named so that nobody takes it for a phone."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # no Linux
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"host: {name}, {cores} cores"


def _run(
    request: dict[str, Any], time_limit: float, progress: Callable[[float], object]
) -> list[dict[str, Any]]:
    """The child's results, one for each path; follows the lines that it writes on the way."""
    last: dict[str, Any] = {}
    command = [sys.executable, str(Path(__file__).with_name("_measure.py"))]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            child.kill()

        timer = threading.Timer(time_limit, end)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it died already, which is seen below
                child.stdin.write(json.dumps(request).encode())
                child.stdin.close()
            for line in child.stdout:
                with contextlib.suppress(ValueError):  # a line that death cut off
                    message = json.loads(line)
                    last |= message
                    if "share" in message:
                        progress(message["share"])
            code = child.wait()
        finally:
            timer.cancel()
            child.kill()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if "error" in last:
        raise InputError(last["error"])
    if "results" in last and code == 0:
        return last["results"]
    if "at" not in last and not overdue.is_set():  # before the first file: no mistake of the user
        raise RuntimeError(f"the measuring process failed with exit code {code}: {said}")
    at = last.get("at", request["paths"][0])
    if overdue.is_set():
        raise InputError(f"measuring took over {time_limit:g} s and was ended at {at}")
    raise InputError(f"{at} kills the interpreter (exit code {code}): is the file intact?")
