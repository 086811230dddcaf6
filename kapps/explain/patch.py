"""A patch that makes any image one class, wherever it lies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, check_whole, is_number
from kapps.explain import _perturbation
from kapps.explain._attacked import Attacked
from kapps.explain._differentiation import value_and_gradients

_BATCH = 16  # images of an iteration
_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class AdversarialPatch:
    """A square that makes an image one class.

    Attributes:
        pixels: (size, size, channels), float32, in the unit of the model's images.
        target: the class.
        rate: of the images it was made of and that are not of that class, the share that it makes
            so at places, scales and rotations that are new.
    """

    pixels: np.ndarray
    target: int
    rate: float


def patch(
    model: keras.Model,
    images: Any,
    target: int,
    *,
    size: int,
    iterations: int,
    step: float = 8.0,
    scales: tuple[float, float] = (1.0, 1.0),
    rotation: float = 0.0,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> AdversarialPatch:
    """An adversarial patch (Brown et al. 2017): the mean over places, scales and rotations.

    Args:
        model: a classifier.
        images: (N, height, width, channels), in the model's own range: what it may lie on.
        target: the class that it is to show.
        size: of the square's sides, pixels.
        iterations: batches, each at new places; the patch begins in the middle of the range.
        step: rate of Adam, in gray levels of 0..255.
        scales: the least and the largest by which it is drawn.
        rotation: the largest, to either side, degrees.
        seed: of all that is drawn.
        bounds: the lowest and the highest number of an image; None for those that the model tells.

    Raises:
        InputError: images, target or numbers that do not fit, or a gradient that is zero.
    """
    net = Attacked(model, "patch", bounds)
    pixels = net.images(images)
    (wanted,) = net.labels(target, 1, "target")
    check_whole(net.caller, "iterations", iterations)
    check_whole(net.caller, "seed", seed, least=0)
    rate = net.check_budget("step", step, pixels)
    places = _Places(net.caller, pixels.shape, size, scales, rotation)
    count = min(len(pixels), _BATCH)
    classes = ops.convert_to_tensor(np.full(count, wanted, "int32"))

    def move(
        square: Any, first: Any, second: Any, number: Any, originals: Any, where: Any, weights: Any
    ) -> tuple[Any, Any, Any]:
        def objective(inputs: list[Any]) -> tuple[Any, Any]:
            shown = _drawn(originals, inputs[0], where, weights)
            losses, logits = net.losses(shown, classes)
            return ops.mean(losses), logits

        _, logits, (gradient,) = value_and_gradients(objective, [square])
        change, first, second = _perturbation.adam(gradient, first, second, number)
        moved = ops.clip(square + rate * change, net.low, net.high)
        return (moved, first, second), gradient, logits

    again, random = net.compiled(move), np.random.default_rng(seed)
    square = ops.full((size, size, pixels.shape[-1]), (net.low + net.high) / 2, pixels.dtype)
    state = (square, ops.zeros_like(square), ops.zeros_like(square))
    for i in range(iterations):
        chosen = pixels[random.choice(len(pixels), count, replace=False)]
        tensors = map(
            ops.convert_to_tensor, (np.float32(i + 1), chosen, *places.draw(count, random))
        )
        state, gradient, logits = again(*state, *tensors)
        if i == 0:
            net.check_start(ops.broadcast_to(gradient, (count, *gradient.shape)), logits)
    found = ops.convert_to_numpy(state[0]).astype("float32")
    others = pixels[net.predict(pixels).argmax(-1) != wanted]
    share = 0.0
    if len(others):
        tensors = map(ops.convert_to_tensor, (others, found, *places.draw(len(others), random)))
        attacked = ops.convert_to_numpy(_drawn(*tensors))
        share = float((net.predict(attacked).argmax(-1) == wanted).mean())
    return AdversarialPatch(found, int(wanted), share)


def apply_patch(
    images: np.ndarray,
    patch: np.ndarray | AdversarialPatch,
    *,
    places: Sequence[tuple[int, int]] | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    rotation: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """The images with the patch on them, in their dtype.

    Args:
        images: (N, height, width, channels).
        patch: of `patch`, or its pixels, in the unit of the images.
        places: the row and column of its upper left corner in each image; None for random ones.
        scales: the least and the largest by which it is drawn; random between them.
        rotation: the largest, to either side, degrees; random up to it.
        seed: of all that is random.

    Raises:
        InputError: it does not fit the images.
    """
    square = np.asarray(patch.pixels if isinstance(patch, AdversarialPatch) else patch)
    images = np.asarray(images)
    if images.ndim != 4 or square.ndim != 3 or square.shape[-1] != images.shape[-1]:
        raise InputError(
            f"apply_patch: a patch (size, size, channels) goes on images (N, height, width, "
            f"channels), not {square.shape} on {images.shape}"
        )
    drawer = _Places("apply_patch", images.shape, len(square), scales, rotation)
    where, weights = drawer.draw(len(images), np.random.default_rng(seed), places)
    values = (images.astype("float32"), square.astype("float32"), where, weights)
    drawn = ops.convert_to_numpy(_drawn(*map(ops.convert_to_tensor, values)))
    return (np.rint(drawn) if np.issubdtype(images.dtype, np.integer) else drawn).astype(
        images.dtype
    )


class _Places:
    """Where a patch comes to lie, as numbers of its pixels for each pixel of an image."""

    def __init__(
        self,
        caller: str,
        shape: Sequence[int],
        size: int,
        scales: tuple[float, float],
        rotation: float,
    ) -> None:
        self._height, self._width = shape[1:3]
        self._caller, self._size = caller, check_whole(caller, "size", size)
        if len(scales) != 2 or not all(map(is_number, scales)) or not 0 < scales[0] <= scales[1]:
            raise InputError(f"{caller}: scales must be two numbers above 0, not {scales!r}")
        if not is_number(rotation) or not 0 <= rotation <= 180:
            raise InputError(f"{caller}: rotation must be 0 to 180 degrees, not {rotation!r}")
        self._scales, self._rotation = scales, math.radians(rotation)
        if size * scales[1] > min(self._height, self._width):
            raise InputError(
                f"{caller}: a patch of {size} pixels, {scales[1]:g} times as large, is larger than "
                f"the images, {self._height}x{self._width}"
            )

    def draw(
        self,
        count: int,
        random: np.random.Generator,
        places: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each pixel the four of the patch around it, and their weights: 0 where it is not.

        Returns:
            Two arrays (count, height, width, 4), int32 and float32.
        """
        scale = random.uniform(*self._scales, count)
        angle = random.uniform(-self._rotation, self._rotation, count)
        sides = scale * self._size
        top, left = (
            random.integers(0, np.floor(side - sides) + 1) for side in (self._height, self._width)
        )
        if places is not None:
            given = np.asarray(places)
            if given.shape != (count, 2):
                raise InputError(
                    f"{self._caller}: places must be a row and a column for each of the {count} "
                    f"images, not {given.shape}"
                )
            top, left = given.T
        rows = np.arange(self._height)[None, :, None] - (top + (sides - 1) / 2)[:, None, None]
        columns = np.arange(self._width)[None, None, :] - (left + (sides - 1) / 2)[:, None, None]
        cos, sin = (f(angle)[:, None, None] / scale[:, None, None] for f in (np.cos, np.sin))
        middle = (self._size - 1) / 2
        return self._around(
            cos * rows + sin * columns + middle, cos * columns - sin * rows + middle
        )

    def _around(self, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        last = self._size - 1
        inside = (np.abs(y - last / 2) < self._size / 2) & (np.abs(x - last / 2) < self._size / 2)
        y, x = np.clip(y, 0, last), np.clip(x, 0, last)
        above, before = np.floor(y), np.floor(x)
        indices, weights = [], []
        for down, right in _CORNERS:
            row, column = np.minimum(above + down, last), np.minimum(before + right, last)
            indices.append(row * self._size + column)
            weights.append(
                inside * np.abs(1 - down - (y - above)) * np.abs(1 - right - (x - before))
            )
        return np.stack(indices, -1).astype("int32"), np.stack(weights, -1).astype("float32")


def _drawn(images: Any, square: Any, where: Any, weights: Any) -> Any:
    """The images with the square over them, by bilinear interpolation; tensors in and out."""
    colours = ops.reshape(square, (-1, square.shape[-1]))
    drawn = ops.zeros_like(images)
    for corner in range(len(_CORNERS)):
        drawn += ops.take(colours, where[..., corner], axis=0) * weights[..., corner : corner + 1]
    return images * (1 - ops.sum(weights, axis=-1, keepdims=True)) + drawn
