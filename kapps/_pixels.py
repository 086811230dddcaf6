"""What an image's pixels become, whatever kind of them its file has: RGB, 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image of Pillow in mode RGB.

    Gray of 16 bits is scaled, so that 65,535 becomes 255, and Pillow's 32-bit integers are taken
    for such gray, which is what it makes of some files of 16 bits. Floating-point gray is taken to
    be in 0..255, and rounded. What lies beyond is clipped. Transparency is dropped.

    Raises:
        ValueError: a floating-point pixel is no number.
    """
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image, np.float64)
        if not np.isfinite(pixels).all():
            raise ValueError("not all of its pixels are numbers")
        gray = np.clip(pixels if image.mode == "F" else pixels / 257, 0, 255).round()
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow would warn on the short way to the same colours
    return image.convert("RGB")
