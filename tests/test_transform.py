"""Images prepared as the publishers of the weights do: pixel for pixel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from test_weights import torchvision

import kapps
from kapps import _index
from kapps.transform import EvalTransform, eval_transform


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)[:height, :width]).convert(mode)


SIZES = [(100, 80), (80, 101), (64, 64), (30, 200), (333, 33)]


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "crop"), [(64, 0.875), (57, 0.95), (64, 1.0), (48, 0.904)])
def test_equals_timms(size, crop, interpolation, crop_mode):
    torchvision()
    data = pytest.importorskip("timm.data")
    mean = (0.2, 0.4, 0.6)
    config = data.resolve_data_config(
        {"mean": mean},
        pretrained_cfg={
            "input_size": (3, size, size),
            "crop_pct": crop,
            "crop_mode": crop_mode,
            "interpolation": interpolation,
        },
    )
    theirs = data.create_transform(**config, normalize=False)
    ours = EvalTransform(size, crop, interpolation, crop_mode, fill=(51, 102, 153))
    for width_height in SIZES:
        image = picture(*width_height)
        expected = theirs(image).numpy().transpose(1, 2, 0)
        found = ours(image)
        assert found.shape == (size, size, 3) and found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected, err_msg=str(width_height))


def test_equals_torchvisions():
    vision = torchvision()
    for name, tag in (
        ("shufflenet_v2_x0_5", "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"),
        ("resnet50", "ResNet50_Weights.IMAGENET1K_V2"),
        ("inception_v3", "Inception_V3_Weights.IMAGENET1K_V1"),
    ):
        weights = vision.models.get_weight(tag)
        theirs = weights.transforms()
        row = next(
            row
            for rows in _index._index().values()
            for row in rows
            if row.source == weights.url.rpartition("/")[2]
        )
        ours = EvalTransform(row.size, row.crop, row.interpolation, row.crop_mode)
        for width_height in ((500, 375), (375, 500), (300, 901)):
            image = picture(*width_height)
            normalized = theirs(image).numpy().transpose(1, 2, 0)
            pixels = 255 * (normalized * np.array(theirs.std) + np.array(theirs.mean))
            np.testing.assert_array_equal(ours(image), np.round(pixels), err_msg=name)


def test_facts():
    """Of single steps, so that the two comparisons above are not all there is."""
    columns = np.arange(100, dtype=np.uint8)
    image = np.broadcast_to(columns[None, :, None], (50, 100, 3)).copy()
    # as large as resized: only the crop, 25 columns off on the left
    kept = EvalTransform(50, 1.0)(image)
    np.testing.assert_array_equal(kept[0, :, 0], columns[25:75])
    # 50 of 57 pixels remain, and half of 7 rounds to the even 4
    image = np.broadcast_to(np.arange(57, dtype=np.uint8)[:, None, None], (57, 57, 3)).copy()
    np.testing.assert_array_equal(EvalTransform(50, 0.87)(image)[:, 0, 0], np.arange(4, 54))
    # squashed, of four fields of one colour each
    fields = np.array([[[0] * 3, [50] * 3], [[100] * 3, [200] * 3]], np.uint8)
    squash = EvalTransform(2, 1.0, "nearest", "squash")
    np.testing.assert_array_equal(squash(fields.repeat(8, 0).repeat(4, 1)), fields)
    # the border is the fill
    framed = EvalTransform(8, 1.0, crop_mode="border", fill=(1, 2, 3))(
        np.zeros((4, 8, 3), np.uint8)
    )
    assert framed[:2].reshape(-1, 3).tolist() == [[1, 2, 3]] * 16 and not framed[2:6].any()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_other_modes_are_converted(mode):
    image = picture(40, 30, mode)
    found = EvalTransform(24)(image)
    np.testing.assert_array_equal(found, EvalTransform(24)(image.convert("RGB")))


def test_a_palette_with_transparency():
    image = picture(40, 30, "P")
    image.info["transparency"] = bytes(256)
    np.testing.assert_array_equal(EvalTransform(24)(image), EvalTransform(24)(picture(40, 30, "P")))


def test_arrays_are_as_pictures():
    image = picture(50, 40)
    np.testing.assert_array_equal(EvalTransform(24)(np.asarray(image)), EvalTransform(24)(image))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 4), np.uint8),
        "cat.jpg",
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_images_are_refused(image):
    with pytest.raises(kapps.InputError, match="an image must be"):
        EvalTransform(24)(image)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"size": 0}, "size must be"),
        ({"size": 2.5}, "size must be"),
        ({"size": 8, "crop": 0}, "crop must be"),
        ({"size": 8, "crop": 1.01}, "crop must be"),
        ({"size": 8, "interpolation": "bicubik"}, "did you mean bicubic"),
        ({"size": 8, "crop_mode": "centre"}, "did you mean center"),
    ],
)
def test_wrong_parameters(arguments, match):
    with pytest.raises(kapps.InputError, match=match):
        EvalTransform(**arguments)


def with_weights(row: _index.PublishedWeights, **arguments):
    model = kapps.MobileNetV3Small(**arguments)
    model.kapps_weights = row
    return model


def test_the_transform_of_a_model():
    rows = {row.tag: row for row in _index.list_weights("ResNet50")}
    a1, tv2 = rows["a1_in1k"], rows["tv2_in1k"]
    fixed = with_weights(a1)
    imagenet = (124, 116, 104)
    small = EvalTransform(224, 0.95, "bicubic", "center", imagenet)
    large = EvalTransform(288, 1.0, "bicubic", "center", imagenet)
    assert eval_transform(fixed) == eval_transform(fixed, 224) == small
    anything = with_weights(a1, include_top=False)
    assert eval_transform(anything) == small
    assert eval_transform(anything, "test") == eval_transform(anything, 288) == large
    assert eval_transform(anything, 300) == dataclasses.replace(small, size=300)
    for size in ("test", 288):
        with pytest.raises(kapps.InputError, match=r"224x224 pixels, not 288x288: build it with "):
            eval_transform(fixed, size)
    # its second evaluation is at the builder's own size, with another crop
    fixed.kapps_weights = tv2
    assert (eval_transform(fixed).size, eval_transform(fixed).crop) == (224, 0.965)
    with pytest.raises(kapps.InputError, match="192x224 pixels, not 192x192"):
        eval_transform(with_weights(a1, input_shape=(192, 224, 3)))


def test_models_without_a_published_evaluation():
    with pytest.raises(kapps.InputError, match="MobileNetV3Small has no published weights.*Eval"):
        eval_transform(kapps.MobileNetV3Small(input_shape=(32, 32, 3)))
    row = _index.find("MobileNetV3Small", "imagenet")
    with pytest.raises(kapps.InputError, match="takes 1 channels"):
        eval_transform(with_weights(row, input_shape=(32, 32, 1)))


def test_the_published_evaluation_of_every_row_can_be_prepared():
    seen = set()
    for rows in _index._index().values():
        for row in rows:
            seen.add((row.crop_mode, row.interpolation))
            EvalTransform(row.size, row.crop, row.interpolation, row.crop_mode)
    assert seen >= {("center", "bicubic"), ("center", "bilinear"), ("squash", "bicubic")}
