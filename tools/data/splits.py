"""Which pictures are held out of a data set that has not done so itself."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from kapps._errors import InputError
from kapps.tools.data.sources import Dataset, Source, Subset

Split = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Indices of the pictures for training, validation and test."""

_MANY = 200_000
"""Pictures of which a hundredth is held out each time; of fewer it is a tenth."""


def stratified(
    labels: Sequence[int] | np.ndarray, keys: Sequence[str], validation: int, test: int
) -> Split:
    """Indices of training, validation and test, each class in proportion to within one picture.

    The pictures of a class are put in the order of the SHA-256 of their keys, so that the split is
    the same on every machine and does not depend on the order of the input; then pictures are held
    out at even distances, counted through all classes.
    """
    digests = [hashlib.sha256(key.encode(errors="surrogateescape")).digest() for key in keys]
    order = np.array(sorted(range(len(keys)), key=lambda i: (labels[i], digests[i])), dtype=int)
    rest, held_out = _every(order, test)
    train, watched = _every(rest, validation)
    return np.sort(train), np.sort(watched), np.sort(held_out)


def _every(order: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The others, and `count` entries at even distances."""
    position = np.arange(len(order)) * count // max(len(order), 1)
    taken = np.diff(position, append=count) > 0
    return order[~taken], order[taken]


def by_content(
    labels: Sequence[int] | np.ndarray,
    digests: Sequence[bytes],
    *,
    validation: bool = True,
    test: bool = True,
) -> Split:
    """Indices of training, validation and test, where a picture's own content decides its place.

    The digest of the content, as a fraction of the largest one, decides: below 0.1 is the test,
    from 0.9 on validation, all between is for training (0.01 and 0.99 from 200,000 pictures on).
    So neither its name nor its neighbours matter, and copies of a picture are in one split. Only
    then, of each class with three different pictures or more, the one with the smallest digest is
    in the test and the one with the largest in validation in any case; of a class with two, one is
    tested. If none is left for training, it is the one whose digest is nearest to 0.5.

    What one more picture moves: none of another class; none of its own class if that has, by the
    first rule alone, pictures in all three splits (of 50 pictures, 99 % of classes have); of a
    class that has not, two at most, copies counted once.

    Args:
        labels: the class of each picture.
        digests: of their contents, evenly distributed: SHA-256, for example.
        validation, test: what is wanted. Else the split is empty, and its pictures train.
    """
    share = 0.1 if len(digests) < _MANY else 0.01
    places: dict[tuple[int, bytes], int] = {}
    classes: dict[int, set[bytes]] = collections.defaultdict(set)
    for label, digest in zip(labels, digests, strict=True):
        classes[int(label)].add(digest)
    for label, different in classes.items():
        for digest, place in _places(different, share * validation, share * test).items():
            places[label, digest] = place
    found = np.array(
        [places[int(label), digest] for label, digest in zip(labels, digests, strict=True)]
    )
    train, watched, held_out = (np.flatnonzero(found == place) for place in range(3))
    return train, watched, held_out


_TRAIN, _VALIDATION, _TEST = range(3)


def _places(digests: set[bytes], validation: float, test: float) -> dict[bytes, int]:
    """The split of each different picture of one class."""
    order = sorted(digests)
    at = {digest: int.from_bytes(digest[:8], "big") / 2**64 for digest in order}
    places = {
        digest: _TEST if at[digest] < test else _VALIDATION if at[digest] >= 1 - validation else 0
        for digest in order
    }
    free = list(order)
    if test and len(order) > 1:
        places[free.pop(0)] = _TEST
    if validation and len(free) > 1:
        places[free.pop()] = _VALIDATION
    if _TRAIN not in places.values():
        places[min(free, key=lambda digest: abs(at[digest] - 0.5))] = _TRAIN
    return places


def share(total: int) -> int:
    """How many pictures to hold out by count: a tenth, 10,000 at most."""
    return min(-(-total // 10), 10_000)


def complete(
    name: str,
    class_names: tuple[str, ...],
    splits: dict[str, Source],
    divide: Callable[[bool, bool], Split],
    notes: Sequence[str] = (),
) -> Dataset:
    """Holds out of the training pictures what is missing of validation and test.

    A single split beside the training pictures is the held-out one, whatever its name: it is what
    results are compared on, so training must not watch it.

    Args:
        name, class_names: of the data set.
        splits: what is there, by name; "train" is.
        divide: is told whether validation and test are wanted, and divides the training pictures.
        notes: what else its user should know.

    Raises:
        InputError: there are too few pictures to hold some out.
    """
    told = []
    test = splits.get("test", splits.get("validation"))
    validation = splits.get("validation") if "test" in splits else None
    train = splits["train"]
    if "test" not in splits and test is not None:
        told.append("its validation split is the held-out one here")
    if validation is None:
        kept, watched, held_out = divide(True, test is None)
        if not (len(kept) and len(watched) and (len(held_out) or test is not None)):
            raise InputError(
                f"dataset {name!r}: {len(train)} training images are too few to hold some out; "
                "three different ones of a class are the least"
            )
        if test is None:
            test = Subset(train, held_out)
            told.append(f"{len(held_out)} training images are held out for the test")
        validation = Subset(train, watched)
        told.append(f"{len(watched)} training images are held out for validation")
        train = Subset(train, kept)
    assert test is not None
    note = "; ".join([f"{name}: {', '.join(told)}"] * bool(told) + list(notes))
    return Dataset(name, class_names, train, validation, test, note)
