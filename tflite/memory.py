"""The memory of this process."""

from __future__ import annotations

import contextlib
import ctypes


def give_back_free_memory() -> None:
    """What has been freed goes back to the system, where the C library keeps it."""
    with contextlib.suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
