"""Bilinear resizing of maps, by matrices: the same numbers on every backend."""

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
