"""TFRecord files: any record at once, and data sets of labeled pictures in them."""

from __future__ import annotations

import collections
import dataclasses
import glob
import itertools
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kapps._errors import InputError
from kapps.tools.data.images import BadImage, ImageBytes
from kapps.tools.data.sources import Dataset, Source
from kapps.tools.data.splits import Split, complete, share, stratified

# As TensorFlow's research models write ImageNet, and as tensorflow_datasets writes.
_KEYS = (("image/encoded", "image/class/label"), ("image", "label"))
_LABEL_FILES = ("labels.txt", "label.labels.txt")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|val|dev|test)")
_RECORD_FILE = re.compile(r"tfrecord|-\d+-of-\d+$")


class RecordFiles:
    """Random access to TFRecord files, by a table of where each record starts.

    A record is its length (8 bytes, little-endian), 4 bytes of checksum, the data and 4 bytes of
    checksum: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details. The
    checksums are not looked at.
    """

    def __init__(self, files: Sequence[str | os.PathLike[str]], count: int | None = None) -> None:
        """
        Args:
            files: in the order of the records.
            count: of the records that they hold together, if it is known.

        Raises:
            InputError: a file is damaged, or there are more or fewer records.
        """
        self._files = [os.fspath(file) for file in files]
        places = [_places(file) for file in self._files]
        self._first = np.cumsum([0, *map(len, places)])
        self._places = np.concatenate(places) if places else np.zeros((0, 2), np.int64)
        if count is not None and len(self) != count:
            raise InputError(
                f"{self._files[0]} and its like hold {len(self)} examples of {count}; "
                "prepare the data set again"
            )

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> bytes:
        file, start, length = self.place(index)
        with open(file, "rb") as opened:
            opened.seek(start)
            return opened.read(length)

    def place(self, index: int) -> tuple[str, int, int]:
        """Its file, and where the data starts there and how long it is, bytes."""
        start, length = self._places[index].tolist()
        return self._files[self._file(index)], start, length

    def name(self, index: int) -> str:
        """For messages: the file, and the record's number in it, from 0 on."""
        file = self._file(index)
        return f"{self._files[file]}: record {index - int(self._first[file])}"

    def by_file(self) -> Iterator[tuple[str, range]]:
        """Each file, and which records it holds."""
        for file, (first, end) in zip(self._files, itertools.pairwise(self._first), strict=True):
            yield file, range(int(first), int(end))

    def _file(self, index: int) -> int:
        return int(np.searchsorted(self._first, index, side="right")) - 1


def _places(file: str) -> np.ndarray:
    """Start and length of each record's data, int64 (n, 2)."""
    found = []
    try:
        size = os.path.getsize(file)
        with open(file, "rb") as opened:
            start = 0
            while start < size:
                opened.seek(start)
                header = opened.read(8)
                length = struct.unpack("<Q", header)[0] if len(header) == 8 else size
                if start + length + 16 > size:
                    raise InputError(f"{file} is damaged or cut short; prepare it again")
                found.append((start + 12, length))
                start += length + 16
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    return np.array(found, np.int64).reshape(-1, 2)


@dataclasses.dataclass(frozen=True)
class ExampleSource:
    """Records that are each a tf.train.Example with an encoded picture."""

    records: RecordFiles
    image_key: str
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[ImageBytes, int]:
        feature = _example(self.records, index).get(self.image_key)
        if feature is None or not feature.bytes_list.value:
            raise _damaged(self.records.name(index), f"it has no {self.image_key!r}")
        picture = ImageBytes(feature.bytes_list.value[0], self.records.name(index))
        return picture, int(self.labels[index])


def _example(records: RecordFiles, index: int) -> Any:
    """The features of a record, by name."""
    import tensorflow as tf
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return tf.train.Example.FromString(records[index]).features.feature
    except DecodeError as error:
        raise _damaged(records.name(index), "it is no tf.train.Example") from error


def _damaged(record: str, reason: str) -> BadImage:
    return BadImage(f"{record} is damaged: {reason}; prepare it again", record)


def load_records(place: str) -> Dataset:
    """TFRecord files with an encoded picture and a label in each record.

    The features are named "image/encoded" and "image/class/label", or "image" and "label". A file
    belongs to the split that a word in its name begins with: train, val or dev, test; where no name
    says so, all are for training. Of what is missing, pictures are held out by their place.

    Class names are the lines of labels.txt beside the files; else the numbers themselves. Labels
    start at 0 if any is 0, and at 1 if one is as large as the number of names; without names, at 1
    if none is 0.

    Loading reads the labels of all records, and skips their pictures.

    Args:
        place: a folder, or a pattern of the files' paths.

    Raises:
        InputError: there are no such files, one is damaged, or the labels are none.
    """
    name = f"tfrecord:{place}"
    files = _record_files(place, name)
    splits: dict[str, RecordFiles] = {}
    for split, paths in files.items():
        records = RecordFiles(paths)
        if not len(records):
            raise InputError(f"dataset {name!r}: {paths[0]} and its like hold no record")
        splits[split] = records
    image_key, label_key = _keys(splits["train"])
    labels = {split: _labels(records, label_key) for split, records in splits.items()}
    for split in [s for s in ("validation", "test") if s in labels and (labels[s] == -1).all()]:
        del labels[split]  # a competition's: its labels are withheld
    class_names, first = _class_names(name, Path(files["train"][0]).parent, labels)
    sources = {
        split: ExampleSource(splits[split], image_key, values - first)
        for split, values in labels.items()
    }
    train = sources["train"]

    def divide(validation: bool, test: bool) -> Split:
        keys = [Path(train.records.name(i)).name for i in range(len(train))]
        count = share(len(train))
        return stratified(train.labels, keys, count * validation, count * test)

    found: dict[str, Source] = dict(sources)
    return complete(name, class_names, found, divide)


def _record_files(place: str, name: str) -> dict[str, list[str]]:
    """The files of each split, sorted."""
    if os.path.isdir(place):
        entries = (entry.path for entry in os.scandir(place) if entry.is_file())
        paths = [path for path in entries if _RECORD_FILE.search(os.path.basename(path).lower())]
    else:
        paths = [path for path in glob.glob(place, recursive=True) if os.path.isfile(path)]
    if not paths:
        raise InputError(f"dataset {name!r}: there is no TFRecord file in or like {place!r}")
    files: dict[str, list[str]] = collections.defaultdict(list)
    for path in sorted(paths):
        found = _SPLIT.search(os.path.basename(path).lower())
        word = found.group(1) if found else ""
        files[{"val": "validation", "dev": "validation"}.get(word, word)].append(path)
    if list(files) == [""]:
        return {"train": files[""]}
    if "" in files:
        raise InputError(
            f"dataset {name!r}: the name of {files[''][0]} says no split; rename it to begin with "
            "train, val or test, as others do"
        )
    if "train" not in files:
        raise InputError(f"dataset {name!r}: no file is named for training, as train-*")
    return files


def _keys(records: RecordFiles) -> tuple[str, str]:
    """The names of picture and label among the features of the first record."""
    features = _example(records, 0)
    for keys in _KEYS:
        if all(key in features for key in keys):
            return keys
    raise InputError(
        f"{records.name(0)} has the features {', '.join(sorted(features)[:12]) or '(none)'}; "
        "expected 'image/encoded' and 'image/class/label', or 'image' and 'label'"
    )


def _labels(records: RecordFiles, key: str) -> np.ndarray:
    """The label of each record, int64 (n,), as it stands there."""
    labels = np.empty(len(records), np.int64)
    for file, numbers in records.by_file():
        with open(file, "rb", buffering=0) as opened:
            for i in numbers:
                _, start, length = records.place(i)
                entry = _entry(opened, start, length, key.encode())
                labels[i] = _label(records, i, key, entry)
    return labels


def _label(records: RecordFiles, index: int, key: str, entry: bytes | None) -> int:
    import tensorflow as tf

    if entry is None:
        features = _example(records, index)
    else:
        features = tf.train.Features.FromString(entry).feature
    values = list(features[key].int64_list.value) if key in features else []
    if len(values) != 1:
        raise _damaged(records.name(index), f"it has no single label {key!r}")
    return int(values[0])


def _entry(opened: BinaryIO, start: int, length: int, key: bytes) -> bytes | None:
    """The entry of that key in the map of a tf.train.Example, without reading the others.

    https://protobuf.dev/programming-guides/encoding: an Example is field 1, the Features; these are
    fields 1, the entries; each of them is field 1, its key, and field 2. None if it is not so.
    """
    end = start + length
    opened.seek(start)
    _, at, size = _field(opened.read(16))
    at += start
    if size < 0 or at + size != end:
        return None
    while at < end:
        opened.seek(at)
        head = opened.read(32 + len(key))
        _, inner, size = _field(head)
        _, name, name_size = _field(head[inner:])
        if size < 0 or name_size < 0 or at + inner + size > end:
            return None
        if head[inner + name :][:name_size] == key:
            opened.seek(at)
            return opened.read(inner + size)
        at += inner + size
    return None


def _field(head: bytes) -> tuple[int, int, int]:
    """Number of a field of bytes, where they start, and how many; a size of -1 for all else."""
    size = shift = 0
    for i, byte in enumerate(head[1:11], 1):
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return head[0] >> 3, i + 1, size if head[0] == 0x0A else -1
    return 0, 0, -1


def _class_names(
    name: str, folder: Path, labels: dict[str, np.ndarray]
) -> tuple[tuple[str, ...], int]:
    """The classes, and the number of the first."""
    every = np.concatenate(list(labels.values()))
    smallest, largest = int(every.min()), int(every.max())
    if smallest < 0:
        raise InputError(f"dataset {name!r} has a label of {smallest}; the least is 0")
    file = next((folder / f for f in _LABEL_FILES if (folder / f).is_file()), None)
    if file is None:
        first = min(smallest, 1)
        names = tuple(map(str, range(first, largest + 1)))
    else:
        try:
            names = tuple(file.read_text(encoding="utf-8-sig").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read as UTF-8 text") from error
        first = 1 if smallest > 0 and largest >= len(names) else 0
    if largest - first >= len(names):
        raise InputError(
            f"dataset {name!r} has labels up to {largest}, and {file} names {len(names)} classes"
        )
    if len(names) < 2:
        raise InputError(f"dataset {name!r} has a single class; two are the least")
    return names, first
