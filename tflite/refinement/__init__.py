"""From a file of floats to one of int8 that is as near to it as three known steps can bring it.

    refined(content, images, quantize).steps

Bias correction, equalization and ranges of the smallest error each help one network and not the
next: each is tried on top of those before it, and kept where the file, run on calibration images,
drifts less from the file of floats.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kapps._files import temporary_folder
from kapps.tflite.file_facts import read_graph, too_fine
from kapps.tflite.interpreter import Runner
from kapps.tflite.large.filling import packed
from kapps.tflite.large.ranges import made_computable, set_ranges
from kapps.tflite.refinement.bias import correct_biases, rounded
from kapps.tflite.refinement.clipping import best_range
from kapps.tflite.refinement.equalization import equalize
from kapps.tflite.refinement.statistics import Ranges, find_channels, find_histograms
from kapps.tflite.verification import Verification, compare

STEPS = ("bias correction", "equalization", "fitted ranges")
"""In the order in which they are tried."""

JUDGED = 64
"""Images, on which a step has to be of use."""


@dataclass(frozen=True)
class Refined:
    """Files of one network, of floats and of integers.

    Attributes:
        content: of the file of integers.
        steps: those of `STEPS` that were kept.
        figures: the file of integers beside that of floats, on some calibration images.
    """

    content: bytes
    steps: tuple[str, ...]
    figures: Verification
    _source: _Source

    def prepared(self, in_float: Collection[str]) -> bytes:
        """The file of floats after the steps, with the range of each tensor.

        `in_float` names the outputs of the operations that are to stay in floats, of which no step
        has to make up for anything.
        """
        return self._source.prepared(self.steps, in_float)


class Judge:
    """Compares files with a file of floats on images, in this process.

    Args:
        content: of the file of floats.
        images: (n, height, width, channels), in 0..255.
    """

    def __init__(self, content: bytes, images: np.ndarray) -> None:
        self._images = images
        self._expected = self._run(content)[0]

    def __call__(self, content: bytes) -> Verification:
        """The figures of another file.

        The worst there are for one that no kernel can compute (`file_facts.too_fine`): to load it
        would end the process.
        """
        if too_fine(read_graph(content)):
            return Verification(len(self._images), 0.0, 1.0, 1.0, 1.0)
        actual, step = self._run(content)
        return compare(self._expected, actual, step=step)

    def _run(self, content: bytes) -> tuple[np.ndarray, float]:
        with temporary_folder() as folder:
            path = folder / "model.tflite"
            path.write_bytes(content)
            runner = Runner(path)
            return runner.predict(self._images), runner.output_quantization[0]


def some(images: np.ndarray, most: int) -> np.ndarray:
    """At most so many, from all over the array; the first is among them."""
    count = min(most, len(images))
    return images[np.arange(count) * len(images) // count]


def refined(content: bytes, images: np.ndarray, quantize: Callable[[bytes], bytes]) -> Refined:
    """The file of int8 with those of `STEPS` that bring it nearer to that of floats.

    Args:
        content: of the file of floats.
        images: to calibrate on, (n, height, width, channels), in 0..255.
        quantize: makes a file of integers of one of floats with the range of each tensor.
    """
    source = _Source(content, images)
    judge = Judge(content, some(images, JUDGED))
    best: Refined | None = None
    for step in (None, *STEPS):
        steps = (*(best.steps if best else ()), *([step] if step else []))
        made = quantize(source.prepared(steps))
        figures = judge(made)
        if best is None or figures.drift < best.figures.drift:
            best = Refined(made, steps, figures, source)
    assert best is not None
    return best


class _Source:
    """A file of floats and what the images make of it."""

    def __init__(self, content: bytes, images: np.ndarray) -> None:
        self._content = content
        self._images = images
        self._channels = find_channels(self._model(), images)
        self._fitted: dict[bool, Ranges] = {}  # by whether the network is equalized

    def _model(self) -> Any:
        return schema.ModelT.InitFromPackedBuf(self._content, 0)

    def prepared(self, steps: Sequence[str], in_float: Collection[str] = ()) -> bytes:
        """The file of floats after these steps, with the range of each tensor.

        `in_float` names the outputs of the operations that are to stay in floats.
        """
        model, channels, equalized = self._model(), self._channels, "equalization" in steps
        if equalized:
            channels = equalize(model, channels)
        ranges = {number: of.range for number, of in channels.items()}
        if "fitted ranges" in steps:
            if equalized not in self._fitted:
                self._fitted[equalized] = self._fit(model, ranges)
            ranges |= self._fitted[equalized]
        # The biases last: what they are to make up for must not move the ranges.
        if "bias correction" in steps:
            correct_biases(
                model, channels, lambda layer: None if layer.output in in_float else rounded(layer)
            )
        made_computable(model, {}, ranges)
        set_ranges(model, ranges)
        return bytes(packed(model))

    def _fit(self, model: Any, ranges: Ranges) -> Ranges:
        """Of all tensors but the image and the probabilities."""
        graph = model.subgraphs[0]
        ends = {int(n) for n in (*graph.inputs, *graph.outputs)}
        inner = {number: found for number, found in ranges.items() if number not in ends}
        # How values are distributed shows in some images as well as in all; what others have beyond
        # them is at the ends that they gave.
        counts = find_histograms(model, inner, some(self._images, JUDGED))
        return {number: best_range(*ranges[number], found) for number, found in counts.items()}
