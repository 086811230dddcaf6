"""Pictures, read whole or in part: what lies in a file, and what a program has in memory.

Importing this module loads no TensorFlow; the first part of a picture loads OpenCV.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from kapps._errors import InputError, one_line
from kapps._images import as_rgb
from kapps.tools.data.sampling import Edges, resized

FORMATS = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A picture in a file, which is read when it is needed."""

    path: str

    @property
    def name(self) -> str:
        return self.path

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """RGB uint8 (height, width, 3), for `numpy.asarray`."""
        return np.asarray(read(self), dtype)


@dataclasses.dataclass(frozen=True)
class ImageBytes:
    """The content of an image file, and a name for messages: the record that it is of."""

    content: bytes = dataclasses.field(repr=False)
    name: str

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """RGB uint8 (height, width, 3), for `numpy.asarray`."""
        return np.asarray(read(self), dtype)


Picture = np.ndarray | Image.Image | ImageFile | ImageBytes
"""An array is RGB uint8 (height, width, 3); the others are of any kind that Pillow reads."""

Box = tuple[float, float, float, float]
"""Left, top, width and height, pixels."""


class BadImage(InputError):
    """A picture that cannot be read; `name` is its file, or the record that holds it."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class _Turn(NamedTuple):
    """What makes a stored picture upright, and where its parts lie: transposed, then mirrored."""

    method: Image.Transpose
    transposed: bool
    mirrored_x: bool
    mirrored_y: bool

    def stored(self, box: Box, width: int, height: int) -> Box:
        """Where a box of the upright picture lies in the stored one of that size."""
        x, y, w, h = box
        if self.transposed:
            x, y, w, h = y, x, h, w
        x = width - x - w if self.mirrored_x else x
        y = height - y - h if self.mirrored_y else y
        return x, y, w, h


# By the EXIF orientation: https://exiftool.org/TagNames/EXIF.html. Not by ImageOps.exif_transpose,
# which also writes the EXIF anew, and fails where another program's is out of order.
_TURNS = {
    2: _Turn(Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: _Turn(Image.Transpose.ROTATE_180, False, True, True),
    4: _Turn(Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: _Turn(Image.Transpose.TRANSPOSE, True, False, False),
    6: _Turn(Image.Transpose.ROTATE_270, True, False, True),
    7: _Turn(Image.Transpose.TRANSVERSE, True, True, True),
    8: _Turn(Image.Transpose.ROTATE_90, True, True, False),
}


def read(picture: Picture) -> Image.Image:
    """A whole picture as RGB, 8 bits a channel, turned as its EXIF data says.

    An animation gives its first frame; for pixels of other kinds see `kapps._images.as_rgb`. What
    kind of file it is, its content says, and not its name.

    Raises:
        BadImage: it cannot be read or decoded, or has more than 89 million pixels (Pillow's limit:
            a small file can unpack to gigabytes).
    """
    with _named(picture):
        image, _ = _open(picture)
        turn = _turn(image)
        pixels = _pixels(image)
        return pixels if turn is None else pixels.transpose(turn.method)


def read_part(
    picture: Picture, choose: Callable[[int, int], Box], size: tuple[int, int]
) -> Image.Image:
    """A part of a picture, resized: bilinear, and antialiased where it shrinks.

    Nearly what Pillow's `read(picture).crop(...).resize(size, BILINEAR)` gives: see
    `kapps.tools.data.sampling.resized`. Where height and width of the part are four times those of
    the result or more, a JPEG is decoded in less detail.

    Args:
        picture: of any kind.
        choose: is given width and height of the upright picture, from the header of the file, and
            returns left, top, width and height of the part, in pixels and fractions of them. What
            lies outside of the picture is cut off.
        size: height and width of the result, pixels.

    Raises:
        BadImage: as `read`.
    """
    with _named(picture):
        image, stream = _open(picture)
        turn = _turn(image)
    height, width = size
    if turn is None:
        box = choose(*image.size)
    else:
        sides = image.size[::-1] if turn.transposed else image.size
        box = turn.stored(choose(*sides), *image.size)
        width, height = (height, width) if turn.transposed else (width, height)
    edges = _inside(box, *image.size)
    with _named(picture):
        pixels, ratio = _decoded(image, stream, edges, width, height)
        left, top, right, bottom = (edge / ratio for edge in edges)
        part = Image.fromarray(resized(pixels, (left, top, right, bottom), (height, width)))
        return part if turn is None else part.transpose(turn.method)


def _inside(box: Box, width: int, height: int) -> Box:
    """The edges of the part of a box that lies in the picture: left, top, right and bottom."""
    x, y, w, h = box
    edges = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if edges[0] >= edges[2] or edges[1] >= edges[3]:
        raise ValueError(f"the part {box} has no pixel of {width}x{height}")
    return edges


@contextlib.contextmanager
def _named(picture: Picture) -> Iterator[None]:
    """Turns what Pillow raises, half a dozen kinds, into what names the picture."""
    try:
        yield
    except Exception as error:
        name = str(getattr(picture, "name", "") or getattr(picture, "filename", ""))
        name = name or "a picture in memory"
        reason = one_line(str(error).replace(name, "").strip(" :'\"")) or type(error).__name__
        raise BadImage(
            f"{name}: cannot be read as an image ({reason}); replace or remove the file", name
        ) from error


def _open(picture: Picture) -> tuple[Image.Image, io.BytesIO | None]:
    """The picture, not decoded yet, and the file that it is in; of a sane number of pixels."""
    stream = None
    if isinstance(picture, (ImageFile, ImageBytes)):
        content = (
            picture.content if isinstance(picture, ImageBytes) else Path(picture.path).read_bytes()
        )
        stream = io.BytesIO(content)
        image: Image.Image = Image.open(stream)
    elif isinstance(picture, Image.Image):
        image = picture
    else:
        image = _of_array(picture)
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"{image.width}x{image.height} pixels are too many")
    return image, stream


def _of_array(pixels: Any) -> Image.Image:
    if not isinstance(pixels, np.ndarray):
        raise ValueError(f"it is a {type(pixels).__name__}, no array or picture")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(
            f"an array of {pixels.dtype} {pixels.shape}; expected uint8 (height, width, 3)"
        )
    return Image.fromarray(pixels)


def _pixels(image: Image.Image) -> Image.Image:
    """The decoded picture as RGB; itself where it is that, for a copy takes its time."""
    image.load()
    plain = image.mode == "RGB" and "transparency" not in image.info
    return image if plain else as_rgb(image)


def _turn(image: Image.Image) -> _Turn | None:
    try:
        orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
        return _TURNS.get(orientation)
    except Exception:  # Pillow's reader of EXIF raises half a dozen kinds; the pixels are sound
        return None


_GAP = 2.0
"""How many times the result a part still is when it has been decoded in less detail."""


def _decoded(
    image: Image.Image, stream: io.BytesIO | None, edges: Edges, width: int, height: int
) -> tuple[np.ndarray, int]:
    """The whole picture, and by how much it was reduced when it was decoded."""
    if stream is not None and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        import simplejpeg

        scale = min((edges[2] - edges[0]) / width, (edges[3] - edges[1]) / height)
        ratio = max((r for r in (1, 2, 4, 8) if scale >= r * _GAP), default=1)
        with contextlib.suppress(ValueError):  # Pillow may take it, or says what is wrong
            pixels = simplejpeg.decode_jpeg(
                stream.getvalue(),
                min_height=-(-image.height // ratio),
                min_width=-(-image.width // ratio),
                min_factor=ratio,
                strict=True,
            )
            return pixels, ratio
    return np.asarray(_pixels(image)), 1


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as RGB uint8 (height, width, 3): see `read`."""
    return np.asarray(read(ImageFile(os.fspath(path))))
