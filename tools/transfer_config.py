"""What a run of transfer learning is asked to do, and what it starts from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from kapps._errors import InputError, check_whole, is_number
from kapps.tools import runs
from kapps.tools.recipes import get_recipe
from kapps.tools.runs import TrainConfig

PHASES = ("head", "head,all", "all")

# Of a run's network: what is dropped in training is the recipe's to say, and auxiliary classifiers
# would start at random.
_FREE = ("aux", "dropout_rate", "drop_path_rate", "drop_block_rate")


@dataclasses.dataclass(frozen=True)
class TransferConfig(TrainConfig):
    """One run of transfer learning.

    `weights` may also be the folder of a finished run: then its network and its evaluation are
    those of this run, unless something else is said. The strategies are "none" and "mirrored"; the
    phase head computes on one device.
    """

    phases: str = "head,all"
    """One of `PHASES`."""
    cut_at: str | None = None
    """Where the network ends, as of `kapps.tools.cutting`; None: where it does by itself."""
    feature_copies: int = 1
    """How often a training image is there for the head: as evaluation sees it, and then as training
    does, augmented anew each time."""
    keep_features: bool = False
    """Whether the folder features/ stays when the head is fitted."""
    all_rate: float = 0.1
    """The phase all: its share of the recipe's learning rate, above 0."""
    rate_decay: float = 1.0
    """The phase all: the share of a stage's learning rate that the stage before it has, above 0 and
    at most 1; see `kapps.tools.layers.rates`."""
    freeze_statistics: bool = True
    """The phase all: whether batch norm normalizes by the statistics that the weights came with."""


def checked(config: TransferConfig) -> TransferConfig:
    """With network, cut and evaluation of the run whose folder `weights` names, if it does.

    Raises:
        InputError: the settings do not go together, or the folder holds no finished run.
    """
    _check(config)
    folder = Path(config.weights or "")
    if not folder.is_dir():
        if not config.model:
            raise InputError("--model must be given, unless --weights is the folder of a run")
        return config
    if folder.resolve() == Path(config.workdir).resolve():
        raise InputError("--workdir is the folder of --weights; choose another one")
    return _as_run(config, folder, _settings(folder))


def start(config: TransferConfig) -> tuple[str, bool]:
    """The weights to start from, and whether they are of the network that is cut already."""
    folder = Path(config.weights or "")
    if not folder.is_dir():
        return config.weights or "", False
    return str(folder / "weights.safetensors"), bool(_settings(folder).get("cut_at"))


def _check(config: TransferConfig) -> None:
    if config.weights is None:
        raise InputError(
            "--weights must be given: imagenet, the tag of other published weights, a file, or the "
            "folder of a run; kapps-train starts without"
        )
    if config.phases not in PHASES:
        raise InputError(f"--phases must be {' or '.join(PHASES)}, not {config.phases!r}")
    check_whole("kapps-finetune", "feature_copies", config.feature_copies)
    if not is_number(config.all_rate) or config.all_rate <= 0:
        raise InputError(f"--all_rate must be above 0, not {config.all_rate!r}")
    if not is_number(config.rate_decay) or not 0 < config.rate_decay <= 1:
        raise InputError(f"--rate_decay must be above 0, and at most 1, not {config.rate_decay!r}")
    if config.strategy not in ("none", "mirrored"):
        raise InputError(
            f"--strategy={config.strategy}: kapps-finetune computes on one machine: none or "
            "mirrored; for more of them give kapps-train the --weights of a run with --phases=head"
        )
    if config.phases == "all" and config.cut_at is not None:
        raise InputError("--cut_at puts a new classifier there: it needs --phases=head,all")
    earlier = runs.read_settings(config.workdir)
    if earlier is not None and "phases" not in earlier:
        raise InputError(
            f"{config.workdir} holds a run of another program, such as kapps-train; choose another "
            f"--workdir, or give --weights={config.workdir} to start from it"
        )


def _settings(folder: Path) -> dict[str, Any]:
    """Of the finished run in a folder."""
    settings = runs.read_settings(folder)
    if settings is None or not (folder / "weights.safetensors").is_file():
        raise InputError(
            f"--weights={folder} holds no finished run (config.json and weights.safetensors); give "
            "the folder of one, or a file of weights"
        )
    return settings


def _as_run(config: TransferConfig, folder: Path, settings: dict[str, Any]) -> TransferConfig:
    try:
        model, transform = settings["model"], runs.transform_of(settings)
        arguments = {k: v for k, v in (settings.get("arguments") or {}).items() if k not in _FREE}
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'config.json'} is not of a training run: {error!r}") from error
    if config.model and config.model != model:
        raise InputError(
            f"--weights={folder} is a run of {model}, and --model={config.model}; leave --model out"
        )
    cut_at = settings.get("cut_at")
    for name, was, given in (
        ("arguments", arguments, config.arguments),
        ("cut_at", cut_at, config.cut_at),
    ):
        if was and given:
            raise InputError(
                f"--weights={folder} is a run with --{name} of its own; leave it out here"
            )
    recipe = get_recipe(config.recipe) if isinstance(config.recipe, str) else config.recipe
    return dataclasses.replace(
        config,
        model=model,
        arguments=config.arguments or _as_text(arguments),
        cut_at=config.cut_at or cut_at,
        recipe=dataclasses.replace(
            recipe,
            image_size=recipe.image_size or transform.size,
            crop=recipe.crop or transform.crop,
            interpolation=recipe.interpolation or transform.interpolation,
        ),
    )


def _as_text(arguments: dict[str, Any]) -> str | None:
    """As of the flag --arguments."""

    def literal(value: Any) -> str:
        if isinstance(value, list):
            return f"({''.join(f'{literal(each)},' for each in value)})"
        return repr(value)

    return ",".join(f"{name}={literal(value)}" for name, value in arguments.items()) or None
