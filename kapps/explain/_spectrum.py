"""Pictures as what to sum up: waves of each frequency, in light and two opponent colors.

Gradient steps on pixels make the noise of high frequencies that no photograph has. On amplitudes
that are scaled to those of photographs the same steps make shapes (Olah et al. 2017, "Feature
visualization", preconditioning). The waves are those of the cosine transform, which is a product of
matrices and so has gradients everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

# Axes of light, red against blue, and green against red and blue, and the standard deviations along
# them: the principal components of the pixels of foolbox's 20 ImageNet pictures to 0.1.
_OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3], [2], [6]])
_SPREAD = np.array([[0.37], [0.09], [0.055]])
_CONTRAST = 4.0  # what the amplitudes are multiplied by, before the sigmoid


class Spectrum:
    """Pictures of one size by amplitudes (batch, height, width, channels)."""

    def __init__(
        self, height: int, width: int, channels: int, fall: float = 1, blur: float = 0
    ) -> None:
        """The size of the pictures, and of what kind they are.

        Args:
            height: in pixels.
            width: in pixels.
            channels: three for color.
            fall: by which power of the frequency the amplitudes fall; in photographs by about the
                first (Field 1987). A larger one makes larger shapes.
            blur: standard deviation of a Gaussian in pixels: see `kept`.
        """
        self._blur = blur
        self._waves = tuple(map(_cosines, (height, width)))
        # Cycles a pixel; the constant counts as the longest wave.
        cycles = [np.arange(side) / (2 * side) for side in (height, width)]
        self._frequency = np.hypot(cycles[0][:, None], cycles[1][None])[..., None]
        scale = np.maximum(self._frequency, 1 / (2 * max(height, width))) ** -fall
        self._scale = (_CONTRAST * scale / np.sqrt(np.square(scale).mean())).astype("float32")
        self._colors = np.eye(channels, dtype="float32")
        if channels == 3:
            self._colors = (_OPPONENT * _SPREAD / _SPREAD[0]).astype("float32")

    def pixels(self, amplitudes: Any) -> Any:
        """In 0..1."""
        rows, columns = map(ops.convert_to_tensor, self._waves)
        found = ops.einsum("uy,nuvc->nyvc", rows, amplitudes * ops.convert_to_tensor(self._scale))
        found = ops.einsum("vx,nyvc->nyxc", columns, found)
        return ops.sigmoid(ops.matmul(found, ops.convert_to_tensor(self._colors)))

    def natural(self, gradient: Any) -> Any:
        """A gradient of pixels, its waves and colors weighted as those of photographs are."""
        rows, columns = map(ops.convert_to_tensor, self._waves)
        amplitudes = ops.einsum("uy,nyxc->nuxc", rows, gradient)
        amplitudes = ops.einsum("vx,nuxc->nuvc", columns, amplitudes)
        amplitudes = amplitudes * ops.convert_to_tensor(self._scale)
        found = ops.einsum("uy,nuvc->nyvc", rows, amplitudes)
        found = ops.einsum("vx,nyvc->nyxc", columns, found)
        return ops.matmul(found, ops.convert_to_tensor(self._colors.T @ self._colors))

    def kept(self, amplitudes: Any, share: float) -> Any:
        """What the next step begins with, after this share of all steps: blurred, before the
        sigmoid, less and less."""
        if not self._blur:
            return amplitudes
        deviation = self._blur * (1 - share)
        kept = np.exp(-2 * np.square(np.pi * deviation * self._frequency))
        return amplitudes * ops.convert_to_tensor(kept.astype("float32"))


def _cosines(side: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II), (frequencies, pixels)."""
    numbers = np.arange(side)
    waves = np.cos(np.pi / side * np.outer(numbers, numbers + 0.5)) * np.sqrt(2 / side)
    waves[0] /= np.sqrt(2)
    return waves.astype("float32")
