"""Whether a device is emulated, by what its system tells; real ones are in test_arm_board.py."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapps import InputError
from kapps.tflite.measurement.benchmark import read_results, table, to_json
from kapps.tflite.measurement.benchmark_tool import Settings
from kapps.tflite.measurement.latency import STOP_RULES, Latency
from kapps.tflite.measurement.machine import Machine, machine
from kapps.tflite.measurement.profile import Profiled
from kapps.tflite.measurement.transport import Completed


class Device:
    """Tells what it is given."""

    name = "ssh:board"

    def __init__(self, said: str) -> None:
        self._said = said

    def run(self, arguments, *, time_limit):
        return Completed(0, self._said, "")


A76, A55, QEMU = ((0x41, 0xD0B), (0x41, 0xD05), (0x00, 0x051))


def cpuinfo(*cores: tuple[int, int]) -> str:
    return "\n".join(
        f"processor\t: {number}\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd\n"
        f"CPU implementer\t: {implementer:#04x}\nCPU architecture: 8\nCPU variant\t: 0x1\n"
        f"CPU part\t: {part:#05x}\nCPU revision\t: 4\n"
        for number, (implementer, part) in enumerate(cores)
    )


X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: {}\n"
REAL_ARM = "machine aarch64\nprogram /system/bin/sh\nelf   183\n"
REAL_X86 = "machine x86_64\nprogram /usr/bin/dash\nelf    62\n"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (REAL_ARM + cpuinfo(A76), Machine("aarch64", "Cortex-A76", "")),
        (REAL_ARM + cpuinfo(A55, A55, A76), Machine("aarch64", "Cortex-A55 and Cortex-A76", "")),
        (
            REAL_ARM + cpuinfo((0x51, 0x802)),
            Machine(*("aarch64", "core 0x802 of implementer 0x51", "")),
        ),
        # A number that is one of Arm's cores, too.
        (
            REAL_ARM + cpuinfo((0x51, 0xD03)),
            Machine("aarch64", "core 0xd03 of implementer 0x51", ""),
        ),
        # A 32-bit system on a 64-bit kernel.
        ("machine aarch64\nprogram /bin/dash\nelf 40\n", Machine("aarch64", "", "")),
        ("machine armv7l\nprogram /bin/dash\nelf 40\n", Machine("armv7l", "", "")),
        (REAL_X86 + X86.format("Intel N100"), Machine("x86_64", "Intel N100", "")),
        ("machine i686\nprogram /bin/sh\nelf 3\n", Machine("i686", "", "")),
        # It tells nothing, or is nothing that is known.
        ("", Machine("", "", "")),
        ("machine loongarch64\nprogram /bin/sh\nelf 258\n", Machine("loongarch64", "", "")),
        # QEMU's user mode, by name, under another name, and with the host's cpuinfo.
        (
            "machine aarch64\nprogram /usr/bin/qemu-aarch64\nelf 62\n" + X86.format("Intel N100"),
            Machine("aarch64", "", "qemu-aarch64"),
        ),
        (
            "machine x86_64\nprogram /usr/bin/qemu-x86_64-static (deleted)\nelf 183\n",
            Machine("x86_64", "", "qemu-x86_64-static"),
        ),
        (
            "machine aarch64\nprogram /usr/bin/other\nelf 62\n",
            Machine("aarch64", "", "a program of another processor"),
        ),
        # Whole machines.
        (REAL_ARM + cpuinfo(QEMU), Machine("aarch64", "core 0x051 of implementer 0x00", "QEMU")),
        (
            REAL_X86 + X86.format("QEMU Virtual CPU version 2.5+"),
            Machine("x86_64", "QEMU Virtual CPU version 2.5+", "QEMU"),
        ),
        (
            REAL_ARM + "property ro.kernel.qemu 1\n",
            Machine("aarch64", "", "Android's emulator (ro.kernel.qemu=1)"),
        ),
        (
            REAL_X86 + "property ro.boot.qemu \nproperty ro.hardware ranchu\n",
            Machine("x86_64", "", "Android's emulator (ro.hardware=ranchu)"),
        ),
        (
            REAL_ARM + "property ro.kernel.qemu 0\nproperty ro.hardware qcom\n",
            Machine("aarch64", "", ""),
        ),
    ],
)
def test_what_a_device_tells(said, expected):
    assert machine(Device(said)) == expected


@given(st.text() | st.text(alphabet="machine elf program CPU part : 0x\n\r\t\0\x1b", min_size=9))
def test_no_text_does_harm(text):
    found = machine(Device(text))
    assert str(found).isprintable()


@pytest.fixture
def measured(tmp_path):
    file = tmp_path / "net.tflite"
    return Latency.of_samples(
        file,
        np.arange(1.0, 101.0),
        device="ssh:board, 4 cores, Linux 6.6",
        threads=1,
        stop_rule=STOP_RULES["quick"],
        initialization_ms=12.5,
        delegate_pieces=1,
        peak_memory_mb=3.25,
        sha256="0" * 64,
        size_bytes=7,
        notes={"cores": "not pinned"},
        versions={},
    )


EMULATED = Machine("aarch64", "Cortex-A76", "qemu-aarch64")


def test_a_real_device_keeps_its_times(measured):
    real = Machine("aarch64", "Cortex-A76", "")
    settings = Settings(1, "cpu", STOP_RULES["mlperf"], launches=5, time_limit=60)
    assert real.settings(settings) == settings
    result = real.result(measured)
    assert result.device == "ssh:board, 4 cores, Linux 6.6, aarch64 Cortex-A76"
    assert dataclasses.replace(result, device=measured.device) == measured
    assert not result.emulated


def test_an_emulated_device_has_no_times(measured, tmp_path):
    settings = EMULATED.settings(Settings(1, "cpu", STOP_RULES["mlperf"], 5, time_limit=60))
    assert (settings.stop_rule.runs, settings.stop_rule.seconds, settings.launches) == (1, 0, 1)
    measured = dataclasses.replace(measured, profile=(Profiled("CONV_2D", "a", 1.5, 1.0),))
    result = EMULATED.result(measured)
    assert result.emulated
    assert not result.profile
    text = to_json([result])
    figures = [value for value in json.loads(text)["results"][0].values() if type(value) is float]
    assert figures == []
    (tmp_path / "results.json").write_text(text)
    (read,) = read_results(tmp_path / "results.json")
    assert read == dataclasses.replace(result, file=Path("net.tflite"))
    shown = table([measured, result]).partition("\n\n\n")[2]
    assert "aarch64 Cortex-A76, emulated by qemu-aarch64" in shown
    assert "milliseconds" not in shown and ".5" not in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("net.tflite ")]
    assert row.split() == ["net.tflite", *["-"] * 8, "100", "-", "-", "1"]


@pytest.mark.parametrize("name", ["p50_ms", "p95_ms", "mean_ms", "std_ms", "initialization_ms"])
def test_a_file_with_times_of_an_emulated_device(name, measured, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(to_json([dataclasses.replace(EMULATED.result(measured), **{name: 1.0})]))
    with pytest.raises(InputError, match=r"results\[0\]: times of an emulated device"):
        read_results(path)


def test_this_machine_is_real_and_has_a_name():
    """Of what the tests run on a board that is this machine, the shell is a program of its own."""

    class Here(Device):
        def run(self, arguments, *, time_limit):
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=time_limit)
            return Completed(done.returncode, done.stdout, done.stderr)

    found = machine(Here(""))
    assert (found.architecture, found.emulated) == (os.uname().machine, "")
    assert found.cpu
