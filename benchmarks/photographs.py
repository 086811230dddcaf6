"""JPEG files for benchmarks, made of scikit-learn's two photographs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

QUALITIES = (75, 90)


def write_photographs(folder: Path, sizes: Collection[tuple[int, int]]) -> None:
    """Each photograph at each size and quality: WIDTH-NUMBER-QUALITY.jpg.

    They are reduced, and for larger sizes repeated with mirrored copies, as sharp as they are.

    Args:
        folder: is made if it is not there.
        sizes: (width, height) in pixels.
    """
    from sklearn.datasets import load_sample_images

    folder.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(load_sample_images().images):
        for width, height in sizes:
            if width < photo.shape[1]:
                image = Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC)
            else:
                more = [(0, height - photo.shape[0]), (0, width - photo.shape[1]), (0, 0)]
                image = Image.fromarray(np.pad(photo, more, mode="symmetric"))
            for quality in QUALITIES:
                image.save(folder / f"{width}-{number}-{quality}.jpg", quality=quality)
