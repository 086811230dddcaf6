"""What all attacks share: a classifier with images, their classes, their range and its unit."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, is_number, unknown
from kapps.explain import _perturbation
from kapps.explain._classifier import Classifier, as_array
from kapps.explain._differentiation import value_and_gradients

GRAY_LEVELS = 255
"""Budgets are given as if the images' range were 0..255."""


class Attacked(Classifier):
    """A classifier under attack.

    Attributes:
        low, high: the range that images keep to.
        level: one gray level in the images' unit: 1 for images in 0..255.
    """

    def __init__(
        self, model: keras.Model, caller: str, bounds: tuple[float, float] | None = None
    ) -> None:
        super().__init__(model, caller)
        self.low, self.high = self.bounds(bounds)
        self.level = (self.high - self.low) / GRAY_LEVELS

    def images(self, images: Any) -> np.ndarray:
        """See `Classifier.images`; beyond the range there is nothing to attack."""
        found = super().images(images)
        slack = 1e-6 * (self.high - self.low)
        least, most = float(found.min()), float(found.max())
        if least < self.low - slack or most > self.high + slack:
            raise InputError(
                f"{self.caller}: the images have numbers in {least:g}..{most:g}, beyond the range "
                f"{self.low:g}..{self.high:g}; give their range, as in bounds=(-1, 1), or clip them"
            )
        return found

    def whole(self, images: Any) -> bool:
        """Whether the images are whole numbers, and so must be the attacked ones."""
        return np.issubdtype(as_array(images, "the images").dtype, np.integer)

    def check_budget(self, name: str, value: float, images: Any, *, zero: bool = False) -> float:
        """A number of gray levels in the images' unit.

        Raises:
            InputError: it is none, or below one step of whole numbers.
        """
        if not is_number(value) or value < 0 or (value == 0 and not zero):
            least = "0 or more" if zero else "above 0"
            raise InputError(
                f"{self.caller}: {name} must be a number of gray levels (0..255), {least}, not "
                f"{value!r}"
            )
        found = float(value) * self.level
        if self.whole(images) and 0 < found < 1 and name == "eps":
            raise InputError(
                f"{self.caller}: the images are whole numbers, which {name}={value:g} cannot move; "
                "give them as floating-point numbers"
            )
        return found

    def losses(self, images: Any, classes: Any) -> tuple[Any, Any]:
        """The cross-entropy of each image's class, (batch,), and the logits, (batch, classes)."""
        logits = self.class_logits(images)
        return self.cross_entropy(logits, classes), logits

    def loss_gradients(
        self, images: Any, classes: Any, most: float | None = None
    ) -> tuple[Any, Any]:
        """The gradient of each image's cross-entropy by its numbers, and the logits.

        The gradient of a loss beyond `most` is zero.
        """

        def objective(inputs: list[Any]) -> tuple[Any, Any]:
            losses, logits = self.losses(inputs[0], classes)
            return ops.sum(losses if most is None else ops.minimum(losses, most)), logits

        _, logits, (gradient,) = value_and_gradients(objective, [images])
        return gradient, logits

    def are(self, logits: Any, classes: Any) -> np.ndarray:
        """Whether the largest logit is that of the class, (batch,)."""
        return ops.convert_to_numpy(logits).argmax(-1) == ops.convert_to_numpy(classes)

    def check_start(self, gradient: Any, logits: Any, done: np.ndarray | None = None) -> None:
        """Refuses to attack what shows no way: zero gradients, or probabilities for logits.

        Args:
            gradient: (batch, ...), of the images as they are.
            logits: (batch, classes).
            done: (batch,), which images need no way any more.

        Raises:
            InputError: there is none.
        """
        scores = ops.convert_to_numpy(logits)
        self.check_logits(scores)
        flat = ops.convert_to_numpy(gradient).reshape(len(scores), -1)
        dead = ~flat.any(-1)
        if done is not None:
            dead &= ~done
        if dead.any() or not np.isfinite(flat).all():
            what = "zero everywhere" if dead.any() else "not finite"
            raise InputError(
                f"{self.caller}: the gradient of the loss is {what} for {int(dead.sum())} of "
                f"{len(dead)} images: a saturated or dead network, or defensive distillation, "
                "which hides the gradient and not the weakness; use an attack that needs none, as "
                "by kapps.explain.art_classifier, or one on a proxy"
            )

    def finished(self, found: np.ndarray, images: Any) -> np.ndarray:
        """The attacked images in the dtype of the given ones, rounded towards these if whole."""
        given = as_array(images, "the images")
        if not self.whole(given):
            return found.astype(given.dtype)
        return (given + np.trunc(found - given.astype("float64"))).astype(given.dtype)


def check_norm(caller: str, norm: str) -> str:
    """Raises an `InputError` for a norm that is none of `_perturbation.NORMS`."""
    if norm not in _perturbation.NORMS:
        raise unknown(f"norm for {caller}", norm, _perturbation.NORMS)
    return norm
