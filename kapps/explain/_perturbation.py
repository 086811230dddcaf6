"""Moving images along a gradient within a budget: functions of tensors, for any loop.

They run as they are, in `tf.function` and in `jax.jit`. `eps` and `size` are in the unit of the
images. Norms: "linf", the largest change of a number; "l2", the Euclidean norm of the change over
all numbers of an image.
"""

from __future__ import annotations

import math
from typing import Any

from keras import ops

NORMS = ("linf", "l2")


def noise_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Of the noise that `start` takes for images of this shape."""
    return shape[0], math.prod(shape[1:]) + 2


def start(images: Any, eps: Any, norm: str, noise: Any) -> Any:
    """Each image moved to a random point of its budget, uniformly distributed.

    Args:
        images: (batch, height, width, channels).
        eps: the budget.
        norm: "linf" or "l2".
        noise: standard normal numbers, of `noise_shape`. The first numbers of a point of the sphere
            in two dimensions more are uniform in the ball (Voelker et al. 2017).
    """
    if norm == "linf":
        change = ops.erf(noise[:, :-2] / math.sqrt(2))  # the normal distribution made uniform
    else:
        change = noise[:, :-2] / _lengths(noise)
    return images + eps * ops.reshape(change, ops.shape(images))


def step(images: Any, gradient: Any, size: Any, norm: str) -> Any:
    """The images moved by `size` where the gradient rises fastest; a `size` below 0 descends.

    It is the gradient's sign for "linf"; for "l2" the gradient over its norm, image by image. Where
    the gradient is zero an image stays.
    """
    return images + size * direction(gradient, norm)


def direction(gradient: Any, norm: str) -> Any:
    """The change of norm 1, image by image, along which the gradient rises fastest."""
    if norm == "linf":
        return ops.sign(gradient)
    # Over the largest first: the squares of small numbers would vanish.
    gradient = gradient / _not_zero(ops.max(ops.abs(gradient), axis=(1, 2, 3), keepdims=True))
    flat = ops.reshape(gradient, (ops.shape(gradient)[0], -1))
    return gradient / ops.reshape(_lengths(flat), (-1, 1, 1, 1))


def project(adversarial: Any, images: Any, eps: Any, norm: str, low: Any, high: Any) -> Any:
    """The nearest images within `eps` of the original ones, then cut to the range low..high."""
    change = adversarial - images
    if norm == "linf":
        change = ops.clip(change, -eps, eps)
    else:
        lengths = ops.reshape(l2(change), (-1, 1, 1, 1))
        change = change * ops.minimum(1.0, eps / _not_zero(lengths))
    return ops.clip(images + change, low, high)


def l2(change: Any) -> Any:
    """The Euclidean norm of each image's change, (batch,)."""
    return ops.sqrt(ops.sum(ops.square(change), axis=(1, 2, 3)))


def _lengths(flat: Any) -> Any:
    return _not_zero(ops.sqrt(ops.sum(ops.square(flat), axis=-1, keepdims=True)))


def _not_zero(numbers: Any) -> Any:
    return ops.where(numbers > 0, numbers, ops.ones_like(numbers))


def adam(gradient: Any, first: Any, second: Any, count: Any) -> tuple[Any, Any, Any]:
    """A step of Adam to descend by, of size 1 (Kingma and Ba 2015), and its two moments.

    Args:
        gradient: of what is to fall.
        first: the mean of the gradients so far, zero at the start.
        second: the mean of their squares.
        count: the number of this step, from 1, as a floating-point tensor.
    """
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * ops.square(gradient)
    length = ops.sqrt(second / (1 - 0.999**count))
    change = -first / (1 - 0.9**count) / (length + 1e-8)
    return change, first, second
