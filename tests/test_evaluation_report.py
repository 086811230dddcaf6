"""The report of kapps-evaluate: figures by hand, and a page that shows what they say."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import read_page
from PIL import Image
from programs import run_here

import kapps
from kapps import InputError
from kapps.tflite.class_figures import class_figures, confusions, scores, worst_mistakes
from kapps.tflite.confusion_picture import confusion_png
from kapps.tflite.evaluation_report import report

# Of four classes: "bird" is never predicted, and "<cow>" has no images.
NAMES = ("cat", "dog", "bird", "<cow>")
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
PROBABILITIES = np.array(
    [
        [0.7, 0.1, 0.1, 0.1],
        [0.6, 0.2, 0.1, 0.1],
        [0.2, 0.5, 0.2, 0.1],  # taken for dog
        [0.3, 0.4, 0.2, 0.1],  # taken for dog
        [0.0, 0.9, 0.1, 0.0],
        [0.8, 0.2, 0.0, 0.0],  # taken for cat
        [0.1, 0.1, 0.1, 0.7],  # taken for <cow>
        [0.1, 0.7, 0.2, 0.0],  # taken for dog
    ]
)
PREDICTED = PROBABILITIES.argmax(axis=1)


def test_figures_of_the_classes() -> None:
    cat, dog, bird, cow = class_figures(PREDICTED, LABELS, NAMES)
    assert (cat.images, cat.precision, cat.recall, cat.f1) == (4, 2 / 3, 0.5, 4 / 7)
    assert (cat.taken_for, cat.taken_for_images) == ("dog", 2)
    assert (dog.images, dog.precision, dog.recall, dog.f1) == (2, 0.25, 0.5, 2 / 6)
    assert (dog.taken_for, dog.taken_for_images) == ("cat", 1)
    assert (bird.images, bird.precision, bird.recall, bird.f1) == (2, None, 0.0, 0.0)
    assert bird.taken_for == "dog"  # as often as <cow>: the first of the classes
    assert (cow.images, cow.precision, cow.recall, cow.f1) == (0, 0.0, None, 0.0)
    assert (cow.taken_for, cow.taken_for_images) == (None, 0)


def test_pairs_that_are_mixed_up() -> None:
    assert confusions(PREDICTED, LABELS, 4).tolist() == [
        [0, 1, 2],
        [1, 0, 1],
        [2, 1, 1],
        [2, 3, 1],
    ]
    assert confusions(LABELS, LABELS, 4).shape == (0, 3)


def test_the_worst_mistakes() -> None:
    """Least probability of the true class first, and then the surest of another one."""
    found = worst_mistakes(PROBABILITIES, LABELS, 10)
    assert [mistake.index for mistake in found] == [6, 5, 7, 2, 3]
    assert (found[0].truth, found[0].predicted) == (2, 3)
    assert (found[0].probability, found[0].true_probability) == (0.7, 0.1)
    assert worst_mistakes(PROBABILITIES, LABELS, 2) == found[:2]


@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_scores_are_those_of_keras(seed: int, classes: int) -> None:
    """To 1e-6 of float32's sums; probabilities of 0 included, and ties."""
    random = np.random.default_rng(seed)
    raw = np.round(random.random((20, classes)), 1).astype(np.float32) + np.float32(1e-9)
    probabilities, labels = raw / raw.sum(axis=1, keepdims=True), random.integers(0, classes, 20)
    found = scores(probabilities, labels)
    loss = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
    top5 = keras.ops.in_top_k(labels, probabilities, min(5, classes))
    assert found.loss == pytest.approx(np.asarray(loss).astype(float).mean(), rel=1e-6)
    assert found.top5 == np.asarray(top5).mean()
    assert found.top1 == np.mean(probabilities.argmax(axis=1) == labels)
    assert found.images == 20


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 40))
def test_figures_agree_with_one_another(seed: int, classes: int, images: int) -> None:
    random = np.random.default_rng(seed)
    labels, predicted = random.integers(0, classes, (2, images))
    found = class_figures(predicted, labels, [str(i) for i in range(classes)])
    assert sum(f.images for f in found) == images
    right = sum((f.recall or 0) * f.images for f in found)
    assert right == pytest.approx((labels == predicted).sum())
    wrong = confusions(predicted, labels, classes)
    assert wrong[:, 2].sum() == images - (labels == predicted).sum()
    assert (wrong[:, 0] != wrong[:, 1]).all()
    for f in found:
        assert (f.precision is None) == (int(f.name) not in predicted)
        assert (f.recall is None) == (f.images == 0)
        if f.precision and f.recall:
            assert f.f1 == pytest.approx(2 * f.precision * f.recall / (f.precision + f.recall))


def thumbnail(index: int) -> Image.Image:
    """A color for each image; the sixth is large."""
    return Image.new("RGB", (400, 300) if index == 5 else (8, 6), (30 * index, 100, 50))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "new"
    paths = report(
        PROBABILITIES,
        LABELS,
        NAMES,
        thumbnail,
        lambda index: f"pets/<i>{index}.jpg",
        out,
        title="A & <b>",
        facts={"Weights": "<script>"},
    )
    assert {path.name for path in paths} == {path.name for path in out.iterdir()}
    return out


def test_page(folder: Path) -> None:
    page = read_page(folder / "index.html")
    assert not {"script", "b", "i", "cow"} & set(page.tags)
    text = " ".join(page.text.split())
    assert "A & <b>" in text and "8, of which 5 are taken for another class" in text
    assert "37.50 %, 100.00 %" in text
    cards = [text.index(f"pets/<i>{index}.jpg") for index in (6, 5, 7, 2, 3)]
    assert cards == sorted(cards)
    space = "\N{NO-BREAK SPACE}"
    assert f"bird: 10.00{space}%taken for <cow>: 70.00{space}%pets/<i>6.jpg" in page.text
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 6}
    dash = "\N{EN DASH}"
    assert rows["bird"] == ["2", dash, "0.00", "0.00", "dog (1)"]
    assert rows["<cow>"] == ["0", "0.00", dash, "0.00", dash]
    assert rows["cat"] == ["4", "66.67", "50.00", "57.14", "dog (2)"]
    assert list(rows) == ["class", "bird", "<cow>", "dog", "cat"], "the lowest F1 first"
    pairs = [row for row in page.rows if len(row) == 3]
    assert pairs[:2] == [["true", "taken for", "images"], ["cat", "dog", "2"]]


def test_page_needs_nothing_else(folder: Path) -> None:
    """The matrix and five images are in it, the large one smaller, the others as they are."""
    page = read_page(folder / "index.html")
    images = []
    for source in page.sources:
        kind, _, data = source.partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        images.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))
    assert [image.size for image in images[1:]] == [(8, 6), (160, 120), (8, 6), (8, 6), (8, 6)]
    assert [image.getpixel((0, 0)) for image in images[3:]] == [
        (30 * index, 100, 50) for index in (7, 2, 3)
    ]
    assert (folder / "confusion.png").read_bytes() == images[0].fp.getvalue()


def test_files(folder: Path) -> None:
    with open(folder / "classes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[2].items()) == [
        *(("name", "bird"), ("images", "2"), ("precision", ""), ("recall", "0.0"), ("f1", "0.0")),
        *(("taken_for", "dog"), ("taken_for_images", "1")),
    ]
    values = json.loads((folder / "report.json").read_text())
    assert values["top1"] == 0.375 and values["classes"][2]["precision"] is None
    assert values["confusions"][0] == {"true": "cat", "predicted": "dog", "images": 2}
    assert values["mistakes"][0] == {
        "index": 6,
        "name": "pets/<i>6.jpg",
        "truth": "bird",
        "predicted": "<cow>",
        "probability": 0.7,
        "true_probability": 0.1,
    }


def test_no_mistakes(tmp_path: Path) -> None:
    report(np.eye(3), np.arange(3), NAMES[:3], thumbnail, str, tmp_path)
    page = read_page(tmp_path / "index.html")
    assert "Worst mistakes" not in page.text and "Classes" in page.text
    assert "3, of which 0 are taken" in page.text


def picture(classes: int, truth: int = 0, predicted: int = 0) -> np.ndarray:
    """Of 50 images a class, of which one of `truth` is taken for `predicted`; RGB, int."""
    labels = np.repeat(np.arange(classes), 50)
    taken = labels.copy()
    taken[50 * truth] = predicted
    data = confusion_png(taken, labels, [f"class {i}" for i in range(classes)])
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("classes", [2, 20, 21, 1000, 2500])
def test_one_mistake_can_be_seen(classes: int) -> None:
    """Of fifty: orange on white, above to the right, or below to the left."""
    right = picture(classes)
    places = []
    for truth, predicted in ((0, classes - 1), (classes - 1, 0)):
        wrong = picture(classes, truth, predicted)
        is_orange = (wrong[..., 0] - wrong[..., 2] > 30) & (wrong != right).any(axis=2)
        assert is_orange.sum() >= 6
        places.append(np.argwhere(is_orange).mean(axis=0) / len(right))
    (y1, x1), (y2, x2) = places
    assert y2 - y1 > 0.25 and x1 - x2 > 0.25


def test_counts_are_in_the_cells_of_a_few_classes() -> None:
    """White on the diagonal's full blue, and none where there are many classes."""

    def whites_between_blue(classes: int) -> int:
        pixels = picture(classes)
        blue = pixels[..., 2] - pixels[..., 0] > 100
        top, left = np.argwhere(blue).min(axis=0)
        side = (np.argwhere(blue)[:, 0].max() - top) // classes
        cell = pixels[top : top + side, left : left + side]
        return int((cell.min(axis=2) > 200).sum())

    assert whites_between_blue(10) > 10 * max(whites_between_blue(30), 1)


BAD = {
    "no images": (np.zeros((0, 4)), np.zeros(0, int), "there are no images to evaluate on"),
    "shape": (PROBABILITIES[:, :3], LABELS, r"shape \[8, 3\]: expected \[8, 4\]"),
    "length": (PROBABILITIES[:5], LABELS, r"shape \[5, 4\]: expected \[8, 4\]"),
    "label": (PROBABILITIES, LABELS + 2, "label 4: expected 0 to 3"),
    "negative": (PROBABILITIES, LABELS - 1, "label -1: expected 0 to 3"),
    "nan": (np.where(LABELS[:, None] == 2, np.nan, PROBABILITIES), LABELS, "infinity for image 6"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    probabilities, labels, message = BAD[case]
    with pytest.raises(InputError, match=message):
        report(probabilities, labels, NAMES, thumbnail, str, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures as without a report; the images are called by their files."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog", "猫"):
        for split in ("train", "validation", "test"):
            for i in range(3):
                file = tmp_path / "data" / split / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (40, 32, 3), np.uint8)).save(file)
    weights = tmp_path / "net.safetensors"
    kapps.save_weights(kapps.LeNet5(input_shape=(32, 32, 3), classes=3), weights)
    command = (
        f"--model=LeNet5 --weights={weights} --dataset=folder:{tmp_path}/data --image_size=32 "
        "--split=test --batch_size=4"
    )
    plain = run_here("tflite.programs.evaluate", command, capsys)
    told = run_here("tflite.programs.evaluate", f"{command} --report={tmp_path}/out", capsys)
    assert not told.code, told.stderr
    assert told.stdout == plain.stdout + f"{tmp_path}/out/index.html\n"
    values = json.loads((tmp_path / "out" / "report.json").read_text())
    assert values["images"] == 9 and f"top-1 {values['top1']:.4f}" in plain.stdout
    for mistake in values["mistakes"]:
        expected = f"{tmp_path}/data/test/{mistake['truth']}/[0-2].png"
        assert re.fullmatch(expected, mistake["name"])
    page = read_page(tmp_path / "out" / "index.html")
    with Image.open(io.BytesIO(base64.b64decode(page.sources[1].partition(",")[2]))) as image:
        assert image.size == (32, 32), "as the network sees it"


def test_a_report_of_a_tflite_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = run_here("tflite.programs.evaluate", f"--tflite=x --report={tmp_path}/out", capsys)
    assert answer.code == 2 and answer.stderr.count("\n") == 1
    assert "--report is of a network in Keras" in answer.stderr
