"""What the images make of each tensor: its channels, and how its values are distributed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kapps._files import temporary_folder
from kapps.tflite.large.ranges import watch

Ranges = dict[int, tuple[float, float]]
"""The smallest and the largest value of a tensor, by its number."""

BINS = 2048
"""Of a histogram: eight to a step of 8 bits."""


@dataclass
class Channels:
    """Of each channel, the last axis of a tensor: the smallest, the largest and the mean value."""

    low: np.ndarray
    high: np.ndarray
    total: np.ndarray
    count: int

    @property
    def mean(self) -> np.ndarray:
        """(channels,)."""
        return self.total / self.count

    @property
    def largest(self) -> np.ndarray:
        """Of the magnitudes, (channels,)."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def range(self) -> tuple[float, float]:
        """Of all channels."""
        return float(self.low.min()), float(self.high.max())

    def over(self, factors: np.ndarray) -> Channels:
        """The same of the tensor divided by positive factors, one a channel."""
        return Channels(self.low / factors, self.high / factors, self.total / factors, self.count)


def inputs_of(images: np.ndarray) -> Iterator[np.ndarray]:
    """What calibrates a file: one image at a time, float32, with a batch of 1.

    The input's quantization comes from the smallest and the largest value seen: with exactly 0 and
    255 it is scale 1, zero point 0. Images need not reach them, so two corner pixels of the first
    image are set: that moves no statistics inside the network, as all-black and all-white images
    would.
    """
    for index, image in enumerate(images):
        value = image[None].astype("float32")
        if index == 0:
            value[0, 0, 0] = 0
            value[0, -1, -1] = 255
        yield value


def find_channels(model: Any, images: np.ndarray) -> dict[int, Channels]:
    """Of each float tensor that is no constant, by its number.

    Args:
        model: a file of floats as an object of the schema's.
        images: (n, height, width, channels), in 0..255.
    """
    found: dict[int, Channels] = {}

    def see(number: int, values: np.ndarray) -> None:
        rows = values.reshape(-1, values.shape[-1] if values.ndim else 1)
        low, high = rows.min(axis=0), rows.max(axis=0)
        total = rows.sum(axis=0, dtype="float64")
        if number in found:
            of = found[number]
            np.minimum(of.low, low, out=of.low)
            np.maximum(of.high, high, out=of.high)
            of.total += total
            of.count += len(rows)
        else:
            found[number] = Channels(low, high, total, len(rows))

    with temporary_folder() as folder:
        watch(model, {}, inputs_of(images), folder, see)
    return found


def find_histograms(
    model: Any, ranges: Mapping[int, tuple[float, float]], images: np.ndarray
) -> dict[int, np.ndarray]:
    """How many values of a tensor lie in each of `BINS` equal parts of its range, by its number.

    Those beyond count to the outer parts.

    Args:
        model: a file of floats as an object of the schema's.
        ranges: of the tensors; others are left out.
        images: (n, height, width, channels), in 0..255.
    """
    found: dict[int, np.ndarray] = {}

    def see(number: int, values: np.ndarray) -> None:
        low, high = ranges.get(number, (0.0, 0.0))
        if high <= low:
            return
        places = ((values.reshape(-1) - np.float32(low)) * np.float32(BINS / (high - low))).astype(
            "int32"
        )
        np.clip(places, 0, BINS - 1, out=places)
        found[number] = found.get(number, 0) + np.bincount(places, minlength=BINS)

    with temporary_folder() as folder:
        watch(model, {}, inputs_of(images), folder, see)
    return found
