"""Results of benchmarks: what is measured, written and read, and what the binary shows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sshd
from programs import run_here
from tflite_crafted import crafted_file

from kapps import InputError
from kapps.tflite.measurement import benchmark_tool, ssh
from kapps.tflite.measurement.benchmark import benchmark, read_results, table, write_results
from kapps.tflite.measurement.latency import STOP_RULES, Latency, StopRule, identity
from kapps.tflite.measurement.tool_output import Launch, parse_result, parse_text


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Files that run, a slow one and a fast one."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "slow.tflite").write_bytes(crafted_file([1, 3 * 128**2], side=256))
    (folder / "fast.tflite").write_bytes(crafted_file([1, 12]))
    return [folder / "slow.tflite", folder / "fast.tflite"]


SAMPLES = [float(n) for n in range(1, 101)]


@pytest.fixture
def result(tmp_path):
    file = tmp_path / "net.tflite"
    file.write_bytes(b"x" * 1000)
    return Latency.of_samples(
        file,
        SAMPLES,
        device="host: a processor, 2 cores",
        threads=1,
        stop_rule=STOP_RULES["quick"],
        initialization_ms=7.5,
        delegate_pieces=1,
        peak_memory_mb=3.25,
        sha256=hashlib.sha256(b"x" * 1000).hexdigest(),
        size_bytes=1000,
        notes={"cores": "4, 5"},
        versions={"kapps": "1"},
    )


@pytest.fixture
def of_a_tool(result):
    """A result of a tool that tells little."""
    return dataclasses.replace(
        result,
        **dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "p95_ms", "peak_memory_mb")),
        initialization_ms=None,
        delegate_pieces=None,
        samples_ms=(),
        launch_p50_ms=(1.5, 1.25, 2.0),
        launches=3,
        accelerator="gpu",
        device="Google Pixel 8, Android 14",
    )


def test_what_samples_give(result):
    assert result.p50_ms == 50.5
    assert result.p90_ms == np.percentile(SAMPLES, 90)
    assert result.p95_ms == np.percentile(SAMPLES, 95)
    assert result.p99_ms == np.percentile(SAMPLES, 99)
    assert (result.mean_ms, result.std_ms) == (50.5, np.std(SAMPLES))
    assert (result.runs, result.launches, result.launch_p50_ms) == (100, 1, (50.5,))
    assert result.stop_rule == "at least 64 runs and 6 s"


def test_the_identity_of_a_file(result):
    # of the program sha256sum
    sha256 = "44f8354494a5ba03ba1792a8d3e9c534c47a9181980fde7a3f44b06ef2ae7c7f"
    assert identity(result.file) == (sha256, 1000)


def test_the_identity_of_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot read .*: Is a directory"):  # even by root
        identity(tmp_path)


def test_written_results_are_read_again(result, of_a_tool, tmp_path):
    path = write_results([result, of_a_tool], tmp_path / "new" / "results.json")
    name = Path("net.tflite")
    assert read_results(path) == [dataclasses.replace(r, file=name) for r in (result, of_a_tool)]


@pytest.mark.parametrize("name", ["two\nlines.tflite", "\udcff.tflite", "\n"])
def test_a_file_of_any_name_is_written_and_read(name, result, tmp_path):
    path = write_results([dataclasses.replace(result, file=Path(name))], tmp_path / "r.json")
    (read,) = read_results(path)
    assert read.file.name.isprintable()
    assert read.sha256 == result.sha256


BAD = {
    "p50_ms": ["1", -1, float("nan"), float("inf"), True, [], 10**400],
    "file": ["../x", "", 1, "a\nb"],
    "sha256": ["", "z" * 64, None],
    "runs": [0, 1.5, True, -1, None],
    "samples_ms": [1, [None], ["1"], [-1.0], {"a": 1}],
    "notes": [[], {"a": 1}, {"a": "b\n"}],
    "accelerator": ["tpu", None, []],
    "delegate_pieces": [-1, 0.5, 0.0, False],
    "device": [None, "x" * 1001],
    "mean_ms": [None],
}


@pytest.mark.parametrize("name,value", [(name, value) for name in BAD for value in BAD[name]])
def test_a_wrong_value_is_named(name, value, result, tmp_path):
    path = write_results([result], tmp_path / "results.json")
    content = json.loads(path.read_text())
    content["results"][0][name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"results\.json: results\[0\]\.{name}: expected") as e:
        read_results(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no benchmark result"),
        ("[" * 100000, "is no benchmark result"),
        ("\xff", "is no"),
        ("[]", "no 'kapps_benchmark'"),
        ("{}", "no 'kapps_benchmark'"),
        ('{"kapps_benchmark": 2, "results": []}', "version 2 .* reads version 1"),
        ('{"kapps_benchmark": true, "results": []}', "version"),
        ('{"kapps_benchmark": 1}', "results: expected a list"),
        ('{"kapps_benchmark": 1, "results": [1]}', r"results\[0\]: expected an object"),
        ('{"kapps_benchmark": 1, "results": [{}]}', r"results\[0\]\.accelerator: missing"),
        ('{"kapps_benchmark": 1, "results": [{"a\\nb": 1}]}', r"results\[0\]\.a b: unknown"),
    ],
)
def test_a_foreign_file(content, message, tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        read_results(path)


def test_a_file_that_contradicts_itself(result, tmp_path):
    path = tmp_path / "results.json"
    write_results([dataclasses.replace(result, p50_ms=99.5)], path)
    with pytest.raises(InputError, match="its percentiles do not rise"):
        read_results(path)
    write_results([dataclasses.replace(result, runs=99)], path)
    with pytest.raises(InputError, match="99 runs and 100 samples"):
        read_results(path)
    with pytest.raises(InputError, match="cannot read .*none: No such file"):
        read_results(tmp_path / "none")


def test_the_table(result, of_a_tool):
    text = table([result, of_a_tool])
    host, phone = text.split("\n\n\n")
    assert "host: a processor, 2 cores; cpu, 1 thread\n" in host
    assert "at least 64 runs and 6 s" in host
    assert "cores: 4, 5" in host
    header, row = host.splitlines()[-4:-2]
    assert header.split()[:6] == ["file", "p50", "p90", "p95", "p99", "mean"]
    assert row.split()[:4] == ["net.tflite", "50.500", "90.100", "95.050"]
    assert phone.splitlines()[-3].split()[:5] == ["net.tflite", "-", "-", "-", "-"]
    assert "1.250 to 2.000" in phone.splitlines()[-3]
    assert phone.endswith("\nnet.tflite: what of it ran on gpu is not told")
    assert "gpu" in phone
    assert len({len(line) for line in host.splitlines()[-4:-2]}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "phone"}, "unknown device 'phone': expected host, adb, adb:SERIAL or ssh:HOST"),
        ({"device": "adb:"}, "unknown device"),
        ({"device": "ssh"}, "unknown device"),
        ({"stop_rule": "slow"}, "unknown stop rule 'slow': quick, mlperf"),
        ({"accelerator": "tpu"}, "unknown accelerator 'tpu': cpu, gpu, nnapi"),
        ({"accelerator": "gpu"}, "the host is measured on its CPU only, not on 'gpu'"),
        ({"binary": "x"}, "leave --benchmark_binary out"),
        ({"threads": 0}, "at least 1"),
        ({"launches": 0}, "at least 1"),
        ({"time_limit": float("inf")}, "time_limit: expected seconds above 0, at most 1,000,000"),
        ({"time_limit": float("nan"), "device": "ssh:x"}, "time_limit: expected .*, not nan"),
        ({"time_limit": 5}, "1 files of 6 s each take over 5 s: raise --time_limit"),
        ({"time_limit": 5, "device": "adb"}, "raise --time_limit"),
    ],
)
def test_bad_arguments(settings, message, result):
    with pytest.raises(InputError, match=message):
        benchmark([result.file], **settings)


def test_stop_rules():
    assert str(StopRule(1024, 60.0)) == "at least 1,024 runs and 60 s"
    assert STOP_RULES["quick"] == StopRule(64, 6.0)
    assert STOP_RULES["mlperf"] == StopRule(1024, 60.0)


def test_the_stop_rule_is_kept_for_each_file(nets, monkeypatch):
    """Also for the fast one of two; shorter than the real rules."""
    monkeypatch.setitem(STOP_RULES, "quick", StopRule(64, 0.3))
    slow, fast = benchmark(nets)
    for result in (slow, fast):
        assert len(result.samples_ms) == result.runs >= 64
        assert sum(result.samples_ms) >= 300
        assert result.peak_memory_mb > 0
        assert result.date.endswith("+00:00")
        assert set(result.versions) == {"kapps", "ai-edge-litert"}


# A board. What ssh itself may go through is in test_tflite_ssh.py.

TOOL = """#!/bin/sh
echo "$*" >> ~/log
echo 'count=8 first=9 curr=9 min=9 max=9 avg=9 std=1'
echo 'count=13 first=9 curr=9 min=9 max=9 avg=1500 std=100 p5=1 median=1400 p95=2000'
"""


@pytest.fixture
def board(tmp_path, monkeypatch):
    sshd.require()
    board = sshd.Board(tmp_path)
    monkeypatch.setattr(ssh, "Ssh", functools.partial(ssh.Ssh, config=board.config))
    yield board
    board.kill()


@pytest.mark.parametrize("pushed", [False, True])
def test_a_board_with_the_tool(pushed, board, result, tmp_path):
    tool = tmp_path / "tool" if pushed else board.bin / "benchmark_model"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    paths = [result.file, result.file]
    results = benchmark(paths, device="ssh:board", binary=tool if pushed else None, launches=5)
    for measured in results:
        assert (measured.p50_ms, measured.p95_ms, measured.mean_ms) == (1.4, 2.0, 1.5)
        assert (measured.runs, measured.launches) == (65, 5)
        assert measured.notes["transport"] == "ssh:board"
        assert " before, " in measured.notes["governors"]
        assert measured.sha256 == result.sha256
        assert f", {len(os.sched_getaffinity(0))} cores, Linux " in measured.device
    assert len((board.home / "log").read_text().splitlines()) == 10
    assert "--num_runs=13 --min_secs=1.2 " in (board.home / "log").read_text()
    assert [path.name for path in board.home.iterdir()] == ["log"]


def test_a_board_with_the_tool_and_a_file_for_images_of_any_size(board, tmp_path):
    board.script("benchmark_model", TOOL.partition("\n")[2])
    path = tmp_path / "any.tflite"
    path.write_bytes(crafted_file([1, 12], any_size=True))
    (result,) = benchmark([path], device="ssh:board", launches=1, input_shape=(1, 4, 4, 3))
    assert result.mean_ms == 1.5
    log = (board.home / "log").read_text()
    assert " --input_layer=1x4x4x3 --input_layer_shape=1,4,4,3 " in log


def test_a_board_with_an_interpreter(board, nets, tmp_path, monkeypatch):
    monkeypatch.setitem(STOP_RULES, "quick", StopRule(8, 0.1))
    board.script("python3", f'exec {shlex.quote(sys.executable)} "$@"\n')
    paths = [*nets, tmp_path / "any.tflite"]
    paths[2].write_bytes(crafted_file([1, 12], any_size=True))
    with pytest.raises(InputError, match="ssh:board has no benchmark_model, and without it no gpu"):
        benchmark(paths, device="ssh:board", accelerator="gpu")
    results = benchmark(paths, device="ssh:board", threads=2, input_shape=(1, 4, 4, 3))
    for path, measured in zip(paths, results, strict=True):
        assert measured.file == path
        assert len(measured.samples_ms) == measured.runs >= 8
        assert sorted(measured.samples_ms)[0] <= measured.p50_ms <= measured.p99_ms
        assert measured.threads == 2
        assert "litert" in measured.versions["runtime"]
        assert measured.notes["transport"] == "ssh:board"


# The text of benchmark_model: not one line of garbage may raise anything but give None.


@pytest.mark.parametrize(
    ("text", "launch"),
    [
        ("count=1 curr=3000\ncount=3 curr=1200(all same)", Launch(3, 1.2, 0, 1.2, 1.2, None, None)),
        (
            "count=1 curr=9\nx count=64 first=1 min=1 avg=1.5e+06 std=2 p5=1 median=1400000 p95=2",
            Launch(64, 1500, 0.002, 1400, 0.002, None, None),
        ),
        ("count=9 avg=1 std=1", None),
        ("count=x avg=1\ncount=2 avg=1.2.3 std=1", None),
        ("", None),
    ],
)
def test_the_tools_text(text, launch):
    assert parse_text(text) == launch


@pytest.mark.parametrize("footprint", ["-5", "9e99", "1e400", "."])
def test_a_footprint_that_cannot_be_is_not_told(footprint):
    text = "count=1 curr=9\ncount=3 curr=1200 (all same)\n"
    told = "Memory footprint delta from the start of the tool (MB): init=1 overall="
    assert parse_text(f"{text}{told}7.5").peak_memory_mb == 7.5
    assert parse_text(f"{text}{told}{footprint}").peak_memory_mb is None


@pytest.mark.parametrize(("kib", "expected"), [(2048, 2.0), (-1, None), (1 << 60, None)])
def test_the_footprint_of_a_result_file(kib, expected):
    def varint(value):
        value &= (1 << 64) - 1
        content = b""
        while value >> 7:
            content += bytes([value & 127 | 128])
            value >>= 7
        return content + bytes([value])

    latency = struct.pack("<BfBf", 1 << 3 | 5, 2.0, 4 << 3 | 5, 0.5)
    memory, runs = b"\x10" + varint(kib), b"\x10\x07"
    content = b"".join(
        bytes([number << 3 | 2, len(part)]) + part
        for number, part in ((2, latency), (3, memory), (4, runs))
    )
    assert parse_result(content) == Launch(7, 2.0, 0.5, None, None, None, expected)


def test_a_launch_changes_the_time_of_its_folder(tmp_path):
    """By which a run in use is told from one that was left behind."""
    for _ in range(2):
        os.utime(tmp_path, (0, 0))
        subprocess.run(["sh", "-c", benchmark_tool._START, tmp_path, "true"], check=True)
        assert tmp_path.stat().st_mtime > 0
    assert (tmp_path / "pid").read_text().strip().isdigit()


def test_no_content_of_a_result_file_does_harm():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        content = rng.integers(0, 256, rng.integers(0, 60), dtype="uint8").tobytes()
        parse_result(content)
        parse_result(b"\x12" + bytes([len(content)]) + content)
    assert parse_result(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01") is None
    assert parse_result(b"\xff" * 20) is None


# The binary.


def _run(*arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", "kapps.tflite.programs.benchmark", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        **settings,
    )


def test_the_binary(nets, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(STOP_RULES, "quick", StopRule(64, 0.2))
    output = tmp_path / "results.json"
    command = f"--threads=2 --output={output} {nets[0]} {nets[1]}"
    done = run_here("tflite.programs.benchmark", command, capsys)
    assert done.code in (None, 0), done.stderr
    assert "host: " in done.stdout
    assert "at least 64 runs and 0.2 s" in done.stdout
    assert "slow.tflite" in done.stdout
    results = read_results(output)
    assert [result.file.name for result in results] == [path.name for path in nets]
    for result in results:
        assert result.threads == 2
        assert result.runs >= 64
        assert sum(result.samples_ms) >= 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_no_file_is_left_behind_by_the_binary_that_is_ended(number, tmp_path):
    model, folder = tmp_path / "a.tflite", tmp_path / "temporary"
    model.write_bytes(crafted_file([1, 12]))
    folder.mkdir()
    command = [sys.executable, "-m", "kapps.tflite.programs.benchmark", str(model)]
    with subprocess.Popen(
        [*command, f"--output={tmp_path / 'out' / 'r.json'}"],
        env={**os.environ, "TMPDIR": str(folder)},
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # which nohup had ignored
    ) as process:
        try:
            deadline = time.monotonic() + 100
            while not list(folder.glob("kapps-*")):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(number)
            assert process.wait(timeout=60) == 128 + number
        finally:
            process.kill()
    assert list(folder.iterdir()) == list((tmp_path / "out").iterdir()) == []


def test_the_binarys_errors(tmp_path):
    output = tmp_path / "old.json"
    output.write_text("old")
    done = _run(f"--output={output}", str(tmp_path / "none.tflite"))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"kapps-benchmark: error: no such file: {tmp_path / 'none.tflite'}"
    assert output.read_text() == "old"
    assert os.listdir(tmp_path) == ["old.json"]


def test_the_binary_takes_no_model_for_the_file_to_write(tmp_path):
    """Of `--output *.tflite` the flag gets the first."""
    model = tmp_path / "a.tflite"
    model.write_bytes(b"a model")
    done = _run("--output", str(model), str(tmp_path / "b.tflite"))
    assert done.returncode == 2
    assert f"--output took {model}, a model, for the file to write" in done.stderr
    assert model.read_bytes() == b"a model"
