"""From a recipe to an optimizer, and to layers that train as the recipe says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kapps.tools.recipes import Recipe


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A recipe's learning rate by step."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self.recipe = recipe
        self.warmup = recipe.warmup_epochs * steps_per_epoch
        self.steps = recipe.epochs * steps_per_epoch

    def __call__(self, step: Any) -> Any:
        step = tf.cast(step, tf.float32)
        done = tf.clip_by_value((step - self.warmup) / max(self.steps - self.warmup, 1), 0.0, 1.0)
        rate = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + tf.cos(math.pi * done)),
            "linear": 1 - done,
        }[self.recipe.schedule]
        return self.recipe.learning_rate * rate * tf.minimum((step + 1) / max(self.warmup, 1), 1.0)


def make_optimizer(
    recipe: Recipe, steps_per_epoch: int, variables: list[keras.Variable]
) -> keras.optimizers.Optimizer:
    """The recipe's optimizer, built for these variables; of them only kernels decay."""
    optimizer = choose_optimizer(recipe, Schedule(recipe, steps_per_epoch), keras.optimizers)
    optimizer.build(variables)
    optimizer.exclude_from_weight_decay(var_list=without_decay(variables))
    return optimizer


def choose_optimizer(recipe: Recipe, schedule: Any, optimizers: Any) -> Any:
    """The recipe's optimizer, not yet built.

    Args:
        recipe: says which.
        schedule: of the learning rate, of the library's own class.
        optimizers: `keras.optimizers`, or `tf_keras.optimizers`.
    """
    if recipe.optimizer == "adamw":
        return optimizers.AdamW(schedule, weight_decay=recipe.weight_decay)
    return optimizers.SGD(schedule, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def without_decay(variables: Iterable[Any]) -> list[Any]:
    """Biases and normalization: what is no kernel."""
    return [variable for variable in variables if len(variable.shape) < 2]


def prepare_layers(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    recipe: Recipe,
    strategy: tf.distribute.Strategy,
    seed: int,
) -> None:
    """Batch norm as the recipe and the replicas want it; dropout by step instead of by history."""
    for i, layer in enumerate(model.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = strategy.num_replicas_in_sync > 1
            if recipe.bn_momentum is not None:
                layer.momentum = recipe.bn_momentum
        generator = getattr(layer, "seed_generator", None)
        if generator is not None:
            whole = getattr(layer, "mode", None) == "batch"  # StochasticDepth: one draw for all
            generator.next = _seed_by_step(seed, i, optimizer, strategy, whole)


def _seed_by_step(
    seed: int,
    layer: int,
    optimizer: keras.optimizers.Optimizer,
    strategy: tf.distribute.Strategy,
    whole: bool,
) -> Callable[..., tf.Tensor]:
    """In place of Keras's counter, which gives all replicas the same; `whole` does so too."""
    own = int(np.random.SeedSequence([seed, layer]).generate_state(1)[0])

    def next_seed(ordered: bool = True) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        replica = 0 if whole else context.replica_id_in_sync_group
        step = tf.cast(optimizer.iterations.value, tf.int64)
        draw = step * strategy.num_replicas_in_sync + tf.cast(replica, tf.int64)
        return tf.stack([tf.constant(own, tf.int64), draw])

    return next_seed
