"""What the binaries of conversion share: the model and the images that their flags name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kapps
from kapps._errors import InputError
from kapps.tools import data, pipeline, runs


@dataclass(frozen=True)
class Model:
    """A model with its weights, and what is known of the images that it takes."""

    model: keras.Model
    labels: tuple[str, ...] | None
    """The name of each class, or None."""
    weights: Path | kapps.PublishedWeights | None
    """The file of its weights, or which published ones they are; None if that is not known."""
    dataset: str | None
    """What it was trained on, if it is of a run."""
    data_dir: str | None
    image_size: int
    crop: float


def load_model(
    workdir: str | None,
    name: str | None,
    weights: str | None,
    *,
    image_size: int | None = None,
    classes: int | None = None,
    labels: str | None = None,
) -> Model:
    """The model of a run's folder, or of a name and weights: a file, or the tag of published ones.

    Args:
        workdir: folder of a finished run of kapps-train; or else `name` and `weights`.
        name: of the network.
        weights: as its builder takes them.
        image_size: height and width of the input, pixels; by default the network's own.
        classes: by default as many as there are labels, or else the network's own.
        labels: file with the name of each class, one a line; by default the run's.

    Raises:
        InputError: the arguments do not go together, or something that they name is not there.
    """
    if (workdir is None) == (weights is None):
        raise InputError("give either --workdir of a run, or --model and --weights")
    names = None if labels is None else read_labels(labels)
    if workdir is not None:
        if (name, image_size, classes) != (None, None, None):
            raise InputError(
                "--model, --image_size and --classes belong to --weights; a run knows its own"
            )
        run = runs.load_run(workdir)
        return Model(
            run.model,
            run.class_names if names is None else names,
            Path(workdir) / "weights.safetensors",
            run.dataset,
            run.data_dir,
            run.image_size,
            run.crop,
        )
    if name is None:
        raise InputError("--model must be given with --weights; --help lists the flags")
    assert weights is not None
    builder = kapps.get_builder(name)
    size = builder.input_shape[0] if image_size is None else image_size
    arguments: dict[str, Any] = {}
    if classes is not None or names is not None:
        arguments["classes"] = classes or len(names or ())
    with runs.no_random_classifier("give --classes or --labels as the weights have"):
        model = builder(weights=weights, input_shape=(size, size, 3), **arguments)
    # A file that was loaded has a suffix, and a tag has none.
    source = Path(weights) if Path(weights).suffix else model.kapps_weights
    return Model(model, names, source, None, None, size, 1.0)


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
    images = _flat(name) or data.load(name, data_dir or source.data_dir).split(split)
    # By chance, always the same: sources are sorted by class, or take classes in turn.
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    return pipeline.images(data.Subset(images, chosen), source.image_size, source.crop)[0]


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
