"""DeepDream: pictures with more of what a network sees in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, one_line
from kapps.explain._ascent import check_options, to_pixels, to_range
from kapps.explain._classifier import BATCH, Classifier
from kapps.explain._differentiation import value_and_gradients
from kapps.explain._graph import Tensor
from kapps.explain._resize import resized
from kapps.explain._spectrum import Spectrum
from kapps.explain.units import check_channel

_TINY = 1e-8


def deep_dream(
    model: keras.Model,
    images: Any,
    layer: str | None = None,
    channel: int | None = None,
    *,
    octaves: int = 4,
    octave_scale: float = 1.4,
    steps: int = 10,
    rate: float = 0.006,
    jitter: int = 32,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """DeepDream (Mordvintsev et al. 2015): images with more of what a layer sees in them.

    It begins with a smaller copy of the image, and takes what it added there to the next larger
    one. The steps follow the gradient with the spectrum and the colors of photographs, as in
    `class_visualization`. A layer in the middle makes shapes and eyes, the last one hardly any.

    A map of another size than the model's is computed by the same layers, so that a model of
    a fixed size does as well; for a larger picture build the model for it, as
    `kapps.ResNet50(input_shape=(512, 512, 3))`.

    Args:
        model: a network, with classes or without.
        images: (N, height, width, channels) in the model's own range.
        layer: which makes a map; by default the one that the head takes.
        channel: of the map, whose mean rises; by default the mean square of all does.
        octaves: how many sizes, the image's own included.
        octave_scale: from one size to the next.
        steps: in each size.
        rate: what a pixel moves in a step, in the mean, of the model's range.
        jitter: by how many pixels the image is moved at most before each step, around the border.
        seed: of the jitter.
        bounds: the lowest and highest number of an image, where the model does not tell.

    Returns:
        (N, height, width, channels), float32, in the model's range.

    Raises:
        InputError: the images do not fit the model, there is no such map or channel, the smallest
            size is too small for the layers, or an option is out of range.
    """
    check_options(
        "deep_dream",
        octaves=octaves,
        octave_scale=octave_scale,
        steps=steps,
        rate=rate,
        jitter=jitter,
        seed=seed,
    )
    if octave_scale <= 1:
        raise InputError(f"deep_dream: octave_scale must be above 1, not {octave_scale!r}")
    net = Classifier(model, "deep_dream", headless=True)
    checked = net.images(images)
    at = net.features() if layer is None else net.map(layer)
    if channel is not None:
        check_channel(net, at, channel)
    bounds = net.bounds(bounds)
    sides = [
        tuple(max(1, round(side / octave_scale**octave)) for side in checked.shape[1:3])
        for octave in reversed(range(octaves))
    ]
    # One for each size: it compiles.
    ways = [_dream_gradient(net, at, channel, bounds, (*s, checked.shape[-1])) for s in sides]
    found = []
    for first in range(0, len(checked), BATCH):
        rng = np.random.default_rng(seed)
        pixels = to_pixels(checked[first : first + BATCH], bounds)
        added = np.zeros_like(pixels)
        for (height, width), gradient in zip(sides, ways, strict=True):
            base = resized(pixels, height, width)
            dreamt = np.clip(base + resized(added, height, width), 0, 1)
            for _ in range(steps):
                move = rng.integers(-jitter, jitter + 1, 2)
                moved = ops.convert_to_tensor(np.roll(dreamt, move, (1, 2)))
                change = ops.convert_to_numpy(_at_size(net, gradient, moved))
                change = np.roll(change, -move, (1, 2))
                dreamt = np.clip(dreamt + rate * change, 0, 1).astype("float32")
            added = dreamt - base
        found.append(to_range(dreamt, bounds))
    return np.concatenate(found)


def _dream_gradient(
    net: Classifier,
    at: Tensor,
    channel: int | None,
    bounds: tuple[float, float],
    size: tuple[int, ...],
) -> Callable[[Any], Any]:
    """The way to more of it, from pixels in 0..1; of each image a mean magnitude of 1."""
    low, high = bounds
    form = Spectrum(*size)

    def gradient(pixels: Any) -> Any:
        def objective(inputs: list[Any]) -> tuple[Any, Any]:
            (maps,) = net.run({net.image: low + (high - low) * inputs[0]}, [at])
            if channel is None:
                return ops.sum(ops.mean(ops.square(maps), axis=(1, 2, 3))), None
            return ops.sum(ops.mean(maps[..., channel], axis=(1, 2))), None

        _, _, (found,) = value_and_gradients(objective, [pixels])
        found = form.natural(found)
        length = ops.mean(ops.abs(found), axis=(1, 2, 3), keepdims=True)
        return found / ops.maximum(length, _TINY)

    return net.compiled(gradient)


def _at_size(net: Classifier, gradient: Callable[[Any], Any], pixels: Any) -> Any:
    """The gradient, or what to do where the layers do not take this size."""
    try:
        return gradient(pixels)
    except (ValueError, RuntimeError, TypeError) as error:
        height, width = pixels.shape[1:3]
        if tuple(net.image.shape[1:3]) == (height, width):
            raise
        raise InputError(
            f"deep_dream: the layers do not take {height}x{width} pixels, a smaller octave; take "
            f"fewer octaves, or one ({one_line(error, 200)})"
        ) from error
