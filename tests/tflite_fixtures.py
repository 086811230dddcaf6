"""Fixtures of the tests of kapps.tflite: real images, a small trained network, and its files."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tflite_net
from sklearn.datasets import load_digits
from tflite_net import LABELS, small_net
from trained import trained_once

from kapps.tflite import QUANTIZATIONS, convert


@pytest.fixture(scope="session")
def digits():
    """Handwritten digits of 16 x 16 pixels: (training images, labels), (held out, labels)."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    images = np.rint(data.images[order] * (255 / 16)).astype("uint8")
    images = np.repeat(images.repeat(2, axis=1).repeat(2, axis=2)[..., None], 3, axis=-1)
    labels = data.target[order]
    return (images[:1437], labels[:1437]), (images[1437:], labels[1437:])


@pytest.fixture(scope="session")
def net(digits):
    """The small network, trained: some 97 % of the held-out digits."""

    def train(model):
        rate = keras.optimizers.schedules.CosineDecay(0.01, decay_steps=12 * 45)
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
        model.fit(*digits[0], batch_size=32, epochs=12, verbose=0)  # 45 steps each

    keras.utils.set_random_seed(0)
    return trained_once(small_net(), train, __file__, tflite_net.__file__)


@pytest.fixture(scope="session")
def conversions(net, digits, tmp_path_factory):
    """The small network's file of each quantization: {quantization: Conversion}."""
    folder = tmp_path_factory.mktemp("tflite")
    return {
        quantization: convert(
            net,
            folder / f"net-{quantization}.tflite",
            quantization=quantization,
            calibration=digits[0][0][:200],
            verification=digits[1][0],
            labels=LABELS,
            description="Handwritten digits.",
            author="kapps",
            licence="Apache-2.0",
        )
        for quantization in QUANTIZATIONS
    }
