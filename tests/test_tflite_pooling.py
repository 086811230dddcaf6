"""Max-pooling that pads by itself: exact, and only where nothing sees the row that is too much."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kapps
from kapps.tflite.passes import PASSES, run_passes
from kapps.tflite.passes.pooling import pad_in_max_pooling


def _net(height=32, width=48, activation="relu", *, end=True, stride=2, pointwise=1, more=False):
    x = image = keras.Input((height, width, 3))
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(4, 3, strides=2, activation=activation, name="stem")(x)
    x = layers.ZeroPadding2D(1, name="pool_pad")(x)
    x = pooled = layers.MaxPooling2D(3, 2, name="pool")(x)
    for _ in range(pointwise):
        x = layers.Conv2D(6, 1, activation="relu")(x)
    if end:
        x = layers.ZeroPadding2D(1)(x)
        x = layers.DepthwiseConv2D(3, strides=stride)(x)
    y = layers.Conv2D(5, 3, strides=2)(layers.ZeroPadding2D(1)(pooled))
    model = keras.Model(image, [x, y, pooled] if more else [x, y])
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("pointwise", [0, 1, 2])
def test_exact(activation, pointwise):
    model = _net(activation=activation, pointwise=pointwise)
    changed = pad_in_max_pooling(model)
    assert changed.get_layer("pool").padding == "same"
    assert "pool_pad" not in [layer.name for layer in changed.layers]
    assert changed.output_shape == model.output_shape
    image = np.random.default_rng(1).normal(size=(1, 32, 48, 3)).astype("float32")
    for actual, expected in zip(changed(image), model(image), strict=True):
        assert np.asarray(expected).std() > 0.1
        np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=1e-5, atol=1e-5)
    assert pad_in_max_pooling(changed) is changed


@pytest.mark.parametrize(
    "options",
    [
        {"activation": None},  # zeros are not the least then
        {"end": False},  # the row would leave the model
        {"stride": 1},  # would read it
        {"more": True},
        {"height": 36},  # 9 rows of the pooling are odd: the last would be read
    ],
)
def test_leaves_alone_what_it_does_not_understand(options):
    model = _net(**options)
    assert pad_in_max_pooling(model) is model


@pytest.mark.slow
def test_shufflenet_v2():
    model = kapps.ShuffleNetV2_x0_5(input_shape=(64, 64, 3), include_top=False, weights=None)
    others = [step for step in PASSES if step.run is not pad_in_max_pooling]
    exported = run_passes(model, passes=others)
    changed = pad_in_max_pooling(exported)
    assert changed is not exported
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype("float32")
    expected = np.asarray(exported(image))
    assert expected.std() > 0
    np.testing.assert_allclose(np.asarray(changed(image)), expected, atol=1e-5 * expected.std())
