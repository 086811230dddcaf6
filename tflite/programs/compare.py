"""Compares .tflite files with the network that they came from, or two files with each other.

With a network, layer by layer, worst first: a layer's own error is what it does to the inputs that
it has in the file; its error is against the network, with all that went wrong before. Both are
shares of the root mean square of its output. Without one, the second of two files is held against
the first, by the tensors of one name. Exits with 1 if the output of a file is beyond the limit.

Examples:

  kapps-compare net.tflite --workdir=/tmp/run
  kapps-compare net.tflite --model=MobileNetV3Small --weights=FILE --dataset=folder:PATH
  kapps-compare float32.tflite int8.tflite --dataset=folder:PATH
"""

from __future__ import annotations

import sys

from absl import flags

from kapps._errors import InputError, printable
from kapps.tflite.child import MOST_SECONDS
from kapps.tflite.programs import model_flags
from kapps.tools import cli
from kapps.tools.streams import start_keras

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
_JSON = cli.define_json()

_START_LIMIT = 600.0  # seconds to load a file of --keras and the images


def main(argv: list[str]) -> int | None:
    """Compares and prints a table for each file."""
    cli.check_output(_JSON)
    if _MODEL.is_for_another_process():
        return _MODEL.start_anew("compare", _START_LIMIT + _TIME_LIMIT.value * len(argv[1:]))
    if not _MODEL.is_given():
        return _compare_files(argv[1:])
    start_keras()
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
        found = compare_layers(source.model, file, images, time_limit=_TIME_LIMIT.value)
        results[file] = found
        if _JSON.value != "-":
            text = f"{shown}: {found.quantization}\n{found.table()}\n{found.verdict()}"
            print(text, flush=True)  # at once: the next file may be damaged
    if _JSON.value is not None:
        cli.write_figures({file: found.figures() for file, found in results.items()}, _JSON)
    return int(not all(found.agrees for found in results.values()))


def _compare_files(files: list[str]) -> int:
    """Two files, without the network that they came from."""
    if len(files) != 2:
        raise InputError(
            f"give two files to hold against each other, not {len(files)}, or the network that "
            "they came from: --workdir, --keras, or --model with --weights"
        )
    if _DATASET.value is None:
        raise InputError("give real images to compare on: --dataset=NAME or --dataset=folder:PATH")
    from kapps.tflite.accuracy import describe
    from kapps.tflite.file_comparison import compare_files

    height, width = describe(files[0]).image_size
    if height != width:
        raise InputError(f"{files[0]} takes {height} x {width} pixels: expected a square")
    start_keras()  # which reading images takes as well
    from kapps.tflite import source as sources

    count, data_dir = _IMAGES.value, _DATA_DIR.value
    whole = sources.whole_square(height)
    images = sources.draw_images(_DATASET.value, "validation", count, whole, data_dir)
    found = compare_files(files[0], files[1], images, time_limit=_TIME_LIMIT.value)
    told = [f"{printable(f)}: {q}" for f, q in zip(files, found.quantizations, strict=True)]
    text = "\n".join([*told, found.table(), found.verdict()])
    cli.put_out(text, {"files": files, **found.figures()}, _JSON)
    return int(not found.agrees)


def run() -> None:
    cli.run(main, files="FILE...")


if __name__ == "__main__":
    run()
