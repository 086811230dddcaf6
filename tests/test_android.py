"""An app that does as the README says classifies the pixels that kapps-evaluate does."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np
import pytest

import kapps
from kapps.tflite import convert
from kapps.tools import pipeline

README = (Path(__file__).parent.parent / "README.md").read_text()


class _Images(list):
    """A source of images of any size."""

    def __getitem__(self, index):
        return super().__getitem__(index), 0


@pytest.mark.slow
def test_of_a_wide_image_both_take_the_central_square(mediapipe_agrees, tmp_path):
    """The side is the network's, so that nothing is resized: every pixel has to be the same."""
    keras.utils.set_random_seed(0)
    model = kapps.LeNet5(input_shape=(32, 32, 3), classes=10)
    draw = np.random.default_rng(0)
    sizes = ((32, 64), (32, 47), (64, 32), (51, 32), (32, 32))
    images = [draw.integers(0, 256, (*size, 3), dtype="uint8") for size in sizes]
    squares, _ = pipeline.images(_Images(images), kapps.EvalTransform(32, 1.0, "bilinear"))
    path = tmp_path / "net.tflite"
    convert(model, path, verification=squares)
    (scores,) = mediapipe_agrees([path], images, squares).values()
    # It could be told: the left and the upper part are another picture.
    for image, score in zip(images[:4], scores, strict=False):
        assert np.abs(model(image[None, :32, :32].astype("float32"))[0] - score).max() > 1e-4


def test_the_readme_takes_the_central_square():
    """As tests/mediapipe_classify.py, which the other test holds against kapps."""
    (kotlin,) = [
        code for code in re.findall(r"```kotlin(.*?)```", README, re.DOTALL) if "classify(" in code
    ]
    lines = "".join(kotlin.split())
    assert "valside=minOf(bitmap.width,bitmap.height)" in lines
    for name, extent in (("left", "width"), ("top", "height")):  # halves to even, as torchvision
        assert f"val{name}=Math.rint((bitmap.{extent}-side)/2.0).toInt()" in lines
    assert "RectF(left/width,top/height,(left+side)/width,(top+side)/height)" in lines
