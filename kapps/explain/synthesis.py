"""Pictures that a network makes itself, of what it takes for a class."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, check_whole
from kapps.explain._ascent import Descent, check_options, to_range
from kapps.explain._classifier import BATCH, Classifier
from kapps.explain._spectrum import Spectrum

_NOISE = 0.01  # standard deviation of the amplitudes at the start
_FALL = 1.4  # of their spectrum; chosen by eye on EfficientNet-Lite0


def class_visualization(
    model: keras.Model,
    classes: Any,
    *,
    steps: int = 128,
    rate: float = 0.05,
    l2: float = 2.0,
    total_variation: float = 300.0,
    blur: float = 0.0,
    jitter: int = 16,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """Images with a large logit of a class, by gradient ascent (Simonyan et al. 2013).

    The steps are on waves that have the spectrum and the colors of photographs (Olah et al. 2017).
    What else keeps the image smooth: total variation, jitter (Mordvintsev et al. 2015) and blur
    (Yosinski et al. 2015).

    Args:
        model: a classifier.
        classes: one class, or (N,).
        steps: of Adam.
        rate: of Adam at the first step; it falls to zero.
        l2: the weight of the mean square of the pixels in -1..1, around mid-gray.
        total_variation: the weight of the mean square of the steps from pixel to pixel, in 0..1.
        blur: standard deviation in pixels of a Gaussian, which blurs the image after each step and
            shrinks to zero by the last; 0.5 is much.
        jitter: by how many pixels the image is moved at most before each step, around the border.
        seed: of noise and jitter. The noise depends on the class as well, not on its place.
        size: height and width in pixels, for a model that takes images of any size.
        bounds: the lowest and highest number of an image, where the model does not tell.

    Returns:
        (N, height, width, channels), float32, in the model's range.

    Raises:
        InputError: a class is beyond the model's, or an option out of range.
    """
    check_options(
        "class_visualization",
        steps=steps,
        rate=rate,
        l2=l2,
        total_variation=total_variation,
        blur=blur,
        jitter=jitter,
        seed=seed,
    )
    net = Classifier(model, "class_visualization")
    wanted = net.labels(classes, np.size(classes))
    bounds, shape = net.bounds(bounds), _shape(net, size)
    form = Spectrum(*shape, _FALL, blur)
    descent = Descent(steps, rate, (l2, 2), total_variation, jitter)

    def loss(images: Any, chosen: Any) -> Any:
        (logits,) = net.run({net.image: images}, [net.logits])
        return -net.scores(logits, chosen)

    found = []
    for first in range(0, len(wanted), BATCH):
        part = wanted[first : first + BATCH]
        noise = [np.random.default_rng((seed, number)).standard_normal(shape) for number in part]
        pixels, _ = descent.run(
            net,
            loss,
            _NOISE * np.stack(noise),
            form=form,
            bounds=bounds,
            rng=np.random.default_rng(seed),
            constants=[ops.convert_to_tensor(part)],
        )
        found.append(to_range(pixels, bounds))
    return np.concatenate(found)


def _shape(net: Classifier, size: Any) -> tuple[int, int, int]:
    """Height, width and channels of the images to make."""
    *own, channels = net.image.shape[1:]
    if size is None:
        if None in own:
            raise InputError(
                f"{net.caller}: {net.model.name} takes images of any size; give one, as in "
                "size=(224, 224)"
            )
        size = own
    fits = isinstance(size, (tuple, list)) and len(size) == 2
    if not fits or any(w not in (None, given) for w, given in zip(own, size, strict=True)):
        raise InputError(
            f"{net.caller}: size must be the height and width of {net.model.name}'s images, "
            f"{tuple(own)}, not {size!r}"
        )
    for side in size:
        check_whole(net.caller, "size", side)
    return int(size[0]), int(size[1]), int(channels or 0)
