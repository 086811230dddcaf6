"""The smallest noise that changes a class: the penalized form of an attack."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, check_whole, is_number
from kapps.explain import _perturbation
from kapps.explain._attacked import Attacked
from kapps.explain._differentiation import value_and_gradients


def penalized(
    model: keras.Model,
    images: Any,
    labels: Any,
    *,
    iterations: int = 200,
    step: float = 1.0,
    targeted: bool = False,
    searches: int = 5,
    constant: float = 0.01,
    confidence: float = 0.0,
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """The nearest images of another class: the least |r|^2 + c loss(image + r).

    The loss is Carlini and Wagner's (2017, f6): by how much the logit of the true class is above
    the largest other one, or that one above the wanted class's; it is zero once the attack has
    succeeded, and only the norm is left. Unlike theirs, the noise is cut to the range of the images
    at each step, and no tanh keeps it there. As Szegedy et al. (2014) do, the smallest c that
    succeeds is searched, for each image: by tenfold steps up, and then by halves.

    Args:
        model: a classifier.
        images: (N, height, width, channels), in the model's own range.
        labels: (N,), the true classes; with `targeted` the wanted ones.
        iterations: of Adam, for each c.
        step: its rate, in gray levels of 0..255.
        targeted: see `labels`.
        searches: how many c are tried.
        constant: the first c. Both parts count in the range 0..1: |r|^2 is over 255^2.
        confidence: by how much the logit has to be above.
        bounds: the lowest and the highest number of an image; None for those that the model tells.

    Returns:
        The attacked images of the least Euclidean norm of r that was found, in the range and the
        dtype of the given ones. Where none was found the image stays as it is. Of whole numbers
        the network sees the rounded image at each step, so that what is found holds.

    Raises:
        InputError: images, labels or numbers that do not fit, or a gradient that is zero.
    """
    net = Attacked(model, "penalized", bounds)
    pixels = net.images(images)
    classes = net.labels(labels, len(pixels), "labels")
    check_whole(net.caller, "iterations", iterations)
    check_whole(net.caller, "searches", searches)
    for name, value, least in (("constant", constant, None), ("confidence", confidence, 0)):
        if not is_number(value) or value < 0 or (least is None and value == 0):
            raise InputError(f"{net.caller}: {name} must be a number above 0, not {value!r}")
    search = _Search(
        net,
        size=net.check_budget("step", step, images),
        sign=-1 if targeted else 1,
        confidence=confidence,
        whole=net.whole(images),
    )
    found = [
        search.nearest(originals, wanted, iterations, searches, constant)
        for originals, wanted in net.batches(pixels, classes)
    ]
    return net.finished(np.concatenate(found), images)


class _Search:
    """The descent for one c, and the search for c."""

    def __init__(
        self, net: Attacked, *, size: float, sign: int, confidence: float, whole: bool
    ) -> None:
        self._net, self._size, self._sign = net, size, sign
        self._confidence, self._whole = confidence, whole
        self._again = net.compiled(self._descend)

    def nearest(
        self, originals: Any, wanted: Any, iterations: int, searches: int, constant: float
    ) -> np.ndarray:
        """The nearest images of the other class that were found; the originals where none was."""
        count = len(originals)
        constants = np.full(count, constant, "float32")
        below, above = np.zeros(count, "float32"), np.full(count, np.inf, "float32")
        best, least = ops.convert_to_numpy(originals), np.full(count, np.inf, "float32")
        for search in range(searches):
            found, norms = self._with(originals, wanted, constants, iterations, search == 0)
            better = norms < least
            best[better], least[better] = found[better], norms[better]
            succeeded = np.isfinite(norms)
            above = np.where(succeeded, np.minimum(above, constants), above)
            below = np.where(succeeded, below, np.maximum(below, constants))
            middle = (below + np.where(np.isfinite(above), above, 0)) / 2
            constants = np.where(np.isfinite(above), middle, 10 * constants).astype("float32")
        return best

    def _with(
        self, originals: Any, wanted: Any, constants: np.ndarray, iterations: int, is_first: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest images that succeed, and the squares of their norms: infinity for none."""
        weights = ops.convert_to_tensor(constants)
        zeros = ops.zeros_like(originals)
        state = (zeros, zeros, zeros, originals, ops.full_like(weights, np.inf))
        for i in range(iterations):
            number = ops.convert_to_tensor(np.float32(i + 1))
            state, gradient, logits = self._again(*state, originals, wanted, weights, number)
            if i == 0 and is_first:
                done = np.isfinite(ops.convert_to_numpy(state[-1]))
                self._net.check_start(gradient, logits, done)
        return ops.convert_to_numpy(state[-2]), ops.convert_to_numpy(state[-1])

    def _descend(
        self,
        noise: Any,
        first: Any,
        second: Any,
        best: Any,
        least: Any,
        originals: Any,
        wanted: Any,
        constants: Any,
        number: Any,
    ) -> tuple[Any, Any, Any]:
        net = self._net

        def objective(inputs: list[Any]) -> tuple[Any, Any]:
            shown = originals + inputs[0]
            if self._whole:  # the gradient passes the rounding by
                shown = shown + ops.stop_gradient(ops.round(shown) - shown)
            logits = net.class_logits(shown)
            margins = self._margins(logits, wanted) + self._confidence
            relative = inputs[0] / (net.high - net.low)
            squares = ops.sum(ops.square(relative), axis=(1, 2, 3))
            total = ops.sum(squares + constants * ops.relu(margins))
            return total, (shown, squares, margins, logits)

        _, (shown, squares, margins, logits), (gradient,) = value_and_gradients(objective, [noise])
        better = ops.logical_and(margins <= 0, squares < least)
        best = ops.where(better[:, None, None, None], shown, best)
        least = ops.where(better, squares, least)
        change, first, second = _perturbation.adam(gradient, first, second, number)
        moved = ops.clip(originals + noise + self._size * change, net.low, net.high)
        return (moved - originals, first, second, best, least), gradient, logits

    def _margins(self, logits: Any, classes: Any) -> Any:
        """How far from success each image is; 0 or less is success."""
        of_class = ops.one_hot(classes, logits.shape[-1], dtype="bool")
        own = ops.max(ops.where(of_class, logits, -np.inf), axis=-1)
        other = ops.max(ops.where(of_class, -np.inf, logits), axis=-1)
        return self._sign * (own - other)
