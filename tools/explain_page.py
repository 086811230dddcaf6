"""The page and the pictures of kapps-explain: each map with its scores below it."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from kapps._files import atomic_write
from kapps.explain.pictures import PERCENTILE, heatmap, overlay
from kapps.tools.explain_images import Pictures
from kapps.tools.explain_methods import UNFAITHFUL, Maps
from kapps.tools.explain_scores import Asked, Explanation, Score, mean
from kapps.tools.page import Card, Section, Table, render
from kapps.tools.pictures import inline
from kapps.tools.runs_page import file_names

_MISSING = "\N{EN DASH}"
_SMALL = 64  # pixels: a JPEG of so few is no smaller, and blurs them

_FACTS = {
    "Deletion": "the area under the class's probability as pixels are removed, those of the "
    "largest values first, 0 to 1: the smaller, the better the map names what the class needs",
    "Insertion": "the same as they appear in a blurred image: the larger, the better",
    "Colors": f"dark is 0, bright the {PERCENTILE:g}th percentile of the map and beyond; a map "
    "that has signs is white at 0, red for the class and blue against it",
}


def write(
    folder: str | os.PathLike[str],
    pictures: Pictures,
    explanation: Explanation,
    class_names: Sequence[str],
    *,
    title: str,
    facts: Mapping[str, str],
    more: Sequence[Section] = (),
    files: Mapping[str, bytes] | None = None,
    verdicts: Mapping[str, tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Writes a PNG a map, and index.html, which has all of them and needs none.

    Args:
        folder: is made if need be; files of the same names are replaced, each as a whole.
        pictures: the images.
        explanation: of them.
        class_names: of the model's classes; empty if they have none.
        title: of the page.
        facts: what else a reader should know: the model, its weights, the layer.
        more: further sections, below.
        files: further files, by name.
        verdicts: of the sanity check, in a word and in a line, by the method's name.

    Returns:
        The figures of each image and class, for JSON.

    Raises:
        InputError: a file cannot be written.
    """
    stems = _stems(pictures, explanation.asked, class_names)
    contents, sections, figures = dict(files or {}), [], []
    for number, (asked, stem) in enumerate(zip(explanation.asked, stems, strict=True)):
        image = pictures.images[asked.image]
        original = _card(image, _about(pictures, explanation, number, class_names))
        cards, rows = [original], {}
        for each in explanation.methods:
            method, score = each.maps.method, each.scores[number]
            name = f"{stem}_{method.name}.png"
            shown = picture_of(image, each.maps, number)
            lines = [method.label, *_told(score), method.source]
            if shown is None:
                cards.append(Card(_message(each.maps.messages[number]), lines))
                rows[method.name] = {"message": each.maps.messages[number]}
                continue
            contents[name] = png(shown)
            cards.append(_card(shown, lines))
            assert score is not None
            rows[method.name] = {**vars(score), "picture": name}
        heading = f"{pictures.names[asked.image]}: {class_name(asked.target, class_names)}"
        sections.append(Section(heading, cards=cards, kind="large"))
        for name, (_, verdict) in (verdicts or {}).items():
            rows[name]["sanity"] = verdict
        figures.append(_figures(pictures, asked, class_names, rows, explanation, number))
    told = {**facts, "Images": str(len(pictures)), **_FACTS}
    for each in explanation.methods:
        if each.maps.method.name in UNFAITHFUL:
            told["Unfaithful"] = (
                f"{each.maps.method.label.partition(' (')[0]}: "
                + (UNFAITHFUL[each.maps.method.name])
            )
    whole = [Section("Methods", _summary(explanation, verdicts or {})), *sections, *more]
    contents["index.html"] = render(title, told, whole).encode()
    for name, content in contents.items():
        with atomic_write(Path(folder) / name) as temporary:
            temporary.write_bytes(content)
    return figures


def picture_of(image: np.ndarray, maps: Maps, number: int) -> np.ndarray | None:
    """A map as its method is shown; None where there is none."""
    heat = maps.maps[number]
    if heat is None:
        return None
    method = maps.method
    if method.alpha == 1:
        return heatmap(heat, (image.shape[0], image.shape[1]), signed=method.is_signed)
    return overlay(image, heat, method.alpha, signed=method.is_signed)


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of (height, width, 3 or 1), uint8."""
    output = io.BytesIO()
    _image(pixels).save(output, "PNG", optimize=True)
    return output.getvalue()


def small_file(pixels: np.ndarray) -> bytes:
    """A JPEG file for a page, or a PNG one of few pixels."""
    if max(pixels.shape[:2]) <= _SMALL:
        return png(pixels)
    output = io.BytesIO()
    _image(pixels).convert("RGB").save(output, "JPEG", quality=90, subsampling=0)
    return output.getvalue()


def class_name(target: int, class_names: Sequence[str]) -> str:
    return class_names[target] if class_names else f"class {target}"


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _card(pixels: np.ndarray, lines: Sequence[str]) -> Card:
    return Card(inline(small_file(pixels), label=lines[0]), lines)


def _message(text: str) -> Markup:
    return Markup('<p class="message">{}</p>').format(text)


def _about(
    pictures: Pictures, explanation: Explanation, number: int, class_names: Sequence[str]
) -> list[str]:
    """What stands below the image itself."""
    asked = explanation.asked[number]
    share = f"{100 * asked.probability:.1f}\N{NO-BREAK SPACE}%"
    lines = [f"{class_name(asked.target, class_names)}: {share}"]
    if not asked.is_predicted:
        lines.append("not the predicted class")
    if pictures.labels is not None:
        label = int(pictures.labels[asked.image])
        lines.append(f"it is {class_name(label, class_names)}")
    references = (
        f"{name}: {_areas(scores[number])}" for name, scores in explanation.references.items()
    )
    return [*lines, *references, "as the network sees it"]


def _told(score: Score | None) -> list[str]:
    if score is None:
        return []
    lines = [_areas(score)]
    if score.pointing is not None:
        lines.append(
            {1.0: "points at the object", 0.0: "points beside the object"}.get(
                score.pointing, f"points at the object by {score.pointing:.2f}"
            )
        )
    return lines


def _areas(score: Score) -> str:
    return f"deletion {score.deletion:.2f}, insertion {score.insertion:.2f}"


def _summary(explanation: Explanation, verdicts: Mapping[str, tuple[str, str]]) -> Table:
    header = ["map", "deletion", "insertion"]
    known = {each.maps.method.label: mean(each.scores) for each in explanation.methods}
    known |= {name: mean(scores) for name, scores in explanation.references.items()}
    has_pointing = any(score and score.pointing is not None for score in known.values())
    header += ["points at the object, %"] * has_pointing
    told = {each.maps.method.label: each.maps.method for each in explanation.methods}
    rows = []
    for name, score in known.items():
        row = [name, *_cells(score, has_pointing)]
        if verdicts:
            row.append(verdicts[told[name].name][0] if name in told else _MISSING)
        rows.append([*row, told[name].source if name in told else "knows nothing of the network"])
    header += ["sanity check"] * bool(verdicts) + ["source"]
    texts = [0, *range(3 + has_pointing, len(header))]
    count = len(explanation.asked)
    caption = f"Means of {count} image{'s' * (count != 1)}."
    if verdicts:
        caption += " Sanity check: see below."
    return Table(header, rows, text_columns=texts, caption=caption)


def _cells(score: Score | None, has_pointing: bool) -> list[str]:
    if score is None:
        return [_MISSING] * (2 + has_pointing)
    pointing = _MISSING if score.pointing is None else f"{100 * score.pointing:.0f}"
    return [f"{score.deletion:.3f}", f"{score.insertion:.3f}", *[pointing] * has_pointing]


def _stems(pictures: Pictures, asked: Sequence[Asked], class_names: Sequence[str]) -> list[str]:
    """What the files of each image and class begin with: letters that every disk takes."""
    of_one = len({each.image for each in asked}) == len(asked)
    names = [
        Path(pictures.names[each.image]).stem
        + ("" if of_one else f"_{class_name(each.target, class_names)}")
        for each in asked
    ]
    return [Path(file).stem for file in file_names(names)]


def _figures(
    pictures: Pictures,
    asked: Asked,
    class_names: Sequence[str],
    methods: Mapping[str, Mapping[str, Any]],
    explanation: Explanation,
    number: int,
) -> dict[str, Any]:
    label = None if pictures.labels is None else int(pictures.labels[asked.image])
    return {
        "image": pictures.names[asked.image],
        "class": asked.target,
        "class_name": class_names[asked.target] if class_names else None,
        "probability": asked.probability,
        "predicted": asked.is_predicted,
        "label": label,
        "methods": methods,
        "references": {
            name: vars(scores[number]) for name, scores in explanation.references.items()
        },
    }
