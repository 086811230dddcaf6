"""One perturbation for all images."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import check_whole
from kapps.explain import _perturbation
from kapps.explain._attacked import Attacked, check_norm

_MOST = 9.0  # of an image's loss, in nats: Shafahi et al. 2020, section 3


@dataclasses.dataclass(frozen=True, eq=False)
class Universal:
    """A perturbation that is added to any image.

    Attributes:
        perturbation: (height, width, channels), float32, in the unit of the model's images.
        bounds: the range that images keep to.
        rate: of the images it was made of, the share whose predicted class it changes; with
            `targeted`, the share that it gives the wanted class.
    """

    perturbation: np.ndarray
    bounds: tuple[float, float]
    rate: float

    def apply(self, images: np.ndarray) -> np.ndarray:
        """The images with the perturbation, cut to the range, float32."""
        return np.clip(images + self.perturbation, *self.bounds).astype("float32")


def universal(
    model: keras.Model,
    images: Any,
    labels: Any,
    *,
    eps: float,
    step: float,
    epochs: int,
    norm: str = "linf",
    targeted: bool = False,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Universal:
    """A universal adversarial perturbation (Moosavi-Dezfooli et al. 2017).

    It is found by stochastic gradient ascent (Shafahi et al. 2020): for each batch in random order
    a step along the gradient of the summed loss, of which no image counts beyond `_MOST`, and back
    into the budget.

    Args:
        model: a classifier.
        images: (N, height, width, channels), in the model's own range.
        labels: (N,), the true classes, whose loss is raised; with `targeted` the wanted ones, whose
            loss is lowered.
        eps: the budget in gray levels of 0..255: for "linf" the largest change of a number, for
            "l2" the Euclidean norm of the change over all numbers of an image.
        step: of a batch, in the same unit.
        epochs: how often each image is seen.
        norm: "linf" or "l2".
        targeted: see `labels`.
        seed: of the order of the images.
        bounds: the lowest and the highest number of an image; None for those that the model tells.

    Raises:
        InputError: images, labels or numbers that do not fit, or a gradient that is zero.
    """
    net = Attacked(model, "universal", bounds)
    pixels = net.images(images)
    classes = net.labels(labels, len(pixels), "labels")
    check_norm(net.caller, norm)
    check_whole(net.caller, "epochs", epochs)
    check_whole(net.caller, "seed", seed, least=0)
    budget = net.check_budget("eps", eps, pixels)
    size = net.check_budget("step", step, pixels)

    def move(change: Any, originals: Any, wanted: Any) -> tuple[Any, Any, Any]:
        shown = ops.clip(originals + change, net.low, net.high)
        gradient, logits = net.loss_gradients(shown, wanted, None if targeted else _MOST)
        whole = ops.sum(gradient, axis=0, keepdims=True)
        moved = _perturbation.step(change, whole, -size if targeted else size, norm)
        nothing = ops.zeros_like(moved)
        moved = _perturbation.project(moved, nothing, budget, norm, -np.inf, np.inf)
        return moved, gradient, logits

    again, random = net.compiled(move), np.random.default_rng(seed)
    change = ops.zeros((1, *pixels.shape[1:]), pixels.dtype)
    is_first = True
    for _ in range(epochs):
        order = random.permutation(len(pixels))
        for originals, wanted in net.batches(pixels[order], classes[order]):
            change, gradient, logits = again(change, originals, wanted)
            if is_first:
                net.check_start(gradient, logits, _done(net, logits, wanted, targeted))
            is_first = False
    perturbation = ops.convert_to_numpy(change)[0].astype("float32")
    moved = np.clip(pixels + perturbation, net.low, net.high).astype(pixels.dtype)
    found = net.predict(moved).argmax(-1)
    changed = found == classes if targeted else found != net.predict(pixels).argmax(-1)
    return Universal(perturbation, (net.low, net.high), float(changed.mean()))


def _done(net: Attacked, logits: Any, classes: Any, targeted: bool) -> np.ndarray:
    if targeted:
        return net.are(logits, classes)
    return ops.convert_to_numpy(net.cross_entropy(logits, classes) >= _MOST)
