"""The patches of a data set that most excite a unit, cut by what the unit sees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, check_whole, is_number
from kapps._profile import Walk, inputs_of
from kapps._receptive_field import Axis
from kapps.explain._classifier import Classifier
from kapps.explain._graph import Tensor
from kapps.explain.units import check_channel, maps_by_batch


@dataclasses.dataclass(frozen=True)
class Patch:
    """What one unit saw where it answered most.

    Attributes:
        pixels: (height, width, channels), float32, in the range of the images.
        index: the picture's number in the data set.
        box: (top, left, bottom, right) within the picture, in pixels, the last two exclusive.
        activation: the unit's.
    """

    pixels: np.ndarray
    index: int
    box: tuple[int, int, int, int]
    activation: float


def top_patches(
    model: keras.Model,
    images: Any,
    layer: str,
    channel: int,
    count: int = 9,
    padding: float | None = None,
) -> list[Patch]:
    """The patches of a data set that most activate a channel of a feature map.

    Of each picture the one unit that answers most counts, as in Zeiler and Fergus 2014, section
    4.1. A patch is the unit's receptive field, as `kapps.profile` knows it. Where the field is the
    whole image, as behind a squeeze-and-excitation, so is the patch.

    Args:
        model: a network, with classes or without.
        images: (N, height, width, channels) in the model's own range, or an iterable of batches
            of them, alone or first in a tuple: of these only one batch is in memory.
        layer: which makes a map.
        channel: of the map.
        count: how many patches.
        padding: what to fill with where the field reaches beyond the picture, so that all patches
            have one size; by default they end at the border.

    Returns:
        At most `count` patches, the strongest first; fewer where there are fewer pictures. Of equal
        ones the earlier is first.

    Raises:
        InputError: the images do not fit the model, or there is no such map or channel.
    """
    net = Classifier(model, "top_patches", headless=True)
    at = net.map(layer)
    check_channel(net, at, channel)
    check_whole("top_patches", "count", count)
    if padding is not None and not is_number(padding):
        raise InputError(f"top_patches: padding must be a number or None, not {padding!r}")
    best: list[Patch] = []
    number = 0
    for batch, maps in maps_by_batch(net, images, at):
        fields = _fields(net, at, batch.shape[1:])
        values = ops.convert_to_numpy(maps)[..., int(channel)]
        places = values.reshape(len(values), -1).argmax(-1)
        for image, value, place in zip(batch, values, places, strict=True):
            unit = tuple(map(int, np.unravel_index(place, value.shape)))
            if len(best) < count or value[unit] > best[-1].activation:
                best.append(_patch(image, number, fields, unit, padding, float(value[unit])))
                best = sorted(best, key=lambda patch: (-patch.activation, patch.index))[:count]
            number += 1
    return best


def _fields(net: Classifier, at: Tensor, shape: Sequence[int]) -> Sequence[Axis]:
    """What the units of a map see of an image of this shape, vertically and horizontally."""
    values = inputs_of(net.model, shape, net.caller)
    walk = Walk([value.shape for value in values], counting=False)
    walk.run(net.model, values, "")
    name, place = net.name_of(at), net.maker(at).outputs.index(at)
    found = [step.outputs[place].field for step in walk.steps if step.profile.name == name]
    if found and found[-1] is not None:
        return found[-1]
    return [Axis.everything(Fraction(side)) for side in shape[:2]]


def _patch(
    image: np.ndarray,
    index: int,
    fields: Sequence[Axis],
    unit: Sequence[int],
    padding: float | None,
    activation: float,
) -> Patch:
    sides = image.shape[:2]
    spans = [field.unit(place) for field, place in zip(fields, unit, strict=True)]
    # From the first pixel to the one after the last; all of an axis where the field has no end.
    whole = [
        (int(low), int(high) + 1) if math.isfinite(low) and math.isfinite(high) else (0, side)
        for (low, high), side in zip(spans, sides, strict=True)
    ]
    (top, bottom), (left, right) = (
        (min(max(low, 0), side), min(max(high, 0), side))
        for (low, high), side in zip(whole, sides, strict=True)
    )
    pixels = image[top:bottom, left:right].astype("float32")
    if padding is not None:
        (upper, lower), (start, end) = whole
        filled = np.full((lower - upper, end - start, pixels.shape[-1]), padding, "float32")
        filled[top - upper : bottom - upper, left - start : right - start] = pixels
        pixels = filled
    return Patch(pixels, index, (top, left, bottom, right), activation)
