"""Converts a network to verified .tflite files with labels and metadata.

Examples:

  kapps-convert --workdir=/tmp/run --output=net.tflite --quantization=int8
  kapps-convert --workdir=/tmp/run --output=net.tflite --quantization=float32,float16,int8
  kapps-convert --model=MobileNetV3Small --weights=imagenet --calibration=folder:PATH --output=FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from kapps._errors import InputError, printable
from kapps.tools import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of a finished run of kapps-train")
_MODEL = flags.DEFINE_string("model", None, "network of --weights")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "file of weights, or tag of published ones, in place of --workdir"
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "height and width of the input, pixels; by default the network's"
)
_CLASSES = flags.DEFINE_integer("classes", None, "number of classes of --weights", lower_bound=1)
_LABELS = flags.DEFINE_string("labels", None, "file with the name of each class, one a line")
_OUTPUT = flags.DEFINE_string(
    "output", None, "the .tflite file; of several quantizations each adds its name: net_int8.tflite"
)
_QUANTIZATION = flags.DEFINE_list(
    "quantization", "float32", "float32, float16, dynamic, int8 or int16x8; several with commas"
)
_IO = flags.DEFINE_string(
    "io",
    None,
    "type of input and output: for int8 uint8 (the default), int8 or float32; for int16x8 float32 "
    "(the default) or int16",
)
_CALIBRATION = flags.DEFINE_string(
    "calibration",
    None,
    "data set whose training images calibrate: as for kapps-train, or folder:PATH of images; by "
    "default that of the run",
)
_CALIBRATION_IMAGES = flags.DEFINE_integer(
    "calibration_images", 300, "how many of them", lower_bound=1
)
_VERIFICATION = flags.DEFINE_string(
    "verification",
    None,
    "data set on whose validation images file and model are compared; by default as calibration",
)
_VERIFICATION_IMAGES = flags.DEFINE_integer(
    "verification_images", 200, "how many of them", lower_bound=1
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie")
_NAME = flags.DEFINE_string("name", None, "for the metadata; by default that of the network")
_DESCRIPTION = flags.DEFINE_string("description", "", "for the metadata: what the model does")
_AUTHOR = flags.DEFINE_string("author", "", "for the metadata")
_LICENCE = flags.DEFINE_string("licence", "", "for the metadata: an SPDX identifier, or the text")


def main(argv: list[str]) -> int | None:
    """Converts, and prints a line for each file."""
    (output,) = cli.required(_OUTPUT)
    quantizations = list(dict.fromkeys(_QUANTIZATION.value))
    if not quantizations:
        raise InputError("--quantization is empty; --help lists those there are")
    from kapps.tflite.conversion import check_quantization, convert
    from kapps.tflite.programs import source as sources
    from kapps.tools.progress import progress_bar

    for quantization in quantizations:  # before the images are read
        check_quantization(quantization, _IO.value)
    source = sources.load_model(
        _WORKDIR.value,
        _MODEL.value,
        _WEIGHTS.value,
        image_size=_IMAGE_SIZE.value,
        classes=_CLASSES.value,
        labels=_LABELS.value,
    )
    calibration = _CALIBRATION.value or source.dataset
    verification = _VERIFICATION.value or calibration
    if verification is None:
        raise InputError(
            "give real images of the kind that the model will see, for calibration and for the "
            "check of the file: --calibration=DATASET or --calibration=folder:PATH"
        )
    data_dir = _DATA_DIR.value
    if calibration is None:
        calibration_images = None
    else:
        _say(f"reading up to {_CALIBRATION_IMAGES.value} images of {calibration} to calibrate on")
        calibration_images = sources.load_images(
            calibration, "train", _CALIBRATION_IMAGES.value, source, data_dir
        )
    _say(f"reading up to {_VERIFICATION_IMAGES.value} images of {verification} for the check")
    verification_images = sources.load_images(
        verification, "validation", _VERIFICATION_IMAGES.value, source, data_dir
    )
    with progress_bar(len(quantizations), "file", "converting") as bar:
        for quantization in quantizations:
            conversion = convert(
                source.model,
                _file(Path(output), quantization, len(quantizations)),
                quantization=quantization,
                calibration=calibration_images,
                verification=verification_images,
                labels=source.labels,
                io=_IO.value,
                name=_NAME.value,
                description=_DESCRIPTION.value,
                author=_AUTHOR.value,
                licence=_LICENCE.value,
                weights=source.weights,
            )
            lines = [
                f"{printable(conversion.path)}: {quantization}, {conversion.io} input, "
                f"{conversion.size_bytes / 2**20:.2f} MiB; {conversion.verification}"
            ]
            if conversion.float_operations:
                lines.append(f"  in float: {', '.join(conversion.float_operations)}")
            bar.write("\n".join(lines), file=sys.stdout)
            bar.update()
    return None


def _file(output: Path, quantization: str, count: int) -> Path:
    if count == 1:
        return output
    return output.with_name(f"{output.stem}_{quantization}{output.suffix}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
