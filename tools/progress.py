"""The progress bar of all binaries, on stderr."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(
    total: int, unit: str, description: str = "", *, initial: int = 0, show: bool = True
) -> tqdm[Any]:
    """A bar with rate and estimated time left; in a log file it is a line every ten seconds."""
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        disable=not show,
        mininterval=0.5 if sys.stderr.isatty() else 10,
        dynamic_ncols=True,
    )
