"""A training of a few steps, alone and then on two replicas of this process.

    python tests/replicas.py OUTPUT.npz

By hand: gradients summed and clipped, a step, and the average of the weights; one step is left
out, as where gradients of 16 bits overflow. And by manifold mixup, and attacked. A process of its
own, since TensorFlow divides the CPU before it does anything else.
"""

from __future__ import annotations

import dataclasses
import sys

import keras
import numpy as np
import tensorflow as tf

from kapps.tools import distribution, optimizers, steps
from kapps.tools.adversarial import Attack
from kapps.tools.averages import Average
from kapps.tools.layers import Clock
from kapps.tools.manifold import MixedForward
from kapps.tools.mixing import Mix
from kapps.tools.recipes import RECIPES
from kapps.tools.schedules import Schedule

BATCH, STEPS, LEFT_OUT = 8, 4, 1


def train(devices: distribution.Devices, name: str) -> dict[str, np.ndarray]:
    """Weights, averages and outputs with either; fails if replicas do not agree."""
    keras.utils.set_random_seed(0)
    with devices.scope():
        model = keras.Sequential(
            [
                keras.Input((6, 6, 3)),
                keras.layers.Conv2D(4, 3, use_bias=False),
                keras.layers.BatchNormalization(momentum=0.9, synchronized=True),
                keras.layers.ReLU(),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(2),
            ]
        )
        scale = keras.Variable(0.5, trainable=False, aggregation="only_first_replica")
        schedule = Schedule("cosine", 0.05, epochs=1, steps_per_epoch=2 * STEPS, scale=scale)
        optimizer = optimizers.make_optimizer(
            name, schedule, model.trainable_variables, weight_decay=0.1
        )
        average = Average(model.weights, decay=0.5)
    axes = optimizers.unit_axes(model)

    def step(images: tf.Tensor, targets: tf.Tensor, when: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(images, training=True) - targets)) / BATCH
        variables = model.trainable_variables
        gradients = distribution.summed(tape.gradient(loss, variables))
        gradients = optimizers.clip_adaptive(gradients, variables, axes, 0.5)
        gradients = optimizers.clip_by_global_norm(gradients, 0.5)
        optimizers.apply_summed(optimizer, gradients, variables, when=when)
        average.update(optimizer.iterations)
        return loss

    compiled, random = devices.compiled(step), np.random.default_rng(0)
    for number in range(STEPS):
        images = random.normal(size=(BATCH, 6, 6, 3)).astype(np.float32)
        targets = random.normal(size=(BATCH, 2)).astype(np.float32)
        compiled(devices.batch([np.array(number != LEFT_OUT)], images, targets))

    found = _values(model.weights) | _values(average.variables)
    found["outputs"] = model(images, training=False).numpy()
    with average.swapped():
        found["outputs_of_average"] = model(images, training=False).numpy()
    again = _values(model.weights) | _values(average.variables)
    for path, value in again.items():
        np.testing.assert_array_equal(value, found[path], strict=True)
    assert int(optimizer.iterations.numpy()) == STEPS - 1
    return found


MIXED = {"manifold_mixup": 2.0}
ATTACKED = {"adversarial_eps": 20.0, "adversarial_iterations": 2}


def train_by(devices: distribution.Devices, settings: dict[str, float]) -> dict[str, np.ndarray]:
    """Weights after three steps, with the statistics of what was mixed or attacked."""
    keras.utils.set_random_seed(0)
    recipe = dataclasses.replace(RECIPES["default"], batch_size=BATCH, optimizer="sgd", **settings)
    with devices.scope():
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255)])
        for _ in range(2):
            model.add(keras.layers.Conv2D(4, 3, 2, "same"))
            model.add(keras.layers.BatchNormalization(synchronized=True))
        model.add(keras.layers.GlobalAveragePooling2D())
        model.add(keras.layers.Dense(2))
        schedule = Schedule("constant", 0.05, epochs=1, steps_per_epoch=3)
        optimizer = optimizers.make_optimizer("sgd", schedule, model.trainable_variables)
    clock = Clock(optimizer, recipe.accumulate, devices.replicas)
    forward = MixedForward(model) if recipe.manifold_mixup else None
    attack = Attack(recipe, clock, 0, 3) if recipe.adversarial_eps else None
    training = steps.Training(model, optimizer, clock, recipe, forward=forward, attack=attack)
    step = devices.compiled(training)
    random = np.random.default_rng(0)
    for place in range(3):
        images = random.integers(0, 256, (BATCH, 8, 8, 3), np.uint8)
        shared = [Mix(0.3, place=place).vector(), np.zeros(1, np.float32)]
        step(devices.batch(shared, images, random.integers(0, 2, BATCH)))
    return _values(model.weights)


def _values(variables: list[keras.Variable]) -> dict[str, np.ndarray]:
    for variable in variables:
        copies = [np.asarray(copy) for copy in getattr(variable.value, "values", ())]
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])
    return {variable.path: variable.numpy() for variable in variables}


def main(output: str) -> None:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    # One of each: TensorFlow numbers a second strategy's sums as it did the first one's.
    strategies = {name: distribution.make_devices(name) for name in ("none", "mirrored")}
    found = {}
    # One that counts steps, and one that does not divide by the size of the gradient.
    settings = {"mixed": MIXED, "attacked": ATTACKED}
    for optimizer in ("lamb", "sgd", *settings):
        for strategy, devices in strategies.items():
            keras.backend.clear_session()  # layers are numbered anew
            values = (
                train_by(devices, settings[optimizer])
                if optimizer in settings
                else train(devices, optimizer)
            )
            for key, value in values.items():
                found[f"{strategy}/{optimizer}/{key}"] = value
    np.savez(output, **found)


if __name__ == "__main__":
    main(sys.argv[1])
