"""Attacks along the gradient: the worst noise within a budget that nobody sees.

Budgets and steps are in gray levels, 0..255, whatever range the model takes. The loss is the
cross-entropy of the logits.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import check_whole
from kapps.explain import _perturbation
from kapps.explain._attacked import Attacked, check_norm


def fgsm(
    model: keras.Model,
    images: Any,
    labels: Any,
    *,
    eps: float,
    targeted: bool = False,
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """The fast gradient sign method: one step to the edge of the budget (Goodfellow et al. 2015).

    Args:
        model: a classifier.
        images: (N, height, width, channels), in the model's own range.
        labels: (N,), the true classes, whose loss is raised; with `targeted` the wanted ones, whose
            loss is lowered.
        eps: the largest change of a number, in gray levels of 0..255.
        targeted: see `labels`.
        bounds: the lowest and the highest number of an image; None for those that the model tells.

    Returns:
        The attacked images, in the range and the dtype of the given ones; whole numbers are rounded
        towards these.

    Raises:
        InputError: images, labels or numbers that do not fit, or a gradient that is zero.
    """
    net = Attacked(model, "fgsm", bounds)
    return GradientAttack(net, "linf", targeted)(images, labels, eps, eps, 1, None)


def pgd(
    model: keras.Model,
    images: Any,
    labels: Any,
    *,
    eps: float,
    step: float,
    iterations: int,
    norm: str = "linf",
    targeted: bool = False,
    random_start: bool = False,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """Projected gradient descent (Madry et al. 2018; without a random start Kurakin et al. 2017).

    Args:
        model: a classifier.
        images: (N, height, width, channels), in the model's own range.
        labels: (N,), the true classes, whose loss is raised; with `targeted` the wanted ones, whose
            loss is lowered.
        eps: the budget in gray levels of 0..255: for "linf" the largest change of a number, for
            "l2" the Euclidean norm of the change over all numbers of an image.
        step: of an iteration, in the same unit; for "l2" its norm.
        iterations: their number.
        norm: "linf" or "l2".
        targeted: see `labels`.
        random_start: whether to begin at a random point of the budget.
        seed: of that point. An image's depends on the seed and its place in `images` alone.
        bounds: the lowest and the highest number of an image; None for those that the model tells.

    Returns:
        The images after the last iteration, in the range and the dtype of the given ones; whole
        numbers are rounded towards these.

    Raises:
        InputError: images, labels or numbers that do not fit, or a gradient that is zero.
    """
    net = Attacked(model, "pgd", bounds)
    check_norm(net.caller, norm)
    check_whole(net.caller, "iterations", iterations)
    check_whole(net.caller, "seed", seed, least=0)
    start = seed if random_start else None
    return GradientAttack(net, norm, targeted)(images, labels, eps, step, iterations, start)


class GradientAttack:
    """The attack on a model, compiled once for all budgets."""

    def __init__(self, net: Attacked, norm: str, targeted: bool = False) -> None:
        self._net, self._norm, self._targeted = net, norm, targeted
        self._again = net.compiled(self._move)

    def __call__(
        self,
        images: Any,
        labels: Any,
        eps: float,
        step: float,
        iterations: int,
        seed: int | None,
    ) -> np.ndarray:
        """See `pgd`; `seed` is that of a random start, None for none."""
        net = self._net
        pixels = net.images(images)
        classes = net.labels(labels, len(pixels), "labels")
        budget = net.check_budget("eps", eps, images, zero=True)
        # One step of a budget of nothing goes nowhere.
        size = net.check_budget("step", step, images, zero=net.caller == "fgsm")
        size = -size if self._targeted else size
        limits = [ops.convert_to_tensor(number, pixels.dtype.name) for number in (budget, size)]
        move = self._again if iterations > 1 else self._move
        noise = None if seed is None else _noise(pixels.shape, seed)
        found = []
        for originals, wanted, drawn in net.batches(pixels, classes, noise):
            adversarial = originals
            if drawn is not None:
                adversarial = _perturbation.start(originals, budget, self._norm, drawn)
                adversarial = ops.clip(adversarial, net.low, net.high)
            for i in range(iterations):
                adversarial, gradient, logits = move(adversarial, originals, wanted, *limits)
                if i == 0:
                    done = net.are(logits, wanted) if self._targeted else None
                    net.check_start(gradient, logits, done)
            found.append(ops.convert_to_numpy(adversarial))
        return net.finished(np.concatenate(found), images)

    def _move(
        self, adversarial: Any, originals: Any, wanted: Any, budget: Any, size: Any
    ) -> tuple[Any, Any, Any]:
        net = self._net
        gradient, logits = net.loss_gradients(adversarial, wanted)
        moved = _perturbation.step(adversarial, gradient, size, self._norm)
        moved = _perturbation.project(moved, originals, budget, self._norm, net.low, net.high)
        return moved, gradient, logits


def _noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """For `_perturbation.start`: the same for an image whatever the others are."""
    count, length = _perturbation.noise_shape(shape)
    drawn = [
        np.random.default_rng((seed, i)).standard_normal(length, "float32") for i in range(count)
    ]
    return np.stack(drawn)
