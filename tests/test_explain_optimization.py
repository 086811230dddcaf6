"""Gradients by depth and along lines, the loss around the weights, and what a block is worth."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from chains import chain
from keras import layers, ops
from trained import trained_once

import kapps
from kapps.explain import gradient_norms, lesions, loss_landscape, shattering
from kapps.explain._classifier import Classifier
from kapps.explain.landscape import _directions

few = pytest.mark.few


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Squares of gray, and classes."""
    random = np.random.default_rng(0)
    coarse = random.uniform(0, 255, (count, 4, 4, 1))
    return np.kron(coarse, np.ones((1, 2, 2, 1))).astype("float32"), random.integers(0, 10, count)


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of 8 pixels in 0..255, in an order without meaning, and their classes."""
    from sklearn.datasets import load_digits  # which the environment of PyTorch does not have

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))[:count]
    return (data.images[order] * (255 / 16))[..., None].astype("float32"), data.target[order]


def mean_loss(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    logits = model(images, training=False)
    losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return float(ops.convert_to_numpy(losses).mean())


# --- Gradients by depth --------------------------------------------------------------------------


@few
def test_gradients_are_those_of_differences():
    """Of one number of a kernel, and of the last activation, which has a formula."""
    net = chain(2, residual=True)
    images, labels = pictures(40)  # more than one batch
    norms = {one.name: one for one in gradient_norms(net, images, labels)}
    assert list(norms)[1] == "stem" and list(norms)[-1] == "fc"
    assert norms["sum1"].kernel is None

    logits = ops.convert_to_numpy(net(images, training=False)).astype("float64")
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    by_logits = p - np.eye(10)[labels]
    expected = np.sqrt(np.mean(np.sum(by_logits**2, -1)))
    assert norms["fc"].activations == pytest.approx(expected, rel=1e-4)

    pooled = keras.Model(net.input, net.get_layer("fc").input)(images, training=False)
    expected = np.linalg.norm(ops.convert_to_numpy(pooled).T @ by_logits) / len(images)
    assert norms["fc"].kernel == pytest.approx(expected, rel=1e-4)

    kernel = net.get_layer("conv0").kernel
    value, total = ops.convert_to_numpy(kernel), 0.0
    direction = np.random.default_rng(0).standard_normal(value.shape).astype("float32")
    for sign in (1, -1):
        kernel.assign(value + sign * 1e-2 * direction)
        total += sign * mean_loss(net, images, labels)
    kernel.assign(value)
    slope = abs(total) / 2e-2 / np.linalg.norm(direction)
    assert 0 < slope <= norms["conv0"].kernel * 1.01


@few
def test_the_gradient_vanishes_in_a_deep_plain_net_and_not_with_shortcuts():
    """By the initialization of Glorot and Bengio, at which each ReLU halves the variance."""

    def glorot(shape, dtype=None):  # conftest.py has another in place of Keras's where JAX runs
        limit = np.sqrt(6 / (9 * sum(shape[-2:])))
        return ops.convert_to_tensor(np.random.uniform(-limit, limit, shape), dtype=dtype)

    images, labels = pictures(16)
    ratio = {}
    for residual in (False, True):
        net = chain(20, residual=residual, kernels=glorot)
        norms = {one.name: one for one in gradient_norms(net, images, labels)}
        ratio[residual] = norms["conv0"].activations / norms["conv19"].activations
    assert ratio[False] < 0.05
    assert ratio[True] > 0.5


# --- Gradients along a line ----------------------------------------------------------------------


@few
def test_autocorrelation_by_its_definition():
    net = chain(2)
    images, _ = pictures(3)
    found = shattering(net, images, 3, points=40, lags=5)
    assert found.shape == (2, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], 1, atol=1e-6)
    t = np.linspace(0, 1, 40, dtype="float32")[:, None, None, None]
    line = (1 - t) * images[1] + t * images[2]
    # ReLUs make it linear in pieces: the gradient of the logit by differences.
    eye = np.eye(64, dtype="float32").reshape(64, 8, 8, 1)
    gradients = np.stack(
        [
            ops.convert_to_numpy(net(x + eye / 64) - net(x - eye / 64))[:, 3] * 32
            for x in line[:, None]
        ]
    )
    centered = gradients - gradients.mean(0)
    expected = [np.mean(np.sum(centered[k:] * centered[: 40 - k], -1)) for k in range(6)]
    np.testing.assert_allclose(found[1], expected / expected[0], atol=0.05)


def test_gradients_shatter_in_a_deep_plain_net_and_less_with_shortcuts():
    """Batch norm has the statistics of the images, as Balduzzi et al. have it."""
    images, _ = digits(32)
    first = {}
    for residual in (False, True):
        net = chain(30, residual=residual, bn=True)
        net(images, training=True)
        first[residual] = shattering(net, images[:2], 0, points=48, lags=4)[0, 1]
    shallow = chain(2, bn=True)
    shallow(images, training=True)
    assert first[False] < 0.3
    assert first[True] > first[False] + 0.3
    assert shattering(shallow, images[:2], 0, points=48, lags=4)[0, 1] > 0.8


# --- The loss around the weights -----------------------------------------------------------------


@few
def test_the_landscape_around_the_weights():
    net = chain(1, bn=True)
    images, labels = pictures(40)
    before = net.get_weights()
    found = loss_landscape(net, images, labels, span=0.5, points=3, seed=1)
    assert found.shape == (3, 3) and found.dtype == np.float32
    assert found[1, 1] == pytest.approx(mean_loss(net, images, labels), rel=1e-4)
    assert len(np.unique(found)) == 9
    for old, new in zip(before, net.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(
        found, loss_landscape(net, images, labels, span=0.5, points=3, seed=1)
    )
    assert not np.array_equal(found, loss_landscape(net, images, labels, span=0.5, points=3))


def test_directions_are_as_long_as_the_filters():
    """Those of a depthwise kernel, too; and a filter of zeros stays."""
    image = keras.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="deep")(image)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(x))
    net = keras.Model(image, layers.Dense(2, name="fc")(x))
    net.get_layer("fc").kernel.assign([[1, 0]] * 4)
    found = _directions(Classifier(net, "test"), np.random.default_rng(0))
    for name, axes, direction in zip(
        ("deep", "conv", "fc"), ((0, 1), (0, 1, 2), 0), found, strict=True
    ):
        kernel = ops.convert_to_numpy(net.get_layer(name).kernel)
        lengths = [np.sqrt(np.sum(np.square(x), axis=axes)) for x in (direction, kernel)]
        np.testing.assert_allclose(*lengths, rtol=1e-5)
        assert np.abs(direction - kernel).max() > 0.01


# --- What a block is worth -----------------------------------------------------------------------


@pytest.mark.nightly
def test_a_lesion_costs_a_residual_net_a_fifth_of_what_it_costs_a_plain_one():
    """Of 26 layers, on digits of 8 pixels; docs/lesions.md has what the recipe reaches."""
    images, labels = digits(1664)
    images = np.repeat(images, 3, -1)

    def train(model: keras.Model) -> None:
        rate = keras.optimizers.schedules.CosineDecay(0.003, 8 * 22)
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
        model.fit(images[:1408], labels[:1408], batch_size=64, epochs=8, verbose=0)

    rises, falls = {}, {}
    for residual in (True, False):
        keras.utils.set_random_seed(0)
        # Both start from the same weights, and are told apart by their names.
        name = "residual26" if residual else "plain26"
        net = kapps.CifarResNet(depth=26, residual=residual, input_shape=(8, 8, 3), name=name)
        found = lesions(trained_once(net, train, __file__), images[1408:], labels[1408:])
        assert found[0].intact_accuracy > 0.8
        rises[residual] = np.mean([one.loss_rise for one in found])
        falls[residual] = np.mean([one.accuracy_fall for one in found])
    assert rises[True] < 0.15 * rises[False]
    assert falls[True] < 0.15 * falls[False]


# --- Bad input -----------------------------------------------------------------------------------


def test_bad_input():
    net, (images, labels) = chain(1), pictures(4)
    for function in (gradient_norms, loss_landscape):
        with pytest.raises(kapps.InputError, match=f"{function.__name__}: labels"):
            function(net, images, labels[:2])
    with pytest.raises(kapps.InputError, match="shattering: a line takes two images"):
        shattering(net, images[:1])
    with pytest.raises(kapps.InputError, match="lags is 8, and has to be below points, 8"):
        shattering(net, images, points=8, lags=8)
    with pytest.raises(kapps.InputError, match="span must be a number above 0, not 0"):
        loss_landscape(net, images, labels, span=0)
    with pytest.raises(kapps.InputError, match="points must be a whole number, 2 or more, not 1"):
        loss_landscape(net, images, labels, points=1)


def test_a_linear_network_has_nothing_that_could_shatter():
    image = keras.Input((8, 8, 1))
    net = keras.Model(image, layers.Dense(2)(layers.Flatten()(image)))
    with pytest.raises(kapps.InputError, match="the same all along a line"):
        shattering(net, pictures(2)[0])
