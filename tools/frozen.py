"""The frozen part of a network: what it makes of each image is computed once, and kept on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from kapps._block_skipping import any_depth, nodes_in_order
from kapps._errors import InputError
from kapps._files import atomic_write
from kapps.tools import data, pipeline
from kapps.tools.linear_head import Features
from kapps.tools.preemption import Request, Stopped
from kapps.tools.progress import progress_bar

_BATCH = 64  # images
_SAMPLE = 64  # pictures of a source that its identity depends on
# What may follow the classifier: then the logits are linear in the mean of its input.
_LINEAR = (
    layers.Dropout,
    layers.Flatten,
    layers.GlobalAveragePooling2D,
    layers.Reshape,
)


def classifier(model: keras.Model) -> keras.Layer:
    """The layer that the head phase fits: the last one with weights.

    Raises:
        InputError: the logits are not linear in what it takes.
    """
    if len(model.outputs) != 1:
        raise InputError(
            f"{model.name} has auxiliary classifiers, which would start at random; leave aux out "
            "of --arguments"
        )
    heads = [layer for layer in model.layers if getattr(layer, "checkpoint_head", False)]
    if len(heads) != 1:
        raise InputError(f"{model.name} has no linear classifier; {_REMEDY}")
    nodes = nodes_in_order(model)
    place = next(i for i, node in enumerate(nodes) if node.operation is heads[0])
    for node in nodes[place + 1 :]:
        if not isinstance(node.operation, _LINEAR):
            raise InputError(
                f"{model.name} has the layer {node.operation.name!r} behind its classifier, whose "
                f"fit is then no logistic regression; {_REMEDY}"
            )
    return heads[0]


_REMEDY = "give --cut_at, with the last stride for the whole network, to put a linear one there"


def frozen_part(model: keras.Model) -> keras.Model:
    """From the image to the vector that the classifier takes; of a map the mean.

    It shares the layers of `model`, and has to be called with `training=False`.
    """
    layer = classifier(model)
    x = next(node for node in nodes_in_order(model) if node.operation is layer).input_tensors[0]
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(name="frozen_mean")(x)
    with any_depth():
        return keras.Model(model.input, x, name=f"{model.name}_frozen")


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Features of pictures in files of a folder, each named by all that it depends on.

    A file is there as a whole or not at all, so that a run that was killed leaves none by half; one
    of other weights, pictures or transforms has another name. A run that is asked to end leaves
    what it has in a file of its own, to go on from.
    """

    folder: Path
    model: keras.Model
    """The frozen part."""
    about: dict[str, Any]
    """What else the features depend on: of JSON's kinds."""
    stop: Request = dataclasses.field(default_factory=Request)
    show: bool = False
    """Whether there is a progress bar."""
    bad: pipeline.BadImages | None = None

    def features(
        self,
        title: str,
        source: data.Source,
        passes: list[tuple[pipeline.Transform, int]],
        chosen: np.ndarray,
        seed: int = 0,
    ) -> Features:
        """The features of some pictures, as often as there are passes.

        Args:
            title: of the file and the progress bar.
            source: of the pictures.
            passes: what is done to them, and the epoch that what is random in it depends on.
            chosen: (n,) indices of the pictures.
            seed: of what is random.

        Raises:
            InputError: a picture cannot be read, or the disk is full.
            Stopped: there was a request to, and the features so far are saved.
        """
        key = self._key(source, passes, chosen, seed)
        path = self.folder / f"{title}-{key}.npy"
        beside = self.folder / f"{title}-{key}.labels.npy"
        shape = (len(passes) * len(chosen), *self.model.output_shape[1:])
        known = _read(path, np.dtype(np.float32), shape)
        labels = _read(beside, np.dtype(np.int64), shape[:1])
        if known is None or labels is None:
            part = self.folder / f"{title}-{key}.part.npz"
            labels = np.full(shape[:1], pipeline.PADDING, np.int64)
            with atomic_write(path) as temporary:
                values = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
                done = _take_up(part, values, labels)
                self._compute(title, source, passes, chosen, seed, values, labels, done, part)
                values.flush()
                del values
                with atomic_write(beside) as other:
                    np.save(other, labels)
            part.unlink(missing_ok=True)
            known = np.load(path, mmap_mode="r")
        return Features(known, labels)

    def _compute(
        self,
        title: str,
        source: data.Source,
        passes: list[tuple[pipeline.Transform, int]],
        chosen: np.ndarray,
        seed: int,
        values: np.ndarray,
        labels: np.ndarray,
        at: int,
        part: Path,
    ) -> None:
        """Fills values and labels from row `at` on; leaves `part` where the run is to end."""
        step = _compiled(self.model)
        order = pipeline.evaluation_order(len(chosen), min(_BATCH, len(chosen)))
        at -= at % len(chosen) % order.shape[1]  # of another version, in other batches
        places = np.where(order == pipeline.PADDING, order, chosen[order])
        with progress_bar(
            len(values), "img", f"features {title}", initial=at, show=self.show
        ) as bar:
            for number, (transform, epoch) in enumerate(passes):
                # The batches of this pass that are done, or more where all are.
                first = -(-max(at - number * len(chosen), 0) // order.shape[1])
                loader = pipeline.Loader(source, transform, bad=self.bad)
                with contextlib.closing(loader.batches(places[first:], seed, epoch)) as batches:
                    for row, (images, found) in zip(order[first:], batches, strict=True):
                        count = int((row != pipeline.PADDING).sum())
                        values[at : at + count] = step(tf.constant(images)).numpy()[:count]
                        labels[at : at + count] = found[:count]
                        at += count
                        bar.update(count)
                        if self.stop.number is not None:
                            with atomic_write(part) as temporary:
                                np.savez(temporary, values=values[:at], labels=labels[:at])
                            saved = f"{at} of {len(values)} features {title} are saved"
                            raise Stopped(self.stop.number, saved)

    def _key(
        self,
        source: data.Source,
        passes: list[tuple[pipeline.Transform, int]],
        chosen: np.ndarray,
        seed: int,
    ) -> str:
        digest = hashlib.sha256()
        for variable in self.model.weights:
            digest.update(variable.path.encode())
            digest.update(keras.ops.convert_to_numpy(variable).tobytes())
        told = {"about": self.about, "passes": [repr(each) for each in passes], "seed": seed}
        digest.update(json.dumps(told, sort_keys=True).encode())
        digest.update(chosen.tobytes())
        digest.update(_identity(source))
        return digest.hexdigest()[:16]


def _compiled(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    @tf.function(autograph=False, reduce_retracing=True)
    def step(images: tf.Tensor) -> tf.Tensor:
        return tf.cast(model(images, training=False), tf.float32)

    return step


def _read(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in a file; None if that is not what it should hold."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.dtype == dtype and array.shape == shape else None


def _take_up(path: Path, values: np.ndarray, labels: np.ndarray) -> int:
    """Fills in what an earlier run has left in a file; returns how many rows."""
    try:
        # numpy leaves a file that it opened itself, and that is damaged, open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as left:
            found, classes = left["values"], left["labels"]
        values[: len(found)], labels[: len(found)] = found, classes
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return 0
    return len(found)


def _identity(source: data.Source) -> bytes:
    """What tells a source from others: of files their names, sizes and times; of all, a sample."""
    digest = hashlib.sha256(str(len(source)).encode())
    for path in getattr(source, "paths", ()):
        status = Path(path).stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    for label, pixels in data.sample(source, _SAMPLE):
        digest.update(str(label).encode())
        digest.update(pixels.tobytes())
    return digest.digest()
