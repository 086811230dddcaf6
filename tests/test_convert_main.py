"""kapps-convert and kapps-compare as a user runs them: files, figures, one line for a mistake."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from programs import run_here

import kapps
from kapps.tflite import read_metadata

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run as kapps-train leaves it, the weights of a network, and some images."""
    tmp = tmp_path_factory.mktemp("convert")
    run = tmp / "run"
    run.mkdir()
    model = kapps.LeNet5(input_shape=(32, 32, 3), classes=10)
    kapps.save_weights(model, run / "weights.safetensors")
    settings = {
        "model": "LeNet5",
        "dataset": "digits",
        "data_dir": None,
        "class_names": list("abcdefghij"),
        "image_size": 32,
        "crop": 1.0,
    }
    (run / "config.json").write_text(json.dumps(settings))
    (tmp / "flat").mkdir()
    random = np.random.default_rng(0)
    for index in range(4):
        pixels = random.integers(0, 256, (40, 50, 3), dtype="uint8")
        Image.fromarray(pixels).save(tmp / "flat" / f"{index}.png")
    (tmp / "labels.txt").write_text("".join(f"class {index}\n" for index in range(10)))
    (tmp / "three.txt").write_text("a\nb\nc\n")
    return tmp


@pytest.fixture(scope="module")
def files(folder):
    """Written by the binary: of a run, in two quantizations."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kapps.tflite.programs.convert",
            f"--workdir={folder}/run",
            f"--output={folder}/net.tflite",
            "--quantization=float32,int8",
            "--calibration_images=20",
            "--verification_images=10",
            "--licence=Apache-2.0",
            "--author=kapps",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done, [folder / "net_float32.tflite", folder / "net_int8.tflite"]


def test_convert_a_run(files, folder):
    done, paths = files
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for path, quantization, line in zip(paths, ("float32", "int8"), lines, strict=True):
        assert line.startswith(f"{path}: {quantization}, ")
        assert re.search(r"MiB; same class on [\d.]+% of 10 images", line)
        metadata = read_metadata(path)
        assert metadata.labels == tuple("abcdefghij")
        assert (metadata.licence, metadata.author) == ("Apache-2.0", "kapps")
    assert "converting" in done.stderr and "reading up to 20 images of digits" in done.stderr


def test_the_sum_is_that_of_the_weights_file(files, folder):
    weights = folder / "run" / "weights.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    for path in files[1]:
        metadata = read_metadata(path)
        assert (metadata.weights_sha256, metadata.weights_name) == (digest, weights.name)
        with zipfile.ZipFile(path) as archive:
            (folder / "weights.sha256").write_bytes(archive.read("weights.sha256"))
        subprocess.run(
            ["sha256sum", "--check", "--strict", str(folder / "weights.sha256")],
            cwd=weights.parent,
            check=True,
            capture_output=True,
        )


def test_compare(files, folder, capsys):
    report = folder / "compare.json"
    command = [*map(str, files[1]), f"--workdir={folder}/run", "--images=2", f"--json={report}"]
    answer = run_here("tflite.programs.compare", shlex.join(command), capsys)
    assert not answer.code, answer.stderr
    for path, quantization in zip(files[1], ("float32", "int8"), strict=True):
        assert f"{path}: {quantization}\n" in answer.stdout
        figures = json.loads(report.read_text())[str(path)]
        assert figures["parts_at"] is None and figures["agrees"]
        own = [layer["own_error"] for layer in figures["layers"]]
        assert len(own) >= 5 and own == sorted(own, reverse=True)


def test_compare_with_other_weights(files, folder, capsys):
    """The same network with other weights: it says from which layer on, and exits with 1."""
    other = kapps.LeNet5(input_shape=(32, 32, 3), classes=10)
    for layer in other.layers:
        layer.set_weights([-2 * weight for weight in layer.get_weights()])
    kapps.save_weights(other, folder / "other.safetensors")
    tmp = shlex.quote(str(folder))
    answer = run_here(
        "tflite.programs.compare",
        f"{shlex.quote(str(files[1][0]))} --model=LeNet5 --weights={tmp}/other.safetensors "
        f"--image_size=32 --classes=10 --dataset=folder:{tmp}/flat --images=2",
        capsys,
    )
    assert answer.code == 1
    assert "They part at layer" in answer.stdout


def test_compare_a_file_of_any_name(files, folder):
    """The name is no text of UTF-8, and stdout takes nothing else."""
    name = folder / "\udcff\x1b[7m.tflite"
    name.write_bytes(files[1][0].read_bytes())
    flags = ["-m", "kapps.tflite.programs.compare", f"--workdir={folder}/run", "--images=1"]
    done = subprocess.run(
        [sys.executable, *flags, str(name)],
        capture_output=True,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )
    name.unlink()
    assert not done.returncode, done.stderr
    assert f"{folder}/  [7m.tflite: float32\n".encode() in done.stdout
    assert b"\x1b" not in done.stdout + done.stderr


def test_convert_named_weights_with_a_flat_folder(folder, capsys):
    output, tmp = folder / "named.tflite", shlex.quote(str(folder))
    answer = run_here(
        "tflite.programs.convert",
        f"--model=LeNet5 --weights={tmp}/run/weights.safetensors --image_size=32 "
        f"--labels={tmp}/labels.txt --calibration=folder:{tmp}/flat --output={tmp}/named.tflite",
        capsys,
    )
    assert not answer.code, answer.stderr
    assert read_metadata(output).labels[3] == "class 3"
    assert "of 4 images" in answer.stdout


def test_published_weights_tell_licence_and_file(folder, monkeypatch, capsys):
    published = kapps.list_weights("MobileNetV3Small")[0]
    weights = folder / "model.safetensors"  # as in the hub's cache
    model = kapps.MobileNetV3Small(input_shape=(32, 32, 3))
    kapps.save_weights(model, folder / "saved.safetensors")
    tensors = safetensors.numpy.load_file(folder / "saved.safetensors")
    safetensors.numpy.save_file(tensors, weights)  # without what is of kapps
    monkeypatch.setattr("kapps._hub.fetch", lambda asked: {published: weights}[asked])
    output, tmp = folder / "published.tflite", shlex.quote(str(folder))
    answer = run_here(
        "tflite.programs.convert",
        "--model=MobileNetV3Small --weights=imagenet --image_size=32 "
        f"--calibration=folder:{tmp}/flat --output={tmp}/published.tflite",
        capsys,
    )
    assert not answer.code, answer.stderr
    metadata = read_metadata(output)
    assert metadata.licence == published.license == "apache-2.0"
    assert metadata.weights_name == "mobilenetv3_small_100.lamb_in1k.safetensors"
    assert metadata.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("convert", "--output must be given"),
        ("convert --output={tmp}/x.tflite", "give either --workdir of a run, or --model"),
        ("convert --output={tmp}/x.tflite --weights=x", "--model must be given with --weights"),
        (
            "convert --output={tmp}/x.tflite --workdir={tmp}/run --quantization=int7",
            "unknown quantization 'int7'; did you mean int8",
        ),
        (
            "convert --output={tmp}/x.tflite --workdir={tmp}/run --io=uint8",
            "float32 files take float32, not 'uint8'",
        ),
        ("convert --output={tmp}/x.tflite --workdir={tmp}/flat", "holds no finished run"),
        (
            "convert --output={tmp}/x.tflite --workdir={tmp}/run --classes=3",
            "a run knows its own",
        ),
        (
            "convert --output={tmp}/x.tflite --workdir={tmp}/run --labels={tmp}/three.txt",
            "3 labels for a model of 10 classes",
        ),
        (
            "convert --output={tmp}/x.tflite --workdir={tmp}/run --labels={tmp}/none.txt",
            "cannot read {tmp}/none.txt",
        ),
        (
            "convert --output={tmp}/x.tflite --model=LeNet5 --classes=10 --image_size=32 "
            "--weights={tmp}/run/weights.safetensors",
            "--calibration=DATASET",
        ),
        (
            "convert --output={tmp}/x.tflite --model=LeNet5 --classes=7 --image_size=32 "
            "--weights={tmp}/run/weights.safetensors --calibration=folder:{tmp}/flat",
            "has 10 classes and the model 7",
        ),
        ("compare --workdir={tmp}/run", "FILE... must be given"),
        (
            "compare --json {tmp}/net.tflite {tmp}/none.tflite --workdir={tmp}/run",
            "--json took {tmp}/net.tflite, a model, for the file to write",
        ),
        (
            "compare {tmp}/none.tflite --workdir={tmp}/run --time_limit=inf",
            "--time_limit=inf",
        ),
        ("compare {tmp}/none.tflite --workdir={tmp}/run", "no such file: {tmp}/none.tflite"),
        ("compare {tmp}/labels.txt --workdir={tmp}/run", "{tmp}/labels.txt is no .tflite file"),
    ],
)
def test_a_mistake_gets_one_line(command, message, folder, capsys):
    before = sorted(folder.rglob("*"))
    binary, _, arguments = command.format(tmp=shlex.quote(str(folder))).partition(" ")
    answer = run_here(f"tflite.programs.{binary}", arguments, capsys)
    assert answer.code == 2, answer.stderr
    program = "kapps-" + command.split()[0]
    lines = [line for line in answer.stderr.splitlines() if line.startswith(f"{program}: error: ")]
    assert len(lines) == 1, answer.stderr
    assert message.format(tmp=folder) in lines[0]
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("binary", ["convert", "compare"])
def test_help_needs_no_tensorflow(binary):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"kapps.tflite.programs.{binary}", "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    assert f"usage: kapps-{binary} [flags]" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"tensorflow", "keras", "numpy"}
