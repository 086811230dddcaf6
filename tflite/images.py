"""Are these the images that the model expects? Shape and range, and what its statistics say."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from kapps._errors import InputError

_BATCH = 8  # images at a time, for the memory of the first feature maps
_LEAST, _MOST = 16, 128  # images that are looked at: fewer say too little, more change nothing
_LAYERS = 4  # batch norms that are looked at

# Images are refused when undoing a mistake makes the statistics of the first feature maps match
# what training saw, and as they are they do not: the distance, mean Kullback-Leibler divergence,
# falls from above `_FAR` to below `_NEAR`, and at least `_TIMES` times. What was measured is in
# tests/test_tflite_conversion.py, beside its test.
_FAR, _NEAR, _TIMES = 0.015, 0.05, 4.0


def check_images(images: np.ndarray, what: str, shape: tuple[int, int, int]) -> np.ndarray:
    """The images as they came, if they can be real pixels of the model's input size.

    Args:
        images: what the user gave.
        what: what it is called in errors, such as "calibration".
        shape: (height, width, channels) that the model takes.

    Raises:
        InputError: shape, type or range are not those of images in 0..255.
    """
    images = np.asarray(images)
    height, width, channels = shape
    expected = f"expected shape (n, {height}, {width}, {channels}), uint8 or float in 0..255"
    if images.ndim == 4 and images.shape[1:] == (channels, height, width) != shape:
        raise InputError(
            f"{what} images have shape {images.shape}, channels first; {expected}: pass "
            "images.transpose(0, 2, 3, 1)"
        )
    if images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(f"{what} images have shape {images.shape}; {expected}")
    if not len(images):
        raise InputError(f"no {what} images; {expected}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"{what} images are {images.dtype}; {expected}")
    low, high = float(images.min()), float(images.max())
    given = f"{what} images go from {low:g} to {high:g}"
    if -16 <= low < 0 and high <= 16:
        raise InputError(
            f"{given}, as if normalized already; {expected}: the model normalizes them itself"
        )
    if high > 255 and low >= 0 and high <= 255 * 255:
        raise InputError(f"{given}, as if scaled twice; {expected}")
    if not 0 <= low <= high <= 255:  # nan too is refused
        raise InputError(f"{given}; {expected}")
    if high <= 1:
        raise InputError(
            f"{given}, as if normalized already; {expected}: the model normalizes them itself"
        )
    return images


def check_pixels(model: keras.Model, images: np.ndarray, what: str) -> None:
    """Compares the images with those that the model was trained on, as far as it remembers.

    Batch norm holds mean and variance of each channel of its input over the training images. Where
    the images at hand miss them, and would meet them with their channels reversed, inverted, or
    scaled to 0..255, that is what is wrong with them. A model within the model is asked if it takes
    the images as they are. A model without trained batch norm tells nothing, nor do fewer than 16
    images, nor images whose reversed ones look like the training images too, such as gray ones.

    Raises:
        InputError: such a mistake was found; the message says how to undo it.
    """
    norms = _first_norms(model) if len(images) >= _LEAST else []
    if not norms:
        for layer in model.layers:
            if isinstance(layer, keras.Model) and any(
                node.input_tensors[0] is model.inputs[0] for node in layer._inbound_nodes
            ):
                check_pixels(layer, images, what)
        return
    start = keras.Model(model.inputs[0], [norm.input for norm in norms])
    chosen = images[np.linspace(0, len(images) - 1, min(len(images), _MOST)).astype(int)]
    chosen = chosen.astype("float32")
    distance = _distance(start, norms, chosen)
    if not distance > _FAR:
        return
    for undo, mistake, remedy in _mistakes(chosen):
        undone = _distance(start, norms, undo(chosen))
        if undone < _NEAR and undone * _TIMES < distance:
            raise InputError(
                f"{what} images are not such as model {model.name!r} was trained on, but would be "
                f"if they were not {mistake}: {remedy} (distance of the statistics of the first "
                f"feature maps from those of training: {distance:.2g} as they are, {undone:.2g} so)"
            )


Mistake = tuple[Callable[[np.ndarray], np.ndarray], str, str]
"""What undoes it, what it is, and what the user has to do."""


def _mistakes(images: np.ndarray) -> list[Mistake]:
    high = float(images.max())
    found: list[Mistake] = []
    if images.shape[-1] == 3:
        remedy = "the model takes RGB, so pass images[..., ::-1]"
        found.append((lambda x: x[..., ::-1], "in the channel order BGR", remedy))
    if high <= 64:  # brighter ones may be just dark
        remedy = f"multiply them by 255 / {high:g}"
        found.append((lambda x: x * (255 / high), f"scaled to 0..{high:g}", remedy))
    found.append((lambda x: 255 - x, "inverted", "pass 255 - images"))
    return found


def _first_norms(model: keras.Model) -> list[layers.BatchNormalization]:
    """The first batch norms whose statistics training has moved."""
    found = []
    for layer in model.layers:
        if not isinstance(layer, layers.BatchNormalization) or len(layer._inbound_nodes) != 1:
            continue
        mean, variance = (
            keras.ops.convert_to_numpy(v) for v in (layer.moving_mean, layer.moving_variance)
        )
        if (mean != 0).any() and (variance != 1).any():
            found.append(layer)
    return found[:_LAYERS]


def _distance(
    start: keras.Model, norms: list[layers.BatchNormalization], images: np.ndarray
) -> float:
    """From what batch norm remembers: the Kullback-Leibler divergence of normal distributions.

    It is the mean over layers and channels; of a channel at most 10, since one that is nearly
    constant would drown all others.
    """
    sums = [np.zeros((2, norm.moving_mean.shape[0])) for norm in norms]
    counts = [0] * len(norms)
    for first in range(0, len(images), _BATCH):
        outputs = keras.tree.flatten(start(images[first : first + _BATCH], training=False))
        for index, output in enumerate(outputs):
            values = keras.ops.convert_to_numpy(output).astype(float)
            values = values.reshape(-1, values.shape[-1])
            sums[index] += values.sum(axis=0), (values**2).sum(axis=0)
            counts[index] += len(values)
    divergences = []
    for norm, (total, squares), count in zip(norms, sums, counts, strict=True):
        mean, variance = (
            keras.ops.convert_to_numpy(v).astype(float)
            for v in (norm.moving_mean, norm.moving_variance)
        )
        variance += norm.epsilon
        own_mean = total / count
        own_variance = np.maximum(squares / count - own_mean**2, 0) + norm.epsilon
        ratio = own_variance / variance
        divergence = 0.5 * (ratio + (own_mean - mean) ** 2 / variance - 1 - np.log(ratio))
        divergences.append(np.minimum(divergence, 10).mean())
    return float(np.mean(divergences))
