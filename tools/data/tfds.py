"""The data sets of tensorflow_datasets, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kapps._errors import InputError, unknown
from kapps.tools.data.images import ImageBytes
from kapps.tools.data.records import RecordFiles
from kapps.tools.data.sources import Dataset, Source
from kapps.tools.data.splits import Split, complete, share


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split; `records` gives examples as dicts of numpy arrays, the pictures still encoded."""

    name: str
    records: Any
    image_key: str
    label_key: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[ImageBytes, int]:
        example = self.records[index]
        picture = ImageBytes(example[self.image_key], f"{self.name}: image {index}")
        return picture, int(example[self.label_key])


def load_tfds(name: str, data_dir: str | None, others: tuple[str, ...]) -> Dataset:
    """A TensorFlow data set, prepared if it is not there yet.

    Args:
        name: as tensorflow_datasets knows it.
        data_dir: where it lies; by default tensorflow_datasets' own choice.
        others: further names, for the proposals if there is none of that name.
    """
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
        known = [*others, *tfds.list_builders(with_community_datasets=False)]
        raise unknown("dataset", name, known) from error
    except Exception as error:  # each data set fails in its own way
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise InputError(f"dataset {name!r} cannot be prepared: {reason}") from error
    splits: dict[str, Source] = {}
    for split in ("train", "validation", "test"):
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            continue
        records = _records(builder, split, {image_key: tfds.decode.SkipDecoding()})
        source = TfdsSource(f"{name}/{split}", records, image_key, label_key)
        if source[0][1] >= 0:  # imagenet2012's test split has no labels: all are -1
            splits[split] = source
    if "train" not in splits:
        raise InputError(f"dataset {name!r} has no split 'train' with labels")

    def divide(validation: bool, test: bool) -> Split:
        # Not stratified: reading all the labels means reading all the images.
        total = len(splits["train"])
        watched = share(total) * validation
        held_out = share(total) * test
        order = np.random.default_rng(0).permutation(total)
        return (
            np.sort(order[watched + held_out :]),
            order[:watched],
            order[watched:][:held_out],
        )

    return complete(name, tuple(builder.info.features[label_key].names), splits, divide)


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


def _records(builder: Any, split: str, decoders: dict[str, Any]) -> Any:
    if builder.info.file_format.value != "tfrecord":
        return builder.as_data_source(split=split, decoders=decoders)
    info = builder.info.splits[split]
    return _Decoded(RecordFiles(info.filepaths, info.num_examples), builder.info.features, decoders)


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """The examples in record files, by the features of their data set."""

    records: RecordFiles
    features: Any
    decoders: dict[str, Any]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        return self.features.deserialize_example_np(self.records[index], decoders=self.decoders)
