"""The black-box attack Square (Andriushchenko et al. 2020), as ART has it."""

from __future__ import annotations

import collections
import contextlib
import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from kapps._lazy import imported
from kapps.tflite.accuracy import Scores
from kapps.tflite.robustness import Attack


def square(
    scores: Scores, images: np.ndarray, labels: np.ndarray, attack: Attack
) -> Callable[[int, int], np.ndarray]:
    """A function that makes attacked images, uint8, for a budget and the number of the restart.

    Args:
        scores: of what is attacked.
        images: uint8 (n, height, width, channels) in 0..255.
        labels: the class of each, (n,).
        attack: the settings.

    Raises:
        InputError: the toolbox is not installed.
    """
    attacks, classifiers = (
        imported(f"art.{part}", "Square", "attack")
        for part in ("attacks.evasion", "estimators.classification")
    )

    def make(eps: int, restart: int) -> np.ndarray:
        asked = _asked_once(scores)
        classifier = classifiers.BlackBoxClassifierNeuralNetwork(
            lambda batch: asked(np.rint(batch).astype(np.uint8)),  # whole already: eps are
            images.shape[1:],
            asked(images[:1]).shape[1],
            channels_first=False,
            clip_values=(0, 255),
        )
        square = attacks.SquareAttack(
            classifier, eps=eps, max_iter=attack.iterations, batch_size=len(images), verbose=False
        )
        with _seeded(attack.seed + restart):
            found = square.generate(images.astype(np.float32), labels)
        return np.rint(found).astype(np.uint8)

    return make


def _asked_once(scores: Scores) -> Scores:
    """Remembers what the last calls have answered: ART asks three times what it could ask once."""
    last: collections.deque[dict[bytes, np.ndarray]] = collections.deque(maxlen=3)

    def answer(images: np.ndarray) -> np.ndarray:
        keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
        known = {key: row for answers in last for key, row in answers.items()}
        new = [i for i, key in enumerate(keys) if key not in known]
        if new:
            found = scores(images[new])
            known.update((keys[i], row) for i, row in zip(new, found, strict=True))
        last.append({key: known[key] for key in keys})
        return np.stack([known[key] for key in keys])

    return answer


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """NumPy's own generator, which ART draws from, begins at the seed and is put back."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
