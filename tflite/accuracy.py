"""How many images a .tflite file classifies right.

The file is not trusted: it runs in a child process.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from kapps._errors import InputError
from kapps._files import atomic_write
from kapps.tflite import child
from kapps.tflite.child import one_line

FORMAT = "kapps_accuracy"
"""The field that marks a file of results, and holds its version."""
_VERSION = 1
_CHUNK_BYTES = 1 << 28  # of images that are handed to the child at once
_MAX_RESULT_BYTES = 1 << 20


@dataclass(frozen=True)
class Accuracy:
    """How a .tflite file did on a split of a data set; accuracies are shares, 0 to 1.

    Attributes:
        model: the network, by which the files of a report are put into rows.
        variant: the quantization, such as "float32" or "int8"; "int8-qat" after
            quantization-aware training.
        file: the file's name.
        sha256: of the file's content, by which benchmarks are joined.
        size_bytes: of the file.
        dataset: its name.
        split: of the data set.
        images: how many there were.
        top1: share of the images whose class is the most probable one.
        top5: whose class is among the five most probable ones.
    """

    model: str
    variant: str
    file: str
    sha256: str
    size_bytes: int
    dataset: str
    split: str
    images: int
    top1: float
    top5: float


@dataclass(frozen=True)
class Description:
    """What a .tflite file takes and gives.

    Attributes:
        name: of the network, from the metadata, or else the file's stem.
        variant: see `Accuracy`.
        image_size: height and width of the input, pixels.
        classes: how many it tells apart.
        labels: their names from the metadata, or none.
    """

    name: str
    variant: str
    image_size: tuple[int, int]
    classes: int
    labels: tuple[str, ...]


def describe(path: str | os.PathLike[str], *, time_limit: float = 60.0) -> Description:
    """What the classifier of color images at `path` is.

    Its variant is what `kapps.tflite.file_facts.variant` tells of the file, its name and its
    description.

    Raises:
        InputError: it is no such file, or it kills the interpreter.
    """
    path = _existing(path)
    request = {"path": str(path.resolve()), "stem": path.stem, "threads": 1}
    found = child.run("accuracy_task", request, time_limit=time_limit)
    shape = found["input_shape"]
    if shape[0] != 1 or shape[3] != 3:
        raise InputError(f"{path} takes {shape}: expected one color image, [1, height, width, 3]")
    name = one_line(found["name"] or model_and_variant(path.name)[0]) or "?"
    return Description(
        name, found["variant"], (shape[1], shape[2]), found["classes"], tuple(found["labels"])
    )


def model_and_variant(file: str) -> tuple[str, str]:
    """What a file's name says of it: ("MobileNetV2", "int8") for MobileNetV2_int8.tflite."""
    stem = file.removesuffix(".tflite")
    match = re.fullmatch(
        r"(.+?)[_.-](float32|float16|dynamic|int16x8|(?:int8[_.-])?qat|int8)", stem
    )
    if match is None:
        return stem, ""
    return match[1], "int8-qat" if match[2].endswith("qat") else match[2]


def evaluate_file(
    path: str | os.PathLike[str],
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    dataset: str,
    split: str,
    description: Description | None = None,
    model: str | None = None,
    variant: str | None = None,
    threads: int = 1,
    seconds_per_image: float = 10.0,
    progress: Callable[[int], object] = lambda images: None,
) -> Accuracy:
    """Runs the file over a split.

    Args:
        path: the .tflite file.
        batches: images, uint8 (n, height, width, 3) in 0..255, and class indices (n,); negative
            ones are left out.
        dataset: its name, for the result.
        split: for the result.
        description: what `describe` says of the file, if that is known already.
        model: the network; by default what the file says.
        variant: by default what the file says; see `describe`.
        threads: of the interpreter.
        seconds_per_image: time limit, on average.
        progress: called now and then with the number of images done.

    Raises:
        InputError: no images, or images that the file does not take, or it kills the interpreter.
    """
    path = _existing(path)
    description = description or describe(path)
    content = path.read_bytes()
    right1 = right5 = total = 0
    for images, labels in _chunks(batches):
        if labels.max() >= description.classes:
            raise InputError(
                f"{path} tells {description.classes} classes apart, and the data set {dataset} has "
                f"an image of class {labels.max()}, counted from 0"
            )
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "images.npy"
            np.save(file, images, allow_pickle=False)
            found = child.run(
                "accuracy_task",
                {"path": str(path.resolve()), "images": str(file), "threads": threads},
                time_limit=30 + seconds_per_image * len(images),
                on_message=functools.partial(_tell, progress, total),
            )
        best = np.asarray(found["best"])
        hits = best == labels[:, None]
        right1 += int(hits[:, 0].sum())
        right5 += int(hits.any(axis=1).sum())
        total += len(images)
    if not total:
        raise InputError("there are no images to evaluate on")
    return Accuracy(
        model=one_line(model or "") or description.name,
        variant=one_line(variant or "") or description.variant,
        file=one_line(path.name) or "?",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        dataset=one_line(dataset),
        split=one_line(split),
        images=total,
        top1=right1 / total,
        top5=right5 / total,
    )


def write_accuracy(accuracy: Accuracy, path: str | os.PathLike[str]) -> None:
    """Writes it as JSON, for `kapps-report`."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({FORMAT: _VERSION} | asdict(accuracy), indent=2) + "\n")


def read_accuracy(path: str | os.PathLike[str]) -> Accuracy:
    """What `write_accuracy` wrote.

    Raises:
        InputError: no such file, or not of this format; the message names the field.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_RESULT_BYTES + 1)
        if len(text) > _MAX_RESULT_BYTES:
            raise InputError(f"{path} is too large for a result of kapps-evaluate")
        values = json.loads(text)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    return parse_accuracy(values, path)


def parse_accuracy(values: Any, path: str | os.PathLike[str]) -> Accuracy:
    """The result in the JSON of the file at `path`, as `read_accuracy` has it.

    Raises:
        InputError: it is not of this format; the message names the field.
    """
    if not isinstance(values, dict) or values.get(FORMAT) != _VERSION:
        raise InputError(
            f"{path} is no result of kapps-evaluate --tflite: expected {FORMAT!r}: {_VERSION}"
        )
    checks: dict[str, Callable[[Any], bool]] = {
        "str": _is_line,
        "int": lambda value: type(value) is int and value > 0,
        "float": lambda value: type(value) in (int, float) and 0 <= value <= 1,  # nan is not
    }
    kept: dict[str, Any] = {}
    for field in fields(Accuracy):
        value = values.get(field.name)
        if not checks[str(field.type)](value):
            raise InputError(f"{path}: {field.name!r} is {value!r:.60}, not a valid {field.type}")
        kept[field.name] = value
    if not re.fullmatch("[0-9a-f]{64}", kept["sha256"]):
        raise InputError(f"{path}: 'sha256' is {kept['sha256']!r:.60}, not 64 hexadecimal digits")
    return Accuracy(**kept)


def _is_line(value: Any) -> bool:
    """Whether it is a line of text that a table and a picture can show."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and len(value) <= 1000
        and value.isprintable()
    )


def _tell(progress: Callable[[int], object], before: int, message: Mapping[str, Any]) -> None:
    if "done" in message:
        progress(before + message["done"])


def _existing(path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}")
    return Path(path)


def _chunks(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """The batches put together to `_CHUNK_BYTES`, without the places that no image fills."""
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for batch, truth in batches:
        real = truth >= 0
        if real.any():
            images.append(batch[real])
            labels.append(truth[real])
        if sum(part.nbytes for part in images) > _CHUNK_BYTES:
            yield np.concatenate(images), np.concatenate(labels)
            images, labels = [], []
    if images:
        yield np.concatenate(images), np.concatenate(labels)
