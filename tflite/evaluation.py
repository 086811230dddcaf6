"""How well a run, a network with weights, or a .tflite file does on a split of a data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import kapps
from kapps._errors import InputError
from kapps.tflite import accuracy, attacked_split, class_figures, evaluation_report, source
from kapps.tflite.accuracy import Accuracy
from kapps.tflite.attacked_split import Attacked
from kapps.tflite.robustness import Robustness
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
    robustness: Robustness | None = None
    """On attacked images; None if it was not attacked."""


@dataclass(frozen=True)
class Exit:
    """One of the classifiers that a network may end at."""

    name: str
    images: int
    """How many ended here."""
    top1: float | None
    """Of these, 0 to 1."""
    macs: int
    """What an image costs that ends here."""


@dataclass(frozen=True)
class ExitAccuracy:
    """How a network does that ends at the first confident classifier."""

    model: str
    dataset: str
    split: str
    confidence: float
    """The probability at which it ends."""
    top1: float
    macs: float
    """Multiply-accumulate operations of an image, on average."""
    whole_top1: float
    """Of the main classifier alone."""
    whole_macs: int
    """Of the network without auxiliary classifiers."""
    exits: tuple[Exit, ...]
    images: int


Result = NetworkAccuracy | Accuracy | ExitAccuracy


def evaluate_run(
    workdir: str, images: Split, report: str | None = None, attacked: Attacked | None = None
) -> NetworkAccuracy:
    """The model of a finished run.

    Args:
        workdir: the run's folder.
        images: which.
        report: folder for what `kapps.tflite.evaluation_report` writes; None for nothing.
        attacked: with which attack as well, by the model's own gradients.

    Raises:
        InputError: there is no such run or data set, or the data set has other classes, or the
            report cannot be written.
    """
    run = runs.load_run(workdir)
    dataset = _dataset_of(run, workdir, images)
    weights = None if attacked is None else attacked_split.source_of(workdir, run.model)
    return _evaluate(run.model, dataset, images, run.transform, report, attacked, weights)


def evaluate_exits(workdir: str, images: Split, confidence: float) -> ExitAccuracy:
    """The model of a finished run, with its auxiliary classifiers as early exits.

    Args:
        workdir: the run's folder.
        images: which.
        confidence: the probability of the likeliest class at which an image ends, 0 to 1.

    Raises:
        InputError: there is no such run, or it was trained without auxiliary classifiers.
    """
    run = runs.load_run(workdir, auxiliary_heads=True)
    exits = kapps.early_exits(run.model)
    dataset = _dataset_of(run, workdir, images)
    chosen = dataset.split(images.split)
    outputs, labels = _predictions(run.model, _batches(chosen, run.transform, images), len(chosen))
    shown = labels != pipeline.PADDING
    labels = labels[shown]
    probabilities = [outputs[each.output][shown] for each in exits]
    predicted, taken = kapps.early_exit(probabilities, confidence)
    right = predicted == labels
    ended = [taken == place for place in range(len(exits))]
    main = next(i for i, each in enumerate(exits) if each.output == 0)
    return ExitAccuracy(
        run.model.name,
        dataset.name,
        images.split,
        confidence,
        float(right.mean()),
        float(np.mean([exits[place].macs for place in taken])),
        float((probabilities[main].argmax(1) == labels).mean()),
        kapps.profile(kapps.without_auxiliary_heads(run.model)).macs,
        tuple(
            Exit(
                each.name,
                int(here.sum()),
                float(right[here].mean()) if here.any() else None,
                each.macs,
            )
            for each, here in zip(exits, ended, strict=True)
        ),
        len(labels),
    )


def evaluate_weights(
    name: str,
    weights: str,
    images: Split,
    *,
    arguments: str | None = None,
    image_size: int | None = None,
    report: str | None = None,
    attacked: Attacked | None = None,
) -> NetworkAccuracy:
    """A network with weights, a file or the tag of published ones.

    Args:
        name: of the network.
        weights: as its builder takes them.
        images: which; the data set has to be named.
        arguments: further ones of the network, as `kapps.tools.network` takes them.
        image_size: height and width of the input, pixels; by default the network's own.
        report, attacked: as of `evaluate_run`.

    Raises:
        InputError: there is no such network, file or data set, or the number of classes differs, or
            the report cannot be written.
    """
    if images.dataset is None:
        raise InputError("--dataset must be given; --help lists the flags")
    dataset = data.load(images.dataset, images.data_dir)
    model = source.build(
        name,
        weights,
        len(dataset.class_names),
        arguments=arguments,
        image_size=image_size,
        remedy="evaluate on the data set of these weights",
    )
    transform = source.evaluation_transform(model)
    return _evaluate(model, dataset, images, transform, report, attacked)


def evaluate_tflite(
    path: str,
    images: Split,
    workdir: str | None = None,
    *,
    model: str | None = None,
    variant: str | None = None,
    attacked: Attacked | None = None,
) -> Accuracy:
    """A .tflite file, in a child process.

    Args:
        path: the file.
        images: which; without a run the data set has to be named.
        workdir: the run that it came from.
        model: the network, for the result; by default what the file says.
        variant: the quantization; by default what the file says.
        attacked: with which attack as well. Files of the same size see the same attacked images, if
            these are made by the gradients of the same run.

    Raises:
        InputError: there is no such file, run or data set, or they do not go together.
    """
    description = accuracy.describe(path)  # first of all: it is quick
    height, _ = description.image_size
    name, data_dir, nested, transform = images.dataset, None, False, source.whole_square(height)
    if workdir is not None:
        run = runs.load_run(workdir)
        name, data_dir, nested = images.dataset or run.dataset, run.data_dir, run.nested
        transform = replace(run.transform, size=height)
    if name is None:
        raise InputError("--dataset must be given; --help lists the flags")
    dataset = data.load(name, images.data_dir or data_dir, nested=nested)
    _check_same(path, description, dataset)
    attacker, weights = attacked_split.attacking_run(path, dataset, height, workdir, attacked)
    found = _evaluate_file(path, description, dataset, transform, images, model, variant)
    if attacked is None:
        return found
    transform = _cropped(transform, images)
    chosen = dataset.split(images.split)
    left = attacked_split.attack(path, chosen, transform, attacked, attacker, weights)
    return replace(found, robustness=left)


def evaluate_on(
    path: str,
    dataset: data.Dataset,
    transform: kapps.EvalTransform,
    images: Split,
    *,
    model: str | None = None,
    variant: str | None = None,
) -> Accuracy:
    """As `evaluate_tflite`, where the data set is loaded.

    Args:
        path: the file.
        dataset: of which `images` names the split.
        transform: what makes a picture the file's input.
        images: which.
        model: the network, for the result; variant likewise.

    Raises:
        InputError: there is no such file, or it does not go with the data set.
    """
    description = accuracy.describe(path)
    _check_same(path, description, dataset)
    return _evaluate_file(path, description, dataset, transform, images, model, variant)


def _check_same(path: str, description: accuracy.Description, dataset: data.Dataset) -> None:
    """Raises InputError unless a file is a classifier of squares that knows these classes."""
    height, width = description.image_size
    numbered = tuple(str(i) for i in range(description.classes))
    if description.labels not in ((), numbered, dataset.class_names):
        raise InputError(
            f"{path} knows other classes than dataset {dataset.name!r}: its first is "
            f"{description.labels[0]!r}, the data set's {dataset.class_names[0]!r}"
        )
    if height != width:
        raise InputError(f"{path} takes {height} x {width} pixels: expected a square")


def _evaluate_file(
    path: str,
    description: accuracy.Description,
    dataset: data.Dataset,
    transform: kapps.EvalTransform,
    images: Split,
    model: str | None,
    variant: str | None,
) -> Accuracy:
    chosen = dataset.split(images.split)
    with progress_bar(len(chosen), "image", "evaluating") as bar:
        return accuracy.evaluate_file(
            Path(path),
            _batches(chosen, transform, images),
            dataset=dataset.name,
            split=images.split,
            description=description,
            model=model,
            variant=variant,
            progress=lambda done: bar.update(done - bar.n),
        )


def line(result: Result) -> str:
    """What a program says of it."""
    if isinstance(result, ExitAccuracy):
        return _exit_lines(result)
    of = f"on {result.dataset} {result.split}: top-1 {result.top1:.4f}, top-5 {result.top5:.4f}"
    if isinstance(result, Accuracy):
        text = f"{result.file} ({result.model}, {result.variant}) {of}, {result.images} images"
    else:
        text = f"{result.model} {of}, loss {result.loss:.4f}, {result.images} images"
    return text if result.robustness is None else f"{text}\n  {result.robustness.line}"


def _exit_lines(result: ExitAccuracy) -> str:
    share = result.macs / result.whole_macs
    head = (
        f"{result.model} on {result.dataset} {result.split}, ending at {result.confidence:g}: "
        f"top-1 {result.top1:.4f} at {result.macs / 1e6:,.1f} million MACs on average, {share:.2f} "
        f"of those of the whole, which has {result.whole_top1:.4f}; {result.images} images"
    )
    rows = [
        f"  {each.name}: {each.images} images"
        + ("" if each.top1 is None else f", top-1 {each.top1:.4f}")
        + f", {each.macs / 1e6:,.1f} million MACs"
        for each in result.exits
    ]
    return "\n".join([head, *rows])


def figures(result: Result) -> dict[str, Any]:
    """What a program writes as JSON; that of a .tflite file `kapps-report` reads."""
    if isinstance(result, Accuracy):
        return accuracy.to_values(result)
    values = asdict(result)
    if isinstance(result, NetworkAccuracy) and result.robustness is None:
        del values["robustness"]
    return values


def _dataset_of(run: runs.Run, workdir: str, images: Split) -> data.Dataset:
    """What a run is evaluated on.

    Raises:
        InputError: there is no such data set, or it has other classes.
    """
    dataset = data.load(
        images.dataset or run.dataset,
        run.data_dir if images.data_dir is None else images.data_dir,
        nested=run.nested,
    )
    if dataset.class_names != run.class_names:
        raise InputError(f"the run in {workdir} knows other classes than dataset {dataset.name!r}")
    return dataset


def _batches(
    chosen: data.Source, transform: kapps.EvalTransform, images: Split
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    loader = pipeline.Loader(chosen, pipeline.EvaluationPixels(_cropped(transform, images)))
    order = pipeline.evaluation_order(len(chosen), min(images.batch_size, max(len(chosen), 1)))
    return loader.batches(order)


def _cropped(transform: kapps.EvalTransform, images: Split) -> kapps.EvalTransform:
    return transform if images.crop is None else replace(transform, crop=images.crop)


def _evaluate(
    model: keras.Model,
    dataset: data.Dataset,
    images: Split,
    transform: kapps.EvalTransform,
    report: str | None,
    attacked: Attacked | None,
    weights: attacked_split.Source | None = None,
) -> NetworkAccuracy:
    transform = _cropped(transform, images)
    result: runs.Evaluation | class_figures.Scores
    if report is None:
        result = training.evaluate(
            model,
            dataset.split(images.split),
            transform=transform,
            batch_size=images.batch_size,
        )
    else:
        result = _report(model, dataset, images, transform, report)
    left = None
    if attacked is not None:
        chosen = dataset.split(images.split)
        left = attacked_split.attack(model, chosen, transform, attacked, None, weights)
    return NetworkAccuracy(
        model.name,
        dataset.name,
        images.split,
        result.top1,
        result.top5,
        result.loss,
        result.images,
        left,
    )


def _report(
    model: keras.Model,
    dataset: data.Dataset,
    images: Split,
    transform: kapps.EvalTransform,
    folder: str,
) -> class_figures.Scores:
    """Evaluates image by image, and writes what comes of it to the folder."""
    chosen = dataset.split(images.split)
    (probabilities, *_), labels = _predictions(
        model, _batches(chosen, transform, images), len(chosen)
    )
    shown = np.flatnonzero(labels != pipeline.PADDING)
    probabilities, labels = probabilities[shown], labels[shown]
    evaluation_report.report(
        probabilities,
        labels,
        dataset.class_names,
        lambda place: Image.fromarray(transform(data.images.read(chosen[int(shown[place])][0]))),
        lambda place: _name(chosen, int(shown[place])),
        folder,
        title=f"{model.name} on {dataset.name}, {images.split} split",
    )
    return class_figures.scores(probabilities, labels)


def _predictions(
    model: keras.Model, batches: Iterable[tuple[np.ndarray, np.ndarray]], count: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """What each of the model's outputs gives each place, (n, classes), and the labels, (n,)."""

    @tf.function
    def infer(images: tf.Tensor) -> list[tf.Tensor]:
        return [tf.cast(x, tf.float32) for x in keras.tree.flatten(model(images, training=False))]

    found = [[np.zeros((0, output.shape[-1]), np.float32)] for output in model.outputs]
    truths = [np.zeros(0, np.int64)]
    with progress_bar(count, "image", "evaluating") as bar:
        for images, labels in batches:
            for outputs, output in zip(found, infer(images), strict=True):
                outputs.append(output.numpy())
            truths.append(labels)
            bar.update(int((labels != pipeline.PADDING).sum()))
    return [np.concatenate(outputs) for outputs in found], np.concatenate(truths)


def _name(source: data.Source, index: int) -> str:
    """What an image is called, where it has a name, and else its place in the split."""
    return str(getattr(source[index][0], "name", f"image {index}"))
