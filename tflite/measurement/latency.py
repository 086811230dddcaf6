"""How long one image takes: what a measurement is, and how it is made on this machine.

What is measured on the host is never a phone's latency: the device is part of every result.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

import kapps
from kapps._errors import InputError
from kapps._files import sha256 as sha256_of
from kapps._files import temporary_folder
from kapps.tflite import child
from kapps.tflite.measurement import placement as placing
from kapps.tflite.measurement.placement import Placement
from kapps.tflite.measurement.profile import Profiled
from kapps.tflite.results import Count, Line, Megabytes, Milliseconds, Number, Sha256

# Files take turns, so that all see the same drift of the machine; equally long ones, so that a slow
# file does not take all the time.
_TURN_MS = 50.0


@dataclass(frozen=True)
class StopRule:
    """When a file has been measured long enough: both have to be reached.

    Attributes:
        runs: measured runs of the file.
        seconds: the sum of their times.
    """

    runs: int
    seconds: float

    def __str__(self) -> str:
        return f"at least {self.runs:,} runs and {self.seconds:g} s"


# MLPerf Mobile's single stream, and the shortest of its short forms
# (https://arxiv.org/abs/2012.02328).
STOP_RULES = {"quick": StopRule(64, 6.0), "mlperf": StopRule(1024, 60.0)}


@dataclass(frozen=True)
class Latency:
    """The time that a .tflite file takes for one image, in milliseconds.

    A device's own tool keeps no samples and tells no p90 and no p99, and old builds of it no median
    either: those are None then. It is launched several times, and each figure is the median over
    the launches. Of an emulated device no time is told at all: all of them are None.

    Attributes:
        file: the file.
        device: where it was measured, such as "host: Intel(R) Xeon(R) CPU @ 2.20GHz, 2 cores".
        threads: of the interpreter.
        runs: how many runs were measured, after the warm-up, in all launches.
        p50_ms: the median; p90_ms, p95_ms and p99_ms likewise.
        mean_ms: the mean; std_ms is the standard deviation.
        initialization_ms: loading the file and applying the delegate.
        delegate_pieces: into how many pieces the delegate took the graph; 1 is best, 0 is none.
        placement: which operations ran on the accelerator; None if nobody tells it.
        accelerator: "cpu", "gpu" or "nnapi".
        stop_rule: what was asked for, such as "at least 64 runs and 6 s".
        launches: of the process that measured.
        launch_p50_ms: the median of each launch: how far they lie apart is the device's drift.
        samples_ms: the time of each run, in order.
        peak_memory_mb: by how many MB (2^20 bytes) the process's peak resident memory grew from
            before the file was loaded to after its runs.
        sha256: of the file, in hexadecimal.
        size_bytes: of the file.
        notes: what else bears on the number: cores, clock, thermal state before and after.
        versions: of what measured.
        date: of the measurement, ISO 8601 in UTC.
        profile: the time of each operation, worst first; empty if that was not asked for.
    """

    file: Path
    device: Line
    threads: Count
    runs: Count
    p50_ms: Milliseconds | None
    p90_ms: Milliseconds | None
    p99_ms: Milliseconds | None
    mean_ms: Milliseconds | None
    std_ms: Milliseconds | None
    initialization_ms: Milliseconds | None
    delegate_pieces: Number | None
    accelerator: Line = "cpu"
    stop_rule: Line = ""
    launches: Count = 1
    launch_p50_ms: tuple[Milliseconds, ...] = ()
    samples_ms: tuple[Milliseconds, ...] = field(default=(), repr=False)
    p95_ms: Milliseconds | None = None
    peak_memory_mb: Megabytes | None = None
    sha256: Sha256 = ""
    size_bytes: Count = 0
    notes: Mapping[str, Line] = field(default_factory=dict)
    versions: Mapping[str, Line] = field(default_factory=dict)
    date: Line = ""
    placement: Placement | None = None
    profile: tuple[Profiled, ...] = ()

    @property
    def emulated(self) -> bool:
        """Whether an emulator ran the file, so that there are no times."""
        return "emulated" in self.notes

    @classmethod
    def of_samples(
        cls,
        file: Path,
        samples_ms: Sequence[float] | np.ndarray,
        *,
        device: str,
        threads: int,
        stop_rule: StopRule,
        initialization_ms: float,
        delegate_pieces: int | None,
        peak_memory_mb: float | None,
        sha256: str,
        size_bytes: int,
        notes: Mapping[str, str],
        versions: Mapping[str, str],
        placement: Placement | None = None,
    ) -> Latency:
        """What the time of each run gives, on the CPU and in one launch; see the attributes."""
        times = np.asarray(samples_ms, "float64")
        p50, p90, p95, p99 = np.percentile(times, [50, 90, 95, 99]).tolist()
        return cls(
            file=file,
            device=device,
            threads=threads,
            runs=len(times),
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            mean_ms=float(times.mean()),
            std_ms=float(times.std()),
            initialization_ms=initialization_ms,
            delegate_pieces=delegate_pieces,
            stop_rule=str(stop_rule),
            launch_p50_ms=(p50,),
            samples_ms=tuple(times.tolist()),
            peak_memory_mb=peak_memory_mb,
            notes=dict(notes),
            versions=dict(versions),
            date=now(),
            sha256=sha256,
            size_bytes=size_bytes,
            placement=placement,
        )


def measure(
    paths: Sequence[str | os.PathLike[str]],
    *,
    threads: int = 1,
    warmup: int = 8,
    min_runs: int = 64,
    min_seconds: float = 1.0,
    input_shape: Sequence[int] | None = None,
    time_limit: float = 600.0,
    progress: Callable[[float], object] = lambda share: None,
) -> list[Latency]:
    """Measures .tflite files on this machine, one image at a time, in turns, in a fresh process.

    The memory of each file is measured in a further process of its own.

    Args:
        paths: the files; they share the machine's drift, so compare what was measured together.
        threads: of the interpreter.
        warmup: runs of each file before the first that counts.
        min_runs: measured runs of each file, at least.
        min_seconds: measured time of each file, at least.
        input_shape: of the input of files that take any size, such as (1, 224, 224, 3).
        time_limit: seconds after which the process is ended, and that in which the memory of a
            file is measured, which takes few runs, likewise.
        progress: called now and then with the share that is done, 0 to 1.

    Raises:
        InputError: a file is not there or does not load, or the process died or took too long; the
            message names the file at hand.
    """
    if threads < 1 or warmup < 0 or min_runs < 1 or min_seconds < 0:
        raise InputError("measure: threads and min_runs are at least 1, the others at least 0")
    shape = child.check_input_shape(input_shape)
    files = [Path(path) for path in paths]
    if not files:
        return []
    identities = [identity(file) for file in files]  # now: a build may replace them meanwhile
    resolved = [str(file.resolve()) for file in files]
    request = {
        "paths": resolved,
        "threads": threads,
        "warmup": warmup,
        "min_runs": min_runs,
        "min_seconds": min_seconds,
        "turn_ms": _TURN_MS,
        "input_shape": shape,
    }
    with temporary_folder() as folder:
        results = child.run(
            "measurement.latency_task",
            {**request, "folder": str(folder)},
            time_limit=time_limit,
            on_message=lambda message: progress(message["share"]) if "share" in message else None,
        )
        samples = [_samples(folder / f"{number}.npy", file) for number, file in enumerate(files)]
    memory = child.run_each(
        "measurement.memory_task",
        [{"path": path, "threads": threads, "input_shape": shape} for path in resolved],
        time_limit=time_limit,
    )
    device = host_device()
    versions = {
        **kapps_version(),
        "ai-edge-litert": importlib.metadata.version("ai-edge-litert"),
    }
    latencies = []
    for file, (digest, size_bytes), result, times, peak in zip(
        files, identities, results, samples, memory, strict=True
    ):
        if isinstance(peak, InputError):
            raise peak
        placement, pieces = placing.of_operations(result["operations"])
        if placement.outside:
            placement = placing.with_reasons(placement, _reasons(file, shape))
        latencies.append(
            Latency.of_samples(
                file,
                times,
                device=device,
                threads=threads,
                stop_rule=StopRule(min_runs, min_seconds),
                initialization_ms=result["initialization_ms"],
                delegate_pieces=pieces,
                placement=placement,
                peak_memory_mb=peak,
                sha256=digest,
                size_bytes=size_bytes,
                notes={},
                versions=versions,
            )
        )
    return latencies


def _reasons(file: Path, shape: Sequence[int] | None) -> dict[str, str]:
    """{operation: why XNNPACK leaves it}, by the rules that kapps has of it."""
    from kapps.tflite.inspection import inspect

    found: dict[str, dict[str, None]] = {}
    for op in inspect(file, input_shape=shape).fallen_off:
        found.setdefault(op.name, {})[op.reason] = None
    return {name: " / ".join(whys) for name, whys in found.items()}


def _samples(saved: Path, file: Path) -> np.ndarray:
    """The times that the child saved, if they can be some: it ran a file that is not trusted.

    Raises:
        InputError: they cannot; the message names the file.
    """
    try:
        times = np.array(np.load(saved, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        times = np.array([])
    if times.dtype != np.float64 or times.ndim != 1 or not times.size:
        raise InputError(f"{file} makes its reader send garbage: is the file intact?")
    if not (np.isfinite(times) & (times > 0)).all():
        raise InputError(f"{file} makes its reader send times that cannot be: is the file intact?")
    return times


def existing(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The paths, all of them files.

    Raises:
        InputError: one is none.
    """
    files = [Path(path) for path in paths]
    for file in files:
        if not file.is_file():
            raise InputError(f"no such file: {file}")
    return files


def identity(file: Path) -> tuple[str, int]:
    """Which file it is, whatever its name: its SHA-256, and its size in bytes.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        return sha256_of(file), file.stat().st_size
    except FileNotFoundError as error:
        raise InputError(f"no such file: {file}") from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def now() -> str:
    """The date and time in UTC: ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


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


def kapps_version() -> dict[str, str]:
    """The first of what measured."""
    return {"kapps": kapps.__version__}
