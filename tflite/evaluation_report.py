"""A page on what a classifier gets wrong: classes, confusion matrix, and the worst mistakes."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path

import numpy as np
from PIL import Image

from kapps._errors import one_line
from kapps._files import atomic_write
from kapps.tflite.class_figures import (
    ClassFigures,
    Mistake,
    check,
    class_figures,
    confusions,
    scores,
    worst_mistakes,
)
from kapps.tflite.confusion_picture import confusion_png
from kapps.tools.json_files import write_json
from kapps.tools.page import Card, Section, Table, render
from kapps.tools.pictures import inline

_MISSING = "\N{EN DASH}"
_MOST_MISTAKES = 32  # with their images
_MOST_PAIRS = 20  # of classes that are mixed up
_THUMBNAIL = 160  # height or width, pixels, as the page shows it
_SMALL = 64  # pixels: a JPEG of so few is no smaller, and blurs them


def report(
    probabilities: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    thumbnails: Callable[[int], Image.Image],
    names: Callable[[int], str],
    folder: str | os.PathLike[str],
    *,
    title: str = "Evaluation",
    facts: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes classes.csv, report.json, confusion.png and index.html, and returns their paths.

    Args:
        probabilities: of each image, (n, classes).
        labels: the classes that the images are of, (n,) from 0.
        class_names: of the classes.
        thumbnails: the image of an index, of any size, for the page.
        names: what the image of an index is called, such as its file.
        folder: where the report goes; it is made if need be.
        title: of the page.
        facts: what else the reader should know (data set, weights ...), a line each.

    Raises:
        InputError: no images, probabilities that do not fit the labels and the names or are no
            numbers, or the folder cannot be written.
    """
    check(probabilities, labels, len(class_names))
    folder, predicted = Path(folder), probabilities.argmax(axis=1)
    whole = scores(probabilities, labels)
    classes = class_figures(predicted, labels, class_names)
    pairs = confusions(predicted, labels, len(class_names))
    mistakes = worst_mistakes(probabilities, labels, _MOST_MISTAKES)
    matrix = confusion_png(predicted, labels, class_names)
    wrong = int((predicted != labels).sum())
    told = {
        **(facts or {}),
        "Images": f"{whole.images:,}, of which {wrong:,} are taken for another class",
        "Top-1, top-5": f"{_percent(whole.top1)} %, {_percent(whole.top5)} %",
        "Loss": f"{whole.loss:.4f} nats, the mean cross-entropy",
    }
    label = f"Confusion matrix of {len(class_names)} classes"
    sections = [Section("Confusion", picture=inline(matrix, label=label))]
    if mistakes:
        cards = [_card(mistake, class_names, thumbnails, names) for mistake in mistakes]
        sections.append(Section("Worst mistakes", cards=cards))
        sections.append(Section("Most frequent confusions", _pair_table(pairs, class_names)))
    sections.append(Section("Classes", _class_table(classes)))
    values = {
        "title": title,
        **asdict(whole),
        "classes": [asdict(figures) for figures in classes],
        "confusions": [
            {"true": class_names[t], "predicted": class_names[p], "images": n}
            for t, p, n in pairs.tolist()
        ],
        "mistakes": [_values(mistake, class_names, names) for mistake in mistakes],
    }
    contents = {
        "classes.csv": _csv(classes).encode(),
        "confusion.png": matrix,
        "index.html": render(title, told, sections).encode(),
    }
    for name, content in contents.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
    write_json(folder / "report.json", values)
    return [folder / name for name in (*contents, "report.json")]


def _csv(classes: Sequence[ClassFigures]) -> str:
    """A line a class; what is None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(ClassFigures))
    writer.writerows(map(astuple, classes))
    return text.getvalue()


def _values(
    mistake: Mistake, class_names: Sequence[str], names: Callable[[int], str]
) -> dict[str, object]:
    truth, predicted = class_names[mistake.truth], class_names[mistake.predicted]
    return {
        **asdict(mistake),
        "name": names(mistake.index),
        "truth": truth,
        "predicted": predicted,
    }


def _card(
    mistake: Mistake,
    class_names: Sequence[str],
    thumbnails: Callable[[int], Image.Image],
    names: Callable[[int], str],
) -> Card:
    truth, predicted = class_names[mistake.truth], class_names[mistake.predicted]
    image = thumbnails(mistake.index).convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "PNG" if max(image.size) <= _SMALL else "JPEG", quality=85)
    return Card(
        inline(data.getvalue(), label=f"{truth}, taken for {predicted}"),
        (
            f"{truth}: {_percent(mistake.true_probability)}\N{NO-BREAK SPACE}%",
            f"taken for {predicted}: {_percent(mistake.probability)}\N{NO-BREAK SPACE}%",
            one_line(names(mistake.index)),
        ),
    )


def _pair_table(pairs: np.ndarray, class_names: Sequence[str]) -> Table:
    return Table(
        ("true", "taken for", "images"),
        [[class_names[t], class_names[p], f"{n:,}"] for t, p, n in pairs[:_MOST_PAIRS].tolist()],
        text_columns=(0, 1),
        caption=f"{min(len(pairs), _MOST_PAIRS)} of {len(pairs):,}.",
    )


def _class_table(classes: Sequence[ClassFigures]) -> Table:
    worst_first = sorted(classes, key=lambda c: (c.f1 is None, c.f1))
    rows = [
        [
            c.name,
            f"{c.images:,}",
            *(_MISSING if s is None else _percent(s) for s in (c.precision, c.recall, c.f1)),
            _MISSING if c.taken_for is None else f"{c.taken_for} ({c.taken_for_images:,})",
        ]
        for c in worst_first
    ]
    header = ("class", "images", "precision, %", "recall, %", "F1, %", "most often taken for")
    caption = (
        "The lowest F1 first. Precision: of the images that were taken for the class, how many are "
        f"of it. Recall: of its images, how many were found. {_MISSING}: a share of no images."
    )
    return Table(header, rows, text_columns=(0, 5), caption=caption)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
