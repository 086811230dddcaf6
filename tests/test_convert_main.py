"""kapps-convert and kapps-compare as a user runs them: files, figures, one line for a mistake."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image
from programs import run_here

import kapps
from kapps import InputError
from kapps.tflite import Runner, keras_file, read_metadata

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


def test_mixed_prints_its_curve(folder, capsys):
    command = f"--workdir={folder}/run --output={folder}/mixed.tflite --quantization=mixed "
    command += "--target_loss=0.5 --calibration_images=20 --verification_images=10"
    answer = run_here("tflite.programs.convert", command, capsys)
    assert not answer.code, answer.stderr
    first, header, *rows = answer.stdout.splitlines()
    assert first.startswith(f"{folder}/mixed.tflite: mixed, uint8 input, ")
    assert header.split() == ["in", "float", "loss", "drift", "MiB"]
    assert re.fullmatch(r"  +0 of 5 +0\.\d{4} +[\d.e-]+ +\d+\.\d\d  chosen", rows[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--quantization=mixed", "mixed needs target_loss"),
        ("--quantization=int8 --target_loss=0.1", "target_loss is for mixed files, not for int8"),
        ("--quantization=int8,mixed --target_loss=-1", "target_loss: expected a share"),
    ],
)
def test_a_target_that_does_not_fit(flags, message, folder, capsys):
    command = f"--workdir={folder}/run --output={folder}/none.tflite {flags}"
    answer = run_here("tflite.programs.convert", command, capsys)
    assert answer.code and message in answer.stderr
    assert "reading" not in answer.stderr  # before any image is


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


def test_compare_a_file_of_any_name(files, folder, capsys):
    """The name is no text of UTF-8, and stdout takes nothing else."""
    name = folder / "\udcff\x1b[7m.tflite"
    name.write_bytes(files[1][0].read_bytes())
    flags = shlex.join([f"--workdir={folder}/run", "--images=1", str(name)])
    answer = run_here("tflite.programs.compare", flags, capsys)
    name.unlink()
    assert not answer.code, answer.stderr
    assert f"{folder}/  [7m.tflite: float32\n" in answer.stdout
    assert "\x1b" not in answer.stdout + answer.stderr


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


def test_arguments_of_the_network(folder, capsys):
    model = kapps.CifarResNet(depth=8, input_shape=(32, 32, 3), classes=10)
    kapps.save_weights(model, folder / "eight.safetensors")
    output, tmp = folder / "eight.tflite", shlex.quote(str(folder))
    answer = run_here(
        "tflite.programs.convert",
        f"--model=CifarResNet --arguments=depth=8 --weights={tmp}/eight.safetensors "
        f"--image_size=32 --classes=10 --calibration=folder:{tmp}/flat --output={output}",
        capsys,
    )
    assert not answer.code, answer.stderr
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype="uint8")
    expected = model(images.astype("float32"), training=False)
    np.testing.assert_allclose(Runner(output).predict(images), expected, atol=1e-5)


def test_a_keras_file_in_a_process_of_its_own(folder):
    """What reads the file is not the process that the user started."""
    model = kapps.LeNet5(input_shape=(32, 32, 3), classes=10)
    model.save(folder / "net.keras")
    flags = [f"--keras={folder}/net.keras", f"--calibration=folder:{folder}/flat"]
    command = [sys.executable, "-X", "importtime", "-m", "kapps.tflite.programs.convert", *flags]
    command += [f"--output={folder}/saved.tflite", f"--labels={folder}/labels.txt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"{folder}/saved.tflite: float32, " in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"tensorflow", "keras"}  # -X is not passed on: these are the parent's
    metadata = read_metadata(folder / "saved.tflite")
    assert metadata.labels[3] == "class 3"
    digest = hashlib.sha256((folder / "net.keras").read_bytes()).hexdigest()
    assert (metadata.weights_name, metadata.weights_sha256) == ("net.keras", digest)
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype="uint8")
    expected = model(images.astype("float32"), training=False)
    found = Runner(folder / "saved.tflite").predict(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def _saved(path, layer):
    """A .keras file with this layer in it."""
    image = keras.Input((8, 8, 3))
    x = layer(keras.layers.GlobalAveragePooling2D()(image))
    keras.Model(image, keras.layers.Dense(2, activation="softmax")(x), name="odd").save(path)


class _Own(keras.layers.Layer):
    def call(self, x):
        return x


def _double(x):
    return 2 * x


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (keras.layers.Lambda(lambda x: 2 * x), "has a Lambda layer, which is code, and is not run"),
        (keras.layers.Lambda(_double), "has a Lambda layer, which is code, and is not run"),
        (_Own(), "has a layer of class '_Own', which neither Keras nor kapps knows"),
    ],
)
def test_a_keras_file_that_is_refused(layer, message, tmp_path, monkeypatch):
    path = tmp_path / "odd.keras"
    _saved(path, layer)
    with pytest.raises(RuntimeError, match="in a process with limits only"):
        keras_file.load(str(path))
    monkeypatch.setattr(keras_file, "_limited", True)  # it is ours
    with pytest.raises(InputError, match=f"{path} {message}"):
        keras_file.load(str(path))


def test_a_keras_file_that_asks_for_all_memory(tmp_path):
    _saved(tmp_path / "small.keras", keras.layers.Dense(7, name="seven"))
    path = tmp_path / "large.keras"
    with zipfile.ZipFile(tmp_path / "small.keras") as small, zipfile.ZipFile(path, "w") as large:
        for name in small.namelist():
            content = small.read(name)
            large.writestr(name, content.replace(b'"units": 7', b'"units": 70000000000'))
    command = [sys.executable, "-m", "kapps.tflite.programs.convert", f"--keras={path}"]
    command += [f"--calibration=folder:{tmp_path}", f"--output={tmp_path}/x.tflite"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    lines = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith(f"kapps-convert: error: {path} "), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "x.tflite").exists()


def test_a_keras_file_that_takes_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kapps-convert", "--output=x.tflite"])
    _saved(tmp_path / "net.keras", keras.layers.Dropout(0.5))
    started = time.monotonic()
    with pytest.raises(InputError, match=r"net.keras: took over 0.5 s and was ended"):
        keras_file.start_anew("convert", str(tmp_path / "net.keras"), time_limit=0.5)
    assert time.monotonic() - started < 60


def test_published_weights_tell_licence_and_file(folder, published_net, capsys):
    _, published, weights = published_net
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
        ("convert --output={tmp}/x.tflite --keras={tmp}/none.keras", "no such file: {tmp}/none"),
        (
            "convert --output={tmp}/x.tflite --keras={tmp}/labels.txt",
            "labels.txt is no .keras file",
        ),
        (
            "convert --output={tmp}/x.tflite --model=LeNet5 --weights=x --arguments=pool=max",
            "unknown argument of LeNet5 'pool'; did you mean pooling",
        ),
        (
            "convert --output={tmp}/x.tflite --workdir={tmp}/run --arguments=pooling=max",
            "a run knows its own",
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
