"""A network as the flags of a program describe it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kapps._errors import InputError, is_number, unknown

if TYPE_CHECKING:
    import keras

    from kapps import Builder

_OWN_FLAG = {"classes", "input_shape", "input_tensor", "weights"}  # or none that makes sense here
_NOT_TRAINED = {
    "classifier_activation": "the program sets it, since the loss is computed of logits",
    "include_top": "without the classifier there is nothing that the labels could train",
    "pooling": "it takes the place of the classifier, which the labels train",
}


def build_network(
    builder: Builder,
    arguments: str | Mapping[str, Any] | None = None,
    *,
    input_shape: tuple[int | None, int | None, int] | None = None,
    classes: int | None = None,
    weights: str | None = None,
    cut_at: str | None = None,
) -> keras.Model:
    """The network of a builder.

    Args:
        builder: of one of `kapps.list_models()`.
        arguments: as of the flag --arguments, see `parse_arguments`; or by name, where a list is as
            good as a tuple: what `network_arguments` has returned.
        input_shape: (height, width, channels); by default the network's own.
        classes: by default as many as the network has by itself.
        weights: as the builder takes them; by default random ones.
        cut_at: where the network is cut: see `kapps.tools.cutting`. Weights are then a file of
            those of the cut network.

    Raises:
        InputError: a value is not one of those, or the network does not take it.
    """
    name = builder.__name__
    if arguments is None or isinstance(arguments, str):
        values = parse_arguments(builder, arguments or "")
    else:
        _check_names(builder, arguments)
        values = {key: _as_tuples(value) for key, value in arguments.items()}
    if cut_at is not None:
        from kapps.tools.cutting import cut_network  # which builds by this function

        return cut_network(
            builder, values, cut_at, input_shape=input_shape, classes=classes, weights=weights
        )
    text = ",".join(f"{key}={value}" for key, value in values.items())
    own = {"classes": classes, "weights": weights, "input_shape": input_shape}
    values |= {key: value for key, value in own.items() if value is not None}
    for parameter in inspect.signature(builder).parameters.values():
        if parameter.default is parameter.empty and parameter.name not in values:
            raise InputError(f"{name} needs --arguments={parameter.name}=...")
    try:
        return builder(**values)
    except TypeError as error:
        if not text:
            raise
        raise InputError(f"{name} does not take --arguments={text}: {error}") from error


def network_arguments(
    builder: Builder, text: str | None, shared: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run keeps of the arguments of its network: JSON tells them, tuples as lists.

    `build_network` builds the same network from them, at any time.

    Args:
        builder: of the network.
        text: of the flag --arguments, see `parse_arguments`.
        shared: values of flags that are called as the builder's parameters, such as dropout_rate;
            None where the flag was not given: the builder's default.

    Raises:
        InputError: the text is not as described; an argument is given in both ways, cannot be
            written as JSON, or makes a network that cannot be trained.
    """
    values = parse_arguments(builder, text or "")
    given = {name: value for name, value in shared.items() if value is not None}
    _check_names(builder, given)
    for name in values:
        if name in _NOT_TRAINED:
            raise InputError(
                f"--arguments={name}=... is not for training: {_NOT_TRAINED[name]}; leave it out"
            )
        if name in given:
            raise InputError(
                f"--arguments={name}={values[name]} and --{name}={given[name]}: give one of the two"
            )
    return {name: _as_json(name, value) for name, value in sorted((values | given).items())}


def _names(builder: Builder) -> list[str]:
    return [name for name in inspect.signature(builder).parameters if name not in _OWN_FLAG]


def _check_names(builder: Builder, names: Mapping[str, Any]) -> None:
    known = _names(builder)
    for name in names:
        if name not in known:
            raise unknown(f"argument of {builder.__name__}", name, known)


def _as_json(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_json(name, item) for item in value]
    if value is None or isinstance(value, (bool, str)) or is_number(value):
        return value
    raise InputError(
        f"--arguments: {name}={value!r} is no number, text, True, False, None or tuple of these"
    )


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def parse_arguments(builder: Builder, text: str) -> dict[str, Any]:
    """The keyword arguments in "depth=28,pooling=max": Python literals, or words without quotes.

    Raises:
        InputError: it is something else, or names an argument that the builder does not have, or
            that has a flag of its own.
    """
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
        if len(values) < len(call.keywords):
            raise ValueError("a name twice")
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        raise InputError(
            f"--arguments={text}: give NAME=VALUE,NAME=VALUE, each name once, such as "
            "depth=28,blocks=(3,4); "
            f"{builder.__name__} has {', '.join(_names(builder))}"
        ) from None
    _check_names(builder, values)
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
