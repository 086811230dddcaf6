"""What `make demo` has left in build/demo; CI runs it first."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

import kapps
from kapps.tflite import QUANTIZATIONS, Runner, read_metadata
from kapps.tools import data, pipeline

DEMO = Path(os.environ.get("KAPPS_DEMO", Path(__file__).parents[1] / "build" / "demo"))
NETWORKS = ("LeNet5", "MobileNetV3Small", "ShuffleNetV2_x0_5", "EfficientNetLite0")

pytestmark = pytest.mark.skipif(
    not (DEMO / "report.json").exists(), reason=f"no report in {DEMO}: run `make demo` first"
)


@pytest.fixture(scope="module")
def rows():
    return json.loads((DEMO / "report.json").read_text())


def whole(size: int) -> kapps.EvalTransform:
    return kapps.EvalTransform(size, 1.0, "bilinear")


def test_rows(rows):
    assert [(row["model"], row["variant"]) for row in rows] == [
        (network, variant) for network in NETWORKS for variant in QUANTIZATIONS
    ]
    for row in rows:
        assert set(row) == {
            "model",
            "variant",
            "top1",
            "size_bytes",
            "latency_ms",
            "threads",
            "device",
            "delegate_pieces",
            "file",
        }
        assert row["size_bytes"] == (DEMO / row["file"]).stat().st_size
        assert row["device"].startswith("host: ") and row["threads"] == 1
        latency = row["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
        if row["variant"] == "float32":
            assert row["delegate_pieces"] == 1


def test_accuracy_is_there_and_survives(rows):
    top1 = {(row["model"], row["variant"]): row["top1"] for row in rows}
    for network in NETWORKS:
        exact = top1[network, "float32"]
        assert exact >= 0.97, network
        assert exact - top1[network, "int8"] <= 0.01, network


def test_the_figures_in_the_readme_are_those_of_today(rows):
    """All that does not depend on the machine; training on another CPU rounds differently."""
    told = json.loads((Path(__file__).parents[1] / "docs" / "demo.json").read_text())
    for name in ("model", "variant", "file", "delegate_pieces", "threads"):
        assert [row[name] for row in rows] == [row[name] for row in told], name
    for row, before in zip(rows, told, strict=True):
        assert row["size_bytes"] == pytest.approx(before["size_bytes"], rel=0.02), row["file"]
        assert abs(row["top1"] - before["top1"]) <= 0.02, row["file"]  # 7 images of 360


def test_accuracy_is_what_the_files_do(rows):
    """The two cheapest files, scored anew."""
    source = data.load("digits").test
    for row in rows[:4:3]:
        runner = Runner(DEMO / row["file"])
        images, labels = pipeline.images(source, whole(runner.input_shape[1]))
        assert (runner.predict(images).argmax(axis=1) == labels).mean() == row["top1"]


def test_mediapipe_classifies_as_the_interpreter_does(rows, mediapipe_agrees):
    """Each float32 and int8 file, on held-out digits."""
    source = data.load("digits").test
    for size in (32, 64):
        images, labels = (part[:30] for part in pipeline.images(source, whole(size)))
        files = [
            DEMO / row["file"]
            for row in rows
            if row["variant"] in ("float32", "int8") and (row["model"] == "LeNet5") == (size == 32)
        ]
        assert all(read_metadata(file).labels == tuple("0123456789") for file in files)
        for scores in mediapipe_agrees(files, images).values():
            assert (scores.argmax(axis=1) == labels).mean() > 0.9


def test_reports(rows):
    markdown = (DEMO / "report.md").read_text()
    page = (DEMO / "report.html").read_text()
    for row in rows:
        assert row["file"] in markdown and row["file"] in page
    assert "<svg" in page and "true \\ predicted" in page
    # Self-contained: nothing is loaded from anywhere.
    assert not re.search(r"<(script|link|img|iframe)|\burl\((?!#)|@import", page)
