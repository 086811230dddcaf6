"""What a page of figures tells of where they are from."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform


def measured_on(*packages: str) -> str:
    """The date, the machine, and the versions of Python and of these packages."""
    versions = "".join(f", {name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"{datetime.date.today()}, on {len(os.sched_getaffinity(0))} cores of "
        f"{platform.machine()}, Python {platform.python_version()}{versions}"
    )
