"""Simple operations on an image, of which policies of augmentation are made.

Images are RGB of 8 bits; each operation is Pillow's, and gives what torchvision's gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from kapps._errors import unknown

Color = tuple[int, int, int]
"""Red, green and blue, 0..255."""

BLACK: Color = (0, 0, 0)


class Step(NamedTuple):
    """An operation as `apply` takes it."""

    operation: str
    magnitude: float
    resample: Image.Resampling = Image.Resampling.NEAREST


def _lookup(image: Image.Image, value: Callable[[int], float]) -> Image.Image:
    """Every channel of every pixel through one table of 0..255."""
    return image.point([int(value(v)) for v in range(256)] * 3)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    # Pillow refuses 0 bits since version 13, and timm's strongest posterization asks for them.
    return _lookup(image, lambda v: v & (256 - (1 << (8 - int(bits)))))


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(v + int(turn * 255)) % 256 for v in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


# What an operation makes of pixels that stay where they are, by the image and the magnitude.
_ON_COLORS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": _posterize,
    "solarize": lambda image, least: _lookup(image, lambda v: v if v < least else 255 - v),
    "solarize_add": lambda image, more: _lookup(
        image, lambda v: min(255, v + int(more)) if v < 128 else v
    ),
    "color": lambda image, more: ImageEnhance.Color(image).enhance(1 + more),
    "contrast": lambda image, more: ImageEnhance.Contrast(image).enhance(1 + more),
    "brightness": lambda image, more: ImageEnhance.Brightness(image).enhance(1 + more),
    "sharpness": lambda image, more: ImageEnhance.Sharpness(image).enhance(1 + more),
    "hue": _turn_hue,
}

# Where an output pixel (x, y) is taken from, (ax + by + c, dx + ey + f), by the magnitude.
_PLACES: dict[str, Callable[[float], tuple[float, float, float, float, float, float]]] = {
    "shear_x": lambda m: (1, m, 0, 0, 1, 0),
    "shear_y": lambda m: (1, 0, 0, m, 1, 0),
    "translate_x": lambda m: (1, 0, -m, 0, 1, 0),
    "translate_y": lambda m: (1, 0, 0, 0, 1, -m),
}

OPERATIONS = (*_ON_COLORS, *_PLACES, "rotate")
"""The names that `apply` knows."""


def apply(
    name: str,
    image: Image.Image,
    magnitude: float = 0.0,
    fill: Color = BLACK,
    resample: Image.Resampling = Image.Resampling.NEAREST,
) -> Image.Image:
    """One operation, as torchvision's and timm's policies apply it to PIL images.

    Args:
        magnitude: None for "identity", "autocontrast", "equalize" and "invert".
            "posterize": the bits that are kept, 0 to 8. "solarize": the least value that is
            inverted. "solarize_add": what is added to values below 128. "color", "contrast",
            "brightness", "sharpness": the factor less 1, so that 0 changes nothing. "hue": turns,
            -0.5 to 0.5. "rotate": degrees, counter-clockwise. "shear_x", "shear_y": the tangent,
            about the upper left corner. "translate_x", "translate_y": pixels, to the right or down;
            NEAREST drops their fraction.
        fill: The colour of what comes from outside of the image.

    Raises:
        InputError: there is no operation of that name.
    """
    if name in _ON_COLORS:
        return _ON_COLORS[name](image, magnitude)
    if name == "rotate":
        return image.rotate(magnitude, resample, fillcolor=fill)
    if name not in _PLACES:
        raise unknown("operation", name, OPERATIONS)
    if name.startswith("translate") and resample == Image.Resampling.NEAREST:
        magnitude = int(magnitude)
    matrix = _PLACES[name](magnitude)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


def apply_steps(image: Image.Image, steps: Iterable[Step], fill: Color = BLACK) -> Image.Image:
    """The image after all steps, one after the other."""
    for operation, magnitude, resample in steps:
        image = apply(operation, image, magnitude, fill, resample)
    return image
