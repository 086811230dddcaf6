"""What a data set is: three splits of labeled pictures that can be read in any order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from kapps._errors import InputError, is_whole, unknown
from kapps.tools.data.images import Picture


class Source(Protocol):
    """One split: labeled pictures, by index.

    Any object with these two methods is one. If it also has `labels`, the label of each picture,
    then nothing needs to be read where only those matter: see `labels_of`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        """The picture, and its label, 0 to classes - 1. Called from several threads at once."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A named data set with its three splits, which share no picture."""

    name: str
    class_names: tuple[str, ...]
    train: Source
    validation: Source
    """Looked at after each epoch; may decide when training stops."""
    test: Source
    """Held out: looked at once, at the end."""
    note: str = ""
    """What its user should know: where splits are from that it did not bring, what was left out."""

    def split(self, name: str) -> Source:
        """The split of that name: train, validation or test."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise unknown("split", name, splits)
        return splits[name]


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Pictures that are in memory: (n, height, width, 3) uint8 in 0..255, with n labels."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some pictures of another source."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        return self.source[int(self.indices[index])]

    @property
    def labels(self) -> np.ndarray | None:
        """The label of each picture; None if the other source has no `labels`."""
        labels = getattr(self.source, "labels", None)
        return None if labels is None else np.asarray(labels)[self.indices]


def labels_of(source: Source) -> np.ndarray:
    """The label of each picture, int64 (n,), by `source.labels`; where that is not, all are read.

    Raises:
        InputError: there are more or fewer labels than pictures, or one is no whole number.
    """
    labels: Any = getattr(source, "labels", None)
    if labels is None:
        labels = [source[i][1] for i in range(len(source))]
    if len(labels) != len(source):
        raise InputError(
            f"the source has {len(source)} pictures and {len(labels)} labels; give one for each"
        )
    for i, label in enumerate(labels):
        if not is_whole(label):
            raise InputError(f"label {i} of the source is {label!r}; expected a whole number")
    return np.array(labels, np.int64)


def class_weights(labels: Sequence[int] | np.ndarray, classes: int) -> np.ndarray:
    """What each picture of a class counts, so that all classes count the same: "balanced".

    Returns:
        n / (classes * pictures of the class), float64 (classes,); 0 for a class without pictures,
        which `without_images` names.
    """
    counts = np.bincount(np.asarray(labels, np.int64), minlength=classes)
    return np.divide(
        len(labels), classes * counts, out=np.zeros(classes, np.float64), where=counts > 0
    )


def without_images(labels: Sequence[int] | np.ndarray, class_names: Sequence[str]) -> str:
    """Names the classes that have no picture, eight at most; empty if each has one."""
    counts = np.bincount(np.asarray(labels, np.int64), minlength=len(class_names))
    missing = [name for name, count in zip(class_names, counts, strict=True) if not count]
    rest = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return ", ".join(map(repr, missing[:8])) + rest
