"""Compares .tflite files with the network that they came from, layer by layer, worst first.

A layer's own error is what it does to the inputs that it has in the file; its error is against the
network, with all that went wrong before. Both are shares of the root mean square of its output.
Exits with 1 if the output of a file is beyond the limit.

Examples:

  kapps-compare net.tflite --workdir=/tmp/run
  kapps-compare net.tflite --model=MobileNetV3Small --weights=FILE --dataset=folder:PATH
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from kapps._errors import InputError, printable
from kapps.tflite.child import MOST_SECONDS
from kapps.tools import cli

if TYPE_CHECKING:
    from kapps.tflite.comparison import Comparison

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of a finished run of kapps-train")
_MODEL = flags.DEFINE_string("model", None, "network of --weights")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "file of weights, or tag of published ones, in place of --workdir"
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "height and width of the input, pixels; by default the network's"
)
_CLASSES = flags.DEFINE_integer("classes", None, "number of classes of --weights", lower_bound=1)
_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "data set to compare on: as for kapps-train, or folder:PATH of images; by default the run's",
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie")
_IMAGES = flags.DEFINE_integer("images", 8, "how many images of its validation", lower_bound=1)
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit", 300, "seconds for a file to run on them", lower_bound=1, upper_bound=MOST_SECONDS
)
_JSON = flags.DEFINE_string("json", None, "file to write the figures to as well")


def main(argv: list[str]) -> int | None:
    """Compares and prints a table for each file."""
    cli.check_output(_JSON)
    from kapps._files import atomic_write
    from kapps.tflite.comparison import compare_layers
    from kapps.tflite.programs import source as sources

    source = sources.load_model(
        _WORKDIR.value,
        _MODEL.value,
        _WEIGHTS.value,
        image_size=_IMAGE_SIZE.value,
        classes=_CLASSES.value,
    )
    dataset = _DATASET.value or source.dataset
    if dataset is None:
        raise InputError("give real images to compare on: --dataset=NAME or --dataset=folder:PATH")
    images = sources.load_images(dataset, "validation", _IMAGES.value, source, _DATA_DIR.value)
    results = {}
    for file in argv[1:]:
        shown = printable(file)
        print(f"comparing {shown} on {len(images)} images", file=sys.stderr, flush=True)
        results[file] = compare_layers(source.model, file, images, time_limit=_TIME_LIMIT.value)
        print(f"{shown}: {results[file].quantization}")
        print(results[file].table())
        print(results[file].verdict(), flush=True)
    if _JSON.value is not None:
        with atomic_write(_JSON.value) as temporary:
            figures = {file: _figures(comparison) for file, comparison in results.items()}
            temporary.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
    return int(not all(comparison.agrees for comparison in results.values()))


def _figures(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON, which has no infinity and no not-a-number: null stands for them."""
    return {
        "quantization": comparison.quantization,
        "images": comparison.images,
        "agrees": comparison.agrees,
        "parts_at": comparison.parts_at and comparison.parts_at.layer,
        "layers": [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in dataclasses.asdict(error).items()
            }
            for error in comparison.worst_first
        ],
    }


def run() -> None:
    cli.run(main, files="FILE...")


if __name__ == "__main__":
    run()
