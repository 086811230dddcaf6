"""What a training run is, and what it leaves in its folder.

config.json           what the run was started with; a setting that is missing there is newer than
                      the file, and has its default
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
from typing import Any, TypeVar

import keras

import kapps
from kapps._errors import InputError, is_whole
from kapps.tools import data
from kapps.tools.json_files import read_json
from kapps.tools.recipes import Recipe, get_recipe

FORMAT = 1
"""Of config.json, whose first files do not name it. It goes up when an earlier kapps would take a
file for another run than it is; a further setting that has a default is no reason."""

_DAMAGED = "delete it, or choose another --workdir"

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. What is None is as the recipe says, or else the network.

    A field that has the name of a recipe's stands above it, and the flags of kapps-train have the
    names of the fields.
    """

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
        if not is_whole(self.seed) or not 0 <= int(self.seed) < 2**32:
            raise InputError(f"seed must be a whole number, 0 to 2**32 - 1, not {self.seed!r}")
        recipe = get_recipe(self.recipe) if isinstance(self.recipe, str) else self.recipe
        shared = {f.name for f in dataclasses.fields(self)} & {
            f.name for f in dataclasses.fields(recipe)
        }
        own = {name: getattr(self, name) for name in shared if getattr(self, name) is not None}
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
    settings = read_settings(folder)
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
        "format": FORMAT,
        "model": config.model,
        "dataset": config.dataset,
        "data_dir": config.data_dir,
        "class_names": list(dataset.class_names),
        "images": len(dataset.train),
        "seed": int(config.seed),
        "weights": config.weights,
        "dtype_policy": keras.config.dtype_policy().name,
        **settings,
    }


def read_settings(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What the run in a folder was started with, or None if there is none.

    Raises:
        InputError: config.json is damaged, or a newer kapps wrote it.
    """
    path = Path(workdir) / "config.json"
    settings = read_json(path, _DAMAGED)
    if settings is None:
        return None
    written = settings.setdefault("format", 1)
    if not isinstance(written, int) or written > FORMAT:
        raise InputError(
            f"{path} is of format {written!r}, and this kapps knows {FORMAT}: a newer one wrote "
            "it; pip install --upgrade kapps"
        )
    names = settings.get("class_names")
    if isinstance(names, list):  # the first versions kept what a folder's name had of bytes
        settings["class_names"] = [data.label(str(name)) for name in names]
    return settings


def check_same_run(
    workdir: Path, settings: dict[str, Any], kinds: tuple[type, ...] = (TrainConfig, Recipe)
) -> None:
    """Refuses to mix two runs in one folder.

    Args:
        workdir: the folder.
        settings: those of this run.
        kinds: the dataclasses that the settings are fields of: a setting that the earlier run does
            not name was not there yet, and has its field's default.

    Raises:
        InputError: an earlier run there was started with other settings; they are named.
    """
    earlier = read_settings(workdir)
    if earlier is None:
        return
    was = {**_defaults(kinds), **earlier}
    now = json.loads(json.dumps(settings))  # as from a file: tuples are lists
    differing = [
        f"{name} was {was.get(name)!r} and is {value!r}"
        for name, value in now.items()
        if name not in ("data_dir", "format") and was.get(name) != value
    ]
    differing += [
        f"{name} was {value!r} and is no setting here"
        for name, value in earlier.items()
        if name not in ("data_dir", "format", *now)
    ]
    if differing:
        raise InputError(
            f"{workdir} holds another run: {'; '.join(differing)}. Choose another --workdir, or "
            "the same flags to go on"
        )


def _defaults(kinds: tuple[type, ...]) -> dict[str, Any]:
    """Those of the dataclasses' fields and of `settings_of`, as from a file."""
    values: dict[str, Any] = {"dtype_policy": "float32"}
    for field in (field for kind in kinds for field in dataclasses.fields(kind)):
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
    return json.loads(json.dumps(values))


def read_result(workdir: Path, kind: type[_T]) -> _T | None:
    """The result of an earlier run, if it came to its end.

    Args:
        workdir: the run's folder.
        kind: the dataclass of the result.

    Raises:
        InputError: result.json is damaged.
    """
    path, weights = workdir / "result.json", workdir / "weights.safetensors"
    values = read_json(path, _DAMAGED)
    if values is None or not weights.is_file():
        return None
    try:
        values["weights"] = str(weights)
        values["history"] = tuple(values["history"])
        if "validation" in values:
            values["validation"] = from_values(Evaluation, values["validation"])
        return from_values(kind, values)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; {_DAMAGED}") from error


def from_values(kind: type[_T], values: dict[str, Any]) -> _T:
    """A dataclass from what another version wrote: what it does not know is left out.

    Raises:
        TypeError: a field without a default is missing.
    """
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in values.items() if name in fields})
