"""Converting a model to files of several quantizations, with images of a data set."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kapps._errors import InputError, printable
from kapps.tflite.conversion import Conversion, convert
from kapps.tflite.quantizations import IO, Format, Quantization
from kapps.tflite.source import Model, load_images


@dataclass(frozen=True)
class Images:
    """Which images calibrate and which ones the file is checked on.

    A data set is named as for kapps-train, or "folder:PATH" of images without classes.
    """

    calibration: str | None = None
    """Its training images are taken; by default those that the model was trained on."""
    calibration_images: int = 300
    verification: str | None = None
    """Its validation images are taken; by default of `calibration`."""
    verification_images: int = 200
    data_dir: str | None = None
    """Where the TensorFlow data sets lie."""


@dataclass(frozen=True)
class About:
    """What the metadata says, see `convert`."""

    name: str | None = None
    description: str = ""
    author: str = ""
    licence: str = ""


def read_images(
    source: Model, images: Images, say: Callable[[str], object] = lambda line: None
) -> tuple[np.ndarray | None, np.ndarray]:
    """The images to calibrate on, if any are named, and those to check on, as the model takes them.

    Args:
        source: the model.
        images: which.
        say: told what is being read.

    Raises:
        InputError: none are named, or they cannot be read.
    """
    calibration = images.calibration or source.dataset
    verification = images.verification or calibration
    if verification is None:
        raise InputError(
            "give real images of the kind that the model will see, for calibration and for the "
            "check of the file: --calibration=DATASET or --calibration=folder:PATH"
        )
    calibrate_on = None
    if calibration is not None:
        say(f"reading up to {images.calibration_images} images of {calibration} to calibrate on")
        calibrate_on = load_images(
            calibration, "train", images.calibration_images, source, images.data_dir
        )
    say(f"reading up to {images.verification_images} images of {verification} for the check")
    check_on = load_images(
        verification, "validation", images.verification_images, source, images.data_dir
    )
    return calibrate_on, check_on


def convert_each(
    source: Model,
    output: Path,
    quantizations: Sequence[Quantization],
    images: tuple[np.ndarray | None, np.ndarray],
    *,
    io: IO | None = None,
    about: About | None = None,
    target_loss: float | None = None,
    file_format: Format = "tflite",
) -> Iterator[Conversion]:
    """Writes a file for each quantization, one after the other.

    Args:
        source: the model.
        output: the file; of several each has its quantization in the name: net_int8.tflite.
        quantizations: see `convert`.
        images: from `read_images`.
        io: see `convert`.
        about: for the metadata.
        target_loss: of a mixed file, see `convert`.
        file_format: see `convert`.

    Raises:
        InputError, ConversionError: as `convert`.
    """
    calibrate_on, check_on = images
    about = about or About()
    for quantization in quantizations:
        yield convert(
            source.model,
            _file(output, quantization, len(quantizations)),
            quantization=quantization,
            calibration=calibrate_on,
            verification=check_on,
            labels=source.labels,
            io=io,
            name=about.name,
            description=about.description,
            author=about.author,
            licence=about.licence,
            weights=source.weights,
            target_loss=target_loss if quantization == "mixed" else None,
            file_format=file_format,
        )


def summary(conversion: Conversion) -> str:
    """What came of it: a line, the curve of a mixed file, and a line for what computes in float."""
    line = (
        f"{printable(conversion.path)}: {_kind(conversion)}, {conversion.io} input, "
        f"{conversion.size_bytes / 2**20:.2f} MiB; {conversion.verification}"
    )
    if conversion.refinements:
        line += f"; with {', '.join(conversion.refinements)}"
    if conversion.trade is not None:
        line += "\n" + textwrap.indent(conversion.trade.table(), "  ")
    if not conversion.float_operations:
        return line
    return f"{line}\n  in float: {', '.join(conversion.float_operations)}"


def _kind(conversion: Conversion) -> str:
    return conversion.quantization if conversion.file_format == "tflite" else "ONNX"


def _file(output: Path, quantization: str, count: int) -> Path:
    if count == 1:
        return output
    return output.with_name(f"{output.stem}_{quantization}{output.suffix}")
