"""Which image comes when, and how it reaches the network.

The order is a function of (seed, epoch, step) and the augmentation one of (seed, epoch, place of
the image): nothing has to be remembered to resume anywhere, and any number of workers see the same
images. Pictures are read and augmented by threads of this process, whose work is Pillow's and
TensorFlow's, outside of Python's lock.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from PIL import Image

from kapps._errors import InputError
from kapps.tools import augment
from kapps.tools.data import Source
from kapps.tools.data import images as pictures
from kapps.tools.recipe import Recipe
from kapps.transform import EvalTransform

PADDING = -1
"""The index, and the label, of a place in the last batch that no image fills."""

Batch = tuple[np.ndarray, np.ndarray]
"""Images, uint8 (n, size, size, 3) in 0..255, and labels, int64 (n,)."""


class Transform(Protocol):
    """A picture of a source to the uint8 pixels (size, size, 3) that the network takes."""

    @property
    def size(self) -> int: ...

    def __call__(self, picture: Any, random: np.random.Generator) -> np.ndarray: ...


def training_order(
    seed: int, epoch: int, images: int, batch_size: int, repeats: int = 1
) -> np.ndarray:
    """The images of an epoch by step: (steps, batch_size) places, without the remainder.

    A place is the index of an image plus `images` times the number of the repetition, from 0: each
    repetition is augmented by itself (Hoffer et al. 2020, "Augment your batch"). An epoch has as
    many steps with repetitions as without, and so shows fewer images.
    """
    steps = images // batch_size
    order = np.random.default_rng([seed, epoch]).permutation(images)
    if repeats == 1:
        return order[: steps * batch_size].reshape(steps, batch_size)
    # Blocks of different images, one a repetition: the neighbours that mixup mixes differ.
    distinct = -(-batch_size // repeats)
    blocks = order[: steps * distinct].reshape(steps, 1, distinct)
    places = blocks + images * np.arange(repeats)[None, :, None]
    return places.reshape(steps, distinct * repeats)[:, :batch_size]


def evaluation_order(images: int, batch_size: int) -> np.ndarray:
    """Every image once: (steps, batch_size) indices, the last row filled up with `PADDING`."""
    steps = -(-images // batch_size)
    order = np.full(steps * batch_size, PADDING)
    order[:images] = np.arange(images)
    return order.reshape(steps, batch_size)


def worker_share(order: np.ndarray, replicas: int, first: int, count: int) -> np.ndarray:
    """What one worker reads of (steps, batch_size) places.

    Replica r of R takes the r-th of R equal parts of each step, and the replicas are numbered
    through the workers, so that all of them together read the whole.

    Args:
        order: (steps, batch_size) places.
        replicas: of all workers.
        first: the number of this worker's first replica.
        count: of this worker's replicas.

    Returns:
        (steps, count * batch_size / replicas) places.
    """
    batch_size = order.shape[1]
    if batch_size % replicas:
        raise InputError(
            f"a batch of {batch_size} images cannot be divided among {replicas} replicas; choose a "
            f"--batch_size that is a multiple of {replicas}"
        )
    each = batch_size // replicas
    return order[:, first * each : (first + count) * each]


@dataclasses.dataclass(frozen=True)
class EvaluationPixels:
    """What evaluation does to a picture: the pixels of timm's and torchvision's."""

    transform: EvalTransform

    @property
    def size(self) -> int:
        return self.transform.size

    def __call__(self, picture: Any, random: np.random.Generator) -> np.ndarray:
        return self.transform(pictures.read(picture))


@dataclasses.dataclass(frozen=True)
class TrainingPixels:
    """What training does to a picture, by the recipe."""

    recipe: Recipe
    size: int
    fill: tuple[int, int, int] = (124, 116, 104)
    """RGB of what is padded and erased, 0..255: the mean that the network subtracts."""
    deviation: tuple[float, float, float] = (58.4, 57.1, 57.4)
    """Of the noise that erases, of 0..255: what the network divides by."""

    def __call__(self, picture: Any, random: np.random.Generator) -> np.ndarray:
        image = augment.flip(self._part(picture, random), random, self.recipe.flip)
        image = self._recoloured(self._by_policy(image, random), random)
        pixels = np.asarray(image)
        if self.recipe.cutout:
            pixels = augment.cutout(pixels, random, self.recipe.cutout, self.fill)
        if self.recipe.erasing:
            pixels = augment.random_erasing(
                pixels, random, self.recipe.erasing, mean=self.fill, std=self.deviation
            )
        return pixels

    @functools.cached_property
    def _whole(self) -> EvalTransform:
        recipe = self.recipe
        return EvalTransform(self.size, recipe.crop or 1.0, recipe.interpolation or "bilinear")

    def _part(self, picture: Any, random: np.random.Generator) -> Image.Image:
        recipe, size = self.recipe, self.size
        if recipe.train_crop in ("none", "shift"):
            image = Image.fromarray(self._whole(pictures.read(picture)))
            if recipe.train_crop == "shift":
                image = augment.pad_shift(image, random, recipe.pad, fill=self.fill)
            return image

        def box(width: int, height: int) -> tuple[float, float, float, float]:
            if recipe.train_crop == "scale":
                low, high = (round(s * size) for s in recipe.scales)
                return augment.scale_jitter_box(random, width, height, size, low, high)
            aspect = (1 / recipe.crop_aspect, recipe.crop_aspect)
            return augment.crop_box(random, width, height, (recipe.crop_area, 1.0), aspect)

        return pictures.read_part(picture, box, (size, size))

    def _by_policy(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        recipe = self.recipe
        kind, _, detail = recipe.policy.partition("-")
        if kind == "autoaugment":
            return augment.auto_augment(image, random, detail, fill=self.fill)
        if kind == "randaugment":
            increasing = detail == "increasing"
            return augment.rand_augment(
                image,
                random,
                recipe.policy_operations,
                recipe.policy_magnitude,
                magnitude_std=recipe.policy_deviation,
                probability=0.5 if increasing else 1.0,
                increasing=increasing,
                fill=self.fill,
            )
        if kind == "trivialaugment":
            return augment.trivial_augment_wide(image, random, fill=self.fill)
        return image

    def _recoloured(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        recipe = self.recipe
        strengths = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
        if any(strengths):
            image = augment.color_jitter(image, random, *strengths)
        if recipe.lighting:
            image = augment.lighting(image, random, recipe.lighting)
        return image


class BadImages:
    """What to do about pictures that cannot be read: one for all loaders of a run.

    Args:
        skip: whether to go on without them; else the first one ends the run.
        share: the largest share of a source that may be skipped.
    """

    def __init__(self, skip: bool = False, share: float = 0.01) -> None:
        self._skip, self._share = skip, share
        self.names: dict[str, str] = {}
        """Of those that were skipped: what was wrong."""

    def note(self, error: pictures.BadImage, images: int) -> None:
        """Takes account of one.

        Raises:
            InputError: it may not be skipped, or is one too many of `images`.
        """
        if not self._skip:
            raise error
        self.names[error.name] = str(error)
        if len(self.names) > self._share * images:
            first, *rest = self.names.values()
            raise InputError(
                f"{len(self.names)} images of {images} cannot be read, more than "
                f"--max_bad_images={self._share:g}: {first}"
                + (f", and {len(rest)} more" * bool(rest))
            ) from error


class Loader:
    """Reads pictures of a source and makes them the network's input, by threads."""

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        threads: int | None = None,
        bad: BadImages | None = None,
        replace: bool = False,
    ) -> None:
        """Prepares to read.

        Args:
            source: the pictures.
            transform: what becomes of each.
            threads: that read; by default one a core.
            bad: what to do about those that cannot be read; by default they are errors.
            replace: whether the next one of the source stands in for one that is skipped, as
                training wants it; else its place counts as `PADDING`.
        """
        self._source, self._transform = source, transform
        self._threads = threads or len(os.sched_getaffinity(0))
        self._bad, self._replace = bad or BadImages(), replace

    def batches(
        self, order: np.ndarray, seed: int = 0, epoch: int = 0
    ) -> Generator[Batch, None, None]:
        """Reads rows of places, in order, a few of them ahead.

        Args:
            order: (batches, batch size) places: indices, or as of `training_order`.
            seed, epoch: what augmentation depends on, beside the place.

        Raises:
            InputError: a picture cannot be read.
        """
        waiting: collections.deque[tuple[Batch, list[Future[None]]]] = collections.deque()
        executor = ThreadPoolExecutor(self._threads, thread_name_prefix="kapps-read")
        try:
            for row in order:
                waiting.append(self._begin(executor, row, (seed, epoch)))
                if len(waiting) > _AHEAD:
                    yield _finish(*waiting.popleft())
            while waiting:
                yield _finish(*waiting.popleft())
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _begin(
        self, executor: ThreadPoolExecutor, row: np.ndarray, key: tuple[int, int]
    ) -> tuple[Batch, list[Future[None]]]:
        size = self._transform.size
        batch = np.zeros((len(row), size, size, 3), np.uint8), np.full(len(row), PADDING, np.int64)

        def fill(part: range) -> None:
            for i in part:
                if row[i] != PADDING:
                    self._read(int(row[i]), key, batch, i)

        parts = [range(i, min(i + _TOGETHER, len(row))) for i in range(0, len(row), _TOGETHER)]
        return batch, [executor.submit(fill, part) for part in parts]

    def _read(self, place: int, key: tuple[int, int], batch: Batch, i: int) -> None:
        images = len(self._source)
        index = place % images
        random = np.random.default_rng((*key, place))
        for attempt in range(images if self._replace else 1):
            try:
                picture, label = self._source[(index + attempt) % images]
                batch[0][i] = self._transform(picture, random)
            except pictures.BadImage as error:
                self._bad.note(error, images)
                continue
            batch[1][i] = label
            return


_AHEAD = 2  # batches
_TOGETHER = 8  # images a task: a hundredth of a millisecond each is enough


def _finish(batch: Batch, futures: list[Future[None]]) -> Batch:
    for future in futures:
        future.result()
    return batch


def images(source: Source, transform: EvalTransform) -> Batch:
    """A whole split in memory, as evaluation sees it.

    Returns:
        Images, uint8 (n, size, size, 3) in 0..255, and labels, int64 (n,).
    """
    loader = Loader(source, EvaluationPixels(transform))
    batches = list(loader.batches(evaluation_order(len(source), min(256, max(len(source), 1)))))
    if not batches:
        size = transform.size
        return np.zeros((0, size, size, 3), np.uint8), np.zeros(0, np.int64)
    pixels, labels = (np.concatenate(parts)[: len(source)] for parts in zip(*batches, strict=True))
    return pixels, labels
