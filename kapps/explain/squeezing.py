"""Feature squeezing (Xu, Evans and Qi 2018): an attack shows where simpler images tell otherwise.

An image is squeezed to fewer gray levels, and by a median filter. A network that is not attacked
hardly minds; the small changes of an attack are lost with the details, and its answer changes. Who
knows of the detector can attack it as well (He et al. 2017, "Adversarial Example Defenses:
Ensembles of Weak Defenses are not Strong").
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from kapps._errors import InputError, check_whole, is_number
from kapps.explain._attacked import Attacked

_BITS, _MEDIAN = 5, 2  # the paper's for pictures in colour, where it adds non-local means


def feature_squeezing(
    model: keras.Model,
    images: Any,
    *,
    bits: int | None = _BITS,
    median: int | None = _MEDIAN,
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """How far the answer moves when an image is squeezed: the higher, the likelier an attack.

    Sections III and V of the paper. An image is flagged where its score is above the threshold that
    `squeezing_threshold` finds. For digits in black and white the paper has 1 bit.

    Args:
        model: a classifier.
        images: (N, height, width, channels), in the model's own range.
        bits: of a number once it is squeezed, 1 to 8; None for not by gray levels.
        median: side of the median filter's window, pixels; None for without.
        bounds: the lowest and the highest number of an image; None for those that the model tells.

    Returns:
        The largest L1 distance between the probabilities of an image and those of one squeezed:
        float32 (N,), 0 to 2.

    Raises:
        InputError: images or numbers that do not fit, or nothing to squeeze by.
    """
    return _scores(Attacked(model, "feature_squeezing", bounds), images, bits, median)


def squeezing_threshold(
    model: keras.Model,
    images: Any,
    *,
    rate: float = 0.05,
    bits: int | None = _BITS,
    median: int | None = _MEDIAN,
    bounds: tuple[float, float] | None = None,
) -> float:
    """The least threshold that flags no more than a share of images which nobody has attacked.

    Args:
        model: a classifier.
        images: clean ones, as of `feature_squeezing`; best none that the model was trained on,
            since of those it is surer.
        rate: the share of them that may score above the threshold, 0 to 1.
        bits, median, bounds: as of `feature_squeezing`.

    Returns:
        The threshold: one of the images' scores, 0 to 2.

    Raises:
        InputError: images or numbers that do not fit, or images too few to tell such a share.
    """
    net = Attacked(model, "squeezing_threshold", bounds)
    if not is_number(rate) or not 0 <= rate < 1:
        raise InputError(f"{net.caller}: rate must be at least 0 and below 1, not {rate!r}")
    scores = np.sort(_scores(net, images, bits, median))
    above = math.floor(rate * len(scores) + 1e-9)  # 0.29 * 100 is a little less than 29
    if rate and not above:
        raise InputError(
            f"{net.caller}: a share of {rate:g} is less than one of {len(scores)} images; give at "
            f"least {math.ceil(1 / rate)}"
        )
    return float(scores[-1 - above])


def _scores(net: Attacked, images: Any, bits: int | None, median: int | None) -> np.ndarray:
    pixels = net.images(images)
    squeezed = []
    if bits is not None:
        if check_whole(net.caller, "bits", bits, least=1) > 8:
            raise InputError(f"{net.caller}: bits must be 1 to 8, not {bits}")
        squeezed.append(_reduced(pixels, bits, net.low, net.high))
    if median is not None:
        side = min(pixels.shape[1:3])
        if not 2 <= check_whole(net.caller, "median", median) <= side:
            raise InputError(f"{net.caller}: median must be 2 to {side} pixels, not {median}")
        squeezed.append(_median(pixels, median))
    if not squeezed:
        raise InputError(f"{net.caller}: there is nothing to squeeze by; give bits or median")
    clean = net.probabilities(pixels)
    apart = [np.abs(net.probabilities(each) - clean).sum(-1) for each in squeezed]
    return np.max(apart, axis=0).astype("float32")


def _reduced(images: np.ndarray, bits: int, low: float, high: float) -> np.ndarray:
    """Rounded to the nearest of 2**bits equally distant numbers, low and high among them."""
    steps = (2**bits - 1) / (high - low)
    exact = np.round((images.astype("float64") - low) * steps) / steps + low
    return exact.astype(images.dtype)


def _median(images: np.ndarray, side: int) -> np.ndarray:
    """The median of each number's neighbours; of an even number of them the upper one.

    The window of an even side reaches further up and left, and the image is mirrored at its edges:
    as by scipy.ndimage.median_filter, which the paper has used.
    """
    before, after = side // 2, (side - 1) // 2
    margins = ((0, 0), (before, after), (before, after), (0, 0))
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(images, margins, mode="symmetric"), (side, side), axis=(1, 2)
    )
    middle = side * side // 2
    found = np.empty_like(images)
    for i, image in enumerate(windows):  # the windows of one are `side` squared times as large
        found[i] = np.partition(image.reshape(*image.shape[:3], -1), middle, axis=-1)[..., middle]
    return found
