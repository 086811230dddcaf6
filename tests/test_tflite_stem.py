"""The stem that reads pixels in pairs: exact, and only where it saves products."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import kapps
from kapps.tflite.passes import run_passes
from kapps.tflite.passes.stem import pair_pixels


def _stem(height, width, channels, kernel, padding, **options):
    """An image, padded as it says, and a convolution of stride 2 with weights that tell all apart.

    `padding` is "same" or "valid", or what ZeroPadding2D takes.
    """
    x = image = keras.Input((height, width, channels))
    if not isinstance(padding, str):
        x, padding = layers.ZeroPadding2D(padding, name="padding")(x), "valid"
    options = {"strides": 2, "padding": padding, "activation": "relu6", "name": "conv", **options}
    model = keras.Model(image, layers.Conv2D(5, kernel, **options)(x))
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=w.shape) for w in model.get_weights()])
    return model


def _kernel(model):
    return model.get_layer("conv").get_weights()[0].shape


def _same_outputs(model, other, height, width, channels):
    image = np.random.default_rng(1).normal(size=(1, height, width, channels)).astype("float32")
    expected = np.asarray(model(image))
    assert expected.std() > 0.1
    np.testing.assert_allclose(np.asarray(other(image)), expected, atol=2e-6)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    height=st.integers(7, 12),
    width=st.integers(7, 12),
    channels=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    padding=st.one_of(
        st.sampled_from(("same", "valid")),
        st.tuples(*(st.tuples(st.integers(0, 3), st.integers(0, 3)) for _ in range(2))),
    ),
    use_bias=st.booleans(),
)
def test_exact(height, width, channels, kernel, padding, use_bias):
    model = _stem(height, width, channels, kernel, padding, use_bias=use_bias)
    before = [w.copy() for w in model.get_weights()]
    paired = pair_pixels(model)
    _same_outputs(model, paired, height, width, channels)
    assert paired.output_shape == model.output_shape
    if width % 2 or channels > 4:
        assert paired is model
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert pair_pixels(paired) is paired


@pytest.mark.parametrize("padding", ["same", ((1, 1), (1, 1)), ((0, 1), (0, 1))])
def test_the_usual_stem_has_pairs(padding):
    paired = pair_pixels(_stem(8, 8, 3, 3, padding))
    assert _kernel(paired) == (3, 2, 6, 5)
    assert paired.get_layer("conv").strides == (2, 1)


@pytest.mark.parametrize(
    ("width", "channels", "options"),
    [
        (9, 3, {}),  # no pairs
        (8, 5, {}),  # ten channels would be filled up to 16
        (8, 4, {"groups": 1, "strides": 1}),
        (8, 3, {"strides": (2, 1)}),
        (8, 3, {"strides": 1, "dilation_rate": 2}),
    ],
)
def test_leaves_others_alone(width, channels, options):
    model = _stem(8, width, channels, 3, "same", **options)
    assert pair_pixels(model) is model


def test_leaves_alone_what_others_take_too():
    x = image = keras.Input((8, 8, 3))
    x = padded = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(4, 3, strides=2)(x)
    y = layers.Conv2D(4, 3, strides=2)(padded)
    model = keras.Model(image, [x, y])
    images = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype("float32")
    for actual, expected in zip(pair_pixels(model)(images), model(images), strict=True):
        np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "ShuffleNetV2_x0_5"])
def test_networks_of_kapps(name):
    model = kapps.get_builder(name)(input_shape=(32, 32, 3), include_top=False, weights=None)
    exported = run_passes(model)
    paired = pair_pixels(exported)
    assert paired is not exported
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype("float32")
    expected = np.asarray(exported(image))
    spread = expected.std()
    assert spread > 0
    np.testing.assert_allclose(np.asarray(paired(image)), expected, atol=1e-5 * spread)
