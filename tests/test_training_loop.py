"""What a step of the training loop does, against the same in numpy; and when the loop ends."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from kapps.tools import training
from kapps.tools.checkpoints import State
from kapps.tools.data import ArraySource, Dataset
from kapps.tools.optimization import make_optimizer
from kapps.tools.recipes import RECIPES
from kapps.tools.runs import Evaluation

CLASSES, IMAGES, RATE = 4, 6, 0.5
PLAIN = dataclasses.replace(
    RECIPES["default"],
    optimizer="sgd",
    learning_rate=RATE,
    schedule="constant",
    warmup_epochs=0.0,
    momentum=0.0,
    weight_decay=0.0,
    batch_size=IMAGES,
    augment="none",
    crop=1.0,
    epochs=1,
)


def six_images() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 2, 2, 3), np.uint8)
    source = ArraySource(images, np.array([0, 1, 2, 3, 0, 1]))
    return Dataset("six", tuple("abcd"), source, source, source)


def one_step(model: keras.Model, smoothing: float = 0.0) -> np.ndarray:
    """Trains on all six images at once; returns the sums (loss, hits)."""
    recipe = dataclasses.replace(PLAIN, label_smoothing=smoothing)
    optimizer = make_optimizer(recipe, 1, model.trainable_variables)
    strategy = tf.distribute.get_strategy()
    loop = training.Loop(strategy, model, optimizer, recipe, six_images(), 0)
    (sums,) = (sums.numpy() for sums in loop.train_epoch(0))
    return sums


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_step_goes_down_the_mean_of_the_smoothed_cross_entropies(smoothing: float) -> None:
    """Szegedy et al. 2016, section 7: the target is 1 - e, and e / classes on every class."""
    data = six_images().train
    images, labels = data.images, data.labels
    image = keras.Input((2, 2, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    dense = keras.layers.Dense(CLASSES)
    model = keras.Model(image, dense(x))
    kernel = dense.kernel.numpy().astype(float)

    loss, hits = one_step(model, smoothing)

    features = images.reshape(IMAGES, -1) / 255
    logits = features @ kernel
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.full((IMAGES, CLASSES), smoothing / CLASSES)
    targets[np.arange(IMAGES), labels] += 1 - smoothing
    assert loss == pytest.approx(-(targets * np.log(probabilities)).sum(), rel=1e-5)
    assert hits == (logits.argmax(1) == labels).sum()
    gradient = (probabilities - targets) / IMAGES
    np.testing.assert_allclose(
        dense.kernel.numpy(), kernel - RATE * features.T @ gradient, rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(dense.bias.numpy(), -RATE * gradient.sum(0), rtol=0, atol=1e-6)


def test_a_step_normalizes_by_the_batch_and_remembers_it() -> None:
    image = keras.Input((2, 2, 3))
    norm = keras.layers.BatchNormalization(momentum=0.75, epsilon=1e-9)
    x = norm(keras.layers.Rescaling(1 / 255)(image))
    dense = keras.layers.Dense(CLASSES, kernel_initializer="zeros")
    model = keras.Model(image, dense(keras.layers.Flatten()(x)))
    one_step(model)

    data = six_images().train
    pixels = data.images / 255
    mean, variance = pixels.mean((0, 1, 2)), pixels.var((0, 1, 2))
    np.testing.assert_allclose(norm.moving_mean.numpy(), 0.25 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance.numpy(), 0.75 + 0.25 * variance, rtol=1e-5)
    features = ((pixels - mean) / np.sqrt(variance)).reshape(IMAGES, -1)
    gradient = (1 / CLASSES - np.eye(CLASSES)[data.labels]) / IMAGES
    np.testing.assert_allclose(dense.kernel.numpy(), -RATE * features.T @ gradient, atol=1e-5)


@pytest.mark.parametrize(
    ("accuracies", "epochs"),
    [([0.9, 0.7, 0.9, 0.7, 0.9, 0.9, 0.9], 6), ([0.8, 0.8, 0.0], 2), ([0.9, 0.7] * 4, 8)],
)
def test_training_ends_after_good_epochs_in_a_row(
    accuracies: list[float], epochs: int, tmp_path: Path
) -> None:
    """The loop itself, of epochs whose results are given."""
    results = iter(accuracies)
    loop = SimpleNamespace(
        recipe=dataclasses.replace(PLAIN, epochs=8, stop_at=0.8, stop_patience=2),
        dataset=six_images(),
        strategy=tf.distribute.get_strategy(),
        optimizer=keras.optimizers.SGD(),
        train_epoch=lambda epoch: iter([tf.constant([1.0, 2.0])]),
        validate=lambda: Evaluation(next(results), 1.0, 0.5, IMAGES),
    )
    checkpoints = SimpleNamespace(state=State(), save=lambda: None)
    training.run_epochs(loop, checkpoints, tmp_path, "six", False)
    assert checkpoints.state.epoch == len(checkpoints.state.history) == epochs
