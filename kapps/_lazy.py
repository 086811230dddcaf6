"""Modules that are loaded as soon as another one is, or once they are needed."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

from kapps._errors import InputError


def load_with(trigger: str, modules: Sequence[str]) -> None:
    """Imports `modules` as soon as `trigger` is imported; now, if it is.

    What imports the trigger may be one of the modules, or a module that any of them needs, and is
    then incomplete when they are loaded. So they import nothing but the trigger and what does not
    import it; and of each other nothing by name (`from kapps import custom_layers` will do).
    """
    if trigger in sys.modules:
        _load(modules)
    else:
        sys.meta_path.insert(0, _Watch(trigger, modules))


def _load(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)


def imported(name: str, caller: str, extra: str) -> Any:
    """A module of an extra of kapps, which `caller` needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it would like to have besides
            return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{caller} needs a package that is not installed ({error}): pip install "
            f"'kapps[{extra}]'"
        ) from error


class _Watch(importlib.abc.MetaPathFinder):
    """Sees to it that the modules are loaded behind the trigger, once.

    It stays until the trigger has been imported: others may only ask whether it is there.
    """

    def __init__(self, trigger: str, modules: Sequence[str]) -> None:
        self.trigger, self.modules = trigger, modules

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.trigger:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_load(module: types.ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _load(self.modules)

        spec.loader.exec_module = execute_and_load  # type: ignore[method-assign]
        return spec
