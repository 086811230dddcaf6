"""Tells what a network costs: parameters, MACs, activation memory and receptive field, by layer.

Examples:

  kapps-summary --model=MobileNetV3Small
  kapps-summary --model=LeNet5 --input_size=48x64 --classes=36 --arguments=pooling=max
  kapps-summary --list
"""

from __future__ import annotations

import dataclasses

from absl import flags

from kapps._errors import InputError
from kapps.tools import cli
from kapps.tools.streams import start_keras

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
_JSON = cli.define_json()

_FIGURES = (
    "parameters",
    "trainable_parameters",
    "macs",
    "activation_bytes",
    "peak_activation_bytes",
    "receptive_field",
)


def main(argv: list[str]) -> int | None:
    """Prints the table, or the names."""
    if (_MODEL.value is None) != _LIST.value:
        raise InputError("give either --model or --list; --help lists the flags")
    start_keras()
    import kapps

    if _LIST.value:
        names = kapps.list_models()
        cli.put_out("\n".join(names), names, _JSON)
        return None
    from kapps._profile import profile
    from kapps.tools.network import build_network, parse_size

    builder = kapps.get_builder(_MODEL.value)
    channels = builder.input_shape[2]
    shape = None if _INPUT_SIZE.value is None else (*parse_size(_INPUT_SIZE.value), channels)
    model = build_network(builder, _ARGUMENTS.value, input_shape=shape, classes=_CLASSES.value)
    any_size = None in model.input_shape[1:]
    result = profile(model, builder.input_shape if any_size else None)
    figures = {"model": result.name, **{name: getattr(result, name) for name in _FIGURES}}
    figures["layers"] = [dataclasses.asdict(layer) for layer in result.layers]
    cli.put_out(str(result) if _LAYERS.value else result.totals(), figures, _JSON)
    return None


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
