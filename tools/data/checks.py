"""Finds damaged pictures before it is their turn, which may be days later."""

from __future__ import annotations

import os
from multiprocessing.pool import ThreadPool

from kapps.tools.data import images
from kapps.tools.data.images import BadImage
from kapps.tools.data.sources import Dataset, Source


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
