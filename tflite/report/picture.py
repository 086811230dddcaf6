"""The pictures of a report, as SVG that follows light and dark.

They show accuracy over latency, and what is left of accuracy over the budget of an attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from markupsafe import Markup

from kapps._errors import one_line
from kapps.tools.pictures import COLORS, MARKERS, Inks, svg

_Point = TypeVar("_Point")
_MOST_NAME = 36  # characters in a legend


@dataclass(frozen=True)
class Point:
    """A file in the picture.

    Attributes:
        latency_ms: the median, of one image.
        top1: accuracy, 0 to 1.
        color: what its color stands for, in the words of the legend.
        marker: what its marker stands for, likewise.
        device: those of one device compete with each other.
        name: what is written beside the first of this name on the device's Pareto front, if there
            is room; "" for nothing.
    """

    latency_ms: float
    top1: float
    color: str
    marker: str
    device: str = ""
    name: str = ""

    @property
    def place(self) -> tuple[float, float]:
        """Milliseconds and percent."""
        return self.latency_ms, 100 * self.top1


def front(points: Iterable[_Point], of: Callable[[_Point], tuple[float, float]]) -> list[_Point]:
    """The points that none beats in both; `of` gives (latency, accuracy). From fast to slow."""
    kept: list[_Point] = []
    for point in sorted(points, key=lambda point: (of(point)[0], -of(point)[1])):
        if not kept or of(point)[1] > of(kept[-1])[1]:
            kept.append(point)
    return kept


def picture(points: Sequence[Point], *, label: str, where: str = "", number: int = 0) -> Markup:
    """The points by color and marker, with the Pareto front of each device.

    Args:
        points: at least one.
        label: what a screen reader says.
        where: what the axis of the latency says of the device.
        number: of the picture on its page, so that no two have the same ids.
    """

    def draw(figure: Any, inks: Inks) -> None:
        _draw(figure.add_subplot(), points, where, inks)

    return svg(draw, (9, 4.8), label=label, number=number)


@dataclass(frozen=True)
class Curve:
    """What an attack leaves of a file's accuracy.

    Attributes:
        name: of the file, for the legend.
        points: budgets in gray levels, 0 for clean images, and accuracies, 0 to 1.
    """

    name: str
    points: Sequence[tuple[float, float]]


def curves(lines: Sequence[Curve], *, label: str, number: int) -> Markup:
    """Accuracy over the budget, a line a file; `label` and `number` as of `picture`."""

    def draw(figure: Any, inks: Inks) -> None:
        axes = figure.add_subplot()
        for i, line in enumerate(lines):
            axes.plot(
                *zip(*((eps, 100 * top1) for eps, top1 in line.points), strict=True),
                color=COLORS[i % len(COLORS)],
                marker=MARKERS[i % len(MARKERS)],
                # Smaller from one to the next: lines on one another stay visible.
                markersize=max(11 - 1.5 * i, 5),
                markerfacecolor="none",
                markeredgewidth=1.8,
                linewidth=1.5,
                label=one_line(line.name, _MOST_NAME),
            )
        axes.set_ylim(-2, 102)
        axes.set_xticks(sorted({eps for line in lines for eps, _ in line.points}))
        axes.grid()
        axes.set_xlabel("eps, gray levels of 0..255 (0: clean images)")
        axes.set_ylabel("top-1, %")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    return svg(draw, (9, 4.2), label=label, number=number)


def _draw(axes: Any, points: Sequence[Point], where: str, inks: Inks) -> None:
    from matplotlib.lines import Line2D

    colors = _numbered([point.color for point in points], COLORS)
    markers = _numbered([point.marker for point in points], MARKERS)
    named: list[Point] = []
    for device in dict.fromkeys(point.device for point in points):
        members = [point for point in points if point.device == device]
        best = front(members, lambda point: point.place)
        own = {colors[point.color] for point in members}
        axes.plot(
            *zip(*(point.place for point in best), strict=True),
            color=own.pop() if len(own) == 1 else inks.faint,
            linewidth=1.5,
            linestyle="--",
            zorder=1,
        )
        # Once for each name: the files of a network lie close together.
        named += {point.name: point for point in reversed(best) if point.name}.values()
        for point in members:
            axes.plot(
                *point.place,
                linestyle="none",
                marker=markers[point.marker],
                # Smaller from one to the next: what lies on one spot stays visible.
                markersize=max(11 - 1.5 * list(markers).index(point.marker), 6),
                markerfacecolor=colors[point.color] if point in best else "none",
                markeredgecolor=colors[point.color],
                markeredgewidth=1.8,
                zorder=3,
            )
    _scales(axes, [100 * point.top1 for point in points])
    axes.margins(x=0.15)
    axes.set_xlabel(f"median latency of one image, ms (log scale){where and f' — {where}'}")
    none: Any = {"linestyle": "none", "markerfacecolor": "none"}
    handles = [
        *(
            Line2D([], [], color=c, marker="o", linestyle="none", label=k)
            for k, c in colors.items()
        ),
        *(Line2D([], [], color=inks.text, marker=m, label=k, **none) for k, m in markers.items()),
        Line2D([], [], color=inks.faint, linestyle="--", label="Pareto front (filled)"),
    ]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    _name_points(axes, named, points)


def _numbered(kinds: Iterable[str], looks: Sequence[str]) -> dict[str, str]:
    """A look for each kind, in the order in which they come."""
    return {kind: looks[i % len(looks)] for i, kind in enumerate(dict.fromkeys(kinds))}


def _scales(axes: Any, accuracies: Sequence[float]) -> None:
    """Scales and grid: accuracy in percent over milliseconds on a logarithmic scale."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    margin = max(0.1 * (max(accuracies) - min(accuracies)), 0.25)
    axes.set_ylim(min(accuracies) - margin, max(accuracies) + margin)
    axes.set_xscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(plain)
    axes.grid()
    axes.set_ylabel("top-1, %")


def _name_points(axes: Any, named: Sequence[Point], points: Sequence[Point]) -> None:
    """Writes names beside their points, above or below, and leaves out what finds no place."""
    axes.figure.draw_without_rendering()  # places the axes, so that points have a place in pixels
    scale = axes.figure.dpi / 72  # pixels a point, the typographic unit
    half = 4 * scale  # of a marker
    taken: list[tuple[float, float, float, float]] = []  # left, low, right, high
    for x, y in axes.transData.transform([point.place for point in points]):
        taken.append((x - half, y - half, x + half, y + half))
    frame = axes.bbox
    for point in named:
        x, y = axes.transData.transform(point.place)
        width, height = 5.6 * scale * len(point.name), 11 * scale
        for side, above in ((-1, 1), (1, -1), (1, 1), (-1, -1)):
            left = x + 7 * scale if side > 0 else x - 7 * scale - width
            low = y + 2 * scale if above > 0 else y - 2 * scale - height
            right, high = left + width, low + height
            inside = left > frame.x0 and right < frame.x1 and low > frame.y0 and high < frame.y1
            if not inside or any(
                left < other[2] and other[0] < right and low < other[3] and other[1] < high
                for other in taken
            ):
                continue
            taken.append((left, low, right, high))
            axes.annotate(
                point.name,
                point.place,
                xytext=(7 * side, 2 * above),
                textcoords="offset points",
                fontsize=9,
                ha="left" if side > 0 else "right",
                va="bottom" if above > 0 else "top",
                zorder=4,
            )
            break
