"""The curves of training runs: loss, top-1, learning rate and speed over the epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kapps._errors import one_line
from kapps.tools.history import Figures, History, column
from kapps.tools.pictures import COLORS, MARKERS, Draw, Inks

_MOST_POINTS = 400  # of a line; neighbors are averaged to them
_MOST_NAME = 36  # characters in a legend
_MARKS = 8  # on a line that is told apart by its markers
_IN_A_ROW = 2  # names of runs
_WIDTH, _HEIGHT, _LEGEND_ROW = 10.0, 6.2, 0.27  # inches


class Picture(NamedTuple):
    """What `kapps.tools.pictures` draws, and its size in inches."""

    draw: Draw
    size: tuple[float, float]


class _Panel(NamedTuple):
    title: str
    ending: str
    """Of the names of its figures: "_loss" is that of several kinds, such as "train"."""
    scale: float = 1.0


_PANELS = (
    _Panel("Loss, nats", "_loss"),
    _Panel("Top-1, %", "_top1", 100.0),
    _Panel("Learning rate", "learning_rate"),
    _Panel("Training, images/s", "images_per_second"),
)


class _Line(NamedTuple):
    """The points, (2, n), of a figure by epochs and by steps; there may be none of one of them.

    What has a single kind is the same in both, and is all in the first.
    """

    kind: str
    """"train", "validation" and the like; "" of what has a single one."""
    epochs: np.ndarray
    steps: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """Those that tell most: averages over epochs, if there are any."""
        return self.epochs if self.epochs.size else self.steps


_Look = Mapping[str, Any]
"""What matplotlib calls the properties of a line."""
_Curves = Callable[[_Panel], Iterator[tuple[np.ndarray, _Look]]]


def alone(history: History) -> Picture:
    """One run: the course by steps is pale where there is one by epochs as well."""
    kinds = ["train", "validation", "average"]  # these always have the same color
    kinds += sorted(_kinds([history]) - {*kinds})
    color = {kind: COLORS[index % len(COLORS)] for index, kind in enumerate(kinds)}

    def curves(panel: _Panel) -> Iterator[tuple[np.ndarray, _Look]]:
        for line in _lines(history, panel):
            look = {"color": color[line.kind or "train"]}
            if line.best is not line.steps:
                yield line.steps, {**look, "linewidth": 1, "alpha": 0.5}
            yield line.best, look

    found = _kinds([history])
    return _picture(curves, [], [(kind, {"color": color[kind]}) for kind in kinds if kind in found])


def together(names: Sequence[str], histories: Sequence[History]) -> Picture:
    """Several runs: each has a color, and training, validation and the rest have their lines."""
    styles = {"": "-", "validation": "-", "train": "--"}

    def look(index: int) -> _Look:
        row, place = divmod(index, len(COLORS))
        marker = MARKERS[(row - 1) % len(MARKERS)] if row else ""
        return {"color": COLORS[place], "marker": marker, "markersize": 5}

    def curves(panel: _Panel) -> Iterator[tuple[np.ndarray, _Look]]:
        for index, history in enumerate(histories):
            for line in _lines(history, panel):
                width = 1.8 if line.kind in ("", "validation") else 1.2
                style = styles.get(line.kind, ":")
                yield line.best, {**look(index), "linestyle": style, "linewidth": width}

    kinds = [(kind, {"linestyle": styles.get(kind, ":")}) for kind in sorted(_kinds(histories))]
    return _picture(curves, [(name, look(index)) for index, name in enumerate(names)], kinds)


def _kinds(histories: Sequence[History]) -> set[str]:
    """All that have a name: "train", "validation" and the like."""
    lines = (line for h in histories for panel in _PANELS for line in _lines(h, panel))
    return {line.kind for line in lines} - {""}


def _lines(history: History, panel: _Panel) -> list[_Line]:
    """What a run tells of a panel's figures."""
    by = (history.epochs, history.steps)
    names = {name: None for lines in by for line in lines for name in line}
    kinds = [name.removesuffix(panel.ending) for name in names if name.endswith(panel.ending)]
    found = []
    for kind in kinds:
        epochs, steps = (_points(lines, kind + panel.ending, panel.scale) for lines in by)
        if not kind:
            both = np.concatenate([epochs, steps], axis=1)
            epochs, steps = both[:, both[0].argsort(kind="stable")], both[:, :0]
        if epochs.size or steps.size:
            found.append(_Line(kind, epochs, steps))
    return found


def _points(lines: Sequence[Figures], name: str, scale: float) -> np.ndarray:
    """(2, n): epochs and values, `_MOST_POINTS` at most."""
    points = np.stack([column(lines, "epoch"), scale * column(lines, name)])
    points = points[:, np.isfinite(points).all(axis=0)]
    if points.shape[1] <= _MOST_POINTS:
        return points
    parts = np.array_split(points, _MOST_POINTS, axis=1)
    return np.stack([part.mean(axis=1) for part in parts], axis=1)


def _picture(
    curves: _Curves,
    runs: Sequence[tuple[str, _Look]],
    kinds: Sequence[tuple[str, _Look]],
) -> Picture:
    """The panels, below the names of the runs (left) and of the kinds of lines (right)."""

    def draw(figure: Any, inks: Inks) -> None:
        for side, names, columns in (("left", runs, _IN_A_ROW), ("right", kinds, 1 if runs else 9)):
            _draw_legend(figure, names, inks, loc=f"outside upper {side}", ncols=columns)
        axes = figure.subplots(2, 2, sharex=True)
        for panel, place in zip(_PANELS, axes.flat, strict=True):
            _draw_panel(place, panel, list(curves(panel)), inks)
        for place in axes[1]:
            place.set_xlabel("epoch")

    rows = max(math.ceil(len(runs) / _IN_A_ROW), len(kinds)) if runs else 1
    return Picture(draw, (_WIDTH, _HEIGHT + _LEGEND_ROW * rows))


def _draw_legend(
    figure: Any, names: Sequence[tuple[str, _Look]], inks: Inks, *, loc: str, ncols: int
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label=one_line(name, _MOST_NAME), **{"color": inks.text, **look})
        for name, look in names
    ]
    if handles:
        figure.legend(handles=handles, loc=loc, ncols=ncols, frameon=False)


def _draw_panel(
    axes: Any, panel: _Panel, curves: Sequence[tuple[np.ndarray, _Look]], inks: Inks
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.set_title(panel.title, loc="left", fontsize=11)
    axes.grid()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shown = [(points, look) for points, look in curves if points.size]
    for points, look in shown:
        every = max(points.shape[1] // _MARKS, 1)
        alone = {"marker": "o"} if points.shape[1] == 1 else {}  # it is no line
        axes.plot(*points, **{"linewidth": 1.8, "markevery": every, **look, **alone})
    if not shown:
        axes.text(0.5, 0.5, "no figures", color=inks.faint, ha="center", transform=axes.transAxes)
        return
    values = np.concatenate([points[1] for points, _ in shown])
    if panel.ending == "images_per_second":
        axes.set_ylim(0, 1.1 * max(values.max(), 1e-9))
    elif panel.ending == "_loss" and values.max() > 20 * values.min() > 0:
        axes.set_yscale("log")  # what comes after a first peak is seen as well
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
