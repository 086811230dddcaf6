"""Two .tflite files held against each other, without the network that they came from.

    print(compare_files("float32.tflite", "int8.tflite", images).table())

Both run on the same images. Their outputs tell whether they agree, and the tensors that bear the
same name in both show where they part: with each layer the errors of those before it add up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kapps._errors import InputError, printable
from kapps._files import temporary_folder
from kapps.tflite import child, tables

# The largest own error of a layer that is still sound. Beside it the worst that was seen with sound
# files: MobileNetV2, MobileNetV3Large, ShuffleNet, ShuffleNetV2_x0_5 and EfficientNetB0 at 64 px,
# trained on `digits` to 0.98 and more; and the small network of the tests.
LIMITS = {
    #                   seen
    "float32": 0.001,  # 0.000007
    "float16": 0.02,  #  0.0005
    "dynamic": 0.2,  #   0.018
    "int4": 0.5,  #      a step is 1/7 of a kernel's largest value
    "int4_blockwise": 0.2,
    "int8": 0.2,  #      0.039; where an outlier takes the range, 0.5 (EfficientNetB0's gates) and
    #                    0.92 (MobileNetV3Large at 2 x 2 pixels), at no loss of accuracy
    "mixed": 0.2,  #     as int8
    "int16x8": 0.05,  #  0.0091
}


@dataclass(frozen=True)
class TensorError:
    """A tensor of two files, over all images.

    Errors are the root mean square of the difference, as a share of that of the first file's
    values: 0 is exact.

    Attributes:
        tensor: its name, or that of the first file's output.
        operations: what gives it in either file, such as CONV_2D.
        shape: in the first file, the batch of 1 included.
        error: of the second file, with all that went wrong before.
        largest: the largest difference of a single value, as a share of the root mean square.
    """

    tensor: str
    operations: tuple[str, str]
    shape: tuple[int, ...]
    error: float
    largest: float


@dataclass(frozen=True)
class FileComparison:
    """The second file against the first.

    Attributes:
        quantizations: of either file, as `convert` calls it.
        images: how many images.
        same_class: share of the images to which both give the same most probable class, 0 to 1.
        tensors: those of one name, in the order in which the first file computes them; the output
            of both comes last, whatever it is called.
        unmatched: how many computed tensors of either file have no counterpart.
        limit: what the error of a tensor may be: that of the coarser quantization (`LIMITS`).
    """

    quantizations: tuple[str, str]
    images: int
    same_class: float
    tensors: tuple[TensorError, ...]
    unmatched: tuple[int, int]
    limit: float

    @property
    def output(self) -> TensorError:
        """The output's error."""
        return self.tensors[-1]

    @property
    def parts_at(self) -> TensorError | None:
        """The first tensor beyond the limit; not-a-number is beyond it."""
        return next((e for e in self.tensors if not e.error <= self.limit), None)

    @property
    def agrees(self) -> bool:
        """Whether the output is within the limit."""
        return self.output.error <= self.limit

    def verdict(self) -> str:
        """Whether they agree, and where they part."""
        told = (
            f"The same class for {self.same_class:.1%} of {self.images} images; the outputs "
            f"differ by {self.output.error:.2g} of their size"
        )
        at = self.parts_at
        if at is None:
            return f"{told}, and no tensor by more than {self.limit:g}."
        where = " at the output" if at is self.output else f" at {at.tensor!r}"
        return f"{told}. They part{where} ({at.operations[0]}): the first beyond {self.limit:g}."

    def table(self) -> str:
        """The tensors in their order, as text of fixed columns: how the error grows."""
        rows = [
            [
                e.tensor if len(e.tensor) <= 60 else f"...{e.tensor[-57:]}",
                e.operations[0] if len(set(e.operations)) == 1 else " / ".join(e.operations),
                "x".join(map(str, e.shape)),
                f"{e.error:.2g}",
                f"{e.largest:.2g}",
            ]
            for e in self.tensors
        ]
        return tables.aligned(
            ("tensor", "operation", "shape", "error", "largest"), rows, right=(3, 4)
        )

    def figures(self) -> dict[str, Any]:
        """As JSON, which has no infinity and no not-a-number: null stands for them."""
        return {
            "quantizations": list(self.quantizations),
            "images": self.images,
            "same_class": self.same_class,
            "agrees": self.agrees,
            "parts_at": self.parts_at and self.parts_at.tensor,
            "tensors": [
                {
                    key: None if isinstance(value, float) and not math.isfinite(value) else value
                    for key, value in asdict(error).items()
                }
                for error in self.tensors
            ],
        }


def compare_files(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    images: np.ndarray,
    *,
    time_limit: float = 300,
) -> FileComparison:
    """Compares what two .tflite files compute for the same images.

    Neither is trusted: each runs in a child process. Each gets the images as its own metadata asks
    for them.

    Args:
        first: what is taken for right, such as the float32 file.
        second: the other one.
        images: real images (n, height, width, channels) in 0..255; a handful is enough.
        time_limit: seconds for a file to run on all images.

    Raises:
        InputError: a file does not run on these images, or they give outputs of different shape.
    """
    if not len(images):
        raise InputError("no images to compare on; pass a few real ones")
    with temporary_folder() as parent:
        folders = [parent / part for part in ("first", "second")]
        answers = [
            run_on_images(path, images, folder, time_limit=time_limit)
            for path, folder in zip((first, second), folders, strict=True)
        ]
        pairs = _pairs(*answers)
        (one, other) = pairs[-1]
        if one["shape"] != other["shape"]:
            raise InputError(
                f"{first} gives {one['shape']} and {second} {other['shape']}: expected two files "
                "of the same classes"
            )
        sums = [_Sum() for _ in pairs]
        same = 0
        for index in range(len(images)):
            with (
                np.load(folders[0] / f"{index}.npz", allow_pickle=False) as a,
                np.load(folders[1] / f"{index}.npz", allow_pickle=False) as b,
            ):
                for total, (left, right) in zip(sums, pairs, strict=True):
                    expected, actual = real_values(a, left), real_values(b, right)
                    total.add(expected, actual, right["name"])
            same += int(np.argmax(expected) == np.argmax(actual))  # of the last: the output
    matched = len({id(left) for left, _ in pairs}), len({id(right) for _, right in pairs})
    quantizations = answers[0]["quantization"], answers[1]["quantization"]
    return FileComparison(
        quantizations=quantizations,
        images=len(images),
        same_class=same / len(images),
        tensors=tuple(
            TensorError(
                tensor=printable(left["name"]),
                operations=(left["operation"], right["operation"]),
                shape=tuple(left["shape"]),
                error=share(total.error, total.expected),
                largest=share(total.largest**2 * total.count, total.expected),
            )
            for total, (left, right) in zip(sums, pairs, strict=True)
        ),
        unmatched=(
            len(answers[0]["tensors"]) - matched[0],
            len(answers[1]["tensors"]) - matched[1],
        ),
        limit=max(LIMITS[name] for name in quantizations),
    )


def run_on_images(
    path: str | os.PathLike[str], images: np.ndarray, folder: Path, *, time_limit: float
) -> dict[str, Any]:
    """Runs a file on images in a child process; see `comparison_task.work`.

    Raises:
        InputError: as there.
    """
    folder.mkdir(exist_ok=True)
    np.savez(folder / "images.npz", images=images)
    request = {"file": os.fspath(path), "folder": str(folder)}
    return dict(child.run("comparison_task", request, time_limit=time_limit))


def real_values(saved: Mapping[str, np.ndarray], tensor: Mapping[str, Any]) -> np.ndarray:
    """What a tensor's integers stand for, or its floats: float32, of the saved shape."""
    value = saved[str(tensor["number"])]
    if tensor["scale"] is not None:
        value = (value.astype("float32") - tensor["zero_point"]) * tensor["scale"]
    return value.astype("float32")


def share(error: float, expected: float) -> float:
    """Of two sums of squares, as a share of the root mean square."""
    if error == 0:
        return 0.0
    return float(np.sqrt(error / expected)) if expected else float("inf")


@dataclass
class _Sum:
    """Sums over the images: of the values, of the squares of the expected and of the errors."""

    count: int = 0
    expected: float = 0
    error: float = 0
    largest: float = 0

    def add(self, expected: np.ndarray, actual: np.ndarray, name: str) -> None:
        if expected.size != actual.size:
            raise InputError(f"tensor {name!r} changes its shape as it runs")
        # Infinity and not-a-number in a file are found out, and no reason for a warning.
        with np.errstate(invalid="ignore", over="ignore"):
            apart = (actual.ravel() - expected.ravel()).astype(float)
            self.error += float((apart**2).sum())
            self.expected += float((expected.astype(float) ** 2).sum())
        self.count += expected.size
        self.largest = float(np.fmax(self.largest, np.abs(apart).max()))


def _pairs(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[dict[str, Any], ...]]:
    """The tensors of one name and shape, and last of all the outputs.

    Of several tensors of one name in a file, such as a layer's float values made integers, the last
    one is the layer's output.
    """
    outputs = tuple(
        next(t for t in answer["tensors"] if t["number"] == answer["output"])
        for answer in (first, second)
    )
    named = [{t["name"]: t for t in answer["tensors"] if t["name"]} for answer in (first, second)]
    found: list[tuple[dict[str, Any], ...]] = [
        (tensor, named[1][name])
        for name, tensor in named[0].items()
        if name in named[1] and _sides(tensor) == _sides(named[1][name])
    ]
    inner = [pair for pair in found if pair[0] is not outputs[0] and pair[1] is not outputs[1]]
    return [*inner, outputs]


def _sides(tensor: Mapping[str, Any]) -> list[int]:
    return [n for n in tensor["shape"] if n != 1]
