"""Android phones, by the `adb` of Android's platform-tools (https://developer.android.com/tools/adb)."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import selectors
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kapps._errors import InputError, one_line
from kapps._files import temporary_folder
from kapps.tflite.measurement import apk, benchmark_tool
from kapps.tflite.measurement.benchmark_tool import Settings
from kapps.tflite.measurement.latency import Latency
from kapps.tflite.measurement.machine import machine
from kapps.tflite.measurement.transport import Completed, quoted

_ROOT = "/data/local/tmp"  # the one folder from which adb's user may run programs
_TOOL = "benchmark_model"
_DOWNLOADS = (
    "https://storage.googleapis.com/tensorflow-nightly-public/prod/tensorflow/release/lite/tools/"
    "nightly/latest/"
)
_DOCUMENTATION = "https://ai.google.dev/edge/litert/models/measurement"
# The official builds, https://ai.google.dev/edge/litert/models/measurement
_BUILDS = {
    "arm64-v8a": "android_aarch64_benchmark_model",
    "armeabi-v7a": "android_arm_benchmark_model",
}
_MACHINES = {  # of an ELF file's header: https://gabi.xinuos.com/elf/02-eheader.html
    183: "arm64-v8a",
    40: "armeabi-v7a",
    62: "x86_64",
    3: "x86",
    243: "riscv64",
}
_THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
_STATES = {
    "unauthorized": "does not trust this computer: unlock it and accept “Allow USB debugging?”",
    "authorizing": "does not trust this computer yet: unlock it and accept “Allow USB debugging?”",
    "offline": "is offline: unplug it, plug it in again",
    "no permissions": "may not be opened by this user: see https://developer.android.com/studio/run/"
    "device",
}
_NO_NNAPI = 15
_NNAPI = "https://developer.android.com/ndk/guides/neuralnetworks/migration-guide"
_POWER = """
echo "saver $(settings get global low_power)"
dumpsys battery
dumpsys power | grep mWakefulness=
"""
_SECONDS = 60.0  # that a short command may take
_END_SECONDS = 10.0  # and one that is run when all is over
_COPY_SECONDS = 120.0  # and a second more for each MB
_OUTPUT_LIMIT = 16 << 20  # bytes of each stream
_COOL_SECONDS = 120.0  # that the phone gets to cool down before it is measured
_COOL_STEP = 5.0


class Adb:
    """A phone, as a `kapps.tflite.measurement.transport.Transport`.

    Attributes:
        name: "adb:SERIAL".

    Args:
        serial: as in `adb devices`; without it, that of ANDROID_SERIAL, as for adb itself, or the
            one phone that is ready.

    Raises:
        InputError: no `adb` here; or no such phone, several of them, or one that is not ready.
    """

    def __init__(self, serial: str | None = None) -> None:
        program = shutil.which("adb")
        if program is None:
            raise InputError(
                "there is no `adb` on this machine: apt-get install adb, or "
                "https://developer.android.com/tools/releases/platform-tools"
            )
        self._program = program
        self._serial = self._choose(serial)
        self.name = f"adb:{self._serial}"

    def run(self, arguments: Sequence[str], *, time_limit: float) -> Completed:
        """Runs a command on the phone; see `Transport`.

        What follows the command tells that it came to its end, and how: the exit code of `adb` is
        also that of its own troubles.
        """
        mark = f"kapps-{secrets.token_hex(16)}"
        line = f"{quoted(arguments)}; printf '\\n%s %d\\n' {mark} $?"
        _, stdout, stderr = self._adb(
            ["-s", self._serial, "shell", "-T", "-n", line], time_limit, arguments[0]
        )
        said, found, code = stdout.rpartition(f"\n{mark} ")
        if not found or not re.fullmatch(r"[0-9]{1,3}\s*", code):
            if re.search("^error: .*(support PTY args|supports allocating a pty)", stderr, re.M):
                raise InputError(
                    f"{self.name} is too old: its adb tells no exit codes; expected Android 7 or "
                    "newer"
                )
            raise self._lost(stderr or stdout)
        return Completed(int(code), said, stderr)

    @contextlib.contextmanager
    def at_the_end(self, arguments: Sequence[str]) -> Iterator[Callable[[], bool]]:
        """Has a command run on the phone when this is over, however it ends.

        Also when this process is killed: its end closes what the phone is waiting on, and so does
        a cable that is pulled.

        Yields:
            What has it run now, and tells whether it did.
        """
        line = f"trap '' HUP; cat >/dev/null; {quoted(arguments)}"
        with subprocess.Popen(
            [self._program, "-s", self._serial, "shell", "-T", line],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt is for us: it would end adb, and not the phone's
        ) as waiting:

            def end() -> bool:
                assert waiting.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    waiting.stdin.close()
                try:
                    return waiting.wait(_END_SECONDS) == 0
                except subprocess.TimeoutExpired:
                    return False

            try:
                yield end
            finally:
                end()
                waiting.kill()

    def push(self, local: Path, remote: str) -> None:
        """Copies a file to the phone; see `Transport`."""
        shown = one_line(local)
        try:
            with open(local, "rb") as file:
                time_limit = _COPY_SECONDS + os.fstat(file.fileno()).st_size / 1e6
        except OSError as error:
            raise InputError(f"cannot read {shown}: {error.strerror}") from error
        code, stdout, stderr = self._adb(
            ["-s", self._serial, "push", str(local.resolve()), remote], time_limit, "push"
        )
        if code:
            said = stderr + stdout
            if "No space left" in said:
                raise InputError(f"{self.name} has no space left for {shown}; free some")
            if "couldn't" in said or "failed to copy" in said:
                # adb itself says so: the phone answered, unless it is gone meanwhile.
                self._still_there(said)
                reason = one_line(said.partition(f" to '{remote}': ")[2].partition("\n")[0])
                raise InputError(f"{self.name}: cannot copy {shown} there: {reason}")
            raise self._lost(said)

    def pull(self, remote: str) -> bytes:
        """The content of a file on the phone; see `Transport`."""
        with temporary_folder() as folder:
            local = folder / "file"
            code, stdout, stderr = self._adb(
                ["-s", self._serial, "pull", remote, str(local)], _COPY_SECONDS, "pull"
            )
            if code or not local.is_file():
                self._still_there(stderr + stdout)
                raise InputError(f"{self.name}: cannot read {remote}: {_reason(stderr + stdout)}")
            if local.stat().st_size > _OUTPUT_LIMIT:
                raise InputError(f"{self.name}: {remote} has over {_OUTPUT_LIMIT >> 20} MiB")
            return local.read_bytes()

    def properties(self, *names: str) -> list[str]:
        """The phone's system properties; "" for one that it has not."""
        script = 'for name in "$@"; do getprop "$name"; done'
        done = self.run(["sh", "-c", script, "sh", *names], time_limit=_SECONDS)
        values = [one_line(line) for line in done.stdout.splitlines()]
        return [*values, *[""] * len(names)][: len(names)]

    def _choose(self, serial: str | None) -> str:
        code, stdout, stderr = self._adb(["devices"], _SECONDS, "devices")
        if code:
            raise InputError(f"adb does not work here: {_reason(stderr or stdout)}")
        states = {}
        for line in stdout.splitlines():
            found, tab, state = line.partition("\t")
            if tab and found:
                states[found.strip()] = state.strip()
        serial = serial or os.environ.get("ANDROID_SERIAL") or None
        if serial is None:
            # One that is offline or not trusted is in nobody's way.
            ready = sorted(name for name, state in states.items() if state == "device")
            if len(ready) > 1:
                raise InputError(
                    f"there are several Android devices: {', '.join(ready)}; choose one, as in "
                    f"--device=adb:{ready[0]}, or by ANDROID_SERIAL"
                )
            serial = next(iter(ready or states), None)
        if serial is None:
            raise InputError(
                "adb finds no Android device: connect one by USB and switch on USB debugging, "
                "https://developer.android.com/studio/debug/dev-options"
            )
        if serial not in states:
            known = ", ".join(sorted(states)) or "none"
            raise InputError(f"adb finds no device {one_line(serial)!r}; connected: {known}")
        if states[serial] != "device":
            raise InputError(f"adb:{serial} {_remedy(states[serial])}")
        return serial

    def _still_there(self, said: str) -> None:
        code, stdout, stderr = self._adb(["-s", self._serial, "get-state"], _SECONDS, "get-state")
        if code or stdout.strip() != "device":
            raise self._lost(stderr or said)

    def _lost(self, said: str) -> InputError:
        # The other lines are of the command that ran there.
        lines = [line for line in said.splitlines() if line.startswith(("adb: ", "error: "))]
        said = "\n".join(lines)
        for state, remedy in _STATES.items():
            if state in said:
                return InputError(f"{self.name} {remedy}")
        reason = _reason(said)
        return InputError(
            f"{self.name} is gone, in the middle of the work: is its cable plugged in?"
            + (f" adb says: {reason}" if reason else "")
        )

    def _adb(self, arguments: Sequence[str], time_limit: float, what: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of adb."""
        with subprocess.Popen(
            [self._program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            said: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
            trouble = "is interrupted"
            try:
                trouble = _follow(process, said, time_limit)
            finally:
                if trouble:
                    process.kill()
        if trouble:
            at = getattr(self, "name", "adb")
            raise InputError(f"{at}: {one_line(what)} {trouble}, and was ended")
        stdout, stderr = (bytes(text).decode(errors="replace") for text in said.values())
        return process.returncode, stdout, stderr


def _follow(process: subprocess.Popen[bytes], said: dict[str, bytearray], time_limit: float) -> str:
    """Reads what a process says until it ends; why it is to be ended before, or ""."""
    limit = time.monotonic() + time_limit
    with selectors.DefaultSelector() as selector:
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            assert pipe is not None
            selector.register(pipe, selectors.EVENT_READ, name)
        while selector.get_map():
            for key, _ in selector.select(max(0.0, limit - time.monotonic())):
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                said[key.data] += chunk
                if len(said[key.data]) > _OUTPUT_LIMIT:
                    return f"says over {_OUTPUT_LIMIT >> 20} MiB"
            if time.monotonic() >= limit:
                return f"takes over {time_limit:.0f} s"
    return ""


def measure(
    paths: Sequence[str | os.PathLike[str]],
    settings: Settings,
    *,
    serial: str | None,
    binary: str | os.PathLike[str] | None,
    app: str | os.PathLike[str] | None = None,
) -> list[Latency]:
    """Measures .tflite files on an Android phone, by `benchmark_tool.measure_remote`, or by an app.

    The phone gets time to cool down first. It is in its fixed-performance mode meanwhile, where it
    has one.

    Args:
        paths: the files.
        settings: see there.
        serial: of the phone; None if there is only one.
        binary: `benchmark_model` for the phone.
        app: the app of the same tool, in place of the binary: see `apk.measure_app`.

    Raises:
        InputError: see `Adb` and there; or the binary is missing or built for other phones.
    """
    phone = Adb(serial)
    maker, model, release, abis, abi = phone.properties(
        "ro.product.manufacturer",
        "ro.product.model",
        "ro.build.version.release",
        "ro.product.cpu.abilist",
        "ro.product.cpu.abi",
    )
    device = f"{maker} {model}".strip() or "an Android device"
    tool = None
    if app is None:
        tool = _checked_binary(binary, abis.split(",") if abis else [abi], phone.name)
    processor = machine(phone)
    settings = processor.settings(settings)
    heat = _cool_down(phone)
    with _fixed_performance(phone) as fixed:
        notes = {"fixed-performance mode": fixed, "cooled down": heat}
        if settings.accelerator == "nnapi" and _major(release) >= _NO_NNAPI:
            notes["NNAPI"] = f"deprecated since Android {_NO_NNAPI}: {_NNAPI}"
        common: dict[str, Any] = {
            "root": _ROOT,
            "device": f"{device}, Android {release or '?'}",
            "state": lambda: {"thermal state": _thermal_state(phone)[1], **_power_state(phone)},
            "notes": notes,
        }
        if app is not None:
            found = apk.measure_app(phone, paths, settings, apk=app, **common)
        else:
            found = benchmark_tool.measure_remote(phone, paths, settings, binary=tool, **common)
    return [processor.result(each) for each in found]


def _major(release: str) -> int:
    """Android's version, of "14" or "8.1.0"; 0 if it is no number."""
    major = release.partition(".")[0]
    return int(major) if re.fullmatch("[0-9]{1,3}", major) else 0


def _checked_binary(binary: str | os.PathLike[str] | None, abis: Sequence[str], name: str) -> Path:
    """The tool's path, if it is there and built for one of the phone's ABIs, best first."""
    build = next((_BUILDS[abi] for abi in abis if abi in _BUILDS), None)
    fetch = (
        f"fetch the official build {_DOWNLOADS}{build}"
        if build
        else f"there is no official build for that: build it, {_DOCUMENTATION}"
    )
    if binary is None:
        raise InputError(
            f"--benchmark_binary must be given: {_TOOL} for {name} ({abis[0] or '?'}); {fetch}"
        )
    path = Path(binary)
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; {fetch}") from error
    if head[:4] == b"\x7fELF" and len(head) == 20:
        (machine,) = struct.unpack_from(">H" if head[5] == 2 else "<H", head, 18)
        built_for = _MACHINES.get(machine, f"machine {machine}")
        if built_for not in abis:
            raise InputError(
                f"{path} is built for {built_for}, and {name} runs {', '.join(abis)}; {fetch}"
            )
    elif head[:2] != b"#!":
        raise InputError(f"{path} is no program for a phone; {fetch}")
    return path


@contextlib.contextmanager
def _fixed_performance(phone: Adb) -> Iterator[str]:
    """The mode in which the clock does not follow the heat, Android 11 and newer; "on" if so.

    https://developer.android.com/games/optimize/adpf/fixed-performance-mode
    """
    command = ["cmd", "power", "set-fixed-performance-mode-enabled"]
    on: bool | None = None  # not known: an interrupt may come when the phone has already done it
    with phone.at_the_end([*command, "false"]) as end:
        try:
            on = phone.run([*command, "true"], time_limit=_SECONDS).code == 0
            yield "on" if on else "the phone has none"
        finally:
            if on is not False and not end():
                with contextlib.suppress(InputError):  # the phone is gone
                    phone.run([*command, "false"], time_limit=_SECONDS)


def _power_state(phone: Adb) -> dict[str, str]:
    """What else slows a phone down, in words: its battery saver, its battery and its screen."""
    said = phone.run(["sh", "-c", _POWER], time_limit=_SECONDS).stdout
    saver = re.search(r"^saver ([01])$", said, re.MULTILINE)
    level = re.search(r"^\s*level: (\d{1,3})\s*$", said, re.MULTILINE)
    plugs = re.findall(r"^\s*(\w{1,20}) powered: (true|false)\s*$", said, re.MULTILINE)
    awake = re.search(r"\bmWakefulness=(\w{1,20})", said)
    plugged = ", ".join(plug for plug, on in plugs if on == "true")
    charge = f", {level.group(1)} %" if level else ""
    return {
        "battery saver": ("off", "on")[int(saver.group(1))] if saver else "not told",
        "battery": (f"charged by {plugged}" if plugged else "not charged") + charge
        if plugs
        else "not told",
        "screen": {"Awake": "on"}.get(awake.group(1), "off") if awake else "not told",
    }


def _thermal_state(phone: Adb) -> tuple[int | None, str]:
    """How much the phone throttles, 0 to 6 and in words (Android 10 and newer).

    https://developer.android.com/games/optimize/adpf/thermal
    """
    done = phone.run(["dumpsys", "thermalservice"], time_limit=_SECONDS)
    found = re.search(r"^\s*Thermal Status: (\d)\s*$", done.stdout, re.MULTILINE)
    status = int(found.group(1)) if found else None
    if status is None or status >= len(_THERMAL):
        return None, "not told"
    return status, f"{status} ({_THERMAL[status]})"


def _cool_down(phone: Adb) -> str:
    """Waits until the phone does not throttle, but not for ever; what became of it, in words."""
    began = time.monotonic()
    while True:
        status, words = _thermal_state(phone)
        waited = time.monotonic() - began
        if not status:
            return f"{waited:.0f} s" if waited >= _COOL_STEP else "no need"
        if waited >= _COOL_SECONDS:
            return f"{waited:.0f} s, and still {words}"
        time.sleep(min(_COOL_STEP, _COOL_SECONDS))


def _remedy(state: str) -> str:
    for known, remedy in _STATES.items():
        if state.startswith(known):
            return remedy
    return f"is in the state {one_line(state)!r}: start it as usual, and unlock it"


def _reason(said: str) -> str:
    """The last line of what adb says, without its prefixes."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return one_line(re.sub(r"^(adb: |error: )+", "", lines[-1].strip())) if lines else ""
