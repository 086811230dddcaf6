"""The binaries as a user runs them: help, results, and one line for each mistake."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags
from programs import Answer, module_of, run_here
from tflite_plain import plain_file, plain_net

import kapps
from kapps.tools import cli, json_files, streams

TRAIN = "train --model=LeNet5 --dataset=digits --workdir={tmp}/run --image_size=32"

# What is typed, and what the single line of the answer has to hold. The first ones are typed to a
# new process, which takes seconds to import TensorFlow; the rest runs the same module in this one.
MISTAKES = {
    TRAIN.replace("LeNet5", "MobileNetV3Smal"): "unknown model 'MobileNetV3Smal'; did you mean "
    "MobileNetV3Small",
    TRAIN + " --epoch=3": "Unknown command line flag 'epoch'. Did you mean: epochs",
    TRAIN.replace("digits", "folder:{tmp}/false"): "{tmp}/false/cat/1.jpg is no image",
    "train": "--model and --dataset and --workdir must be given",
    TRAIN.replace("digits", "digit"): "unknown dataset 'digit'; did you mean digits",
    TRAIN + " --recipe=digit": "unknown recipe 'digit'; did you mean digits",
    TRAIN
    + " --strategy=multi-worker": "--strategy=multi-worker: value should be one of <none|mirrored|",
    TRAIN + " --epochs=many": "flag --epochs=many",
    TRAIN + " --batch_size=0": "batch_size must be at least 1, not 0",
    TRAIN + " now": "unexpected argument 'now'",
    TRAIN.replace("digits", "folder:{tmp}/gone"): "there is no folder {tmp}/gone",
    TRAIN.replace("{tmp}/run", "{tmp}/file/run"): "cannot write {tmp}/file/run/lock",
    TRAIN + " --weights={tmp}/no.safetensors": "{tmp}/no.safetensors",
    "evaluate --workdir={tmp}": "{tmp} holds no finished run",
    "evaluate --workdir={tmp} --weights=x": "give either --workdir",
    "evaluate --model=LeNet5 --weights=x --dataset=digits --crop=7": "flag --crop=7",
    "evaluate --model=LeNet5 --weights={tmp}/six.safetensors --dataset=digits "
    "--image_size=32": "six.safetensors has 6 classes and the model 10",
    "evaluate --tflite=x --json y.tflite": "--json took y.tflite, a model, for the file to write",
    "evaluate --workdir={tmp} --variant=int8": "--variant belongs to --tflite",
    "evaluate --tflite=x --weights=y": "--tflite goes without --weights and --image_size",
    "evaluate --tflite={tmp}/no.tflite --dataset=digits": "no such file: {tmp}/no.tflite",
    "evaluate --tflite={tmp}/named.tflite": "--dataset must be given",
    "evaluate --tflite={tmp}/named.tflite --dataset=digits": "{tmp}/named.tflite knows other "
    "classes than dataset 'digits': its first is 'zero', the data set's '0'",
    "evaluate --tflite={tmp}/wide.tflite --dataset=digits": "wide.tflite takes 16 x 24 pixels: "
    "expected a square",
}
GOOD = TRAIN.replace("/run", "/good") + " --recipe=digits --epochs=1"
IN_A_PROCESS = [*list(MISTAKES)[:3], "train --help", GOOD]


def start(command: str, keras_home: Path) -> Answer:
    """In a process of its own; the folder holds keras.json."""
    binary, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", f"kapps.{module_of(binary)}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "KERAS_HOME": str(keras_home)},
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("cli")
    for name in ("cat", "dog"):
        (tmp / "false" / name).mkdir(parents=True)
        (tmp / "false" / name / "1.jpg").write_text("no image")
    (tmp / "file").write_text("")
    kapps.save_weights(kapps.LeNet5(input_shape=(32, 32, 3), classes=6), tmp / "six.safetensors")
    (tmp / "named.tflite").write_bytes(plain_net())
    wide = plain_file(lambda image: image[:, 0, :10, 0], (1, 16, 24, 3))
    (tmp / "wide.tflite").write_bytes(wide)
    return tmp


@pytest.fixture(scope="module")
def answers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """On a machine where Keras is set otherwise than kapps needs it."""
    home = tmp_path_factory.mktemp("keras")
    keras_json = {"floatx": "float16", "image_data_format": "channels_first"}
    (home / "keras.json").write_text(json.dumps(keras_json))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda command: start(command.format(tmp=folder), home), IN_A_PROCESS)
        return dict(zip(IN_A_PROCESS, done, strict=True))


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_gets_one_line(
    answers: dict[str, Answer], folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    before = sorted(folder.rglob("*"))
    binary, _, arguments = command.format(tmp=folder).partition(" ")
    answer = answers.get(command) or run_here(module_of(binary), arguments, capsys)
    assert answer.code == 2, answer.stderr
    assert "Traceback" not in answer.stderr
    program = "kapps-" + command.split()[0]
    lines = [line for line in answer.stderr.splitlines() if line.startswith(f"{program}: error: ")]
    assert len(lines) == 1, answer.stderr
    assert answer.stderr.endswith(lines[0] + "\n")
    assert MISTAKES[command].format(tmp=folder) in lines[0]
    assert not answer.stdout
    left = set(folder.rglob("*")) - set(before)
    assert left <= {folder / "run", folder / "run" / "lock"}  # whose removal would be a race


def test_help(answers: dict[str, Answer]) -> None:
    answer = answers["train --help"]
    assert answer.code == 0, answer.stderr
    assert "usage: kapps-train [flags]" in answer.stdout
    names = "model dataset data_dir workdir recipe strategy batch_size epochs learning_rate seed"
    for name in [*names.split(), "image_size", "weights"]:
        assert f"\n  --{name}: " in answer.stdout


def test_train_and_evaluate(
    answers: dict[str, Answer], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = answers[GOOD]
    assert answer.code == 0, answer.stderr
    assert answer.stdout.startswith("LeNet5: validation top-1 0.") and "img/s" in answer.stderr
    by_run = run_here(
        "tflite.programs.evaluate",
        f"--workdir={folder}/good --split=test --json={folder}/test.json",
        capsys,
    )
    assert not by_run.code, by_run.stderr
    figures = json.loads((folder / "test.json").read_text())
    assert figures["images"] == 360 and figures["split"] == "test"
    assert f"digits test: top-1 {figures['top1']:.4f}, top-5 {figures['top5']:.4f}" in by_run.stdout
    by_file = run_here(
        "tflite.programs.evaluate",
        f"--model=LeNet5 --weights={folder}/good/weights.safetensors --dataset=digits "
        "--image_size=32 --split=test",
        capsys,
    )
    assert by_file.stdout == by_run.stdout


def test_evaluate_a_tflite_file(
    answers: dict[str, Answer], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = folder / "good", folder / "good.tflite"
    made = run_here(
        "tflite.programs.convert",
        f"--workdir={run} --output={path} --verification_images=20",
        capsys,
    )
    assert not made.code, made.stderr
    of_run, of_file = folder / "run.json", folder / "file.json"
    run_here("tflite.programs.evaluate", f"--workdir={run} --split=test --json={of_run}", capsys)
    answer = run_here(
        "tflite.programs.evaluate",
        f"--tflite={path} --workdir={run} --split=test --json={of_file}",
        capsys,
    )
    assert not answer.code, answer.stderr
    figures, expected = (json.loads(each.read_text()) for each in (of_file, of_run))
    assert (figures["model"], figures["variant"]) == ("LeNet5", "float32")
    assert figures["images"] == expected["images"] == 360
    assert figures["top1"] == pytest.approx(expected["top1"], abs=1 / 360)
    assert answer.stdout == (
        f"good.tflite (LeNet5, float32) on digits test: top-1 {figures['top1']:.4f}, "
        f"top-5 {figures['top5']:.4f}, 360 images\n"
    )


def test_tensorflow_says_nothing_of_itself(answers: dict[str, Answer]) -> None:
    """The progress bar and the lines of kapps alone, on a machine without CUDA as well."""
    for answer in answers.values():
        for line in filter(str.strip, answer.stderr.splitlines()):
            assert line.startswith("kapps-train: error: ") or "LeNet5" in line or "img/s" in line


def test_what_else_is_said_at_the_start_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    talk = "I0000 00:00:1795731402.091067   17572 port.cc:153] oneDNN is on\n"
    for level, shown in (("2", ""), ("1", talk), ("0", talk)):
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
        with pytest.raises(ImportError), streams._without_talk():
            os.write(2, f"{talk}F0000 00:00:1795731402.0 1 cpu.cc:3] no AVX\nwarning\n".encode())
            raise ImportError
        os.write(2, b"afterwards\n")
        fatal = "F0000 00:00:1795731402.0 1 cpu.cc:3] no AVX\n"
        assert capfd.readouterr().err == f"{shown}{fatal}warning\nafterwards\n"


def popen(*arguments: str, **keywords) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], stderr=subprocess.PIPE, text=True, **keywords
    )


@pytest.mark.parametrize("flags", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_a_reader_that_leaves_changes_nothing(flags: list[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    command = [*flags, "-m", "kapps.tools.train", "--help"]
    with popen(*command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert not process.stderr.read()
    assert process.returncode == 0
    with (
        open("/dev/full", "w") as full,
        popen(*command, stdout=full, env=environment) as process,
    ):
        assert process.stderr is not None
        assert process.stderr.read() == (
            "kapps-train: error: cannot write to standard output: No space left on device\n"
        )
    assert process.returncode == 2


WRITER = """
import sys, time
from kapps._files import atomic_write
from kapps.tools import cli, json_files, streams

def main(argv):
    with atomic_write(argv[1]) as temporary:
        temporary.write_text("whole")
        print("ready", flush=True)
        sys.stdin.readline()
    return 0

cli.run(main, files="FILE")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("ignored", [False, True], ids=["", "ignored"])
def test_signals(tmp_path: Path, number: signal.Signals, ignored: bool) -> None:
    """They leave no temporary file; what nohup or a shell has ignored stays ignored."""
    (tmp_path / "writer.py").write_text(WRITER)
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    with popen(
        str(tmp_path / "writer.py"),
        str(tmp_path / "out"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate("\n" if ignored else None, timeout=60)
    names = {path.name for path in tmp_path.iterdir()}
    if ignored:
        assert (process.returncode, errors, names) == (0, "", {"writer.py", "out"})
    else:
        assert (process.returncode, names) == (128 + number, {"writer.py"})
        assert len(errors.splitlines()) == 1
        assert errors.startswith("kapps-writer: error: ")


SWALLOWER = """
import time
from kapps.tools import cli

def wait():
    print("ready", flush=True)
    time.sleep(60)

class Slow:
    def __del__(self):
        wait()

def caught():
    cli._SECONDS_TO_END = 1
    try:
        wait()
    except KeyboardInterrupt:
        pass

def main(argv):
    caught() if "caught" in argv else Slow()
    while True:
        time.sleep(0.1)

cli.run(main, files="WHERE")
"""


@pytest.mark.parametrize("where", ["finalizer", "caught"])
def test_ctrl_c_that_is_swallowed_ends_a_program(tmp_path: Path, where: str) -> None:
    """Python ignores what a finalizer raises, and so may a library."""
    (tmp_path / "swallower.py").write_text(SWALLOWER)
    with popen(str(tmp_path / "swallower.py"), where, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - begun < 10
    told = "kapps-swallower: error: interrupted; the same command continues where it can\n"
    assert errors == (told if where == "finalizer" else "")


def test_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_here("tools.summary", "--list --json=-", capsys)
    assert not answer.code and json.loads(answer.stdout) == kapps.list_models()


def test_json_has_no_numbers_that_json_has_not(tmp_path: Path) -> None:
    json_files.write_json(tmp_path / "a.json", {"a": [1.5, float("nan")], "b": (float("-inf"),)})
    assert json_files.read_json(tmp_path / "a.json", "") == {"a": [1.5, None], "b": [None]}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_json_that_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(kapps.InputError, match="a.json is damaged; delete it"):
        json_files.read_json(tmp_path / "a.json", "delete it")


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that no command of ours can be made to end with at will."""

    def ends_with(outcome: object) -> int | str | None:
        def main(argv: list[str]) -> int | None:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(sys, "argv", ["/usr/bin/kapps-tidy"])
        monkeypatch.setattr(os, "_exit", sys.exit)  # how it ends after a signal
        with pytest.raises(SystemExit) as caught:
            cli.run(main)
        return caught.value.code

    try:
        assert ends_with(None) is None
        assert ends_with(3) == 3
        assert ends_with(KeyboardInterrupt()) == 130
        assert ends_with(kapps.InputError("two\nlines")) == 2
        assert "kapps-tidy: error: two lines\n" in capsys.readouterr().err
        with pytest.raises(RuntimeError, match="a bug keeps its traceback"):
            monkeypatch.setattr(sys, "argv", ["kapps-tidy"])
            cli.run(lambda argv: (_ for _ in ()).throw(RuntimeError("a bug keeps its traceback")))
    finally:
        flags.FLAGS.unparse_flags()
