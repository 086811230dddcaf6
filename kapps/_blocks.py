"""The blocks of a network, by the names of its layers.

A block is what has a name that counts, such as blocks.2.1, and no smaller one within.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kapps._layers import layer_name

# The last component of a path that counts: blocks.2.1, layer3.0, denselayer7, inception4b
_COUNTS = re.compile(r"\d[a-z]?$")


def prefixes(path: str) -> list[str]:
    """ "a", "a.b" of "a.b.c"."""
    words = path.split(".")
    return [".".join(words[:i]) for i in range(1, len(words))]


def counting(paths: Iterable[str]) -> dict[str, str]:
    """The innermost prefixes that count, by their layer names.

    Args:
        paths: of layers with weights, as in a checkpoint.
    """
    found: dict[str, str] = {}
    for path in paths:
        inner = [prefix for prefix in prefixes(path) if _COUNTS.search(prefix)]
        found.update((layer_name(prefix), prefix) for prefix in inner[-1:])
    return found


def block_of(name: str, blocks: Iterable[str]) -> str | None:
    """The smallest block that a layer belongs to."""
    return max((block for block in blocks if is_within(name, block)), key=len, default=None)


def is_within(name: str, prefix: str) -> bool:
    """Whether a layer belongs to what has this name."""
    return name == prefix or name.startswith(f"{prefix}_")
