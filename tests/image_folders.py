"""Small image files, in folders as data sets have them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

SPLITS = ("train", "validation", "test")


def image(path: Path, color: tuple[int, int, int] = (200, 30, 90), size=(12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def make_folder(root: Path, images: int = 12, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """`images` PNG files a class, the i-th of gray value 10 * i."""
    for name in classes:
        for i in range(images):
            image(root / name / f"{i}.png", (10 * i,) * 3)
    return root
