"""Adversarial training: each image of a step is made the worst one near it, and learned from.

Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks", section 2.1: the
weights descend on the loss that projected gradient descent (PGD) has raised, in the Linf norm, from
a random start. One iteration with a step of 1.25 eps is the cheap form of Wong et al. 2020, "Fast
is better than free".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kapps.explain import _perturbation
from kapps.tools.layers import Clock
from kapps.tools.recipe import Recipe

_START = 2  # what tells the draws of starts from those of order, augmentation and mixing
_NORM, _LOW, _HIGH = "linf", 0.0, 255.0
# Of eps, all iterations together: from anywhere within, its border is in reach (Madry et al. 2018,
# section 5 on L2).
_REACH = 2.5


class Attack:
    """PGD on the images of one replica, within its step.

    Args:
        recipe: with `adversarial_eps` above 0.
        clock: numbers the images, so that a start is a function of the seed, the step and the
            image's place in the batch, however many replicas and parts share that.
        seed: of the run.
        steps_per_epoch: of the run.
    """

    def __init__(self, recipe: Recipe, clock: Clock, seed: int, steps_per_epoch: int) -> None:
        self._eps, self._iterations = recipe.adversarial_eps, recipe.adversarial_iterations
        size = recipe.adversarial_step
        self._size = _REACH * self._eps / self._iterations if size is None else size
        self._growth = recipe.adversarial_warmup_epochs * steps_per_epoch
        self._clock = clock
        own = np.random.SeedSequence([seed, _START]).generate_state(1)[0]
        self._seed = tf.constant(own, tf.int64)

    def __call__(self, images: tf.Tensor, loss: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """The images of higher loss.

        Args:
            images: float32 (n, height, width, channels), 0..255, n as yet unknown.
            loss: what to raise of such images: the sum over them, which do not see each other. It
                must change no variable.

        Returns:
            Images of the same shape, within eps of these and in 0..255; without gradients.
        """
        share = tf.cast(self._clock.step + 1, tf.float32) / max(self._growth, 1.0)
        share = tf.minimum(share, 1.0)

        def within(adversarial: tf.Tensor) -> tf.Tensor:
            eps = share * self._eps
            near = _perturbation.project(adversarial, images, eps, _NORM, _LOW, _HIGH)
            return tf.ensure_shape(near, images.shape)

        def moved(number: tf.Tensor, current: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(current)
                value = loss(current)
            gradient = tape.gradient(value, current)
            # Numbers of 16 bits overflow: where they have, the image waits for the next iteration.
            gradient = tf.where(tf.math.is_finite(gradient), gradient, 0.0)
            further = _perturbation.step(current, gradient, share * self._size, _NORM)
            return number + 1, within(further)

        start = _perturbation.start(images, share * self._eps, _NORM, self._noise(images))
        # Compiled once, however many iterations there are.
        _, found = tf.while_loop(
            lambda number, current: number < self._iterations,
            moved,
            (tf.constant(0), within(start)),
        )
        return tf.stop_gradient(found)

    def _noise(self, images: tf.Tensor) -> tf.Tensor:
        """Standard normal numbers, as `_perturbation.start` takes them."""
        numbers = _perturbation.noise_shape((1, *images.shape[1:]))[1:]
        return tf.map_fn(
            lambda place: tf.random.stateless_normal(numbers, tf.stack([self._seed, place])),
            self._clock.places(tf.shape(images)[0]),
            fn_output_signature=tf.TensorSpec(numbers, tf.float32),
        )
