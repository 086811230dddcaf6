"""What the programs share: the model and the images that their flags name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

import kapps
from kapps._errors import InputError
from kapps.tflite import keras_file
from kapps.tflite.classifier import image_shape
from kapps.tools import data, pipeline, runs
from kapps.tools.network import build_network


@dataclass(frozen=True)
class Model:
    """A model with its weights, and what is known of the images that it takes."""

    model: keras.Model
    labels: tuple[str, ...] | None
    """The name of each class, or None."""
    weights: Path | kapps.PublishedWeights | None
    """The file that they are in, or which published ones they are; None if that is not known."""
    dataset: str | None
    """What it was trained on, if it is of a run."""
    data_dir: str | None
    transform: kapps.EvalTransform
    """What makes a picture the model's input."""


def load_model(
    workdir: str | None,
    name: str | None,
    weights: str | None,
    *,
    arguments: str | None = None,
    saved: str | None = None,
    image_size: int | None = None,
    classes: int | None = None,
    labels: str | None = None,
) -> Model:
    """The model of a run's folder, of a name and weights, or of a `.keras` file.

    Args:
        workdir: folder of a finished run of kapps-train.
        name: of the network.
        weights: as its builder takes them: a file, or the tag of published ones.
        arguments: further ones of the network, as `kapps.tools.network` takes them.
        saved: a `.keras` file, loaded in a process with limits only: see `keras_file`.
        image_size: height and width of the input, pixels; by default the network's own.
        classes: by default as many as there are labels, or else the network's own.
        labels: file with the name of each class, one a line; by default the run's.

    Raises:
        InputError: the arguments do not go together, or something that they name is not there.
    """
    if [workdir, weights, saved].count(None) != 2:
        raise InputError(
            "give either --workdir of a run, or --model and --weights, or --keras of a file"
        )
    if weights is None and (name, arguments, image_size, classes) != (None,) * 4:
        known = "run" if saved is None else "file"
        raise InputError(
            "--model, --arguments, --image_size and --classes belong to --weights; a "
            f"{known} knows its own"
        )
    names = None if labels is None else read_labels(labels)
    if workdir is not None:
        run = runs.load_run(workdir)
        return Model(
            run.model,
            run.class_names if names is None else names,
            Path(workdir) / "weights.safetensors",
            run.dataset,
            run.data_dir,
            run.transform,
        )
    if saved is not None:
        model = keras_file.load(saved)
        height, width = image_shape(model)[:2]
        if height != width:
            raise InputError(f"{saved} takes {height} x {width} pixels: expected a square")
        return Model(model, names, Path(saved), None, None, whole_square(height))
    if name is None:
        raise InputError("--model must be given with --weights; --help lists the flags")
    assert weights is not None
    model = build(
        name,
        weights,
        classes or len(names or ()) or None,
        arguments=arguments,
        image_size=image_size,
        remedy="give --classes or --labels as the weights have",
    )
    # A file that was loaded has a suffix, and a tag has none.
    source = Path(weights) if Path(weights).suffix else model.kapps_weights
    return Model(model, names, source, None, None, evaluation_transform(model))


def evaluation_transform(model: keras.Model) -> kapps.EvalTransform:
    """As the weights were published, or else the network's default ones; or the whole square."""
    try:
        return kapps.eval_transform(model)
    except InputError:  # nobody has published any
        return whole_square(model.input_shape[1])


def whole_square(size: int) -> kapps.EvalTransform:
    """Of what nothing is known of: the central square, at that size in pixels."""
    return kapps.EvalTransform(size, 1.0, "bilinear")


def build(
    name: str,
    weights: str,
    classes: int | None,
    *,
    arguments: str | None,
    image_size: int | None,
    remedy: str,
) -> keras.Model:
    """A network with weights that are all there.

    Args:
        name: of the network.
        weights: as its builder takes them.
        classes: by default the network's own number.
        arguments: further ones of the network, as `kapps.tools.network` takes them.
        image_size: by default the network's own.
        remedy: what to do if the weights are of another number of classes.

    Raises:
        InputError: there is no such network, or the weights are not of it.
    """
    builder = kapps.get_builder(name)
    size = builder.input_shape[0] if image_size is None else image_size
    shape = (size, size, 3)
    with runs.no_random_classifier(remedy):
        return build_network(
            builder, arguments, input_shape=shape, classes=classes, weights=weights
        )


def read_labels(path: str) -> tuple[str, ...]:
    """The lines of a text file."""
    try:
        names = tuple(Path(path).read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not of UTF-8 text"
        raise InputError(f"labels: cannot read {path}: {reason}") from error
    if not names:
        raise InputError(f"labels: {path} is empty; expected the name of each class, one a line")
    return names


def load_images(
    name: str, split: str, count: int, source: Model, data_dir: str | None = None
) -> np.ndarray:
    """Some images of a data set, drawn by chance from the split, as the model takes them.

    Args:
        name: as for `data.load`; "folder:PATH" may also be a folder of images without classes.
        split: of the data set.
        count: how many, at most.
        source: the model that they are for.
        data_dir: where the TensorFlow data sets lie; by default as for the run.

    Returns:
        uint8 (n, size, size, 3) in 0..255.

    Raises:
        InputError: there is no such data set, or an image in it cannot be read.
    """
    return draw_images(name, split, count, source.transform, data_dir or source.data_dir)


def draw_images(
    name: str, split: str, count: int, transform: kapps.EvalTransform, data_dir: str | None
) -> np.ndarray:
    """The same for a transform of its own."""
    images = _flat(name) or data.load(name, data_dir).split(split)
    # By chance, always the same: sources are sorted by class, or take classes in turn.
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    return pipeline.images(data.Subset(images, chosen), transform)[0]


def _flat(name: str) -> data.FileSource | None:
    """A folder that holds images and no folder."""
    folder = Path(name.removeprefix("folder:"))
    if not name.startswith("folder:") or not folder.is_dir():
        return None
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [str(path) for path in entries if path.suffix.lower() in data.FORMATS]
    if not files or any(path.is_dir() for path in entries):
        return None
    return data.FileSource(tuple(files), (0,) * len(files))
