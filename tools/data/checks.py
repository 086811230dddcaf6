"""Looks at pictures before it is their turn: for damage, and at a few to tell a source by."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool

import numpy as np

from kapps.tools.data import images
from kapps.tools.data.images import BadImage
from kapps.tools.data.sources import Dataset, Source


def sample(source: Source, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Label and pixels of pictures from all over a source, but for those that cannot be read.

    Args:
        source: of the pictures.
        count: at most so many are looked at.
    """
    for index in np.linspace(0, len(source) - 1, min(len(source), count)).astype(int):
        try:
            picture, label = source[int(index)]
            pixels = np.asarray(images.read(picture))
        except BadImage:  # the loader says what is to be done about it
            continue
        yield label, pixels


def verify(source: Source, workers: int | None = None) -> list[BadImage]:
    """Decodes all pictures of a source.

    Args:
        source: may be read by several threads at once.
        workers: threads; by default as many as there are cores.

    Returns:
        What is wrong with those that cannot be read, in their order.
    """

    def fault(index: int) -> BadImage | None:
        try:
            images.read(source[index][0])
        except BadImage as error:
            return error
        return None

    with ThreadPool(workers or os.cpu_count() or 1) as pool:
        return [found for found in pool.imap(fault, range(len(source)), chunksize=8) if found]


def check(dataset: Dataset, limit: int = 20_000, workers: int | None = None) -> list[BadImage]:
    """Decodes all pictures of validation and test, but for a split of more than `limit`.

    Training meets each picture in its first epoch; the test's come when all is done.
    """
    return [
        error
        for source in (dataset.validation, dataset.test)
        if len(source) <= limit
        for error in verify(source, workers)
    ]
