"""TFLite's own `benchmark_model` on a device: how it is put there, started and judged.

The tool: https://ai.google.dev/edge/litert/models/measurement. It tells the median of its runs, but
no sample, no p90 and no p99, so that it is launched several times, the files in turns. What it says
is read in `tool_output` and `tool_placement`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import kapps
from kapps._errors import InputError, one_line
from kapps.tflite.child import check_time_limit
from kapps.tflite.measurement import tool_placement
from kapps.tflite.measurement.latency import Latency, StopRule, identity, now
from kapps.tflite.measurement.placement import Placement
from kapps.tflite.measurement.profile import Profiled, of_tool
from kapps.tflite.measurement.tool_output import (
    NEWER,
    Launch,
    parse_result,
    parse_text,
    unconsumed,
    which_tool,
)
from kapps.tflite.measurement.transport import Completed, Transport

LAUNCHES = 5

# What switches an accelerator on, and its name in the tool's text. Without the flag of the CPU's,
# the tool applies the same delegate and does not tell it.
ACCELERATORS = {
    "cpu": ("--use_xnnpack=true", "XNNPACK"),
    "gpu": ("--use_gpu=true", "GPU"),
    "nnapi": ("--use_nnapi=true", "NNAPI"),
}

_SECONDS = 60.0  # that a short command may take
# The one is of TensorFlow Lite's tool, the other of LiteRT's; each warns of the one it lacks.
_PROFILING = ("--enable_op_profiling=true", "--use_profiler=true")
_WARMUP = ("--warmup_runs=8", "--warmup_min_secs=0.5")

# What lies in a folder that was left over is of no use to anyone: the next run takes it away. A
# folder's time changes with each launch, which takes an hour at most by default: one in use is
# younger than 70 minutes.
_END = """
end() {
  pid=$(cat "$1/pid" 2>/dev/null) && grep -q "$1" "/proc/$pid/cmdline" 2>/dev/null && kill -9 "$pid"
  rm -rf "$1"
}
"""
_CLEAN = _END + 'end "$0"'
_SWEEP = (
    _END
    + """
for folder in "$0"/kapps-????????????????; do
  [ -d "$folder" ] && [ -n "$(find "$folder" -maxdepth 0 -mmin +70)" ] && end "$folder"
done
true
"""
)
# The pid stays, so that a run left behind can be ended. Its file is a new one each time: only that
# changes the folder's time.
_START = 'rm -f "$0/pid"; echo $$ > "$0/pid"; exec "$@"'
_FREQUENCIES = """
for file in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq; do
  core=${file#*/cpu/cpu}
  [ -r "$file" ] && echo "${core%%/*} $(cat "$file")"
done
command -v taskset
"""
_BOARD = """
cat /sys/firmware/devicetree/base/model 2>/dev/null ||
  tr -d '\\n' </sys/class/dmi/id/product_name 2>/dev/null
echo
nproc
uname -sr
"""


@dataclass(frozen=True)
class Settings:
    """How files are measured on a device.

    Attributes:
        threads: of the interpreter.
        accelerator: one of ACCELERATORS.
        stop_rule: what all launches of a file have to reach together.
        launches: of the tool, for each file.
        time_limit: seconds after which the measurement is ended.
        progress: called now and then with the share that is done, 0 to 1.
        input_shape: of the input of files that take any size; None if they take one.
        profile: whether each file is launched once more, for the time of each operation.

    Raises:
        InputError: a number is too small or too large, or there is no such accelerator.
    """

    threads: int
    accelerator: str
    stop_rule: StopRule
    launches: int
    time_limit: float
    progress: Callable[[float], object] = lambda share: None
    input_shape: Sequence[int] | None = None
    profile: bool = False

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            known = ", ".join(ACCELERATORS)
            raise InputError(f"unknown accelerator {self.accelerator!r}: {known}")
        if self.threads < 1 or self.launches < 1:
            raise InputError("threads and launches are at least 1")
        check_time_limit(self.time_limit)


def measure_remote(
    transport: Transport,
    paths: Sequence[str | os.PathLike[str]],
    settings: Settings,
    *,
    root: str,
    device: str,
    binary: Path | None,
    state: Callable[[], Mapping[str, str]],
    notes: Mapping[str, str],
) -> list[Latency]:
    """Measures .tflite files on a device with `benchmark_model`, in turns.

    Files go to a folder of a generated name under `root`, which is removed at the end; what an
    earlier run left there, cut off from its device, is removed at the start.

    Args:
        transport: the way to the device.
        paths: the files.
        settings: see there; progress is told after each launch.
        root: a folder on the device in which programs may run.
        device: what the results call it.
        binary: `benchmark_model` for this device; without it, the one on the device's PATH.
        state: reads what changes with the device's heat, {what: value}: called before and after.
        notes: what else bears on the numbers.

    Raises:
        InputError: the device is gone or has no space, the tool does not run there, is killed,
            fails, or says what makes no sense, or the time is over.
    """
    files = [Path(path) for path in paths]
    if not files:
        return []
    launches, accelerator = settings.launches, settings.accelerator
    deadline = time.monotonic() + settings.time_limit
    identities = [identity(file) for file in files]  # now: a build may replace them meanwhile
    shapes = [input_flags(file, settings.input_shape) for file in files]
    versions = {"kapps": kapps.__version__}
    if binary is not None:
        versions["benchmark_model"] = f"SHA-256 {identity(binary)[0]}"
    pin, pinned = pinning(transport, settings.threads)
    with _folder(transport, root) as folder:
        tool = "benchmark_model"
        if binary is not None:
            tool = f"{folder}/benchmark_model"
            transport.push(binary, tool)
            _checked(transport, ["chmod", "755", tool])
        remote = [f"{folder}/{number}.tflite" for number in range(len(files))]
        for file, path in zip(files, remote, strict=True):
            transport.push(file, path)
        before = state()
        found: list[list[Launch]] = [[] for _ in files]
        placed: list[list[Placed]] = [[] for _ in files]
        tool_name = ""
        profiles: list[tuple[Profiled, ...]] = [() for _ in files]
        rounds = launches + settings.profile  # the last one is for the profile
        for done in range(rounds * len(files)):
            at, profiling = done % len(files), done >= launches * len(files)
            result, runtime_info = f"{folder}/result", f"{folder}/runtime_info"
            command = [
                *("sh", "-c", _START, folder, *pin, tool),
                *tool_flags(settings, remote[at], shapes[at]),
                f"--result_file_path={result}",
                "--export_model_runtime_info=true",
                f"--model_runtime_info_output_file={runtime_info}",
                *(_PROFILING if profiling else ()),
            ]
            left = deadline - time.monotonic()
            if left <= 0:
                raise InputError(
                    f"{files[at]}: the {settings.time_limit:g} s for measuring on "
                    f"{transport.name} are over"
                )
            completed = transport.run(command, time_limit=left)
            where = f"{one_line(files[at])} on {transport.name}"
            _judge(completed, where)
            text = f"{completed.stdout}\n{completed.stderr}"
            if profiling:
                profiles[at] = profiling_of(text, where)
                settings.progress((done + 1) / (rounds * len(files)))
                continue
            tool_name = which_tool(text) or tool_name
            told, timed = (_taken(transport, path) for path in (runtime_info, result))
            launch, where_it_ran = read_launch(text, timed, told, accelerator, where)
            found[at].append(launch)
            placed[at].append(where_it_ran)
            settings.progress((done + 1) / (rounds * len(files)))
        after = state()
    return [
        latency_of(
            file,
            launched,
            settings,
            sha256=sha256,
            size_bytes=size_bytes,
            device=device,
            placed=min(where, key=placed_count),
            profile=profile,
            notes={
                "transport": transport.name,
                **({"tool": tool_name} if tool_name else {}),
                "cores": pinned,
                **notes,
                **changes(before, after),
            },
            versions=versions,
        )
        for file, (sha256, size_bytes), launched, where, profile in zip(
            files, identities, found, placed, profiles, strict=True
        )
    ]


def tool_flags(settings: Settings, graph: str, shape: Sequence[str]) -> list[str]:
    """How the tool measures the file `graph` in one launch; `shape` as of `input_flags`."""
    rule, launches = settings.stop_rule, settings.launches
    return [
        f"--graph={graph}",
        f"--num_threads={settings.threads}",
        f"--num_runs={math.ceil(rule.runs / launches)}",
        f"--min_secs={rule.seconds / launches:g}",
        f"--max_secs={max(60.0, settings.time_limit):g}",
        *_WARMUP,
        ACCELERATORS[settings.accelerator][0],
        *shape,
    ]


def input_flags(file: Path, shape: Sequence[int] | None) -> tuple[str, ...]:
    """What gives the file's input a shape: the tool wants its name as well."""
    if shape is None:
        return ()
    from kapps.tflite.inspection import inspect

    found = inspect(file, input_shape=shape)
    if found.failure:
        raise InputError(f"{file}: {found.failure}")
    if not any(-1 in tensor.signature for tensor in found.inputs):
        return ()
    name = found.inputs[0].name
    if "," in name:  # which separates names
        raise InputError(f"{file}: benchmark_model cannot name its input {name!r}")
    return (f"--input_layer={name}", f"--input_layer_shape={','.join(map(str, shape))}")


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """A device's state before and after, in words."""
    return {
        name: f"{before.get(name, 'not told')} before, {after.get(name, 'not told')} after"
        for name in dict.fromkeys([*before, *after])
    }


def linux_device(transport: Transport) -> str:
    """A board in words: its model, as its device tree or its firmware calls it, and its cores."""
    lines = transport.run(["sh", "-c", _BOARD], time_limit=_SECONDS).stdout.split("\n")
    model, cores, kernel = (one_line(line.replace("\0", "")) for line in [*lines, "", "", ""][:3])
    return f"{model or transport.name}, {cores or '?'} cores, {kernel or '?'}"


def pinning(transport: Transport, threads: int) -> tuple[list[str], str]:
    """The command that keeps another on the big cores, and what it does in words.

    The big cores are those that may run faster than the slowest kind; of those, the fastest kind
    that has enough, and only if none has, several kinds. The command is empty if all are of one
    kind, if the big ones are fewer than the threads, or if it cannot be known.
    """
    completed = transport.run(["sh", "-c", _FREQUENCIES], time_limit=_SECONDS)
    speeds = {
        int(core): int(speed)
        for core, speed in re.findall(r"^(\d{1,3}) (\d{1,9})$", completed.stdout, re.MULTILINE)
    }
    big = sorted(core for core, speed in speeds.items() if speed > min(speeds.values()))
    if not speeds:
        return [], "not pinned: the device does not tell the frequencies of its cores"
    if not big:
        return [], f"not pinned: all {len(speeds)} are of one kind"
    if len(big) < threads:
        return [], f"not pinned: {len(big)} big ones for {threads} threads"
    if "taskset" not in completed.stdout:
        return [], "not pinned: the device has no taskset"
    # A thread on cores of two kinds is now on the one and now on the other.
    for speed in sorted({speeds[core] for core in big}, reverse=True):
        kind = [core for core in big if speeds[core] == speed]
        if len(kind) >= threads:
            big = kind
            break
    mask = f"{sum(1 << core for core in big):x}"
    return ["taskset", mask], f"pinned to {', '.join(map(str, big))} (taskset {mask})"


@contextlib.contextmanager
def _folder(transport: Transport, root: str) -> Iterator[str]:
    """A new folder on the device; it is removed at the end, and what runs from it is ended."""
    transport.run(["sh", "-c", _SWEEP, root], time_limit=_SECONDS)
    folder = f"{root}/kapps-{secrets.token_hex(8)}"
    try:
        _checked(transport, ["mkdir", folder])
        yield folder
    finally:
        with contextlib.suppress(InputError):  # the device is gone: the next run will do it
            transport.run(["sh", "-c", _CLEAN, folder], time_limit=_SECONDS)


def _checked(transport: Transport, arguments: Sequence[str]) -> None:
    completed = transport.run(arguments, time_limit=_SECONDS)
    if completed.code:
        said = one_line(completed.stderr or completed.stdout)
        raise InputError(f"{transport.name}: {arguments[0]} fails there: {said}")


# What the tool says.


def _judge(completed: Completed, where: str) -> None:
    if completed.code == 0:
        return
    said = one_line(_last_lines(completed.stderr) or _last_lines(completed.stdout))
    if completed.code in (126, 127):
        raise InputError(
            f"{where}: benchmark_model does not run there ({said}): is it built for this device?"
        )
    if completed.code > 128:
        raise InputError(
            f"{where}: benchmark_model was killed by signal {completed.code - 128}: out of memory, "
            "or a file that it cannot take"
        )
    raise InputError(f"{where}: benchmark_model failed with exit code {completed.code}: {said}")


def _last_lines(text: str) -> str:
    return " ".join(text.strip().splitlines()[-3:])


def _check_flags(text: str, accelerator: str, where: str) -> None:
    """Refuses what was measured without what was asked for: of that, a build only warns."""
    lacking = {flag.partition("=")[0] for flag in unconsumed(text)}
    if "--input_layer_shape" in lacking:
        raise InputError(
            f"{where}: this benchmark_model gives its input no size (it has no "
            "--input_layer_shape): convert with a fixed size, or take TensorFlow Lite's tool"
        )
    flag = ACCELERATORS[accelerator][0].partition("=")[0]
    if accelerator == "cpu" or flag not in lacking:
        return
    why = f"this build of benchmark_model has no {flag}"
    if accelerator == "nnapi" and which_tool(text) == NEWER:
        why = (
            "NNAPI is deprecated since Android 15, and LiteRT's benchmark_model has no flag for "
            "it; TensorFlow Lite's has, and --accelerator=gpu goes with both"
        )
    raise _nothing_ran(where, accelerator, why)


Placed = tuple[Placement | None, int | None]
"""Where a file ran, and in how many pieces."""


def read_launch(
    text: str, result: bytes | None, runtime_info: bytes | None, accelerator: str, where: str
) -> tuple[Launch, Placed]:
    """What a launch tells of its times and of where it ran.

    Args:
        text: all that it has printed.
        result: its result file, if it wrote one; runtime_info likewise.
        accelerator: what was asked for.
        where: the file and the device, for messages.

    Raises:
        InputError: it measured something else, or says what makes no sense.
    """
    _check_flags(text, accelerator, where)
    placed = _placed(text, runtime_info, accelerator, where)
    return _launch(result, text, where), placed


def _placed(text: str, runtime_info: bytes | None, accelerator: str, where: str) -> Placed:
    """Where it ran; refuses what measured the CPU in the accelerator's place."""
    name = ACCELERATORS[accelerator][1]
    placement, pieces = tool_placement.read(text, runtime_info, accelerator, name)
    if accelerator == "cpu":
        return placement, pieces
    if placement is None:
        raise _nothing_ran(where, accelerator, "benchmark_model does not say that anything did")
    if placement.placed == 0:
        refused = "; ".join(map(str, placement.outside[:3]))
        why = (
            refused or "this device, this build of benchmark_model or this file is not made for it"
        )
        raise _nothing_ran(where, accelerator, why)
    return placement, pieces


def profiling_of(text: str, where: str) -> tuple[Profiled, ...]:
    """The profile that the tool has printed.

    Raises:
        InputError: it has printed none.
    """
    profile = of_tool(text)
    if not profile:
        raise InputError(
            f"{where}: this build of benchmark_model prints no profile; leave --profile out, or "
            "take an official build"
        )
    return profile


def placed_count(placed: Placed) -> float:
    """By which the worst of several launches is found."""
    placement, _ = placed
    return -1 if placement is None or placement.placed is None else placement.placed


def _nothing_ran(where: str, accelerator: str, why: str) -> InputError:
    return InputError(
        f"{where}: nothing of it ran on the accelerator {accelerator}: {why}; "
        "--accelerator=cpu measures the CPU"
    )


def _taken(transport: Transport, path: str) -> bytes | None:
    """What the tool wrote there, which is taken away; None if it wrote nothing."""
    if transport.run(["test", "-s", path], time_limit=_SECONDS).code:
        return None
    content = transport.pull(path)
    _checked(transport, ["rm", "-f", path])
    return content


def _launch(result: bytes | None, text: str, where: str) -> Launch:
    """From the result file, or from the text of builds that write none."""
    launch = parse_text(text) if result is None else parse_result(result)
    if launch is None or not _sensible(launch):
        said = one_line(_last_lines(text))
        raise InputError(
            f"{where}: benchmark_model tells no time that makes sense; its end: {said[:200]!r}"
        )
    return launch


def _sensible(launch: Launch) -> bool:
    times = (launch.mean_ms, launch.p50_ms, launch.p95_ms)
    others = (launch.std_ms, launch.initialization_ms)
    return (
        launch.runs > 0
        and all(value is None or 0 < value < 1e8 for value in times)
        and all(value is None or 0 <= value < 1e8 for value in others)
        and not (launch.p50_ms and launch.p95_ms and launch.p50_ms > launch.p95_ms)
    )


def latency_of(
    file: Path,
    launches: Sequence[Launch],
    settings: Settings,
    *,
    sha256: str,
    size_bytes: int,
    device: str,
    placed: Placed,
    profile: tuple[Profiled, ...],
    notes: Mapping[str, str],
    versions: Mapping[str, str],
) -> Latency:
    """The result of a file from its launches; see the attributes of `Latency`."""
    medians = [launch.p50_ms for launch in launches if launch.p50_ms is not None]
    return Latency(
        file=file,
        device=device,
        threads=settings.threads,
        runs=sum(launch.runs for launch in launches),
        p50_ms=_median(medians),
        p90_ms=None,
        p95_ms=_median(launch.p95_ms for launch in launches),
        p99_ms=None,
        mean_ms=statistics.median(launch.mean_ms for launch in launches),
        std_ms=statistics.median(launch.std_ms for launch in launches),
        initialization_ms=_median(launch.initialization_ms for launch in launches),
        delegate_pieces=placed[1],
        placement=placed[0],
        profile=profile,
        accelerator=settings.accelerator,
        stop_rule=str(settings.stop_rule),
        launches=len(launches),
        launch_p50_ms=tuple(medians),
        peak_memory_mb=_median(launch.peak_memory_mb for launch in launches),
        sha256=sha256,
        size_bytes=size_bytes,
        notes=dict(notes),
        versions=dict(versions),
        date=now(),
    )


def _median(values: Iterator[float | None] | Sequence[float]) -> float | None:
    told = [value for value in values if value is not None]
    return statistics.median(told) if told else None
