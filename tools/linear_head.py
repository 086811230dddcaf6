"""The best linear classifier of features: a logistic regression, fitted until it has converged."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator

import numpy as np

from kapps._errors import InputError
from kapps.tools.pipeline import PADDING
from kapps.tools.runs import Evaluation

# Of the penalty, for features of mean 0 and, on average, variance 1: from the strongest on.
STRENGTHS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)
_ITERATIONS = 1000  # a hundred are usual
_ROWS = 8192  # that are looked at together
# Multiplications. Below, the threads of one product wait for one another longer than they compute:
# where other processes share the cores, 1,197 digits take 20 times as long with two of them.
_SMALL = 2**31


@dataclasses.dataclass(frozen=True)
class Features:
    """What a network makes of images: vectors, and the images' labels."""

    values: np.ndarray
    """float32 (n, features); may lie on the disk."""
    labels: np.ndarray
    """int64 (n,); `PADDING` where an image could not be read."""


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """A classifier whose logits are values @ kernel + bias."""

    kernel: np.ndarray
    """float32 (features, classes)."""
    bias: np.ndarray
    """float32 (classes,)."""
    strength: float
    """Of the penalty that was chosen, one of `STRENGTHS`."""
    converged: bool
    """Whether the gradient vanished before the last iteration."""
    passes: int
    """Over the features, until all that was looked at had converged."""

    def logits(self, values: np.ndarray) -> np.ndarray:
        """(n, classes) of (n, features)."""
        return values @ self.kernel + self.bias


def fit(
    train: Features, validation: Features, classes: int, *, balanced: bool = False
) -> LinearHead:
    """Minimizes mean cross-entropy + strength / 2 * |kernel|^2 on features of one common scale.

    The problem is convex: there is no learning rate, and the start does not matter. The strength is
    the one with the lowest cross-entropy of the validation images: from the strongest on, each
    begins where the one before has ended, until the validation's grows.

    Args:
        train: of the training images; a copy of the values is held in memory.
        validation: of the validation images.
        classes: of the data set. One without images gets a kernel of 0, and the smallest bias.
        balanced: whether classes count alike, however many images.

    Raises:
        InputError: the images are all of one class, or there is a number that is none.
    """
    rows = train.labels != PADDING
    values = np.array(train.values[rows], np.float32)
    labels = train.labels[rows]
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"all {len(labels)} training images are of one class; two are the least to learn"
        )
    mean = values.mean(0, dtype=np.float64).astype(np.float32)
    values -= mean
    squares = sum(float(np.square(part, dtype=np.float64).sum()) for part in _parts(values))
    scale = float(np.sqrt(squares / values.size))
    if not np.isfinite(scale):
        raise InputError("the network's features of the training images are no finite numbers")
    scale = scale or 1.0
    values /= scale
    best, lowest = None, np.inf
    passes = 0
    for head in _path(values, labels, classes, balanced):
        passes += head.passes
        kernel = head.kernel / scale
        head = dataclasses.replace(head, kernel=kernel, bias=head.bias - mean @ kernel)
        loss = evaluate(head, validation).loss
        if not loss < lowest:
            break
        best, lowest = head, loss
    if best is None:
        raise InputError("the network's features of the validation images are no finite numbers")
    return dataclasses.replace(best, passes=passes)


def _path(
    values: np.ndarray, labels: np.ndarray, classes: int, balanced: bool
) -> Iterator[LinearHead]:
    """The solution at each strength."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(
        max_iter=_ITERATIONS, warm_start=True, class_weight="balanced" if balanced else None
    )
    threads = 1 if values.size * classes < _SMALL else None
    for strength in STRENGTHS:
        model.C = 1 / (strength * len(values))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            with threadpool_limits(threads, user_api="blas"):
                model.fit(values, labels)
        coefficients, intercepts = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn has the difference of the two logits
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        kernel = np.zeros((values.shape[1], classes), np.float32)
        bias = np.full(classes, intercepts.min() - np.log(len(values)), np.float32)
        kernel[:, model.classes_] = coefficients.T
        bias[model.classes_] = intercepts
        converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        yield LinearHead(kernel, bias, strength, converged, int(model.n_iter_.sum()))


def evaluate(head: LinearHead, features: Features) -> Evaluation:
    """How well the network does with that classifier."""
    sums = np.zeros(4)
    for rows in _parts(np.arange(len(features.labels))):
        known = rows[features.labels[rows] != PADDING]
        labels = features.labels[known]
        logits = head.logits(np.asarray(features.values[known], np.float32)).astype(np.float64)
        logits -= logits.max(1, keepdims=True)
        own = np.take_along_axis(logits, labels[:, None], 1)
        better = (logits > own).sum(1)
        losses = np.log(np.exp(logits).sum(1)) - own[:, 0]
        sums += [losses.sum(), (better < 1).sum(), (better < 5).sum(), len(known)]
    loss, top1, top5, images = (float(x) for x in sums)
    return Evaluation(top1 / images, top5 / images, loss / images, int(images))


def _parts(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), _ROWS):
        yield values[start : start + _ROWS]
