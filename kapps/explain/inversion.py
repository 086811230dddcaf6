"""What of an image is left at a depth of a network: the images whose map there is the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError
from kapps.explain._ascent import Descent, check_options, to_range
from kapps.explain._classifier import BATCH, Classifier, as_array
from kapps.explain._spectrum import Spectrum

_NOISE = 0.01  # standard deviation of the amplitudes at the start
_EXPONENT = 6  # of the norm, Mahendran and Vedaldi's alpha


@dataclasses.dataclass(frozen=True)
class Inversion:
    """Images found from their map, from several starts.

    Attributes:
        images: (starts, N, height, width, channels), float32, in the model's range.
        losses: (starts, N), float32: the squared distance of the maps by the squared norm of the
            one that was wanted; 0 is the same map, 1 what a map of zeros would have.
    """

    images: np.ndarray
    losses: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """Of each image the start of the lowest loss, (N, height, width, channels)."""
        starts = self.losses.argmin(0)
        return self.images[starts, np.arange(len(starts))]


def invert(
    model: keras.Model,
    images: Any,
    layer: str,
    *,
    starts: int = 1,
    steps: int = 200,
    rate: float = 0.05,
    norm: float = 1e-3,
    total_variation: float = 0.05,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Inversion:
    """Images that give the same as these ones at a layer (Mahendran and Vedaldi 2015).

    It minimizes the normalized distance of their equation (2), with their penalties (3), the norm
    (alpha 6), and (4), the total variation (beta 2), from noise around mid-gray. The steps are on
    waves, as in `class_visualization`: at blocks.1 of EfficientNet-Lite0 as many steps on pixels
    ended 7 dB lower.

    Args:
        model: a network, with classes or without.
        images: (N, height, width, channels) in the model's own range.
        layer: whose output is to be the same, a map or not.
        starts: how often, from other noise; where they end differently, the layer does not
            determine what differs.
        steps: of Adam.
        rate: of Adam at the first step; it falls to zero.
        norm: the weight of the norm, the mean sixth power of the pixels in -1..1.
        total_variation: the weight of the mean square of the steps from pixel to pixel, in 0..1.
        seed: of the noise.
        bounds: the lowest and highest number of an image, where the model does not tell.

    Raises:
        InputError: the images do not fit the model, there is no such layer, all that it gives for
            an image is zero, or an option is out of range.
    """
    check_options(
        "invert",
        starts=starts,
        steps=steps,
        rate=rate,
        norm=norm,
        total_variation=total_variation,
        seed=seed,
    )
    net = Classifier(model, "invert", headless=True)
    checked, at, bounds = net.images(images), net.layer(layer), net.bounds(bounds)
    descent = Descent(steps, rate, norm=(norm, _EXPONENT), variation=total_variation)

    def distance(found: Any, wanted: Any, size: Any) -> Any:
        (made,) = net.run({net.image: found}, [at])
        return _squares(made - wanted) / size

    wanted, sizes = _wanted(net, checked, at, layer)
    noise = np.stack(
        [np.random.default_rng((seed, i)).standard_normal(checked.shape[1:]) for i in range(starts)]
    )
    pairs = [(start, image) for start in range(starts) for image in range(len(checked))]
    found, losses = [], []
    for first in range(0, len(pairs), BATCH):
        chosen, numbers = map(list, zip(*pairs[first : first + BATCH], strict=True))
        pixels, loss = descent.run(
            net,
            distance,
            _NOISE * noise[chosen],
            form=Spectrum(*checked.shape[1:]),
            bounds=bounds,
            rng=np.random.default_rng(seed),
            constants=[ops.convert_to_tensor(array[numbers]) for array in (wanted, sizes)],
        )
        found.append(to_range(pixels, bounds))
        losses.append(loss)
    return Inversion(
        np.concatenate(found).reshape(starts, *checked.shape),
        np.concatenate(losses).reshape(starts, len(checked)),
    )


def _squares(values: Any) -> Any:
    return ops.sum(ops.square(values), axis=tuple(range(1, len(values.shape))))


def _wanted(
    net: Classifier, images: np.ndarray, at: Any, layer: str
) -> tuple[np.ndarray, np.ndarray]:
    """What the layer gives for each image, and the square of its norm."""
    parts = [ops.convert_to_numpy(net.maps_of(batch, [at])[0]) for (batch,) in net.batches(images)]
    wanted = np.concatenate(parts)
    sizes = np.square(wanted).sum(tuple(range(1, wanted.ndim)))
    if not sizes.all():
        raise InputError(
            f"invert: all that {layer} gives for image {int(np.argmin(sizes))} is zero, which says "
            "nothing of the image; take another layer"
        )
    return wanted, sizes


def reconstructions(
    model: keras.Model,
    image: Any,
    layers: Sequence[str],
    *,
    steps: int = 200,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """One image, found from what each layer gives: a row by depth. See `invert`.

    Args:
        model: a network, with classes or without.
        image: (height, width, channels) in the model's own range.
        layers: names.
        steps: as for `invert`.
        seed: as for `invert`.
        bounds: as for `invert`.

    Returns:
        (layers, height, width, channels), float32.

    Raises:
        InputError: as `invert`.
    """
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise InputError(f"reconstructions: layers must be a list of names, not {layers!r}")
    if len(np.shape(image)) != 3:
        raise InputError(
            f"reconstructions: it takes one image, (height, width, channels), not {np.shape(image)}"
        )
    net = Classifier(model, "reconstructions", headless=True)
    for layer in layers:
        net.layer(layer)  # a misspelt last one is found before the first one's minutes
    batch = as_array(image, "reconstructions: the image")[None]
    return np.concatenate(
        [
            invert(model, batch, layer, steps=steps, seed=seed, bounds=bounds).best
            for layer in layers
        ]
    )


def psnr(images: Any, others: Any, peak: float = 255) -> np.ndarray:
    """The peak signal-to-noise ratio of images to others, in dB, one by one.

    Args:
        images: (..., height, width, channels).
        others: as many, or one for all.
        peak: the range of the numbers: 255 for 0..255.

    Returns:
        (...), float32; infinite where they are the same.

    Raises:
        InputError: their shapes do not fit.
    """
    first, second = (np.asarray(given, "float64") for given in (images, others))
    try:
        errors = np.square(first - second)
    except ValueError as error:
        raise InputError(f"psnr: images of {first.shape} and {second.shape}") from error
    if errors.ndim < 3:
        raise InputError(f"psnr: an image is (height, width, channels), not {errors.shape}")
    with np.errstate(divide="ignore"):
        ratio = 10 * np.log10(peak**2 / errors.mean((-3, -2, -1)))
    return np.asarray(ratio, "float32")
