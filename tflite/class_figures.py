"""What a classifier does with each class, and where it is most wrong: figures of NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kapps._errors import InputError

_EPSILON = 1e-7  # to which Keras, too, clips a probability before it takes the logarithm


@dataclass(frozen=True)
class Scores:
    """How a classifier did on all images; accuracies are shares, 0 to 1."""

    top1: float
    top5: float
    """Whether the class is among the five most probable ones."""
    loss: float
    """Mean cross-entropy, nats."""
    images: int


@dataclass(frozen=True)
class ClassFigures:
    """How it did on the images of a class; None is a share of nothing.

    Attributes:
        name: of the class.
        images: how many there are of it.
        precision: share of those that were taken for this class and are of it.
        recall: share of its images that were taken for it.
        f1: the harmonic mean of both: 2 right / (images + taken for it).
        taken_for: the class that its images were most often wrongly taken for, if for any.
        taken_for_images: how many of them.
    """

    name: str
    images: int
    precision: float | None
    recall: float | None
    f1: float | None
    taken_for: str | None
    taken_for_images: int


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class.

    Attributes:
        index: of the image.
        truth: the index of its class; `predicted` that of the other one.
        probability: which the network gave the other class, 0 to 1.
        true_probability: which it gave the image's own.
    """

    index: int
    truth: int
    predicted: int
    probability: float
    true_probability: float


def check(probabilities: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Refuses what is no classifier's answer to some images.

    Raises:
        InputError: no images, other shapes, labels out of range, or NaN or infinity.
    """
    if not len(labels):
        raise InputError("there are no images to evaluate on")
    if probabilities.shape != (len(labels), classes):
        raise InputError(
            f"probabilities of shape {list(probabilities.shape)}: expected "
            f"{[len(labels), classes]}, by the labels and the class names"
        )
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(f"label {wrong}: expected 0 to {classes - 1}, by the class names")
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        raise InputError(
            f"the network gives nan or infinity for image {int(finite.argmin())}, counted from 0; "
            "look for them in its weights"
        )


def scores(probabilities: np.ndarray, labels: np.ndarray) -> Scores:
    """The figures of `kapps.tools.training.evaluate`, of (n, classes) and (n,)."""
    own = _own(probabilities, labels)
    above = (probabilities > own[:, None]).sum(axis=1)
    clipped = np.clip(probabilities, _EPSILON, 1 - _EPSILON)
    total = clipped.sum(axis=1, dtype=np.float64)
    return Scores(
        top1=float((probabilities.argmax(axis=1) == labels).mean()),
        top5=float((above < 5).mean()),
        loss=float(-np.log(_own(clipped, labels) / total).mean()),
        images=len(labels),
    )


def class_figures(
    predicted: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> list[ClassFigures]:
    """Those of each class, of the class indices (n,) that were predicted and that are true."""
    classes = len(class_names)
    images, taken, right = (
        np.bincount(indices, minlength=classes).tolist()
        for indices in (labels, predicted, labels[predicted == labels])
    )
    worst: dict[int, tuple[int, int]] = {}
    for truth, other, count in confusions(predicted, labels, classes).tolist():
        worst.setdefault(truth, (other, count))
    found = []
    for index, name in enumerate(class_names):
        other, count = worst.get(index, (None, 0))
        hits = right[index]
        found.append(
            ClassFigures(
                name,
                images[index],
                precision=_share(hits, taken[index]),
                recall=_share(hits, images[index]),
                f1=_share(2 * hits, images[index] + taken[index]),
                taken_for=None if other is None else class_names[other],
                taken_for_images=count,
            )
        )
    return found


def confusions(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The pairs of classes that were mixed up, the most frequent ones first.

    Returns:
        (pairs, 3): the true class, the predicted one, and how many images.
    """
    wrong = predicted != labels
    pairs, counts = np.unique(
        labels[wrong].astype(np.int64) * classes + predicted[wrong], return_counts=True
    )
    order = np.argsort(-counts, kind="stable")
    return np.stack([pairs[order] // classes, pairs[order] % classes, counts[order]], axis=1)


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray, most: int) -> list[Mistake]:
    """The wrong ones of the highest loss; among equals those that were surest of another class."""
    predicted = probabilities.argmax(axis=1)
    own, best = _own(probabilities, labels), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.lexsort((-best[wrong], own[wrong]))][:most]
    return [
        Mistake(int(i), int(labels[i]), int(predicted[i]), float(best[i]), float(own[i]))
        for i in order
    ]


def _own(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What each image's own class was given, (n,) float64."""
    return probabilities[np.arange(len(labels)), labels].astype(np.float64)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
