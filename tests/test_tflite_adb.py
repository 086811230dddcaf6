"""A phone over adb: the genuine client against a small daemon (adb_daemon.py)."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import adb_daemon
import pytest
import tool_texts
from hostile_names import HOSTILE
from tflite_crafted import crafted_file
from tool_texts import NEWER_END

from kapps import InputError
from kapps.tflite.measurement import adb, apk, benchmark_tool, tool_output
from kapps.tflite.measurement.benchmark import benchmark
from kapps.tflite.measurement.benchmark_tool import Settings
from kapps.tflite.measurement.latency import StopRule

SPEEDS = [1800000] * 4 + [2400000] * 3 + [2900000]  # little, big and prime cores, kHz

# A benchmark_model that writes the result file; $LAUNCH counts its launches. It keeps what it was
# started with.
TOOL = r"""#!/bin/sh
for argument; do
  case "$argument" in
    --graph=*) graph=${argument#*=} ;;
    --result_file_path=*) result=${argument#*=} ;;
    --model_runtime_info_output_file=*) info=${argument#*=} ;;
  esac
done
log=$(dirname "$0")/../log
echo "$*" >> "$log"
cat "$graph" >> "$log.models"
"""
TEXT = r"""
echo 'INFO: count=20 first=9000 curr=5000 min=4000 max=9000 avg=6000 std=100 p5=1 median=2 p95=3'
echo
echo 'INFO: count=50 first=1300 curr=1210 min=1100 max=1600 avg=1250.5 std=41 p5=1 median=1234' \
  'p95=1500'
echo 'INFO: Inference timings in us: Init: 5685, First inference: 9000, Warmup (avg): 6e3,' \
  'Inference (avg): 1250.5'
echo 'INFO: Memory footprint delta from the start of the tool (MB): init=1.5 overall=12.25'
"""
OLD_TEXT = r"""
echo 'WARN: Unconsumed cmdline flags: --result_file_path=x'
echo 'count=5 first=9000 curr=5000 min=4000 max=9000 avg=6000 std=100'
echo 'count=50 first=1300 curr=1210 min=1100 max=1600 avg=1.25e+03 std=41'
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """An adb server of its own."""
    with adb_daemon.server(tmp_path_factory.mktemp("adb")):
        yield


@pytest.fixture
def connect(client, tmp_path):
    """Makes a phone and connects it."""
    phones = []

    def make(**settings):
        phone = adb_daemon.Phone(tmp_path / f"phone{len(phones)}", **settings)
        phones.append(phone)
        phone.command("getprop", adb_daemon.GETPROP)
        phone.command("cmd", 'echo "$*" >> fixed; [ "$1" = power ]')
        phone.command("dumpsys", "echo 'IsStatusOverride: false'; echo 'Thermal Status: 0'")
        phone.command("taskset", 'echo "$1" >> masks; shift; exec "$@"')
        for core, speed in enumerate(SPEEDS):
            folder = phone.folder / f"sys/devices/system/cpu/cpu{core}/cpufreq"
            folder.mkdir(parents=True)
            (folder / "cpuinfo_max_freq").write_text(f"{speed}\n")
        _adb("connect", phone.serial)
        return phone

    yield make
    _adb("disconnect")  # all of them
    for phone in phones:
        phone.unplug()


@pytest.fixture
def phone(connect):
    return connect()


@pytest.fixture
def files(tmp_path):
    """Two files, with names that no shell should see; the phone's tool does not look into them."""
    paths = [tmp_path / "a; touch pwned; $(touch pwned) 'b' \"c\" é.tflite", tmp_path / "-rf *"]
    for number, path in enumerate(paths):
        path.write_bytes(b"<model %d>" % number)
    return paths


@pytest.fixture
def tool(tmp_path):
    """Makes a benchmark_model that ends with this script."""

    def make(script):
        path = tmp_path / "tool $(touch pwned)"
        path.write_text(TOOL + script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


def _adb(*arguments):
    return subprocess.run(["adb", *arguments], check=True, capture_output=True, timeout=30)


def _measure(files, binary, app=None, **settings):
    given = {"threads": 1, "accelerator": "cpu", "launches": 3, "time_limit": 60.0} | settings
    chosen = Settings(stop_rule=StopRule(64, 6.0), **given)
    return adb.measure(files, chosen, serial=None, binary=binary, app=app)


def _assert_clean(phone, tmp_path):
    """Nothing of ours is left on the phone, and no file name ran a command."""
    assert list((phone.folder / "data/local/tmp").glob("kapps-*")) == []
    assert not list(tmp_path.rglob("pwned"))
    assert not os.path.exists("pwned")


def _result_file(median=1.5, runs=22):
    """A BenchmarkResult, as a script that writes it; protobuf's own library makes it."""
    content = result_bytes(median_ms=median, num_runs=runs)
    return "printf '" + "".join(f"\\{byte:03o}" for byte in content) + '\' > "$result"\n'


def result_bytes(*, median_ms, num_runs):
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="r.proto", package="tflite.tools.benchmark")
    kinds = {"f": 2, "i": 3, "n": 5}  # float, int64, int32
    parts = {
        "Latency": "favg fmin fmax fstd fmedian fp5 fp95 finit ffirst fwarm",
        "Memory": "iinit ioverall fpeak",
        "Misc": "fsize nruns nwarm fthroughput",
    }
    whole = file.message_type.add(name="BenchmarkResult")
    whole.field.add(name="name", number=1, type=9, label=1)
    for at, (part, names) in enumerate(parts.items(), start=2):
        kind = file.message_type.add(name=part)
        for number, name in enumerate(names.split(), start=1):
            kind.field.add(name=name[1:], number=number, type=kinds[name[0]], label=1)
        type_name = f".tflite.tools.benchmark.{part}"
        whole.field.add(name=part.lower(), number=at, type=11, label=1, type_name=type_name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    result = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tflite.tools.benchmark.BenchmarkResult")
    )()
    result.name = "a name"
    result.latency.avg, result.latency.std, result.latency.median = 2.0, 0.25, median_ms
    result.latency.min, result.latency.max = 1.0, 9.0
    result.latency.p5, result.latency.p95, result.latency.init = 1.25, 4.0, 31.5
    result.memory.init, result.memory.overall = -3, 5120
    result.misc.runs = num_runs
    return result.SerializeToString()


def test_arguments_arrive_as_they_are(phone):
    names = [*HOSTILE, ""]
    done = adb.Adb().run(["printf", "%s\\0", *names], time_limit=20)
    assert done.stdout.split("\0")[:-1] == names
    assert (done.code, done.stderr) == (0, "")
    assert not list(phone.folder.rglob("pwned"))


@pytest.mark.parametrize("code", [0, 1, 127, 255])
def test_exit_codes_and_both_streams(phone, code):
    script = f"echo out; echo err >&2; exit {code}"
    done = adb.Adb().run(["sh", "-c", script], time_limit=20)
    assert (done.code, done.stdout, done.stderr) == (code, "out\n", "err\n")


def test_a_killed_command_has_its_signal(phone):
    assert adb.Adb().run(["sh", "-c", "kill -9 $$"], time_limit=20).code == 128 + 9


def test_files_go_and_come(phone, tmp_path):
    content = bytes(range(256)) * 1000
    local = tmp_path / "-rf $(touch pwned)\n.bin"
    local.write_bytes(content)
    connection = adb.Adb(phone.serial)
    connection.push(local, "/data/local/tmp/x")
    assert connection.pull("/data/local/tmp/x") == content
    with pytest.raises(InputError, match=r"adb:127.* cannot read /data/local/tmp/none"):
        connection.pull("/data/local/tmp/none")
    with pytest.raises(InputError, match="cannot read .*no-such-file: No such file"):
        connection.push(tmp_path / "no-such-file", "/data/local/tmp/x")
    with pytest.raises(InputError, match="cannot copy .* there: .*No such file"):
        connection.push(local, "/data/local/tmp/none/x/y")


def test_a_command_that_hangs_or_floods(phone, monkeypatch):
    connection = adb.Adb()
    with pytest.raises(InputError, match=r"adb:127.*: sleep takes over 1 s, and was ended"):
        connection.run(["sleep", "7"], time_limit=1)
    monkeypatch.setattr(adb, "_OUTPUT_LIMIT", 1 << 20)
    with pytest.raises(InputError, match="yes says over 1 MiB, and was ended"):
        connection.run(["yes"], time_limit=20)


def test_measures_from_result_files(phone, files, tool, tmp_path):
    shares = []
    results = _measure(files, tool(_result_file()), progress=shares.append)
    for file, result in zip(files, results, strict=True):
        assert result.file == file
        # The daemon's processor is this machine's.
        assert result.device.startswith(f"Google Pixel 8, Android 14, {os.uname().machine} ")
        assert (result.p50_ms, result.p95_ms, result.mean_ms, result.std_ms) == (1.5, 4, 2, 0.25)
        assert (result.p90_ms, result.p99_ms, result.samples_ms) == (None, None, ())
        assert (result.initialization_ms, result.peak_memory_mb) == (31.5, 5.0)
        assert (result.launches, result.runs, result.launch_p50_ms) == (3, 66, (1.5, 1.5, 1.5))
        assert result.notes["fixed-performance mode"] == "on"
        assert result.notes["thermal state"] == "0 (none) before, 0 (none) after"
        assert result.notes["cores"] == "pinned to 7 (taskset 80)"
        assert len(result.versions["benchmark_model"]) == 72
    assert shares == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    # Interleaved, with the stop rule shared out over the launches.
    temporary = phone.folder / "data/local/tmp"
    launches = (temporary / "log").read_text().splitlines()
    graphs = [line.split()[0].rpartition("/")[2] for line in launches]
    assert graphs == ["0.tflite", "1.tflite"] * 3
    assert "--num_threads=1 --num_runs=22 --min_secs=2 " in launches[0]
    assert " --use_xnnpack=true " in launches[0]
    assert result.placement is None  # which nobody told
    assert (temporary / "log.models").read_text() == "<model 0><model 1>" * 3
    assert (phone.folder / "masks").read_text() == "80\n" * 6
    assert (phone.folder / "fixed").read_text().splitlines() == [
        "power set-fixed-performance-mode-enabled true",
        "power set-fixed-performance-mode-enabled false",
    ]
    _assert_clean(phone, tmp_path)


def test_measures_from_the_text_of_builds_without_result_files(phone, files, tool):
    result, _ = _measure(files, tool(TEXT))
    assert (result.p50_ms, result.p95_ms, result.mean_ms, result.std_ms) == (
        *(1.234, 1.5, 1.2505, 0.041),
    )
    assert (result.initialization_ms, result.peak_memory_mb, result.runs) == (5.685, 12.25, 150)


def test_old_builds_tell_no_median_and_none_is_invented(phone, files, tool):
    result, _ = _measure(files, tool(OLD_TEXT))
    assert (result.p50_ms, result.p95_ms, result.launch_p50_ms) == (None, None, ())
    assert (result.mean_ms, result.std_ms, result.runs) == (1.25, 0.041, 150)
    assert (result.initialization_ms, result.peak_memory_mb) == (None, None)


def test_the_launches_spread(phone, files, tool):
    # Every launch of the phone is 1 ms slower.
    content = result_bytes(median_ms=0, num_runs=22)
    at = content.index(struct.pack("<Bf", 5 << 3 | 5, 0.0)) + 1
    head, tail = (
        "".join(f"\\{byte:03o}" for byte in part) for part in (content[:at], content[at + 4 :])
    )
    medians = ["".join(f"\\{b:03o}" for b in struct.pack("<f", ms)) for ms in (1.0, 2.0, 3.5)]
    cases = "\n".join(f"{n}) median='{m}';;" for n, m in enumerate(medians, start=1))
    script = (
        f'case $(wc -l < "$log") in\n{cases}\nesac\n'
        f'printf \'{head}\' > "$result"; printf "$median" >> "$result"\n'
        f"printf '{tail}' >> \"$result\"\n"
    )
    (result,) = _measure(files[:1], tool(script))
    assert (result.p50_ms, result.launch_p50_ms) == (2.0, (1.0, 2.0, 3.5))


def _prints(stdout="", stderr="", runtime_info=b""):
    """A script that does what a benchmark_model does that prints this and writes that file."""
    octal = "".join(f"\\{byte:03o}" for byte in runtime_info)
    wrote = f"printf '{octal}' > \"$info\"\n" if runtime_info else ""
    return f"{wrote}cat <<'.'\n{stdout}\n.\ncat >&2 <<'.'\n{stderr}\n.\n"


def test_an_accelerator(phone, files, tool):
    whole = tool_texts.applied("GPU", None) + tool_texts.COUNTS + tool_texts.CLASSIC_END
    (result,) = _measure(files[:1], tool(_prints(whole)), accelerator="gpu", launches=1)
    assert (result.accelerator, result.delegate_pieces) == ("gpu", 1)
    assert result.placement.complete
    assert result.notes["tool"] == tool_output.CLASSIC
    assert "--use_gpu=true" in (phone.folder / "data/local/tmp/log").read_text()
    parts = tool_texts.applied("GPU", 1) + tool_texts.COUNTS + tool_texts.CLASSIC_END
    told = tool_texts.refused(["PACK: Operation is not supported."], 3, 62)
    told += tool_texts.replacing(3, 65, "TfLiteGpuDelegateV2", 3)
    (result,) = _measure(files[:1], tool(_prints(parts, told)), accelerator="gpu", launches=1)
    assert (result.placement.share, result.delegate_pieces) == ("3 of 65", 1)
    assert str(result.placement.outside[0]) == "PACK (Operation is not supported)"


def test_the_newer_tool(phone, files, tool, tmp_path):
    """What it says goes to stderr, and which operations fell off into a file."""
    told = tool_texts.replacing(3, 4, "LITERT_CL", 2) + tool_texts.NEWER_END
    info = [("CONV_2D", "LITERT_CL")] * 3 + [("TOPK_V2", "")]
    script = _prints(tool_texts.COUNTS, told, tool_texts.runtime_info(info))
    (result,) = _measure(files[:1], tool(script), accelerator="gpu", launches=2)
    assert (result.placement.share, result.delegate_pieces) == ("3 of 4", 1)
    assert result.placement.outside[0].operation == "TOPK_V2"
    assert (result.p50_ms, result.initialization_ms) == (7.43, 23.74)
    assert result.notes["tool"] == tool_output.NEWER
    _assert_clean(phone, tmp_path)


def test_a_profile(phone, files, tool, tmp_path):
    """Of a launch of its own, whose times do not count."""
    rows = [("CONV_2D", 3.0, "[x]:0"), ("TfLiteGpuDelegateV2", 4.0, "[y]:66")]
    slow = tool_texts.COUNTS.replace("=7430", "=99999")
    profiled = _prints(slow + tool_texts.CLASSIC_END + tool_texts.classic_profile(rows))
    plain = _prints(tool_texts.COUNTS + tool_texts.CLASSIC_END)
    script = f'case "$*" in *--enable_op_profiling=true*)\n{profiled};;\n*)\n{plain};;\nesac\n'
    results = _measure(files, tool(script), launches=2, profile=True)
    for result in results:
        assert [each.operation for each in result.profile] == ["TfLiteGpuDelegateV2", "CONV_2D"]
        assert (result.p50_ms, result.launches) == (7.43, 2)
    assert len((phone.folder / "data/local/tmp/log").read_text().splitlines()) == 6
    _assert_fails(files, tool(plain), "prints no profile", phone, tmp_path, profile=True)


def test_the_newer_tool_has_no_nnapi(phone, files, tool, tmp_path):
    script = _prints(tool_texts.unconsumed("--use_nnapi=true") + tool_texts.COUNTS, NEWER_END)
    message = "NNAPI is deprecated since Android 15, and LiteRT's benchmark_model has no flag for"
    _assert_fails(files, tool(script), message, phone, tmp_path, accelerator="nnapi")


def test_the_newer_tool_gives_no_size(phone, tool, tmp_path):
    path = tmp_path / "any.tflite"
    path.write_bytes(crafted_file([1, 12], any_size=True))
    flags = tool_texts.unconsumed("--input_layer=x", "--input_layer_shape=1,4,4,3")
    script = _prints(flags + tool_texts.COUNTS, NEWER_END)
    message = "gives its input no size .*: convert with a fixed size, or take TensorFlow Lite's"
    _assert_fails([path], tool(script), message, phone, tmp_path, input_shape=(1, 4, 4, 3))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (tool_texts.unconsumed("--use_gpu=true"), "this build .* has no --use_gpu"),
        (tool_texts.applied("GPU", 0), "is not made for it"),
        (tool_texts.applied("XNNPACK", None), "does not say that anything did"),
        (tool_texts.replacing(5, 5, "TfLiteXNNPackDelegate", 1), "does not say that anything did"),
        (
            tool_texts.refused(["ADD: Too many."], 0, 65) + tool_texts.applied("GPU", 0),
            r"ADD \(Too many\)",
        ),
    ],
)
def test_a_time_of_the_cpu_is_not_taken_for_the_gpus(said, why, phone, files, tool):
    with pytest.raises(InputError, match=f"nothing of it ran on the accelerator gpu: .*{why}"):
        _measure(files[:1], tool(_prints(said + tool_texts.COUNTS)), accelerator="gpu")


def test_a_phone_that_cannot_be_pinned_nor_fixed(phone, files, tool):
    phone.command("cmd", "echo 'Unknown command' >&2; exit 255")
    phone.command("dumpsys", "exit 1")
    for core in range(8):
        (phone.folder / f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq").unlink()
    (result,) = _measure(files[:1], tool(TEXT), launches=1)
    assert result.notes["fixed-performance mode"] == "the phone has none"
    assert result.notes["thermal state"] == "not told before, not told after"
    assert result.notes["cores"].startswith("not pinned: the device does not tell")


@pytest.mark.parametrize(
    ("speeds", "threads", "pin"),
    [
        ([1, 1, 1, 1, 2, 2, 3, 3], 4, ["taskset", "f0"]),
        ([1, 1, 1, 1, 2, 2, 3, 3], 2, ["taskset", "c0"]),
        ([1, 1, 1, 1, 2, 2, 2, 3], 1, ["taskset", "80"]),
        ([1, 1, 1, 1, 2, 2, 2, 3], 3, ["taskset", "70"]),
        ([2, 2, 1, 1], 2, ["taskset", "3"]),
        ([2, 1, 1, 1], 2, []),
        ([1, 1], 1, []),
    ],
)
def test_which_cores_are_big(speeds, threads, pin, phone):
    cpu = phone.folder / "sys/devices/system/cpu"
    for core in range(8):
        file = cpu / f"cpu{core}/cpufreq/cpuinfo_max_freq"
        file.unlink() if core >= len(speeds) else file.write_text(f"{speeds[core]}\n")
    assert benchmark_tool.pinning(adb.Adb(), threads)[0] == pin


def test_a_hot_phone_gets_time_to_cool_down(phone, files, tool, monkeypatch):
    monkeypatch.setattr(adb, "_COOL_STEP", 0.01)
    cools = "echo x >> asked; [ $(wc -l < asked) -gt 3 ]; echo Thermal Status: $?"
    phone.command("dumpsys", cools)
    (result,) = _measure(files[:1], tool(TEXT), launches=1)
    assert re.fullmatch(r"\d+ s", result.notes["cooled down"])
    assert result.notes["thermal state"] == "0 (none) before, 0 (none) after"
    monkeypatch.setattr(adb, "_COOL_SECONDS", 0.05)
    phone.command("dumpsys", "echo Thermal Status: 3")
    (result,) = _measure(files[:1], tool(TEXT), launches=1)
    assert re.fullmatch(r"\d+ s, and still 3 \(severe\)", result.notes["cooled down"])
    assert result.notes["thermal state"] == "3 (severe) before, 3 (severe) after"


def test_leftovers_of_a_run_that_lost_its_phone(phone, files, tool, tmp_path):
    with pytest.raises(InputError, match=r"adb:127.* is gone, in the middle of the work"):
        _measure(files, tool(f"echo {adb_daemon.UNPLUG}; sleep 0.5\n"))
    folder = phone.folder / "data/local/tmp"
    (left,) = folder.glob("kapps-*")
    young = folder / "kapps-0123456789abcdef"
    other = folder / "kapps-mine"
    for path in (young, other):
        path.mkdir()
    for path in (left, other):
        os.utime(path, (0, 0))
    _adb("disconnect", phone.serial)
    phone.plug()
    _adb("connect", phone.serial)
    _measure(files, tool(TEXT))
    assert sorted(folder.glob("kapps-*")) == [young, other]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_binary_is_ended_in_the_middle(number, phone, files, tool, tmp_path):
    """The phone is then as it was: no folder, no mode, and no tool that runs on."""
    started = phone.folder / "started"
    binary = tool(f"echo $$ > {started}; while true; do sleep 0.1; done")
    command = [sys.executable, "-m", "kapps.tflite.programs.benchmark", "--device=adb"]
    with subprocess.Popen(
        [*command, f"--benchmark_binary={binary}", str(files[0])],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # which nohup had ignored
    ) as process:
        try:
            deadline = time.monotonic() + 100
            while not started.exists() or not started.read_text():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(number)
            said = process.communicate(timeout=60)[1].decode()
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert f"ended by {number.name}" in said.splitlines()[-1]
    deadline = time.monotonic() + 20
    while Path(f"/proc/{started.read_text().strip()}").exists():  # its parent has to see it first
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "false" in (phone.folder / "fixed").read_text().splitlines()[-1]
    _assert_clean(phone, tmp_path)


def test_an_interrupt_while_the_mode_is_set(phone, files, tool, monkeypatch):
    whole = adb.Adb.run

    def run(self, arguments, *, time_limit):
        done = whole(self, arguments, time_limit=time_limit)
        if arguments[-1] == "true":
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(adb.Adb, "run", run)
    with pytest.raises(KeyboardInterrupt):
        _measure(files, tool(TEXT))
    assert [line.split()[-1] for line in (phone.folder / "fixed").read_text().splitlines()] == [
        "true",
        "false",
    ]


def test_a_file_that_is_replaced_meanwhile(phone, files, tool):
    """The result is of the file that went to the phone."""
    content = files[0].read_bytes()
    (result,) = _measure(
        files[:1], tool(TEXT), launches=1, progress=lambda share: files[0].write_bytes(b"new")
    )
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert result.size_bytes == len(content)


def test_the_phone_is_left_as_it_was_when_interrupted(phone, files, tool, tmp_path):
    def interrupt(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _measure(files, tool(TEXT), progress=interrupt)
    assert "false" in (phone.folder / "fixed").read_text().splitlines()[-1]
    _assert_clean(phone, tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -9 $$", "killed by signal 9"),
        ("kill -11 $$", "killed by signal 11"),
        ("echo ERROR: Failed to load >&2; exit 1", "exit code 1: ERROR: Failed to load"),
        ("exit 127", "does not run there"),
        ("true", "no time that makes sense"),
        ("head -c 5000 /dev/urandom", "no time that makes sense"),
        ("printf '\\022\\377\\377' > $result", "no time that makes sense"),
        ("head -c 500 /dev/urandom | tr '\\000-\\377' '\\022' > $result", "no time that makes"),
        ("echo count=9 avg=1 std=1", "no time that makes sense"),  # of the warm-up only
        ("echo count=9 avg=1 std=1; echo count=9 avg=nan std=1", "no time that makes sense"),
        ("echo count=9 avg=1 std=1; echo count=9 avg=-1 std=1", "no time that makes sense"),
        ("echo count=9 avg=1 std=1; echo count=0 avg=1 std=1", "no time that makes sense"),
    ],
)
def test_trouble_of_the_tool(script, message, phone, files, tool, tmp_path):
    _assert_fails(files, tool(script), message, phone, tmp_path)


@pytest.mark.parametrize("script", ["yes", "sleep 100"])
def test_a_tool_that_does_not_end(script, phone, files, tool, tmp_path):
    """The seconds are for all of it: on a busy machine they are over before the tool starts."""
    message = "takes over|says over|s for measuring on .* are over"
    _assert_fails(files, tool(script), message, phone, tmp_path, time_limit=4.0)


def _assert_fails(files, binary, message, phone, tmp_path, **settings):
    with pytest.raises(InputError, match=message) as error:
        _measure(files, binary, **settings)
    assert "\n" not in str(error.value)
    assert "false" in (phone.folder / "fixed").read_text().splitlines()[-1]
    _assert_clean(phone, tmp_path)


def test_no_space(connect, files, tool, tmp_path):
    phone = connect(space=900)  # enough for the tool
    files[1].write_bytes(bytes(1000))
    with pytest.raises(InputError, match=r"adb:127.* has no space left for .*-rf \*; free some"):
        _measure(files, tool(""))
    _assert_clean(phone, tmp_path)


def test_no_device(client):
    with pytest.raises(InputError, match="finds no Android device: connect one by USB"):
        adb.Adb()
    with pytest.raises(InputError, match="finds no device 'R5'; connected: none"):
        adb.Adb("R5")


def test_several_devices(connect):
    first, second = connect(), connect()
    with pytest.raises(InputError, match="several Android devices: .*choose one") as error:
        adb.Adb()
    assert first.serial in str(error.value)
    assert second.serial in str(error.value)
    assert adb.Adb(second.serial).name == f"adb:{second.serial}"


def test_the_others_are_in_nobodys_way(connect, monkeypatch):
    """adb's own variable chooses one, and one that is not ready is not chosen unasked."""
    stranger, first = connect(trusts=False), connect()
    assert adb.Adb().name == f"adb:{first.serial}"
    second = connect()
    with pytest.raises(InputError, match="several Android devices: .* or by ANDROID_SERIAL"):
        adb.Adb()
    monkeypatch.setenv("ANDROID_SERIAL", second.serial)
    assert adb.Adb().name == f"adb:{second.serial}"
    assert adb.Adb(first.serial).name == f"adb:{first.serial}"
    monkeypatch.setenv("ANDROID_SERIAL", stranger.serial)
    with pytest.raises(InputError, match="does not trust this computer"):
        adb.Adb()


def test_what_else_slows_a_phone_down(phone, files, tool):
    """As `dumpsys battery` of Android's BatteryService and `dumpsys power` print it."""
    phone.command("settings", '[ "$*" = "get global low_power" ] && echo 1')
    phone.command(
        "dumpsys",
        """case $1 in
  battery) printf '  AC powered: false\\n  USB powered: true\\n  level: 87\\n';;
  power) echo '  mWakefulness=Asleep';;
  *) echo 'Thermal Status: 0';;
esac""",
    )
    (result,) = _measure(files[:1], tool(TEXT), launches=1)
    told = {name: words.partition(" before")[0] for name, words in result.notes.items()}
    assert told["battery saver"] == "on"
    assert told["battery"] == "charged by USB, 87 %"
    assert told["screen"] == "off"
    phone.command("dumpsys", "echo")
    (result,) = _measure(files[:1], tool(TEXT), launches=1)
    assert result.notes["screen"] == "not told before, not told after"


def test_the_mode_is_given_back_by_who_is_killed(phone, files, tool):
    """Nobody is left here to do it: the phone does."""
    started = phone.folder / "started"
    binary = tool(f"echo $$ > {started}; exec sleep 60")
    command = [sys.executable, "-m", "kapps.tflite.programs.benchmark", "--device=adb"]
    with subprocess.Popen(
        [*command, f"--benchmark_binary={binary}", str(files[0])], stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 100
        while not started.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    fixed = phone.folder / "fixed"
    while "false" not in fixed.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [line.split()[-1] for line in fixed.read_text().splitlines()] == ["true", "false"]


def test_unauthorized(connect):
    phone = connect(trusts=False)
    with pytest.raises(InputError, match=r"does not trust this computer.*: unlock it") as error:
        adb.Adb()
    assert phone.serial in str(error.value)


def test_a_device_that_goes_between_two_commands(phone):
    connection = adb.Adb()
    phone.unplug()
    with pytest.raises(InputError, match=r"adb:127.* is (gone|offline)"):
        connection.run(["true"], time_limit=20)
    with pytest.raises(InputError, match=r"adb:127.* is (gone|offline)"):
        connection.push(Path(__file__), "/data/local/tmp/x")


def test_the_words_of_a_command_are_not_adbs(phone):
    script = f"echo the job is offline, unauthorized >&2; echo {adb_daemon.UNPLUG}; sleep 0.5"
    with pytest.raises(InputError, match=r"adb:127.* is gone, in the middle") as error:
        adb.Adb().run(["sh", "-c", script], time_limit=20)
    assert "unauthorized" not in str(error.value)


@pytest.mark.parametrize("code", ["²", "9" * 5000])
def test_an_exit_code_that_is_none(code, phone, monkeypatch):
    connection = adb.Adb()

    def answer(arguments, time_limit, what):
        mark = arguments[-1].split()[-2]
        return 0, f"\n{mark} {code}\n", ""

    monkeypatch.setattr(connection, "_adb", answer)
    with pytest.raises(InputError, match=r"adb:127.* is gone, in the middle"):
        connection.run(["true"], time_limit=20)


def test_an_old_android(connect):
    connect(features="cmd")
    with pytest.raises(InputError, match=r"adb:127.* is too old: .*expected Android 7 or newer"):
        adb.Adb().run(["true"], time_limit=20)


def test_a_large_file_gets_more_time(phone, tmp_path, monkeypatch):
    limits = []

    def ask(self, arguments, time_limit, what):
        limits.append(time_limit)
        return 0, "", ""

    connection = adb.Adb()
    monkeypatch.setattr(adb.Adb, "_adb", ask)
    for size in (0, 500_000_000):
        with open(tmp_path / "file", "wb") as file:
            file.truncate(size)  # sparse
        connection.push(tmp_path / "file", "/data/local/tmp/x")
    assert limits == [120, 620]


def test_no_adb(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no `adb` on this machine: apt-get install adb"):
        adb.Adb()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"--benchmark_binary must be given: .* \(arm64-v8a\); fetch the official build "
            r"https://storage\.googleapis\.com/.*/latest/android_aarch64_benchmark_model",
        ),
        (b"<html>404</html>", "is no program for a phone; fetch the official build"),
        (b"\x7fELF\x02\x01\x01" + bytes(11) + b"\x3e\0", "is built for x86_64, and .* runs arm64"),
        (b"", "is no program"),
    ],
)
def test_the_binary(content, message, phone, files, tmp_path):
    binary = None
    if content is not None:
        binary = tmp_path / "binary"
        binary.write_bytes(content)
    with pytest.raises(InputError, match=message):
        _measure(files, binary)


def test_which_file_to_fetch_for_other_phones(phone, files):
    phone.command("getprop", "[ $1 = ro.product.cpu.abi ] && echo armeabi-v7a || echo")
    with pytest.raises(InputError, match=r"\(armeabi-v7a\); fetch .*/android_arm_benchmark_model$"):
        _measure(files, None)
    phone.command("getprop", "[ $1 = ro.product.cpu.abi ] && echo riscv64 || echo")
    with pytest.raises(InputError, match=r"\(riscv64\); there is no official build .*: build it"):
        _measure(files, None)


def test_through_benchmark(phone, files, tool):
    device = f"adb:{phone.serial}"
    (result,) = benchmark(files[:1], device=device, binary=tool(TEXT), launches=1, threads=2)
    assert (result.threads, result.launches) == (2, 1)
    assert result.stop_rule == "at least 64 runs and 6 s"
    assert result.notes["transport"] == device


def test_parallel_streams(phone):
    """The daemon of these tests keeps them apart."""
    connection, outputs = adb.Adb(), {}

    def ask(number):
        outputs[number] = connection.run(["echo", str(number)], time_limit=20).stdout

    threads = [threading.Thread(target=ask, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {number: f"{number}\n" for number in range(4)}


# The app.

AM = r"""
[ "$1" = start ] || { echo "$*" >> ../stopped; exit 0; }
for last; do :; done
echo "$last" >> started
say() { sed 's/^/11-28 08:00:00.123  4321  4321 I tflite  : /'; }
line() { echo "11-28 08:00:00.120  4321  4321 I tflite_BenchmarkModelActivity: $1"; }
{
  # What another app says, and an earlier launch.
  echo "11-28 08:00:00.119   999   999 I tflite  : Inference timings in us: Init: 1"
  line "Running TensorFlow Lite benchmark with args: --graph=old"
  echo "Inference timings in us: Init: 2" | say
  line "Running TensorFlow Lite benchmark with args: $last"
  say < messages
} > log
echo "Starting: Intent { cmp=org.tensorflow.lite.benchmark/.BenchmarkModelActivity }"
"""


@pytest.fixture
def app_phone(phone, monkeypatch):
    """A phone that installs apps, and on which the benchmark app says what is in `messages`."""
    monkeypatch.setattr(apk, "_EVERY", 0.05)
    phone.command(
        "pm",
        """case $1 in
  path) [ -e app ] && echo package:/data/app/base.apk;;
  install) for last; do :; done; cp "$last" app && echo Success;;
  uninstall) rm app; echo Success;;
esac""",
    )
    phone.command("am", AM.replace("../stopped", "stopped"))
    phone.command("logcat", "cat log")
    phone.command("pidof", '[ "$1" = org.tensorflow.lite.benchmark ]')
    return phone


@pytest.fixture
def app(tmp_path):
    path = tmp_path / "app $(touch pwned).apk"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("AndroidManifest.xml", b"binary")
    return path


def _logged(*texts):
    """As the log has it: without the words that only the console gets."""
    return re.sub(r"^(INFO|ERROR|VERBOSE|WARN): ", "", "".join(texts), flags=re.MULTILINE)


def test_the_app(app_phone, app, files, tmp_path):
    told = (
        tool_texts.refused(["PACK: Operation is not supported."], 3, 62),
        tool_texts.replacing(3, 65, "TfLiteGpuDelegateV2", 3),
        tool_texts.applied("GPU", 1),
        tool_texts.COUNTS,
        tool_texts.CLASSIC_END,
    )
    (app_phone.folder / "messages").write_text(_logged(*told))
    results = _measure(files, None, app=app, accelerator="gpu", launches=2)
    for result in results:
        assert (result.placement.share, result.delegate_pieces) == ("3 of 65", 1)
        assert str(result.placement.outside[0]) == "PACK (Operation is not supported)"
        assert (result.p50_ms, result.runs, result.launches) == (7.43, 320, 2)
        assert (result.initialization_ms, result.peak_memory_mb) == (84.532, 98.25)
        assert result.notes["tool"].endswith(", as an app")
        assert result.notes["fixed-performance mode"] == "on"
        assert len(result.versions["benchmark app"]) == 72
    started = (app_phone.folder / "started").read_text().splitlines()
    graphs = [line.split()[0].rpartition("/")[2] for line in started]
    assert graphs == ["0.tflite", "1.tflite"] * 2
    assert all(" --use_gpu=true " in line for line in started)
    # The app is gone again, since it was not there.
    assert not (app_phone.folder / "app").exists()
    assert "force-stop" in (app_phone.folder / "stopped").read_text()
    _assert_clean(app_phone, tmp_path)
    (app_phone.folder / "app").write_text("mine")
    _measure(files[:1], None, app=app, accelerator="gpu", launches=1)
    assert (app_phone.folder / "app").exists()


@pytest.mark.parametrize(
    ("messages", "commands", "message"),
    [
        ("Failed to load model x\n", {}, "the benchmark app failed: Failed to load model x"),
        ("Loaded model x\n", {"pidof": "exit 1"}, "ended in the middle: .*: Loaded model x"),
        ("", {"pm": "[ $1 = path ] || echo 'Failure [INSTALL_FAILED_OLDER_SDK]'"}, "OLDER_SDK"),
        ("", {"pm": "[ $1 = install ] && echo Success"}, "is another app than org.tensorflow"),
        ("", {"am": "echo 'Error type 3'"}, "am start fails there: Error type 3"),
        ("Loaded model x\n", {}, r"the 4 s for measuring are over"),
    ],
)
def test_trouble_of_the_app(messages, commands, message, app_phone, app, files, tmp_path):
    (app_phone.folder / "messages").write_text(messages)
    for name, script in commands.items():
        app_phone.command(name, script)
    _assert_fails(files[:1], None, message, app_phone, tmp_path, app=app, time_limit=4.0)


def test_what_is_no_app(app_phone, app, files, tmp_path):
    _assert_fails(
        files,
        None,
        "--profile needs --benchmark_binary",
        app_phone,
        tmp_path,
        app=app,
        profile=True,
    )
    app.write_bytes(b"<html>404")
    _assert_fails(files, None, "is no Android app: the official", app_phone, tmp_path, app=app)
    app.unlink()
    _assert_fails(files, None, "cannot read .*: No such file", app_phone, tmp_path, app=app)


def test_where_the_app_goes(files, app):
    with pytest.raises(InputError, match="--benchmark_apk is for phones: --device=adb"):
        benchmark(files, device="ssh:board", app=app)
    with pytest.raises(InputError, match="--benchmark_binary or --benchmark_apk, not both"):
        benchmark(files, device="adb", app=app, binary=app)


def test_nnapi_on_a_new_android(phone, files, tool):
    phone.command("getprop", adb_daemon.GETPROP.replace("echo 14", "echo 15"))
    text = tool_texts.applied("NNAPI", None) + tool_texts.COUNTS + tool_texts.CLASSIC_END
    (result,) = _measure(files[:1], tool(_prints(text)), accelerator="nnapi", launches=1)
    assert result.notes["NNAPI"].startswith("deprecated since Android 15: https://")
