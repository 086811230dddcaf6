"""The public builders by name.

A builder registers itself when its module is loaded; whoever asks for a name sees to it that all
modules are. Nothing is imported here but on that occasion, so that every module may ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapps._errors import unknown

if TYPE_CHECKING:
    from kapps._model import Builder

_BUILDERS: dict[str, Builder] = {}


def register(builder: Builder) -> Builder:
    """Makes a builder known under its name."""
    _BUILDERS[builder.__name__] = builder
    return builder


def list_models() -> list[str]:
    """The names of all public builders, sorted: `getattr(kapps, name)` is the builder."""
    _load_all()
    return sorted(_BUILDERS)


def get_builder(name: str) -> Builder:
    """The public builder of that name.

    Raises:
        InputError: there is none; the nearest names are proposed.
    """
    _load_all()
    if name not in _BUILDERS:
        raise unknown("model", name, _BUILDERS)
    return _BUILDERS[name]


def _load_all() -> None:
    """Imports every family: a public name loads its module."""
    import kapps

    for name in kapps.__all__:
        getattr(kapps, name)
