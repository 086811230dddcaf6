"""The quantizations that a file can have, what it then takes and gives, and what each asks for."""

from __future__ import annotations

from typing import Literal, get_args

from kapps._errors import InputError, unknown

Quantization = Literal[
    "float32", "float16", "dynamic", "int4", "int4_blockwise", "int8", "mixed", "int16x8"
]
"""float16: weights of 16 bits, float arithmetic. dynamic: weights of 8 bits, activations quantized
as they come. int4: the same with 4 bits in convolutions and dense layers, at a loss that few
networks bear without training for it. int4_blockwise: dynamic with 4 bits in dense layers, 32
weights to a scale. int8: weights and activations of 8 bits, by calibration. mixed: int8 with as
many of the layers that lose most in floats as a target takes. int16x8: int8 with activations of 16
bits, nearly exact, and some ten times slower."""

QUANTIZATIONS: tuple[Quantization, ...] = ("float32", "float16", "dynamic", "int8")
"""Those that are fast on a phone, run on any runtime and need no target."""

FOUR_BITS = ("int4", "int4_blockwise")

VARIANTS = (
    *("float32", "float16", "dynamic", "int4", "int4_blockwise"),
    *("int8", "int8-qat", "mixed", "int16x8"),
)
"""What a file may be, in the order of reports; int8-qat is int8 by quantization-aware training."""

CALIBRATED = ("int8", "mixed", "int16x8")

IO = Literal["uint8", "int8", "int16", "float32"]

Format = Literal["tflite", "onnx"]
"""onnx: for what is no phone, see `kapps.tflite.onnx_file`; float32 only."""

_IO: dict[str, tuple[IO, ...]] = {
    "int8": ("uint8", "int8", "float32"),
    "mixed": ("uint8", "int8", "float32"),
    "int16x8": ("float32", "int16"),
}
"""What a file can take and give, the default first; float32 alone for the others."""


def check_quantization(
    quantization: Quantization, io: IO | None, file_format: Format = "tflite"
) -> IO:
    """The type of input and output, if there is such a quantization and it can have that type.

    Raises:
        InputError: it is not so.
    """
    if quantization not in get_args(Quantization):
        raise unknown("quantization", quantization, get_args(Quantization))
    if file_format not in get_args(Format):
        raise unknown("format", file_format, get_args(Format))
    if file_format == "onnx" and quantization != "float32":
        raise InputError(f"ONNX files are float32, not {quantization}; leave --quantization out")
    known = _IO.get(quantization, ("float32",))
    if io is None:
        return known[0]
    if io not in known:
        raise InputError(f"io: {quantization} files take {' or '.join(known)}, not {io!r}")
    return io


def check_target(quantization: str, target_loss: float | None) -> None:
    """Raises InputError unless a target goes with the quantization, and is one."""
    if quantization != "mixed":
        if target_loss is not None:
            raise InputError(f"target_loss is for mixed files, not for {quantization}")
    elif target_loss is None:
        raise InputError(
            "mixed needs target_loss: the share of the calibration images, such as 0.005, that the "
            "file may put into another class than the float network"
        )
    elif not 0 <= target_loss < 1:
        raise InputError(f"target_loss: expected a share, 0 or more and below 1, got {target_loss}")
