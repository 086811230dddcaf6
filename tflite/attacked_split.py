"""The attack of an evaluation: on images of the split, as its transform makes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

import kapps
from kapps._errors import InputError
from kapps.tflite.attack_run import measure_robustness
from kapps.tflite.metadata import weights_sha256
from kapps.tflite.robustness import Attack, Robustness
from kapps.tools import data, pipeline, runs
from kapps.tools.progress import progress_bar

Source = tuple[str, str]
"""The name of a network, and the SHA-256 of the file of its weights."""


@dataclass(frozen=True)
class Attacked:
    """An attack on images of the split."""

    attack: Attack
    images: int = 200
    """How many of the split, at most; they are drawn by chance, and always the same."""
    workdir: str | None = None
    """The run whose gradients attack a .tflite file; by default that which it came from."""


def source_of(workdir: str, model: keras.Model) -> Source:
    """Of the model of a run's folder."""
    return model.name, weights_sha256(model, Path(workdir) / "weights.safetensors")[0]


def attacking_run(
    path: str, dataset: data.Dataset, size: int, workdir: str | None, attacked: Attacked | None
) -> tuple[keras.Model, Source] | tuple[None, None]:
    """The model whose gradients attack a file; none without an attack that needs them.

    Args:
        path: the file.
        dataset: what it is evaluated on.
        size: height and width of its input, pixels.
        workdir: the folder of the run that it came from, if that is known.
        attacked: the attack.

    Raises:
        InputError: there is no such run, or it does not go with the file.
    """
    if attacked is None or attacked.attack.method == "square":
        return None, None
    folder = attacked.workdir or workdir
    if folder is None:
        raise InputError(
            f"{path} has no gradients to attack it by: give --attack_model=RUN, the run that it "
            "came from, or --attack=square, which needs none"
        )
    run = runs.load_run(folder)
    if run.image_size != size:
        raise InputError(
            f"the run in {folder} takes images of {run.image_size} pixels, and {path} of {size}: "
            "the attacked images of the one do not fit the other"
        )
    if run.class_names != dataset.class_names:
        raise InputError(f"the run in {folder} knows other classes than dataset {dataset.name!r}")
    return run.model, source_of(folder, run.model)


def attack(
    target: str | keras.Model,
    images: data.Source,
    transform: kapps.EvalTransform,
    attacked: Attacked,
    model: keras.Model | None = None,
    source: Source | None = None,
) -> Robustness:
    """As `measure_robustness`, of images of the split."""
    order = np.random.default_rng(0).permutation(len(images))[: attacked.images]
    chosen = data.Subset(images, np.sort(order))  # by chance: a split may be sorted by class
    pixels, labels = pipeline.images(chosen, transform)
    passes = len(attacked.attack.eps) * attacked.attack.restarts
    with progress_bar(passes * len(labels), "image", "attacking") as bar:
        (found,) = measure_robustness(
            [target],
            pixels,
            labels,
            attacked.attack,
            model=model,
            source=source,
            progress=bar.update,
        )
    return found
