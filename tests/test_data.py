"""The data sets by name, their splits, and what is asked of a source."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_folders import SPLITS, image, make_folder
from PIL import Image

import kapps
from kapps.tools import data


def test_digits_are_pinned() -> None:
    """Another split, or another scaling, would make all published figures incomparable."""
    digits = data.load("digits")
    assert digits.class_names == tuple("0123456789")
    assert [len(digits.split(s)) for s in SPLITS] == [1197, 240, 360]
    digest = hashlib.sha256()
    for split in SPLITS:
        source = digits.split(split)
        counts = np.bincount([source[i][1] for i in range(len(source))], minlength=10)
        assert counts.max() - counts.min() <= 6  # 174 to 183 of each digit are there
        for i in range(len(source)):
            pixels, label = source[i]
            assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
            digest.update(pixels.tobytes() + bytes([label]))
    assert source[0][0].max() == 255 and source[0][0].min() == 0
    assert digest.hexdigest() == "2535169f118f6dc0273ca9b00a38a4095fe75567ff0b3b43e5c21e5180d678a8"


def test_digits_are_disjoint_and_whole() -> None:
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    found = [
        source[i][0][..., 0] for source in map(digits.split, SPLITS) for i in range(len(source))
    ]
    wanted = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(x.tobytes() for x in found) == sorted(x.tobytes() for x in wanted)


@given(
    st.lists(st.integers(0, 4), min_size=6, max_size=80),
    st.integers(0, 3),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_stratified_split(labels: list[int], validation: int, test: int, shuffler) -> None:
    keys = [f"k{i}" for i in range(len(labels))]
    splits = data.stratified(labels, keys, validation, test)
    assert sorted(np.concatenate(splits).tolist()) == list(range(len(labels)))
    assert [len(s) for s in splits[1:]] == [validation, test]
    for label in set(labels):
        share = labels.count(label) * test / len(labels)
        assert abs(sum(labels[i] == label for i in splits[2]) - share) < 1 + 1e-9
    order = list(range(len(labels)))
    shuffler.shuffle(order)
    again = data.stratified([labels[i] for i in order], [keys[i] for i in order], validation, test)
    assert [sorted(order[i] for i in s) for s in again] == [s.tolist() for s in splits]


def test_synthetic_is_deterministic_and_differs_by_split() -> None:
    one, two = data.load("synthetic"), data.load("synthetic")
    np.testing.assert_array_equal(one.train[7][0], two.train[7][0])
    assert one.train[7][1] == 7
    assert not np.array_equal(one.train[7][0], one.validation[7][0])
    assert one.train[7][0].shape == (32, 32, 3) and one.train[7][0].dtype == np.uint8


def test_unknown_name_proposes_the_nearest() -> None:
    with pytest.raises(kapps.InputError, match="unknown dataset 'digit'; did you mean digits"):
        data.load("digit")
    with pytest.raises(kapps.InputError, match="cifar10"):
        data.load("tfds:cifar_10")
    with pytest.raises(kapps.InputError, match="did you mean validation"):
        data.load("synthetic").split("validate")


def digest(place: int) -> bytes:
    """That of a picture at `place` of a thousand, evenly spread."""
    return (((2 * place + 1) << 63) // 1000).to_bytes(8, "big") + bytes(24)


PLACES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 999)), min_size=1, max_size=40)


@given(PLACES, st.booleans(), st.booleans())
def test_content_decides_the_split(pictures, validation: bool, test: bool) -> None:
    labels, places = zip(*pictures, strict=True)
    digests = [digest(place) for place in places]
    splits = data.by_content(labels, digests, validation=validation, test=test)
    assert sorted(np.concatenate(splits).tolist()) == list(range(len(labels)))
    of = {i: split for split, part in enumerate(splits) for i in part.tolist()}
    for label in set(labels):
        mine = [i for i in range(len(labels)) if labels[i] == label]
        different = len({places[i] for i in mine})
        found = {of[i] for i in mine}
        assert 0 in found  # whatever is asked for was learned
        if different >= 3:
            assert found == {0, *[1] * validation, *[2] * test}
        for i in mine:  # copies are in one split
            assert len({of[j] for j in mine if places[j] == places[i]}) == 1
    if not validation:
        assert not len(splits[1])
    if not test:
        assert not len(splits[2])


@given(PLACES, st.tuples(st.integers(0, 2), st.integers(0, 999)))
def test_what_one_more_picture_moves(pictures, another) -> None:
    """None of a class that is in all splits by content alone, and two at most of its own else."""

    def split(these) -> dict[tuple[int, int], int]:
        labels, places = zip(*these, strict=True)
        parts = data.by_content(labels, [digest(place) for place in places])
        return {these[i]: part for part, indices in enumerate(parts) for i in indices.tolist()}

    before, after = split(pictures), split([*pictures, another])
    moved = [picture for picture in before if before[picture] != after[picture]]
    assert all(label == another[0] for label, _ in moved)
    assert len(moved) <= 2
    mine = [place for label, place in pictures if label == another[0]]
    by_itself = {2 if place < 100 else 1 if place >= 900 else 0 for place in mine}
    if len(by_itself) == 3:
        assert not moved


def test_a_tenth_is_held_out_and_of_many_a_hundredth() -> None:
    digests = [hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(20_000)]
    sizes = [len(part) for part in data.by_content([0] * len(digests), digests)]
    assert sizes[1:] == pytest.approx([2000, 2000], rel=0.1)  # 4.2 standard deviations
    many = digests * 10
    sizes = [len(part) for part in data.by_content([0] * len(many), many)]
    assert sizes[1:] == pytest.approx([2000, 2000], rel=0.3)


class Users:
    """As one writes it: no labels, pictures of three kinds."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int):
        kinds = (
            np.full((4, 6, 3), 90, np.uint8),
            Image.new("L", (6, 4), 90),
            Image.new("RGBA", (6, 4), (90, 90, 90, 9)),
        )
        return kinds[index], (2, 0, 2)[index]


def test_an_object_of_two_methods_is_a_source() -> None:
    source = Users()
    assert data.labels_of(source).tolist() == [2, 0, 2]
    turned = data.Subset(source, np.array([1, 0]))
    assert data.labels_of(turned).tolist() == [turned[i][1] for i in range(2)] == [0, 2]
    for i in range(3):
        assert (np.asarray(data.images.read(source[i][0])) == 90).all()
    assert data.verify(source) == []


def test_labels_are_taken_without_reading() -> None:
    class Sealed(Users):
        labels = (1, 0, 1)

        def __getitem__(self, index: int):
            raise AssertionError("read")

    assert data.labels_of(Sealed()).tolist() == [1, 0, 1]
    assert data.labels_of(data.Subset(Sealed(), np.array([1]))).tolist() == [0]
    synthetic = data.load("synthetic").validation
    assert data.labels_of(synthetic)[7] == synthetic[7][1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [((1, 0), "3 pictures and 2 labels"), ((0, 0.5, 1), "label 1 of the source is 0.5")],
)
def test_wrong_labels_are_told(labels, message: str) -> None:
    source = Users()
    source.labels = labels
    with pytest.raises(kapps.InputError, match=message):
        data.labels_of(source)


def test_class_weights_are_balanced() -> None:
    labels = [0, 0, 0, 2, 2, 2, 2, 2, 2]
    weights = data.class_weights(labels, 4)
    assert weights.tolist() == [9 / 12, 0, 9 / 24, 0]
    assert data.without_images(labels, ("a", "b", "c", "d")) == "'b', 'd'"
    assert data.without_images(labels, "abc") == "'b'"
    assert data.without_images([], [str(i) for i in range(11)]).endswith("'7' and 3 more")


def test_damaged_pictures_are_found_before_the_training(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets" / "train", 3).parent
    make_folder(root / "val", 1)
    make_folder(root / "test", 2)
    whole = image(tmp_path / "whole.png", size=(90, 90)).read_bytes()
    bad = root / "test" / "dog" / "1.png"
    bad.write_bytes(whole[:-40])
    pets = data.load(f"folder:{root}")
    (found,) = data.check(pets)
    assert found.name == str(bad) and str(found).startswith(f"{bad}: cannot be read as an image")
    assert data.check(pets, limit=3) == []
    assert len(data.verify(pets.train, workers=1)) == 0
