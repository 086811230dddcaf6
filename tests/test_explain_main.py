"""kapps-explain: a page whose figures are the library's, and one line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from pages import read_page
from PIL import Image
from programs import Answer, run_here

import kapps
from kapps import InputError, explain
from kapps.tflite import explanation
from kapps.tflite.source import Model, whole_square
from kapps.tools import explain_methods

NAMES = ("circle", "cross", "dot", "line", "square", "star")
FAST = "--methods=grad_cam,saliency --sections=none"


def pooled_net(bias: float = 0.0) -> keras.Model:
    """A net of somebody else: nested, with global pooling and softmax, for 16 pixels."""
    body = keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(
                4,
                3,
                activation="relu",
                kernel_initializer=keras.initializers.RandomUniform(0.1, 0.3, seed=1),
                bias_initializer=keras.initializers.Constant(bias),
                name="conv",
            ),
        ],
        name="body",
    )
    head = keras.Sequential(
        [
            layers.Input((14, 14, 4)),
            layers.GlobalAveragePooling2D(),
            layers.Dense(6, activation="softmax"),
        ]
    )
    image = layers.Input((16, 16, 3))
    return keras.Model(image, head(body(image)), name="pooled")


def source_of(model: keras.Model, labels: tuple[str, ...] | None = NAMES) -> Model:
    return Model(model, labels, None, None, None, whole_square(model.input_shape[1]))


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("explain")
    (tmp / "photos").mkdir()
    (tmp / "empty").mkdir()
    for i, name in enumerate(("a.png", "b.jpg")):
        picture(i).save(tmp / "photos" / name)
    picture(2).save(tmp / "c.png")
    (tmp / "text.jpg").write_text("no image")
    (tmp / "names.txt").write_text("\n".join(NAMES))
    kapps.save_weights(kapps.LeNet5(input_shape=(32, 32, 3), classes=6), tmp / "net.safetensors")
    return tmp


def start(folder: Path, arguments: str, capsys: pytest.CaptureFixture[str]) -> Answer:
    net = f"--model=LeNet5 --weights={folder}/net.safetensors --image_size=32 --classes=6"
    return run_here("tflite.programs.explain", f"{net} {arguments}".format(tmp=folder), capsys)


def test_the_page_and_its_figures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    answer = start(
        folder,
        f"{FAST} --labels={{tmp}}/names.txt --output={out} --json={out}.json {{tmp}}/photos "
        "{tmp}/c.png",
        capsys,
    )
    assert not answer.code, answer.stderr
    assert answer.stdout.endswith(f"{out}/index.html\n")
    figures = json.loads((tmp_path / "out.json").read_text())
    assert [each["image"] for each in figures] == ["a.png", "b.jpg", "c.png"]
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{name}_{method}.png" for name in "abc" for method in ("grad_cam", "saliency")),
        "index.html",
    ]
    with Image.open(out / "a_grad_cam.png") as shown:
        assert (shown.size, shown.mode) == ((32, 32), "RGB")

    page = read_page(out / "index.html")
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    for told in ("Grad-CAM", "Simonyan et al. 2014", "Deletion", "net.safetensors", "tensorflow"):
        assert told in page.text
    a = figures[0]
    assert f"a.png: {a['class_name']}" in page.text
    score = a["methods"]["saliency"]
    assert f"deletion {score['deletion']:.2f}, insertion {score['insertion']:.2f}" in page.text

    model = kapps.LeNet5(
        input_shape=(32, 32, 3), classes=6, weights=str(folder / "net.safetensors")
    )
    image = np.asarray(Image.open(folder / "photos" / "a.png"))[None]
    assert a["probability"] == pytest.approx(float(np.max(model(image))), abs=1e-5)
    assert (a["class"], a["class_name"]) == (int(np.argmax(model(image))), NAMES[a["class"]])
    area = explain.deletion(model, image, explain.saliency(model, image)).area
    assert score["deletion"] == pytest.approx(float(area[0]), abs=1e-4)
    assert set(a["references"]) == {"random map", "centred map"}


def test_classes_by_name_and_number_and_another_layer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = kapps.LeNet5(input_shape=(32, 32, 3), classes=6)
    first = next(layer.name for layer in net.layers if isinstance(layer, layers.Conv2D))
    answer = start(
        folder,
        f"--methods=layer_cam --sections=none --labels={{tmp}}/names.txt --targets=star,2 "
        f"--layer={first} --output={tmp_path} --json=- {{tmp}}/c.png",
        capsys,
    )
    assert not answer.code, answer.stderr
    figures = json.loads(answer.stdout)
    assert [each["class_name"] for each in figures] == ["star", "dot"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "c_star_layer_cam.png",
        "c_dot_layer_cam.png",
    }
    assert f"{first}, 28\N{MULTIPLICATION SIGN}28" in read_page(tmp_path / "index.html").text


MISTAKES = {
    f"{FAST} {{tmp}}/none.jpg": "no such file or folder: {tmp}/none.jpg",
    f"{FAST} {{tmp}}/empty": "{tmp}/empty holds no images (",
    f"{FAST} {{tmp}}/text.jpg": "{tmp}/text.jpg: cannot be read as an image",
    FAST: "give images, or --dataset",
    f"{FAST} --dataset=digits {{tmp}}/c.png": "give either images or --dataset",
    "--methods=grad_camm {tmp}/c.png": "unknown method 'grad_camm'; did you mean grad_cam",
    "--sections=filter {tmp}/c.png": "unknown section 'filter'; did you mean filters",
    "--sections=map {tmp}/c.png": "map is drawn from a data set: give --dataset as well",
    f"{FAST} --layer=conv {{tmp}}/c.png": "unknown layer of LeNet5 'conv'; did you mean conv",
    f"{FAST} --targets=6 {{tmp}}/c.png": "--targets: 6 is beyond the model's classes, 0 to 5",
    f"{FAST} --targets=cat {{tmp}}/c.png": "unknown class 'cat'; the model's classes have no names",
    f"{FAST} --targets=sta --labels={{tmp}}/names.txt {{tmp}}/c.png": "unknown class 'sta'; did "
    "you mean star",
    "--methods=cam --sections=none {tmp}/c.png": "cam: LeNet5 does not end in global average "
    "pooling and one dense layer, which CAM needs; use grad_cam",
    f"{FAST} --output={{tmp}}/text.jpg {{tmp}}/c.png": "cannot write into {tmp}/text.jpg: ",
    f"{FAST} --boxes={{tmp}}/none.json {{tmp}}/c.png": "--boxes: cannot read {tmp}/none.json",
    f"{FAST} --boxes={{tmp}}/names.txt {{tmp}}/c.png": "--boxes: {tmp}/names.txt is no JSON",
    f"{FAST} --boxes={{tmp}}/names.txt": "--boxes is of image files: name them as well",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_gets_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    output = "" if "--output" in arguments else f" --output={tmp_path}/out"
    answer = start(folder, arguments + output, capsys)
    assert answer.code == 2, answer.stderr
    line = answer.stderr.splitlines()[-1]
    assert line.startswith("kapps-explain: error: ")
    assert MISTAKES[arguments].format(tmp=folder) in line
    assert not list(tmp_path.iterdir())
    assert (folder / "text.jpg").read_text() == "no image"


def test_without_images_those_of_a_data_set(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of ten classes, which the net does not have: their names are not taken."""
    arguments = f"--dataset=digits --split=test --images=3 --output={tmp_path} --json=- {FAST}"
    answer = start(folder, arguments, capsys)
    assert not answer.code, answer.stderr
    figures = json.loads(answer.stdout)
    assert len({each["image"] for each in figures}) == 3
    assert all(each["class_name"] is None and 0 <= each["label"] < 10 for each in figures)
    assert "it is class" in read_page(tmp_path / "index.html").text


def test_boxes_are_cropped_as_the_pictures_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a picture of 64 x 32 the net sees the middle: the box is the left half of that."""
    picture(0, (64, 32)).save(tmp_path / "wide.png")
    (tmp_path / "boxes.json").write_text(json.dumps({"wide.png": [[0, 0, 32, 32]]}))
    seen: dict[str, Any] = {}

    def points(row: int, column: int) -> list[dict[str, Any]]:
        def method(model: Any, images: np.ndarray, classes: Any) -> np.ndarray:
            seen["images"] = images
            maps = np.zeros(images.shape[:3], "float32")
            maps[:, row, column] = 1
            return maps

        monkeypatch.setattr(explain, "saliency", method, raising=False)
        request = explanation.Request(
            [str(tmp_path / "wide.png")],
            methods=["saliency"],
            boxes=str(tmp_path / "boxes.json"),
            sections=[],
        )
        return explanation.explain(source_of(pooled_net()), request, tmp_path / "out")

    (left,) = points(8, 7)
    (right,) = points(8, 8)
    assert seen["images"].shape == (1, 16, 16, 3)
    assert left["methods"]["saliency"]["pointing"] == 1
    assert right["methods"]["saliency"]["pointing"] == 0
    assert "points beside the object" in read_page(tmp_path / "out" / "index.html").text


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ({"wine.png": [[0, 0, 1, 1]]}, "unknown picture in --boxes 'wine.png'; did you mean wide"),
        ({"wide.png": [[70, 0, 80, 9]]}, "lies outside of its 64x32 pixels"),
        ({"wide.png": [[5, 0, 5, 9]]}, "has no boxes for wide.png"),
        ({"wide.png": [0, 0, 5, 9]}, "has no boxes for wide.png"),
        ([], "names no picture"),
    ],
)
def test_boxes_that_are_none(tmp_path: Path, boxes: Any, message: str) -> None:
    picture(0, (64, 32)).save(tmp_path / "wide.png")
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    request = explanation.Request(
        [str(tmp_path / "wide.png")], boxes=str(tmp_path / "boxes.json"), sections=[]
    )
    with pytest.raises(InputError, match=message):
        explanation.explain(source_of(pooled_net()), request, tmp_path / "out")


def test_a_picture_of_nothing_is_a_message(tmp_path: Path) -> None:
    """Every ReLU is shut for the dark image, and open for the bright one."""
    Image.new("RGB", (16, 16), (10, 10, 10)).save(tmp_path / "dark.png")
    picture(0, (16, 16)).save(tmp_path / "light.png")
    request = explanation.Request(
        [str(tmp_path / "dark.png"), str(tmp_path / "light.png")],
        methods=["all"],
        sections=["activations"],
    )
    dark, light = explanation.explain(source_of(pooled_net(bias=-1.0)), request, tmp_path / "out")
    assert "zero everywhere" in dark["methods"]["grad_cam"]["message"]
    assert "message" not in light["methods"]["saliency"]
    page = read_page(tmp_path / "out" / "index.html")
    assert dark["methods"]["grad_cam"]["message"] in page.text
    assert set(dark["methods"]) == set(explain_methods.METHODS)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert "dark_grad_cam.png" not in written
    assert {"light_cam.png", "light_guided_backpropagation.png", "activations_1.png"} <= written
    assert "guided backpropagation (unfaithful)" in page.text


def test_all_methods_of_a_net_without_global_pooling(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"--methods=all --sections=none --output={tmp_path} --json=- {{tmp}}/c.png"
    answer = start(folder, arguments, capsys)
    assert not answer.code, answer.stderr
    (figures,) = json.loads(answer.stdout)
    assert "use grad_cam" in figures["methods"].pop("cam")["message"]
    assert all("deletion" in score for score in figures["methods"].values())


def test_sanity_has_a_verdict_a_method_and_leaves_the_weights(tmp_path: Path) -> None:
    model = pooled_net()
    before = [np.array(weight) for weight in model.get_weights()]
    picture(0, (16, 16)).save(tmp_path / "a.png")
    request = explanation.Request(
        [str(tmp_path / "a.png")], methods=["saliency", "occlusion"], sections=[], sanity=True
    )
    (figures,) = explanation.explain(source_of(model), request, tmp_path / "out")
    page = read_page(tmp_path / "out" / "index.html")
    assert "Cascading randomization (Adebayo et al. 2018)" in page.text
    (verdicts,) = [row for row in page.rows if row[0] == "verdict"]
    told = [each["sanity"] for each in figures["methods"].values()]
    assert verdicts[1:] == [line.partition(":")[0] for line in told]
    assert set(verdicts[1:]) <= {"passes", "fails", "undecided"}
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_every_section(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = start(
        folder,
        f"--methods=grad_cam --sections=all --dataset=digits --images=2 --output={tmp_path}",
        capsys,
    )
    assert not answer.code, answer.stderr
    names = {path.stem.rstrip("0123456789") for path in tmp_path.glob("*.png")}
    assert {"filters", "activations_", "patches_", "feature_map", "class_", "inversion_"} <= names
    text = read_page(tmp_path / "index.html").text
    for told in ("Filters of the first convolution", "Map of features", " dB", "by depth"):
        assert told in text
    assert "lesions: labels has " in text  # of ten classes, and the net has six


def test_lesions_of_a_labelled_data_set(tmp_path: Path) -> None:
    model = kapps.CifarResNet(depth=8, input_shape=(16, 16, 3), classes=10)
    request = explanation.Request(
        dataset="digits", images=1, methods=["grad_cam"], sections=["lesions"]
    )
    explanation.explain(source_of(model, None), request, tmp_path)
    page = read_page(tmp_path / "index.html")
    (header,) = [i for i, row in enumerate(page.rows) if row[0] == "without"]
    rows = {row[0]: float(row[1]) for row in page.rows[header + 1 :]}
    assert set(rows) == set(kapps.removable_blocks(model))
    assert "The intact network: loss" in page.text


def test_a_keras_file_is_loaded_in_a_process_of_its_own(folder: Path, tmp_path: Path) -> None:
    pooled_net().save(tmp_path / "net.keras")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kapps.tflite.programs.explain"),
            *(f"--keras={tmp_path}/net.keras", f"--labels={folder}/names.txt"),
            *("--methods=grad_cam", "--sections=none", f"--output={tmp_path}/out"),
            str(folder / "c.png"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "c_grad_cam.png").exists()
    assert any(f"c.png: {name} " in done.stdout for name in NAMES)
