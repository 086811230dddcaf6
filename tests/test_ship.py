"""kapps-ship: from a folder of pictures to an app, as a user runs it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import android_project
import numpy as np
import pytest
from PIL import Image
from programs import run_here
from sklearn.datasets import load_digits

import kapps
from kapps import InputError
from kapps._files import sha256
from kapps.tflite import Runner, evaluation, read_metadata, shipping
from kapps.tflite.shipping import android
from kapps.tools import data, pipeline, runs
from kapps.tools.recipes import get_recipe
from kapps.tools.transfer_config import TransferConfig

pytestmark = pytest.mark.slow

PACKAGE = "org.example.four_digits"
_KINDS = ("js", "wasm")
TITLE = 'Four "digits" & more, it\'s <these>'


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Photographs of digits 0 to 3, by class, and the weights that training starts with."""
    root = tmp_path_factory.mktemp("ship")
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if label < 4 and i < 600:
            folder = root / "digits" / f"digit {label}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.kron(np.rint(image * (255 / 16)), np.ones((4, 4))).astype("uint8")
            Image.fromarray(pixels).convert("RGB").save(folder / f"{i}.png")
    model = kapps.LeNet5(input_shape=(32, 32, 3), classes=10)
    kapps.save_weights(model, root / "start.safetensors")
    return root


def _command(pictures: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--model=LeNet5", f"--weights={pictures}/start.safetensors", "--image_size=32"),
        *(
            "--recipe=digits",
            f"--dataset=folder:{pictures}/digits",
            "--phases=head",
            f"--output={output}",
        ),
        *(f"--package={PACKAGE}", f"--title={TITLE}", "--data_licence=BSD-3-Clause", *more),
    ]


@pytest.fixture(scope="module")
def shipped(pictures, tmp_path_factory):
    """The folder that the program leaves, and what it said."""
    output = tmp_path_factory.mktemp("shipped") / "out"
    done = subprocess.run(
        [sys.executable, "-m", "kapps.tflite.programs.ship", *_command(pictures, output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def test_the_file_is_as_good_as_the_card_says(shipped, pictures):
    output, said = shipped
    dataset, run = data.load(f"folder:{pictures}/digits"), runs.load_run(output / "run")
    images, labels = pipeline.images(dataset.test, run.transform)
    top1 = (Runner(output / "model.tflite").predict(images).argmax(axis=1) == labels).mean()
    assert top1 > 0.9
    assert f"model.tflite: int8, top-1 {top1:.4f} on {len(labels)} held-out images" in said
    card = (output / "MODEL_CARD.md").read_text()
    (row,) = [line for line in card.splitlines() if "LeNet5_int8.tflite (this one)" in line]
    assert f" {top1:.4f} |" in row
    assert f"SHA-256 of the file: `{sha256(output / 'model.tflite')}`" in card
    assert "- Licence of the data: BSD-3-Clause" in card
    assert 'license: "unknown"' in card  # of random weights nobody has said one
    assert os.fspath(pictures) not in card  # nobody's business
    assert os.fspath(pictures) not in read_metadata(output / "model.tflite").description
    assert (output / "labels.txt").read_text() == "digit 0\ndigit 1\ndigit 2\ndigit 3\n"


def test_the_report_has_all_files(shipped):
    output, _ = shipped
    report = json.loads((output / "report/report.json").read_text())
    assert {entry["variant"] for entry in report["files"]} == {"float32", "float16", "int8"}
    assert {entry["sha256"] for entry in report["files"]} == {
        sha256(path) for path in (output / "files").iterdir()
    }


def test_the_scripts_say_what_gradle_has_to_know(shipped, tmp_path):
    android_project.need("groovy")
    project = shipped[0] / "android"
    assert "rootProject.name Four-digits-more-it-s-these" in android_project.said(
        project / "settings.gradle", tmp_path
    )
    plugins = android_project.said(project / "build.gradle", tmp_path)
    app = android_project.said(project / "app/build.gradle", tmp_path)
    applied = [line for line in app if line.startswith("plugins id")]
    assert applied and set(applied) <= set(plugins)  # with their versions
    for line in (f"namespace {PACKAGE}", f"defaultConfig applicationId {PACKAGE}"):
        assert f"android {line}" in app
    assert "android androidResources noCompress tflite" in app


def test_the_app_is_packed_and_its_code_compiles(shipped, tmp_path):
    """And runs: of a wide picture it looks at the part that was evaluated."""
    android_project.need("aapt", "javac", "java", android_project.kotlinc())
    project = shipped[0] / "android"
    app, r_java = android_project.packed(project, PACKAGE, tmp_path)
    told = android_project.badging(app)
    assert f"package: name='{PACKAGE}'" in told
    assert "uses-permission: name='android.permission.CAMERA'" in told
    assert f"launchable-activity: name='{PACKAGE}.MainActivity'" in told
    label = TITLE.replace('"', r"\"")  # as aapt shows it
    assert f"application-label:'{label}'" in told
    with zipfile.ZipFile(app) as archive:
        model = archive.getinfo("assets/model.tflite")
        assert model.compress_type == zipfile.ZIP_STORED  # else the runtime cannot map it
        assert archive.read(model) == (shipped[0] / "model.tflite").read_bytes()
    main = f"""
        import {PACKAGE}.Classifier
        fun main() {{
            val bitmap = android.graphics.Bitmap(640, 481)
            Classifier(android.content.Context()).use {{
                println(it.classify(bitmap, 90).map {{ it.categoryName() }})
            }}
        }}
    """
    lines = android_project.compiled(project, r_java, main, tmp_path).splitlines()
    assert (lines[0], lines[2:]) == ("model.tflite", ["90", "[one]", "closed"])
    left = round((640 - 481) / 2)  # to even, as torchvision and Pillow's users have it
    expected = (left / 640, 0, (left + 481) / 640, 1)
    np.testing.assert_allclose([float(n) for n in lines[1].split()], expected, atol=1e-6)


def test_what_is_worked_on_stays(shipped, pictures, tmp_path, capsys):
    """The same command again trains nothing, and changes nothing in the app but its model.

    It makes a page now, of a stand-in for LiteRT.js: test_tflite_web.py opens pages.
    """
    output = tmp_path / "out"
    shutil.copytree(shipped[0], output)
    (code,) = (output / "android").rglob("MainActivity.kt")
    code.write_text("// mine\n")
    (output / "android" / android.ASSET).write_bytes(b"old")
    for name in ("core", "wasm-utils"):
        folder = tmp_path / "node_modules/@litertjs" / name
        (folder / "wasm").mkdir(parents=True)
        (folder / "package.json").write_text('{"main": "index.js", "version": "1"}')
        for file in ("index.js", *(f"wasm/litert_wasm_compat_internal.{kind}" for kind in _KINDS)):
            (folder / file).write_text(file)
    command = _command(pictures, output, "--web", f"--litertjs={tmp_path}/node_modules")
    arguments = " ".join(f"'{each}'" for each in command if "title" not in each)
    ended, said, stderr = run_here("tflite.programs.ship", arguments, capsys)
    assert not ended, stderr
    assert "android: the model in the app" in said
    assert "this run is finished" in stderr
    assert code.read_text() == "// mine\n"
    assert sha256(output / "model.tflite") in (output / "page.html").read_text()
    asset = output / "android" / android.ASSET
    assert asset.read_bytes() == (output / "model.tflite").read_bytes()


def _config(pictures: Path, output: Path, **changes: object) -> shipping.ShipConfig:
    recipe = dataclasses.replace(get_recipe("digits"), image_size=32)
    training = TransferConfig(
        *("LeNet5", f"folder:{pictures}/digits", ""),
        recipe=recipe,
        weights=f"{pictures}/start.safetensors",
        phases="head",
    )
    return dataclasses.replace(shipping.ShipConfig(training, str(output)), **changes)


def test_where_int8_loses_too_much_it_trains_for_it(shipped, pictures, tmp_path, monkeypatch):
    """As if a tenth were lost by int8, and by quantization-aware training nothing."""
    output = tmp_path / "out"
    shutil.copytree(shipped[0] / "run", output / "run")
    evaluate = evaluation.evaluate_on

    def pessimistic(path, dataset, transform, images, **told):
        found = evaluate(path, dataset, transform, images, **told)
        return dataclasses.replace(found, top1=found.top1 - 0.1 * (told["variant"] == "int8"))

    monkeypatch.setattr(evaluation, "evaluate_on", pessimistic)
    done = shipping.ship(_config(pictures, output, target_loss=0.05), progress=False)
    assert done.chosen.variant == "int8-qat"
    assert "int8 loses 0.1000" in done.reason
    assert done.file.read_bytes() == (output / "tuned/model.tflite").read_bytes()
    assert done.chosen.top1 > 0.9


def test_a_mistake_is_told_before_anything_is_done(pictures, tmp_path):
    output = tmp_path / "out"
    for package in ("digits", "org.example.9digits", "org.fun.app", "org..app", "org.example.a-b"):
        with pytest.raises(InputError, match="is no name of an Android app"):
            shipping.ship(_config(pictures, output, package=package))
    with pytest.raises(InputError, match="--target_loss must be 0 to 1, not 1.5"):
        shipping.ship(_config(pictures, output, target_loss=1.5))
    with pytest.raises(InputError, match="no LiteRT.js in .*: npm install @litertjs/core"):
        shipping.ship(_config(pictures, output, litertjs=str(tmp_path)))
    with pytest.raises(InputError, match="unknown device 'phone'"):
        shipping.ship(_config(pictures, output, device="phone"))
    config = _config(pictures, output, licence="MIT")
    forbidden = next(
        each
        for name in kapps.list_models()
        for each in kapps.list_weights(name)
        if "-nc" in each.license
    )
    training = dataclasses.replace(
        config.training, model=forbidden.builder, weights=forbidden.tag, dataset="digits"
    )
    with pytest.raises(InputError, match="not for commerce, and so is what is made of them"):
        shipping.ship(dataclasses.replace(config, training=training))
    assert not output.exists()


def test_a_folder_of_another_thing_stays(shipped, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    transform = kapps.EvalTransform(32)
    with pytest.raises(InputError, match="is no Android project of kapps-ship"):
        android.write_project(
            tmp_path, shipped[0] / "model.tflite", transform, package=PACKAGE, title="Digits"
        )
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_the_app_sees_what_was_evaluated(shipped, tmp_path, mode):
    transform = kapps.EvalTransform(32, 0.875, crop_mode=mode)
    file = shipped[0] / "model.tflite"
    android.write_project(tmp_path / "app", file, transform, package=PACKAGE, title="Digits")
    (code,) = (tmp_path / "app").rglob("Classifier.kt")
    assert "const val CROP = 0.875" in code.read_text()
    assert ("minOf" in code.read_text()) == (mode == "center")
