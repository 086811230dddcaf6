"""The order of the images, and how they are fitted to the network."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import kapps
from kapps.tools import data, pipeline
from kapps.tools.recipes import RECIPES

splits = st.tuples(
    st.integers(1, 3),  # workers
    st.integers(1, 3),  # replicas a worker
    st.integers(1, 4),  # images a replica and step
    st.integers(0, 90),  # images
    st.integers(0, 2**31),  # seed
    st.integers(0, 500),  # epoch
)


def shares(order: np.ndarray, workers: int, per_worker: int) -> np.ndarray:
    """What all replicas of all workers read, put together again: (steps, batch size)."""
    replicas = workers * per_worker
    rows = [
        pipeline.worker_share(order, replicas, worker * per_worker, per_worker)
        for worker in range(workers)
    ]
    return np.concatenate(rows, axis=1)


@given(splits)
def test_any_workers_see_each_image_once_in_the_same_order(case) -> None:
    workers, per_worker, images_each, images, seed, epoch = case
    batch_size = workers * per_worker * images_each
    order = pipeline.training_order(seed, epoch, images, batch_size)
    assert len(set(order.ravel().tolist())) == order.size == images // batch_size * batch_size
    assert set(order.ravel().tolist()) <= set(range(images))
    np.testing.assert_array_equal(shares(order, workers, per_worker), order)


@given(splits)
def test_any_workers_evaluate_each_image_once(case) -> None:
    workers, per_worker, images_each, images, _, _ = case
    order = pipeline.evaluation_order(images, workers * per_worker * images_each)
    seen = shares(order, workers, per_worker).ravel()
    assert sorted(seen[seen != pipeline.PADDING].tolist()) == list(range(images))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return pipeline.training_order(seed, epoch, 100, 10).ravel().tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    # Pinned: a run must be able to resume under a later version of numpy, too.
    assert order(0, 0)[:8] == [82, 36, 20, 5, 93, 16, 94, 52]


def test_batch_that_cannot_be_divided() -> None:
    with pytest.raises(kapps.InputError, match="multiple of 4"):
        pipeline.worker_share(pipeline.training_order(0, 0, 30, 10), 4, 0, 2)


@given(splits, st.integers(2, 5))
def test_repetitions_differ_and_are_no_neighbours(case, repeats: int) -> None:
    """Else mixup would mix an image with itself, and two copies would be augmented alike."""
    _, _, half, images, seed, epoch = case
    batch_size = 2 * half * repeats
    order = pipeline.training_order(seed, epoch, images, batch_size, repeats)
    assert order.shape == (images // batch_size, batch_size)
    assert len(set(order.ravel().tolist())) == order.size
    for row in order % max(images, 1):
        assert (row[::2] != row[1::2]).all()
        assert np.unique(row, return_counts=True)[1].tolist() == [repeats] * (2 * half)


def fitted(images: data.Source, size: int, crop: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    return pipeline.images(images, kapps.EvalTransform(size, crop, "bilinear"))


def source(*pixels: np.ndarray) -> data.Source:
    class Images:
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return pixels[index], index

    return Images()


def test_images_of_all_sizes_become_one() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    tall = wide.transpose(1, 0, 2).copy()
    pixels, labels = fitted(source(wide, tall), 20)
    assert pixels.shape == (2, 20, 20, 3) and pixels.dtype == np.uint8
    assert (pixels[:, 1:-1, 1:-1] == 200).all()  # the central square alone
    assert (pixels > 140).all()  # its edges see a little of what lies beside it
    assert labels.tolist() == [0, 1]


def test_crop_keeps_the_center() -> None:
    framed = np.zeros((16, 16, 3), np.uint8)
    framed[4:12, 4:12] = 90
    assert (fitted(source(framed), 8, crop=0.5)[0] == 90).all()
    assert (fitted(source(framed), 8, crop=1.0)[0] == 0).any()


def test_enlarging_is_bilinear_and_shrinking_antialiased() -> None:
    ramp = np.repeat(np.array([[0, 100]], np.uint8)[..., None], 3, -1).repeat(2, 0)
    row = fitted(source(ramp), 4)[0][0, 0, :, 0]
    assert row.tolist() == [0, 25, 75, 100]
    board = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)
    board = np.repeat(board[..., None], 3, -1)
    shrunk = fitted(source(board), 8)[0].astype(int)
    assert np.abs(shrunk[0, 1:-1, 1:-1] - 100).max() <= 3  # and not the one or the other color


def trained_on(images: data.Source, size: int, **settings: object) -> pipeline.Loader:
    recipe = dataclasses.replace(RECIPES["default"], **{"crop_area": 1.0, **settings})
    return pipeline.Loader(images, pipeline.TrainingPixels(recipe, size), replace=True)


ALL = {
    "train_crop": "random",
    "flip": 0.5,
    "crop_area": 0.3,
    "policy": "randaugment",
    "erasing": 0.5,
    "cutout": 6,
    "brightness": 0.3,
    "hue": 0.1,
    "lighting": 0.2,
}


@pytest.mark.parametrize(
    "settings",
    [
        ALL,
        {"train_crop": "shift", "policy": "autoaugment-cifar10"},
        {"train_crop": "scale", "policy": "trivialaugment-wide"},
        {"train_crop": "none", "policy": "randaugment-increasing", "policy_deviation": 0.5},
    ],
)
def test_augmentation_depends_on_seed_epoch_and_place_alone(settings: dict[str, object]) -> None:
    random = np.random.default_rng(0)
    photos = source(*random.integers(0, 255, (6, 40, 30, 3), np.uint8))
    loader = trained_on(photos, 16, **settings)

    def read(rows: list[list[int]], seed: int = 3, epoch: int = 5) -> dict[int, np.ndarray]:
        batches = loader.batches(np.array(rows), seed, epoch)
        return {int(k): x for xs, ks in batches for x, k in zip(xs, ks, strict=True)}

    one, two = read([[0, 1, 2], [3, 4, 5]]), read([[5], [3], [1], [0], [2], [4]])
    for index in range(6):
        np.testing.assert_array_equal(one[index], two[index])
    for other in (read([[0, 1, 2]], seed=4), read([[0, 1, 2]], epoch=6), read([[6, 7, 8]])):
        assert any(not np.array_equal(other[i], one[i]) for i in range(3))


def test_flip_happens_half_the_time_and_only_if_asked() -> None:
    half = np.zeros((8, 8, 3), np.uint8)
    half[:, :4] = 255
    many = source(*[half] * 200)

    def share_flipped(flip: float) -> float:
        batch, _ = next(trained_on(many, 8, flip=flip).batches(np.arange(200)[None]))
        return float(np.mean(batch[:, :, :2].mean((1, 2, 3)) < batch[:, :, -2:].mean((1, 2, 3))))

    assert share_flipped(0.0) == 0
    assert 0.35 < share_flipped(0.5) < 0.65


def test_crop_area_bounds_the_part_that_is_shown() -> None:
    ramp = np.tile(np.linspace(0, 255, 100, dtype=np.uint8)[None, :, None], (100, 1, 3))
    batch, _ = next(
        trained_on(source(*[ramp] * 100), 10, crop_area=0.6).batches(np.arange(100)[None])
    )
    widths = batch.max((1, 2, 3)) / 255.0 - batch.min((1, 2, 3)) / 255.0
    assert widths.min() > 0.55 and widths.max() > 0.85
    assert np.ptp(widths) > 0.1


def test_scale_shows_a_window_of_the_image_enlarged() -> None:
    """VGG's: 24 to 48 pixels for a window of 12 show a half to a quarter of each side."""
    ramp = np.tile(np.arange(96, dtype=np.uint8)[None, :, None] * 2, (96, 1, 3))
    loader = trained_on(source(*[ramp] * 100), 12, train_crop="scale", scales=(2.0, 4.0))
    batch, _ = next(loader.batches(np.arange(100)[None]))
    widths = (batch.max((1, 2, 3)) - batch.min((1, 2, 3)).astype(float)) / 192 * 12 / 11
    assert 0.23 < widths.min() < 0.3 and 0.45 < widths.max() < 0.54


def test_shift_moves_by_at_most_the_padding() -> None:
    dot = np.zeros((16, 16, 3), np.uint8)
    dot[8, 8] = 255
    batch, _ = next(
        trained_on(source(*[dot] * 300), 16, train_crop="shift", pad=4, flip=0.0).batches(
            np.arange(300)[None]
        )
    )
    places = {tuple(np.argwhere(image[..., 0] == 255)[0] - 8) for image in batch}
    assert {abs(x) for place in places for x in place} == {0, 1, 2, 3, 4}


def photo_folder(root: Path) -> data.Dataset:
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(20):
            noise = random.integers(0, 255, (60, 60, 3), np.uint8)
            Image.fromarray(noise).save(root / name / f"{i}.jpg")
    return data.load(f"folder:{root}")


def spoil(dataset: data.Dataset, index: int) -> Path:
    picture, _ = dataset.train[index]
    path = Path(picture.path)
    path.write_bytes(path.read_bytes()[:700])  # its header is still good
    return path


def test_a_bad_image_in_mid_epoch_is_named(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path)
    bad = spoil(photos, 3)
    with pytest.raises(kapps.InputError, match=re.escape(f"{bad}: cannot be read as an image")):
        fitted(photos.train, 8)


def test_bad_images_are_skipped_and_counted(tmp_path: Path) -> None:
    photos = photo_folder(tmp_path)
    paths = {str(spoil(photos, index)) for index in (3, 4)}
    images = len(photos.train)
    order = np.arange(images)[None]
    pixels = pipeline.TrainingPixels(RECIPES["default"], 8)
    bad = pipeline.BadImages(skip=True, share=0.1)
    training = pipeline.Loader(photos.train, pixels, bad=bad, replace=True)
    ((_, labels),) = training.batches(order)
    assert set(bad.names) == paths and (labels != pipeline.PADDING).all()
    assert labels[3] == labels[4] == photos.train[5][1]  # the next that can be read stands in
    whole = pipeline.EvaluationPixels(kapps.EvalTransform(8))
    ((_, labels),) = pipeline.Loader(photos.train, whole, bad=bad).batches(order)
    assert np.flatnonzero(labels == pipeline.PADDING).tolist() == [3, 4]
    few = pipeline.BadImages(skip=True, share=0.04)
    with pytest.raises(kapps.InputError, match=r"2 images of .* more than --max_bad_images=0.04"):
        list(pipeline.Loader(photos.train, pixels, bad=few, replace=True).batches(order))


@pytest.mark.parametrize("turned", [False, True])
def test_a_strip_keeps_its_aspect(turned: bool) -> None:
    """No part of 12 x 300 pixels is as large as wanted and 3:4 to 4:3: the middle 12 x 16."""
    strip = np.zeros((12, 300, 3), np.uint8)
    strip[:, 142:158] = 200
    strip = strip.transpose(1, 0, 2).copy() if turned else strip
    loader = trained_on(source(*[strip] * 4), 8, crop_area=0.9)
    ((images, _),) = loader.batches(np.arange(4)[None])
    assert (images[:, 1:-1, 1:-1] == 200).all()
    assert (images > 140).all()  # its edges see a little of what lies beside it


def test_a_reader_that_is_left_stops_reading() -> None:
    """An error in a step, or Ctrl-C, must not wait for the rest of the epoch."""
    read: list[int] = []

    class Slow:
        def __len__(self) -> int:
            return 10_000

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            read.append(index)
            return np.zeros((8, 8, 3), np.uint8), 0

    batches = trained_on(Slow(), 8).batches(np.arange(10_000).reshape(100, 100))
    next(batches)
    batches.close()
    assert len(read) < 1_000
