"""The confusion matrix as a picture, of two classes or of thousands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kapps._errors import one_line
from kapps.tools.pictures import COLORS, Inks, png

_WITH_COUNTS = 20  # classes at most
_WITH_NAMES = 60
_MOST_CELLS = 1000  # a side; of more classes each is several neighbors together
_MOST_NAME = 24  # characters
_DOT = 2.2  # points, the least width that is easily seen
_RIGHT, _WRONG = COLORS[0], COLORS[1]


def confusion_png(predicted: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> bytes:
    """A row for each true class and a column for each predicted one; a PNG file.

    The darker, the larger the share of the row's images. Up to 20 classes the cells have their
    counts, up to 60 the rows and columns their names, beyond that the classes' numbers.

    Args:
        predicted: class indices, (n,).
        labels: the true ones, (n,).
        class_names: of all classes.
    """
    classes = len(class_names)
    block = -(-classes // _MOST_CELLS)
    cells = -(-classes // block)
    counts = np.bincount(labels // block * cells + predicted // block, minlength=cells * cells)
    counts = counts.reshape(cells, cells)
    strengths = _strengths(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    side = max(3.5, 0.45 * cells) if cells <= _WITH_COUNTS else 9.0  # inches

    def draw(figure: Any, inks: Inks) -> None:
        axes, key = figure.subplots(1, 2, width_ratios=(side, 0.4))
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.spines[:].set_visible(True)
        if cells > _WITH_NAMES:
            _draw_dots(axes, strengths, block)
        else:
            axes.imshow(_colors(strengths))
            _name(axes, class_names)
        if cells <= _WITH_COUNTS:
            _write_counts(axes, counts, strengths, inks)
        _draw_key(key)

    return png(draw, (side + 1.5, side + 0.8))


def _strengths(shares: np.ndarray) -> np.ndarray:
    """How strong their colors are, 0 to 1: by the root, so that one image of a hundred is seen."""
    return np.where(shares > 0, 0.15 + 0.85 * np.sqrt(shares), 0)


def _colors(strengths: np.ndarray) -> np.ndarray:
    """(rows, columns, 3) in 0..1."""
    from matplotlib.colors import to_rgb

    right = np.eye(len(strengths), dtype=bool)[..., None]
    full = np.where(right, to_rgb(_RIGHT), to_rgb(_WRONG))
    return 1 - strengths[..., None] * (1 - full)


def _draw_dots(axes: Any, strengths: np.ndarray, block: int) -> None:
    """Squares that can be seen, where cells would be a pixel; the strong above the weak."""
    row, column = strengths.nonzero()
    order = np.argsort(strengths[row, column], kind="stable")
    row, column = row[order], column[order]
    width_points = max(72 * 8.0 / len(strengths), _DOT)
    axes.scatter(
        *(block * column, block * row),
        c=_colors(strengths)[row, column],
        s=width_points**2,
        marker="s",
        linewidths=0,
        clip_on=False,
    )
    ends = (-0.5 * block, (len(strengths) - 0.5) * block)
    axes.set(xlim=ends, ylim=ends[::-1], aspect="equal")


def _name(axes: Any, class_names: Sequence[str]) -> None:
    """The classes at the rows and columns, and lines between these."""
    texts = [one_line(name, _MOST_NAME) for name in class_names]
    size = 11 if len(texts) <= _WITH_COUNTS else 8
    upright = max(map(len, texts)) > 3
    axes.set_xticks(range(len(texts)), texts, rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(range(len(texts)), texts, fontsize=size)
    between = np.arange(1, len(texts)) - 0.5
    axes.set_xticks(between, minor=True)
    axes.set_yticks(between, minor=True)
    axes.tick_params(which="both", length=0)
    axes.grid(which="minor")


def _write_counts(axes: Any, counts: np.ndarray, strengths: np.ndarray, inks: Inks) -> None:
    for row, column in np.argwhere(counts):
        axes.text(
            *(column, row, f"{counts[row, column]}"),
            ha="center",
            va="center",
            color="white" if strengths[row, column] > 0.65 else inks.text,
            fontsize=10 if counts[row, column] < 10_000 else 7,
        )


def _draw_key(axes: Any) -> None:
    """A scale of both colors, on which the shares are where their colors are."""
    from matplotlib.colors import to_rgb

    strengths = np.linspace(0, 1, 256)[:, None, None]
    both = 1 - strengths * (1 - np.array([to_rgb(_RIGHT), to_rgb(_WRONG)]))
    axes.imshow(both, aspect="auto", origin="lower", extent=(0, 2, 0, 1), interpolation="nearest")
    axes.set(box_aspect=5, anchor="S")
    percents = np.array([0, 1, 5, 20, 50, 100])
    axes.set_yticks(_strengths(percents / 100), [f"{percent} %" for percent in percents])
    axes.set_xticks([0.5, 1.5], ["right", "wrong"], rotation=90)
    axes.yaxis.tick_right()
    axes.tick_params(length=0, labelsize=9)
    axes.set_title("of the row", fontsize=9, loc="left")
