"""What a training run is, and what it leaves in its folder.

config.json           what the run was started with
checkpoints/          the last three epochs: kapps.tools.checkpoints
tensorboard/          scalars by epoch
weights.safetensors   the weights after the last epoch
result.json           accuracy on the validation images, and the history
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

import kapps
from kapps._errors import InputError
from kapps._files import atomic_write
from kapps.tools import data
from kapps.tools.recipes import Recipe, get_recipe


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. What is None is as the recipe says, or else the network."""

    model: str
    dataset: str
    workdir: str
    data_dir: str | None = None
    recipe: str | Recipe = "default"
    strategy: str = "none"
    batch_size: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    image_size: int | None = None
    weights: str | None = None
    """A file of weights to start from; None: random ones."""

    def resolved(self) -> Recipe:
        """The recipe with this run's own values in it, and the network's for what neither says.

        Raises:
            InputError: the recipe or the model is unknown, or a value is out of range.
        """
        recipe = get_recipe(self.recipe) if isinstance(self.recipe, str) else self.recipe
        names = ("batch_size", "epochs", "learning_rate", "image_size")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if recipe.image_size is None and self.image_size is None:
            own["image_size"] = kapps.get_builder(self.model).input_shape[0]
        return dataclasses.replace(recipe, **own)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a model does on a split; accuracies are shares, 0 to 1."""

    top1: float
    top5: float
    """Whether the class is among the five most probable ones."""
    loss: float
    """Mean cross-entropy, nats."""
    images: int


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    model: str
    weights: str
    """The file of the final weights."""
    epochs: int
    """Those trained; fewer than asked for if validation said that it was enough."""
    steps: int
    validation: Evaluation
    history: tuple[dict[str, float], ...]
    """An entry for each epoch."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, to evaluate or to convert."""

    model: keras.Model
    """With softmax."""
    dataset: str
    data_dir: str | None
    class_names: tuple[str, ...]
    image_size: int
    crop: float


def load_run(workdir: str | os.PathLike[str]) -> Run:
    """The model of a finished run, with what is needed to use it.

    Raises:
        InputError: there is no finished run in the folder.
    """
    folder = Path(workdir)
    settings = _read_json(folder / "config.json")
    weights = folder / "weights.safetensors"
    if settings is None or not weights.is_file():
        raise InputError(
            f"{folder} holds no finished run (config.json and weights.safetensors); train with "
            f"--workdir={folder} first"
        )
    try:
        size, names = int(settings["image_size"]), tuple(settings["class_names"])
        model = kapps.get_builder(settings["model"])(
            weights=weights, input_shape=(size, size, 3), classes=len(names)
        )
        return Run(
            model, settings["dataset"], settings["data_dir"], names, size, float(settings["crop"])
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'config.json'} is not of a kapps training run: {error!r}"
        ) from error


@contextlib.contextmanager
def no_random_classifier(remedy: str) -> Iterator[None]:
    """Where a model is built that is to be used as it is: its weights have to be all there.

    Weights of another number of classes load with a warning, for training to go on from them.

    Raises:
        InputError: there was that warning; `remedy` says what to do.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*keeps its random start", UserWarning)
            yield
    except UserWarning as warning:
        raise InputError(f"{warning}; {remedy}") from warning


def settings_of(config: TrainConfig, recipe: Recipe, dataset: data.Dataset) -> dict[str, Any]:
    """What makes a run what it is: all of it, but for the machines that it runs on."""
    settings = dataclasses.asdict(recipe)
    for text in ("source", "command", "expected"):
        del settings[text]
    return {
        "model": config.model,
        "dataset": config.dataset,
        "data_dir": config.data_dir,
        "class_names": list(dataset.class_names),
        "images": len(dataset.train),
        "seed": config.seed,
        "weights": config.weights,
        **settings,
    }


def check_same_run(workdir: Path, settings: dict[str, Any]) -> None:
    """Refuses to mix two runs in one folder.

    Raises:
        InputError: an earlier run there was started with other settings; they are named.
    """
    earlier = _read_json(workdir / "config.json")
    if earlier is None:
        return
    differing = [
        f"{name} was {earlier.get(name)!r} and is {value!r}"
        for name, value in settings.items()
        if name != "data_dir" and earlier.get(name) != value
    ]
    if differing:
        raise InputError(
            f"{workdir} holds another run: {'; '.join(differing)}. Choose another --workdir, or "
            "the same flags to go on"
        )


def finished_result(workdir: Path) -> TrainResult | None:
    """The result of an earlier run, if it came to its end."""
    values = _read_json(workdir / "result.json")
    weights = workdir / "weights.safetensors"
    if values is None or not weights.is_file():
        return None
    try:
        values["weights"] = str(weights)
        values["validation"] = Evaluation(**values["validation"])
        values["history"] = tuple(values["history"])
        return TrainResult(**values)
    except (KeyError, TypeError) as error:
        raise _damaged(workdir / "result.json") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is no such file."""
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):  # writing there tells of the second
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(values, dict):
        raise _damaged(path)
    return values


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged; delete it, or choose another --workdir")


def write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
