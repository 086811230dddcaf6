"""What a training run is, and what it leaves in its folder.

config.json           what the run was started with; a setting that is missing there is newer than
                      the file, and has its default
checkpoints/          the last states: kapps.tools.checkpoints
metrics.jsonl         figures by step and by epoch, a JSON object a line
tensorboard/          the same, and images, for TensorBoard
best.safetensors      the weights of the epoch with the highest validation accuracy
weights.safetensors   the weights after the last epoch; their average, if the recipe has one
last.safetensors      only then: the weights themselves
result.json           accuracy on the validation images, and the history
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import keras

import kapps
from kapps._errors import InputError, is_whole
from kapps.tools import data
from kapps.tools.json_files import read_json, write_json
from kapps.tools.network import build_network, network_arguments
from kapps.tools.recipe import Recipe
from kapps.tools.recipes import get_recipe

FORMAT = 2
"""Of config.json. Format 1, of kapps 0.1, trained by another order of sums and other augmentation:
its finished runs are read, the others not gone on with. A further setting that has a default is no
reason for another one."""

_DAMAGED = "delete it, or choose another --workdir"
_TOLD = ("data_dir", "evaluation", "format", "versions")  # what does not make another run

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    The flags of kapps-train have the names of the fields.
    """

    model: str
    dataset: str
    workdir: str
    data_dir: str | None = None
    recipe: str | Recipe = "default"
    strategy: str = "none"
    seed: int = 0
    weights: str | None = None
    """What to start from: a file, or the tag of published weights; None: random ones."""
    arguments: str | None = None
    """Further ones of the network, as `kapps.tools.network` takes them."""
    nested: bool = False
    """Whether folders within folders are classes too; see `data.load`."""
    on_bad_image: str = "error"
    """What to do about an image that cannot be read: "error" or "skip"."""
    max_bad_images: float = 0.01
    """The largest share of a split that is skipped."""
    checkpoint_every: int | None = None
    """Steps between checkpoints, beside the one after each epoch; None: only that."""
    keep_checkpoints: int = 3
    teacher: str | None = None
    """The folder of a finished run that is learned from too."""
    distillation: float = 0.5
    """The teacher's share of the loss, 0 to 1."""
    temperature: float = 4.0
    """What the logits are divided by when they are compared with the teacher's."""
    histograms: bool = False
    """Whether TensorBoard shows how weights are distributed, after each epoch."""
    start_timeout: float = 300.0
    """Seconds in which all workers have to be there."""
    step_timeout: float = 600.0
    """Seconds in which a step of several workers has to end."""
    data_service: str | None = None
    """The dispatcher, grpc://HOST:PORT, of the workers that read the training images; see
    `kapps.tools.data_service`. None: this process does."""

    def resolved(self) -> Recipe:
        """The recipe, with the network's own size where it has none.

        Raises:
            InputError: the recipe or the model is unknown, or a value is out of range.
        """
        if not is_whole(self.seed) or not 0 <= int(self.seed) < 2**32:
            raise InputError(f"seed must be a whole number, 0 to 2**32 - 1, not {self.seed!r}")
        recipe = get_recipe(self.recipe) if isinstance(self.recipe, str) else self.recipe
        if recipe.image_size is None:
            size = kapps.get_builder(self.model).input_shape[0]
            return dataclasses.replace(recipe, image_size=size)
        return recipe

    def network(self, recipe: Recipe) -> dict[str, Any]:
        """The arguments of the network's builder that this run gives.

        Raises:
            InputError: it does not have one of them, or one is not for training.
        """
        rates = ("dropout_rate", "drop_path_rate", "drop_block_rate")
        return network_arguments(
            kapps.get_builder(self.model),
            self.arguments,
            {name: getattr(recipe, name) for name in rates},
        )


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
    transform: kapps.EvalTransform
    """What makes a picture the network's input, as validation did."""
    nested: bool = False

    @property
    def image_size(self) -> int:
        """Height and width of the network's input, pixels."""
        return self.transform.size

    @property
    def crop(self) -> float:
        """Share of the shorter side that evaluation keeps."""
        return self.transform.crop


def load_run(workdir: str | os.PathLike[str], *, auxiliary_heads: bool = False) -> Run:
    """The model of a finished run, with what is needed to use it.

    Args:
        workdir: the folder.
        auxiliary_heads: whether the model has them, if it was trained with them.

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
        transform, names = transform_of(settings), tuple(settings["class_names"])
        arguments = dict(settings.get("arguments") or {})
        if not auxiliary_heads:
            arguments.pop("aux", None)
        model = build_network(
            kapps.get_builder(settings["model"]),
            arguments,
            weights=str(weights),
            input_shape=(transform.size, transform.size, 3),
            classes=len(names),
            cut_at=settings.get("cut_at"),
        )
        return Run(
            model,
            settings["dataset"],
            settings["data_dir"],
            names,
            transform,
            bool(settings.get("nested", False)),
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'config.json'} is not of a kapps training run: {error!r}"
        ) from error


def transform_of(settings: dict[str, Any]) -> kapps.EvalTransform:
    """What makes a picture the input of a run's network, as `write_settings` has noted it.

    Raises:
        KeyError, TypeError: the settings are not of a run.
    """
    told = settings.get("evaluation") or {
        "size": int(settings["image_size"]),
        "crop": float(settings["crop"]),
        "interpolation": "bilinear",
    }
    return kapps.EvalTransform(**told)


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


_MACHINES = ("workdir", "strategy", "start_timeout", "step_timeout", "data_service", "recipe")
_NO_MATTER = (
    "keep_checkpoints",
    "checkpoint_every",
    "histograms",
    "keep_features",
)  # of the figures


def settings_of(config: TrainConfig, recipe: Recipe, dataset: data.Dataset) -> dict[str, Any]:
    """What makes a run what it is: all of it, but for the machines that it runs on."""
    settings = dataclasses.asdict(recipe)
    for text in ("source", "command", "expected", "cost"):
        del settings[text]
    own = dataclasses.asdict(dataclasses.replace(config, recipe=""))
    for name in (*_MACHINES, *_NO_MATTER):
        own.pop(name, None)
    return {
        **own,
        "format": FORMAT,
        "arguments": config.network(recipe),
        "class_names": list(dataset.class_names),
        "images": len(dataset.train),
        "seed": int(config.seed),
        "dtype_policy": recipe.precision or keras.config.dtype_policy().name,
        **settings,
    }


def digest(value: Any) -> int:
    """A number of 63 bits for a setting, to compare workers by."""
    text = json.dumps(value, sort_keys=True).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def versions() -> dict[str, str]:
    """Of what a run computes with, for its config.json."""
    return {name: version(name) for name in ("kapps", "keras", "numpy", "pillow", "tensorflow")}


def write_settings(workdir: Path, settings: dict[str, Any], transform: kapps.EvalTransform) -> None:
    """Writes config.json: what `settings_of` gives, and how images are evaluated.

    Raises:
        InputError: it cannot be written.
    """
    told = {k: v for k, v in dataclasses.asdict(transform).items() if k != "fill"}
    write_json(workdir / "config.json", settings | {"evaluation": told, "versions": versions()})


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
    if earlier["format"] < FORMAT:
        raise InputError(
            f"{workdir} holds a run of an earlier kapps, which trained otherwise: it can be "
            "evaluated and converted if it is finished, and not gone on with; choose another "
            "--workdir"
        )
    differing = [
        f"{name} was {was.get(name)!r} and is {value!r}"
        for name, value in now.items()
        if name not in _TOLD and was.get(name) != value
    ]
    differing += [
        f"{name} was {value!r} and is no setting here"
        for name, value in earlier.items()
        if name not in (*_TOLD, *now)
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
