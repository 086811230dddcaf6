"""Scores of a map: whether the class lives off the pixels that it names, and where it points."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, check_whole, is_number, unknown
from kapps.explain._classifier import BATCH, Classifier, as_array
from kapps.explain._differentiation import without_gradients
from kapps.explain._resize import of_maps

BLUR_SIZE, BLUR_SIGMA = 11, 5.0  # in pixels, those of the paper's code

_BASELINES = ("mean", "black", "blur")


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """How the probability of each image's class changes with its pixels.

    Attributes:
        area: (N,), under the curves, 0..1.
        curves: (N, steps + 1), the probability of the class, 0..1.
        fractions: (steps + 1,), of the pixels that are removed or inserted, from 0 to 1.
    """

    area: np.ndarray
    curves: np.ndarray
    fractions: np.ndarray


def deletion(
    model: keras.Model,
    images: Any,
    maps: Any,
    classes: Any = None,
    steps: int = 28,
    baseline: Any = "mean",
    seed: int = 0,
) -> Curves:
    """Deletion (Petsiuk et al. 2018): the pixels are removed, those of the largest values first.

    The smaller the area, the better the map names what the class needs.

    Args:
        model: any functional or sequential classifier; the probability is the softmax of its
            logits.
        images: (N, height, width, channels), in the model's own range.
        maps: (N, h, w); of another size than the images they are resized bilinearly.
        classes: (N,), or one for all; the predicted ones for None.
        steps: equal ones, of one forward pass an image. The paper's code removes 224 pixels of an
            image of 224x224 at a step; 28 steps are eight times as many.
        baseline: what is seen in place of a pixel: "mean", the mean color of the image; "black",
            the lowest number of the model's range; "blur", the image blurred as for `insertion`;
            or an array that broadcasts to the images, as one color of (channels,). The paper's is
            the mean color of the data set.
        seed: of the order among equal values, which is random: a map gains nothing by where they
            lie, and a constant one is a random one.

    Raises:
        InputError: the model, images, maps, classes, steps, baseline or seed do not fit.
    """
    return _curves("deletion", model, images, maps, classes, steps, baseline, seed)


def insertion(
    model: keras.Model,
    images: Any,
    maps: Any,
    classes: Any = None,
    steps: int = 28,
    baseline: Any = "blur",
    seed: int = 0,
) -> Curves:
    """Insertion (Petsiuk et al. 2018): the image appears, the pixels of the largest values first.

    The larger the area, the better the map names what suffices for the class. The arguments are
    those of `deletion`; the start is the image blurred, as in the paper, so that the pixels that
    come first bring no sharp edges of their own: by a Gaussian of `BLUR_SIZE` pixels and a standard
    deviation of `BLUR_SIGMA`, the image's border repeated outwards.
    """
    return _curves("insertion", model, images, maps, classes, steps, baseline, seed)


def _curves(
    caller: str,
    model: keras.Model,
    images: Any,
    maps: Any,
    classes: Any,
    steps: int,
    baseline: Any,
    seed: int,
) -> Curves:
    net = Classifier(model, caller)
    images = net.images(images)
    size, pixels = images.shape[1:3], images.shape[1] * images.shape[2]
    if check_whole(caller, "steps", steps) > pixels:
        raise InputError(f"{caller}: steps is {steps}, and an image has {pixels} pixels")
    seed = check_whole(caller, "seed", seed, least=0)
    maps = _resized(_maps(caller, maps, len(images)), size)
    others = _baseline(net, images, baseline)
    chosen = net.classes_of(images, classes)
    start, end = (images, others) if caller == "deletion" else (others, images)
    fractions = np.linspace(0, 1, steps + 1)
    logits_of = net.compiled(net.class_logits)

    def probabilities(pictures: np.ndarray) -> np.ndarray:
        logits = without_gradients(lambda: logits_of(ops.convert_to_tensor(pictures)))
        return ops.convert_to_numpy(ops.softmax(ops.cast(logits, "float32")))

    curves = np.empty((len(images), steps + 1), "float32")
    for i, order in enumerate(_places(found, [seed, i]) for i, found in enumerate(maps)):
        for first in range(0, steps + 1, BATCH):
            part = slice(first, first + BATCH)
            changed = order < np.rint(fractions[part] * pixels)[:, None, None]
            pictures = np.where(changed[..., None], end[i], start[i])
            curves[i, part] = probabilities(pictures)[:, chosen[i]]
    return Curves((curves[:, 1:] + curves[:, :-1]).mean(axis=1) / 2, curves, fractions)


def _maps(caller: str, maps: Any, count: int | None = None) -> np.ndarray:
    array = as_array(maps, f"{caller}: maps")
    if array.ndim != 3 or not array.size or count not in (None, len(array)):
        wanted = "one for each image" if count is None else f"one for each of the {count} images"
        raise InputError(f"{caller}: maps must be (N, h, w), {wanted}, not {array.shape}")
    if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        raise InputError(f"{caller}: maps must be finite real numbers")
    return array.astype("float64" if array.dtype == "float64" else "float32")


def _resized(maps: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The order of their values at this size: another unit for maps of another size."""
    height, width = size
    if maps.shape[1:] == (height, width):
        return maps
    values = of_maps(maps, (height, width))
    # What was equal differs by rounding now, and would have an order.
    unit = 1e-5 * np.abs(values).max(axis=(1, 2), keepdims=True)
    return np.rint(values / np.where(unit > 0, unit, 1))


def _places(values: np.ndarray, seed: list[int]) -> np.ndarray:
    """The place of each pixel in the order, 0 for the largest value; equal ones by lot."""
    lots = np.random.default_rng(seed).permutation(values.size)
    places = np.empty(values.size, "int64")
    places[np.lexsort((lots, -values.ravel()))] = np.arange(values.size)
    return places.reshape(values.shape)


def _baseline(net: Classifier, images: np.ndarray, baseline: Any) -> np.ndarray:
    if isinstance(baseline, str):
        if baseline not in _BASELINES:
            raise unknown(f"baseline of {net.caller}", baseline, _BASELINES)
        if baseline == "blur":
            return blurred(images)
        if baseline == "mean":
            return np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape)
        return np.full_like(images, net.bounds(None)[0])
    array = as_array(baseline, f"{net.caller}: the numbers of baseline")
    try:
        found = np.broadcast_to(array, images.shape).astype(images.dtype)
    except ValueError:
        found = None
    if found is None or not np.isfinite(found).all():
        raise InputError(
            f"{net.caller}: baseline must be one of {', '.join(_BASELINES)}, or finite numbers "
            f"that broadcast to the images {images.shape}, not {array.shape} of {array.dtype}"
        )
    return found


def blurred(images: np.ndarray) -> np.ndarray:
    """The images (N, height, width, channels) under the Gaussian that `insertion` starts from."""
    radius = BLUR_SIZE // 2
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / BLUR_SIGMA) ** 2)
    kernel = (kernel / kernel.sum()).astype(images.dtype)
    for axis in (1, 2):
        margins = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
        padded = np.pad(images, margins, mode="edge")
        shifted = np.lib.stride_tricks.sliding_window_view(padded, BLUR_SIZE, axis=axis)
        images = shifted @ kernel
    return images


def pointing_game(
    maps: Any,
    objects: Any,
    size: tuple[int, int] | None = None,
    tolerance: float = 15,
) -> float:
    """Pointing game (Zhang et al. 2016): the share of maps whose largest value is on the object.

    Where several places of a map share its largest value, they count by their share of hits, so
    that a constant map has the chance of a random guess.

    Args:
        maps: (N, h, w); of another size than the images they are resized bilinearly.
        objects: masks (N, height, width) of bool; or for each image a list of boxes
            (top, left, bottom, right) in pixels of the image, bottom and right exclusive.
        size: (height, width) of the images; that of the masks, or of the maps, for None.
        tolerance: pixels that a hit may lie beside the object; 15 as published, for images whose
            sides are some hundreds of pixels.

    Raises:
        InputError: maps, masks or boxes do not fit, or an image has no object.
    """
    caller = "pointing_game"
    maps = _maps(caller, maps)
    if not is_number(tolerance) or tolerance < 0:
        raise InputError(f"{caller}: tolerance must be pixels, 0 or more, not {tolerance!r}")
    masks = _masks(caller, objects, len(maps), size or maps.shape[1:])
    maps = _resized(maps, masks.shape[1:])
    hits = [
        _within(mask, float(tolerance))[found == found.max()].mean()
        for found, mask in zip(maps, masks, strict=True)
    ]
    return float(np.mean(hits))


def _masks(caller: str, objects: Any, count: int, size: Sequence[int]) -> np.ndarray:
    if ops.is_tensor(objects):
        objects = ops.convert_to_numpy(objects)
    if not isinstance(objects, (np.ndarray, list, tuple)):
        raise InputError(
            f"{caller}: objects must be masks (N, height, width) of bool or lists of boxes, not "
            f"{objects!r}"
        )
    if len(objects) != count:
        raise InputError(f"{caller}: there are {count} maps, and objects of {len(objects)} images")
    if isinstance(objects, np.ndarray) and objects.dtype == bool:
        masks = objects
        if masks.ndim != 3:
            raise InputError(f"{caller}: masks must be (N, height, width), not {masks.shape}")
    else:
        masks = np.zeros((count, *size), bool)
        for i, boxes in enumerate(objects):
            for top, left, bottom, right in _boxes(caller, boxes, i, size):
                masks[i, int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if empty.size:
        raise InputError(f"{caller}: image {empty[0]} has no object; leave it and its map out")
    return masks


def _boxes(caller: str, boxes: Any, image: int, size: Sequence[int]) -> np.ndarray:
    try:
        found = np.asarray(boxes, "float64").reshape(-1, 4)
    except (TypeError, ValueError):
        found = np.full((1, 4), np.nan)
    for box in found:
        top, left, bottom, right = box
        if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
            raise InputError(
                f"{caller}: a box of image {image} is {box.tolist()}; boxes are (top, left, "
                f"bottom, right) within an image of {size[0]}x{size[1]} pixels; `size` tells the "
                "image's where the maps are of another"
            )
    return found


def _within(mask: np.ndarray, tolerance: float) -> np.ndarray:
    """The pixels whose distance from the mask is at most the tolerance."""
    found = np.zeros_like(mask)
    height, width = mask.shape
    reach = min(int(tolerance), height - 1)
    sums = np.pad(mask.cumsum(axis=1), ((0, 0), (1, 0)))
    columns = np.arange(width)
    for down in range(-reach, reach + 1):
        beside = int(np.sqrt(tolerance**2 - down**2))
        right, left = np.minimum(columns + beside + 1, width), np.maximum(columns - beside, 0)
        row = sums[:, right] > sums[:, left]
        here, there = max(0, down), max(0, -down)
        found[here : height - there] |= row[there : height - here]
    return found
