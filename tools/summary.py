"""Tells what a network costs: parameters, MACs, activation memory and receptive field, by layer.

Examples:

  kapps-summary --model=MobileNetV3Small
  kapps-summary --model=LeNet5 --input_size=48x64 --classes=36 --arguments=pooling=max
  kapps-summary --list
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from kapps._errors import InputError, unknown
from kapps.tools import cli

if TYPE_CHECKING:
    from kapps import Builder

_MODEL = flags.DEFINE_string("model", None, "network, such as MobileNetV3Small")
_LIST = flags.DEFINE_boolean("list", False, "print the names of all networks, one a line")
_INPUT_SIZE = flags.DEFINE_string(
    "input_size", None, "224, or HEIGHTxWIDTH, pixels; by default the network's own"
)
_CLASSES = flags.DEFINE_integer(
    "classes", None, "number of classes; by default the network's own", lower_bound=1
)
_ARGUMENTS = flags.DEFINE_string(
    "arguments", None, "further arguments of the network, such as include_top=False,pooling=avg"
)
_LAYERS = flags.DEFINE_boolean("layers", True, "a line for each layer; --nolayers for totals only")
_JSON = flags.DEFINE_string("json", None, "file to write the figures to as well")

_OWN_FLAG = {"classes", "input_shape", "input_tensor", "weights"}  # or no matter here


def main(argv: list[str]) -> int | None:
    """Builds the network, with random weights, and prints its profile."""
    if (_MODEL.value is None) == (not _LIST.value):
        raise InputError("give either --model or --list; --help lists the flags")
    import kapps

    if _LIST.value:
        _print("\n".join(kapps.list_models()))
        return None
    from kapps._files import atomic_write
    from kapps._profile import profile

    builder = kapps.get_builder(_MODEL.value)
    model = _build(builder)
    any_size = None in model.input_shape[1:]
    result = profile(model, builder.input_shape if any_size else None)
    if _JSON.value is not None:
        figures = {
            "model": result.name,
            "parameters": result.parameters,
            "trainable_parameters": result.trainable_parameters,
            "macs": result.macs,
            "activation_bytes": result.activation_bytes,
            "peak_activation_bytes": result.peak_activation_bytes,
            "receptive_field": result.receptive_field,
            "layers": [dataclasses.asdict(layer) for layer in result.layers],
        }
        with atomic_write(_JSON.value) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n")
    _print(str(result) if _LAYERS.value else result.totals())
    return None


def _build(builder: Builder) -> Any:
    """The model that the flags describe."""
    name = builder.__name__
    arguments = _parse_arguments(builder)
    if _CLASSES.value is not None:
        arguments["classes"] = _CLASSES.value
    if _INPUT_SIZE.value is not None:
        sides = re.fullmatch(r"(\d+)(?:x(\d+))?", _INPUT_SIZE.value)
        if sides is None:
            raise InputError(
                f"--input_size={_INPUT_SIZE.value}: give pixels, such as 224 or 240x320"
            )
        height, width = int(sides[1]), int(sides[2] or sides[1])
        arguments["input_shape"] = (height, width, builder.input_shape[2])
    for parameter in inspect.signature(builder).parameters.values():
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise InputError(f"{name} needs --arguments={parameter.name}=...")
    try:
        return builder(**arguments)
    except TypeError as error:
        if _ARGUMENTS.value is None:
            raise
        raise InputError(f"{name} does not take --arguments={_ARGUMENTS.value}: {error}") from error


def _parse_arguments(builder: Builder) -> dict[str, Any]:
    """The keyword arguments of --arguments: Python literals, or words without quotes."""
    text = _ARGUMENTS.value or ""
    known = [name for name in inspect.signature(builder).parameters if name not in _OWN_FLAG]
    try:
        call = ast.parse(f"network({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError("not only NAME=VALUE")
        if any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("a ** without a name")
        arguments = {
            keyword.arg: keyword.value.id
            if isinstance(keyword.value, ast.Name)
            else ast.literal_eval(keyword.value)
            for keyword in call.keywords
        }
    except (SyntaxError, ValueError):
        raise InputError(
            f"--arguments={text}: give NAME=VALUE,NAME=VALUE, such as depth=28,blocks=(3,4); "
            f"{builder.__name__} has {', '.join(known)}"
        ) from None
    for name in arguments:
        if name not in known:
            raise unknown(f"argument of {builder.__name__}", str(name), known)
    return {str(name): value for name, value in arguments.items()}


def _print(text: str) -> None:
    """To stdout, whose reader may have seen enough: `kapps-summary --list | head -1`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more when it ends (https://docs.python.org/3/library/signal.html).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
