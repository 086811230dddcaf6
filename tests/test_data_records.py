"""Data sets in record files: those of tensorflow_datasets, and plain TFRecords."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from image_folders import SPLITS
from PIL import Image

import kapps
from kapps.tools import data
from kapps.tools.data import images


class Shades(tfds.core.GeneratorBasedBuilder):
    """Gray images; the i-th has 5 + i rows of value i."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        return {"train": self._generate_examples(40), "test": self._generate_examples(6)}

    def _generate_examples(self, count: int):
        for i in range(count):
            yield i, {"image": np.full((5 + i, 4, 1), i, np.uint8), "label": i % 2}


@pytest.mark.parametrize("prepared_as", [None, "array_record", "tfrecord"])
def test_tfds(tmp_path: Path, prepared_as: str | None) -> None:
    """Not prepared yet, prepared for random access, and prepared the usual way."""
    if prepared_as:
        Shades(data_dir=tmp_path, file_format=prepared_as).download_and_prepare()
    shades = data.load("tfds:shades", str(tmp_path))
    assert shades.class_names == ("even", "odd")
    assert [len(shades.split(s)) for s in SPLITS] == [36, 4, 6]
    assert "4 training images are held out for validation" in shades.note
    seen = []
    for source in (shades.train, shades.validation):
        for i in range(len(source)):
            picture, label = source[i]
            pixels = np.asarray(picture)
            value = int(pixels[0, 0, 0])
            assert pixels.shape == (5 + value, 4, 3) and (pixels == value).all()
            assert label == value % 2
            seen.append(value)
    assert sorted(seen) == list(range(40))
    assert [int(np.asarray(shades.test[i][0])[0, 0, 0]) for i in (3, 0, 5)] == [3, 0, 5]


def test_tfds_cut_short(tmp_path: Path) -> None:
    Shades(data_dir=tmp_path, file_format="tfrecord").download_and_prepare()
    file = next(tmp_path.rglob("*train.tfrecord*"))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(kapps.InputError, match=re.escape(f"{file} is damaged or cut short")):
        data.load("shades", str(tmp_path))


def test_published_tfds_can_be_fetched(tmp_path: Path) -> None:
    """How a download starts; tensorflow-datasets imports a package that it does not require."""
    assert tfds.builder("mnist", data_dir=tmp_path).url_infos


def test_tfds_without_labeled_images_is_refused_before_the_download(tmp_path: Path) -> None:
    with pytest.raises(kapps.InputError, match="'glue' is not one of labeled images: .*sentence"):
        data.load("glue", str(tmp_path))
    assert not list(tmp_path.rglob("*.incomplete*"))


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def example(keys: tuple[str, str], content: bytes, label: int) -> bytes:
    """As written for ImageNet: other features before and after, one of them long."""
    features = {
        "image/class/text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x" * 300])),
        "image/height": tf.train.Feature(int64_list=tf.train.Int64List(value=[3])),
        keys[0]: tf.train.Feature(bytes_list=tf.train.BytesList(value=[content])),
        keys[1]: tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


IMAGENET, TFDS = ("image/encoded", "image/class/label"), ("image", "label")


def write(path: Path, labels: list[int], keys: tuple[str, str] = IMAGENET) -> Path:
    """A record for each label, with a picture whose red is 10 times that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for label in labels:
            writer.write(example(keys, png(10 * label), label))
    return path


@pytest.mark.parametrize("keys", [IMAGENET, TFDS])
@pytest.mark.parametrize("first", [0, 1])
def test_tfrecords(tmp_path: Path, keys: tuple[str, str], first: int) -> None:
    labels = [first, first + 1, first + 2] * 10
    for shard in range(2):
        write(tmp_path / f"train-0000{shard}-of-00002", labels, keys)
    write(tmp_path / "my-validation.tfrecord-00000-of-00001", [first + 2] * 7, keys)
    write(tmp_path / "test-00000-of-00001", labels[:9], keys)
    (tmp_path / "train-notes.txt").write_text("of another kind")
    loaded = data.load(f"tfrecord:{tmp_path}")
    assert loaded.class_names == tuple(str(first + i) for i in range(3))
    assert [len(loaded.split(s)) for s in SPLITS] == [60, 7, 9] and not loaded.note
    for split in SPLITS:
        source = loaded.split(split)
        for i in range(len(source)):
            picture, label = source[i]
            assert np.asarray(picture)[0, 0].tolist() == [10 * (label + first), 0, 0]
            assert data.labels_of(source)[i] == label
    assert loaded.train[31][0].name == f"{tmp_path / 'train-00001-of-00002'}: record 1"


def test_tfrecords_without_splits_are_stratified(tmp_path: Path) -> None:
    write(tmp_path / "pets-00000-of-00001", [0] * 80 + [1] * 20)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    loaded = data.load(f"tfrecord:{tmp_path}/pets-*")
    assert loaded.class_names == ("cat", "dog")
    assert [np.bincount(data.labels_of(loaded.split(s))).tolist() for s in SPLITS] == [
        [64, 16],
        [8, 2],
        [8, 2],
    ]


@pytest.mark.parametrize(
    ("labels", "lines", "expected"),
    [
        ([0, 1], "a b", [0, 1]),
        ([1, 2], "a b", [0, 1]),  # as large as their number: from 1 on
        ([1, 2], "background a b", [1, 2]),
        ([0, 2], "a b", "labels up to 2, and .*labels.txt names 2 classes"),
        ([1, 3], "a b", "labels up to 3, and .*labels.txt names 2 classes"),
        ([-1, 2], "a b", "has a label of -1; the least is 0"),
        ([1, 1], "", "has a single class"),
    ],
)
def test_where_labels_start(tmp_path: Path, labels, lines: str, expected) -> None:
    for split in ("train", "val", "test"):
        write(tmp_path / f"{split}.tfrecord", labels)
    if lines:
        (tmp_path / "labels.txt").write_text("\n".join(lines.split()))
    if isinstance(expected, list):
        assert data.labels_of(data.load(f"tfrecord:{tmp_path}").test).tolist() == expected
        return
    with pytest.raises(kapps.InputError, match=expected):
        data.load(f"tfrecord:{tmp_path}")


def test_damaged_records_are_named(tmp_path: Path) -> None:
    place = f"tfrecord:{tmp_path}"
    with pytest.raises(kapps.InputError, match="there is no TFRecord file in or like"):
        data.load(place)
    file = write(tmp_path / "train-0-of-1", [0, 1] * 10)
    whole = file.read_bytes()
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(example(IMAGENET, png(0), 0))
        writer.write(b"no example")
    with pytest.raises(images.BadImage, match="train-0-of-1: record 1 is damaged: it is no "):
        data.load(place)
    write(file, [0, 1], ("picture", "image/class/label"))
    with pytest.raises(kapps.InputError, match="record 0 has the features .*picture; expected"):
        data.load(place)
    file.write_bytes(whole[:-3])
    with pytest.raises(kapps.InputError, match=f"{file} is damaged or cut short"):
        data.load(place)
    file.write_bytes(whole.replace(b"IDAT", b"XXXX", 1))
    source = data.load(place).train
    (error,) = [e for split in SPLITS for e in data.verify(data.load(place).split(split))]
    assert error.name == f"{file}: record 0" and len(source)
    write(tmp_path / "other-0-of-1", [0])
    with pytest.raises(kapps.InputError, match="other-0-of-1 says no split; rename it"):
        data.load(place)
    file.unlink()
    (tmp_path / "other-0-of-1").rename(tmp_path / "test-0-of-1")
    with pytest.raises(kapps.InputError, match="no file is named for training"):
        data.load(place)
