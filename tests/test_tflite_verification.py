"""The verdict on a file: both of its figures count."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kapps.tflite import ConversionError, convert
from kapps.tflite.verification import verify


def _net(certainty: float) -> keras.Model:
    """Always the same class of an image, with more or less certainty."""
    image = keras.Input((4, 4, 3), name="image")
    x = layers.Flatten()(layers.Rescaling(certainty / 255)(image))
    kernel = keras.initializers.RandomUniform(-1, 1, seed=0)
    return keras.Model(image, layers.Dense(3, "softmax", kernel_initializer=kernel)(x), name="net")


def test_a_file_that_finds_the_class_but_is_less_sure_is_refused(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
    path = tmp_path / "net.tflite"
    assert convert(_net(1.0), path, verification=images).verification.drift < 1e-5
    with pytest.raises(ConversionError) as caught:
        verify(_net(1.1), path, images, "float32")
    figures = caught.value.verification
    assert (figures.agreement, figures.regret) == (1.0, 0.0)
    assert 0.0001 < figures.drift < 0.1
