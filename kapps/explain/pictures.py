"""Maps as pictures: colors whose differences look as large as those of the numbers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from kapps._errors import InputError, is_number
from kapps.explain._resize import of_maps

PERCENTILE = 99.0
"""Of a map's absolute values: what has the color at the end, and so has all beyond it."""

# Paths through CIELAB, at equal steps of lightness: (lightness, chroma, hue in degrees).
# One end stands for nothing, the other one for the most; a signed map has both arms.
_RISING = ((8, 18, 285), (30, 56, 305), (52, 70, 382), (74, 64, 425), (96, 40, 465))
_FOR = ((96, 0, 35), (75, 36, 35), (54, 68, 35), (36, 60, 35))
_AGAINST = ((96, 0, 265), (75, 24, 265), (54, 44, 275), (36, 60, 290))
_STEPS = 256  # of a path

# CIE 15 and IEC 61966-2-1: white D65; linear sRGB of XYZ.
_WHITE = np.array([0.95047, 1.0, 1.08883])
_SRGB_OF_XYZ = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ]
)


def overlay(image: Any, heat: Any, alpha: float = 0.6, *, signed: bool | None = None) -> np.ndarray:
    """A map over its image, which is shown in gray: color then always means the map.

    Args:
        image: (height, width, 3 or 1), in 0..255.
        heat: the map, (h, w), of the image's size or smaller: it is resized, bilinear.
        alpha: the share of the map, 0 to 1.
        signed: as for `heatmap`.

    Returns:
        RGB, uint8 (height, width, 3).

    Raises:
        InputError: the image or the map is none, or the map is zero everywhere.
    """
    pixels = np.asarray(image, np.float32)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        raise InputError(
            f"overlay: an image is (height, width, 3 or 1) in 0..255, not {pixels.shape}"
        )
    if not is_number(alpha) or not 0 <= alpha <= 1:
        raise InputError(f"overlay: alpha must be 0 to 1, not {alpha!r}")
    # Luma of ITU-R BT.601, as Pillow's.
    gray = (
        pixels @ np.array([0.299, 0.587, 0.114], "float32")
        if pixels.shape[-1] == 3
        else pixels[..., 0]
    )
    colors = heatmap(heat, (pixels.shape[0], pixels.shape[1]), signed=signed)
    return as_bytes((1 - alpha) * gray[..., None] + alpha * colors)


def heatmap(
    heat: Any, size: tuple[int, int] | None = None, *, signed: bool | None = None
) -> np.ndarray:
    """A map in color, by itself.

    From 0 to the map's `PERCENTILE` of absolute values colors go from dark to bright. A signed map
    is white at 0, and goes to red for what speaks for the class, and to blue for what speaks
    against it. The colors' steps are equal in CIELAB, and so is a gray print.

    Args:
        heat: the map, (h, w).
        size: height and width of the picture, pixels; by default those of the map.
        signed: whether it may have negative values; by default whether it has some.

    Returns:
        RGB, uint8 (height, width, 3).

    Raises:
        InputError: it is no map, has numbers that are not finite, or is zero everywhere: a
            picture of one color would look like an answer.
    """
    values = np.asarray(heat, np.float32)
    if values.ndim != 2 or not values.size:
        raise InputError(f"a map is (height, width), not {values.shape}")
    if not np.isfinite(values).all():
        raise InputError("the map has numbers that are not finite")
    if not values.any():
        raise InputError(
            "the map is zero everywhere: nothing in the image speaks for the class there; try "
            "another class or layer"
        )
    if signed is None:
        signed = bool(values.min() < 0)
    shares = normalized(values)
    if size is not None:
        shares = resized(shares, size)
    return _diverging(shares) if signed else _of(_path(_RISING), shares)


def normalized(heat: np.ndarray, percentile: float = PERCENTILE) -> np.ndarray:
    """The map by its percentile of absolute values, cut off at -1 and 1.

    A map of which fewer places than that are not zero goes by its largest one.
    """
    most = np.percentile(np.abs(heat), percentile) or np.abs(heat).max() or 1
    return np.clip(heat / np.float32(most), -1, 1)


def resized(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) at another height and width: bilinear, by the pixels' centres."""
    if heat.shape == size:
        return heat
    return of_maps(heat[None].astype("float32"), size)[0]


def _diverging(shares: np.ndarray) -> np.ndarray:
    above = shares[..., None] > 0
    return np.where(above, _of(_path(_FOR), shares), _of(_path(_AGAINST), -shares))


def _of(path: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The colors of numbers in 0..1."""
    return path[np.rint(np.clip(shares, 0, 1) * (_STEPS - 1)).astype(int)]


@functools.cache
def _path(knots: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """sRGB, uint8 (steps, 3), at equal distances along a path of CIELAB."""
    lightness, chroma, hue = np.array(knots, float).T
    fine = np.linspace(0, len(knots) - 1, 64 * _STEPS)
    lab = _lab(*(_smooth(fine, part) for part in (lightness, chroma, hue)))
    passed = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1))])
    places = np.linspace(0, passed[-1], _STEPS)
    even = np.stack([np.interp(places, passed, part) for part in lab.T], axis=-1)
    return as_bytes(255 * _srgb(even))


def _smooth(places: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Through the knots at 0, 1, 2 ... by splines of Catmull and Rom: the colors show no edge."""
    padded = np.concatenate([[2 * knots[0] - knots[1]], knots, [2 * knots[-1] - knots[-2]]])
    left = np.minimum(places.astype(int), len(knots) - 2)
    t = places - left
    a, b, c, d = (padded[left + i] for i in range(4))
    first, last, rise = (c - a) / 2, (d - b) / 2, c - b
    return b + t * (first + t * (3 * rise - 2 * first - last + t * (first + last - 2 * rise)))


def _lab(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    angle = np.deg2rad(hue)
    return np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)


def _srgb(lab: np.ndarray) -> np.ndarray:
    """0..1, of colors in CIELAB, (n, 3), that sRGB has."""
    linear = np.clip(_linear(lab), 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _linear(lab: np.ndarray) -> np.ndarray:
    y = (lab[:, 0] + 16) / 116
    f = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _WHITE
    return xyz @ _SRGB_OF_XYZ.T


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Numbers of 0..255 as uint8, rounded and cut to that range."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
