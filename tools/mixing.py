"""Images mixed with their neighbours in the batch: mixup, CutMix, manifold mixup.

One `Mix` is drawn on the host for a whole batch, and travels into the compiled step as a vector:
the step is compiled once, whatever is drawn. The partner of an image is its neighbour, 2k of 2k + 1
and 2k + 1 of 2k: any number of workers that share a batch in even parts makes the same pairs. A
batch, or a worker's part of it, must be even; who sets up the training checks it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops


@dataclass(frozen=True)
class Mix:
    """How an image and its partner become one.

    With an empty box all pixels are mixed, `share` of the image with 1 - share of the partner. Else
    the pixels in rows top to bottom - 1 and columns left to right - 1 are the partner's, and all
    others the image's. The defaults change nothing.
    """

    share: float = 1.0
    """The image's own weight in the label, 0 to 1; the rest is the partner's."""
    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0
    place: int = 0
    """Where in the network it happens: 0 at its input, else at the end of that stage, from 1."""

    def vector(self) -> np.ndarray:
        """What `apply` and `share_at` take, float32 (7,).

        The share of pixels, the share of the label, the box, and the place.
        """
        boxed = self.bottom > self.top and self.right > self.left
        of_pixels = 1.0 if boxed or self.place else self.share
        box = [self.top, self.left, self.bottom, self.right]
        return np.array([of_pixels, self.share, *box, self.place], np.float32)


def draw(
    random: np.random.Generator,
    size: tuple[int, int],
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
    switch: float = 0.5,
) -> Mix:
    """A mix for one batch.

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", and Yun et al. 2019, "CutMix",
    algorithm 1, with one draw for the batch.

    Args:
        size: Height and width of the images.
        mixup: The share is Beta(mixup, mixup); 0: no mixup.
        cutmix: The share, before the box is cut to the image, is Beta(cutmix, cutmix); 0: no
            CutMix.
        probability: That of a batch to be mixed at all.
        switch: The probability of CutMix where both are wanted.
    """
    if max(mixup, cutmix) <= 0 or random.random() >= probability:
        return Mix()
    if mixup > 0 and (cutmix <= 0 or random.random() >= switch):
        return Mix(random.beta(mixup, mixup))
    return _cutmix(random, size, random.beta(cutmix, cutmix))


def draw_manifold(
    random: np.random.Generator, alpha: float, places: int, probability: float = 1.0
) -> Mix:
    """A mix for one batch, at one of some places in the network.

    Verma et al. 2019, "Manifold Mixup", section 3, with one draw for the batch.

    Args:
        alpha: The share is Beta(alpha, alpha).
        places: All are as probable; the first one is the input.
        probability: That of a batch to be mixed at all.
    """
    if random.random() >= probability:
        return Mix()
    place = int(random.integers(places))
    return Mix(random.beta(alpha, alpha), place=place)


def _cutmix(random: np.random.Generator, size: tuple[int, int], share: float) -> Mix:
    """A box of 1 - share of the image's area and of its aspect, cut to the image."""
    edges = []
    for side in size:
        center, half = random.uniform(0, side), side * math.sqrt(1 - share) / 2
        edges.append((round(max(center - half, 0)), round(min(center + half, side))))
    (top, bottom), (left, right) = edges
    outside = 1 - (bottom - top) * (right - left) / (size[0] * size[1])
    return Mix(outside, top, left, bottom, right)


def apply(images: Any, targets: Any, vector: Any) -> tuple[Any, Any]:
    """Mixes the images of a batch, and their targets.

    Args:
        images: Floating point, (n, height, width, channels), n even.
        targets: Floating point, (n, classes).
        vector: `Mix.vector()`, as an array or a tensor.

    Returns:
        Both, of the same shapes and types.
    """
    vector = ops.convert_to_tensor(vector, "float32")
    of_pixels, of_label, top, left, bottom, right = (vector[i] for i in range(6))
    height, width = ops.shape(images)[1:3]
    rows = ops.reshape(ops.arange(height, dtype="float32"), (-1, 1, 1))
    columns = ops.reshape(ops.arange(width, dtype="float32"), (1, -1, 1))
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    mixed = ops.where(inside, _neighbours(images), mix_features(images, of_pixels))
    return mixed, mix_features(targets, of_label)


def mix_features(x: Any, share: Any) -> Any:
    """`share` of each row of a batch, with 1 - share of its neighbour.

    Args:
        x: Floating point, (n, ...), n even.
        share: A scalar, 0 to 1.
    """
    share = ops.cast(share, x.dtype)
    return share * x + (1 - share) * _neighbours(x)


def share_at(vector: Any, place: int) -> Any:
    """The image's own weight, 0 to 1, at a place of the network; 1 if another one is mixed.

    Args:
        vector: `Mix.vector()`, as an array or a tensor.
        place: from 1.
    """
    vector = ops.convert_to_tensor(vector, "float32")
    return ops.where(ops.equal(vector[6], place), vector[1], 1.0)


def _neighbours(x: Any) -> Any:
    """Row 2k in the place of row 2k + 1, and the other way round."""
    shape = ops.shape(x)
    pairs = ops.reshape(x, (-1, 2, *shape[1:]))
    return ops.reshape(ops.flip(pairs, axis=1), shape)
