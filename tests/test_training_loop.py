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
from kapps.tools.distribution import make_devices
from kapps.tools.layers import Clock, fuse, prepare
from kapps.tools.metrics import Metrics
from kapps.tools.recipes import RECIPES
from kapps.tools.runs import Evaluation
from kapps.tools.steps import LossScale, Training

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
    train_crop="none",
    flip=0.0,
    image_size=2,
    crop=1.0,
    interpolation="bilinear",
    epochs=1,
)


def six_images() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 2, 2, 3), np.uint8)
    source = ArraySource(images, np.array([0, 1, 2, 3, 0, 1]))
    return Dataset("six", tuple("abcd"), source, source, source)


def one_step(model: keras.Model, smoothing: float = 0.0, **settings: object) -> np.ndarray:
    """Trains on all six images at once; returns the sums (loss, hits)."""
    recipe = dataclasses.replace(PLAIN, label_smoothing=smoothing, **settings)
    optimizer = training.make_recipe_optimizer(
        recipe, training.make_schedule(recipe, 1), model.trainable_variables
    )
    loop = training.Loop(
        make_devices("none"), model, optimizer, Clock(optimizer), recipe, six_images(), 0
    )
    (sums,) = (sums.numpy() for sums in loop.train_steps(0))
    return sums[:2]


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


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_normalizes_by_the_batch_and_remembers_it(fused: bool) -> None:
    image = keras.Input((2, 2, 3))
    norm = keras.layers.BatchNormalization(momentum=0.75, epsilon=1e-9)
    if fused:
        fuse(norm)
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


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False, "axis": 3}])
def test_fused_batch_norm_is_that_of_keras(options: dict[str, object]) -> None:
    """Outputs, gradients and statistics of maps whose mean is far from 0, against float64."""
    rng = np.random.default_rng(0)
    maps, weights = 5 + 2 * rng.normal(size=(8, 7, 5, 16)), rng.normal(size=(8, 7, 5, 16))

    def found(dtype: str, fused: bool) -> list[np.ndarray]:
        norm = keras.layers.BatchNormalization(dtype=dtype, **options)
        norm.build(maps.shape)
        for i, variable in enumerate(norm.variables):
            variable.assign(np.linspace(0.5, 2 + i, 16))
        if fused:
            fuse(norm)
        trained = [variable.value for variable in norm.trainable_variables]
        inputs = tf.constant(maps, norm.compute_dtype)

        @tf.function(autograph=False)
        def step() -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = norm(inputs, training=True)
                total = tf.reduce_sum(outputs * tf.constant(weights, outputs.dtype))
            return [outputs, *tape.gradient(total, [inputs, *trained])]

        operations = {node.type for node in step.get_concrete_function().graph.get_operations()}
        assert ("FusedBatchNormV3" in operations) == (fused and dtype != "float64")
        values = [*step(), norm(inputs, training=False)]
        assert values[0].dtype == norm.compute_dtype
        return [np.asarray(value, np.float64) for value in (*values, *norm.variables)]

    wanted = found("float64", False)
    for dtype, near in (("float32", 2e-6), ("mixed_bfloat16", 2e-2), ("float64", 1e-12)):
        for value, exact in zip(found(dtype, True), wanted, strict=True):
            assert np.abs(value - exact).max() <= near * np.abs(exact).max()


def test_batch_norm_that_is_not_of_images_or_is_frozen_stays_that_of_keras() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    for shape, trainable in (((6, 4), True), ((6, 1, 1, 4), False)):
        norms = [keras.layers.BatchNormalization(trainable=trainable) for _ in range(2)]
        fuse(norms[1])
        outputs = [norm(vectors.reshape(shape), training=True).numpy() for norm in norms]
        assert (outputs[0] == outputs[1]).all()
        moved = [np.any(norm.moving_mean.numpy()) for norm in norms]
        assert moved == [trainable] * 2


@pytest.mark.parametrize(
    ("accuracies", "epochs"),
    [([0.9, 0.7, 0.9, 0.7, 0.9, 0.9, 0.9], 6), ([0.8, 0.8, 0.0], 2), ([0.9, 0.7] * 4, 8)],
)
def test_training_ends_after_good_epochs_in_a_row(
    accuracies: list[float], epochs: int, tmp_path: Path
) -> None:
    """The loop itself, of epochs whose results are given."""
    results = iter(accuracies)
    recipe = dataclasses.replace(PLAIN, epochs=8, stop_at=0.8, stop_patience=2)
    loop = SimpleNamespace(
        recipe=recipe,
        steps_per_epoch=1,
        batch_size=IMAGES,
        devices=SimpleNamespace(workers=1),
        optimizer=keras.optimizers.SGD(),
        average=None,
        overflows=False,
        augmented=lambda count: np.zeros((1, 2, 2, 3), np.uint8),
        train_steps=lambda epoch, first, flag: iter([tf.constant([1.0, 2.0, 0.0])]),
        validate=lambda beat: Evaluation(next(results), 1.0, 0.5, IMAGES),
    )
    checkpoints = SimpleNamespace(state=State(), save=lambda: None, last=None)
    training.run_epochs(loop, checkpoints, Metrics(tmp_path, True), title="six", show=False)
    assert checkpoints.state.epoch == len(checkpoints.state.history) == epochs


def small_net(auxiliary: bool = False, brightest: float = 1.0) -> keras.Model:
    """Without batch norm, so that parts of a batch are as good as the whole."""
    keras.utils.set_random_seed(3)
    image = keras.Input((2, 2, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(brightest / 255)(image))
    outputs = [keras.layers.Dense(CLASSES, name=f"head{i}")(x) for i in range(1 + auxiliary)]
    return keras.Model(image, outputs if auxiliary else outputs[0])


def change(model: keras.Model, **settings: object) -> np.ndarray:
    """What a step adds to the kernel of the main head."""
    kernel = model.get_layer("head0").kernel
    before = kernel.numpy()
    one_step(model, **settings)
    return kernel.numpy() - before


def test_a_batch_in_parts_is_the_batch() -> None:
    np.testing.assert_allclose(
        change(small_net(), accumulate=3), change(small_net()), rtol=1e-5, atol=1e-7
    )


def test_dropout_differs_between_the_parts_of_a_batch() -> None:
    """Six equal images in six parts: were the masks the same, only some features would move."""
    keras.utils.set_random_seed(0)
    image = keras.Input((2, 2, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    dense = keras.layers.Dense(CLASSES, name="head0")
    model = keras.Model(image, dense(keras.layers.Dropout(0.5)(x)))
    recipe = dataclasses.replace(PLAIN, accumulate=IMAGES)
    optimizer = training.make_recipe_optimizer(
        recipe, training.make_schedule(recipe, 1), model.trainable_variables
    )
    clock = Clock(optimizer, IMAGES)
    prepare(model, clock, recipe, 1, 0)
    white = ArraySource(np.full((IMAGES, 2, 2, 3), 255, np.uint8), np.arange(IMAGES) % CLASSES)
    images = Dataset("white", tuple("abcd"), white, white, white)
    before = dense.kernel.numpy()
    loop = training.Loop(make_devices("none"), model, optimizer, clock, recipe, images, 0)
    list(loop.train_steps(0))
    moved = np.abs(dense.kernel.numpy() - before).sum(axis=1) > 0
    assert moved.sum() > 9  # of 12: each has a chance of 1 in 64 to stay; the same mask moves 6


def test_auxiliary_heads_have_their_weight() -> None:
    """The loss is the main one and 0.3 of the other, which alone moves the other head."""
    model = small_net(auxiliary=True)
    model.auxiliary_weights = (0.3,)
    other = model.get_layer("head1").kernel
    alone = small_net()
    alone.get_layer("head0").set_weights(model.get_layer("head1").get_weights())
    expected = 0.3 * change(alone)
    before = other.numpy()
    one_step(model)
    np.testing.assert_allclose(other.numpy() - before, expected, rtol=1e-4, atol=1e-7)


def test_mixed_targets_are_learned_in_their_shares() -> None:
    """With all images the same, mixing them changes the targets alone."""
    white = ArraySource(np.full((IMAGES, 2, 2, 3), 255, np.uint8), np.array([0, 1, 2, 3, 0, 1]))
    images = Dataset("white", tuple("abcd"), white, white, white)
    recipe = dataclasses.replace(PLAIN, mixup=1.0)
    model = small_net()
    optimizer = training.make_recipe_optimizer(
        recipe, training.make_schedule(recipe, 1), model.trainable_variables
    )
    bias = model.get_layer("head0").bias
    loop = training.Loop(
        make_devices("none"), model, optimizer, Clock(optimizer), recipe, images, 0
    )
    logits = model(np.full((1, 2, 2, 3), 255.0)).numpy()[0]
    list(loop.train_steps(0))
    probabilities = np.exp(logits) / np.exp(logits).sum()
    counts = np.bincount(white.labels, minlength=CLASSES)  # pairs swap their shares: sums stay
    np.testing.assert_allclose(bias.numpy(), RATE * (counts / IMAGES - probabilities), atol=1e-6)


def test_binary_loss_is_that_of_each_class() -> None:
    """Wightman et al. 2021, section 3.2: each class is a question of its own."""
    data = six_images().train
    model = small_net()
    logits = model(data.images.astype("float32")).numpy().astype(float)
    targets = np.eye(CLASSES)[data.labels]
    wrong = 1 / (1 + np.exp(-logits)) - targets
    one_step(model, loss="binary")
    expected = -RATE * wrong.sum(0) / IMAGES / CLASSES
    np.testing.assert_allclose(model.get_layer("head0").bias.numpy(), expected, atol=1e-6)


def test_a_step_whose_gradients_overflow_is_left_out() -> None:
    model = small_net(brightest=100.0)
    optimizer = training.make_recipe_optimizer(
        PLAIN, training.make_schedule(PLAIN, 1), model.trainable_variables
    )
    scale = LossScale()
    step = Training(model, optimizer, Clock(optimizer), PLAIN, loss_scale=scale)
    devices = make_devices("none")
    images = six_images().train
    run = devices.compiled(step)
    nothing = [np.zeros(8, np.float32), np.zeros(1, np.float32)]

    def take(factor: float) -> None:
        scale.value.assign(factor)
        run(devices.batch(nothing, images.images, images.labels))

    before = [w.copy() for w in model.get_weights()]
    take(3e38)  # times features of up to 100 it is infinite
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    assert float(scale.value) == np.float32(1.5e38) and not int(optimizer.iterations)
    take(1024.0)
    assert float(scale.value) == 1024.0 and int(optimizer.iterations) == 1
    plain = small_net(brightest=100.0)
    one_step(plain)
    for scaled, was in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(scaled, was, rtol=1e-5, atol=1e-5)
