"""Tells the top-1 and top-5 accuracy of a training run, of a file of weights or of a .tflite file.

Examples:

  kapps-evaluate --workdir=/tmp/run --split=test
  kapps-evaluate --model=MobileNetV3Small --weights=FILE --dataset=folder:PATH
  kapps-evaluate --tflite=net_int8.tflite --dataset=digits --split=test --json=net_int8.json

The figures of .tflite files are what kapps-report puts beside those of kapps-benchmark.
"""

from __future__ import annotations

import dataclasses
import json

from absl import flags

from kapps._errors import InputError
from kapps.tools import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of a finished training run")
_MODEL = flags.DEFINE_string("model", None, "network of --weights, or name in the report")
_WEIGHTS = flags.DEFINE_string("weights", None, "file of weights, in place of --workdir")
_TFLITE = flags.DEFINE_string("tflite", None, "file to evaluate, in place of weights")
_VARIANT = flags.DEFINE_enum(
    "variant",
    None,
    ["float32", "float16", "dynamic", "int8", "int8-qat", "int16x8"],
    "how the file of --tflite is quantized; by default what the file says",
)
_DATASET = flags.DEFINE_string("dataset", None, "as for kapps-train; by default that of the run")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie")
_SPLIT = flags.DEFINE_string("split", "validation", "train, validation or test")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "height and width of the input, pixels; by default the run's, or the network's",
)
_CROP = flags.DEFINE_float(
    "crop",
    None,
    "share of the shorter side that the central crop keeps; by default the run's, or 1",
    lower_bound=0.01,
    upper_bound=1,
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images a step", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "file to write the figures to as well")


def main(argv: list[str]) -> int | None:
    """Evaluates and prints one line."""
    cli.check_output(_JSON)
    if _TFLITE.value is not None:
        _evaluate_file()
        return None
    if _VARIANT.value is not None:
        raise InputError("--variant belongs to --tflite")
    if (_WORKDIR.value is None) == (_WEIGHTS.value is None):
        raise InputError("give either --workdir of a run, or --weights with --model and --dataset")
    import kapps
    from kapps._files import atomic_write
    from kapps.tools import data, runs, training

    if _WORKDIR.value is not None:
        if _MODEL.value is not None or _IMAGE_SIZE.value is not None:
            raise InputError("--model and --image_size belong to --weights; a run knows its own")
        run_of = runs.load_run(_WORKDIR.value)
        model, image_size = run_of.model, run_of.image_size
        crop = run_of.crop if _CROP.value is None else _CROP.value
        data_dir = run_of.data_dir if _DATA_DIR.value is None else _DATA_DIR.value
        dataset = data.load(_DATASET.value or run_of.dataset, data_dir)
        if dataset.class_names != run_of.class_names:
            raise InputError(
                f"the run in {_WORKDIR.value} knows other classes than dataset {dataset.name!r}"
            )
    else:
        name, dataset_name = cli.required(_MODEL, _DATASET)
        builder = kapps.get_builder(name)
        dataset = data.load(dataset_name, _DATA_DIR.value)
        image_size = builder.input_shape[0] if _IMAGE_SIZE.value is None else _IMAGE_SIZE.value
        crop = 1.0 if _CROP.value is None else _CROP.value
        with runs.no_random_classifier("evaluate on the data set of these weights"):
            model = builder(
                weights=_WEIGHTS.value,
                input_shape=(image_size, image_size, 3),
                classes=len(dataset.class_names),
            )
    result = training.evaluate(
        model,
        dataset.split(_SPLIT.value),
        image_size=image_size,
        crop=crop,
        batch_size=_BATCH_SIZE.value,
    )
    print(
        f"{model.name} on {dataset.name} {_SPLIT.value}: top-1 {result.top1:.4f}, "
        f"top-5 {result.top5:.4f}, loss {result.loss:.4f}, {result.images} images"
    )
    if _JSON.value is not None:
        figures = {"model": model.name, "dataset": dataset.name, "split": _SPLIT.value}
        with atomic_write(_JSON.value) as temporary:
            temporary.write_text(json.dumps(figures | dataclasses.asdict(result), indent=2) + "\n")
    return None


def _evaluate_file() -> None:
    """Evaluates --tflite, on the data set of --workdir or on --dataset."""
    if _WEIGHTS.value is not None or _IMAGE_SIZE.value is not None:
        raise InputError("--tflite goes without --weights and --image_size: the file has both")
    from kapps.tflite import accuracy

    description = accuracy.describe(_TFLITE.value)  # first of all: it is quick
    from kapps.tools import data, pipeline, runs
    from kapps.tools.progress import progress_bar

    if _WORKDIR.value is not None:
        run_of = runs.load_run(_WORKDIR.value)
        names, data_dir, crop = run_of.dataset, run_of.data_dir, run_of.crop
    else:
        (names,), data_dir, crop = cli.required(_DATASET), None, 1.0
    dataset = data.load(_DATASET.value or names, _DATA_DIR.value or data_dir)
    numbered = tuple(str(i) for i in range(description.classes))
    if description.labels not in ((), numbered, dataset.class_names):
        raise InputError(
            f"{_TFLITE.value} knows other classes than dataset {dataset.name!r}: its first is "
            f"{description.labels[0]!r}, the data set's {dataset.class_names[0]!r}"
        )
    height, width = description.image_size
    if height != width:
        raise InputError(f"{_TFLITE.value} takes {height} x {width} pixels: expected a square")
    source = dataset.split(_SPLIT.value)
    loader = pipeline.Loader(source, height, crop if _CROP.value is None else _CROP.value)
    order = pipeline.evaluation_order(len(source), min(_BATCH_SIZE.value, max(len(source), 1)))
    with loader.named_errors(), progress_bar(len(source), "image", "evaluating") as bar:
        result = accuracy.evaluate_file(
            _TFLITE.value,
            loader.batches(order).as_numpy_iterator(),
            dataset=dataset.name,
            split=_SPLIT.value,
            description=description,
            model=_MODEL.value,
            variant=_VARIANT.value,
            progress=lambda done: bar.update(done - bar.n),
        )
    print(
        f"{result.file} ({result.model}, {result.variant}) on {result.dataset} {result.split}: "
        f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f}, {result.images} images"
    )
    if _JSON.value is not None:
        accuracy.write_accuracy(result, _JSON.value)


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
