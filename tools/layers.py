"""Layers as a recipe wants them in training, and what is random in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kapps._features import ancestors, pyramid
from kapps.tools import distribution
from kapps.tools.recipe import Recipe


class Clock:
    """Numbers what layers draw in training: by step, part of a step and replica.

    Keras's own counter depends on history, and gives all replicas the same.

    Args:
        optimizer: counts the steps.
        parts: of a step, each of which draws anew.
        replicas: of all workers.
    """

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, parts: int = 1, replicas: int = 1
    ) -> None:
        self._optimizer, self._parts, self.replicas = optimizer, parts, replicas
        self.part = 0
        """Which one of the step is being computed, while the step is compiled."""

    @property
    def step(self) -> tf.Tensor:
        """The steps that have been taken, int64."""
        return tf.cast(self._optimizer.iterations.value, tf.int64)

    def number(self, whole: bool) -> tf.Tensor:
        """That of the present draw; `whole`: the same on all replicas."""
        part = self.step * self._parts + self.part
        replica = 0 if whole else distribution.replica()
        return part * self.replicas + tf.cast(replica, tf.int64)

    def places(self, count: tf.Tensor) -> tf.Tensor:
        """Numbers the `count` images of this part: int64 (count,).

        An image's is the same however a batch is divided into replicas and parts.
        """
        replica = tf.cast(distribution.replica(), tf.int64)
        part = self._parts * (self.step * self.replicas + replica) + self.part
        count = tf.cast(count, tf.int64)
        return part * count + tf.range(count)


_MEMORY = 25  # of batch norm's statistics, at the least so many times in a run


def prepare(model: keras.Model, clock: Clock, recipe: Recipe, steps: int, seed: int) -> None:
    """Batch norm as the recipe and the replicas want it; dropout by step instead of by history.

    Where there is one replica, batch norm is fused; among several it is synchronized by Keras.

    Where the recipe says nothing of batch norm's momentum, it is the network's own, but for short
    runs: what the statistics remember is at most a 25th of all steps.
    """
    momentum = recipe.bn_momentum
    for i, layer in enumerate(model.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            if clock.replicas > 1:
                layer.synchronized = True
            else:
                fuse(layer)
            layer.momentum = (
                min(layer.momentum, max(0.5, 1 - _MEMORY / max(steps, 1)))
                if momentum is None
                else momentum
            )
        generator = getattr(layer, "seed_generator", None)
        if generator is not None:
            whole = getattr(layer, "mode", None) == "batch"  # StochasticDepth: one draw for all
            generator.next = _seed_by_step(seed, i, clock, whole)


def fuse(layer: keras.layers.BatchNormalization) -> None:
    """Has TensorFlow train a batch norm of images by one operation, forward and backward.

    Keras composes it of a dozen, each of which passes through the whole map, and leaves it to XLA
    to fuse them. Without, they take half of the time that a step of MobileNetV2 needs on a CPU; see
    docs/loop.md. What is computed is the same. It stays Keras's for maps that are not (n, height,
    width, channels) in float32 or below, and in inference.
    """
    composed, last = layer.call, {-1, 3}

    def call(inputs: tf.Tensor, training: Any = None, mask: Any = None) -> tf.Tensor:
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        fits = inputs.shape.rank == 4 and layer.axis in last and dtype == "float32"
        if not (training and layer.trainable and fits and mask is None and not layer.renorm):
            return composed(inputs, training=training, mask=mask)
        x = tf.cast(inputs, dtype)
        width = x.shape[-1]
        scale = layer.gamma.value if layer.scale else tf.ones(width)
        shift = layer.beta.value if layer.center else tf.zeros(width)
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, scale, shift, epsilon=layer.epsilon, is_training=True
        )
        # The operation's variance is that of a sample, Keras's that of the batch itself.
        count = tf.cast(tf.size(x) // width, tf.float32)
        variance *= (count - 1) / count
        for statistic, new in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            statistic.assign(statistic * layer.momentum + new * (1 - layer.momentum))
        return tf.cast(y, layer.compute_dtype)

    layer.call = call


def set_rates(model: keras.Model, recipe: Recipe, before: Recipe) -> None:
    """Dropout and stochastic depth as of another stage; takes effect where a step is compiled.

    Args:
        model: was built, or set, by `before`.
        recipe: of the stage.
        before: the one whose rates the layers have.
    """
    for layer in model.layers:
        kind = type(layer).__name__
        name = {"StochasticDepth": "drop_path_rate", "Dropout": "dropout_rate"}.get(kind)
        old, new = (getattr(r, name) if name else None for r in (before, recipe))
        if old and new is not None and old != new:
            layer.rate *= new / old  # each block has its share of the whole


def freeze_statistics(model: keras.Model) -> None:
    """Batch norm normalizes in training as in inference, by statistics that stay as they are.

    Its scale and shift are trained all the same. Keras documents both halves:
    https://keras.io/guides/transfer_learning/ on batch norm. To be called before the optimizer is
    made.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            trained = layer.trainable_variables
            layer.trainable = False
            for variable in trained:
                variable.trainable = True


def rates(model: keras.Model, decay: float) -> list[float] | None:
    """Discriminative learning rates: the earlier a stage, the less of its features is to change.

    Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", section
    3.2, with stages in place of single layers. A stage ends with the deepest map of a stride (see
    `kapps.features`); what follows the last one is the head, which has the whole rate.

    Args:
        model: with its head.
        decay: of the rate, from each stage to the one before it, above 0 and at most 1.

    Returns:
        What the learning rate is multiplied by, for each trainable variable; None at a decay of 1.
    """
    if decay == 1:
        return None
    maps = pyramid(model)
    share: dict[str, float] = {}
    for depth, stride in enumerate(sorted(maps, reverse=True), start=1):
        for node in ancestors(model, maps[stride]):
            share |= {v.path: decay**depth for v in getattr(node.operation, "variables", ())}
    return [share.get(variable.path, 1.0) for variable in model.trainable_variables]


def _seed_by_step(seed: int, layer: int, clock: Clock, whole: bool) -> Callable[..., tf.Tensor]:
    """In place of Keras's counter."""
    own = int(np.random.SeedSequence([seed, layer]).generate_state(1)[0])

    def next_seed(ordered: bool = True) -> tf.Tensor:
        return tf.stack([tf.constant(own, tf.int64), clock.number(whole)])

    return next_seed
