"""What a step computes of a batch: loss, gradients, hits, and how the weights change.

The model gives logits; one with auxiliary heads gives a list of them, the main ones first. It may
be one of tf_keras.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kapps.tools import distribution, mixing, optimizers
from kapps.tools.adversarial import Attack
from kapps.tools.averages import Average
from kapps.tools.layers import Clock
from kapps.tools.manifold import MixedForward
from kapps.tools.pipeline import PADDING
from kapps.tools.recipe import Recipe


class Training:
    """A training step of one replica: forward, backward, and the weights' change.

    Args:
        model: gives logits.
        optimizer: of `kapps.tools.optimizers`.
        clock: of the model's layers.
        recipe: says what the targets and the loss are; its batch size is that of all replicas.
        average: of the weights.
        class_weights: (classes,) factors of the images' losses.
        teacher: gives logits that are to be learned from too, of the same images.
        distillation: the share of the loss that the teacher has, and its temperature: Hinton et al.
            2015, "Distilling the Knowledge in a Neural Network", section 2.
        forward: of the model, where hidden states are mixed too.
        attack: on the images, after they are mixed.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        clock: Clock,
        recipe: Recipe,
        *,
        average: Average | None = None,
        loss_scale: LossScale | None = None,
        class_weights: np.ndarray | None = None,
        teacher: keras.Model | None = None,
        distillation: tuple[float, float] = (0.5, 4.0),
        forward: MixedForward | None = None,
        attack: Attack | None = None,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._clock, self._recipe = clock, recipe
        self._average, self._scale = average, loss_scale
        self._weights = None if class_weights is None else tf.constant(class_weights, tf.float32)
        self._teacher, (self._share, self._temperature) = teacher, distillation
        self._forward, self._attack = forward, attack
        self._auxiliary = tuple(getattr(model, "auxiliary_weights", ()))

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, mix: tf.Tensor, flags: tf.Tensor
    ) -> tf.Tensor:
        """Takes a step.

        Args:
            images: uint8 (n, height, width, 3), of this replica.
            labels: int64 (n,).
            mix: how the images are mixed: `mixing.Mix.vector`.
            flags: float32 (f,), which are summed over the replicas.

        Returns:
            The sums (loss, hits) over the images of all replicas, and the sums of the flags.
        """
        sums, gradients = self._gradients(images, labels, mix)
        sums, gradients = distribution.summed([tf.concat([sums, flags], 0), gradients])
        if self._scale is None:
            self._update(self._clipped(gradients), None)
        else:
            gradients = [g / tf.cast(self._scale.value, g.dtype) for g in gradients]
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
            self._update(self._clipped(gradients), finite)
            self._scale.update(finite)
        return sums

    def _gradients(
        self, images: tf.Tensor, labels: tf.Tensor, mix: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The sums (loss, hits), and this replica's part of the gradients of the mean loss."""
        parts, variables = self._recipe.accumulate, self._model.trainable_variables
        sums: Any = 0.0
        gradients: list[tf.Tensor] = []
        pairs = zip(tf.split(images, parts), tf.split(labels, parts), strict=True)
        for self._clock.part, (own, classes) in enumerate(pairs):
            given, targets = self._mixed(own, classes, mix)
            seen = given if self._attack is None else self._attacked(given, targets, mix)
            with tf.GradientTape() as tape:
                loss, hits = self._loss(seen, given, classes, targets, mix)
                scaled = self._scaled(loss)
            found = tape.gradient(scaled, variables, unconnected_gradients="zero")
            together = zip(gradients, found, strict=True)
            gradients = [a + b for a, b in together] if gradients else found
            sums += tf.stack([loss, hits])
        return sums, gradients

    def _clipped(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        recipe, variables = self._recipe, self._model.trainable_variables
        if recipe.clip_adaptive is not None:
            units = optimizers.unit_axes(self._model)
            gradients = optimizers.clip_adaptive(gradients, variables, units, recipe.clip_adaptive)
        if recipe.clip_norm is not None:
            gradients = optimizers.clip_by_global_norm(gradients, recipe.clip_norm)
        return gradients

    def _update(self, gradients: list[tf.Tensor], when: tf.Tensor | None) -> None:
        variables = self._model.trainable_variables
        optimizers.apply_summed(self._optimizer, gradients, variables, when=when)
        if self._average is not None:
            self._average.update(self._optimizer.iterations)

    def _scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """What gradients are taken of, of a sum over images."""
        scale = 1.0 if self._scale is None else self._scale.value
        return loss * scale / self._recipe.batch_size

    def _mixed(
        self, images: tf.Tensor, labels: tf.Tensor, mix: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The images, and their targets without smoothing."""
        classes = keras.tree.flatten(self._model.outputs)[0].shape[-1]
        targets = tf.one_hot(labels, classes)
        if self._recipe.mixes:
            return mixing.apply(tf.cast(images, tf.float32), targets, mix)
        return images, targets

    def _outputs(self, images: tf.Tensor, mix: tf.Tensor, training: bool) -> list[tf.Tensor]:
        """The logits of all heads, the main ones first."""
        outputs = (
            self._model(images, training=training)
            if self._forward is None
            else self._forward(images, mix, training)
        )
        return [tf.cast(x, tf.float32) for x in keras.tree.flatten(outputs)]

    def _attacked(self, images: tf.Tensor, targets: tf.Tensor, mix: tf.Tensor) -> tf.Tensor:
        """The images, attacked as the network will be once it is in use.

        So it is in inference: nothing is dropped, and batch norm neither normalizes by a batch nor
        remembers this one (as the package robustness does, Engstrom et al. 2019). The loss is that
        of the main head, and of targets that are not smoothed: where a network is as sure as these
        want it to be, more confidence is a higher loss too, and an attack would find that.
        """

        def loss(changed: tf.Tensor) -> tf.Tensor:
            main = self._outputs(changed, mix, training=False)[0]
            return self._scaled(tf.reduce_sum(self._of_images(main, targets)))

        assert self._attack is not None
        return self._attack(tf.cast(images, tf.float32), loss)

    def _loss(
        self,
        images: tf.Tensor,
        clean: tf.Tensor,
        labels: tf.Tensor,
        targets: tf.Tensor,
        mix: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The sums of losses and hits; a teacher, which may be fooled, looks at `clean`."""
        recipe, classes = self._recipe, targets.shape[-1]
        smooth = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / classes
        main, *others = self._outputs(images, mix, training=True)
        losses = self._of_images(main, smooth)
        for weight, logits in zip(self._auxiliary, others, strict=True):
            losses += weight * self._of_images(logits, smooth)
        if self._teacher is not None:
            taught = self._of_teacher(
                main, tf.cast(self._teacher(clean, training=False), tf.float32)
            )
            losses = (1 - self._share) * losses + self._share * taught
        if self._weights is not None:
            losses *= tf.linalg.matvec(targets, self._weights)
        hits = tf.argmax(main, -1) == labels
        return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(hits, tf.float32))

    def _of_images(self, logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        if self._recipe.loss == "softmax":
            return tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        threshold = self._recipe.binary_threshold
        if threshold is not None:
            targets = tf.cast(targets > threshold, tf.float32)
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits), -1)

    def _of_teacher(self, logits: tf.Tensor, taught: tf.Tensor) -> tf.Tensor:
        heat = self._temperature
        wanted = tf.nn.softmax(tf.stop_gradient(taught) / heat)
        # The gradients of softened targets are smaller by the square of the temperature.
        return heat**2 * tf.nn.softmax_cross_entropy_with_logits(wanted, logits / heat)


class Evaluation:
    """An evaluation step of one replica: sums (loss, hits, hits of five, images)."""

    def __init__(self, model: keras.Model, from_logits: bool) -> None:
        self._model, self._from_logits = model, from_logits

    def __call__(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        outputs = keras.tree.flatten(self._model(images, training=False))[0]
        outputs = tf.cast(outputs, tf.float32)
        real = labels != PADDING
        labels = tf.where(real, labels, 0)
        found = [
            keras.losses.sparse_categorical_crossentropy(labels, outputs, self._from_logits),
            tf.argmax(outputs, -1) == labels,
            tf.math.in_top_k(labels, outputs, min(5, outputs.shape[-1])),
            tf.ones_like(real),
        ]
        sums = [tf.reduce_sum(tf.where(real, tf.cast(x, tf.float32), 0)) for x in found]
        return distribution.summed(tf.stack(sums))


class LossScale:
    """The factor of mixed_float16's loss: Micikevicius et al. 2018, section 3.2.

    It doubles after 2,000 steps whose gradients were finite, and halves at one that has others,
    which is then left out. To be made in the strategy's scope.
    """

    _GROWS_AFTER = 2000

    def __init__(self) -> None:
        once = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.value = tf.Variable(2.0**15, trainable=False, aggregation=once)
        self._good = tf.Variable(0, trainable=False, aggregation=once, dtype=tf.int64)

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """What a checkpoint has to keep."""
        return {"value": self.value, "good": self._good}

    def update(self, finite: tf.Tensor) -> None:
        """Takes note of a step, whose gradients were finite or not."""
        good = tf.where(finite, self._good + 1, 0)
        grows = good >= self._GROWS_AFTER
        factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
        self.value.assign(tf.maximum(self.value * factor, 1.0))
        self._good.assign(tf.where(grows, tf.zeros_like(good), good))
