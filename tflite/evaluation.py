"""How well a run, a network with weights, or a .tflite file does on a split of a data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras

from kapps._errors import InputError
from kapps.tflite import accuracy, source
from kapps.tflite.accuracy import Accuracy
from kapps.tools import data, pipeline, runs, training
from kapps.tools.progress import progress_bar


@dataclass(frozen=True)
class Split:
    """Which images; what is None is as in the run that is evaluated."""

    dataset: str | None = None
    split: str = "validation"
    data_dir: str | None = None
    """Where the TensorFlow data sets lie."""
    crop: float | None = None
    """Share of the shorter side that the central crop keeps; of what is no run 1."""
    batch_size: int = 64


@dataclass(frozen=True)
class NetworkAccuracy:
    """How a Keras model did; accuracies are shares, 0 to 1."""

    model: str
    dataset: str
    split: str
    top1: float
    top5: float
    """Whether the class is among the five most probable ones."""
    loss: float
    """Mean cross-entropy, nats."""
    images: int


Result = NetworkAccuracy | Accuracy


def evaluate_run(workdir: str, images: Split) -> NetworkAccuracy:
    """The model of a finished run.

    Raises:
        InputError: there is no such run or data set, or the data set has other classes.
    """
    run = runs.load_run(workdir)
    dataset = data.load(
        images.dataset or run.dataset, run.data_dir if images.data_dir is None else images.data_dir
    )
    if dataset.class_names != run.class_names:
        raise InputError(f"the run in {workdir} knows other classes than dataset {dataset.name!r}")
    crop = run.crop if images.crop is None else images.crop
    return _evaluate(run.model, dataset, images, run.image_size, crop)


def evaluate_weights(
    name: str,
    weights: str,
    images: Split,
    *,
    arguments: str | None = None,
    image_size: int | None = None,
) -> NetworkAccuracy:
    """A network with weights, a file or the tag of published ones.

    Args:
        name: of the network.
        weights: as its builder takes them.
        images: which; the data set has to be named.
        arguments: further ones of the network, as `kapps.tools.network` takes them.
        image_size: height and width of the input, pixels; by default the network's own.

    Raises:
        InputError: there is no such network, file or data set, or the number of classes differs.
    """
    if images.dataset is None:
        raise InputError("--dataset must be given; --help lists the flags")
    dataset = data.load(images.dataset, images.data_dir)
    model, size = source.build(
        name,
        weights,
        len(dataset.class_names),
        arguments=arguments,
        image_size=image_size,
        remedy="evaluate on the data set of these weights",
    )
    return _evaluate(model, dataset, images, size, 1.0 if images.crop is None else images.crop)


def evaluate_tflite(
    path: str,
    images: Split,
    workdir: str | None = None,
    *,
    model: str | None = None,
    variant: str | None = None,
) -> Accuracy:
    """A .tflite file, in a child process.

    Args:
        path: the file.
        images: which; without a run the data set has to be named.
        workdir: the run that it came from.
        model: the network, for the result; by default what the file says.
        variant: the quantization; by default what the file says.

    Raises:
        InputError: there is no such file, run or data set, or they do not go together.
    """
    description = accuracy.describe(path)  # first of all: it is quick
    name, data_dir, crop = images.dataset, None, 1.0
    if workdir is not None:
        run = runs.load_run(workdir)
        name, data_dir, crop = images.dataset or run.dataset, run.data_dir, run.crop
    if name is None:
        raise InputError("--dataset must be given; --help lists the flags")
    dataset = data.load(name, images.data_dir or data_dir)
    numbered = tuple(str(i) for i in range(description.classes))
    if description.labels not in ((), numbered, dataset.class_names):
        raise InputError(
            f"{path} knows other classes than dataset {dataset.name!r}: its first is "
            f"{description.labels[0]!r}, the data set's {dataset.class_names[0]!r}"
        )
    height, width = description.image_size
    if height != width:
        raise InputError(f"{path} takes {height} x {width} pixels: expected a square")
    chosen = dataset.split(images.split)
    loader = pipeline.Loader(chosen, height, crop if images.crop is None else images.crop)
    order = pipeline.evaluation_order(len(chosen), min(images.batch_size, max(len(chosen), 1)))
    with loader.named_errors(), progress_bar(len(chosen), "image", "evaluating") as bar:
        return accuracy.evaluate_file(
            Path(path),
            loader.batches(order).as_numpy_iterator(),
            dataset=dataset.name,
            split=images.split,
            description=description,
            model=model,
            variant=variant,
            progress=lambda done: bar.update(done - bar.n),
        )


def line(result: Result) -> str:
    """What a program says of it."""
    of = f"on {result.dataset} {result.split}: top-1 {result.top1:.4f}, top-5 {result.top5:.4f}"
    if isinstance(result, Accuracy):
        return f"{result.file} ({result.model}, {result.variant}) {of}, {result.images} images"
    return f"{result.model} {of}, loss {result.loss:.4f}, {result.images} images"


def figures(result: Result) -> dict[str, Any]:
    """What a program writes as JSON; that of a .tflite file `kapps-report` reads."""
    return accuracy.to_values(result) if isinstance(result, Accuracy) else asdict(result)


def _evaluate(
    model: keras.Model, dataset: data.Dataset, images: Split, image_size: int, crop: float
) -> NetworkAccuracy:
    result = training.evaluate(
        model,
        dataset.split(images.split),
        image_size=image_size,
        crop=crop,
        batch_size=images.batch_size,
    )
    return NetworkAccuracy(
        model.name,
        dataset.name,
        images.split,
        result.top1,
        result.top5,
        result.loss,
        result.images,
    )
