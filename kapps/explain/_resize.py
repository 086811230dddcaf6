"""Resizing of maps and pictures, by matrices: the same numbers on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops


def bilinear(maps: Any, size: tuple[int, int], *, corners: bool = False) -> Any:
    """Maps (N, h, w, C) at another height and width, as tensors.

    Args:
        maps: floating-point numbers.
        size: height and width.
        corners: whether the centres of the corner pixels stay in place ("align_corners"); otherwise
            the corners of the picture do ("half-pixel centres").
    """
    height, width = (
        ops.convert_to_tensor(_matrix(old, new, corners), dtype=maps.dtype)
        for old, new in zip(maps.shape[1:3], size, strict=True)
    )
    rows = ops.einsum("yh,nhwc->nywc", height, maps)
    return ops.einsum("xw,nywc->nyxc", width, rows)


def of_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps (N, h, w) at another height and width: `bilinear`, as arrays."""
    found: np.ndarray = ops.convert_to_numpy(bilinear(ops.convert_to_tensor(maps[..., None]), size))
    return found[..., 0]


def _matrix(old: int, new: int, corners: bool) -> np.ndarray:
    """(new, old): what each new pixel of a line takes of the old ones."""
    places = np.arange(new)
    if corners:
        centres = places * ((old - 1) / max(1, new - 1))
    else:
        centres = np.clip((places + 0.5) * (old / new) - 0.5, 0, old - 1)
    below = np.minimum(np.floor(centres).astype(int), max(0, old - 2))
    share = centres - below
    matrix = np.zeros((new, old))
    matrix[places, below] = 1 - share
    matrix[places, np.minimum(below + 1, old - 1)] += share
    return matrix


def resized(pictures: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, height, width, channels) at another size: bilinear, and averaged where it shrinks."""
    rows = _triangles(pictures.shape[1], height)
    columns = _triangles(pictures.shape[2], width)
    halfway = np.einsum("yh,nhwc->nywc", rows, pictures, optimize=True)
    found: np.ndarray = np.einsum("xw,nywc->nyxc", columns, halfway, optimize=True)
    return found


def _triangles(old: int, new: int) -> np.ndarray:
    """(new, old): what each new pixel of a line takes of the old ones."""
    reach = max(1.0, old / new)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.maximum(0, 1 - np.abs(np.subtract.outer(centres, np.arange(old))) / reach)
    return (weights / weights.sum(-1, keepdims=True)).astype("float32")
