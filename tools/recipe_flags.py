"""A recipe by its name and by a flag for each of its settings, as the training programs take it."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from absl import flags

from kapps._errors import InputError
from kapps.tools import recipe as recipes
from kapps.tools.recipe import Recipe
from kapps.tools.recipes import RECIPES, get_recipe

flags.disclaim_key_flags()  # they belong to the program that asks for them


def define() -> flags.FlagHolder[str]:
    """Defines --recipe and the flags of its settings, which belong to the calling program."""
    holder = flags.DEFINE_string("recipe", "default", f"settings: {', '.join(RECIPES)}")
    for name, (kind, help_, choices) in recipes.settings().items():
        help_ = f"{help_}; by default the recipe's"
        if kind is bool:
            flags.DEFINE_boolean(name, None, help_)
        elif kind is int:
            flags.DEFINE_integer(name, None, help_)
        elif kind is float:
            flags.DEFINE_float(name, None, help_)
        elif typing.get_origin(kind) is tuple:
            flags.DEFINE_list(name, None, f"{help_}; such as 30,60")
        else:
            flags.DEFINE_enum(name, None, list(choices), help_)
    return holder


def chosen(holder: flags.FlagHolder[str]) -> Recipe:
    """The recipe that --recipe names, with the settings that have been given.

    Raises:
        InputError: there is no such recipe, or a value is out of range.
    """
    given: dict[str, Any] = {
        name: value for name in recipes.settings() if (value := flags.FLAGS[name].value) is not None
    }
    for name, value in given.items():
        if isinstance(value, list):
            try:
                given[name] = tuple(float(number) for number in value)
            except ValueError:
                raise InputError(f"--{name}={','.join(value)}: give numbers, as 30,60") from None
    return dataclasses.replace(get_recipe(holder.value), **given)
