"""Manifold mixup in a training step: against input mixup, numpy, and the step without it."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from test_mixing import swapped
from test_training_loop import PLAIN, six_images

import kapps
from kapps.tools import data, training
from kapps.tools.distribution import make_devices
from kapps.tools.layers import Clock
from kapps.tools.manifold import MixedForward
from kapps.tools.mixing import Mix
from kapps.tools.recipe import Recipe
from kapps.tools.steps import LossScale, Training

CLASSES, IMAGES = 4, 8
MANIFOLD = dataclasses.replace(PLAIN, batch_size=IMAGES, manifold_mixup=2.0)
SHARE = 0.375


def batch() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (IMAGES, 8, 8, 3), np.uint8), np.arange(IMAGES) % CLASSES


def two_stages() -> keras.Model:
    """Windows that do not overlap: the whole is four lines of numpy."""
    keras.utils.set_random_seed(0)
    x = image = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 255)(x)
    for stage in range(2):
        x = keras.layers.Conv2D(5, 2, 2, activation="relu", name=f"stage{stage}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(CLASSES, name="head")(x))


def step(model: keras.Model, recipe: Recipe, mix: Mix, scale: LossScale | None = None) -> float:
    """Takes one; returns the mean loss."""
    optimizer = training.make_recipe_optimizer(
        recipe, training.make_schedule(recipe, 1), model.trainable_variables
    )
    forward = MixedForward(model) if recipe.manifold_mixup else None
    devices, clock = make_devices("none"), Clock(optimizer, recipe.accumulate)
    run = devices.compiled(
        Training(model, optimizer, clock, recipe, forward=forward, loss_scale=scale)
    )
    shared = [mix.vector(), np.zeros(1, np.float32)]
    return float(run(devices.batch(shared, *batch()))[0]) / IMAGES


def assert_same(one: keras.Model, other: keras.Model) -> None:
    """To the last bit."""
    for name, value in zip(one.weights, other.get_weights(), strict=True):
        np.testing.assert_array_equal(np.asarray(name), value, err_msg=name.path)


def test_at_the_input_it_is_mixup() -> None:
    ours, plain = two_stages(), two_stages()
    mixup = dataclasses.replace(MANIFOLD, manifold_mixup=0.0, mixup=2.0)
    assert step(ours, MANIFOLD, Mix(SHARE)) == step(plain, mixup, Mix(SHARE))
    assert_same(ours, plain)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_hidden_states_and_labels_are_mixed_as_in_numpy(place: int) -> None:
    model, (images, labels) = two_stages(), batch()

    def mixed(x: np.ndarray) -> np.ndarray:
        return SHARE * x + (1 - SHARE) * swapped(x)

    x = images / 255.0
    for stage in range(2):
        x = mixed(x) if place == stage else x
        kernel, bias = model.get_layer(f"stage{stage}").get_weights()
        side = x.shape[1] // 2
        windows = x.reshape(IMAGES, side, 2, side, 2, -1).transpose(0, 1, 3, 2, 4, 5)
        x = windows.reshape(IMAGES, side, side, -1) @ kernel.reshape(-1, 5) + bias
        x = np.maximum(x, 0)
    x = mixed(x) if place == 2 else x
    kernel, bias = model.get_layer("head").get_weights()
    logits = x.mean((1, 2)) @ kernel + bias
    logarithms = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(mixed(np.eye(CLASSES)[labels]) * logarithms).sum(1).mean()
    assert step(model, MANIFOLD, Mix(SHARE, place=place)) == pytest.approx(expected, rel=1e-5)


def test_a_batch_that_is_not_mixed_is_learned_as_without() -> None:
    """Through all places, and through the branches that a network of kapps may skip."""
    for build in (two_stages, skipping):
        ours, plain = build(), build()
        off = dataclasses.replace(MANIFOLD, manifold_mixup=0.0)
        assert step(ours, MANIFOLD, Mix()) == step(plain, off, Mix())
        assert_same(ours, plain)


def skipping() -> keras.Model:
    """Its one branch has batch norm, and a probability to be skipped that rounds to none."""
    keras.utils.set_random_seed(0)
    return kapps.CifarResNet(
        depth=8,
        classes=CLASSES,
        input_shape=(8, 8, 3),
        classifier_activation=None,
        drop_path_rate=1e-9,
        drop_path_mode="batch",
    )


def test_in_parts_and_in_numbers_of_16_bits() -> None:
    whole, parts = two_stages(), two_stages()
    loss = step(whole, MANIFOLD, Mix(SHARE, place=1))
    divided = step(parts, dataclasses.replace(MANIFOLD, accumulate=4), Mix(SHARE, place=1))
    assert divided == pytest.approx(loss, rel=1e-6)
    for one, other in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)  # another order of sums
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_float16")
        half = two_stages()
        found = step(half, MANIFOLD, Mix(SHARE, place=1), LossScale())
    finally:
        keras.config.set_dtype_policy(before)
    assert found == pytest.approx(loss, rel=1e-2)  # 11 bits of mantissa
    start = two_stages().get_layer("head").kernel.numpy()
    assert (half.get_layer("head").kernel.numpy() != start).any()


def test_the_loop_draws_by_seed_epoch_and_step() -> None:
    keras.utils.set_random_seed(0)
    images, labels = batch()
    source = data.ArraySource(images, labels)
    dataset = data.Dataset("eight", tuple("abcd"), source, source, source)
    recipe = dataclasses.replace(MANIFOLD, image_size=8)

    def loop(seed: int) -> training.Loop:
        model = two_stages()
        optimizer = training.make_recipe_optimizer(
            recipe, training.make_schedule(recipe, 1), model.trainable_variables
        )
        devices = make_devices("none")
        return training.Loop(devices, model, optimizer, Clock(optimizer), recipe, dataset, seed)

    one, again, other = loop(0), loop(0), loop(1)
    for each in (one, again, other):
        each._at_stage = recipe
    drawn = [one._mix(epoch, step, 8) for epoch in range(10) for step in range(10)]
    assert drawn == [again._mix(epoch, step, 8) for epoch in range(10) for step in range(10)]
    assert {mix.place for mix in drawn} == {0, 1, 2}
    assert one._mix(0, 0, 8) != other._mix(0, 0, 8)
    assert len(list(one.train_steps(0))) == 1


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(kapps.InputError, match="takes the place of mixup and cutmix"):
        dataclasses.replace(MANIFOLD, cutmix=1.0)
    with pytest.raises(kapps.InputError, match="at least 0"):
        dataclasses.replace(MANIFOLD, manifold_mixup=-1.0)
    image = keras.Input((2, 2, 3))
    flat = keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(image)))
    with pytest.raises(kapps.InputError, match="no stage whose end manifold_mixup could mix at"):
        MixedForward(flat)
    model = two_stages()
    recipe = dataclasses.replace(PLAIN, batch_size=None, manifold_mixup=2.0, accumulate=2)
    recipe = recipe.for_images(6)
    object.__setattr__(recipe, "batch_size", 6)  # as of three replicas
    optimizer = training.make_recipe_optimizer(
        recipe, training.make_schedule(recipe, 1), model.trainable_variables
    )
    devices, clock = make_devices("none"), Clock(optimizer)
    with pytest.raises(kapps.InputError, match="choose a --batch_size that is a multiple of 4"):
        training.Loop(devices, model, optimizer, clock, recipe, six_images(), 0)
    recipe = dataclasses.replace(PLAIN, manifold_mixup=2.0)
    with pytest.raises(kapps.InputError, match="a teacher sees images that are not mixed"):
        training.Loop(devices, model, optimizer, clock, recipe, six_images(), 0, teacher=flat)
