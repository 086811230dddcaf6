"""The moving average of the weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kapps.tools.averages import Average
from kapps.tools.checkpoints import by_path


def small_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, name="dense"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Dropout(0.5),
        ],
        name="small",
    )


def change(weights: list[keras.Variable], step: int) -> None:
    random = np.random.default_rng(step)
    for weight in weights:
        weight.assign(weight + random.normal(size=weight.shape))


@pytest.mark.parametrize("decay", [0.25, 0.9999])
def test_average_is_that_of_tensorflow_1(decay: float) -> None:
    """Of batch norm's statistics too; the lower decay is reached after 2 steps, the other never."""
    weights = small_model().weights
    plain = [tf.Variable(weight.numpy()) for weight in weights]
    average = Average(weights, decay)
    steps = tf.Variable(0)
    peer = tf.train.ExponentialMovingAverage(decay, num_updates=steps)
    peer.apply(plain)  # begins, and changes nothing
    update = tf.function(average.update)
    for step in range(1, 9):
        change(weights, step)
        for weight, other in zip(weights, plain, strict=True):
            other.assign(weight.value)
        steps.assign(step)
        peer.apply(plain)
        update(tf.constant(step, tf.int64))
    assert len(weights) == 6
    for ours, other in zip(average.variables, plain, strict=True):
        # Both are float32, of numbers up to 10.
        np.testing.assert_allclose(ours.numpy(), peer.average(other).numpy(), rtol=0, atol=5e-6)


def test_weights_come_back_bit_by_bit() -> None:
    """Also when the evaluation fails."""
    model = small_model()
    average = Average(model.weights, 0.9)
    change(model.weights, 1)
    weights, averages = ([v.numpy() for v in vs] for vs in (model.weights, average.variables))
    with pytest.raises(ZeroDivisionError), average.swapped():
        for weight, expected in zip(model.weights, averages, strict=True):
            np.testing.assert_array_equal(weight.numpy(), expected)
        raise ZeroDivisionError
    for variables, expected in ((model.weights, weights), (average.variables, averages)):
        for variable, value in zip(variables, expected, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)


def test_checkpoints_know_averages_by_the_names_of_weights() -> None:
    """Whatever else this process has built."""
    for _ in range(2):
        average = Average(small_model().weights, 0.9)
        assert list(by_path(average.variables, average.name)) == [
            "small_dense_kernel",
            "small_dense_bias",
            "small_bn_gamma",
            "small_bn_beta",
            "small_bn_moving_mean",
            "small_bn_moving_variance",
        ]


def test_two_replicas_train_as_one(tmp_path: Path) -> None:
    """Gradients summed once, clipped after that; averages all replicas have; mixing; attacks."""
    output = tmp_path / "found.npz"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    program = Path(__file__).with_name("replicas.py")
    run = subprocess.run(
        [sys.executable, program, output], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = np.load(output)
    names = [name for name in found if name.startswith("none/")]
    assert len(names) == 2 * (7 + 7 + 2) + 2 * 14  # of what is mixed or attacked the weights
    for name in names:
        # The order of sums: 1e-7 when this was written.
        np.testing.assert_allclose(
            found[name.replace("none", "mirrored", 1)], found[name], rtol=0, atol=1e-5, err_msg=name
        )
        if name.endswith("outputs"):
            assert np.abs(found[name] - found[name + "_of_average"]).max() > 1e-3
