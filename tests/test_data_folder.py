"""Data sets that are folders of images, and what is wrong with a user's."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from image_folders import SPLITS, image, make_folder
from PIL import Image

import kapps
from kapps.tools import data


def files(source: data.Source) -> set[str]:
    """The paths, below the folder of the data set's classes."""
    return {"/".join(Path(source[i][0].path).parts[-2:]) for i in range(len(source))}


def test_folder_of_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", 20)
    pets = data.load(f"folder:{root}")
    assert pets.class_names == ("cat", "dog")
    sizes = [len(pets.split(s)) for s in SPLITS]
    assert sum(sizes) == 40 and min(sizes) >= 2
    assert f"{sizes[2]} training images are held out for the test" in pets.note
    assert f"{sizes[1]} training images are held out for validation" in pets.note
    for split in SPLITS:
        assert set(data.labels_of(pets.split(split)).tolist()) == {0, 1}
    moved = data.load(f"folder:{shutil.copytree(root, tmp_path / 'elsewhere')}")
    for split in SPLITS:
        assert files(moved.split(split)) == files(pets.split(split))


def test_a_new_name_moves_no_image_and_copies_stay_together(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", 20)
    before = data.load(f"folder:{root}")
    for path in list(root.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy {path.name}"))
        path.rename(path.with_name(f"new {path.name}"))
    after = data.load(f"folder:{root}")
    for split in SPLITS:
        names = {name.replace("/", "/new ") for name in files(before.split(split))}
        names |= {name.replace("/", "/copy ") for name in files(before.split(split))}
        assert files(after.split(split)) == names


def test_long_files_are_told_apart(tmp_path: Path) -> None:
    """Of the same size, and different at the end alone."""
    for i in range(12):
        for name in ("a", "b"):
            pixels = np.zeros((300, 300, 3), np.uint8)
            pixels[0] = 20 * i  # the last row of a BMP is its first
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.bmp")
    loaded = data.load(f"folder:{tmp_path}")
    assert min(len(loaded.split(split)) for split in SPLITS) >= 2


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "VALID", "Testing"), ("TRAIN", "dev", "test")]
)
def test_folder_of_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = tmp_path / "pets"
    for name, images in zip(names, (20, 3, 5), strict=True):
        make_folder(root / name, images)
    whole = data.load(f"folder:{root}")
    assert [len(whole.split(s)) for s in SPLITS] == [40, 6, 10] and not whole.note
    shutil.rmtree(root / names[2])
    held_out = data.load(f"folder:{root}")
    sizes = [len(held_out.split(s)) for s in SPLITS]
    assert sizes[0] + sizes[1] == 40 and sizes[1] >= 2 and sizes[2] == 6
    assert "validation split is the held-out one" in held_out.note


def test_stray_files_are_counted(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    for name in ("readme", "cat/notes.TXT", "cat/boxes.json", "dog/.DS_Store", "dog/Thumbs.db"):
        (root / name).write_text("")
    for name in ("__MACOSX", "cat/@eaDir", "lost+found", ".git"):
        image(root / name / "1.png")
    pets = data.load(f"folder:{root}")
    assert sum(len(pets.split(s)) for s in SPLITS) == 24
    assert f"left out as no image: 9, the first is {root}/" in pets.note
    assert "\n" not in pets.note


def test_nested_classes(tmp_path: Path) -> None:
    root = tmp_path / "world"
    for split in ("train", "test"):
        for name in ("animals/cat", "animals/dog", "cars", "cars/old"):
            make_folder(root / split, 8, (name,))
    world = data.load(f"folder:{root}", nested=True)
    assert world.class_names == ("animals/cat", "animals/dog", "cars", "cars/old")
    assert len(world.test) == 32
    assert Path(world.test[31][0].path).parts[-3:-1] == ("cars", "old") and world.test[31][1] == 3


def test_both_forms_of_an_accent_are_one_class(tmp_path: Path) -> None:
    name = "caf\u00e9"
    for split, form in (("train", "NFC"), ("test", "NFD")):
        make_folder(tmp_path / split, 5, (unicodedata.normalize(form, name), "tea"))
    make_folder(tmp_path / "train", 9, (unicodedata.normalize("NFD", name),))
    loaded = data.load(f"folder:{tmp_path}")
    assert loaded.class_names == (name, "tea")
    labels = [data.labels_of(loaded.split(split)).tolist() for split in SPLITS]
    assert labels[2] == [0] * 5 + [1] * 5
    assert sorted(labels[0] + labels[1]) == [0] * 14 + [1] * 5


def test_classes_without_images_are_warned_of(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", 12)
    make_folder(tmp_path / "val", 4, ("cat",))
    make_folder(tmp_path / "test", 4)
    for name in ("train/fox", "val/dog"):
        (tmp_path / name).mkdir()
    pets = data.load(f"folder:{tmp_path}")
    assert pets.class_names == ("cat", "dog", "fox")
    for missing, split in (("'fox'", "train"), ("'dog', 'fox'", "val"), ("'fox'", "test")):
        assert f"warning: no image of class {missing} in {tmp_path / split}" in pets.note
    image(tmp_path / "test" / "fox" / "1.png")
    with pytest.raises(kapps.InputError, match=f"{tmp_path}/test has images of class 'fox', and "):
        data.load(f"folder:{tmp_path}")


def test_bad_images_can_be_skipped(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    for name in ("cat/a.jpg", "dog/b.tif"):
        (root / name).write_text("<html>")
    pets = data.load(f"folder:{root}", on_bad_image="skip")
    assert sum(len(pets.split(s)) for s in SPLITS) == 24
    assert f"left out as damaged: 2, the first is {root}/cat/a.jpg" in pets.note
    with pytest.raises(kapps.InputError, match="on_bad_image must be 'error' or 'skip'"):
        data.load(f"folder:{root}", on_bad_image="ignore")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = make_folder(tmp_path, classes=("bus", "train"))
    assert data.load(f"folder:{root}").class_names == ("bus", "train")


def test_every_format(tmp_path: Path) -> None:
    for i, suffix in enumerate(data.FORMATS):
        for name in ("red", "blue"):
            image(
                tmp_path / name / f"{i}{suffix.upper()}",
                (250 - i, 0, 0) if name == "red" else (0, 0, 250 - i),
            )
    colors = data.load(f"folder:{tmp_path}")
    for split in SPLITS:
        source = colors.split(split)
        for i in range(len(source)):
            picture, label = source[i]
            pixels = np.asarray(picture)
            assert pixels.shape == (10, 12, 3) and pixels.dtype == np.uint8
            assert abs(int(pixels[5, 6, 0 if label else 2]) - 245) < 20


def test_class_names_are_text(tmp_path: Path) -> None:
    """As folders of a Windows archive are named, and by accident."""
    folders = [b"caf\xe9", b"caf\xea", "th\u00e9".encode(), b"two\nlines"]
    for name in folders:
        for i in range(3):
            image(tmp_path / os.fsdecode(name) / f"{i}.png", (i, 0, 0))
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


def damage_no_images(root: Path) -> str:
    for path in root.rglob("*.png"):
        path.unlink()
    return f"{root} holds no images"


def damage_too_few(root: Path) -> str:
    for path in root.rglob("*.png"):
        path.unlink()
    for name in ("cat", "dog"):
        image(root / name / "one.png")
        image(root / name / "the same.png")
    return "4 training images are too few to hold some out"


def damage_two_of_a_split(root: Path) -> str:
    for path in list(root.iterdir()):
        shutil.rmtree(path)
    for name in ("train", "Val", "dev"):
        make_folder(root / name)
    return f"{root}/Val and {root}/dev are both for validation; remove or rename one"


def damage_other_format(root: Path) -> str:
    (root / "dog" / "phone.HEIC").write_bytes(b"")
    return f"{root}/dog/phone.HEIC: images of this kind are not read; convert it"


def damage_stray_file(root: Path) -> str:
    image(root / "stray.png")
    return f"{root}/stray.png is no folder"


def damage_false_name(root: Path) -> str:
    (root / "dog" / "page.jpg").write_text("<html>")
    return f"{root}/dog/page.jpg is no image"


def damage_empty_file(root: Path) -> str:
    (root / "dog" / "empty.png").write_bytes(b"")
    return f"{root}/dog/empty.png is no image"


def damage_nested(root: Path) -> str:
    image(root / "dog" / "puppies" / "1.png")
    return f"{root}/dog/puppies is a folder in that of a class"


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
