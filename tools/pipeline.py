"""Which image comes when, and how it reaches the network.

The order is a function of (seed, epoch, step) and the augmentation one of (seed, epoch, index):
nothing has to be remembered to resume anywhere, and any number of workers see the same images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from kapps._errors import InputError
from kapps.tools.data import Source

PADDING = -1
"""The index, and the label, of a place in the last batch that no image fills."""


def training_order(seed: int, epoch: int, images: int, batch_size: int) -> np.ndarray:
    """The images of an epoch by step: (steps, batch_size) indices, without the remainder."""
    steps = images // batch_size
    order = np.random.default_rng([seed, epoch]).permutation(images)
    return order[: steps * batch_size].reshape(steps, batch_size)


def evaluation_order(images: int, batch_size: int) -> np.ndarray:
    """Every image once: (steps, batch_size) indices, the last row filled up with `PADDING`."""
    steps = -(-images // batch_size)
    order = np.full(steps * batch_size, PADDING)
    order[:images] = np.arange(images)
    return order.reshape(steps, batch_size)


def worker_share(order: np.ndarray, worker: int, workers: int, replicas: int) -> np.ndarray:
    """What one worker reads of (steps, batch_size) indices: a row for each of its replicas a step.

    Replica r of R takes the r-th of R equal parts of each step, and the replicas are numbered
    through the workers, so that all of them together read the whole.

    Returns:
        (steps * replicas / workers, batch_size / replicas) indices.
    """
    steps, batch_size = order.shape
    if batch_size % replicas:
        raise InputError(
            f"a batch of {batch_size} images cannot be divided among {replicas} replicas; choose a "
            f"--batch_size that is a multiple of {replicas}"
        )
    share = order.reshape(steps, workers, replicas // workers, batch_size // replicas)
    return share[:, worker].reshape(-1, batch_size // replicas)


class Loader:
    """Reads images of a source and fits them to a network's input."""

    def __init__(
        self,
        source: Source,
        image_size: int,
        crop: float = 1.0,
        augment: str = "none",
        crop_area: float = 0.08,
    ) -> None:
        """The arguments but the source are those of a `Recipe`."""
        self._source, self._size, self._crop = source, image_size, crop
        self._augment, self._crop_area = augment, crop_area
        self._error: InputError | None = None  # what the source raised while TensorFlow was reading

    def batches(self, order: np.ndarray, seed: int = 0, epoch: int = 0) -> tf.data.Dataset:
        """Reads rows of indices, in order.

        Args:
            order: (batches, batch size) indices.
            seed, epoch: what augmentation depends on, beside the index.

        Returns:
            Pairs of images, uint8 (batch size, size, size, 3), and labels, int64 (batch size,).
        """
        mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1
        key = tf.constant(np.int64(mixed))

        def example(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image, label = tf.numpy_function(self._read, [index], (tf.uint8, tf.int64))
            image.set_shape((None, None, 3))
            label.set_shape(())
            if self._augment == "none":
                return _fit(image, self._size, self._crop), label
            image = _random_crop(image, self._size, self._crop_area, (key, 2 * index))
            if self._augment == "crop_flip":
                seed = (key, 2 * index + 1)
                image = tf.image.stateless_random_flip_left_right(image, seed)
            return image, label

        return (
            tf.data.Dataset.from_tensor_slices(order.reshape(-1).astype(np.int64))
            .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(order.shape[1], drop_remainder=True)
            .prefetch(tf.data.AUTOTUNE)
        )

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """To iterate in: turns what TensorFlow makes of a bad image back into what names it."""
        try:
            yield
        except tf.errors.OpError:
            if self._error is not None:
                raise self._error from None
            raise

    def _read(self, index: np.int64) -> tuple[np.ndarray, np.int64]:
        if index == PADDING:
            return np.zeros((1, 1, 3), np.uint8), np.int64(PADDING)
        try:
            image, label = self._source[int(index)]
        except InputError as error:
            self._error = error
            raise
        return image, np.int64(label)


def images(source: Source, image_size: int, crop: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A whole split in memory, as validation sees it.

    Returns:
        Images, uint8 (n, image_size, image_size, 3) in 0..255, and labels, int64 (n,).
    """
    loader = Loader(source, image_size, crop)
    with loader.named_errors():
        pairs = list(loader.batches(np.arange(len(source))[:, None]).as_numpy_iterator())
    if not pairs:
        return np.zeros((0, image_size, image_size, 3), np.uint8), np.zeros(0, np.int64)
    return tuple(np.concatenate(parts) for parts in zip(*pairs, strict=True))  # type: ignore[return-value]


def _fit(image: tf.Tensor, size: int, crop: float) -> tf.Tensor:
    """The central square, `crop` of the shorter side, at the wanted size."""
    height, width = tf.unstack(tf.shape(image)[:2])
    side = tf.cast(tf.round(crop * tf.cast(tf.minimum(height, width), tf.float32)), tf.int32)
    side = tf.maximum(side, 1)
    return _resize(
        tf.image.crop_to_bounding_box(image, (height - side) // 2, (width - side) // 2, side, side),
        size,
    )


_ASPECT = 4 / 3  # the most of a random part's longer side to its shorter one


def _random_crop(
    image: tf.Tensor, size: int, area: float, seed: tuple[tf.Tensor, tf.Tensor]
) -> tf.Tensor:
    """A random part, from `area` to the whole of the image's area, 3:4 to 4:3, resized.

    Szegedy et al. 2015, "Going Deeper with Convolutions", section 6. Of a strip in which no such
    part is found, the central one of the nearest aspect, as torchvision's RandomResizedCrop.
    """
    start, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        bounding_boxes=tf.zeros((1, 0, 4)),
        seed=seed,
        aspect_ratio_range=(1 / _ASPECT, _ASPECT),
        area_range=(area, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    whole, start, extent = tf.shape(image)[:2], start[:2], extent[:2]
    longest = tf.cast(tf.round(_ASPECT * tf.cast(whole[::-1], tf.float32)), tf.int32)
    nearest = tf.minimum(whole, longest)
    found = tf.reduce_any(extent != whole)  # where none is, TensorFlow takes the whole image
    start = tf.where(found, start, (whole - nearest) // 2)
    extent = tf.where(found, extent, nearest)
    return _resize(tf.slice(image, [*tf.unstack(start), 0], [*tf.unstack(extent), 3]), size)


def _resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Bilinear, with antialiasing where it shrinks; uint8 in and out."""
    resized = tf.image.resize(image, (size, size), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
