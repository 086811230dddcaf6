"""The data sets: names to splits of pictures that can be read in any order."""

from __future__ import annotations

from kapps._errors import InputError
from kapps.tools.data import images
from kapps.tools.data.builtin import digits, synthetic
from kapps.tools.data.checks import check, sample, verify
from kapps.tools.data.folder import FileSource, label, load_folder
from kapps.tools.data.images import FORMATS, BadImage, Picture, read_image
from kapps.tools.data.records import load_records
from kapps.tools.data.sources import (
    ArraySource,
    Dataset,
    Source,
    Subset,
    class_weights,
    labels_of,
    without_images,
)
from kapps.tools.data.splits import Split, by_content, stratified
from kapps.tools.data.tfds import load_tfds

__all__ = [
    "FORMATS",
    "ArraySource",
    "BadImage",
    "Dataset",
    "FileSource",
    "Picture",
    "Source",
    "Split",
    "Subset",
    "by_content",
    "check",
    "class_weights",
    "images",
    "label",
    "labels_of",
    "load",
    "read_image",
    "sample",
    "stratified",
    "verify",
    "without_images",
]

_BUILT_IN = {"digits": digits, "synthetic": synthetic}


def load(
    name: str, data_dir: str | None = None, *, nested: bool = False, on_bad_image: str = "error"
) -> Dataset:
    """The data set of that name.

    Args:
        name: "digits", scikit-learn's 1,797 handwritten digits; "synthetic", gratings whose angle
            is their class; "folder:PATH", with a sub-folder for each class, or one for each split
            with the classes below it (see `load_folder`); "tfrecord:PATH", a folder of TFRecord
            files, or a pattern of their paths (see `load_records`); or the name of a TensorFlow
            data set ("cifar10", or "tfds:cifar10").
        data_dir: where the TensorFlow data sets lie, and are prepared if they are not there yet; by
            default tensorflow_datasets' own choice.
        nested: whether every folder with images below "folder:PATH" is a class, named by its path
            there: "animals/cat".
        on_bad_image: what is done with files of "folder:PATH" that are images by their name, and
            not by their first bytes: "error", or "skip", and their number is in the note.

    Raises:
        InputError: there is no such data set, or it is damaged; files at fault are named.
    """
    if on_bad_image not in ("error", "skip"):
        raise InputError(f"on_bad_image must be 'error' or 'skip', not {on_bad_image!r}")
    if name.startswith("folder:"):
        skip_bad = on_bad_image == "skip"
        return load_folder(name.removeprefix("folder:"), nested=nested, skip_bad=skip_bad)
    if name.startswith("tfrecord:"):
        return load_records(name.removeprefix("tfrecord:"))
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    others = (*_BUILT_IN, "folder:PATH", "tfrecord:PATH")
    return load_tfds(name.removeprefix("tfds:"), data_dir, others)
