"""Occlusion: how much of a class's logit is lost where a window hides the image."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, check_whole
from kapps.explain._classifier import Classifier
from kapps.explain._passes import Passes, broadcast, warn_of_zeros


def occlusion(
    model: keras.Model,
    images: Any,
    classes: Any = None,
    size: int | None = None,
    stride: int | None = None,
    value: Any = None,
) -> np.ndarray:
    """Occlusion maps (Zeiler & Fergus 2014, section 4.2): no gradient, one forward pass a window.

    Args:
        model: a functional or sequential classifier, flat or nested.
        images: (N, H, W, C), in the model's own range.
        classes: (N,), or one for all; None for the predicted ones.
        size: of the square window, pixels; None for a seventh of the shorter side.
        stride: pixels from one window to the next, at most `size`; None for half of it. The last
            one of a row or column ends with the image.
        value: what the window shows, in the images' range: a number, one a channel, an image, or
            one for each image; None for each image's mean colour.

    Returns:
        (N, H, W), float32: the logit of the image less that with a window, the mean over the
        windows that hide the pixel; negative where hiding it helps the class.

    Raises:
        InputError: the window is larger than the image, or leaves pixels out; images or classes are
            none that the model takes.
    """
    net = Classifier(model, "occlusion")
    images = net.images(images)
    size, stride = _window(images.shape[1:3], size, stride)
    mean = images.mean(axis=(1, 2), keepdims=True)
    hidden = broadcast(net, images, mean if value is None else value, "value")
    chosen = net.classes_of(images, classes)
    windows = [
        (slice(y, y + size), slice(x, x + size))
        for y in _starts(images.shape[1], size, stride)
        for x in _starts(images.shape[2], size, stride)
    ]

    def arguments(numbers: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, ...]:
        seen = images[numbers]
        for image, i, place in zip(seen, numbers, places, strict=True):
            image[windows[place]] = hidden[i][windows[place]]
        return seen, chosen[numbers]

    def score(seen: Any, wanted: Any) -> Any:
        return net.scores(net.maps_of(seen, [net.logits])[0], wanted)

    parts = [score(*batch) for batch in net.batches(images, chosen)]
    whole = np.concatenate([ops.convert_to_numpy(part) for part in parts])
    total, count = np.zeros(images.shape[:3]), np.zeros(images.shape[:3])
    for numbers, places, scores in Passes(len(images), len(windows)).results(net, score, arguments):
        for i, place, found in zip(numbers, places, scores, strict=True):
            total[i][windows[place]] += whole[i] - found
            count[i][windows[place]] += 1
    maps = (total / count).astype("float32")
    warn_of_zeros(net, maps, chosen, "no window changes it; take a larger one, or another value")
    return maps


def _window(sides: tuple[int, int], size: int | None, stride: int | None) -> tuple[int, int]:
    shorter = min(sides)
    size = max(1, shorter // 7) if size is None else check_whole("occlusion", "size", size)
    if size > shorter:
        raise InputError(
            f"occlusion: a window of size {size} does not fit into images of "
            f"{sides[0]}x{sides[1]} pixels; take one of at most {shorter}"
        )
    stride = max(1, size // 2) if stride is None else check_whole("occlusion", "stride", stride)
    if stride > size:
        raise InputError(
            f"occlusion: windows of size {size} leave pixels out at stride {stride}; take a stride "
            "of at most the size"
        )
    return size, stride


def _starts(side: int, size: int, stride: int) -> list[int]:
    """Of the windows along a side; the last ends with it."""
    return sorted({*range(0, side - size + 1, stride), side - size})
