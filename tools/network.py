"""A network as the flags of a program describe it."""

from __future__ import annotations

import ast
import inspect
import re
from typing import TYPE_CHECKING, Any

from kapps._errors import InputError, unknown

if TYPE_CHECKING:
    import keras

    from kapps import Builder

_OWN_FLAG = {"classes", "input_shape", "input_tensor", "weights"}  # or none that makes sense here


def build_network(
    builder: Builder,
    arguments: str | None = None,
    *,
    input_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    weights: str | None = None,
) -> keras.Model:
    """The network of a builder.

    Args:
        builder: of one of `kapps.list_models()`.
        arguments: as of the flag --arguments: see `parse_arguments`.
        input_shape: (height, width, channels); by default the network's own.
        classes: by default as many as the network has by itself.
        weights: as the builder takes them; by default random ones.

    Raises:
        InputError: a value is not one of those, or the network does not take it.
    """
    name = builder.__name__
    values = parse_arguments(builder, arguments or "")
    if classes is not None:
        values["classes"] = classes
    if weights is not None:
        values["weights"] = weights
    if input_shape is not None:
        values["input_shape"] = input_shape
    for parameter in inspect.signature(builder).parameters.values():
        if parameter.default is parameter.empty and parameter.name not in values:
            raise InputError(f"{name} needs --arguments={parameter.name}=...")
    try:
        return builder(**values)
    except TypeError as error:
        if arguments is None:
            raise
        raise InputError(f"{name} does not take --arguments={arguments}: {error}") from error


def parse_arguments(builder: Builder, text: str) -> dict[str, Any]:
    """The keyword arguments in "depth=28,pooling=max": Python literals, or words without quotes.

    Raises:
        InputError: it is something else, or names an argument that the builder does not have, or
            that has a flag of its own.
    """
    known = [name for name in inspect.signature(builder).parameters if name not in _OWN_FLAG]
    try:
        call = ast.parse(f"network({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError("not only NAME=VALUE")
        if any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("a ** without a name")
        values = {
            str(keyword.arg): keyword.value.id
            if isinstance(keyword.value, ast.Name)
            else ast.literal_eval(keyword.value)
            for keyword in call.keywords
        }
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        raise InputError(
            f"--arguments={text}: give NAME=VALUE,NAME=VALUE, such as depth=28,blocks=(3,4); "
            f"{builder.__name__} has {', '.join(known)}"
        ) from None
    for name in values:
        if name not in known:
            raise unknown(f"argument of {builder.__name__}", name, known)
    return values


def parse_size(text: str) -> tuple[int, int]:
    """Height and width, pixels, of "224" or "240x320".

    Raises:
        InputError: it is something else.
    """
    sides = re.fullmatch(r"(\d+)(?:x(\d+))?", text, re.ASCII)
    if sides is None:
        raise InputError(f"--input_size={text}: give pixels, such as 224 or 240x320")
    return int(sides[1]), int(sides[2] or sides[1])
