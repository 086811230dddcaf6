"""Filters, activations, the patches that excite a channel, and the map of features."""

from __future__ import annotations

import importlib.util
import sys

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import layers, ops

import kapps
from kapps import explain
from kapps._errors import InputError


def classifier(*inner, shape=(16, 16, 3)) -> keras.Model:
    """A hand-made network of these layers, for images in 0..255."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Rescaling(1 / 255),
            *inner,
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, name="classes"),
        ]
    )


@pytest.fixture
def images(seed):
    return np.random.default_rng(seed).uniform(0, 255, (6, 16, 16, 3)).astype("float32")


@pytest.mark.few
def test_a_network_without_classes(seed):
    """The body of a detector, or the pyramid that `kapps.features` gives: several outputs."""
    images = np.random.default_rng(seed).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    whole = kapps.CifarResNet(depth=8, input_shape=(32, 32, 3))
    body = kapps.CifarResNet(depth=8, include_top=False, input_shape=(32, 32, 3))
    for layer in body.layers:
        layer.set_weights(whole.get_layer(layer.name).get_weights())
    pyramid = kapps.features(whole, strides=(1, 2, 4))
    for model in (body, pyramid):
        for function in (explain.filters, lambda m: explain.activations(m, images)):
            np.testing.assert_allclose(function(model), function(whole), atol=1e-4)
        assert explain.activations(model, images, "layer1.0").shape == (4, 32, 32, 16)
        patches = explain.top_patches(model, images, "layer1.0", 0, count=2)
        assert patches[0].index in range(4)
        assert explain.deep_dream(model, images[:1], octaves=1, steps=1).shape == (1, 32, 32, 3)
        found = explain.invert(model, images[:1], "layer1.0", starts=1, steps=2)
        assert found.best.shape == (1, 32, 32, 3)
        with pytest.raises(InputError, match=r"grad_cam: .* has to give \(batch, classes\)"):
            explain.grad_cam(model, images)


# --- Filters -------------------------------------------------------------------------------------


@pytest.mark.few
def test_zero_is_mid_gray_in_a_filter_and_its_largest_weight_at_an_end():
    model = classifier(layers.Conv2D(2, 3, use_bias=False, name="first"))
    kernel = np.zeros((3, 3, 3, 2), "float32")
    kernel[0, 1, 2, 0], kernel[2, 2, 0, 0] = 0.2, -0.1
    model.get_layer("first").set_weights([kernel])
    pictures = explain.filters(model)
    assert pictures.shape == (2, 3, 3, 3) and pictures.dtype == np.float32
    assert pictures[0, 0, 1, 2] == 255
    assert pictures[0, 2, 2, 0] == pytest.approx(63.75)
    assert (pictures[1] == 127.5).all()  # no weight, no division by zero


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv2D(4, (3, 5)), (4, 3, 5, 3)),
        (layers.Conv2D(6, 3, groups=3), (6, 3, 3, 1)),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 3, 3, 1)),
        (layers.SeparableConv2D(8, 3), (3, 3, 3, 1)),
    ],
)
def test_filters_of_each_kind_of_convolution(layer, shape):
    assert explain.filters(classifier(layer)).shape == shape


def test_depthwise_filters_are_in_the_order_of_the_channels():
    model = classifier(layers.DepthwiseConv2D(1, depth_multiplier=2, use_bias=False, name="d"))
    kernel = np.array([1, -1, -1, 1, 1, 1], "float32").reshape(1, 1, 3, 2)
    model.get_layer("d").set_weights([kernel])
    assert explain.filters(model).ravel().tolist() == [255, 0, 0, 255, 255, 255]


def test_filters_over_many_channels_are_gray_one_for_each():
    model = classifier(layers.Conv2D(5, 3), layers.Conv2D(2, 3, use_bias=False, name="second"))
    kernel = model.get_layer("second").get_weights()[0]
    pictures = explain.filters(model, "second")
    assert pictures.shape == (10, 3, 3, 1)
    scaled = 127.5 + 127.5 * kernel / np.abs(kernel).max((0, 1, 2))
    np.testing.assert_allclose(pictures[7, ..., 0], scaled[:, :, 2, 1], atol=1e-3)


def test_a_layer_that_has_no_filters_is_said_so():
    model = classifier(layers.Conv2D(2, 3, name="first"), layers.ReLU(name="relu"))
    with pytest.raises(InputError, match="relu is a ReLU.*the first one is first"):
        explain.filters(model, "relu")
    with pytest.raises(InputError, match="did you mean first"):
        explain.filters(model, "frist")
    with pytest.raises(InputError, match="no two-dimensional convolution"):
        explain.filters(classifier())


def test_filters_of_a_kapps_model_by_the_name_of_the_checkpoint():
    model = kapps.MobileNetV2_035(input_shape=(32, 32, 3))
    assert explain.filters(model).shape == (16, 3, 3, 3)
    assert explain.filters(model, "blocks.0.0.conv_dw").shape == (16, 3, 3, 1)


# --- Activations ---------------------------------------------------------------------------------


@pytest.mark.few
def test_activations_are_those_of_the_layer(images):
    inner = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(5, 3, name="inside")])
    model = classifier(inner, layers.ReLU(name="relu"))
    maps = explain.activations(model, images, "inside")
    expected = ops.convert_to_numpy(inner(images / 255))
    assert maps.shape == (6, 14, 14, 5) and maps.dtype == np.float32
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    np.testing.assert_allclose(
        explain.activations(model, images), np.maximum(expected, 0), 1e-4, 1e-5
    )


def test_activations_of_a_data_set_are_those_of_its_images(images):
    model = classifier(layers.Conv2D(5, 3))
    whole = explain.activations(model, images)
    for batches in ([images[:4], images[4:]], [(images[:4], [0] * 4), (images[4:], [1] * 2)]):
        np.testing.assert_allclose(explain.activations(model, iter(batches)), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 8, 8, 3)), r"takes images \(N, 16, 16, 3\), not \(2, 8, 8, 3\)"),
        (iter([]), "there are no images"),
        (3, "an array .* or an iterable"),
        ("photos", "an array .* or an iterable"),
    ],
)
def test_images_that_are_none(given, message):
    with pytest.raises(InputError, match=message):
        explain.activations(classifier(layers.Conv2D(2, 3)), given)


# --- Patches -------------------------------------------------------------------------------------


def bright(images: np.ndarray, *places: tuple[int, int, int, float]) -> np.ndarray:
    for number, row, column, value in places:
        images[number, row, column] = value
    return images


def counting(kernel: int, **options) -> layers.Layer:
    """A convolution that adds up what it sees."""
    return layers.Conv2D(1, kernel, kernel_initializer="ones", name="sum", **options)


@pytest.mark.few
def test_the_patch_is_what_the_strongest_unit_sees():
    dark = np.zeros((4, 16, 16, 3), "float32")
    dataset = bright(dark, (0, 8, 9, 100), (1, 0, 0, 200), (3, 13, 2, 50))
    model = classifier(layers.Conv2D(1, 1, kernel_initializer="ones"), counting(3, strides=2))
    best = explain.top_patches(model, dataset, "sum", 0, count=3)
    assert [patch.index for patch in best] == [1, 0, 3]
    assert best[0].box == (0, 0, 3, 3)
    assert best[0].activation == pytest.approx(3 * 200 / 255, rel=1e-5)
    np.testing.assert_array_equal(best[0].pixels, dataset[1, :3, :3])
    top, left, bottom, right = best[1].box
    assert top <= 8 < bottom and left <= 9 < right
    assert best[1].pixels.max() == 100


def test_a_patch_ends_at_the_border_or_is_filled():
    dataset = bright(np.zeros((1, 16, 16, 3), "float32"), (0, 14, 15, 200))
    model = classifier(counting(3, strides=2, padding="same"))  # padded below and to the right
    weights = np.zeros((3, 3, 3, 1), "float32")
    weights[0, 1] = 1
    model.get_layer("sum").set_weights([weights, np.zeros(1)])
    (cut,) = explain.top_patches(model, dataset, "sum", 0)
    (filled,) = explain.top_patches(model, dataset, "sum", 0, padding=77)
    assert cut.box == filled.box == (14, 14, 16, 16)
    np.testing.assert_array_equal(cut.pixels, dataset[0, 14:, 14:])
    assert filled.pixels.shape == (3, 3, 3)
    np.testing.assert_array_equal(filled.pixels[:2, :2], cut.pixels)
    assert (filled.pixels[2] == 77).all() and (filled.pixels[:, 2] == 77).all()


def test_a_unit_that_sees_nothing_of_the_picture():
    dataset = np.zeros((1, 16, 16, 3), "float32")
    model = classifier(layers.ZeroPadding2D(2), layers.Conv2D(1, 1, name="sum"))
    (cut,) = explain.top_patches(model, dataset, "sum", 0)
    (filled,) = explain.top_patches(model, dataset, "sum", 0, padding=9)
    assert cut.box == filled.box == (0, 0, 0, 0) and not cut.pixels.size
    assert filled.pixels.tolist() == [[[9, 9, 9]]]


@hypothesis.settings(max_examples=10)
@hypothesis.given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    same=st.booleans(),
    pool=st.integers(1, 3),
    row=st.integers(0, 15),
    column=st.integers(0, 15),
)
def test_the_unit_depends_on_its_box_and_on_nothing_else(kernel, stride, same, pool, row, column):
    model = classifier(
        counting(kernel, strides=stride, padding="same" if same else "valid"),
        layers.AveragePooling2D(pool, name="pool"),
    )
    image = bright(np.full((1, 16, 16, 3), 10, "float32"), (0, row, column, 250))
    (patch,) = explain.top_patches(model, image, "pool", 0)
    top, left, bottom, right = patch.box
    assert 0 <= top < bottom <= 16 and 0 <= left < right <= 16
    maps = explain.activations(model, image, "pool")
    place = np.unravel_index(maps[0, ..., 0].argmax(), maps.shape[1:3])
    outside = np.zeros_like(image)
    outside[:, top:bottom, left:right] = image[:, top:bottom, left:right]
    again = explain.activations(model, outside, "pool")[0, ..., 0][place]
    assert again == pytest.approx(patch.activation, rel=1e-4)
    if stride <= kernel:  # no gaps: the corners count
        for corner in ((top, left), (bottom - 1, right - 1)):
            image[0][corner] += 5
        assert explain.activations(model, image, "pool")[0, ..., 0][place] > again


def test_patches_of_batches_are_those_of_the_whole(images):
    model = classifier(layers.Conv2D(3, 3, name="conv"), layers.Conv2D(3, 3, padding="same"))
    whole = explain.top_patches(model, images, "conv", 2, count=4)
    parts = explain.top_patches(model, (images[i : i + 1] for i in range(6)), "conv", 2, count=4)
    assert [p.index for p in parts] == [p.index for p in whole]
    assert [p.box for p in parts] == [p.box for p in whole]
    assert len({p.index for p in whole}) == 4
    assert len(explain.top_patches(model, images, "conv", 2, count=50)) == 6


def test_a_field_without_end_is_the_whole_picture(images):
    inputs = keras.Input((16, 16, 3))
    maps = layers.Conv2D(3, 3)(inputs)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(maps)
    scaled = layers.Multiply(name="squeeze")([maps, gate])
    outputs = layers.Dense(2)(layers.GlobalAveragePooling2D()(scaled))
    model = keras.Model(inputs, outputs)
    for padding in (None, 0):
        best = explain.top_patches(model, images, "squeeze", 0, 1, padding)[0]
        assert best.box == (0, 0, 16, 16) and best.pixels.shape == (16, 16, 3)


def test_a_model_of_any_size_takes_pictures_of_several():
    model = classifier(counting(3), shape=(None, None, 3))
    batches = [np.full((1, 8, 8, 3), 9.0), np.full((2, 12, 20, 3), 90.0)]
    best = explain.top_patches(model, batches, "sum", 0, 2)
    assert [patch.index for patch in best] == [1, 2]


@pytest.mark.parametrize(
    ("layer", "channel", "more", "message"),
    [
        ("convv", 0, {}, "did you mean conv"),
        ("classes", 0, {}, "no map"),
        ("conv", 3, {}, "conv has the channels 0 to 2, not 3"),
        ("conv", -1, {}, "channel must be a whole number, 0 or more"),
        ("conv", 0, {"count": 0}, "count must be a whole number above 0"),
        ("conv", 0, {"padding": "gray"}, "padding must be a number"),
    ],
)
def test_patches_of_nothing(images, layer, channel, more, message):
    model = classifier(layers.Conv2D(3, 3, name="conv"))
    with pytest.raises(InputError, match=message):
        explain.top_patches(model, images, layer, channel, **more)


def test_patches_of_real_photographs(lite0, photographs):
    images = photographs[0][:8]
    best = explain.top_patches(lite0, images, "blocks.2.0", 5, count=4, padding=128)
    side = next(p for p in kapps.profile(lite0).layers if p.name == "blocks_2_0_bn3")
    assert all(patch.pixels.shape[:2] == side.receptive_field for patch in best)
    maps = explain.activations(lite0, images, "blocks.2.0")[..., 5]
    assert best[0].activation == pytest.approx(maps.max(), rel=1e-5)


# --- Pictures of many ----------------------------------------------------------------------------


def test_grid_puts_pictures_row_by_row():
    pictures = np.stack([np.full((2, 3, 1), value) for value in (10, 20, 30)])
    sheet = explain.grid(pictures, columns=2, gap=1, value=7)
    assert sheet.shape == (5, 7, 1) and sheet.dtype == np.float32
    assert sheet[0, 0] == 10 and sheet[0, 4] == 20 and sheet[3, 0] == 30
    assert (sheet[2] == 7).all() and (sheet[3:, 4:] == 7).all()


def test_grid_takes_pictures_of_several_sizes_and_kinds():
    sheet = explain.grid([np.ones((2, 2, 1)), np.full((4, 4, 3), 2)], gap=0, value=0)
    assert sheet.shape == (4, 8, 3)
    assert (sheet[1:3, 1:3] == 1).all() and sheet[:, :4].sum() == 12


def test_grid_of_a_map_says_how():
    with pytest.raises(InputError, match="one by one"):
        explain.grid(np.zeros((2, 4, 4, 5)))
    with pytest.raises(InputError, match="no pictures"):
        explain.grid([])


# --- The map of features -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_kinds():
    """Dark and light pictures, and a network that sees the difference."""
    rng = np.random.default_rng(0)
    images = np.concatenate(
        [rng.uniform(0, 90, (15, 16, 16, 3)), rng.uniform(150, 255, (15, 16, 16, 3))]
    )
    return classifier(layers.Conv2D(8, 3, activation="relu")), images


def test_what_is_alike_lies_together(two_kinds):
    places = explain.feature_map(*two_kinds)
    assert places.shape == (30, 2) and places.dtype == np.float32
    assert places.min() == 0 and places.max() == 1
    dark, light = places[:15], places[15:]
    apart = np.linalg.norm(dark.mean(0) - light.mean(0))
    within = max(np.linalg.norm(part - part.mean(0), axis=1).mean() for part in (dark, light))
    assert apart > 2 * within
    np.testing.assert_array_equal(places, explain.feature_map(*two_kinds))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "pca"}, "method must be"),
        ({"perplexity": 30}, "perplexity must be .* below the number of images, 30"),
        ({"layer": "conv9"}, "unknown layer"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_a_map_of_features_that_cannot_be(two_kinds, more, message):
    with pytest.raises(InputError, match=message):
        explain.feature_map(*two_kinds, **more)


def test_a_map_of_features_of_a_network_without_classes(images):
    body = kapps.CifarResNet(depth=8, include_top=False, input_shape=(16, 16, 3))
    assert explain.feature_map(body, images).shape == (6, 2)


def test_a_map_of_too_few(two_kinds):
    model, images = two_kinds
    with pytest.raises(InputError, match="4 images or more, not 3"):
        explain.feature_map(model, images[:3])


def test_pictures_that_are_all_the_same_have_a_map(two_kinds):
    model, images = two_kinds
    assert np.isfinite(explain.feature_map(model, images[[0] * 5])).all()


@pytest.mark.parametrize(
    ("method", "module", "package"),
    [("tsne", "sklearn.manifold", "scikit-learn"), ("umap", "umap", "umap-learn")],
)
def test_a_library_that_is_missing_is_named(two_kinds, monkeypatch, method, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"pip install {package}"):
        explain.feature_map(*two_kinds, method=method)


@pytest.mark.skipif(not importlib.util.find_spec("umap"), reason="umap-learn is not installed")
def test_umap_where_it_is_installed(two_kinds):
    places = explain.feature_map(*two_kinds, method="umap")
    assert places.shape == (30, 2) and places.min() >= 0 and places.max() <= 1


def test_thumbnails_lie_at_their_places():
    images = np.stack([np.full((8, 16, 3), value, "float32") for value in (50, 100)])
    sheet = explain.scatter(images, [[0, 0], [1, 1]], size=40, thumbnail=8, value=200)
    assert sheet.shape == (40, 40, 3) and sheet.dtype == np.float32
    np.testing.assert_allclose(sheet[:4, :8], 50, rtol=1e-5)
    np.testing.assert_allclose(sheet[-4:, -8:], 100, rtol=1e-5)
    assert (sheet[4:-4] == 200).all()


@pytest.mark.parametrize(
    ("places", "more", "message"),
    [
        ([[0, 2]], {}, "in 0..1"),
        ([[0, np.nan]], {}, "in 0..1"),
        ([[0, 0], [1, 1]], {}, r"must be \(1, 2\)"),
        ([[0, 0]], {"size": 20}, "size 20 is below"),
    ],
)
def test_a_scatter_that_cannot_be(places, more, message):
    with pytest.raises(InputError, match=message):
        explain.scatter(np.zeros((1, 8, 8, 3)), places, **more)
