"""How many images a .tflite file classifies right.

The file is not trusted: it runs in a child process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kapps._errors import InputError, one_line
from kapps._files import temporary_folder
from kapps.tflite import child, robustness
from kapps.tflite.measurement.latency import existing, identity
from kapps.tflite.quantizations import VARIANTS
from kapps.tflite.results import Count, Name, Sha256, Share, checked, read_json
from kapps.tflite.robustness import Robustness
from kapps.tools.json_files import write_json

FORMAT = "kapps_accuracy"
"""The field that marks a file of results, and holds its version."""
_VERSION = 1
_CHUNK_BYTES = 1 << 28  # of images that are handed to the child at once
_MAX_RESULT_BYTES = 1 << 20
_SECONDS_PER_IMAGE = 10.0  # that a file may take, on average

Scores = Callable[[np.ndarray], np.ndarray]
"""Images, (n, height, width, 3) in 0..255, to their scores, (n, classes)."""


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
        robustness: how it did on attacked images; None if it was not attacked.
    """

    model: Name
    variant: Name
    file: Name
    sha256: Sha256
    size_bytes: Count
    dataset: Name
    split: Name
    images: Count
    top1: Share
    top5: Share
    robustness: Robustness | None = None


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
    (path,) = existing([path])
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
    names = "|".join(name for name in VARIANTS if name != "int8-qat")
    match = re.fullmatch(rf"(.+?)[_.-]({names}|(?:int8[_.-])?qat)", stem)
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
    seconds_per_image: float = _SECONDS_PER_IMAGE,
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
    path = Path(path)
    digest, size_bytes = identity(path)  # now: a build may replace it meanwhile
    description = description or describe(path)
    right1 = right5 = total = 0
    for images, labels in _chunks(batches):
        if labels.max() >= description.classes:
            raise InputError(
                f"{path} tells {description.classes} classes apart, and the data set {dataset} has "
                f"an image of class {labels.max()}, counted from 0"
            )
        with temporary_folder() as folder:
            file = folder / "images.npy"
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
        sha256=digest,
        size_bytes=size_bytes,
        dataset=one_line(dataset),
        split=one_line(split),
        images=total,
        top1=right1 / total,
        top5=right5 / total,
    )


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Scores]:
    """The scores that a file gives, each batch in a process with limits.

    Raises:
        InputError: when it is called: it is no such file, or images that the file does not take, or
            it kills the interpreter.
    """
    with temporary_folder() as folder, child.opened("accuracy_task") as ask:
        given, answer = folder / "images.npy", folder / "scores.npy"
        request = {"path": str(Path(path).resolve()), "threads": 1}
        request |= {"images": str(given), "scores": str(answer)}

        def scores(images: np.ndarray) -> np.ndarray:
            np.save(given, images, allow_pickle=False)
            ask(request, 30 + _SECONDS_PER_IMAGE * len(images))
            return np.load(answer, allow_pickle=False)

        yield scores


def write_accuracy(accuracy: Accuracy, path: str | os.PathLike[str]) -> None:
    """Writes it as JSON, for `kapps-report`."""
    write_json(path, to_values(accuracy))


def to_values(accuracy: Accuracy) -> dict[str, Any]:
    """As JSON, with the field that marks it."""
    values = asdict(accuracy)
    if accuracy.robustness is None:
        del values["robustness"]
    return {FORMAT: _VERSION, **values}


def read_accuracy(path: str | os.PathLike[str]) -> Accuracy:
    """What `write_accuracy` wrote.

    Raises:
        InputError: no such file, or not of this format; the message names the field.
    """
    kind = "result of kapps-evaluate"
    values = read_json(path, most_bytes=_MAX_RESULT_BYTES, kind=kind)
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
    named = {name: value for name, value in values.items() if name != FORMAT}
    attacked = robustness.parse(named.get("robustness"), f"{path}.robustness")
    found = checked({**named, "robustness": None}, Accuracy, str(path))
    return replace(found, robustness=attacked)


def _tell(progress: Callable[[int], object], before: int, message: Mapping[str, Any]) -> None:
    if "done" in message:
        progress(before + message["done"])


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
