"""AutoAugment, RandAugment and TrivialAugment: chains of operations on an image.

What is drawn and what is done with it are two functions: `..._steps` draws the operations with
their magnitudes, and `image_operations.apply_steps` carries them out. Images are RGB of 8 bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from kapps._errors import InputError, unknown
from kapps.tools.image_operations import BLACK, Color, Step, apply_steps


@dataclasses.dataclass(frozen=True)
class _Space:
    """The operations that a policy draws from, and their magnitudes at its levels."""

    operations: dict[str, tuple[float, float, bool]]
    """Magnitude at level 0, at the highest one, and whether its sign is drawn, by operation."""
    highest: int
    """The highest level."""
    share_of_side: bool = True
    """Whether a translation is a share of the image's width or height, or pixels."""
    whole: Callable[[float], int] = round
    """What makes whole bits of those that posterization keeps."""

    def step(
        self,
        random: np.random.Generator,
        operation: str,
        level: float,
        size: tuple[int, int],
        resample: Image.Resampling = Image.Resampling.NEAREST,
    ) -> Step:
        """The operation at a level, on an image of that width and height; draws the sign."""
        low, high, signed = self.operations[operation]
        magnitude = low + (high - low) * level / self.highest
        if operation == "posterize":
            magnitude = self.whole(magnitude)
        elif operation.startswith("translate") and self.share_of_side:
            magnitude *= size[operation == "translate_y"]
        if signed and random.integers(2):
            magnitude = -magnitude
        return Step(operation, magnitude, resample)


# Cubuk et al. 2020 (RandAugment), as torchvision's RandAugment.
_STANDARD = _Space(
    {
        # operation     lowest  highest  signed
        "identity": (0, 0, False),
        "shear_x": (0, 0.3, True),
        "shear_y": (0, 0.3, True),
        "translate_x": (0, 150 / 331, True),  # the paper's 150 of 331 pixels
        "translate_y": (0, 150 / 331, True),
        "rotate": (0, 30, True),
        "brightness": (0, 0.9, True),
        "color": (0, 0.9, True),
        "contrast": (0, 0.9, True),
        "sharpness": (0, 0.9, True),
        "posterize": (8, 4, False),
        "solarize": (255, 0, False),
        "autocontrast": (0, 0, False),
        "equalize": (0, 0, False),
    },
    highest=30,
)

# Cubuk et al. 2019 (AutoAugment), table 6, as torchvision's AutoAugment.
_AUTO = dataclasses.replace(
    _STANDARD, operations=_STANDARD.operations | {"invert": (0, 0, False)}, highest=9
)

# Mueller and Hutter 2021 (TrivialAugment), the wide space, as torchvision's TrivialAugmentWide.
_WIDE = dataclasses.replace(
    _STANDARD,
    operations=_STANDARD.operations
    | {
        **dict.fromkeys(("shear_x", "shear_y"), (0, 0.99, True)),
        **dict.fromkeys(("translate_x", "translate_y"), (0, 32, True)),
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), (0, 0.99, True)),
        "rotate": (0, 135, True),
        "posterize": (8, 2, False),
    },
    share_of_side=False,
)

# timm's "inc1": all operations grow stronger with the level.
_INCREASING = _Space(
    {
        # operation     lowest  highest  signed
        "autocontrast": (0, 0, False),
        "equalize": (0, 0, False),
        "invert": (0, 0, False),
        "rotate": (0, 30, True),
        "posterize": (4, 0, False),
        "solarize": (256, 0, False),
        "solarize_add": (0, 110, False),
        "color": (0, 0.9, True),
        "contrast": (0, 0.9, True),
        "brightness": (0, 0.9, True),
        "sharpness": (0, 0.9, True),
        "shear_x": (0, 0.3, True),
        "shear_y": (0, 0.3, True),
        "translate_x": (0, 0.45, True),
        "translate_y": (0, 0.45, True),
    },
    highest=10,
    whole=math.ceil,
)
_SMOOTH = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)  # timm draws one of them

_SubPolicy = tuple[str, float, int, str, float, int]

_POLICIES: dict[str, tuple[_SubPolicy, ...]] = {
    # Cubuk et al. 2019, table 9: operation, probability, level; and the second one.
    "imagenet": (
        ("posterize", 0.4, 8, "rotate", 0.6, 9),
        ("solarize", 0.6, 5, "autocontrast", 0.6, 5),
        ("equalize", 0.8, 8, "equalize", 0.6, 3),
        ("posterize", 0.6, 7, "posterize", 0.6, 6),
        ("equalize", 0.4, 7, "solarize", 0.2, 4),
        ("equalize", 0.4, 4, "rotate", 0.8, 8),
        ("solarize", 0.6, 3, "equalize", 0.6, 7),
        ("posterize", 0.8, 5, "equalize", 1.0, 2),
        ("rotate", 0.2, 3, "solarize", 0.6, 8),
        ("equalize", 0.6, 8, "posterize", 0.4, 6),
        ("rotate", 0.8, 8, "color", 0.4, 0),
        ("rotate", 0.4, 9, "equalize", 0.6, 2),
        ("equalize", 0.0, 7, "equalize", 0.8, 8),
        ("invert", 0.6, 4, "equalize", 1.0, 8),
        ("color", 0.6, 4, "contrast", 1.0, 8),
        ("rotate", 0.8, 8, "color", 1.0, 2),
        ("color", 0.8, 8, "solarize", 0.8, 7),
        ("sharpness", 0.4, 7, "invert", 0.6, 8),
        ("shear_x", 0.6, 5, "equalize", 1.0, 9),
        ("color", 0.4, 0, "equalize", 0.6, 3),
        ("equalize", 0.4, 7, "solarize", 0.2, 4),
        ("solarize", 0.6, 5, "autocontrast", 0.6, 5),
        ("invert", 0.6, 4, "equalize", 1.0, 8),
        ("color", 0.6, 4, "contrast", 1.0, 8),
        ("equalize", 0.8, 8, "equalize", 0.6, 3),
    ),
    # Table 7.
    "cifar10": (
        ("invert", 0.1, 7, "contrast", 0.2, 6),
        ("rotate", 0.7, 2, "translate_x", 0.3, 9),
        ("sharpness", 0.8, 1, "sharpness", 0.9, 3),
        ("shear_y", 0.5, 8, "translate_y", 0.7, 9),
        ("autocontrast", 0.5, 8, "equalize", 0.9, 2),
        ("shear_y", 0.2, 7, "posterize", 0.3, 7),
        ("color", 0.4, 3, "brightness", 0.6, 7),
        ("sharpness", 0.3, 9, "brightness", 0.7, 9),
        ("equalize", 0.6, 5, "equalize", 0.5, 1),
        ("contrast", 0.6, 7, "sharpness", 0.6, 5),
        ("color", 0.7, 7, "translate_x", 0.5, 8),
        ("equalize", 0.3, 7, "autocontrast", 0.4, 8),
        ("translate_y", 0.4, 3, "sharpness", 0.2, 6),
        ("brightness", 0.9, 6, "color", 0.2, 8),
        ("solarize", 0.5, 2, "invert", 0.0, 3),
        ("equalize", 0.2, 0, "autocontrast", 0.6, 0),
        ("equalize", 0.2, 8, "equalize", 0.6, 4),
        ("color", 0.9, 9, "equalize", 0.6, 6),
        ("autocontrast", 0.8, 4, "solarize", 0.2, 8),
        ("brightness", 0.1, 3, "color", 0.7, 0),
        ("solarize", 0.4, 5, "autocontrast", 0.9, 3),
        ("translate_y", 0.9, 9, "translate_y", 0.7, 9),
        ("autocontrast", 0.9, 2, "solarize", 0.8, 3),
        ("equalize", 0.8, 8, "invert", 0.1, 3),
        ("translate_y", 0.7, 9, "autocontrast", 0.9, 1),
    ),
    # Table 8.
    "svhn": (
        ("shear_x", 0.9, 4, "invert", 0.2, 3),
        ("shear_y", 0.9, 8, "invert", 0.7, 5),
        ("equalize", 0.6, 5, "solarize", 0.6, 6),
        ("invert", 0.9, 3, "equalize", 0.6, 3),
        ("equalize", 0.6, 1, "rotate", 0.9, 3),
        ("shear_x", 0.9, 4, "autocontrast", 0.8, 3),
        ("shear_y", 0.9, 8, "invert", 0.4, 5),
        ("shear_y", 0.9, 5, "solarize", 0.2, 6),
        ("invert", 0.9, 6, "autocontrast", 0.8, 1),
        ("equalize", 0.6, 3, "rotate", 0.9, 3),
        ("shear_x", 0.9, 4, "solarize", 0.3, 3),
        ("shear_y", 0.8, 8, "invert", 0.7, 4),
        ("equalize", 0.9, 5, "translate_y", 0.6, 6),
        ("invert", 0.9, 4, "equalize", 0.6, 7),
        ("contrast", 0.3, 3, "rotate", 0.8, 4),
        ("invert", 0.8, 5, "translate_y", 0.0, 2),
        ("shear_y", 0.7, 6, "solarize", 0.4, 8),
        ("invert", 0.6, 4, "rotate", 0.8, 4),
        ("shear_y", 0.3, 7, "translate_x", 0.9, 3),
        ("shear_x", 0.1, 6, "invert", 0.6, 5),
        ("solarize", 0.7, 2, "translate_y", 0.6, 7),
        ("shear_y", 0.8, 4, "invert", 0.8, 8),
        ("shear_x", 0.7, 9, "translate_y", 0.8, 3),
        ("shear_y", 0.8, 5, "autocontrast", 0.7, 3),
        ("shear_x", 0.7, 2, "invert", 0.1, 5),
    ),
}

POLICIES = tuple(_POLICIES)
"""The names of AutoAugment's policies."""


def auto_augment_steps(
    random: np.random.Generator, size: tuple[int, int], policy: str
) -> list[Step]:
    """What `auto_augment` does to an image of this width and height."""
    if policy not in _POLICIES:
        raise unknown("policy", policy, _POLICIES)
    drawn = _POLICIES[policy][random.integers(len(_POLICIES[policy]))]
    return [
        _AUTO.step(random, operation, level, size)
        for operation, probability, level in (drawn[:3], drawn[3:])
        if random.random() < probability
    ]


def auto_augment(
    image: Image.Image, random: np.random.Generator, policy: str, fill: Color = BLACK
) -> Image.Image:
    """AutoAugment: one of a policy's 25 pairs of operations, each with its probability.

    Cubuk et al. 2019, "AutoAugment: Learning Augmentation Strategies from Data", with the
    magnitudes of torchvision: its levels 0 to 9 of colour, contrast, brightness and sharpness are
    1 - 0.1 level or 1 + 0.1 level, by a sign that is drawn, where the paper's are 0.1 to 1.9.

    Args:
        policy: "imagenet", "cifar10" or "svhn", the data set that it was searched on.
        fill: The colour of what comes from outside of the image.

    Raises:
        InputError: there is no policy of that name.
    """
    return apply_steps(image, auto_augment_steps(random, image.size, policy), fill)


def rand_augment_steps(
    random: np.random.Generator,
    size: tuple[int, int],
    operations: int = 2,
    magnitude: float = 9.0,
    magnitude_std: float = 0.0,
    probability: float = 1.0,
    increasing: bool = False,
) -> list[Step]:
    """What `rand_augment` does to an image of this width and height."""
    space = _INCREASING if increasing else _STANDARD
    if not 0 <= magnitude <= space.highest:
        raise InputError(
            f"rand_augment: magnitude must lie in 0..{space.highest} with increasing={increasing}, "
            f"not {magnitude!r}"
        )
    names, steps = list(space.operations), []
    for _ in range(operations):
        name = names[random.integers(len(names))]
        if random.random() >= probability:
            continue
        level = magnitude
        if magnitude_std > 0:
            level = min(max(random.normal(magnitude, magnitude_std), 0), space.highest)
        resample = _SMOOTH[random.integers(2)] if increasing else Image.Resampling.NEAREST
        steps.append(space.step(random, name, level, size, resample))
    return steps


def rand_augment(
    image: Image.Image,
    random: np.random.Generator,
    operations: int = 2,
    magnitude: float = 9.0,
    magnitude_std: float = 0.0,
    probability: float = 1.0,
    increasing: bool = False,
    fill: Color = BLACK,
) -> Image.Image:
    """RandAugment: some operations, drawn with replacement, all of one magnitude.

    Cubuk et al. 2020, "RandAugment: Practical Automated Data Augmentation with a Reduced Search
    Space". There are two sets of operations. The defaults are torchvision's RandAugment();
    `magnitude=7, magnitude_std=0.5, probability=0.5, increasing=True` is rand-m7-mstd0.5-inc1 of
    timm, with which Wightman et al. 2021, "ResNet Strikes Back", table 2, train.

    Args:
        operations: How many are drawn.
        magnitude: 0 to 30, or 0 to 10 with `increasing`.
        magnitude_std: Each operation's own magnitude is normal about `magnitude`, with this
            standard deviation, and cut to the range.
        probability: That of an operation that was drawn to be applied.
        increasing: False: torchvision's 14 operations, resampled to the nearest pixel. True: the 15
            of timm's "inc1", among them inversion and "solarize_add" and not the identity,
            resampled bilinearly or bicubically, by a draw.
        fill: The colour of what comes from outside of the image; timm's is the data set's mean.

    Raises:
        InputError: the magnitude is out of range.
    """
    steps = rand_augment_steps(
        random, image.size, operations, magnitude, magnitude_std, probability, increasing
    )
    return apply_steps(image, steps, fill)


def trivial_augment_wide_step(random: np.random.Generator, size: tuple[int, int]) -> Step:
    """What `trivial_augment_wide` does to an image of this width and height."""
    names = list(_WIDE.operations)
    name, level = names[random.integers(len(names))], random.integers(_WIDE.highest + 1)
    return _WIDE.step(random, name, float(level), size)


def trivial_augment_wide(
    image: Image.Image, random: np.random.Generator, fill: Color = BLACK
) -> Image.Image:
    """TrivialAugment: one operation, at a magnitude that is drawn from a wide range.

    Mueller and Hutter 2021, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation".

    Args:
        fill: The colour of what comes from outside of the image.
    """
    return apply_steps(image, [trivial_augment_wide_step(random, image.size)], fill)
