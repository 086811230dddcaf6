"""Attacks on .tflite files, and on Keras models: how much accuracy is left.

A file has no gradients. What attacks it are images made by those of a Keras model, which go through
the file as well (a transfer attack), or images found by asking the file alone (a black-box attack).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from kapps._errors import InputError, one_line
from kapps.tflite import accuracy
from kapps.tflite.accuracy import Scores
from kapps.tflite.measurement.latency import existing, identity
from kapps.tflite.metadata import weights_sha256
from kapps.tflite.robustness import NORM, Attack, RobustLevel, Robustness
from kapps.tflite.square import square

_Make = Callable[[int, int], np.ndarray]
"""The attacked images, uint8, for a budget and the number of the restart."""
Progress = Callable[[int], object]


def measure_robustness(
    targets: Sequence[str | os.PathLike[str] | keras.Model],
    images: np.ndarray,
    labels: np.ndarray,
    attack: Attack,
    *,
    model: keras.Model | None = None,
    source: tuple[str, str] | None = None,
    progress: Progress = lambda images: None,
) -> list[Robustness]:
    """What an attack leaves of the accuracy of .tflite files and of Keras models.

    Files run in processes with limits.

    Args:
        targets: the files, and the models. PGD's images are made once for all of them.
        images: uint8 (n, height, width, 3) in 0..255.
        labels: the class of each, (n,).
        attack: how they are attacked.
        model: the one whose gradients PGD follows; by default the first model of `targets`. Square
            needs none.
        source: that model's name and the SHA-256 of its weights; by default its own name, and the
            sum of the weights in memory.
        progress: called with how many images more have been attacked.

    Returns:
        For each target, in their order.

    Raises:
        InputError: no such file; images, labels and a model or a file that do not fit; no gradient;
            a file that kills the interpreter; or what Square needs is not installed.
    """
    images, labels = _checked(images, labels)
    found = [each if isinstance(each, keras.Model) else existing([each])[0] for each in targets]
    models = [each for each in found if isinstance(each, keras.Model)]
    if model is None and models:
        model = models[0]
    if model is None and attack.method == "pgd":
        raise InputError(
            f"{found[0]} has no gradients, which PGD follows: give the Keras model that the file "
            "was made of, or attack by Square"
        )
    for each in found if attack.method == "square" else [*found, model]:
        _check_fit(each, images, labels)
    with contextlib.ExitStack() as stack:
        scores = [
            _model_scores(each)
            if isinstance(each, keras.Model)
            else stack.enter_context(accuracy.opened(each))
            for each in found
        ]
        if attack.method == "square":
            return [
                _left([one], images, labels, attack, make, _source(each), progress)[0]
                for each, one in zip(found, scores, strict=True)
                for make in [square(one, images, labels, attack)]
            ]
        make = _pgd(model, images, labels, attack)
        return _left(scores, images, labels, attack, make, source or _source(model), progress)


def _source(target: Path | keras.Model) -> tuple[str, str]:
    if isinstance(target, keras.Model):
        return target.name, weights_sha256(target)[0]
    return one_line(target.name) or "?", identity(target)[0]


def _left(
    targets: Sequence[Scores],
    images: np.ndarray,
    labels: np.ndarray,
    attack: Attack,
    make: _Make,
    source: tuple[str, str],
    progress: Progress,
) -> list[Robustness]:
    """What each target gets right of the images, and of what is made of them."""
    clean = [scores(images).argmax(axis=1) == labels for scores in targets]
    levels: list[list[RobustLevel]] = [[] for _ in targets]
    for eps in attack.eps:
        right = [hits.copy() for hits in clean]
        for restart in range(attack.restarts):
            attacked = make(eps, restart)
            assert attacked.dtype == np.uint8
            for hits, scores in zip(right, targets, strict=True):
                hits &= scores(attacked).argmax(axis=1) == labels
            progress(len(images))
        for hits, own in zip(right, levels, strict=True):
            own.append(RobustLevel(eps, attack.step_at(eps), float(hits.mean())))
    assert attack.iterations is not None
    return [
        Robustness(
            method=attack.method,
            norm=NORM,
            iterations=attack.iterations,
            start=attack.start,
            restarts=attack.restarts,
            seed=attack.seed,
            source=source[0],
            source_sha256=source[1],
            images=len(images),
            clean=float(hits.mean()),
            levels=tuple(own),
        )
        for hits, own in zip(clean, levels, strict=True)
    ]


# What comes in.


def _checked(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise InputError(
            "robustness: expected images as bytes, uint8 (n, height, width, 3), as a file takes "
            f"them, not {images.dtype} {images.shape}"
        )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"robustness: expected a class number for each of the {len(images)} images, not "
            f"{labels.shape} of {labels.dtype}"
        )
    return images, labels


def _check_fit(target: Path | keras.Model, images: np.ndarray, labels: np.ndarray) -> None:
    """Refuses images of another size than the target's, and classes that it does not know.

    Raises:
        InputError: it is so.
    """
    if isinstance(target, keras.Model):
        what, shape = target.name, target.input_shape[1:]
        classes = max(target.output_shape[-1], 2)  # one unit stands for two
    else:
        described = accuracy.describe(target)
        what, shape, classes = str(target), (*described.image_size, 3), described.classes
    if any(a not in (None, b) for a, b in zip(shape, images.shape[1:], strict=True)):
        wanted, given = ("x".join(map(str, sides)) for sides in (shape, images.shape[1:]))
        raise InputError(f"robustness: {what} takes images of {wanted}, and these are of {given}")
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(
            f"robustness: {what} tells {classes} classes apart, and there is an image of class "
            f"{wrong}, counted from 0"
        )


# What gives scores.


def _model_scores(model: keras.Model) -> Scores:
    """Logits: a softmax that is saturated would hide what an attack needs."""
    from kapps.explain._classifier import Classifier

    net = Classifier(model, "robustness")
    logits = net.compiled(net.class_logits)

    def scores(images: np.ndarray) -> np.ndarray:
        batches = net.batches(net.images(images))
        return np.concatenate([keras.ops.convert_to_numpy(logits(batch)) for (batch,) in batches])

    return scores


# What attacks.


def _pgd(model: keras.Model, images: np.ndarray, labels: np.ndarray, attack: Attack) -> _Make:
    from kapps.explain._attacked import Attacked
    from kapps.explain.attacks import GradientAttack

    pgd = GradientAttack(Attacked(model, "robustness"), NORM)
    iterations = attack.iterations
    assert iterations is not None

    def make(eps: int, restart: int) -> np.ndarray:
        step = attack.step_at(eps)
        assert step is not None
        start = attack.seed + restart if attack.random_start else None
        return pgd(images, labels, eps, step, iterations, start)

    return make
