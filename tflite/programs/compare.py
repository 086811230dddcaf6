"""Compares .tflite files with the network that they came from, layer by layer, worst first.

A layer's own error is what it does to the inputs that it has in the file; its error is against the
network, with all that went wrong before. Both are shares of the root mean square of its output.
Exits with 1 if the output of a file is beyond the limit.

Examples:

  kapps-compare net.tflite --workdir=/tmp/run
  kapps-compare net.tflite --model=MobileNetV3Small --weights=FILE --dataset=folder:PATH
"""

from __future__ import annotations

import json
import sys

from absl import flags

from kapps._errors import InputError, printable
from kapps.tflite.child import MOST_SECONDS
from kapps.tflite.programs import model_flags
from kapps.tools import cli

_MODEL = model_flags.define()
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

_START_LIMIT = 600.0  # seconds to load a file of --keras and the images


def main(argv: list[str]) -> int | None:
    """Compares and prints a table for each file."""
    cli.check_output(_JSON)
    if _MODEL.is_for_another_process():
        return _MODEL.start_anew("compare", _START_LIMIT + _TIME_LIMIT.value * len(argv[1:]))
    from kapps._files import atomic_write
    from kapps.tflite import source as sources
    from kapps.tflite.comparison import compare_layers

    source = _MODEL.load()
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
            figures = {file: comparison.figures() for file, comparison in results.items()}
            temporary.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
    return int(not all(comparison.agrees for comparison in results.values()))


def run() -> None:
    cli.run(main, files="FILE...")


if __name__ == "__main__":
    run()
