"""A device's processor, and whether it is a real one: emulated time is not the device's.

QEMU's user mode (https://www.qemu.org/docs/master/user/main.html) answers what a program asks of
itself as the emulated processor would: `uname`, its auxiliary vector, its own /proc/self. What
another process reads of it comes from the real kernel: there it is a program of another processor.
Emulators of a whole machine look real from inside, so that they are known by the names that they
give what they emulate; one that takes the names of a real device is not told from it.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from kapps._errors import one_line
from kapps.tflite.measurement.benchmark_tool import Settings
from kapps.tflite.measurement.latency import Latency, StopRule
from kapps.tflite.measurement.transport import Transport

_SECONDS = 60.0
_MOST = 1 << 20  # characters, of a thousand cores
# $$ is the shell that runs this, and what reads its /proc is another process.
_SCRIPT = """
echo "machine $(uname -m)"
echo "program $(readlink "/proc/$$/exe")"
echo "elf $(od -A n -t u2 -j 18 -N 2 "/proc/$$/exe")"
for name in ro.kernel.qemu ro.boot.qemu ro.hardware ro.boot.hardware; do
  echo "property $name $(getprop "$name")"
done
cat /proc/cpuinfo
"""

# What ELF files and `uname -m` call processors that run each other's programs.
# https://gabi.xinuos.com/elf/02-eheader.html
_FAMILIES = {"arm": (40, 183), "x86": (3, 62), "riscv": (243,)}
_MACHINES = {"aarch64": "arm", "i386": "x86", "i686": "x86", "amd64": "x86"}
# https://source.android.com/docs/devices/cuttlefish and the emulator's goldfish and ranchu boards:
# https://android.googlesource.com/platform/external/qemu/+/refs/heads/emu-master-dev/docs/
_ANDROID_EMULATORS = ("goldfish", "ranchu", "cutf", "vsoc")
# Programs that run those of other processors; all name themselves so.
_EMULATORS = re.compile(r"(qemu-[\w-]+|rosetta|FEX\w*|box(?:32|64|86)|blink)(?: \(deleted\))?\Z")
# The parts of implementer 0x41, Arm, as the manuals of the cores give them for MIDR_EL1:
# https://developer.arm.com/documentation
_CORES = {
    0xC07: "Cortex-A7",
    0xC08: "Cortex-A8",
    0xC09: "Cortex-A9",
    0xC0F: "Cortex-A15",
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse V1",
    0xD41: "Cortex-A78",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse N2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}
_ARM, _QEMU = 0x41, 0x00  # implementers: QEMU's own processor, `max`, is of none


@dataclass(frozen=True)
class Machine:
    """What a device computes with.

    Attributes:
        architecture: as `uname -m` has it, such as "aarch64"; "" if the device does not tell.
        cpu: the names of its cores, such as "Cortex-A55 and Cortex-A76"; "" likewise.
        emulated: by what, such as "qemu-aarch64-static"; "" if nothing says that it is.
    """

    architecture: str
    cpu: str
    emulated: str

    def __str__(self) -> str:
        """For a device's name: "aarch64 Cortex-A76, emulated by qemu-aarch64-static"."""
        known = f"{self.architecture} {self.cpu}".strip() or "unknown processor"
        return f"{known}, emulated by {self.emulated}" if self.emulated else known

    def settings(self, settings: Settings) -> Settings:
        """How to measure there: on an emulated device each file only has to run."""
        if not self.emulated:
            return settings
        return dataclasses.replace(settings, stop_rule=StopRule(1, 0.0), launches=1, profile=False)

    def result(self, measured: Latency) -> Latency:
        """What was measured there, with the processor's name, and without times if emulated.

        Memory goes with them: it is the emulator's.
        """
        measured = dataclasses.replace(measured, device=f"{measured.device}, {self}")
        if not self.emulated:
            return measured
        return dataclasses.replace(
            measured,
            p50_ms=None,
            p90_ms=None,
            p95_ms=None,
            p99_ms=None,
            mean_ms=None,
            std_ms=None,
            initialization_ms=None,
            peak_memory_mb=None,
            samples_ms=(),
            launch_p50_ms=(),
            profile=(),
            stop_rule="not timed",
            notes={**measured.notes, "emulated": f"by {self.emulated}"},
        )


def machine(transport: Transport) -> Machine:
    """The processor of a device, by what its system tells.

    Raises:
        InputError: the device is gone.
    """
    said = transport.run(["sh", "-c", _SCRIPT], time_limit=_SECONDS).stdout[:_MOST]
    told = dict(re.findall(r"^(machine|program|elf) +(\S.{0,200})$", said, re.MULTILINE))
    properties = dict(re.findall(r"^property (\S+) (\S{1,50})$", said, re.MULTILINE))
    architecture = one_line(told.get("machine", ""))[:20]
    family = _family(architecture)
    # Two lines of each core, in this order.
    numbers = re.findall(r"^CPU (?:implementer|part)\s*: (0x[0-9a-f]{1,4})$", said, re.MULTILINE)
    parts = {(int(i, 16), int(p, 16)) for i, p in zip(numbers[::2], numbers[1::2], strict=False)}
    model = re.search(r"^model name\s*: (\S.{0,100})$", said, re.MULTILINE)
    if family == "arm":  # cpuinfo of an emulated one may be the host's
        cpu = " and ".join(sorted(_core(*part) for part in parts))
    else:
        cpu = one_line(model.group(1)).strip() if model else ""
    return Machine(architecture, cpu, _emulator(family, told, properties, parts, cpu))


def _emulator(
    family: str,
    told: dict[str, str],
    properties: dict[str, str],
    parts: set[tuple[int, int]],
    cpu: str,
) -> str:
    """What emulates the device, or ""."""
    program = re.search(_EMULATORS, told.get("program", "").rpartition("/")[2])
    if program:
        return program.group(1)
    elf = told.get("elf", "")
    if elf.isdecimal() and family and int(elf) not in _FAMILIES[family]:
        return "a program of another processor"
    for name in ("ro.kernel.qemu", "ro.boot.qemu"):
        if properties.get(name) == "1":
            return f"Android's emulator ({name}=1)"
    for name in ("ro.hardware", "ro.boot.hardware"):
        if properties.get(name, "").startswith(_ANDROID_EMULATORS):
            return f"Android's emulator ({name}={properties[name]})"
    if "QEMU" in cpu or any(implementer == _QEMU for implementer, _ in parts):
        return "QEMU"
    return ""


def _family(architecture: str) -> str:
    """Which programs a processor runs, or "" if it is none of those known."""
    known = _MACHINES.get(architecture, architecture)
    return next((family for family in _FAMILIES if known.startswith(family)), "")


def _core(implementer: int, part: int) -> str:
    if implementer == _ARM and part in _CORES:
        return _CORES[part]
    return f"core {part:#05x} of implementer {implementer:#04x}"
