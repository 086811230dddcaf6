"""What kapps-explain shows of the network itself, beside the maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kapps import explain
from kapps._errors import InputError, unknown
from kapps.explain._classifier import Classifier
from kapps.explain.pictures import as_bytes, heatmap
from kapps.tools.explain_images import Pictures
from kapps.tools.explain_page import class_name, png, small_file
from kapps.tools.page import Card, Section, Table
from kapps.tools.pictures import inline

_MOST_CHANNELS = 64  # of a layer, in one picture
_MOST_IMAGES = 4  # whose activations are shown
_SIDE = 224  # pixels that a picture in the page is wide
_CHANNELS, _PATCHES = 6, 9  # whose patches are shown, and how many of each
_MOST_CLASSES = 8  # that are visualized
_RANGE = (0.0, 255.0)  # of the pictures


@dataclass(frozen=True)
class Shown:
    """A section of the page, and the files that hold its pictures, by name."""

    section: Section
    files: dict[str, bytes]


@dataclass(frozen=True)
class Given:
    """What a section is made of.

    Attributes:
        model: the user's.
        pictures: those that are explained.
        targets: the classes that are explained, each once.
        layer: the one that was asked for, or None.
        class_names: of the model's classes, or empty.
        many: reads images of a data set; None where there is none.
    """

    model: keras.Model
    pictures: Pictures
    targets: Sequence[int]
    layer: str | None
    class_names: Sequence[str]
    many: Callable[[], Pictures] | None


def show(name: str, given: Given, *, required: bool) -> Shown:
    """The section of that name; where it cannot be made, what it takes is told in its place.

    Raises:
        InputError: it cannot be made, and was asked for by name.
    """
    try:
        return _SECTIONS[name](given)
    except InputError as error:
        if required:
            raise
        return Shown(Section(name.capitalize(), note=str(error)), {})


def chosen(names: Sequence[str]) -> list[str]:
    """The names, checked; "all" stands for all of them, "none" for none.

    Raises:
        InputError: there is no such section.
    """
    if list(names) == ["all"]:
        return list(_SECTIONS)
    if list(names) == ["none"]:
        return []
    for name in names:
        if name not in _SECTIONS:
            raise unknown("section", name, [*_SECTIONS, "all", "none"])
    return list(dict.fromkeys(names))


def _filters(given: Given) -> Shown:
    kernels = explain.filters(given.model)[:_MOST_CHANNELS]
    return _shown(
        "Filters of the first convolution",
        {"filters.png": _enlarged(explain.grid(kernels, gap=1, value=0))},
        ["gray is a weight of 0; each filter is scaled by its largest weight"],
    )


def _activations(given: Given) -> Shown:
    net = Classifier(given.model, "kapps-explain")
    at = net.features() if given.layer is None else net.map(given.layer)
    images = given.pictures.images[:_MOST_IMAGES]
    maps = explain.activations(given.model, images, given.layer)
    most = np.abs(maps).max(axis=(0, 1, 2))
    strongest = np.argsort(-most, kind="stable")[:_MOST_CHANNELS]
    files = {}
    for i, one in enumerate(maps):
        # Each channel by itself: one is often many times as strong as another.
        channels = [heatmap(one[..., c]) if one[..., c].any() else _dark(one) for c in strongest]
        name = f"activations_{i + 1}.png"
        files[name] = _enlarged(explain.grid(channels, gap=1, value=127))
    told = (
        f"the {len(strongest)} strongest of {maps.shape[-1]} channels; dark is 0, or white where "
        "some are below"
    )
    return _shown(f"Activations of {net.name_of(at)}", files, [told], given.pictures.names)


def _patches(given: Given) -> Shown:
    net, many = Classifier(given.model, "kapps-explain"), _many(given, "patches")
    layers = _last_of_each_size(net)
    layer = given.layer or layers[len(layers) // 2]
    seen = explain.activations(given.model, given.pictures.images, layer).max(axis=(1, 2))
    strongest = np.argsort(-seen.mean(axis=0), kind="stable")[:_CHANNELS]
    files, names = {}, []
    for channel in map(int, strongest):
        found = explain.top_patches(
            given.model, many.images, layer, channel, count=_PATCHES, padding=127
        )
        files[f"patches_{channel}.png"] = _enlarged(
            explain.grid([patch.pixels for patch in found], value=127)
        )
        names.append(f"channel {channel}: {found[0].activation:.3g} at most")
    told = f"what excites it most in {len(many)} images, as far as the unit sees"
    return _shown(f"Patches that excite {layer}", files, [told], names)


def _map(given: Given) -> Shown:
    many = _many(given, "map")
    places = explain.feature_map(given.model, many.images, given.layer)
    pixels = as_bytes(explain.scatter(many.images, places))
    drawn = np.flatnonzero((pixels < 255).any(axis=(1, 2)))
    pixels = pixels[drawn[0] : drawn[-1] + 1]  # without the white above and below
    told = f"{len(many)} images, each where those are that the network takes for alike (t-SNE)"
    picture = inline(small_file(pixels), label=f"Map of features: {told}")
    section = Section("Map of features", picture=picture, note=told)
    return Shown(section, {"feature_map.png": png(pixels)})


def _classes(given: Given) -> Shown:
    targets = list(given.targets[:_MOST_CLASSES])
    found = explain.class_visualization(given.model, targets, bounds=_RANGE)
    logits = Classifier(given.model, "kapps-explain").predict(found)
    files, names = {}, []
    for target, image, row in zip(targets, found, logits, strict=True):
        files[f"class_{target}.png"] = _enlarged(image)
        names.append(f"{class_name(target, given.class_names)}: logit {row[target]:.1f}")
    return _shown("What raises a class most", files, ["by gradient ascent"], names)


def _inversion(given: Given) -> Shown:
    net, image = Classifier(given.model, "kapps-explain"), given.pictures.images[0]
    layers = [given.layer] if given.layer else _last_of_each_size(net)
    found = explain.reconstructions(given.model, image, layers, bounds=_RANGE)
    decibels = explain.psnr(found, image[None])
    files = {f"inversion_{i + 1}.png": _enlarged(each) for i, each in enumerate(found)}
    names = [f"{layer}: {db:.1f} dB" for layer, db in zip(layers, decibels, strict=True)]
    told = "an image whose map there is the same, and its PSNR to the image"
    return _shown(f"What is left of {given.pictures.names[0]} by depth", files, [told], names)


def _lesions(given: Given) -> Shown:
    many = _many(given, "lesions")
    found = explain.lesions(given.model, many.images, many.labels)
    rows = [
        [each.name, f"{each.loss:.3f}", f"{each.loss_rise:+.3f}", f"{100 * each.accuracy:.1f}"]
        for each in found
    ]
    intact = found[0]
    caption = (
        f"Each block removed in turn, {len(many)} images. The intact network: loss "
        f"{intact.intact_loss:.3f} nats, top-1 {100 * intact.intact_accuracy:.1f} %."
    )
    header = ("without", "loss", "rise", "top-1, %")
    return Shown(Section("Lesions", Table(header, rows, text_columns=(0,), caption=caption)), {})


def _many(given: Given, name: str) -> Pictures:
    if given.many is None:
        raise no_data_set(name)
    return given.many()


def no_data_set(name: str) -> InputError:
    return InputError(f"--sections: {name} is drawn from a data set: give --dataset as well")


def _last_of_each_size(net: Classifier) -> list[str]:
    """The layers that make the last map of each height and width, by depth."""
    return list({call.outputs[0].shape[1:3]: call.name for call in net.maps}.values())


def _dark(one: np.ndarray) -> np.ndarray:
    """A channel that is 0 everywhere, which is what it shows."""
    return np.zeros((*one.shape[:2], 3), np.uint8)


def _enlarged(picture: np.ndarray) -> np.ndarray:
    """By a whole number of times, to about the width of a picture in the page."""
    times = max(1, _SIDE // max(picture.shape[:2]))
    return as_bytes(picture).repeat(times, axis=0).repeat(times, axis=1)


def _shown(
    heading: str,
    pictures: dict[str, np.ndarray],
    lines: Sequence[str],
    names: Sequence[str] = (),
) -> Shown:
    """A card a picture, each with its name, if it has one, and the lines."""
    cards = []
    for i, pixels in enumerate(pictures.values()):
        told = [*names[i : i + 1], *lines]
        cards.append(Card(inline(small_file(pixels), label=f"{heading}: {told[0]}"), told))
    section = Section(heading, cards=cards, kind="large")
    return Shown(section, {file: png(pixels) for file, pixels in pictures.items()})


_SECTIONS: dict[str, Callable[[Given], Shown]] = {
    "filters": _filters,
    "activations": _activations,
    "patches": _patches,
    "map": _map,
    "classes": _classes,
    "inversion": _inversion,
    "lesions": _lesions,
}
NAMES = tuple(_SECTIONS)
DEFAULT = ("filters", "activations")
OF_MANY = ("patches", "map", "lesions")
"""Those that look at a data set."""
