"""The data sets that need no file: digits and synthetic."""

from __future__ import annotations

import dataclasses

import numpy as np

from kapps._errors import InputError
from kapps.tools.data.sources import ArraySource, Dataset
from kapps.tools.data.splits import stratified


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "dataset 'digits' is part of scikit-learn: pip install 'kapps[train]'"
        ) from error
    bunch = load_digits()
    gray = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # ink in 0..16
    images = np.repeat(gray[..., None], 3, axis=-1)
    labels = bunch.target.astype(np.int64)
    splits = stratified(labels, [str(i) for i in range(len(labels))], validation=240, test=360)
    train, validation, test = (ArraySource(images[split], labels[split]) for split in splits)
    names = tuple(str(name) for name in bunch.target_names)
    return Dataset("digits", names, train, validation, test)


@dataclasses.dataclass(frozen=True)
class Gratings:
    """Noisy gratings of 32 px: picture i of a split is a function of (split, i); class is angle."""

    split: int
    count: int
    classes: int = 10

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        random = np.random.default_rng([self.split, index])
        label = index % self.classes
        angle = np.pi * label / self.classes
        y, x = np.mgrid[:32, :32]
        phase = 2 * np.pi * random.random()
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 0.8 + phase)
        image = 127.5 + 80 * wave[..., None] + random.normal(0, 25, (32, 32, 3))
        return np.clip(image, 0, 255).astype(np.uint8), label

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.count) % self.classes


def synthetic() -> Dataset:
    """Gratings whose angle is their class."""
    names = tuple(f"{18 * k} degrees" for k in range(10))
    return Dataset("synthetic", names, Gratings(0, 1000), Gratings(1, 200), Gratings(2, 200))
