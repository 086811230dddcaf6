"""Are these the images that the model expects? Shape and range, and what its statistics say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps._errors import InputError
from kapps.custom_layers import ImageNormalization
from kapps.tflite.inference import batches

_LEAST, _MOST = 16, 128  # images that are looked at: fewer say too little, more change nothing
_LAYERS = 4  # batch norms that are looked at
_IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # mean and std, of 0..255

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
    normalized = (
        f"{given}, as if normalized already; {expected}: the file normalizes them itself (if the "
        "model does not, say by mean and std what it was trained on, for x / 255 std=255)"
    )
    if -16 <= low < 0 and high <= 16:
        raise InputError(normalized)
    if high > 255 and low >= 0 and high <= 255 * 255:
        raise InputError(f"{given}, as if scaled twice; {expected}")
    if not 0 <= low <= high <= 255:  # nan too is refused
        raise InputError(f"{given}; {expected}")
    if high <= 1:
        raise InputError(normalized)
    return images


def check_pixels(
    model: keras.Model, images: np.ndarray, what: str, *, normalized: bool = False
) -> None:
    """Compares the images with those that the model was trained on, as far as it remembers.

    Batch norm holds mean and variance of each channel of its input over the training images. Where
    the images at hand miss them, and would meet them with their channels reversed, inverted, or
    scaled to 0..255, that is what is wrong with them; and where they would meet them scaled or
    normalized, the model was trained on images that were so outside of it. A model within the model
    is asked if it takes the images as they are. A model without trained batch norm tells nothing,
    nor do fewer than 16 images, nor images whose reversed ones look like the training images too,
    such as gray ones.

    Args:
        model: the model.
        images: as `check_images` returns them.
        what: what they are called in errors, such as "calibration".
        normalized: whether the user has said how the model's images are normalized.

    Raises:
        InputError: such a mistake was found; the message says how to undo it.
    """
    norms = _first_norms(model) if len(images) >= _LEAST else []
    if not norms:
        for layer in model.layers:
            if isinstance(layer, keras.Model) and any(
                node.input_tensors[0] is model.inputs[0] for node in layer._inbound_nodes
            ):
                check_pixels(layer, images, what, normalized=normalized)
        return
    start = keras.Model(model.inputs[0], [norm.input for norm in norms])
    chosen = images[np.linspace(0, len(images) - 1, min(len(images), _MOST)).astype(int)]
    chosen = chosen.astype("float32")
    distance = _distance(start, norms, chosen)
    if not distance > _FAR:
        return
    mistakes = _mistakes(chosen) + ([] if normalized else _scales(chosen))
    undone = [_distance(start, norms, undo(chosen).astype("float32")) for undo, _, _ in mistakes]
    best = int(np.argmin(undone))
    if undone[best] < _NEAR and undone[best] * _TIMES < distance:
        _, mistake, remedy = mistakes[best]
        raise InputError(
            f"{what} images are not such as model {model.name!r} was trained on, but would be "
            f"if they were {mistake}: {remedy} (distance of the statistics of the first feature "
            f"maps from those of training: {distance:.2g} as they are, {undone[best]:.2g} so)"
        )


Mistake = tuple[Callable[[np.ndarray], np.ndarray], str, str]
"""What undoes it, what it is, and what the user has to do."""


def _mistakes(images: np.ndarray) -> list[Mistake]:
    high = float(images.max())
    found: list[Mistake] = []
    if images.shape[-1] == 3:
        remedy = "the model takes RGB, so pass images[..., ::-1]"
        found.append((lambda x: x[..., ::-1], "not in the channel order BGR", remedy))
    if high <= 64:  # brighter ones may be just dark
        remedy = f"multiply them by 255 / {high:g}"
        found.append((lambda x: x * (255 / high), f"not scaled to 0..{high:g}", remedy))
    found.append((lambda x: 255 - x, "not inverted", "pass 255 - images"))
    return found


def _scales(images: np.ndarray) -> list[Mistake]:
    """How networks are usually given their images, where that is done outside of them."""
    own = images.reshape(-1, images.shape[-1])
    known: list[tuple[str, Any, Any]] = [("x / 255", 0, 255), ("x / 127.5 - 1", 127.5, 127.5)]
    if images.shape[-1] == 3:
        known.append(("normalized by ImageNet's mean and std", *_IMAGENET))
    known.append(("normalized by their mean and std", own.mean(axis=0), own.std(axis=0) + 1e-3))

    def scale(how: str, mean: Any, std: Any) -> Mistake:
        mean, std = np.asarray(mean, "float32"), np.asarray(std, "float32")
        remedy = (
            "the model leaves that to whoever calls it, so pass convert the pixels in 0..255, and "
            f"mean={_values(mean)}, std={_values(std)}, which put it into the file"
        )
        return lambda x: (x - mean) / std, how, remedy

    return [scale(*entry) for entry in known]


def _values(values: np.ndarray) -> str:
    texts = [f"{value:.6g}" for value in values.reshape(-1)]
    return texts[0] if values.ndim == 0 else f"({', '.join(texts)})"


def weaknesses(
    model: keras.Model | None, images: Mapping[str, np.ndarray], expected: np.ndarray
) -> list[str]:
    """Why agreement of a file with the model on these images says little; empty if it does not.

    Args:
        model: of Keras 3, or None.
        images: by what they are called, "calibration" and "verification".
        expected: the model's probabilities (n, classes) for the last of them.
    """
    found = []
    for what, values in images.items():
        if len(values) < _LEAST:
            found.append(
                f"only {len(values)} {what} images: pass 100 or more, of all classes and such as "
                "the model will see"
            )
        if (roughness := _roughness(values)) > _ROUGH:
            found.append(
                f"the {what} images look like noise (neighbouring pixels differ {roughness:.2g} "
                "times as much as any two): pass real ones"
            )
    if len(expected) > 1 and np.ptp(expected, axis=0).max() < _VARIES:
        found.append(
            f"the model gives nearly the same probabilities for all {len(expected)} "
            "verification images: is it trained, and are these the images that it was trained on, "
            "in range, channel order and kind?"
        )
    elif (
        model is not None
        and (expected.max(axis=1) > 1 - 1e-6).mean() > 0.5
        and not _normalizes(model)
    ):
        found.append(
            f"model {model.name!r} is sure beyond all doubt of its class for most verification "
            "images, and has neither a normalization nor batch norm that would tell which range it "
            "was trained on: if that is not 0..255, pass mean and std (for x / 255 std=255)"
        )
    return found


_ROUGH = 0.8  # 1 is noise; photographs have 0.02 to 0.2, sharp drawings 0.1 to 0.5
_VARIES = 0.01  # the least range of a probability over the images


def _roughness(images: np.ndarray) -> float:
    """The mean squared difference of neighbours in a row, as a share of that of any two pixels."""
    few = images[:_MOST].astype("float32")
    spread = 2 * few.reshape(len(few), -1, few.shape[-1]).var(axis=1).mean()
    return float((np.diff(few, axis=2) ** 2).mean() / spread) if spread and few.shape[2] > 1 else 0


def _normalizes(model: keras.Model) -> bool:
    """Whether a layer of the model scales its input, or remembers the scale of what it gets."""
    scaling = (ImageNormalization, layers.Rescaling, layers.Normalization)
    return bool(_first_norms(model)) or any(
        isinstance(layer, scaling) or (isinstance(layer, keras.Model) and _normalizes(layer))
        for layer in model.layers
    )


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
    for outputs in batches(start, images):
        for index, output in enumerate(outputs):
            values = output.reshape(-1, output.shape[-1]).astype(float)
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
