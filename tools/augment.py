"""Random changes to the images of training, on the host: what is drawn, and what becomes of it.

Images are Pillow's, RGB of 8 bits; what works on arrays takes uint8 (height, width, 3). Whatever is
random is drawn from the generator that is given, and from nothing else: the pipeline makes one of
(seed, epoch, index). What draws is a function of its own, so that it can be tested apart.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from kapps._errors import InputError, unknown
from kapps.tools.augment_policies import auto_augment, rand_augment, trivial_augment_wide
from kapps.tools.image_operations import BLACK, OPERATIONS, Color, Step, apply, apply_steps

__all__ = [
    "BLACK",
    "ERASING_FILLS",
    "OPERATIONS",
    "Box",
    "Color",
    "Step",
    "apply",
    "apply_steps",
    "auto_augment",
    "color_jitter",
    "color_jitter_steps",
    "crop_box",
    "cutout",
    "cutout_box",
    "erasing_box",
    "flip",
    "lighting",
    "lighting_shift",
    "pad_shift",
    "rand_augment",
    "random_erasing",
    "scale_jitter_box",
    "shift_offset",
    "trivial_augment_wide",
]

Box = tuple[int, int, int, int]
"""Left, top, width, height, in pixels."""

_ATTEMPTS = 10  # as torchvision and timm


def _draw_extent(
    random: np.random.Generator,
    pixels: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    most: tuple[int, int],
) -> tuple[int, int] | None:
    """Width and height of a part of so many pixels times `area`; None where no attempt fits."""
    for _ in range(_ATTEMPTS):
        wanted = pixels * random.uniform(*area)
        ratio = math.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1])))
        width, height = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
        if 0 < width <= most[0] and 0 < height <= most[1]:
            return width, height
    return None


def crop_box(
    random: np.random.Generator,
    width: int,
    height: int,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A random part of an image of that size, to be resized to the network's input.

    Szegedy et al. 2015, "Going Deeper with Convolutions", section 6; drawn as by torchvision's
    RandomResizedCrop. Of a strip in which no such part is found it is the central one of the
    nearest aspect.

    Args:
        area: The least and the most of the image's area, uniform between.
        aspect: The least and the most of width to height; its logarithm is uniform between.
    """
    extent = _draw_extent(random, width * height, area, aspect, (width, height))
    if extent is None:
        w = min(width, max(1, round(height * aspect[1])))
        h = min(height, max(1, round(width / aspect[0])))
        return (width - w) // 2, (height - h) // 2, w, h
    w, h = extent
    left, top = random.integers(width - w + 1), random.integers(height - h + 1)
    return int(left), int(top), w, h


def scale_jitter_box(
    random: np.random.Generator, width: int, height: int, size: int, low: int, high: int
) -> tuple[float, float, float, float]:
    """A random square of an image whose shorter side was resized to a random length.

    Simonyan and Zisserman 2015 (VGG), section 3.1, and He et al. 2015 (ResNet), section 3.4.

    Args:
        size: The side of the square after resizing, pixels.
        low, high: The least and the most of the shorter side after resizing, pixels.

    Returns:
        Left, top, width and height in pixels of the image as it is: one `Image.resize` with this
        box both cuts and resizes.

    Raises:
        InputError: the square is larger than the shorter side.
    """
    if not size <= low <= high:
        raise InputError(
            f"scale_jitter_box: the shorter side is drawn from {low}..{high}, and must hold a "
            f"square of {size} pixels; choose {size} <= low <= high"
        )
    scale = int(random.integers(low, high + 1)) / min(width, height)
    box = []
    for side in (width, height):
        resized = round(side * scale)
        start = int(random.integers(resized - size + 1))
        box.append((start * side / resized, size * side / resized))
    (left, w), (top, h) = box
    return left, top, w, h


def flip(image: Image.Image, random: np.random.Generator, probability: float = 0.5) -> Image.Image:
    """Mirrored left to right, with that probability."""
    if random.random() < probability:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def shift_offset(random: np.random.Generator, pad: int) -> tuple[int, int]:
    """How far `pad_shift` moves an image to the right and down: whole pixels, -pad to pad."""
    right, down = random.integers(-pad, pad + 1, 2)
    return int(right), int(down)


def pad_shift(
    image: Image.Image, random: np.random.Generator, pad: int = 4, fill: Color = BLACK
) -> Image.Image:
    """A window of the image's own size, out of the image with a margin of `pad` pixels.

    He et al. 2015, section 4.2, for CIFAR. They pad with 0 after the mean was subtracted: for that
    `fill` is the mean colour.
    """
    moved = Image.new("RGB", image.size, fill)
    moved.paste(image, shift_offset(random, pad))
    return moved


def color_jitter_steps(
    random: np.random.Generator,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float = 0.0,
) -> list[Step]:
    """What `color_jitter` does, in its order."""
    ranges = (
        ("brightness", brightness),
        ("contrast", contrast),
        ("color", saturation),
        ("hue", hue),
    )
    steps = []
    for i in random.permutation(len(ranges)):
        name, most = ranges[i]
        if most > 0:
            least = -most if name == "hue" else max(-most, -1.0)  # a factor is not below 0
            steps.append(Step(name, random.uniform(least, most)))
    return steps


def color_jitter(
    image: Image.Image,
    random: np.random.Generator,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float = 0.0,
) -> Image.Image:
    """Brightness, contrast, saturation and hue by random factors, in random order.

    As torchvision's ColorJitter.

    Args:
        brightness, contrast, saturation: The factor is uniform in 1 - x to 1 + x, and not below 0.
        hue: Turned by at most this, 0 to 0.5 of the circle.
    """
    return apply_steps(image, color_jitter_steps(random, brightness, contrast, saturation, hue))


# Principal components of ImageNet's colours in 0..1, red, green, blue, and their eigenvalues:
# https://github.com/facebookarchive/fb.resnet.torch/blob/master/datasets/imagenet.lua
_COMPONENTS = np.array(
    [
        [-0.5675, -0.5808, -0.5836],
        [0.7192, -0.0045, -0.6948],
        [0.4009, -0.8140, 0.4203],
    ]
)
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])


def lighting_shift(random: np.random.Generator, std: float) -> np.ndarray:
    """What `lighting` adds to red, green and blue, in 0..255."""
    return 255 * (random.normal(0.0, std, 3) * _EIGENVALUES) @ _COMPONENTS


def lighting(image: Image.Image, random: np.random.Generator, std: float = 0.1) -> Image.Image:
    """One colour added to all pixels, along the principal components of ImageNet's colours.

    Krizhevsky et al. 2012 (AlexNet), section 4.1.

    Args:
        std: Standard deviation of the multiple of each component times its eigenvalue.
    """
    values = np.arange(256) + lighting_shift(random, std)[:, None]
    return image.point(values.round().clip(0, 255).astype(int).ravel().tolist())


ERASING_FILLS = ("pixel", "constant")


def erasing_box(
    random: np.random.Generator,
    width: int,
    height: int,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 3.3),
) -> Box | None:
    """The part that `random_erasing` erases; None where none is found that is smaller either way.

    Args:
        area: The least and the most of the image's area, uniform between.
        aspect: The least and the most of height to width; its logarithm is uniform between.
    """
    wide = (1 / aspect[1], 1 / aspect[0])
    extent = _draw_extent(random, width * height, area, wide, (width - 1, height - 1))
    if extent is None:
        return None
    w, h = extent
    return int(random.integers(width - w + 1)), int(random.integers(height - h + 1)), w, h


def random_erasing(
    array: np.ndarray,
    random: np.random.Generator,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 3.3),
    fill: str = "pixel",
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> np.ndarray:
    """Erases one rectangle of an image, with that probability.

    Zhong et al. 2020, "Random Erasing Data Augmentation"; drawn as by timm, which fills after
    normalization: here the noise is cut to 0..255 and rounded.

    Args:
        array: uint8 (height, width, 3); it is not changed.
        area, aspect: Those of `erasing_box`.
        fill: "pixel": normal noise, drawn for each pixel and channel. "constant": the mean colour.
        mean, std: Of the data set by channel, in 0..255: what becomes 0 and 1 by normalization.

    Raises:
        InputError: `fill` is none of these.
    """
    if fill not in ERASING_FILLS:
        raise unknown("fill of random_erasing", fill, ERASING_FILLS)
    if random.random() >= probability:
        return array
    height, width = array.shape[:2]
    box = erasing_box(random, width, height, area, aspect)
    if box is None:
        return array
    left, top, w, h = box
    noise = random.standard_normal((h, w, 3), np.float32) if fill == "pixel" else 0.0
    erased = array.copy()
    color = np.asarray(mean, np.float32) + np.asarray(std, np.float32) * noise
    erased[top : top + h, left : left + w] = color.round().clip(0, 255)
    return erased


def cutout_box(random: np.random.Generator, width: int, height: int, size: int) -> Box:
    """The part of the image that `cutout` covers."""
    x, y = random.integers(width) - size // 2, random.integers(height) - size // 2
    left, top = max(0, int(x)), max(0, int(y))
    return left, top, min(width, int(x) + size) - left, min(height, int(y) + size) - top


def cutout(
    array: np.ndarray, random: np.random.Generator, size: int = 16, fill: Color = BLACK
) -> np.ndarray:
    """Covers a square whose centre is any pixel of the image, so that it may lie partly outside.

    DeVries and Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout",
    section 3.2: 16 pixels for CIFAR-10, 8 for CIFAR-100.

    Args:
        array: uint8 (height, width, 3); it is not changed.
        size: Side of the square, pixels.
        fill: Its colour; the paper's is the data set's mean.
    """
    height, width = array.shape[:2]
    left, top, w, h = cutout_box(random, width, height, size)
    covered = array.copy()
    covered[top : top + h, left : left + w] = fill
    return covered
