"""What the pixels of a picture are as RGB of 8 bits: one answer for training and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kapps._errors import InputError

if TYPE_CHECKING:
    from PIL import Image


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture in any mode of Pillow as RGB, 8 bits a channel.

    16-bit gray, which Pillow may open as 32 bits, is scaled by 255 / 65535. Floating point is taken
    as 0..255, and rounded. What lies outside is cut to the range. Transparency is dropped.

    Raises:
        InputError: the floating-point numbers are not finite, or lie all in 0..1.
    """
    if image.mode.startswith("I"):
        return _gray(np.asarray(image) / 257)
    if image.mode == "F":
        pixels = np.asarray(image)
        if not np.isfinite(pixels).all():
            raise InputError("the image has numbers that are not finite; replace them")
        if np.any(pixels) and pixels.min() >= 0 and pixels.max() <= 1:
            raise InputError(
                "the image's numbers lie in 0..1, and kapps takes 0..255: multiply them by 255"
            )
        return _gray(pixels)
    if "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow would warn on the short way to the same colours
    return image.convert("RGB")


def _gray(pixels: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8)).convert("RGB")
