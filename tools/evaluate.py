"""Tells the top-1 and top-5 accuracy of a training run, or of a file of weights.

Examples:

  kapps-evaluate --workdir=/tmp/run --split=test
  kapps-evaluate --model=MobileNetV3Small --weights=FILE --dataset=folder:PATH
"""

from __future__ import annotations

import dataclasses
import json
import warnings

from absl import flags

from kapps._errors import InputError
from kapps.tools import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of a finished training run")
_MODEL = flags.DEFINE_string("model", None, "network of --weights")
_WEIGHTS = flags.DEFINE_string("weights", None, "file of weights, in place of --workdir")
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
        try:
            with warnings.catch_warnings():
                # Weights of another number of classes load with a warning: their classifier
                # is random then, and its accuracy means nothing.
                warnings.simplefilter("error", UserWarning)
                model = builder(
                    weights=_WEIGHTS.value,
                    input_shape=(image_size, image_size, 3),
                    classes=len(dataset.class_names),
                )
        except UserWarning as warning:
            raise InputError(f"{warning}; evaluate on the data set of these weights") from warning
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


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
