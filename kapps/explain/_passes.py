"""What methods of many passes share: their parts of one size, and the image that shows nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError
from kapps.explain._classifier import BATCH, Classifier, as_array

_COMPILE_FROM = 4
"""Parts from which it pays to compile: on EfficientNet-Lite0 gradients take half the time then, and
compiling as long as two parts."""


class Passes:
    """All pairs of an image and a variant of it, such as a step, a mask or a draw of noise.

    They come in parts of one size, at most `BATCH`, so that the function is compiled once.
    """

    def __init__(self, images: int, variants: int) -> None:
        self._variants, self._total = variants, images * variants
        self._parts = -(-self._total // BATCH)
        self._size = -(-self._total // self._parts)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The numbers of images and variants of each part; the last pair fills up the last part."""
        for start in range(0, self._total, self._size):
            pairs = np.minimum(np.arange(start, start + self._size), self._total - 1)
            yield pairs // self._variants, pairs % self._variants

    def results(
        self,
        net: Classifier,
        function: Callable[..., Any],
        arguments: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]],
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Numbers of images, of variants, and what the function makes of their arguments."""
        # JAX compiles anyway, operation by operation, which takes three times as long.
        if self._parts >= _COMPILE_FROM or keras.backend.backend() == "jax":
            function = net.compiled(function)
        left = self._total
        for numbers, variants in self:
            given = map(ops.convert_to_tensor, arguments(numbers, variants))
            found = ops.convert_to_numpy(function(*given))
            count = min(left, self._size)
            left -= count
            yield numbers[:count], variants[:count], found[:count]


def baseline_of(net: Classifier, images: np.ndarray, given: Any) -> np.ndarray:
    """The images that show nothing, of the images' shape: as given, or black.

    Args:
        net: tells what black is: the lowest number of its range.
        images: (N, H, W, C).
        given: a number, one number a channel, an image, or one for each image; None for black.

    Raises:
        InputError: it is none, or the model does not tell its range.
    """
    if given is None:
        bounds = net.own_bounds
        if bounds is None:
            raise InputError(
                f"{net.caller}: nothing in {net.model.name} tells which number is black; give it, "
                "as in baseline=0"
            )
        given = bounds[0]
    return broadcast(net, images, given, "baseline")


def broadcast(net: Classifier, images: np.ndarray, given: Any, what: str) -> np.ndarray:
    """A number, or numbers, in the shape and dtype of the images.

    Raises:
        InputError: they do not fit.
    """
    array = as_array(given, f"{net.caller}: the numbers of {what}")
    fits = array.ndim <= 4 and all(
        a in (1, b) for a, b in zip(array.shape[::-1], images.shape[::-1], strict=False)
    )
    numbers = np.issubdtype(array.dtype, np.number) and not np.issubdtype(
        array.dtype, np.complexfloating
    )
    if not fits or not numbers or not np.isfinite(array).all():
        raise InputError(
            f"{net.caller}: {what} must be a number, one a channel, an image, or one for each of "
            f"the images {images.shape}, not {array.dtype} of {array.shape}"
        )
    return np.broadcast_to(array.astype(images.dtype), images.shape)


def warn_of_zeros(net: Classifier, maps: np.ndarray, classes: np.ndarray, why: str) -> None:
    """Warns of each image whose map would be a black picture; where, is the user's line."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_back.f_globals.get("__name__", "").startswith("kapps.explain"):
        frame, level = frame.f_back, level + 1
    for i in np.flatnonzero(~maps.any(axis=(1, 2))):
        warnings.warn(
            f"{net.caller}: the map of image {i} is zero everywhere for class {classes[i]}: {why}",
            stacklevel=level + 1,
        )
