"""How to train: named sets of hyperparameters, each with its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from kapps._errors import InputError, is_number, is_whole, unknown

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine", "linear")
AUGMENTATIONS = ("none", "crop", "crop_flip")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about a training run but the network, the data set and the machines.

    Raises:
        InputError: a value is out of range.
    """

    source: str
    """Where the numbers are from."""
    command: str
    """The command that trains by this recipe."""
    expected: str
    """The accuracy that it reaches, and on what."""

    optimizer: str = "adamw"
    """"adamw", or "sgd" with classical momentum."""
    learning_rate: float = 1e-3
    """The highest one; `schedule` says what becomes of it."""
    schedule: str = "cosine"
    """"cosine" or "linear" to 0 at the end of the last epoch, or "constant"."""
    warmup_epochs: float = 0.0
    """The learning rate grows linearly from 0 over these first epochs."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 0.05
    """Share of a weight that is taken off at each step, times the learning rate (decoupled from the
    gradient). Biases and normalization are never decayed."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, 0 to 1."""
    batch_size: int = 128
    """Images a step, over all replicas."""
    epochs: int = 30
    image_size: int | None = None
    """Height and width of the network's input, pixels; None: its own default."""
    crop: float = 1.0
    """Share of the shorter side that the central crop keeps in validation, above 0, to 1."""
    augment: str = "none"
    """"none": as in validation. "crop": a random part of the image. "crop_flip": mirrored half the
    time as well."""
    crop_area: float = 0.08
    """The smallest part that augmentation may show, share of the image's area; the largest is 1."""
    bn_momentum: float | None = None
    """What batch norm's moving statistics keep at each step; None: as the network has it."""
    stop_at: float | None = None
    """Training ends once the validation accuracy has been at least this for `stop_patience` epochs
    in a row; None: never early."""
    stop_patience: int = 2
    """More than one, since a validation set of some hundred images is passed once by luck."""

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("augmentation", self.augment, AUGMENTATIONS),
        ):
            if value not in known:
                raise unknown(kind, value, known)
        for name in ("batch_size", "epochs", "image_size", "stop_patience"):
            value = getattr(self, name)
            if value is None and name == "image_size":
                continue
            if not is_whole(value):
                raise InputError(f"{name} must be a whole number, not {value!r}")
            if int(value) < 1:
                raise InputError(f"{name} must be at least 1, not {value!r}")
            object.__setattr__(self, name, int(value))  # NumPy's cannot be written to config.json
        ranges: tuple[tuple[str, Callable[[float], bool], str], ...] = (
            ("learning_rate", lambda x: x > 0, "above 0"),
            ("warmup_epochs", lambda x: x >= 0, "at least 0"),
            ("momentum", lambda x: 0 <= x < 1, "at least 0 and below 1"),
            ("weight_decay", lambda x: x >= 0, "at least 0"),
            ("label_smoothing", lambda x: 0 <= x < 1, "at least 0 and below 1"),
            ("crop", lambda x: 0 < x <= 1, "above 0, and at most 1"),
            ("crop_area", lambda x: 0 < x <= 1, "above 0, and at most 1"),
            ("bn_momentum", lambda x: 0 <= x < 1, "at least 0 and below 1"),
            ("stop_at", lambda x: 0 <= x <= 1, "in 0 to 1"),
        )
        for name, within, wanted in ranges:
            value = getattr(self, name)
            if value is None and name in ("bn_momentum", "stop_at"):
                continue
            if not is_number(value) or not within(value):
                raise InputError(f"{name} must be {wanted}, not {value!r}")
            object.__setattr__(self, name, float(value))

    def local(self) -> Recipe:
        """The same recipe at a size that runs in seconds on a CPU, to see that it runs at all."""
        return dataclasses.replace(
            self,
            epochs=min(self.epochs, 2),
            batch_size=min(self.batch_size, 32),
            image_size=min(self.image_size or 32, 32),
            warmup_epochs=min(self.warmup_epochs, 1.0),
        )


_DEFAULT = Recipe(
    source="Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization (AdamW, cosine)",
    command="kapps-train --model=MobileNetV3Small --dataset=folder:PATH --workdir=DIR",
    expected="depends on the data set",
    warmup_epochs=1.0,
    augment="crop_flip",
    crop=0.875,
)

RECIPES: dict[str, Recipe] = {
    "default": _DEFAULT,
    "digits": dataclasses.replace(
        _DEFAULT,
        source="tuned for scikit-learn's 1,797 digits, of which 1,197 are for training",
        command="kapps-train --model=MobileNetV3Small --dataset=digits --recipe=digits "
        "--workdir=DIR",
        expected="validation top-1 of 0.98 to 1.00, held-out 0.978 to 0.992, seed 0, by network",
        learning_rate=1e-2,
        label_smoothing=0.1,
        batch_size=32,
        epochs=30,
        image_size=64,
        augment="crop",  # mirrored digits are no digits
        crop_area=0.75,
        crop=1.0,
        # A thousand steps at most: the usual 0.99 would long remember the start.
        bn_momentum=0.9,
        # At most 2 of the 240 validation images wrong, twice: a network that gets 0.97 of all
        # digits right passes once with a probability of 0.025.
        stop_at=0.99,
    ),
    "imagenet": dataclasses.replace(
        _DEFAULT,
        source="Ma et al. 2018 (ShuffleNet V2, section 4), who train as Zhang et al. 2018 "
        "(ShuffleNet, section 4) do: batch 1024, 300,000 steps, learning rate 0.5 falling linearly "
        "to 0, weight decay 4e-5",
        command="kapps-train --model=ShuffleNetV2_x0_5 --dataset=imagenet2012 --recipe=imagenet "
        "--strategy=mirrored --workdir=DIR",
        expected="ShuffleNetV2_x0_5: ImageNet top-1 60.3 % (Ma et al. 2018, table 8); not "
        "reproduced with this trainer yet",
        optimizer="sgd",
        learning_rate=0.5,
        schedule="linear",
        warmup_epochs=0.0,
        # The paper's 4e-5 is an L2 term in the gradient, which momentum 0.9 amplifies to ten times
        # its size; here the decay passes by the momentum.
        weight_decay=4e-4,
        batch_size=1024,
        epochs=240,  # 300,000 steps of 1024 are 239.8 times 1,281,167 images
    ),
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InputError: there is none; the nearest names are proposed.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
