"""Files of the demonstration on an arm64 board and an arm64 phone, each emulated (arm_board.py)."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import adb_daemon
import arm_board
import digit_files
import numpy as np
import pytest
import sshd
from missing import missing
from programs import run_here

from kapps.tflite import Runner
from kapps.tflite.measurement import adb, ssh
from kapps.tflite.measurement.machine import machine

CLASSIFY = Path(__file__).with_name("arm_classify.py")
TOOL = Path(__file__).with_name("arm_benchmark_model.py")
DIGITS = {32: 40, 64: 20}  # by the side that the network takes
# The shell and the commands of Android; of them Debian's toybox lacks `tr`.
ANDROID = "/system/bin:/usr/bin:/bin"
EMULATED = "aarch64 Cortex-A76, emulated by qemu-aarch64-static"
TIMES = (
    *("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "std_ms", "initialization_ms"),
    "peak_memory_mb",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """All of LeNet5, and of the others those that have kernels of their own."""
    found = digit_files.files(tmp_path_factory.mktemp("files"))
    return [f for f in found if f.stem.endswith(("float32", "int8")) or "LeNet5" in f.stem]


@pytest.fixture(scope="module")
def root():
    folder = arm_board.require()
    with arm_board.emulation(folder):
        yield folder


@pytest.fixture(scope="module")
def board(root, tmp_path_factory):
    sshd.require()
    folder = tmp_path_factory.mktemp("board")
    board = sshd.Board(
        folder,
        wrapped=functools.partial(arm_board.command, root, folder),
        environment=arm_board.ENVIRONMENT,
    )
    yield board
    board.kill()


@pytest.fixture(scope="module")
def phone(root, tmp_path_factory):
    """Connected, and without programs but mksh's and toybox's as far as they go."""
    with adb_daemon.server(tmp_path_factory.mktemp("adb")):
        folder = tmp_path_factory.mktemp("phone") / "phone"
        folder.mkdir()
        phone = adb_daemon.Phone(
            folder,
            wrapped=functools.partial(arm_board.command, root, folder),
            path=ANDROID,
            environment=arm_board.ENVIRONMENT,
        )
        phone.command("getprop", adb_daemon.GETPROP)
        phone.command("cmd", '[ "$1" = power ]')
        phone.command("dumpsys", "echo 'Thermal Status: 0'")
        subprocess.run(["adb", "connect", phone.serial], check=True, capture_output=True)
        yield phone
        subprocess.run(["adb", "disconnect"], check=True, capture_output=True)
        phone.unplug()


@pytest.fixture(scope="module")
def held_out(files, tmp_path_factory):
    """For each file, held-out digits of its size; the last of them are what x86 makes of them."""
    folder = tmp_path_factory.mktemp("held_out")
    found = {}
    for file in files:
        size = Runner(file).input_shape[1]
        images = folder / f"{size}.npy"
        if not images.exists():
            np.save(images, digit_files.held_out(size, DIGITS[size]))
        found[file] = (images, folder / f"{file.stem}.npy")
    rest = [str(part) for file, pair in found.items() for part in (file, *pair)]
    subprocess.run([sys.executable, CLASSIFY, *rest], check=True, capture_output=True)
    return found


def _classify(device, folder, files, held_out):
    """What the device makes of the held-out digits, by file."""
    device.push(CLASSIFY, f"{folder}/classify.py")
    pushed, rest = set(), []
    for file in files:
        images, outputs = held_out[file]
        for local in {file, images} - pushed:
            device.push(local, f"{folder}/{local.name}")
            pushed.add(local)
        rest += [f"{folder}/{name}" for name in (file.name, images.name, f"out-{outputs.name}")]
    done = device.run(["python3", f"{folder}/classify.py", *rest], time_limit=300)
    assert done.code == 0, done.stderr
    found = {}
    for file, path in zip(files, rest[2::3], strict=True):
        local = held_out[file][1].with_name("from_device.npy")
        local.write_bytes(device.pull(path))
        found[file] = np.load(local, allow_pickle=False)
    return found


def _agree(found, held_out):
    """Each class is x86's; so are the scores, to what the kernels of both may differ by."""
    for file, outputs in found.items():
        expected = np.load(held_out[file][1])
        assert outputs.dtype == expected.dtype and outputs.shape == expected.shape
        assert len(set(expected.argmax(1))) > 5  # of ten classes
        assert (outputs.argmax(1) == expected.argmax(1)).all(), file
        apart = np.abs(outputs.astype("float64") - expected).max()
        # The weights of dynamic files meet activations that each machine quantizes for itself.
        integers = outputs.dtype.kind in "iu"
        allowed = 1 if integers else 0.01 if "dynamic" in file.stem else 1e-6
        assert apart <= allowed, (file, apart)


def test_the_board_classifies_as_this_machine_does(board, files, held_out):
    with ssh.Ssh("board", config=board.config) as connection:
        _agree(_classify(connection, board.home, files, held_out), held_out)
        for path in board.home.iterdir():
            path.unlink()


def test_the_phone_classifies_as_this_machine_does(phone, files, held_out):
    few = [file for file in files if "LeNet5" in file.stem]
    device = adb.Adb(phone.serial)
    _agree(_classify(device, "/data/local/tmp", few, held_out), held_out)
    for path in (phone.folder / "data/local/tmp").iterdir():
        path.unlink()


def _checked(results: Path, shown: str, transport: str, files: list[Path]) -> None:
    """What kapps-benchmark has written and printed: where it ran, and no time."""
    values = json.loads(results.read_text())["results"]
    assert [result["file"] for result in values] == [file.name for file in files]
    for result in values:
        assert result["device"].endswith(EMULATED)
        assert result["notes"]["transport"] == transport
        assert result["notes"]["emulated"] == "by qemu-aarch64-static"
        assert [result[name] for name in TIMES] == [None] * len(TIMES)
        assert result["samples_ms"] == result["launch_p50_ms"] == []
        assert result["runs"] >= 1
    assert EMULATED in shown
    assert "no times" in shown and "milliseconds" not in shown
    table = shown[shown.index("launches' p50") :]
    assert not re.search(r"\d\.\d", table)


def test_kapps_benchmark_on_the_board(board, files, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ssh, "Ssh", functools.partial(ssh.Ssh, config=board.config))
    few = [file for file in files if file.stem in ("LeNet5_float32", "LeNet5_int8")]
    output = tmp_path / "board.json"
    command = f"--device=ssh:board --output={output} {shlex.join(map(str, few))}"
    done = run_here("tflite.programs.benchmark", command, capsys)
    assert done.code in (0, None), done.stderr
    _checked(output, done.stdout, "ssh:board", few)
    results = json.loads(output.read_text())["results"]
    assert [result["delegate_pieces"] for result in results] == [1] * len(few)
    assert results[0]["versions"]["runtime"] == arm_board.RUNTIME.replace("==", " ")
    assert list(board.home.iterdir()) == []

    done = run_here("tflite.programs.report", f"--output={tmp_path} {output}", capsys)
    assert done.code in (0, None), done.stderr
    page = (tmp_path / "report.html").read_text()
    assert EMULATED in page and "emulated time" in page
    report = json.loads((tmp_path / "report.json").read_text())
    for entry in report["files"]:
        (timing,) = entry["timings"].values()
        assert [timing[name] for name in ("p50_ms", "p90_ms", "p99_ms")] == [None] * 3


def test_kapps_benchmark_on_the_phone(phone, files, tmp_path, capsys):
    few = [file for file in files if "LeNet5" in file.stem]
    output = tmp_path / "phone.json"
    command = f"--device=adb:{phone.serial} --benchmark_binary={TOOL} --output={output}"
    done = run_here("tflite.programs.benchmark", f"{command} {shlex.join(map(str, few))}", capsys)
    assert done.code in (0, None), done.stderr
    _checked(output, done.stdout, f"adb:{phone.serial}", few)
    assert "Google Pixel 8, Android 14, aarch64 " in done.stdout
    assert list((phone.folder / "data/local/tmp").iterdir()) == []


def test_a_board_with_the_shell_and_the_commands_of_android(files, monkeypatch, tmp_path, capsys):
    """All that kapps has boards run, on this machine and its processor, so that times are told."""
    shell, toybox = shutil.which("mksh"), shutil.which("toybox")
    if shell is None or toybox is None:
        missing("needs Android's shell and commands: apt-get install mksh toybox")
    sshd.require()
    board = sshd.Board(tmp_path)
    toys = subprocess.run([toybox], check=True, capture_output=True, text=True).stdout.split()
    for toy in toys:
        (board.bin / toy).symlink_to(toybox)
    (board.bin / "sh").symlink_to(shell)
    board.script("python3", f'exec {shlex.quote(sys.executable)} "$@"\n')
    monkeypatch.setattr(ssh, "Ssh", functools.partial(ssh.Ssh, config=board.config))
    try:
        with ssh.Ssh("board") as connection:
            done = connection.run(["sh", "-c", 'echo "$KSH_VERSION"'], time_limit=20)
            assert "MIRBSD KSH" in done.stdout
            found = machine(connection)
            assert (found.architecture, found.emulated) == (os.uname().machine, "")
            assert found.cpu
        output = tmp_path / "results.json"
        command = f"--device=ssh:board --output={output} {shlex.quote(str(files[-1]))}"
        done = run_here("tflite.programs.benchmark", command, capsys)
        assert done.code in (0, None), done.stderr
        (result,) = json.loads(output.read_text())["results"]
        assert result["device"].endswith(f"{found.architecture} {found.cpu}")
        assert 0 < result["p50_ms"] <= result["p99_ms"]
        assert "milliseconds; " in done.stdout
        assert list(board.home.iterdir()) == []
    finally:
        board.kill()
