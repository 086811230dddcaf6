"""The data sets: names to splits of images that can be read in any order."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import re
import struct
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import ExifTags, Image

from kapps._errors import InputError, unknown
from kapps._images import as_rgb

FORMATS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_SIGNATURE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|BM|GIF8[79]a|RIFF....WEBP", re.DOTALL)
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, ends of lines and of paragraphs

Split = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Indices of the images for training, validation and test."""


class Source(Protocol):
    """One split: labeled images, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """The image, RGB uint8 (height, width, 3), and its label, 0 to classes - 1."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A named data set with its three splits, which share no image."""

    name: str
    class_names: tuple[str, ...]
    train: Source
    validation: Source
    """Looked at after each epoch; may decide when training stops."""
    test: Source
    """Held out: looked at once, at the end."""
    note: str = ""
    """Where the splits are from, if the data set did not bring all three."""

    def split(self, name: str) -> Source:
        """The split of that name: train, validation or test."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise unknown("split", name, splits)
        return splits[name]


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images that are in memory: (n, height, width, 3) uint8 in 0..255, with n labels."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some images of another source."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.source[int(self.indices[index])]


def load(name: str, data_dir: str | None = None) -> Dataset:
    """The data set of that name.

    Args:
        name: "digits", scikit-learn's 1,797 handwritten digits; "synthetic", gratings whose angle
            is their class; "folder:PATH", with a sub-folder for each class, or one for each split
            ("train", "validation" or "val", "test") with the classes below it; or the name of a
            TensorFlow data set ("cifar10", or "tfds:cifar10").
        data_dir: where the TensorFlow data sets lie, and are prepared if they are not there yet; by
            default tensorflow_datasets' own choice.

    Raises:
        InputError: there is no such data set, or it is damaged; files at fault are named.
    """
    if name.startswith("folder:"):
        return _folder(name.removeprefix("folder:"))
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    return _tfds(name.removeprefix("tfds:"), data_dir)


def stratified(
    labels: Sequence[int] | np.ndarray, keys: Sequence[str], validation: int, test: int
) -> Split:
    """Indices of training, validation and test, each class in proportion to within one image.

    The images of a class are put in the order of the SHA-256 of their keys, so that the split is
    the same on every machine and does not depend on the order of the input; then images are held
    out at even distances, counted through all classes.
    """
    digests = [hashlib.sha256(key.encode(errors="surrogateescape")).digest() for key in keys]
    order = np.array(sorted(range(len(keys)), key=lambda i: (labels[i], digests[i])), dtype=int)
    rest, held_out = _every(order, test)
    train, watched = _every(rest, validation)
    return np.sort(train), np.sort(watched), np.sort(held_out)


def _every(order: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The others, and `count` entries at even distances."""
    position = np.arange(len(order)) * count // max(len(order), 1)
    taken = np.diff(position, append=count) > 0
    return order[~taken], order[taken]


def _share(total: int) -> int:
    """How many images to hold out where the data set has not done so: a tenth, 10,000 at most."""
    return min(-(-total // 10), 10_000)


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "dataset 'digits' is part of scikit-learn: pip install 'kapps[train]'"
        ) from error
    bunch = load_digits()
    gray = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # ink in 0..16
    images = np.repeat(gray[..., None], 3, axis=-1)
    labels = bunch.target.astype(np.int64)
    splits = stratified(labels, [str(i) for i in range(len(labels))], validation=240, test=360)
    train, validation, test = (ArraySource(images[split], labels[split]) for split in splits)
    names = tuple(str(name) for name in bunch.target_names)
    return Dataset("digits", names, train, validation, test)


@dataclasses.dataclass(frozen=True)
class _Gratings:
    """Noisy gratings of 32 px: image i of a split is a function of (split, i); class is angle."""

    split: int
    count: int
    classes: int = 10

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        random = np.random.default_rng([self.split, index])
        label = index % self.classes
        angle = np.pi * label / self.classes
        y, x = np.mgrid[:32, :32]
        phase = 2 * np.pi * random.random()
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 0.8 + phase)
        image = 127.5 + 80 * wave[..., None] + random.normal(0, 25, (32, 32, 3))
        return np.clip(image, 0, 255).astype(np.uint8), label


def _synthetic() -> Dataset:
    names = tuple(f"{18 * k} degrees" for k in range(10))
    return Dataset("synthetic", names, _Gratings(0, 1000), _Gratings(1, 200), _Gratings(2, 200))


_BUILT_IN = {"digits": _digits, "synthetic": _synthetic}


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Image files of any of `FORMATS`."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return read_image(self.paths[index]), self.labels[index]


# By the EXIF orientation: https://exiftool.org/TagNames/EXIF.html. Not by ImageOps.exif_transpose,
# which also writes the EXIF anew, and fails where another program's is out of order.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> Any:
    """As EXIF says, 1 to 8; or what else is there, or None."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's reader of EXIF raises half a dozen kinds; the pixels are sound
        return None


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as RGB uint8 (height, width, 3), turned as its EXIF data says.

    An animation gives its first frame; for pixels of other kinds see `kapps._images.as_rgb`.

    Raises:
        InputError: the file cannot be read or decoded, or has more than 89 million pixels (Pillow's
            limit: a small file can unpack to gigabytes).
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            image.load()
            turn = _TURNS.get(_orientation(image))
            return np.asarray(as_rgb(image if turn is None else image.transpose(turn)))
    except Exception as error:  # Pillow's decoders raise half a dozen kinds
        reason = str(error).replace(os.fspath(path), "").strip(" :'\"") or type(error).__name__
        raise InputError(
            f"{os.fspath(path)}: cannot be read as an image ({reason}); replace or remove the file"
        ) from error


def _folder(path: str) -> Dataset:
    root = Path(path)
    if not path or not root.is_dir():
        raise InputError(f"dataset 'folder:{path}': there is no folder {path or '(empty path)'}")
    children = {child.name for child in _children(root) if child.is_dir()}
    if "train" in children and children <= {"train", "validation", "val", "test"}:
        return _split_folder(root, children)
    names = _class_names(root)
    source = _files(root, names)
    if len(source) < 3:
        raise InputError(f"{root}: {len(source)} images are too few for three splits")
    keys = [Path(file).relative_to(root).as_posix() for file in source.paths]
    count = _share(len(source))
    train, validation, test = (
        Subset(source, split) for split in stratified(source.labels, keys, count, count)
    )
    note = f"{root} has no split folders: {count} images each are held out of {len(source)}"
    return Dataset(f"folder:{path}", names, train, validation, test, note)


def _split_folder(root: Path, children: set[str]) -> Dataset:
    if {"validation", "val"} <= children:
        raise InputError(f"{root} has both validation/ and val/; remove or rename one")
    names = _class_names(root / "train")
    train = _files(root / "train", names)
    splits: dict[str, Source] = {"train": train}
    for child in children - {"train"}:
        splits["validation" if child == "val" else child] = _files(root / child, names)
    keys = [Path(file).relative_to(root).as_posix() for file in train.paths]
    return _complete(
        f"folder:{root}", names, splits, lambda v, t: stratified(train.labels, keys, v, t)
    )


def _complete(
    name: str,
    class_names: tuple[str, ...],
    splits: dict[str, Source],
    divide: Callable[[int, int], Split],
) -> Dataset:
    """Holds out of the training images what is missing of validation and test.

    A single split beside the training images is the held-out one, whatever its name: it is what
    results are compared on, so training must not watch it.
    """
    notes = []
    test = splits.get("test", splits.get("validation"))
    validation = splits.get("validation") if "test" in splits else None
    train = splits["train"]
    count = _share(len(train))
    held = (count if validation is None else 0, count if test is None else 0)
    if len(train) <= sum(held):
        raise InputError(f"dataset {name!r}: {len(train)} training images are too few")
    if "test" not in splits and test is not None:
        notes.append("its validation split is the held-out one here")
    if any(held):
        kept, watched, held_out = divide(*held)
        if test is None:
            test = Subset(train, held_out)
            notes.append(f"{held[1]} training images are held out for the test")
        if validation is None:
            validation = Subset(train, watched)
            notes.append(f"{held[0]} training images are held out for validation")
        train = Subset(train, kept)
    assert validation is not None and test is not None
    note = f"{name}: {', '.join(notes)}" if notes else ""
    return Dataset(name, class_names, train, validation, test, note)


def _children(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name; hidden ones and Windows' thumbnails left out."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return [e for e in entries if not e.name.startswith(".") and e.name != "Thumbs.db"]


def _class_names(folder: Path) -> tuple[str, ...]:
    children = _children(folder)
    if not children:
        raise InputError(f"{folder} is empty; it needs one sub-folder of images for each class")
    for child in children:
        if not child.is_dir():
            raise InputError(
                f"{child} is no folder; {folder} needs one sub-folder of images for each class"
            )
    if len(children) < 2:
        raise InputError(f"{folder} has a single class, {children[0].name!r}; two are the least")
    names = tuple(label(child.name) for child in children)
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise InputError(f"{folder} has {count} folders for the class {name!r}; rename one")
    return names


def label(name: str) -> str:
    r"""The name of a folder as that of a class: one line of valid text.

    Bytes that are no UTF-8 (of an archive from another system) and control characters are written
    as Python escapes them, caf\xe9, so that different folders have different names. All else stays.
    """

    def escaped(c: str) -> str:
        if "\udc80" <= c <= "\udcff":  # how Python keeps a byte: PEP 383
            return f"\\x{ord(c) - 0xDC00:02x}"
        return c.encode("unicode_escape").decode() if unicodedata.category(c) in _NO_TEXT else c

    return "".join(map(escaped, name))


def _files(folder: Path, class_names: tuple[str, ...]) -> FileSource:
    paths: list[str] = []
    labels: list[int] = []
    for class_folder in _children(folder):
        name = label(class_folder.name)
        if name not in class_names:
            raise InputError(f"{class_folder} is none of the classes: {', '.join(class_names[:8])}")
        files = _children(class_folder) if class_folder.is_dir() else []
        if not files:
            raise InputError(f"class folder {class_folder} holds no images; fill or remove it")
        for file in files:
            _check_header(file)
        paths.extend(os.fspath(file) for file in files)
        labels.extend([class_names.index(name)] * len(files))
    if not paths:
        raise InputError(f"{folder} is empty; it needs one sub-folder of images for each class")
    return FileSource(tuple(paths), tuple(labels))


def _check_header(file: Path) -> None:
    """Refuses what is no image before hours of training have gone by."""
    formats = ", ".join(suffix[1:] for suffix in FORMATS)
    if file.suffix.lower() not in FORMATS or not file.is_file():
        raise InputError(f"{file} is no image; a class folder holds only these: {formats}")
    try:
        with open(file, "rb") as opened:
            start = opened.read(12)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    if not _SIGNATURE.match(start):
        raise InputError(f"{file} is no image, though its name says so; replace or remove it")


@dataclasses.dataclass(frozen=True)
class _TfdsSource:
    """A split of a TensorFlow data set; `records` gives examples as dicts of numpy arrays."""

    records: Any
    image_key: str
    label_key: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        example = self.records[index]
        image = np.asarray(example[self.image_key])
        if image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        return image[..., :3], int(example[self.label_key])


class _TfRecords:
    """Random access to TFRecord files, by a table of where each record starts.

    A record is its length (8 bytes, little-endian), 4 bytes of checksum, the data and 4 bytes of
    checksum: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details.
    """

    def __init__(self, files: Sequence[str], count: int, decode: Any) -> None:
        self._decode = decode
        self._places: list[tuple[str, int, int]] = []
        for file in map(os.fspath, files):
            size = os.path.getsize(file)
            with open(file, "rb") as opened:
                start = 0
                while start < size:
                    opened.seek(start)
                    header = opened.read(8)
                    length = struct.unpack("<Q", header)[0] if len(header) == 8 else size
                    if start + length + 16 > size:
                        raise InputError(f"{file} is damaged or cut short; prepare it again")
                    self._places.append((file, start + 12, length))
                    start += length + 16
        if len(self._places) != count:
            raise InputError(
                f"{files[0]} and its like hold {len(self._places)} examples of {count}; "
                "prepare the data set again"
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        file, start, length = self._places[index]
        with open(file, "rb") as opened:
            opened.seek(start)
            return self._decode(opened.read(length))


def _tfds(name: str, data_dir: str | None) -> Dataset:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"dataset {name!r}: reading TensorFlow data sets needs tensorflow_datasets: "
            "pip install 'kapps[train]'"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        image_key, label_key = _supervised(name, builder.info, tfds)
        if not builder.is_prepared():
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except InputError:
        raise
    except tfds.core.DatasetNotFoundError as error:
        known = [*_BUILT_IN, "folder:PATH", *tfds.list_builders(with_community_datasets=False)]
        raise unknown("dataset", name, known) from error
    except Exception as error:  # each data set fails in its own way
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise InputError(f"dataset {name!r} cannot be prepared: {reason}") from error
    class_names = tuple(builder.info.features[label_key].names)
    splits: dict[str, Source] = {}
    for split in ("train", "validation", "test"):
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            continue
        source = _TfdsSource(_records(builder, split), image_key, label_key)
        if source[0][1] >= 0:  # imagenet2012's test split has no labels: all are -1
            splits[split] = source
    if "train" not in splits:
        raise InputError(f"dataset {name!r} has no split 'train' with labels")

    def divide(validation: int, test: int) -> Split:
        # Not stratified: reading all the labels means reading all the images.
        order = np.random.default_rng(0).permutation(len(splits["train"]))
        return np.sort(order[validation + test :]), order[:validation], order[validation:][:test]

    return _complete(name, class_names, splits, divide)


def _supervised(name: str, info: Any, tfds: Any) -> tuple[str, str]:
    """The names of the image and of the label among a data set's features."""
    features = info.features
    keys = info.supervised_keys
    image_key, label_key = keys if keys and len(keys) == 2 else ("image", "label")
    image, label = (
        features[key] if isinstance(key, str) and key in features else None
        for key in (image_key, label_key)
    )
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise InputError(
            f"dataset {name!r} is not one of labeled images: its features are "
            f"{', '.join(sorted(features))}"
        )
    if np.dtype(image.np_dtype) != np.uint8:
        raise InputError(f"dataset {name!r} has images of {image.np_dtype}; kapps reads uint8")
    return image_key, label_key


def _records(builder: Any, split: str) -> Any:
    if builder.info.file_format.value != "tfrecord":
        return builder.as_data_source(split=split)
    info = builder.info.splits[split]
    decode = builder.info.features.deserialize_example_np
    return _TfRecords(info.filepaths, info.num_examples, decode)
