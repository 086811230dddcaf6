"""A convolution that is taken in slices, as one for each: exact, and left alone if needed whole."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kapps.custom_layers import ChannelSlice
from kapps.tflite.passes.split import split_sliced_convolutions


def _net(bounds, *, kernel=1, whole=False):
    x = image = keras.Input((5, 6, 8))
    x = layers.Conv2D(48, kernel, padding="same", activation="relu", name="conv")(x)
    outputs = [ChannelSlice(*bound)(x) for bound in bounds]
    model = keras.Model(image, [*outputs, x] if whole else outputs)
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize(
    ("bounds", "convolutions"),
    [
        ([(0, 24), (24, 48)], [24, 24]),
        ([(24, 48), (0, 24)], [24, 24]),
        ([(0, 24), (24, 40), (40, 44), (44, 48)], [24, 16, 8]),
        ([(0, 5), (5, 10), (10, 48)], [10, 38]),
    ],
)
def test_exact(bounds, convolutions):
    model = _net(bounds)
    split = split_sliced_convolutions(model)
    filters = [layer.filters for layer in split.layers if isinstance(layer, layers.Conv2D)]
    assert sorted(filters) == sorted(convolutions)
    image = np.random.default_rng(1).normal(size=(1, 5, 6, 8)).astype("float32")
    for actual, expected in zip(split(image), model(image), strict=True):
        assert np.asarray(expected).std() > 0.1
        np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=1e-5)
    assert split_sliced_convolutions(split) is split


@pytest.mark.parametrize(
    "options",
    [
        {"bounds": [(0, 24), (24, 48)], "whole": True},
        {"bounds": [(0, 24), (24, 48)], "kernel": 3},
        {"bounds": [(0, 24), (20, 48)]},  # overlap
        {"bounds": [(0, 24), (30, 48)]},  # a gap
        {"bounds": [(0, 48)]},
    ],
)
def test_leaves_others_alone(options):
    model = _net(**options)
    assert split_sliced_convolutions(model) is model
