"""Preparing images as the publisher of weights did for the accuracy that they state."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from kapps._errors import InputError, unknown
from kapps._index import PublishedWeights

if TYPE_CHECKING:
    from PIL import Image

_INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest")
_CROP_MODES = ("center", "squash", "border")


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resizes and crops an image for a network: (size, size, 3), uint8, 0..255.

    The image is resized so that its kept part, `crop` of the side, has `size` pixels; then the
    middle is kept. Nothing is normalized: kapps models do that themselves. The pixels are those
    of timm's and torchvision's evaluation, which resize with Pillow as well.
    """

    size: int
    """Height and width of the result, pixels."""
    crop: float = 0.875
    """The share of the resized image's side that is kept, above 0, at most 1."""
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    """"center" resizes the shorter side and cuts off of the longer one; "squash" resizes both, so
    that the aspect ratio changes; "border" resizes the longer side and fills up with `fill`."""
    fill: tuple[int, ...] = (124, 116, 104)
    """RGB, 0..255: the mean of ImageNet's pixels."""

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise InputError(f"size must be a whole number of pixels above 0, not {self.size!r}")
        if not 0 < self.crop <= 1:
            raise InputError(f"crop must be above 0 and at most 1, not {self.crop!r}")
        if self.interpolation not in _INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, _INTERPOLATIONS)
        if self.crop_mode not in _CROP_MODES:
            raise unknown("crop_mode", self.crop_mode, _CROP_MODES)

    def __call__(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """The prepared image.

        Args:
            image: of Pillow, in any mode, or an array (height, width, 3), RGB in 0..255, uint8.

        Raises:
            InputError: it is neither, or Pillow is not installed.
        """
        picture = _rgb(image)
        side = math.floor(self.size / self.crop)
        width, height = picture.size
        if self.crop_mode == "squash":
            width = height = side
        elif self.crop_mode == "border":
            ratio = max(height, width) / side
            width, height = max(1, round(width / ratio)), max(1, round(height / ratio))
        else:
            # rounded down as torchvision does: in this order
            short = min(width, height)
            width, height = int(side * width / short), int(side * height / short)
        if (width, height) != picture.size:
            from PIL import Image

            picture = picture.resize((width, height), Image.Resampling[self.interpolation.upper()])
        pixels = _padded(np.asarray(picture), self.size, self.fill)
        top, left = (round((side - self.size) / 2) for side in pixels.shape[:2])
        return pixels[top : top + self.size, left : left + self.size]


def eval_transform(model: keras.Model, size: int | Literal["test"] | None = None) -> EvalTransform:
    """How the images were prepared for the published accuracy of a model's weights.

        model = kapps.ResNet50(weights="imagenet")
        prepare = kapps.eval_transform(model)
        probabilities = model(prepare(PIL.Image.open("cat.jpg"))[None])

    Args:
        model: with published weights, of the builders' argument `weights`.
        size: height and width of the prepared image, pixels; "test" for the size of the
            publisher's second, mostly larger evaluation, where there is one. By default that of
            the model's input, or of the publisher's first evaluation where the model takes any.
            The crop is the one published for that size, or else the first evaluation's.

    Raises:
        InputError: the model has no published weights, or takes other images.
    """
    weights = getattr(model, "kapps_weights", None)
    if not isinstance(weights, PublishedWeights):
        raise InputError(
            f"{model.name} has no published weights, so nobody has said how its images are "
            "prepared; say it yourself, as in kapps.EvalTransform(224, crop=0.875)"
        )
    height, width, channels = model.input_shape[1:]
    if channels != 3:
        raise InputError(
            f"{model.name} takes {channels} channels, and the published evaluation is of RGB "
            "images; prepare them with a kapps.EvalTransform and convert its result"
        )
    if size == "test":
        size = weights.test_size or weights.size
    elif size is None:
        size = weights.size if height is None else height
    if (height or size, width or size) != (size, size):
        raise InputError(
            f"{model.name} takes images of {height}x{width} pixels, not {size}x{size}: build it "
            f"with input_shape=({size}, {size}, 3), or with include_top=False for any size"
        )
    return EvalTransform(
        size,
        weights.test_crop or weights.crop if size == weights.test_size else weights.crop,
        weights.interpolation,
        weights.crop_mode,
        tuple(round(255 * mean) for mean in weights.mean),
    )


def _rgb(image: Any) -> Image.Image:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            "preparing images needs the package pillow: pip install 'kapps[weights]'"
        ) from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                "an image must be an array (height, width, 3) of uint8, 0..255, not "
                f"{image.shape} of {image.dtype}"
            )
        return Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InputError(
            f"an image must be a PIL.Image or an array of uint8, not {type(image).__name__}"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow would warn on the short way to the same colours
    return image.convert("RGB")


def _padded(pixels: np.ndarray, size: int, fill: tuple[int, ...]) -> np.ndarray:
    """The image with a border on the sides that are shorter than `size`, the odd row last."""
    sides = [max(0, size - side) for side in pixels.shape[:2]]
    if not any(sides):
        return pixels
    (top, left), (height, width, channels) = (side // 2 for side in sides), pixels.shape
    framed = np.empty((height + sides[0], width + sides[1], channels), np.uint8)
    framed[:] = fill
    framed[top : top + height, left : left + width] = pixels
    return framed
