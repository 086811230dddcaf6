"""Folders of images: classes are sub-folders, below a folder for each split or without."""

from __future__ import annotations

import collections
import dataclasses
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from kapps._errors import InputError
from kapps.tools.data.files import digest, fault, in_threads
from kapps.tools.data.images import FORMATS, ImageFile
from kapps.tools.data.sources import Dataset, Source, without_images
from kapps.tools.data.splits import Split, by_content, complete

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# Hidden files and folders beside these.
_STRAY_FOLDERS = ("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information")
# Images that a data set would silently lack if they were taken for notes.
_OTHER_IMAGES = (
    *(".arw", ".avif", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".orf"),
    *(".pbm", ".pgm", ".ppm", ".psd", ".svg", ".tga"),
)
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # controls, lone surrogates, ends of lines and of paragraphs


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Image files of any of `FORMATS`."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[ImageFile, int]:
        return ImageFile(self.paths[index]), self.labels[index]


@dataclasses.dataclass
class _LeftOut:
    """What was skipped: how many, and the first."""

    count: int = 0
    first: str = ""

    def add(self, path: Path) -> None:
        self.first = self.first or os.fspath(path)
        self.count += 1

    def note(self, what: str) -> list[str]:
        if not self.count:
            return []
        return [f"left out as {what}: {self.count}, the first is {self.first}"]


def load_folder(path: str, *, nested: bool = False, skip_bad: bool = False) -> Dataset:
    """A folder of images, of any of `FORMATS`.

    Split folders are named train or training; val, valid, validation or dev; test or testing, in
    any case. Without them, or without validation or test, images are held out by their content:
    see `by_content`.

    A file that is no image by its name is skipped, and counted in the note; so are hidden ones, and
    folders that systems leave. Names that differ in their Unicode form alone are one class.

    Args:
        path: of the folder.
        nested: whether every folder with images is a class, named by its path: "animals/cat".
        skip_bad: whether to leave out, and count, files that are images by their name alone.

    Raises:
        InputError: there is no such folder, or it holds something else; what, the message says.
    """
    root = Path(path)
    if not path or not root.is_dir():
        raise InputError(f"dataset 'folder:{path}': there is no folder {path or '(empty path)'}")
    stray, bad = _LeftOut(), _LeftOut()
    folders = _split_folders(root) or {"train": root}
    found = {split: _classes(folder, nested, stray) for split, folder in folders.items()}
    names = _class_names(folders["train"], found["train"])
    sources: dict[str, FileSource] = {}
    notes = []
    for split, classes in found.items():
        source = _source(folders[split], classes, names, skip_bad, bad)
        missing = without_images(source.labels, names)
        if missing:
            notes.append(f"warning: no image of class {missing} in {folders[split]}")
        sources[split] = source
    _check_learned(folders, sources, names)
    notes += stray.note("no image") + bad.note("damaged")
    train = sources["train"]

    def divide(validation: bool, test: bool) -> Split:
        digests = in_threads(digest, train.paths)
        return by_content(train.labels, digests, validation=validation, test=test)

    splits: dict[str, Source] = dict(sources)
    return complete(f"folder:{path}", names, splits, divide, notes)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; none if the folder holds classes."""
    folders: dict[str, Path] = {}
    for child in _children(root, _LeftOut()):
        if not child.is_dir():
            continue
        split = next((s for s, names in _SPLITS.items() if child.name.lower() in names), None)
        if split is None:
            return {}  # classes, of which one may be called "train"
        if split in folders:
            raise InputError(
                f"{folders[split]} and {child} are both for {split}; remove or rename one"
            )
        folders[split] = child
    return folders if "train" in folders else {}


def _children(folder: Path, stray: _LeftOut) -> list[Path]:
    """The entries of a folder that may be of the data set, sorted by name."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    kept = []
    for entry in entries:
        if entry.name.startswith("."):
            stray.add(entry)
        elif entry.is_dir():
            if entry.name.lower() in _STRAY_FOLDERS:
                stray.add(entry)
            else:
                kept.append(entry)
        elif entry.suffix.lower() in FORMATS:
            kept.append(entry)
        elif entry.suffix.lower() in _OTHER_IMAGES:
            raise InputError(
                f"{entry}: images of this kind are not read; convert it to PNG or JPEG, or remove "
                "it"
            )
        else:
            stray.add(entry)
    return kept


def _classes(folder: Path, nested: bool, stray: _LeftOut) -> dict[str, list[Path]]:
    """The files of each class, by name, in order."""
    children = _children(folder, stray)
    if not children:
        raise InputError(f"{folder} is empty; it needs one sub-folder of images for each class")
    classes: dict[str, list[Path]] = collections.defaultdict(list)
    for child in children:
        if not child.is_dir():
            raise InputError(
                f"{child} is no folder; {folder} needs one sub-folder of images for each class"
            )
        if nested:
            _collect(child, _normal(child.name), classes, stray)
            continue
        files = classes[_normal(child.name)]
        for file in _children(child, stray):
            if file.is_dir():
                raise InputError(
                    f"{file} is a folder in that of a class; move its images up, or take nested "
                    "classes (--nested)"
                )
            files.append(file)
    if not any(classes.values()):
        raise InputError(f"{folder} holds no images; put those of each class into its sub-folder")
    return dict(sorted(classes.items()))


def _collect(folder: Path, name: str, classes: dict[str, list[Path]], stray: _LeftOut) -> None:
    """Adds what lies in a folder, and in those below, to the classes named by their paths."""
    for child in _children(folder, stray):
        if child.is_dir():
            _collect(child, f"{name}/{_normal(child.name)}", classes, stray)
        else:
            classes[name].append(child)


def _normal(name: str) -> str:
    """macOS takes names apart (e and an accent), other systems do not."""
    return unicodedata.normalize("NFC", name)


def _class_names(folder: Path, classes: Iterable[str]) -> tuple[str, ...]:
    names = tuple(map(label, classes))
    if len(names) < 2:
        raise InputError(f"{folder} has a single class, {names[0]!r}; two are the least")
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise InputError(f"{folder} has {count} folders for the class {name!r}; rename one")
    return names


def label(name: str) -> str:
    r"""The name of a folder as that of a class: one line of valid text.

    Bytes that are no UTF-8 (of an archive from another system) and control characters are written
    as Python escapes them, caf\xe9, so that different folders have different names. All else stays.
    """

    def escaped(c: str) -> str:
        if "\udc80" <= c <= "\udcff":  # how Python keeps a byte: PEP 383
            return f"\\x{ord(c) - 0xDC00:02x}"
        return c.encode("unicode_escape").decode() if unicodedata.category(c) in _NO_TEXT else c

    return "".join(map(escaped, name))


def _source(
    folder: Path,
    classes: dict[str, list[Path]],
    names: Sequence[str],
    skip_bad: bool,
    bad: _LeftOut,
) -> FileSource:
    numbers = {name: i for i, name in enumerate(names)}
    labeled = []
    for name, files in classes.items():
        if label(name) not in numbers:
            raise InputError(f"{folder / name} is none of the classes: {', '.join(names[:8])}")
        labeled += [(os.fspath(file), numbers[label(name)]) for file in files]
    faults = in_threads(fault, [file for file, _ in labeled])
    kept = []
    for (file, number), error in zip(labeled, faults, strict=True):
        if error is None:
            kept.append((file, number))
        elif skip_bad:
            bad.add(Path(file))
        else:
            raise error
    if not kept:
        raise InputError(f"{folder} holds no sound images; replace them")
    paths, labels = zip(*kept, strict=True)
    return FileSource(paths, labels)


def _check_learned(
    folders: dict[str, Path], sources: dict[str, FileSource], names: Sequence[str]
) -> None:
    """Refuses a class that is asked for and never shown."""
    learned = set(sources["train"].labels)
    for split, source in sources.items():
        for number in sorted(set(source.labels) - learned):
            raise InputError(
                f"{folders[split]} has images of class {names[number]!r}, and {folders['train']} "
                "has none; add some, or remove the class"
            )
