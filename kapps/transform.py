"""Preparing images as the publisher of weights did for the accuracy that they state."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal, cast

import keras
import numpy as np

from kapps import _index
from kapps._errors import InputError, is_number, unknown
from kapps._evaluation import evaluation_of
from kapps._images import as_rgb
from kapps._index import PublishedWeights
from kapps.custom_layers import ImageNormalization

if TYPE_CHECKING:
    from PIL import Image

_INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest")
_CROP_MODES = ("center", "squash", "border")


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resizes and crops an image for a network: (size, size, channels), uint8, 0..255.

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
    channels: int = 3
    """3 for RGB, or 1 for gray: 0.299 R + 0.587 G + 0.114 B, as Pillow computes it."""

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise InputError(f"size must be a whole number of pixels above 0, not {self.size!r}")
        if not is_number(self.crop) or not 0 < self.crop <= 1:
            raise InputError(f"crop must be above 0 and at most 1, not {self.crop!r}")
        if self.interpolation not in _INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, _INTERPOLATIONS)
        if self.crop_mode not in _CROP_MODES:
            raise unknown("crop_mode", self.crop_mode, _CROP_MODES)
        if self.channels not in (1, 3):
            raise InputError(f"channels must be 3, for RGB, or 1, for gray, not {self.channels!r}")

    def __call__(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """The prepared image.

        Args:
            image: of Pillow, or an array (height, width, 3), RGB in 0..255, uint8. 16-bit gray is
                scaled to 8 bits, floating point is rounded, and transparency is dropped.

        Raises:
            InputError: it is neither, or Pillow is not installed.
        """
        picture, fill = _rgb(image), self.fill
        if self.channels == 1:
            picture, fill = picture.convert("L"), _luminance(fill)
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
        pixels = np.asarray(picture).reshape(height, width, self.channels)
        pixels = _padded(pixels, self.size, fill)
        top, left = (round((side - self.size) / 2) for side in pixels.shape[:2])
        return pixels[top : top + self.size, left : left + self.size]


def _usual_evaluation(model: keras.Model) -> PublishedWeights | None:
    """That of the weights which are published for the network, the default ones first."""
    builder = getattr(model, "kapps_builder", None) or model.name
    return next(iter(_index.published(builder)), None)


def eval_transform(
    model: keras.Model,
    size: int | Literal["test"] | None = None,
    *,
    crop: float | None = None,
    interpolation: str | None = None,
    crop_mode: str | None = None,
) -> EvalTransform:
    """How the images were prepared for the published accuracy of a model's weights.

        model = kapps.ResNet50(weights="imagenet")
        prepare = kapps.eval_transform(model)
        probabilities = model(prepare(PIL.Image.open("cat.jpg"))[None])

    Weights that `save_weights` has written bring the evaluation that they were saved with: that of
    the training, or of the published weights which it began with. Where weights bring nothing, as
    those of timm's training, it is what was published for the same network, the default weights
    first, as timm does.

    Images for a model of one channel become gray.

    Args:
        model: built by kapps.
        size: height and width of the prepared image, pixels; "test" for the size of the
            publisher's second, mostly larger evaluation, where there is one. By default that of
            the model's input, or of the publisher's first evaluation where the model takes any.
            The crop is the one published for that size, or else the first evaluation's.
        crop: in place of the published one: the share of the resized image's side that is kept.
        interpolation: likewise, of Pillow: "bicubic", "bilinear", "lanczos" or "nearest".
        crop_mode: likewise: "center", "squash" or "border", see `EvalTransform`.

    Raises:
        InputError: the model takes other images; or nothing is published for its network, and the
            message says what to give.
    """
    known = evaluation_of(model) or _usual_evaluation(model)
    height, width, channels = model.input_shape[1:]
    if known is None:
        needed = {
            "size": size is None and height is None,
            "crop": crop is None,
            "interpolation": interpolation is None,
        }
        missing = [f"{name}=..." for name, is_missing in needed.items() if is_missing]
        if missing or size == "test":
            raise InputError(
                f"{model.name} has weights that bring no evaluation, and its network has no "
                "published weights, so nobody has said how its images are prepared; "
                + (f"give {', '.join(missing)}" if missing else "give size= as a number")
                + ", as in kapps.eval_transform(model, 224, crop=0.875, interpolation='bilinear')"
            )
    if channels not in (1, 3):
        raise InputError(
            f"{model.name} takes {channels} channels, and kapps.EvalTransform makes images of 3, "
            "RGB, or of 1, gray; put together what it makes of each part"
        )
    if known is not None and size == "test":
        size = known.test_size or known.size
    elif size is None:
        size = known.size if known is not None and height is None else height
    if (height or size, width or size) != (size, size):
        raise InputError(
            f"{model.name} takes images of {height}x{width} pixels, not {size}x{size}: build it "
            f"with input_shape=({size}, {size}, {channels}), or with include_top=False for any size"
        )
    arguments: dict[str, Any] = {"channels": channels}
    if known is not None:
        arguments |= {
            "crop": (known.test_crop if size == known.test_size else None) or known.crop,
            "interpolation": known.interpolation,
            "crop_mode": known.crop_mode,
        }
    given = {"crop": crop, "interpolation": interpolation, "crop_mode": crop_mode}
    arguments |= {name: value for name, value in given.items() if value is not None}
    normalization = next((x for x in model.layers if isinstance(x, ImageNormalization)), None)
    if normalization is not None:
        mean = keras.ops.convert_to_numpy(normalization.mean)
        fill = tuple(round(255 * float(share)) for share in mean)
        arguments["fill"] = fill * (3 // channels)
    elif isinstance(known, PublishedWeights):
        arguments["fill"] = tuple(round(255 * share) for share in known.mean)
    return EvalTransform(cast(int, size), **arguments)


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
    return as_rgb(image)


def _luminance(fill: tuple[int, ...]) -> tuple[int, ...]:
    from PIL import Image

    return (int(np.asarray(Image.new("RGB", (1, 1), fill).convert("L"))[0, 0]),)


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
