"""The optimizers and clipping of the trainer, beside those of PyTorch and timm.

The goldens and the problem that is optimized are of tests/make_optimizer_goldens.py.
"""

from __future__ import annotations

import keras
import make_optimizer_goldens as problem
import numpy as np
import pytest
import tensorflow as tf

from kapps import InputError
from kapps.tools import optimizers

GOLDENS = np.load(problem.GOLDENS)
# From PyTorch's axes to Keras's, and back.
AXES = {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 0, 1), "dense": (1, 0), "zeros": (1, 0)}


def ours(name: str, tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(AXES.get(name, (0,)))


def theirs(name: str, tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(np.argsort(AXES.get(name, (0,))))


def flat(tensors: list[np.ndarray]) -> np.ndarray:
    named = zip(problem.SHAPES, tensors, strict=True)
    return problem.flat({name: theirs(name, tensor) for name, tensor in named})


def start(dtype: str) -> list[keras.Variable]:
    return [
        keras.Variable(ours(name, problem.start(name)), dtype=dtype, name=name)
        for name in problem.SHAPES
    ]


def gradients(variables: list[keras.Variable], step: int = 0) -> list[tf.Tensor]:
    return [
        tf.constant(
            ours(name, problem.gradient(name, step, theirs(name, variable.numpy()))),
            variable.dtype,
        )
        for name, variable in zip(problem.SHAPES, variables, strict=True)
    ]


def trained(run: str, variables: list[keras.Variable]) -> list[np.ndarray]:
    """The weights after each of the golden steps, in the variables' own precision."""
    name, rate, settings = problem.OPTIMIZERS[run]
    now = tf.Variable(0.0, dtype=variables[0].dtype)
    optimizer = optimizers.make_optimizer(name, now.read_value, variables, **settings)

    @tf.function
    def apply(gradients: list[tf.Tensor]) -> None:
        optimizers.apply_summed(optimizer, gradients, variables)

    found = []
    for step in range(max(problem.STEPS)):
        now.assign(rate * problem.rate_share(step))
        apply(gradients(variables, step))
        if step + 1 in problem.STEPS:
            found.append(flat([variable.numpy() for variable in variables]))
    assert int(optimizer.iterations.numpy()) == max(problem.STEPS)
    return found


@pytest.mark.parametrize("run", problem.OPTIMIZERS)
def test_weights_follow_the_peer(run: str) -> None:
    """200 steps: the rules differ from Keras's in their details, and errors add up."""
    found = trained(run, start("float64"))
    # Rounding alone: it was below 1e-13 when this was written.
    np.testing.assert_allclose(found, GOLDENS[run], rtol=0, atol=1e-10)


@pytest.mark.parametrize("run", ["adamw", "lamb", "lars", "rmsprop", "sgd"])
def test_single_precision_suffices(run: str) -> None:
    """No difference of near numbers, no small number lost: beside the double precision above."""
    found = trained(run, start("float32"))
    golden = GOLDENS[run]
    # Of the largest weight; float32 resolves 6e-8, and the bowl forgets errors of early steps.
    np.testing.assert_allclose(found, golden, rtol=0, atol=1e-5 * np.abs(golden).max())


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars", "rmsprop", "sgd"])
def test_only_kernels_decay(name: str) -> None:
    variables = start("float32")
    optimizer = optimizers.make_optimizer(name, 0.1, variables, weight_decay=0.5)
    before = [np.linalg.norm(variable.numpy()) for variable in variables]
    optimizers.apply_summed(optimizer, [tf.zeros(v.shape) for v in variables], variables)
    for tensor, norm, variable in zip(problem.SHAPES, before, variables, strict=True):
        after = np.linalg.norm(variable.numpy())
        assert after < norm if tensor not in ("bias", "zeros") else after == norm


def test_variables_of_tf_keras_train_alike() -> None:
    """Those are plain ones of TensorFlow, without a path, and may share their names."""
    variables = start("float32")
    plain = [tf.Variable(variable.numpy(), name="kernel") for variable in variables]
    for trained in (variables, plain):
        optimizer = optimizers.make_optimizer("adamw", 0.1, trained, weight_decay=0.5)
        for step in range(3):
            optimizers.apply_summed(optimizer, gradients(trained, step), trained)
    for variable, other in zip(variables, plain, strict=True):
        np.testing.assert_array_equal(variable.numpy(), other.numpy())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_that_is_left_out_leaves_no_trace(name: str) -> None:
    """Neither in weights nor in averages, nor in the count that corrects their bias."""

    def train(variables: list[keras.Variable], trouble: bool) -> list[np.ndarray]:
        optimizer = optimizers.make_optimizer(name, 0.1, variables)

        @tf.function
        def apply(gradients: list[tf.Tensor], when: tf.Tensor) -> None:
            optimizers.apply_summed(optimizer, gradients, variables, when=when)

        for step in range(3):
            if trouble:
                apply([tf.fill(v.shape, np.float32("nan")) for v in variables], tf.constant(False))
            apply(gradients(variables, step), tf.constant(True))
        return [variable.numpy() for variable in (*variables, *optimizer.variables)]

    expected = train(start("float32"), trouble=False)
    for found, value in zip(train(start("float32"), trouble=True), expected, strict=True):
        np.testing.assert_array_equal(found, value)


def test_unknown_optimizers_are_refused() -> None:
    with pytest.raises(InputError, match="unknown optimizer 'adamv'; did you mean adamw"):
        optimizers.make_optimizer("adamv", 0.1, start("float32"))


@pytest.mark.parametrize("norm", problem.GLOBAL_NORMS)
def test_global_norm_is_clipped_as_the_peer_does(norm: float) -> None:
    clipped = optimizers.clip_by_global_norm(gradients(start("float64")), norm)
    golden = GOLDENS[f"global/{norm}"]
    # PyTorch adds 1e-6 to the norm, which is 83 here.
    np.testing.assert_allclose(flat([g.numpy() for g in clipped]), golden, rtol=2e-8)


@pytest.mark.parametrize("factor", problem.ADAPTIVE_FACTORS)
def test_units_are_clipped_as_the_peer_does(factor: float) -> None:
    variables = start("float64")
    axes = [(0, 1, 2), (0, 1), (0,), (0,), (0,)]
    clipped = optimizers.clip_adaptive(gradients(variables), variables, axes, factor)
    golden = GOLDENS[f"adaptive/{factor}"]
    np.testing.assert_allclose(flat([g.numpy() for g in clipped]), golden, rtol=1e-12)


def test_units_are_output_channels_and_the_classifier_has_none() -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            keras.layers.Conv2D(6, 3, groups=2),
            keras.layers.BatchNormalization(),
            keras.layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(5),
            keras.layers.Dense(3),
        ]
    )
    conv, depthwise, dense, vector = (0, 1, 2), (0, 1), (0,), (0,)
    expected = [conv, vector, vector, vector, depthwise, dense, vector, None, None]
    axes = optimizers.unit_axes(model)
    assert axes == expected
    ones = [tf.ones(variable.shape) for variable in model.trainable_variables]
    clipped = optimizers.clip_adaptive(ones, model.trainable_variables, axes, factor=0.01)
    assert [bool(np.all(g.numpy() == 1)) for g in clipped] == [along is None for along in expected]
