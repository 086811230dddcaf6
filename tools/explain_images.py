"""The images that kapps-explain explains: files, folders, or those of a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import kapps
from kapps._errors import InputError, is_number, printable, unknown
from kapps.tools import data
from kapps.tools.data.images import ImageFile, read

Boxes = Mapping[str, Sequence[Sequence[float]]]
"""Left, top, right and bottom, pixels of the upright picture, by its file's name or path."""


@dataclass(frozen=True)
class Pictures:
    """Prepared images and what is known of them.

    Attributes:
        names: what each is called.
        images: as the model takes them, uint8 (N, height, width, channels), 0..255.
        labels: the class of each, (N,), int64; None where nobody tells.
        masks: where the object is, bool (N, height, width); None without boxes. An image without a
            box has an empty one.
    """

    names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray | None = None
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)


def read_files(
    arguments: Sequence[str], transform: kapps.EvalTransform, boxes: Boxes | None = None
) -> Pictures:
    """Image files, and those in folders, in the order of their names.

    Raises:
        InputError: there is no such file, no image in a folder, or one cannot be read; a box is of
            none of them, or lies outside.
    """
    files = list(dict.fromkeys(file for name in arguments for file in _files(Path(name))))
    names = tuple(printable(file.name) for file in files)
    if len(set(names)) < len(names):
        names = tuple(map(printable, files))
    pictures = [read(ImageFile(str(file))) for file in files]
    images = np.stack([transform(picture) for picture in pictures])
    masks = None if boxes is None else _masks(files, pictures, boxes, transform)
    return Pictures(names, images, masks=masks)


def read_split(
    dataset: data.Dataset, split: str, count: int, transform: kapps.EvalTransform
) -> Pictures:
    """Some images of a split, drawn by chance, always the same ones: sources are sorted by class.

    Raises:
        InputError: there is no such split, it is empty, or an image cannot be read.
    """
    source = dataset.split(split)
    if not len(source):
        raise InputError(f"the {split} split of {dataset.name} has no images")
    chosen = np.sort(np.random.default_rng(0).permutation(len(source))[:count])
    found = [source[int(place)] for place in chosen]
    names = tuple(
        printable(Path(str(getattr(picture, "name", "") or f"{split}_{place}")).name)
        for place, (picture, _) in zip(chosen, found, strict=True)
    )
    images = np.stack([transform(read(picture)) for picture, _ in found])
    return Pictures(names, images, np.array([label for _, label in found], np.int64))


def read_boxes(path: str) -> Boxes:
    """A JSON file: {"cat.jpg": [[left, top, right, bottom], ...]}, in pixels.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    form = '{"cat.jpg": [[left, top, right, bottom]]}, in pixels of the picture'
    try:
        values: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--boxes: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"--boxes: {path} is no JSON; it has to be {form}") from error
    if not isinstance(values, dict) or not values:
        raise InputError(f"--boxes: {path} names no picture; it has to be {form}")
    for name, boxes in values.items():
        if not isinstance(boxes, list) or not boxes or not all(map(_is_box, boxes)):
            raise InputError(f"--boxes: {path} has no boxes for {name}; it has to be {form}")
    return values


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return False
    return bool(box[0] < box[2] and box[1] < box[3])


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"no such file or folder: {path}")
    found = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in data.FORMATS and not file.name.startswith(".")
    )
    if not found:
        raise InputError(
            f"{path} holds no images ({', '.join(sorted(data.FORMATS))}); name the files, or the "
            "folder that they lie in"
        )
    return found


def _masks(
    files: Sequence[Path],
    pictures: Sequence[Image.Image],
    boxes: Boxes,
    transform: kapps.EvalTransform,
) -> np.ndarray:
    """The boxes as white pictures on black, prepared as the images are."""
    known = {str(file): i for i, file in enumerate(files)}
    known |= {file.name: i for i, file in enumerate(files)}
    whites = [np.zeros((picture.height, picture.width, 3), np.uint8) for picture in pictures]
    for name, of_one in boxes.items():
        if name not in known:
            raise unknown("picture in --boxes", name, [file.name for file in files])
        white = whites[known[name]]
        for box in of_one:
            left, top, right, bottom = (max(0, round(side)) for side in box)
            inside = white[top:bottom, left:right]
            if not inside.size:
                raise InputError(
                    f"--boxes: {list(box)} of {name} lies outside of its {white.shape[1]}x"
                    f"{white.shape[0]} pixels"
                )
            inside[:] = 255
    prepare = replace(transform, fill=(0, 0, 0), channels=3)
    return np.stack([prepare(white)[..., 0] > 127 for white in whites])
