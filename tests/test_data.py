"""The data sets by name, and what is wrong with a user's images."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import kapps
from kapps.tools import data

SPLITS = ("train", "validation", "test")


def image(path: Path, color: tuple[int, int, int] = (200, 30, 90), size=(12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def make_folder(root: Path, images: int = 12, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """`images` PNG files a class, the i-th of gray value 10 * i."""
    for name in classes:
        for i in range(images):
            image(root / name / f"{i}.png", (10 * i,) * 3)
    return root


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


def test_folder_of_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", 20)
    (root / ".DS_Store").write_text("")
    (root / "cat" / "Thumbs.db").write_text("")
    pets = data.load(f"folder:{root}")
    assert pets.class_names == ("cat", "dog")
    assert [len(pets.split(s)) for s in SPLITS] == [32, 4, 4]
    assert "4 images each are held out of 40" in pets.note
    for split in SPLITS[1:]:
        assert sorted(pets.split(split)[i][1] for i in range(4)) == [0, 0, 1, 1]
    moved = data.load(f"folder:{shutil.copytree(root, tmp_path / 'elsewhere')}")
    for i in range(4):
        np.testing.assert_array_equal(moved.test[i][0], pets.test[i][0])


def test_folder_of_splits(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    make_folder(root / "train", 20)
    make_folder(root / "val", 3)
    make_folder(root / "test", 5)
    whole = data.load(f"folder:{root}")
    assert [len(whole.split(s)) for s in SPLITS] == [40, 6, 10] and not whole.note
    shutil.rmtree(root / "test")
    held_out = data.load(f"folder:{root}")
    assert [len(held_out.split(s)) for s in SPLITS] == [36, 4, 6]
    assert "validation split is the held-out one" in held_out.note


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = make_folder(tmp_path, classes=("bus", "train"))
    assert data.load(f"folder:{root}").class_names == ("bus", "train")


def test_every_format(tmp_path: Path) -> None:
    for suffix in data.FORMATS:
        for name in ("red", "blue"):
            image(
                tmp_path / name / f"one{suffix.upper()}",
                (250, 0, 0) if name == "red" else (0, 0, 250),
            )
    colors = data.load(f"folder:{tmp_path}")
    for split in SPLITS:
        source = colors.split(split)
        for i in range(len(source)):
            pixels, label = source[i]
            assert pixels.shape == (10, 12, 3) and pixels.dtype == np.uint8
            assert abs(int(pixels[5, 6, 0 if label else 2]) - 250) < 10


def test_unusual_images(tmp_path: Path) -> None:
    gray16 = np.full((4, 4), 257 * 100, np.uint16)
    Image.fromarray(gray16).save(tmp_path / "gray16.png")
    Image.new("L", (4, 4), 100).save(tmp_path / "gray.png")
    Image.new("RGBA", (4, 4), (100, 100, 100, 7)).save(tmp_path / "alpha.png")
    Image.new("CMYK", (4, 4), (155, 155, 155, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 100, 100, 100])
    palette.save(tmp_path / "palette.png", transparency=b"\x00\x80")
    for path in sorted(tmp_path.iterdir()):
        pixels = data.read_image(path)
        assert pixels.shape == (4, 4, 3) and pixels.dtype == np.uint8, path
        assert np.abs(pixels.astype(int) - 100).max() <= 2, path


def test_exif_rotation(tmp_path: Path) -> None:
    turned = Image.new("RGB", (20, 10))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    turned.save(tmp_path / "upright.jpg", exif=exif)
    assert data.read_image(tmp_path / "upright.jpg").shape == (20, 10, 3)


def photo(path: Path, exif: bytes) -> np.ndarray:
    """A JPEG file, 20 high and 30 wide, its left half dark, with these entries of EXIF."""
    half = np.zeros((20, 30, 3), np.uint8)
    half[:, 15:] = 255
    Image.fromarray(half).save(path, quality=100)
    content = path.read_bytes()
    segment = b"Exif\0\0" + exif
    path.write_bytes(
        content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]
    )
    return half


def ifd(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data, little-endian: (tag, type, count, value of 4 bytes) each."""
    packed = [struct.pack("<HHL", *entry[:3]) + entry[3] for entry in entries]
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + b"".join(packed) + bytes(4)


@pytest.mark.parametrize(
    "wrong",
    [
        (0x11A, 7, 4, b"abcd"),  # XResolution of type UNDEFINED
        (0x100, 2, 4, b"abc\0"),  # ImageWidth in letters
        (0x100, 9, 1, struct.pack("<l", -5)),  # ImageWidth below 0
    ],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_whose_exif_cannot_be_written_again(
    tmp_path: Path, wrong: tuple[int, int, int, bytes], orientation: int
) -> None:
    """Cameras and editors leave such. What each orientation means is EXIF 2.32, 4.6.4.A."""
    turned = (0x112, 3, 1, struct.pack("<HH", orientation, 0))
    half = photo(tmp_path / "photo.jpg", ifd(*sorted((turned, wrong))))
    expected = {
        1: half,
        2: half[:, ::-1],
        3: half[::-1, ::-1],
        4: half[::-1],
        5: half.transpose(1, 0, 2),
        6: np.rot90(half, -1),
        7: half[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(half),
    }[orientation]
    pixels = data.read_image(tmp_path / "photo.jpg")
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("exif", [b"no EXIF", ifd((0x112, 2, 4, b"abc\0")), ifd()[:9]])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_photo_whose_exif_says_nothing_is_not_turned(tmp_path: Path, exif: bytes) -> None:
    half = photo(tmp_path / "photo.jpg", exif)
    assert np.abs(data.read_image(tmp_path / "photo.jpg").astype(int) - half).max() <= 3


def test_pixels_of_many_bits(tmp_path: Path) -> None:
    """16-bit gray is scaled, floats are in 0..255 already; both are rounded and clipped."""
    gray16 = np.array([[0, 128, 129, 257 * 99 + 128, 257 * 99 + 129, 65535]], np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(gray16).save(tmp_path / f"gray.{suffix}")
        pixels = data.read_image(tmp_path / f"gray.{suffix}")
        assert pixels[0, :, 0].tolist() == [0, 0, 1, 99, 100, 255], suffix
    floats = np.array([[-3.0, 0.4, 0.6, 99.4, 254.7, 1e9]], np.float32)
    Image.fromarray(floats).save(tmp_path / "float.tif")
    pixels = data.read_image(tmp_path / "float.tif")
    assert (pixels == np.array([0, 0, 1, 99, 255, 255])[None, :, None]).all()
    Image.fromarray(floats * np.inf).save(tmp_path / "nan.tif")
    with pytest.raises(kapps.InputError, match=r"nan.tif: .*numbers that are not finite"):
        data.read_image(tmp_path / "nan.tif")


def test_class_names_are_text(tmp_path: Path) -> None:
    """As folders of a Windows archive are named, and by accident."""
    folders = [b"caf\xe9", b"caf\xea", "th\u00e9".encode(), b"two\nlines"]
    for name in folders:
        image(tmp_path / os.fsdecode(name) / "1.png")
    loaded = data.load(f"folder:{tmp_path}")
    expected = {"caf\\xe9", "caf\\xea", "th\u00e9", "two\\nlines"}
    assert set(loaded.class_names) == expected
    assert "\n".join(loaded.class_names).encode().decode().count("\n") == 3
    image(tmp_path / "caf\\xe9" / "1.png")
    with pytest.raises(kapps.InputError, match=r"2 folders for the class 'caf\\\\xe9'; rename one"):
        data.load(f"folder:{tmp_path}")


def damage_missing(root: Path) -> str:
    return f"there is no folder {shutil.move(root, root.with_name('gone')) and root}"


def damage_empty(root: Path) -> str:
    shutil.rmtree(root)
    root.mkdir()
    return f"{root} is empty"


def damage_empty_class(root: Path) -> str:
    (root / "fox").mkdir()
    return f"class folder {root}/fox holds no images"


def damage_stray_file(root: Path) -> str:
    image(root / "stray.png")
    return f"{root}/stray.png is no folder"


def damage_text_file(root: Path) -> str:
    (root / "dog" / "notes.txt").write_text("woof")
    return f"{root}/dog/notes.txt is no image"


def damage_false_name(root: Path) -> str:
    (root / "dog" / "page.jpg").write_text("<html>")
    return f"{root}/dog/page.jpg is no image"


def damage_empty_file(root: Path) -> str:
    (root / "dog" / "empty.png").write_bytes(b"")
    return f"{root}/dog/empty.png is no image"


def damage_nested(root: Path) -> str:
    image(root / "dog" / "puppies" / "1.png")
    return f"{root}/dog/puppies is no image"


def damage_one_class(root: Path) -> str:
    shutil.rmtree(root / "dog")
    return f"{root} has a single class, 'cat'"


def damage_new_class(root: Path) -> str:
    make_folder(root / "train")
    make_folder(root / "test", classes=("cat", "cow"))
    shutil.rmtree(root / "cat")
    shutil.rmtree(root / "dog")
    return f"{root}/test/cow is none of the classes: cat, dog"


@pytest.mark.parametrize(
    "damage", [value for name, value in list(globals().items()) if name.startswith("damage_")]
)
def test_wrong_folders_are_named(tmp_path: Path, damage) -> None:
    message = damage(make_folder(tmp_path / "pets"))
    with pytest.raises(kapps.InputError) as caught:
        data.load(f"folder:{tmp_path / 'pets'}")
    assert message in str(caught.value)


def test_damaged_images_are_named(tmp_path: Path) -> None:
    whole = image(tmp_path / "whole.jpg", size=(300, 300)).read_bytes()
    (tmp_path / "short.jpg").write_bytes(whole[: len(whole) // 2])
    huge = Image.new("1", (20_000, 10_000))
    huge.save(tmp_path / "huge.png")
    for name in ("short.jpg", "huge.png", "gone.png"):
        with pytest.raises(
            kapps.InputError, match=re.escape(f"{tmp_path / name}: cannot be read as an image")
        ):
            data.read_image(tmp_path / name)


class Shades(tfds.core.GeneratorBasedBuilder):
    """Gray images; the i-th has 5 + i rows of value i."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict:
        return {"train": self._generate_examples(40), "test": self._generate_examples(6)}

    def _generate_examples(self, count: int):
        for i in range(count):
            yield i, {"image": np.full((5 + i, 4, 1), i, np.uint8), "label": i % 2}


@pytest.mark.parametrize("prepared_as", [None, "array_record", "tfrecord"])
def test_tfds(tmp_path: Path, prepared_as: str | None) -> None:
    """Not prepared yet, prepared for random access, and prepared the usual way."""
    if prepared_as:
        Shades(data_dir=tmp_path, file_format=prepared_as).download_and_prepare()
    shades = data.load("tfds:shades", str(tmp_path))
    assert shades.class_names == ("even", "odd")
    assert [len(shades.split(s)) for s in SPLITS] == [36, 4, 6]
    assert "4 training images are held out for validation" in shades.note
    seen = []
    for source in (shades.train, shades.validation):
        for i in range(len(source)):
            pixels, label = source[i]
            value = int(pixels[0, 0, 0])
            assert pixels.shape == (5 + value, 4, 3) and (pixels == value).all()
            assert label == value % 2
            seen.append(value)
    assert sorted(seen) == list(range(40))
    assert [int(shades.test[i][0][0, 0, 0]) for i in (3, 0, 5)] == [3, 0, 5]


def test_tfds_cut_short(tmp_path: Path) -> None:
    Shades(data_dir=tmp_path, file_format="tfrecord").download_and_prepare()
    file = next(tmp_path.rglob("*train.tfrecord*"))
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(kapps.InputError, match=re.escape(f"{file} is damaged or cut short")):
        data.load("shades", str(tmp_path))


def test_published_tfds_can_be_fetched(tmp_path: Path) -> None:
    """How a download starts; tensorflow-datasets imports a package that it does not require."""
    assert tfds.builder("mnist", data_dir=tmp_path).url_infos


def test_tfds_without_labeled_images_is_refused_before_the_download(tmp_path: Path) -> None:
    with pytest.raises(kapps.InputError, match="'glue' is not one of labeled images: .*sentence"):
        data.load("glue", str(tmp_path))
    assert not list(tmp_path.rglob("*.incomplete*"))
