"""What a recipe of training says, each setting with its meaning, its range and its default."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Collection
from typing import Any

from kapps._errors import InputError, is_number, is_whole, unknown

_POSITIVE: tuple[Callable[[float], bool], str] = (lambda x: x > 0, "above 0")
_NOT_NEGATIVE: tuple[Callable[[float], bool], str] = (lambda x: x >= 0, "at least 0")
_SHARE: tuple[Callable[[float], bool], str] = (lambda x: 0 <= x <= 1, "in 0 to 1")
_BELOW_ONE: tuple[Callable[[float], bool], str] = (lambda x: 0 <= x < 1, "at least 0 and below 1")
_PART: tuple[Callable[[float], bool], str] = (lambda x: 0 < x <= 1, "above 0, and at most 1")
_AT_LEAST_ONE: tuple[Callable[[float], bool], str] = (lambda x: x >= 1, "at least 1")


def _setting(
    default: Any,
    help: str,  # noqa: A002  the word of absl's flags
    range: tuple[Callable[[float], bool], str] | None = None,  # noqa: A002
    choices: Collection[str] = (),
) -> Any:
    return dataclasses.field(
        default=default, metadata={"help": help, "range": range, "choices": tuple(choices)}
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about a training run but the network, the data set and the machines.

    `help_of` tells what a setting means. One that may be None is then as the network has it, or
    not in use.

    Raises:
        InputError: a value is out of range.
    """

    source: str
    """Where the numbers are from."""
    command: str
    """The command that trains by this recipe."""
    expected: str
    """The accuracy that it reaches, and on what."""
    cost: str = ""
    """What one run costs, and on what."""

    # The optimizer
    optimizer: str = _setting(
        "adamw", "how weights follow gradients", choices=("adamw", "lamb", "lars", "rmsprop", "sgd")
    )
    learning_rate: float = _setting(1e-3, "the highest of the schedule", _POSITIVE)
    momentum: float = _setting(0.9, "of sgd, lars and rmsprop", _BELOW_ONE)
    nesterov: bool = _setting(False, "whether sgd looks ahead")
    beta_2: float = _setting(0.999, "memory of adamw's and lamb's squared gradients", _BELOW_ONE)
    rho: float = _setting(0.9, "memory of rmsprop's squared gradients", _BELOW_ONE)
    epsilon: float | None = _setting(
        None, "what the optimizer adds to a divisor; its own by default", _POSITIVE
    )
    weight_decay: float = _setting(
        0.05,
        "pull of kernels towards 0; never of biases and normalization. Of sgd, rmsprop and lars a "
        "term of the gradient, of adamw apart from it, of lamb within the trust ratio",
        _NOT_NEGATIVE,
    )
    clip_norm: float | None = _setting(None, "largest norm of all gradients together", _POSITIVE)
    clip_adaptive: float | None = _setting(
        None, "largest norm of a unit's gradient, in those of its weights (AGC)", _POSITIVE
    )
    accumulate: int = _setting(1, "parts that a batch is computed in, one after the other")
    average: float | None = _setting(
        None, "what the moving average of the weights keeps at each step; None for none", _BELOW_ONE
    )

    # The schedule
    schedule: str = _setting(
        "cosine",
        "how the learning rate falls",
        choices=("constant", "cosine", "exponential", "linear", "plateau", "steps"),
    )
    warmup_epochs: float = _setting(
        0.0, "the learning rate grows over these first epochs", _NOT_NEGATIVE
    )
    warmup_start: float = _setting(0.0, "share of the rate that warm-up starts from", _SHARE)
    final_rate: float = _setting(0.0, "share of the rate that cosine and linear end at", _SHARE)
    boundaries: tuple[float, ...] = _setting(
        (), "epochs after which `steps` multiplies by `factor`"
    )
    factor: float = _setting(
        0.1, "of the steps, of exponential and of plateau: what the rate is multiplied by", _PART
    )
    decay_epochs: float = _setting(2.4, "exponential multiplies by `factor` so often", _POSITIVE)
    patience: int = _setting(10, "epochs without gain after which plateau multiplies by `factor`")
    rate_by_epoch: bool = _setting(False, "whether the rate changes between epochs only")

    # Images and targets
    batch_size: int | None = _setting(
        None,
        "images a step, over all replicas; None: of a small data set as few as make 40 steps an "
        "epoch, 16 to 128",
    )
    epochs: int = _setting(30, "passes over the training images")
    image_size: int | None = _setting(
        None, "height and width of the input in training, pixels; None: the network's own"
    )
    eval_size: int | None = _setting(
        None, "the same in evaluation; None: as in training, at the last stage"
    )
    crop: float | None = _setting(
        None,
        "share of the shorter side that evaluation keeps; None: as the weights that the run starts "
        "from were published, or 0.875",
        _PART,
    )
    interpolation: str | None = _setting(
        None,
        "of evaluation; None: likewise, or bilinear",
        choices=("bicubic", "bilinear", "lanczos", "nearest"),
    )
    train_crop: str = _setting(
        "none",
        "none: as in evaluation; random: a part of random area and aspect; shift: the image, "
        "padded by `pad` and shifted; scale: a window of the image at a random scale",
        choices=("none", "random", "scale", "shift"),
    )
    crop_area: float = _setting(0.08, "smallest share of the area that random keeps", _PART)
    crop_aspect: float = _setting(4 / 3, "largest ratio of sides that random keeps", _AT_LEAST_ONE)
    pad: int = _setting(4, "pixels at each side of shift, at the network's size", _NOT_NEGATIVE)
    scales: tuple[float, ...] = _setting(
        (256 / 224, 480 / 224), "range of the shorter side of scale, in sides of the window"
    )
    flip: float = _setting(0.0, "share of the images that are mirrored", _SHARE)
    brightness: float = _setting(0.0, "colour jitter: factors of 1 - it to 1 + it", _NOT_NEGATIVE)
    contrast: float = _setting(0.0, "likewise", _NOT_NEGATIVE)
    saturation: float = _setting(0.0, "likewise", _NOT_NEGATIVE)
    hue: float = _setting(
        0.0, "likewise, turns of the colour circle", (lambda x: 0 <= x <= 0.5, "in 0 to 0.5")
    )
    lighting: float = _setting(0.0, "strength of AlexNet's noise of colour", _NOT_NEGATIVE)
    policy: str = _setting(
        "none",
        "operations on the image that were found or drawn",
        choices=(
            "none",
            "autoaugment-cifar10",
            "autoaugment-imagenet",
            "autoaugment-svhn",
            "randaugment",
            "randaugment-increasing",
            "trivialaugment-wide",
        ),
    )
    policy_operations: int = _setting(2, "of randaugment: operations an image")
    policy_magnitude: float = _setting(
        9.0, "of randaugment: their strength, of 0 to 30, of -increasing 0 to 10", _NOT_NEGATIVE
    )
    policy_deviation: float = _setting(
        0.0, "of randaugment-increasing: standard deviation of the magnitude", _NOT_NEGATIVE
    )
    erasing: float = _setting(0.0, "share of the images of which a part is erased", _SHARE)
    cutout: int = _setting(0, "side of the square that cutout covers, pixels", _NOT_NEGATIVE)
    mixup: float = _setting(0.0, "alpha of mixup's Beta distribution; 0 for none", _NOT_NEGATIVE)
    cutmix: float = _setting(0.0, "alpha of CutMix's Beta distribution; 0 for none", _NOT_NEGATIVE)
    manifold_mixup: float = _setting(
        0.0,
        "alpha of the Beta distribution of mixup at the input or the end of one of the first two "
        "stages, by turns drawn by chance; 0 for none",
        _NOT_NEGATIVE,
    )
    mix_probability: float = _setting(1.0, "share of the batches that are mixed", _SHARE)
    mix_switch: float = _setting(0.5, "share of CutMix where mixup is in use too", _SHARE)
    adversarial_eps: float = _setting(
        0.0,
        "adversarial training: each image is changed by at most so much, gray levels of 0..255, to "
        "where its loss is high, and learned from there; 0 for none",
        (lambda x: 0 <= x <= 255, "in 0 to 255"),
    )
    adversarial_step: float | None = _setting(
        None,
        "of its attack (PGD): gray levels an iteration; None: 2.5 eps over the iterations",
        _POSITIVE,
    )
    adversarial_iterations: int = _setting(
        7, "of its attack, from a random start: a pass forward and one backward each"
    )
    adversarial_warmup_epochs: float = _setting(
        0.0,
        "eps and step grow from 0 over these first epochs: from random weights many a network "
        "learns nothing at a large eps",
        _NOT_NEGATIVE,
    )
    repeats: int = _setting(1, "how often an image is in a batch, augmented anew each time")
    label_smoothing: float = _setting(
        0.0, "share of the target that is spread over all classes", _BELOW_ONE
    )
    loss: str = _setting(
        "softmax",
        "cross-entropy of all classes, or of each by itself",
        choices=("softmax", "binary"),
    )
    binary_threshold: float | None = _setting(
        None, "of binary: targets above it count as 1, others as 0; None: as they are", _SHARE
    )
    class_weights: bool = _setting(False, "whether classes count alike, however many images")

    # The network
    dropout_rate: float | None = _setting(None, "of the network's dropout", _BELOW_ONE)
    drop_path_rate: float | None = _setting(None, "of stochastic depth", _BELOW_ONE)
    drop_block_rate: float | None = _setting(None, "of DropBlock", _BELOW_ONE)
    bn_momentum: float | None = _setting(
        None, "what batch norm's moving statistics keep at each step", _BELOW_ONE
    )
    precision: str | None = _setting(
        None,
        "numbers to compute in; mixed_float16 scales its loss",
        choices=("float32", "float64", "mixed_bfloat16", "mixed_float16"),
    )

    # Progressive learning, and the end
    stages: int = _setting(1, "parts of the run through which what `start` names grows")
    start: tuple[tuple[str, float], ...] = _setting(
        (), "settings of the first stage, each with its value; the last one is as the recipe says"
    )
    stop_at: float | None = _setting(
        None,
        "training ends once the validation accuracy has been so high for `stop_patience` epochs",
        _SHARE,
    )
    stop_patience: int = _setting(2, "more than 1: a small validation set is passed once by luck")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata:
                object.__setattr__(self, field.name, _checked(field, value))
        self._check_together()

    def _check_together(self) -> None:
        if len(self.scales) != 2 or not 1 <= self.scales[0] <= self.scales[1]:
            raise InputError(f"scales must be two, LOW,HIGH of at least 1, not {self.scales}")
        if list(self.boundaries) != sorted(b for b in self.boundaries if b > 0):
            raise InputError(f"boundaries must be epochs, in order, not {self.boundaries}")
        if self.schedule == "steps" and not self.boundaries:
            raise InputError("schedule steps needs boundaries, such as 30,60,80")
        batch = self.batch_size
        if batch is not None and batch % self.accumulate:
            raise InputError(
                f"batch_size {batch} must be a multiple of accumulate, {self.accumulate}"
            )
        if batch is not None and self.mixes and batch // self.accumulate % 2:
            raise InputError(
                f"mixup and CutMix mix pairs: batch_size {batch} divided by accumulate must be even"
            )
        if self.manifold_mixup and (self.mixup or self.cutmix):
            raise InputError(
                "manifold_mixup mixes at the input as well, and takes the place of mixup and "
                "cutmix: set those to 0, or manifold_mixup"
            )
        if self.adversarial_step is not None and not self.adversarial_eps:
            raise InputError(
                "adversarial_step is of adversarial training, and adversarial_eps is 0: give that "
                "as well, such as 8"
            )
        for name, _ in self.start:
            if name not in _GROWING:
                raise unknown("setting that grows", name, _GROWING)
        if self.start and self.stages < 2:
            raise InputError("start needs stages of at least 2")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return bool(self.mixup or self.cutmix or self.manifold_mixup)

    def stage_of(self, epoch: int) -> int:
        """The stage, from 0, that an epoch, from 0, belongs to: parts of equal length."""
        return min(epoch * self.stages // self.epochs, self.stages - 1)

    def at_stage(self, stage: int) -> Recipe:
        """The recipe of a stage: what grows does so by equal steps.

        Tan and Le 2021, "EfficientNetV2", algorithm 1.
        """
        done = stage / max(self.stages - 1, 1)
        grown: dict[str, Any] = {}
        for name, first in self.start:
            value = first + (getattr(self, name) - first) * done
            grown[name] = round(value) if name == "image_size" else value
        return dataclasses.replace(self, start=(), stages=1, **grown) if grown else self

    def for_images(self, images: int) -> Recipe:
        """The recipe with its batch size, for so many training images."""
        if self.batch_size is not None:
            return self
        batch = 16
        while batch < 128 and images // (2 * batch) >= 40:
            batch *= 2
        return dataclasses.replace(self, batch_size=batch)

    def steps_per_epoch(self, images: int) -> int:
        """The whole batches in so many training images; the batch size has to be known."""
        assert self.batch_size is not None
        return images // self.batch_size

    def local(self) -> Recipe:
        """The same recipe at a size that runs in seconds on a CPU, to see that it runs at all."""
        share = min(2, self.epochs) / self.epochs
        size = min(self.image_size or 32, 32)
        batch = self.accumulate * 2
        return dataclasses.replace(
            self,
            epochs=min(self.epochs, 2),
            batch_size=max(batch, min(self.batch_size or 32, 32) // batch * batch),
            image_size=size,
            eval_size=None,
            pad=min(self.pad, size // 8),
            cutout=min(self.cutout, size // 2),
            warmup_epochs=self.warmup_epochs * share,
            adversarial_warmup_epochs=self.adversarial_warmup_epochs * share,
            decay_epochs=self.decay_epochs * share,
            boundaries=tuple(b * share for b in self.boundaries),
            stages=min(self.stages, 2),
            start=tuple((n, min(v, size) if n == "image_size" else v) for n, v in self.start),
        )


_GROWING = (
    "cutmix",
    "drop_path_rate",
    "dropout_rate",
    "image_size",
    "mixup",
    "policy_magnitude",
)


def settings() -> dict[str, tuple[Any, str, tuple[str, ...]]]:
    """Name to type, help and choices of each setting, for the flags of a program.

    The type is that of the values, or of the members of a tuple, without None.
    """
    return {
        field.name: (
            _kind(_hints()[field.name]),
            field.metadata["help"],
            field.metadata["choices"],
        )
        for field in dataclasses.fields(Recipe)
        if field.metadata and field.name != "start"
    }


def _kind(hint: Any) -> Any:
    """`float` of `float | None`; a tuple's hint as it is."""
    if typing.get_origin(hint) is tuple:
        return hint
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    return members[0] if members else hint


@functools.cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Recipe)


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value as Python's own number or text, which can be written to config.json."""
    name, hint, within = field.name, _hints()[field.name], field.metadata["range"]
    kind = _kind(hint)
    if value is None and type(None) in typing.get_args(hint):
        return None
    if name == "start":
        return tuple((str(key), _number(f"start of {key}", number, None)) for key, number in value)
    if typing.get_origin(kind) is tuple:
        return tuple(_number(name, number, None) for number in value)
    if kind is bool:
        if not isinstance(value, bool):
            raise InputError(f"{name} must be True or False, not {value!r}")
        return value
    if kind is str:
        if value not in field.metadata["choices"]:
            raise unknown(name, value, field.metadata["choices"])
        return value
    if kind is int:
        if not is_whole(value):
            raise InputError(f"{name} must be a whole number, not {value!r}")
        return int(_number(name, value, within or _AT_LEAST_ONE))
    return _number(name, value, within)


def _number(name: str, value: Any, within: tuple[Callable[[float], bool], str] | None) -> float:
    if not is_number(value) or not (within is None or within[0](value)):
        raise InputError(f"{name} must be {within[1] if within else 'a number'}, not {value!r}")
    return float(value)
