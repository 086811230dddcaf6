"""The flag for the size that a file is given whose input has none."""

from __future__ import annotations

from absl import flags

flags.disclaim_key_flags()  # it belongs to the program that asks for it


class _Shape(flags.ArgumentParser):
    syntactic_help = "whole numbers above 0, such as 1,224,224,3"

    def parse(self, argument: str | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(argument, tuple):
            return argument
        sides = argument.split(",")
        if not all(side.isascii() and side.isdecimal() and int(side) for side in sides):
            raise ValueError(f"expected {self.syntactic_help}")
        return tuple(map(int, sides))

    def flag_type(self) -> str:
        return "shape"


def define() -> flags.FlagHolder[tuple[int, ...] | None]:
    """Defines --input_shape for the module that calls this."""
    return flags.DEFINE(
        _Shape(),
        "input_shape",
        None,
        "of files whose input has no fixed size: batch, height, width, channels, as in 1,224,224,3",
        serializer=flags.CsvListSerializer(","),
    )
