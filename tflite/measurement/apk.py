"""TensorFlow Lite's benchmark as an app on a phone: org.tensorflow.lite.benchmark.

An app is placed on cores and on the GPU as an app is: that is what a user's phone does.
https://github.com/google-ai-edge/LiteRT/tree/main/tflite/tools/benchmark/android tells how it is
installed and started. It says all that it has to say in the phone's log.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import kapps
from kapps._errors import InputError, one_line
from kapps.tflite.measurement.benchmark_tool import (
    Placed,
    Settings,
    changes,
    input_flags,
    latency_of,
    placed_count,
    read_launch,
    tool_flags,
)
from kapps.tflite.measurement.latency import Latency, identity
from kapps.tflite.measurement.tool_output import CLASSIC, Launch
from kapps.tflite.measurement.transport import Transport

_PACKAGE = "org.tensorflow.lite.benchmark"
_ACTIVITY = f"{_PACKAGE}/.BenchmarkModelActivity"
_SECONDS = 60.0  # that a short command may take
_INSTALL_SECONDS = 300.0
_EVERY = 1.0  # seconds between two looks at the log
_GONE = 3  # looks without a process, after which it is believed
# What the tool says before it gives up; the app then ends without a word
# (tflite/tools/benchmark/benchmark_tflite_model.cc).
_FAILED = re.compile(
    r"^(Failed to (?:load model|initialize|apply|allocate|set|read).*|Disallowed CPU fallback.*"
    r"|Cannot find the corresponding.*)$",
    re.MULTILINE,
)
_END = re.compile(r"^Inference timings in us: ", re.MULTILINE)
# "05-31 10:38:42.582 22206 22206 I tflite  : Graph: [...]", as `logcat -v threadtime` has it.
_LINE = re.compile(r"\d\d-\d\d [\d:.]{8,18} +(\d{1,10}) +\d{1,10} [VDIWEFA] ([^:]{1,60}?) *: ?(.*)")
_STARTED = "Running TensorFlow Lite benchmark with args: "


def measure_app(
    phone: Transport,
    paths: Sequence[str | os.PathLike[str]],
    settings: Settings,
    *,
    root: str,
    device: str,
    apk: str | os.PathLike[str],
    state: Callable[[], Mapping[str, str]],
    notes: Mapping[str, str],
) -> list[Latency]:
    """Measures .tflite files on a phone with the benchmark app, in turns.

    The app is taken away at the end, unless it was there before.

    Args:
        phone: the way to it.
        paths: the files.
        settings: see there; there is no profile, since a log cuts it off.
        root: a folder on the phone from which apps may read.
        device: what the results call it.
        apk: the app.
        state: see `benchmark_tool.measure_remote`; notes likewise.

    Raises:
        InputError: the file is no app or cannot be installed, or as of `measure_remote`.
    """
    if settings.profile:
        raise InputError(
            "--profile needs --benchmark_binary: of the app's profile the phone's log keeps a part"
        )
    app = _checked_app(apk)
    files = [Path(path) for path in paths]
    deadline = time.monotonic() + settings.time_limit
    identities = [identity(file) for file in files]  # now: a build may replace them meanwhile
    flags = [_one_word(file, input_flags(file, settings.input_shape)) for file in files]
    versions = {"kapps": kapps.__version__, "benchmark app": f"SHA-256 {identity(app)[0]}"}
    with _folder(phone, root) as folder, _installed(phone, app, folder):
        remote = [f"{folder}/{number}.tflite" for number in range(len(files))]
        for file, path in zip(files, remote, strict=True):
            phone.push(file, path)
            _checked(phone, ["chmod", "644", path])
        before = state()
        found: list[list[Launch]] = [[] for _ in files]
        placed: list[list[Placed]] = [[] for _ in files]
        for done in range(settings.launches * len(files)):
            at = done % len(files)
            where = f"{one_line(files[at])} on {phone.name}"
            arguments = " ".join(tool_flags(settings, remote[at], flags[at]))
            text = _launched(phone, arguments, where, deadline, settings.time_limit)
            launch, where_it_ran = read_launch(text, None, None, settings.accelerator, where)
            found[at].append(launch)
            placed[at].append(where_it_ran)
            settings.progress((done + 1) / (settings.launches * len(files)))
        after = state()
    told = {
        "transport": phone.name,
        "tool": f"{CLASSIC}, as an app",
        "cores": "not pinned: an app's threads are where Android puts them",
        **notes,
        **changes(before, after),
    }
    return [
        latency_of(
            file,
            launches,
            settings,
            sha256=sha256,
            size_bytes=size_bytes,
            device=device,
            placed=min(where_it_ran, key=placed_count),
            profile=(),
            notes=told,
            versions=versions,
        )
        for file, (sha256, size_bytes), launches, where_it_ran in zip(
            files, identities, found, placed, strict=True
        )
    ]


def _checked_app(apk: str | os.PathLike[str]) -> Path:
    path = Path(apk)
    try:
        with zipfile.ZipFile(path) as archive:
            if "AndroidManifest.xml" in archive.namelist():
                return path
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        pass
    raise InputError(
        f"{path} is no Android app: the official ones are android_aarch64_benchmark_model.apk and "
        "the like, https://ai.google.dev/edge/litert/models/measurement"
    )


def _one_word(file: Path, flags: Sequence[str]) -> Sequence[str]:
    """The flags, if the app takes each as it is: it splits what it gets at white space."""
    if any(re.search(r"\s", flag) for flag in flags):
        raise InputError(f"{file}: the app cannot name its input; use --benchmark_binary")
    return flags


@contextlib.contextmanager
def _folder(phone: Transport, root: str) -> Iterator[str]:
    """A new folder that the app may read; it is removed at the end."""
    folder = f"{root}/kapps-{secrets.token_hex(8)}"
    try:
        _checked(phone, ["mkdir", folder])
        _checked(phone, ["chmod", "755", folder])
        yield folder
    finally:
        with contextlib.suppress(InputError):  # the phone is gone: a later run will do it
            phone.run(["rm", "-rf", folder], time_limit=_SECONDS)


@contextlib.contextmanager
def _installed(phone: Transport, app: Path, folder: str) -> Iterator[None]:
    """The app on the phone; it is ended, and taken away if it was not there before."""
    there = phone.run(["pm", "path", _PACKAGE], time_limit=_SECONDS)
    remote = f"{folder}/benchmark.apk"
    phone.push(app, remote)
    try:
        install = ["pm", "install", "-r", "-d", "-g", remote]
        done = phone.run(install, time_limit=_INSTALL_SECONDS)
        if done.code or "Success" not in done.stdout:
            said = re.search(r"INSTALL_\w+|Failure.*|Error.*", f"{done.stdout}\n{done.stderr}")
            why = one_line(said.group(0)) if said else "it does not say why"
            raise InputError(f"{phone.name} does not install {app}: {why}")
        if phone.run(["pm", "path", _PACKAGE], time_limit=_SECONDS).code:
            raise InputError(f"{app} is another app than {_PACKAGE}: take the official one")
        yield
    finally:
        with contextlib.suppress(InputError):
            phone.run(["am", "force-stop", _PACKAGE], time_limit=_SECONDS)
            if there.code or not there.stdout.strip():
                phone.run(["pm", "uninstall", _PACKAGE], time_limit=_SECONDS)


def _launched(
    phone: Transport, arguments: str, where: str, deadline: float, time_limit: float
) -> str:
    """What the app says from its start to its end, without the log's own words."""
    since = phone.run(["date", "+%m-%d %H:%M:%S.000"], time_limit=_SECONDS).stdout.strip()
    token = f"--benchmark_name=kapps-{secrets.token_hex(8)}"  # which no other launch has
    start = ["am", "start", "-S", "-n", _ACTIVITY, "--es", "args", f"{arguments} {token}"]
    _checked(phone, start)
    logcat = [
        *("logcat", "-d", "-v", "threadtime", "-T", since, "-s", "tflite:V"),
        "tflite_BenchmarkModelActivity:V",
    ]
    missing, ended = 0, False
    while True:
        text = _of_launch(phone.run(logcat, time_limit=_SECONDS).stdout, token)
        if ended:
            return text
        if ended := _END.search(text) is not None:
            continue  # a last time: it says a little more
        if failed := _FAILED.search(text):
            raise InputError(f"{where}: the benchmark app failed: {one_line(failed.group(0))}")
        running = phone.run(["pidof", _PACKAGE], time_limit=_SECONDS).code == 0
        missing = 0 if running else missing + 1
        if missing == _GONE:
            said = one_line(" ".join(text.strip().splitlines()[-2:])) or "nothing"
            raise InputError(
                f"{where}: the benchmark app ended in the middle: out of memory, or a file that it "
                f"cannot take; its last words: {said[:200]}"
            )
        if time.monotonic() > deadline:
            raise InputError(f"{where}: the {time_limit:g} s for measuring are over")
        time.sleep(_EVERY)


def _of_launch(log: str, token: str) -> str:
    """The messages of the process that was started with this argument."""
    lines = [match.groups() for match in map(_LINE.fullmatch, log.splitlines()) if match]
    mine = None
    found: list[str] = []
    for pid, _, message in lines:
        if message.startswith(_STARTED) and token in message:
            mine, found = pid, []
        elif pid == mine:
            found.append(message)
    return "\n".join(found)


def _checked(phone: Transport, arguments: Sequence[str]) -> None:
    done = phone.run(arguments, time_limit=_SECONDS)
    # `am` ends well, whatever it says.
    if done.code or re.search(r"^Error", f"{done.stdout}\n{done.stderr}", re.MULTILINE):
        said = one_line(done.stderr or done.stdout)
        raise InputError(f"{phone.name}: {arguments[0]} {arguments[1]} fails there: {said}")
