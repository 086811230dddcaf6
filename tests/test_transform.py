"""Images prepared as the publishers of the weights do: pixel for pixel."""

from __future__ import annotations

import dataclasses
import io

import keras
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from test_weights import torchvision

import kapps
from kapps import _index
from kapps.custom_layers import ImageNormalization
from kapps.transform import EvalTransform, eval_transform


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)[:height, :width]).convert(mode)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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


def file_of(image: Image.Image, suffix: str) -> Image.Image:
    """As Pillow opens it."""
    content = io.BytesIO()
    image.save(content, suffix)
    return Image.open(content)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_scaled_to_8(suffix):
    levels = np.arange(0, 65536, 64, np.uint16).reshape(32, 32)
    found = EvalTransform(32, 1.0)(file_of(Image.fromarray(levels), suffix))
    expected = np.round(levels.astype(float) * 255 / 65535)
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, -1))
    # as older Pillow opens them, and where a number lies beyond
    wide = levels.astype(np.int32)
    wide[-1, -1] = 70_000
    np.testing.assert_array_equal(EvalTransform(32, 1.0)(Image.fromarray(wide))[:31], found[:31])
    assert EvalTransform(32, 1.0)(Image.fromarray(wide))[-1, -1].tolist() == [255] * 3


def test_floating_point_is_0_to_255():
    numbers = np.array([[0.4, 0.6, 127.5], [254.6, 300, -20], [1, 2, 3]], np.float32)
    found = EvalTransform(3, 1.0)(file_of(Image.fromarray(numbers), "tiff"))
    assert found[..., 1].tolist() == [[0, 1, 128], [255, 255, 0], [1, 2, 3]]
    black = Image.fromarray(np.zeros((4, 4), np.float32))
    assert not EvalTransform(4, 1.0)(black).any()
    with pytest.raises(
        kapps.InputError, match=r"lie in 0\.\.1, and kapps takes 0\.\.255: multiply"
    ):
        EvalTransform(3)(Image.fromarray(numbers.clip(0, 1)))
    with pytest.raises(kapps.InputError, match="not finite"):
        EvalTransform(3)(Image.fromarray(np.full((3, 3), np.nan, np.float32)))


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (3, 700)])
def test_a_strip_keeps_its_aspect(size):
    """However long it is, the crop lies within, and is not stretched: a gradient along the strip
    has as many steps in the picture as in that part of the strip.
    """
    length = max(size)
    levels = np.linspace(0, 255, length, dtype=np.uint8)
    strip = np.broadcast_to(levels[:, None], (length, min(size)))
    strip = strip if size[1] == length else strip.T
    found = EvalTransform(32, 1.0, "bilinear")(Image.fromarray(np.ascontiguousarray(strip)))
    along = found[:, 0, 0] if size[1] == length else found[0, :, 0]
    steps = 255 / (length - 1) * min(size)  # what 32 pixels of the result show of the strip
    assert found.shape == (32, 32, 3)
    assert abs((int(along[-1]) - int(along[0])) - steps * 31 / 32) <= 1.5


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


def a_model(name: str = "ResNet50", shape=(224, 224, 3), **attributes) -> keras.Model:
    """With what a builder's model tells of itself, and no layers that take time."""
    image = keras.Input(shape)
    x = ImageNormalization(IMAGENET_MEAN, IMAGENET_STD, name="normalization")(image)
    model = keras.Model(image, x, name="net")
    model.kapps_builder = name
    for attribute, value in attributes.items():
        setattr(model, attribute, value)
    return model


def with_weights(row: _index.PublishedWeights, shape=(224, 224, 3)) -> keras.Model:
    return a_model(shape=shape, kapps_weights=row)


def test_the_transform_of_a_model():
    rows = {row.tag: row for row in _index.list_weights("ResNet50")}
    a1, tv2 = rows["a1_in1k"], rows["tv2_in1k"]
    fixed = with_weights(a1)
    imagenet = (124, 116, 104)
    small = EvalTransform(224, 0.95, "bicubic", "center", imagenet)
    large = EvalTransform(288, 1.0, "bicubic", "center", imagenet)
    assert eval_transform(fixed) == eval_transform(fixed, 224) == small
    anything = with_weights(a1, (None, None, 3))
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
        eval_transform(with_weights(a1, (192, 224, 3)))


def test_images_of_other_channels_are_not_prepared():
    row = _index.find("MobileNetV3Small", "imagenet")
    with pytest.raises(kapps.InputError, match="takes 4 channels"):
        eval_transform(with_weights(row, (32, 32, 4)))
    with pytest.raises(kapps.InputError, match="channels must be 3, for RGB, or 1, for gray"):
        EvalTransform(32, channels=4)


def test_images_become_gray():
    image = picture(100, 80)
    for interpolation, crop_mode in (("bilinear", "center"), ("nearest", "border")):
        made = EvalTransform(57, 0.95, interpolation, crop_mode, channels=1)
        found = made(image)
        assert found.shape == (57, 57, 1) and found.dtype == np.uint8
        # What Pillow calls gray, as three equal channels: the same picture is prepared.
        colour = dataclasses.replace(made, channels=3)
        fill = round(0.299 * 124 + 0.587 * 116 + 0.114 * 104)
        gray = dataclasses.replace(colour, fill=(fill,) * 3)(image.convert("L"))
        np.testing.assert_array_equal(found[..., 0], gray[..., 0])
    model = a_model("NiN", (32, 32, 1))
    model.layers[1].mean.assign([0.2])
    prepare = eval_transform(model, crop=0.9, interpolation="bilinear")
    assert prepare == EvalTransform(32, 0.9, "bilinear", fill=(51,) * 3, channels=1)


def test_weights_of_a_run_bring_their_own_evaluation(tmp_path):
    """Of a network that nothing is published for, and in place of what was published."""
    file = tmp_path / "weights.safetensors"
    trained = kapps.LeNet5(classes=4)
    own = EvalTransform(32, 0.9, "bilinear", "squash", channels=1)
    kapps.save_weights(trained, file, evaluation=own)
    built = kapps.LeNet5(weights=file, classes=4)
    mean = round(255 * float(keras.ops.convert_to_numpy(built.layers[1].mean)[0]))
    assert eval_transform(built) == dataclasses.replace(own, fill=(mean,) * 3)
    kapps.save_weights(built, file)  # it stays with them
    assert eval_transform(kapps.LeNet5(weights=file, classes=4)) == eval_transform(built)
    published = kapps.LeNet5(input_shape=(32, 32, 3))
    published.kapps_weights = _index.find("ResNet50", "imagenet")
    kapps.save_weights(published, file, evaluation=EvalTransform(32, 1.0, "nearest"))
    found = eval_transform(kapps.LeNet5(weights=file, input_shape=(32, 32, 3)))
    assert (found.crop, found.interpolation) == (1.0, "nearest")
    with pytest.raises(kapps.InputError, match=r"do not keep the evaluation; write a \.safeten"):
        kapps.save_weights(trained, tmp_path / "w.weights.h5", evaluation=own)


def test_weights_of_a_file_know_which_published_ones_they_come_from(tmp_path):
    a1 = next(row for row in _index.list_weights("ResNet50") if row.tag == "a1_in1k")
    built = kapps.LeNet5(input_shape=(32, 32, 3))
    built.kapps_weights = a1
    for name in ("first", "second"):  # also from a file to the next
        kapps.save_weights(built, tmp_path / f"{name}.safetensors")
        built = kapps.LeNet5(weights=tmp_path / f"{name}.safetensors", input_shape=(32, 32, 3))
        assert built.kapps_weights is None
        assert built.kapps_evaluation.source == "timm/resnet50.a1_in1k"
        evaluation = eval_transform(built)
        assert (evaluation.size, evaluation.crop) == (32, 0.95)
    anything = a_model(shape=(None, None, 3), kapps_evaluation=built.kapps_evaluation)
    assert (eval_transform(anything).size, eval_transform(anything, "test").crop) == (224, 1.0)
    kapps.save_weights(built, tmp_path / "w.weights.h5")
    kapps.load_weights(built, tmp_path / "w.weights.h5")
    assert built.kapps_evaluation is None  # Keras's files do not tell it


@pytest.mark.parametrize(
    "text",
    [
        "large",
        "{}",
        "[]",
        '{"size": 8, "crop": 2, "interpolation": "bicubic", "crop_mode": "center"}',
        '{"size": 8, "crop": "x", "interpolation": "bicubic", "crop_mode": "center"}',
        '{"size": 8, "crop": 1, "interpolation": 3, "crop_mode": "center"}',
        '{"size": 8, "crop": 1, "interpolation": "bicubic", "crop_mode": "center", "os": 1}',
        '{"size": 8, "crop": 1, "interpolation": "nearest", "crop_mode": "center",'
        ' "test_size": "8"}',
    ],
)
def test_metadata_that_is_no_evaluation(text, tmp_path):
    model = kapps.LeNet5()
    kapps.save_weights(model, tmp_path / "w.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    file = tmp_path / "other.safetensors"
    safetensors.numpy.save_file(tensors, file, {"evaluation": text})
    with pytest.raises(
        kapps.InputError, match="other.safetensors: the metadata's evaluation is no"
    ):
        kapps.load_weights(model, file)


def test_weights_that_bring_nothing_are_prepared_for_as_the_published_ones():
    """Of the same network: as timm does for a checkpoint of one's own."""
    default = _index.find("ResNet50", "imagenet")
    found = eval_transform(a_model(shape=(160, 160, 3)))
    assert found == EvalTransform(
        160, default.crop, default.interpolation, default.crop_mode, (124, 116, 104)
    )
    renamed = a_model(name="none")
    del renamed.kapps_builder  # as after `.keras`
    renamed.name = "ResNet50"
    assert eval_transform(renamed).crop == eval_transform(a_model()).crop
    given = eval_transform(a_model(), crop=0.5, interpolation="nearest", crop_mode="border")
    assert given == EvalTransform(224, 0.5, "nearest", "border")


def test_what_nobody_has_said_is_to_be_given():
    model = kapps.LeNet5(input_shape=(32, 32, 3))
    with pytest.raises(kapps.InputError, match=r"no published weights.*give crop=\.\.\., interpol"):
        eval_transform(model)
    with pytest.raises(kapps.InputError, match=r"give crop=\.\.\., as in"):
        eval_transform(model, interpolation="bilinear")
    with pytest.raises(kapps.InputError, match="give size= as a number, as in"):
        eval_transform(model, "test", crop=0.9, interpolation="bilinear")
    found = eval_transform(model, crop=0.9, interpolation="bilinear")
    mean = tuple(round(255 * x) for x in keras.ops.convert_to_numpy(model.layers[1].mean))
    assert found == EvalTransform(32, 0.9, "bilinear", fill=mean)
    anything = a_model("LeNet5", (None, None, 3))
    with pytest.raises(kapps.InputError, match=r"give size=\.\.\., as in"):
        eval_transform(anything, crop=0.9, interpolation="bilinear")
    assert eval_transform(anything, 48, crop=0.9, interpolation="bilinear").size == 48


def test_every_builder_says_its_name():
    model = kapps.NiN(name="mine")
    assert (model.name, model.kapps_builder) == ("mine", "NiN")


def test_the_published_evaluation_of_every_row_can_be_prepared():
    seen = set()
    for rows in _index._index().values():
        for row in rows:
            seen.add((row.crop_mode, row.interpolation))
            EvalTransform(row.size, row.crop, row.interpolation, row.crop_mode)
    assert seen >= {("center", "bicubic"), ("center", "bilinear"), ("squash", "bicubic")}
