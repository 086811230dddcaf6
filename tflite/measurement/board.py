"""How long one image takes on a Linux board that has ai-edge-litert.

A small script goes there and runs; what it sends back is not trusted. Boards that have the tool
`benchmark_model` are measured with it: see `kapps.tflite.measurement.benchmark_tool`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kapps._errors import InputError, is_number
from kapps._files import temporary_folder
from kapps.tflite.child import check_time_limit
from kapps.tflite.inspection import inspect_each
from kapps.tflite.inspection.versions import NEWEST_OF_FOUR_BITS, too_old
from kapps.tflite.measurement.benchmark_tool import linux_device, pinning
from kapps.tflite.measurement.latency import identity
from kapps.tflite.measurement.placement import Placement, of_operations
from kapps.tflite.measurement.profile import RUNS, SECONDS, Profiled, of_runs
from kapps.tflite.measurement.ssh import Ssh, last_line

_SCRIPT = Path(__file__).with_name("on_board.py")
_PROFILER = Path(__file__).with_name("profile_on_board.py")
_PREFIX = "kapps-benchmark."
_MOST_OPERATIONS = 100_000
_SHORT = 30.0  # seconds for a command that takes none
_PROBE = """
try:
    import numpy
    try:
        import ai_edge_litert as package, ai_edge_litert.interpreter
    except ImportError:
        import tflite_runtime as package, tflite_runtime.interpreter
except ImportError as error:
    raise SystemExit("kapps: %s" % error)
name = package.__name__.replace("_", "-")
print("kapps: ready, %s %s" % (name, getattr(package, "__version__", "")))
"""
_REMEDY = (
    "install it there (pip install ai-edge-litert), or use the tool benchmark_model: put it on the "
    "board's PATH or give it by --benchmark_binary"
)
# Leftovers of runs that lost their board are a day old; what is younger may be in use.
_CLEAN = (
    'find "${TMPDIR:-/tmp}" -maxdepth 1 -type d -name "$1*" -mmin +1440 -user "$(id -u)" '
    "-exec rm -rf {} +"
)


# Lines "temperature NAME MILLIDEGREES", "governor NAME", "load AVERAGE".
_STATE = """
for zone in "$1"/class/thermal/thermal_zone*; do
  [ -r "$zone/temp" ] && echo "temperature $(cat "$zone/type") $(cat "$zone/temp")"
done
cat "$1"/devices/system/cpu/cpu*/cpufreq/scaling_governor | sort -u | sed 's/^/governor /'
echo "load $(cut -d' ' -f1 /proc/loadavg)"
"""


@dataclass(frozen=True)
class BoardFile:
    """One file on the board.

    Attributes:
        samples_ms: the time of each run, milliseconds, in order.
        initialization_ms: loading the file and applying the delegate.
        peak_memory_bytes: by how much a process grows that loads the file and runs it once; None
            if the board does not tell.
        delegate_pieces: into how many pieces the delegate took the graph, or None likewise.
        placement: which operations the delegate took, or None likewise.
    """

    samples_ms: tuple[float, ...]
    initialization_ms: float
    peak_memory_bytes: int | None
    delegate_pieces: int | None
    placement: Placement | None


@dataclass(frozen=True)
class BoardState:
    """What slows a board down.

    Attributes:
        temperatures: degrees Celsius by type of thermal zone.
        governors: of the clocks of its cores.
        load: how many processes wanted a core, on average over a minute.
    """

    temperatures: Mapping[str, float]
    governors: tuple[str, ...]
    load: float


@dataclass(frozen=True)
class BoardRun:
    """What was measured on a board, all files in one process and in turns.

    Attributes:
        board: its model, its cores and its kernel.
        runtime: the interpreter's name and version.
        cpus: the cores that it ran on: the big ones, if they differ.
        before: the board's state before the first run; `after` likewise.
        files: in the order given; `identities` are their SHA-256 and sizes in bytes.
        profiles: of each file, if that was asked for.
    """

    board: str
    runtime: str
    cpus: tuple[int, ...]
    before: BoardState
    after: BoardState
    files: tuple[BoardFile, ...]
    identities: tuple[tuple[str, int], ...]
    profiles: tuple[tuple[Profiled, ...], ...]


def measure_board(
    ssh: Ssh,
    paths: Sequence[str | os.PathLike[str]],
    *,
    threads: int = 1,
    warmup: int = 8,
    min_runs: int = 64,
    min_seconds: float = 6.0,
    input_shape: Sequence[int] | None = None,
    time_limit: float = 3600.0,
    python: str = "python3",
    sys_folder: str = "/sys",
    profile: bool = False,
    progress: Callable[[float], object] = lambda share: None,
) -> BoardRun:
    """Measures .tflite files with the board's ai-edge-litert, one image at a time, in turns.

    Args:
        ssh: the board.
        paths: the files.
        threads: of the interpreter.
        warmup: runs of each file before the first that counts.
        min_runs: measured runs of each file, at least.
        min_seconds: measured time of each file, at least.
        input_shape: of the input of files that take any size.
        time_limit: seconds after which the measurement is ended.
        python: the board's Python.
        sys_folder: where the board's kernel tells of clocks and temperatures.
        profile: whether each file is run once more, for the time of each operation.
        progress: called now and then with the share that is done, 0 to 1.

    Raises:
        InputError: a file is not there, does not load or kills the interpreter; the board has no
            Python or no interpreter or one that is too old for a file's weights of 4 bits, no
            space, sends what makes no sense, or is gone.
    """
    if threads < 1 or warmup < 0 or min_runs < 1 or min_seconds < 0:
        raise InputError("threads and min_runs are at least 1, warmup and min_seconds at least 0")
    check_time_limit(time_limit)
    files = [Path(path) for path in paths]
    identities = tuple(identity(file) for file in files)  # now: a build may replace them meanwhile
    if not files:
        raise InputError("nothing to measure: no files")
    _check_age(ssh, _runtime(ssh, python), files)
    name = linux_device(ssh)
    pin, _ = pinning(ssh, threads)
    with remote_folder(ssh) as folder, temporary_folder() as local:
        names = [f"{folder}/{index}.tflite" for index in range(len(files))]
        for file, remote in zip(files, names, strict=True):
            ssh.push(file, remote)
        request = local / "request.json"
        request.write_text(
            json.dumps(
                {
                    "files": names,
                    "threads": threads,
                    "warmup": warmup,
                    "min_runs": min_runs,
                    "min_seconds": min_seconds,
                    "input_shape": input_shape,
                }
            )
        )
        ssh.push(_SCRIPT, f"{folder}/measure.py")
        ssh.push(request, f"{folder}/request.json")
        last: dict[str, Any] = {}

        def on_line(line: str) -> None:
            message = _json(line)
            last.update(message)
            share = message.get("share")
            if share is not None and is_number(share) and 0 <= share <= 1:
                progress(share)

        before = board_state(ssh, sys_folder)
        done = ssh.run(
            [*pin, python, f"{folder}/measure.py", f"{folder}/request.json"],
            time_limit=time_limit,
            on_line=on_line,
        )
        after = board_state(ssh, sys_folder)
        profiles = []
        for file, remote in zip(files if profile and not done.code else (), names, strict=False):
            asked = {"path": remote, "threads": threads, "input_shape": input_shape}
            request.write_text(json.dumps({**asked, "runs": RUNS, "seconds": SECONDS}))
            profiles.append(_profile(ssh, [*pin, python], folder, request, file, time_limit))
    at = last.get("at")
    at_file = f" at {files[at]}" if type(at) is int and 0 <= at < len(files) else ""
    if isinstance(last.get("error"), str):
        raise InputError(f"{ssh.name} refuses a file{at_file}: {last_line(last['error'])}")
    if done.code > 128:
        raise InputError(
            f"{ssh.name}: Python was killed ({_signal(done.code - 128)}){at_file}: does the file "
            "run elsewhere, and is there enough memory?"
        )
    if done.code:
        raise InputError(f"{ssh.name}: the measurement failed{at_file}: {last_line(done.stderr)}")
    try:
        runtime, cpus, results = _checked(last.get("result"), len(files))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{ssh.name} sent no valid result ({last_line(repr(error))}); does its Python print "
            "anything by itself?"
        ) from error
    return BoardRun(name, runtime, cpus, before, after, results, identities, tuple(profiles))


def _profile(
    ssh: Ssh, python: list[str], folder: str, request: Path, file: Path, time_limit: float
) -> tuple[Profiled, ...]:
    """The profile of one file, by the board's LiteRT."""
    ssh.push(_PROFILER, f"{folder}/profile.py")
    ssh.push(request, f"{folder}/request.json")
    done = ssh.run(
        [*python, f"{folder}/profile.py", f"{folder}/request.json"], time_limit=time_limit
    )
    answer = _json(done.stdout.strip().rpartition("\n")[2])
    if isinstance(answer.get("error"), str):
        raise InputError(f"{ssh.name}: no profile of {file}: {last_line(answer['error'])}")
    try:
        return of_runs(answer["result"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        said = last_line(done.stderr) or f"exit code {done.code}"
        raise InputError(f"{ssh.name}: no profile of {file}: {said}") from error


def board_state(ssh: Ssh, sys_folder: str = "/sys") -> BoardState:
    """How hot the board is, how its clocks are governed, and what else it does."""
    done = ssh.run(["sh", "-c", _STATE, "sh", sys_folder], time_limit=_SHORT)
    temperatures: dict[str, float] = {}
    governors: list[str] = []
    load = 0.0
    for line in done.stdout.splitlines()[:256]:
        what, _, rest = last_line(line).partition(" ")
        zone, _, value = rest.rpartition(" ")
        if what == "temperature" and zone and re.fullmatch(r"-?\d{1,7}", value):
            # Several zones may be of one type: the hottest of them.
            temperatures[zone] = max(temperatures.get(zone, -1e9), int(value) / 1000)
        elif what == "governor" and rest:
            governors.append(rest)
        elif what == "load" and re.fullmatch(r"\d{1,6}(\.\d{1,6})?", rest):
            load = float(rest)
    return BoardState(temperatures, tuple(governors), load)


def state_words(state: BoardState) -> dict[str, str]:
    """A board's state, {what: in words}."""
    hottest = max(state.temperatures.values(), default=None)
    return {
        "hottest zone": "not told" if hottest is None else f"{hottest:.1f} °C",
        "governors": ", ".join(state.governors) or "not told",
        "load": f"{state.load:.2f}",
    }


@contextlib.contextmanager
def remote_folder(ssh: Ssh) -> Iterator[str]:
    """A new folder on the board under a generated name, which is removed again.

    Raises:
        InputError: none can be made.
    """
    ssh.run(["sh", "-c", _CLEAN, "sh", _PREFIX], time_limit=_SHORT)
    done = ssh.run(["mktemp", "-d", "-t", f"{_PREFIX}XXXXXXXXXX"], time_limit=_SHORT)
    folder = done.stdout.strip()
    if done.code or not re.fullmatch(rf"/[^\0\n]*/{re.escape(_PREFIX)}\w{{10}}", folder):
        raise InputError(
            f"{ssh.name}: no folder for the files: {last_line(done.stderr or done.stdout)}"
        )
    try:
        yield folder
    finally:
        with contextlib.suppress(InputError):  # it is gone: said already, or the files are all here
            ssh.run(["rm", "-rf", "--", folder], time_limit=_SHORT)


def has_tool(ssh: Ssh, tool: str = "benchmark_model") -> bool:
    """Whether the board has `tool` on its PATH."""
    command = f"command -v {shlex.quote(tool)} >/dev/null"
    return ssh.run(["sh", "-c", command], time_limit=_SHORT).code == 0


def _runtime(ssh: Ssh, python: str) -> str:
    """The name and version of the interpreter that the board's Python has."""
    done = ssh.run([python, "-c", _PROBE], time_limit=2 * _SHORT)
    if "kapps: ready" in done.stdout:
        return last_line(done.stdout.partition("kapps: ready, ")[2])
    if done.code in (126, 127):
        raise InputError(
            f"{ssh.name} has neither benchmark_model nor {python} to run ai-edge-litert: {_REMEDY}"
        )
    why = last_line(done.stderr).rpartition("kapps: ")[2]
    raise InputError(f"{ssh.name} has no ai-edge-litert for its {python} ({why}): {_REMEDY}")


def _check_age(ssh: Ssh, runtime: str, files: Sequence[Path]) -> None:
    """An old runtime loads weights of 4 bits, and then ends or gives other numbers unsaid."""
    if not too_old(runtime, NEWEST_OF_FOUR_BITS):
        return
    for file, found in zip(files, inspect_each(files), strict=True):
        if isinstance(found, InputError) or not found.variant.startswith("int4"):
            continue
        if needed := too_old(runtime, found.oldest_runtime or ""):
            raise InputError(
                f"{file} has weights of 4 bits, which {ssh.name}'s {runtime} computes wrongly: "
                f"install {needed} or newer there"
            )


def _json(line: str) -> dict[str, Any]:
    """A line that is a JSON object, or nothing: Python may print warnings in between."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _checked(result: Any, files: int) -> tuple[str, tuple[int, ...], tuple[BoardFile, ...]]:
    """Runtime, cores and each file's figures in what the script sent, if they can be true."""
    if not isinstance(result, dict):
        raise TypeError("no result")
    if len(result["files"]) != files:
        raise ValueError(f"{len(result['files'])} files of {files}")
    if not isinstance(result["runtime"], str):
        raise TypeError("the runtime is no text")
    return (
        last_line(result["runtime"]),
        tuple(_integer(cpu) for cpu in result["cpus"][:4096]),
        tuple(_file(file) for file in result["files"]),
    )


def _file(values: Mapping[str, Any]) -> BoardFile:
    samples = tuple(_milliseconds(value) for value in values["samples_ms"])
    if not samples:
        raise ValueError("no samples")
    memory, told = values["peak_memory_bytes"], values["operations"]
    placement, pieces = (None, None) if told is None else of_operations(_operations(told))
    return BoardFile(
        samples_ms=samples,
        initialization_ms=_milliseconds(values["initialization_ms"]),
        peak_memory_bytes=None if memory is None else _integer(memory),
        delegate_pieces=pieces,
        placement=placement,
    )


def _operations(values: Any) -> list[dict[str, Any]]:
    """An interpreter's list of its operations, if it can be one."""
    if not isinstance(values, list) or not 0 < len(values) <= _MOST_OPERATIONS:
        raise ValueError("no list of operations")
    return [
        {
            "op_name": last_line(str(op["op_name"]))[:200] or "?",
            **{end: [_tensor(number) for number in op[end]] for end in ("inputs", "outputs")},
        }
        for op in values
    ]


def _tensor(value: Any) -> int:
    """The number of a tensor; -1 is one that is left out."""
    return -1 if value == -1 else _integer(value)


def _milliseconds(value: Any) -> float:
    if not is_number(value) or not 0 < value < 1e9:
        raise ValueError(f"{value!r:.40} is no time")
    return float(value)


def _integer(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
