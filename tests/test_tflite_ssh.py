"""A board over ssh: the genuine client against a genuine sshd on loopback."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import sshd
from hostile_names import HOSTILE
from tflite_net import smooth_images

from kapps import InputError
from kapps.tflite import convert
from kapps.tflite.measurement import benchmark_tool
from kapps.tflite.measurement.board import (
    board_state,
    has_tool,
    measure_board,
    remote_folder,
    state_words,
)
from kapps.tflite.measurement.latency import StopRule
from kapps.tflite.measurement.ssh import Ssh, _split


@pytest.fixture(scope="module")
def steady_board(tmp_path_factory):
    """For tests that leave it as it was: a daemon takes half a second."""
    sshd.require()
    board = sshd.Board(tmp_path_factory.mktemp("steady"))
    yield board
    board.kill()


@pytest.fixture(scope="module")
def steady(steady_board):
    with Ssh("board", config=steady_board.config) as ssh:
        yield ssh


@pytest.fixture
def board(tmp_path):
    sshd.require()
    board = sshd.Board(tmp_path)
    yield board
    board.kill()


@pytest.fixture
def ssh(board):
    with Ssh("board", config=board.config) as ssh:
        yield ssh


def _leftovers(board):
    return sorted(path.name for path in board.home.iterdir())


def test_a_command_gets_its_arguments_as_they_are(steady_board, steady):
    done = steady.run(["printf", "%s\\0", *HOSTILE], time_limit=20)
    assert done.stdout.split("\0")[:-1] == HOSTILE
    assert (done.code, done.stderr) == (0, "")
    assert not list(steady_board.folder.rglob("pwned"))
    assert steady.name == "ssh:board"


@pytest.mark.parametrize("code", [0, 1, 127, 255])
def test_exit_codes_and_both_streams(steady, code):
    script = f"echo out; echo err >&2; exit {code}"
    done = steady.run(["sh", "-c", script], time_limit=20)
    assert (done.code, done.stdout, done.stderr) == (code, "out\n", "err\n")


def test_lines_come_one_by_one(steady):
    lines = []
    steady.run(["sh", "-c", "echo 1; echo 2"], time_limit=20, on_line=lines.append)
    assert lines == ["1\n", "2\n"]


def test_a_killed_command_has_its_signal(steady):
    done = steady.run(["sh", "-c", "kill -9 $$"], time_limit=20)
    assert done.code == 128 + signal.SIGKILL


def test_no_such_command(steady):
    assert steady.run(["no-such-tool"], time_limit=20).code == 127


@pytest.mark.parametrize("name", HOSTILE)
def test_files_of_any_name_go_and_come(steady_board, steady, tmp_path, name):
    content = bytes(range(256)) * 100
    local = tmp_path / "local"
    local.write_bytes(content)
    remote = f"{steady_board.home}/{name}"
    steady.push(local, remote)
    try:
        assert Path(remote).read_bytes() == content
        assert steady.pull(remote) == content
        assert _leftovers(steady_board) == [name]
    finally:
        Path(remote).unlink(missing_ok=True)
    assert not list(steady_board.folder.rglob("pwned"))


def test_an_empty_file(steady, tmp_path):
    (tmp_path / "empty").touch()
    steady.push(tmp_path / "empty", f"{tmp_path}/x")
    assert steady.pull(f"{tmp_path}/x") == b""


def test_pushing_what_cannot_be(steady_board, steady, tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*absent: No such file"):
        steady.push(tmp_path / "absent", f"{steady_board.home}/x")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match=r"ssh:board: cannot write /no/such"):
        steady.push(tmp_path / "file", "/no/such/folder/x")
    with pytest.raises(InputError, match=r"ssh:board: cannot read /no/such"):
        steady.pull("/no/such/file")


def test_no_space(steady, tmp_path):
    (tmp_path / "file").write_bytes(bytes(1 << 16))
    with pytest.raises(InputError, match=r"ssh:board: no space for file \(65,536 bytes\)"):
        steady.push(tmp_path / "file", "/dev/full")


def test_a_copy_that_is_cut_short(board, tmp_path):
    board.script("wc", "echo 7\n")
    (tmp_path / "file").write_bytes(bytes(100))
    with Ssh("board", config=board.config) as ssh, pytest.raises(InputError, match="cut short"):
        ssh.push(tmp_path / "file", f"{board.home}/x")


def test_the_time_limit_ends_the_command_on_the_board(board, ssh):
    pid = board.home / "pid"
    with pytest.raises(InputError, match=r"ssh:board: sh took over 5 s and was ended"):
        ssh.run(["sh", "-c", f"echo $$ >{pid}; exec sleep 60"], time_limit=5)
    _wait_for(
        lambda: (
            pid.is_file() and (text := pid.read_text().strip()) and not Path("/proc", text).exists()
        )
    )


def test_too_much_output(steady, monkeypatch):
    monkeypatch.setattr("kapps.tflite.measurement.ssh._MAX_OUTPUT", 1 << 20)
    with pytest.raises(InputError, match=r"ssh:board: yes said more than 1 MiB"):
        steady.run(["yes"], time_limit=60)


def test_gone_in_mid_run(board, ssh):
    started = threading.Event()

    def kill_once_started():
        started.wait(20)
        board.kill()

    killer = threading.Thread(target=kill_once_started)
    killer.start()
    with pytest.raises(InputError, match=r"ssh:board.*(broke|cannot be reached)"):
        ssh.run(
            ["sh", "-c", "echo up; exec sleep 60"],
            time_limit=40,
            on_line=lambda line: started.set(),
        )
    killer.join()
    with pytest.raises(InputError, match="ssh:board cannot be reached; is it on"):
        ssh.run(["true"], time_limit=20)


def test_wrong_key(board):
    board.write_config("other_key")
    with pytest.raises(InputError, match="ssh:board lets nobody in .*ssh-copy-id board"):
        Ssh("board", config=board.config)


def test_an_unknown_host(board):
    board.know_host(None)
    with pytest.raises(InputError, match="ssh:board is not a known host; connect once by hand"):
        Ssh("board", config=board.config)
    assert (board.folder / "known_hosts").read_text() == ""


def test_a_changed_host_key(board):
    board.know_host("other_key")
    with pytest.raises(InputError, match="ssh:board shows another host key than before"):
        Ssh("board", config=board.config)


def test_a_dead_board(board):
    board.kill()
    with pytest.raises(InputError, match="ssh:board cannot be reached; is it on"):
        Ssh("board", config=board.config)


def test_an_unknown_name(board):
    with pytest.raises(InputError, match="ssh:no-such-host.invalid is a name that nobody knows"):
        Ssh("no-such-host.invalid", config=board.config)


def test_no_client(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no `ssh` on this machine"):
        Ssh("board")


@pytest.mark.parametrize(
    "host",
    ["", "-oProxyCommand=x", "a b", "a;b", "x:", "x:port", "x:70000", "x:²", "a@-b", "@x", "x\n"],
)
def test_no_host(host):
    with pytest.raises(InputError, match="is no host; expected ssh:HOST"):
        Ssh(host)


def test_hosts():
    assert _split("pi") == ("pi", "")
    assert _split("me@pi.local:2222") == ("me@pi.local", "2222")
    assert _split("[fe80::1%eth0]:22") == ("fe80::1%eth0", "22")
    assert _split("me@[::1]") == ("me@::1", "")


@pytest.mark.parametrize(("host", "port"), [("me@pi:2222", ["2222"]), ("me@pi", [])])
def test_the_port_is_handed_to_the_client(host, port, monkeypatch, tmp_path):
    """A client that notes its arguments: the genuine one has them from its configuration here."""
    client = tmp_path / "ssh"
    client.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {shlex.quote(str(tmp_path / 'said'))}\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    Ssh(host).close()
    arguments = (tmp_path / "said").read_text().splitlines()
    assert [arguments[i + 1] for i, word in enumerate(arguments) if word == "-p"] == port
    assert arguments[-3:] == ["--", "me@pi", "true"]


def test_nothing_stays_behind_when_closed(board, monkeypatch):
    scratch = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    try:
        with Ssh("board", config=board.config) as ssh:
            assert len(list(scratch.iterdir())) == 1
        assert not list(scratch.iterdir())
        with pytest.raises(InputError, match="ssh:board is closed"):
            ssh.run(["true"], time_limit=5)
    finally:
        scratch.rmdir()


@pytest.mark.parametrize("name", ["x" * 100, "a b % c"])
def test_a_folder_that_ssh_cannot_name_a_socket_in(board, name, monkeypatch, tmp_path):
    (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
    with Ssh("board", config=board.config) as ssh:
        assert ssh.run(["echo", "up"], time_limit=20).stdout == "up\n"


def _wait_for(condition):
    deadline = threading.Event()
    for _ in range(200):
        if condition():
            return
        deadline.wait(0.05)
    pytest.fail("it never came true")


# Boards with ai-edge-litert: the genuine script in the Python of this environment.


@pytest.fixture
def python(board):
    """Python with ai-edge-litert on the board's PATH."""
    board.script("python3", f'exec {shlex.quote(sys.executable)} "$@"\n')


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    image = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    path = folder / "$(touch pwned); a' b.tflite"
    pixels = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3))
    model = keras.Model(image, keras.layers.Softmax()(x), name="net")
    convert(model, path, quantization="float32", verification=pixels)
    return [path, Path(shutil.copy(path, folder / "second.tflite"))]


QUICK = {"min_runs": 20, "min_seconds": 0.0}


def test_a_board_with_litert(board, python, ssh, nets):
    shares = []
    run = measure_board(ssh, nets, **QUICK, progress=shares.append)
    assert len(run.files) == 2
    for file in run.files:
        assert len(file.samples_ms) >= 20
        assert all(sample > 0 for sample in file.samples_ms)
        assert file.initialization_ms > 0
        assert file.delegate_pieces == 1
        assert file.placement.complete
        assert file.placement.placed == file.placement.operations > 0
        assert file.peak_memory_bytes > 0
    assert set(run.cpus) <= os.sched_getaffinity(0)
    assert re.search(r", \d+ cores, ", run.board)
    assert run.runtime.startswith("ai-edge-litert")
    assert min(run.before.load, run.after.load) >= 0
    assert shares[-1] == 1
    assert _leftovers(board) == []
    assert not list(board.folder.rglob("pwned"))


def test_both_stop_rules_hold(board, python, ssh, nets):
    run = measure_board(ssh, nets, min_runs=1, min_seconds=0.3)
    assert all(sum(file.samples_ms) >= 300 for file in run.files)


def test_a_very_long_line(steady):
    lines = []
    script = "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end"
    done = steady.run(["sh", "-c", script], time_limit=20, on_line=lines.append)
    assert [len(line) for line in lines] == [1_000_001, 4]
    assert len(done.stdout) == 1_000_005


def test_clocks_and_temperatures(steady, tmp_path):
    for cpu, governor in enumerate(("ondemand", "ondemand", "performance")):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
    zones = [("cpu-thermal", "48312"), ("odd \x1b one", "-1500"), ("cpu-thermal", "31000")]
    for zone, (name, value) in enumerate(zones):
        folder = tmp_path / f"class/thermal/thermal_zone{zone}"
        folder.mkdir(parents=True)
        (folder / "type").write_text(f"{name}\n")
        (folder / "temp").write_text(f"{value}\n")
    state = board_state(steady, str(tmp_path))
    assert state.temperatures == {"cpu-thermal": 48.312, "odd   one": -1.5}
    assert state.governors == ("ondemand", "performance")
    assert state_words(state)["hottest zone"] == "48.3 °C"
    assert state_words(state)["governors"] == "ondemand, performance"


# What a build of benchmark_model prints that has no --result_file_path.
TOOL = """
case "$*" in *--graph=*) ;; *) exit 3 ;; esac
echo "count=8 first=900 curr=510 min=490 max=900 avg=600 std=90"
echo "count=20 first=520 curr=510 min=490 max=530 avg=512.5 std=11 p5=495 median=505 p95=530"
"""


def _by_tool(ssh, nets, binary=None):
    with remote_folder(ssh) as folder:
        return benchmark_tool.measure_remote(
            ssh,
            nets,
            benchmark_tool.Settings(1, "cpu", StopRule(20, 0.0), launches=2, time_limit=60),
            root=folder,
            device=benchmark_tool.linux_device(ssh),
            binary=binary,
            state=lambda: state_words(board_state(ssh)),
            notes={},
        )


def test_a_tool_on_the_path(board, ssh, nets):
    board.script("benchmark_model", TOOL)
    found = _by_tool(ssh, nets)
    assert [latency.p50_ms for latency in found] == [0.505, 0.505]
    assert found[0].notes["transport"] == "ssh:board"
    assert _leftovers(board) == []
    assert not list(board.folder.rglob("pwned"))


def test_a_tool_that_is_sent(board, ssh, nets, tmp_path):
    (tmp_path / "tool").write_text("#!/bin/sh\n" + TOOL)
    assert _by_tool(ssh, nets[:1], tmp_path / "tool")[0].mean_ms == 0.5125
    assert _leftovers(board) == []


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("kill -9 $$", "benchmark_model was killed by signal 9"),
        ("head -c 10000 /dev/urandom", "benchmark_model tells no time that makes sense"),
        ("exit 7", "failed with exit code 7"),
    ],
)
def test_a_tool_that_fails(board, ssh, nets, tool, message):
    board.script("benchmark_model", tool + "\n")
    with pytest.raises(InputError, match=message):
        _by_tool(ssh, nets[:1])
    assert _leftovers(board) == []


def test_no_tool(board, ssh, nets):
    with pytest.raises(InputError, match="benchmark_model does not run there"):
        _by_tool(ssh, nets[:1])
    assert _leftovers(board) == []


def _fails(board, nets, message, **settings):
    with Ssh("board", config=board.config) as ssh:
        _fails_on(ssh, board, nets, message, **settings)


def _fails_on(ssh, board, nets, message, **settings):
    with pytest.raises(InputError, match=message) as e:
        measure_board(ssh, nets, **QUICK, **settings)
    assert "\n" not in str(e.value)
    assert "\x1b" not in str(e.value)
    assert [name for name in _leftovers(board) if name.startswith("kapps")] == []


def test_no_python(board, nets):
    message = "neither benchmark_model nor python4 .*pip install ai-edge-litert"
    _fails(board, nets, message, python="python4")


def test_python_without_litert(board, nets):
    # -S: without the packages of its environment.
    board.script("python3", f'exec {shlex.quote(sys.executable)} -S "$@"\n')
    _fails(board, nets, "no ai-edge-litert for its python3 .No module named 'numpy'")


def test_a_file_that_does_not_load(board, python, nets, tmp_path):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"no model at all")
    _fails(board, [nets[0], bad], r"ssh:board refuses a file at .*bad\.tflite: ")


def test_a_file_that_is_not_there(board, nets):
    _fails(board, [Path("absent.tflite")], r"no such file: absent\.tflite")


def _fake_measurement(board, script):
    """A Python that has everything, and runs `script` in place of the measurement."""
    board.script("python3", f'[ "$1" = -c ] && exec echo "kapps: ready, r"\n{script}\n')


@pytest.mark.parametrize(
    ("runtime", "needed"),
    [
        ("ai-edge-litert 1.0.1", "1.1"),
        ("tflite-runtime 2.14.0", "1.1"),
        ("ai-edge-litert 1.1.2", ""),
    ],
)
def test_a_runtime_that_is_too_old_for_four_bits(board, nets, runtime, needed, tmp_path):
    """What it would print are times of wrong numbers; of other files it is none the worse."""
    pytest.importorskip("ai_edge_quantizer")
    file = tmp_path / "four.tflite"
    image = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(64, 3)(image))
    model = keras.Model(image, keras.layers.Dense(4, activation="softmax")(x))
    pixels = smooth_images(12, 8)
    convert(model, file, quantization="int4", calibration=pixels[::2], verification=pixels[1::2])
    board.script("python3", f'[ "$1" = -c ] && exec echo "kapps: ready, {runtime}"\necho "{{}}"\n')
    told = f"four.tflite has weights of 4 bits, .*{runtime} .* install ai-edge-litert {needed} or"
    _fails(board, [nets[0], file], told if needed else "sent no valid result")
    _fails(board, nets[:1], "sent no valid result")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_the_tool_is_killed(board, nets, name):
    _fake_measurement(board, f"echo '{{\"at\": 1}}'; kill -{name[3:]} $$")
    _fails(board, nets, rf"Python was killed \({name}\) at .*second\.tflite")


def test_the_measurement_fails(board, nets):
    _fake_measurement(board, "printf 'Traceback\\n\\033[31mMemoryError: x\\n' >&2; exit 1")
    _fails(board, nets, r"ssh:board: the measurement failed: +\[31mMemoryError: x")


GOOD = {
    "runtime": "r",
    "cpus": [0],
    "files": [
        {
            "samples_ms": [1.0],
            "initialization_ms": 1,
            "operations": None,
            "peak_memory_bytes": None,
        }
    ],
}


def _answer(board, folder, text):
    (folder / "answer").write_text(text)
    _fake_measurement(board, f"cat {shlex.quote(str(folder / 'answer'))}")


def test_a_valid_answer_between_warnings(board, ssh, nets, tmp_path):
    _answer(board, tmp_path, f"warning: x\n{json.dumps({'result': GOOD})}\n[1]\n")
    run = measure_board(ssh, nets[:1], **QUICK)
    assert run.files[0].samples_ms == (1.0,)
    assert run.files[0].peak_memory_bytes is None


GARBAGE = {
    "nothing": "",
    "no JSON": "\x00\xff\x1b[2J" * 100,
    "deep": "[" * 100_000,
    "a list": '{"result": []}',
    "no files": json.dumps({"result": GOOD | {"files": []}}),
    "two files": json.dumps({"result": GOOD | {"files": GOOD["files"] * 2}}),
    "files is a number": json.dumps({"result": GOOD | {"files": 1}}),
    "nan": json.dumps({"result": GOOD | {"files": [GOOD["files"][0] | {"samples_ms": [1e999]}]}}),
    "no samples": json.dumps({"result": GOOD | {"files": [GOOD["files"][0] | {"samples_ms": []}]}}),
    "negative": json.dumps({"result": GOOD | {"files": [GOOD["files"][0] | {"samples_ms": [-1]}]}}),
    "words": json.dumps({"result": GOOD | {"files": [GOOD["files"][0] | {"samples_ms": ["1"]}]}}),
    "huge": json.dumps(
        {"result": GOOD | {"files": [GOOD["files"][0] | {"samples_ms": [10**400]}]}}
    ),
    "memory": json.dumps(
        {"result": GOOD | {"files": [GOOD["files"][0] | {"peak_memory_bytes": -1}]}}
    ),
    "operations": json.dumps(
        {"result": GOOD | {"files": [GOOD["files"][0] | {"operations": [{"op_name": "ADD"}]}]}}
    ),
    "cpus": json.dumps({"result": GOOD | {"cpus": {"a": 1}}}),
    "runtime": json.dumps({"result": GOOD | {"runtime": 3}}),
}


@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE)
def test_garbage(steady_board, steady, nets, tmp_path, text):
    _answer(steady_board, tmp_path, text)
    _fails_on(steady, steady_board, nets[:1], "ssh:board sent no valid result")


def test_no_space_for_a_file(board, python, nets):
    # The second file is written to a device that is always full.
    board.script("mktemp", 'd=$(/usr/bin/mktemp "$@"); ln -s /dev/full "$d/1.tflite"; echo "$d"\n')
    _fails(board, nets, r"ssh:board: no space for second\.tflite \([\d,]+ bytes\)")


def test_a_board_that_goes_in_mid_measurement(board, nets):
    _fake_measurement(board, "echo '{\"share\": 0.5}'; exec sleep 60")
    with Ssh("board", config=board.config) as ssh, pytest.raises(InputError, match="ssh:board"):
        measure_board(ssh, nets, **QUICK, progress=lambda share: board.kill())


def test_leftovers_of_lost_runs_are_removed(board, python, ssh, nets):
    old, young = board.home / "kapps-benchmark.oldoldoldo", board.home / "kapps-benchmark.young"
    for folder in (old, young, board.home / "other"):
        folder.mkdir()
    for folder in (old, board.home / "other"):
        os.utime(folder, (0, 0))
    measure_board(ssh, nets[:1], **QUICK)
    assert _leftovers(board) == ["kapps-benchmark.young", "other"]


def test_has_tool(board, ssh):
    assert not has_tool(ssh)
    board.script("benchmark_model", "exit 0\n")
    assert has_tool(ssh)
