"""Attacking what only answers: a net trained on the answers, whose attacks are handed over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, check_whole
from kapps.explain import _perturbation
from kapps.explain._attacked import Attacked
from kapps.explain._classifier import as_array
from kapps.explain.attacks import pgd

Victim = Callable[[np.ndarray], Any]
"""Images (N, height, width, channels) to probabilities (N, classes)."""


@dataclasses.dataclass(frozen=True)
class Transfer:
    """How much of an attack on a proxy reaches its victim; shares of images, 0..1.

    Attributes:
        images: how many there were that the victim gets right; the rates are of these.
        proxy_rate: whose attacked image the proxy gets wrong.
        rate: whose attacked image the victim gets wrong; with `targeted`, gives the wanted class.
        noise_rate: the same for images moved by the whole budget in a random direction: what is
            below it is no transfer.
        eps: the budget, gray levels of 0..255.
        step: of an iteration, likewise.
        iterations: of PGD, which begins at the image itself.
        norm: of eps and step.
        targeted: whether one class was wanted.
    """

    images: int
    proxy_rate: float
    rate: float
    noise_rate: float
    eps: float
    step: float
    iterations: int
    norm: str
    targeted: bool


def proxy(
    model: keras.Model,
    victim: Victim,
    images: Any,
    *,
    epochs: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    rounds: int = 0,
    step: float = 25.5,
    bounds: tuple[float, float] | None = None,
) -> float:
    """Trains a model on a victim's answers in place of labels (Papernot et al. 2017).

    The loss is the cross-entropy of the victim's probabilities, which say more than its classes;
    the optimizer is Adam. The model is compiled anew.

    Args:
        model: what is trained, in place: a classifier of as many classes, of any architecture.
        victim: a function of images, such as the `predict` of a kapps.tflite.Runner.
        images: (N, height, width, channels), in the range of both. They need no labels.
        epochs: of each round.
        batch_size: of a step.
        learning_rate: of Adam.
        rounds: how often the images are doubled, by copies that are moved along the sign of the
            gradient of the proxy's logit of the victim's class: Papernot's augmentation, which
            spares images at the price of questions.
        step: by how much, in gray levels of 0..255; the paper has a tenth of the range.
        bounds: the lowest and the highest number of an image; None for those that the model tells.

    Returns:
        The share of the given images to which proxy and victim give the same class.

    Raises:
        InputError: images or numbers that do not fit, or a victim that gives no probabilities of
            the model's classes.
    """
    net = Attacked(model, "proxy", bounds)
    pixels = net.images(images)
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1),
                               ("rounds", rounds, 0)):  # fmt: skip
        check_whole(net.caller, name, value, least=least)
    size = net.check_budget("step", step, pixels)
    shown, answers = pixels, _asked(net, victim, pixels)
    model.compile(keras.optimizers.Adam(learning_rate), _loss(net, pixels[:1]))
    for left in reversed(range(rounds + 1)):
        order = np.random.default_rng(left).permutation(len(shown))
        targets = answers if net.logits.shape[-1] != 1 else answers[:, 1:]
        model.fit(shown[order], targets[order], batch_size, epochs, verbose=0)
        if left:
            moved = _moved(net, shown, answers.argmax(-1), size)
            shown = np.concatenate([shown, moved])
            answers = np.concatenate([answers, _asked(net, victim, moved)])
    own = answers[: len(pixels)].argmax(-1)
    return float((net.predict(pixels).argmax(-1) == own).mean())


def transfer(
    model: keras.Model,
    victim: Victim,
    images: Any,
    labels: Any,
    *,
    eps: float,
    step: float,
    iterations: int,
    norm: str = "linf",
    targeted: bool = False,
    wanted: Any = None,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Transfer:
    """How often an attack on a proxy, by `pgd`, succeeds on a victim that it has not seen.

    Args:
        model: the proxy, or any other classifier of the same classes.
        victim: a function of images; see `proxy`.
        images: (N, height, width, channels), in the range of both.
        labels: (N,), the true classes.
        eps, step, iterations, norm: of `pgd`.
        targeted: whether one class is wanted.
        wanted: (N,), which, if `targeted`.
        seed: of the random directions.
        bounds: the lowest and the highest number of an image; None for those that the model tells.

    Raises:
        InputError: as `pgd` does, or the victim gets no image right.
    """
    net = Attacked(model, "transfer", bounds)
    pixels = net.images(images)
    classes = net.labels(labels, len(pixels), "labels")
    if targeted != (wanted is not None):
        raise InputError("transfer: a targeted attack, and no other, has wanted classes")
    aims = net.labels(wanted, len(pixels), "wanted") if targeted else classes
    right = _asked(net, victim, pixels).argmax(-1) == classes
    right &= aims != classes if targeted else True
    if not right.any():
        raise InputError("transfer: the victim gets none of the images right: what is to be lost?")
    pixels, aims = pixels[right], aims[right]
    attacked = pgd(
        model,
        pixels,
        aims,
        eps=eps,
        step=step,
        iterations=iterations,
        norm=norm,
        targeted=targeted,
        bounds=bounds,
    )

    def share(scores: np.ndarray) -> float:
        return float(((scores.argmax(-1) == aims) == targeted).mean())

    noise = np.random.default_rng(seed).standard_normal(pixels.shape, "float32")
    here, there = map(ops.convert_to_tensor, (pixels, noise))
    noisy = _perturbation.step(here, there, eps * net.level, norm)
    noisy = ops.convert_to_numpy(ops.clip(noisy, net.low, net.high))
    return Transfer(
        images=len(pixels),
        proxy_rate=share(net.predict(attacked)),
        rate=share(_asked(net, victim, attacked)),
        noise_rate=share(_asked(net, victim, noisy)),
        eps=eps,
        step=step,
        iterations=iterations,
        norm=norm,
        targeted=targeted,
    )


def _asked(net: Attacked, victim: Victim, images: np.ndarray) -> np.ndarray:
    """The victim's answers, checked."""
    if not callable(victim):
        raise InputError(
            f"{net.caller}: the victim must be a function of images, such as runner.predict, not "
            f"{type(victim).__name__}"
        )
    answers = victim(images)
    found = as_array(answers, f"{net.caller}: the victim's answers")
    if found.shape != (len(images), net.classes):
        raise InputError(
            f"{net.caller}: the victim gives {found.shape}, not ({len(images)}, {net.classes}) as "
            f"{net.model.name} does"
        )
    # A file of 8 bits gives probabilities in steps of 1 / 256, whose sum is not quite 1.
    if not (found.min() >= 0 and np.abs(found.sum(-1) - 1).max() < 0.1):
        raise InputError(
            f"{net.caller}: the victim gives numbers in {found.min():g}..{found.max():g} that are "
            "no probabilities; put a softmax behind it"
        )
    return found.astype("float32")


def _loss(net: Attacked, images: np.ndarray) -> Any:
    """The cross-entropy, of what the model itself gives: probabilities or logits."""
    scores = net.predict(images)
    given = ops.convert_to_numpy(net.model(images, training=False))
    if given.shape[-1] == 1:
        is_logit = np.allclose(given[:, 0], scores[:, 1])
        return keras.losses.BinaryCrossentropy(from_logits=bool(is_logit))
    is_logit = np.allclose(given, scores)
    return keras.losses.CategoricalCrossentropy(from_logits=bool(is_logit))


def _moved(net: Attacked, images: np.ndarray, classes: np.ndarray, size: float) -> np.ndarray:
    found = []
    for batch, chosen in net.batches(images, classes):
        _, gradient, _ = net.gradients(batch, chosen, net.image)
        moved = ops.clip(_perturbation.step(batch, gradient, size, "linf"), net.low, net.high)
        found.append(ops.convert_to_numpy(moved))
    return np.concatenate(found)
