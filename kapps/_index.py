"""Which weights are published for which builder: the table `weights_index.csv`, made by
tests/make_weights_index.py.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources

from kapps._errors import InputError
from kapps._registry import get_builder


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """One published file of weights, and what its publisher says of it."""

    builder: str
    tag: str
    """What `weights` takes."""
    default: bool
    """Whether `weights="imagenet"` means this one: never one for non-commercial use only."""
    source: str
    """"timm/..." on the Hugging Face hub, or the name of a .pth file of torchvision."""
    license: str
    """As the publisher gives it, such as "apache-2.0" or "cc-by-nc-4.0" (not for commerce)."""
    classes: int
    size: int
    """Height and width of the images that `top1` was measured with, pixels."""
    crop: float
    """The share of the resized image's side that is kept: it is resized to size / crop."""
    top1: float | None
    """Top-1 accuracy on ImageNet's validation set, per cent; None if it has no such classes."""
    test_size: int | None
    """Of a second, mostly larger evaluation, where there is one; its crop and accuracy follow."""
    test_crop: float | None
    test_top1: float | None
    crop_mode: str
    """"center" keeps the aspect ratio, "squash" does not."""
    interpolation: str
    mean: tuple[float, ...]
    """The input's normalization, RGB in 0..1."""
    std: tuple[float, ...]

    def __str__(self) -> str:
        def result(size: int | None, crop: float | None, top1: float | None) -> str:
            accuracy = "" if top1 is None else f": {top1:.2f} %"
            return f"{size} px, crop {crop or self.crop}{accuracy}"

        text = f"{self.tag} ({self.license}; {self.classes} classes; "
        text += result(self.size, self.crop, self.top1)
        if self.test_size is not None:
            text += "; " + result(self.test_size, self.test_crop, self.test_top1)
        return text + (") imagenet" if self.default else ")")

    @property
    def file_name(self) -> str:
        """The name under which the file is recognized when its path is given."""
        hub, _, name = self.source.rpartition("/")
        return f"{name}.safetensors" if hub else name


def list_weights(builder: str) -> list[PublishedWeights]:
    """The weights that are published for a builder, the default of `weights="imagenet"` first.

        for weights in kapps.list_weights("ResNet50"):
            print(weights.tag, weights.license, weights.top1)

    Each has the fields tag, license, size and test_size (pixels), crop and test_crop, top1 and
    test_top1 (per cent), and how the images of the evaluation are prepared. Weights whose licence
    excludes commercial use ("cc-by-nc-4.0") are listed, and are loaded only by their tag. The list
    is empty where nobody has published weights.

    Raises:
        InputError: there is no such builder.
    """
    rows = published(builder)
    if not rows:
        get_builder(builder)  # raises what is to be said of an unknown name
    return rows


def find(builder: str, tag: str) -> PublishedWeights:
    """The weights of that tag, or the builder's default ones for "imagenet".

    Raises:
        InputError: there are none.
    """
    rows = _index().get(builder, [])
    for row in rows:
        if row.tag == tag or (row.default and tag == "imagenet"):
            return row
    file = "give the path of a file, .safetensors or .pth or .weights.h5, or None for random ones"
    if not rows:
        raise InputError(f"no weights are published for {builder}, not {tag!r} either; {file}")
    tags = ", ".join((["imagenet"] if rows[0].default else []) + [row.tag for row in rows])
    raise InputError(f"{builder} has no published weights {tag!r}; there are: {tags}; or {file}")


def published(builder: str) -> list[PublishedWeights]:
    """As `list_weights`, and empty for a name that is no builder's."""
    return list(_index().get(builder, []))


def builders() -> list[str]:
    """The builders that weights are published for."""
    return sorted(_index())


def find_file(name: str) -> PublishedWeights | None:
    """The published weights whose file has this name."""
    return next((row for rows in _index().values() for row in rows if row.file_name == name), None)


@functools.cache
def _index() -> dict[str, list[PublishedWeights]]:
    table: dict[str, list[PublishedWeights]] = {}
    text = (importlib.resources.files("kapps") / "weights_index.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        table.setdefault(row["builder"], []).append(
            PublishedWeights(
                builder=row["builder"],
                tag=row["tag"],
                default=row["default"] == "yes",
                source=row["source"],
                license=row["license"],
                classes=int(row["classes"]),
                size=int(row["size"]),
                crop=float(row["crop"]),
                top1=float(row["top1"]) if row["top1"] else None,
                test_size=int(row["test_size"]) if row["test_size"] else None,
                test_crop=float(row["test_crop"]) if row["test_crop"] else None,
                test_top1=float(row["test_top1"]) if row["test_top1"] else None,
                crop_mode=row["crop_mode"],
                interpolation=row["interpolation"],
                mean=tuple(map(float, row["mean"].split())),
                std=tuple(map(float, row["std"].split())),
            )
        )
    return table
