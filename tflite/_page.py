"""What the HTML pages of kapps share: their style, and pictures that follow light and dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

_Point = TypeVar("_Point")

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1f; --faint: #6b6b76; --line: #d5d5dc;
  --ground: #ffffff; --hit: 46, 125, 50; --miss: 198, 40, 40; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6ea; --faint: #a0a0ab;
  --line: #43434c; --ground: #17171b; --hit: 102, 187, 106; --miss: 239, 83, 80; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
figure { margin: 1rem 0; overflow-x: auto; } a { color: inherit; }
svg { width: 100%; height: auto; min-width: 40rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: .5rem; }
th, td { padding: .25rem .55rem; border-bottom: 1px solid var(--line); text-align: right; }
th.text, td.text { text-align: left; white-space: nowrap; } thead th { vertical-align: bottom; }
table.confusion td { text-align: center; min-width: 2rem; }
dt { float: left; clear: left; width: 11rem; color: var(--faint); }
dd { margin-left: 12rem; } dl { overflow: hidden; }
"""


def page(title: str, facts: Mapping[str, str], parts: Iterable[str]) -> str:
    """A self-contained HTML page: the title, the facts as a list, and `parts`, which are HTML."""
    e = html.escape
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{e(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{e(title)}</h1>",
    ]
    if facts:
        lines += ["<dl>", *(f"<dt>{e(k)}</dt><dd>{e(v)}</dd>" for k, v in facts.items()), "</dl>"]
    return "\n".join([*lines, *parts, "</body></html>\n"])


def markdown_text(text: str) -> str:
    """The text as one line of Markdown in which no HTML begins."""
    return " ".join(text.split()).replace("<", "&lt;")


def markdown_table(table: Sequence[Sequence[str]], text_columns: Sequence[int]) -> list[str]:
    """Lines of a Markdown table whose first row is the header; numbers stand to the right."""
    rule = ["---" if i in text_columns else "---:" for i in range(len(table[0]))]
    return [
        "| " + " | ".join(markdown_text(cell).replace("|", "\\|") for cell in cells) + " |"
        for cells in (table[0], rule, *table[1:])
    ]


def html_table(table: Sequence[Sequence[str]], text_columns: Sequence[int]) -> str:
    """The same as HTML; all cells are text."""
    lines = ["<table>", "<thead>"]
    for number, cells in enumerate(table):
        tag, scope = ("td", "") if number else ("th", ' scope="col"')
        kinds = [' class="text"' if i in text_columns else "" for i in range(len(cells))]
        row = "".join(
            f"<{tag}{scope}{kind}>{html.escape(cell)}</{tag}>"
            for kind, cell in zip(kinds, cells, strict=True)
        )
        lines.append(f"<tr>{row}</tr>" + ("" if number else "</thead><tbody>"))
    return "".join([*lines, "</tbody></table>"])


# Okabe and Ito's colors for the color-blind, those that stand out on white and on black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Stand-ins that are replaced by the page's own colors, which follow light and dark.
TEXT, FAINT, LINE = "#010203", "#040506", "#070809"


def picture(draw: Callable[[Any], None], label: str, *, number: int = 0) -> str:
    """What `draw(axes)` draws, as SVG whose colors are the page's.

    Args:
        draw: draws into matplotlib axes, with TEXT, FAINT and LINE for what follows the page.
        label: what a screen reader says.
        number: of the picture on its page, so that no two have the same ids.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"kapps{number}",  # ids: the same each time, different on one page
        "font.family": "sans-serif",
        "font.size": 11,
        "text.color": TEXT,
        "axes.labelcolor": TEXT,
        "axes.edgecolor": LINE,
        "xtick.color": TEXT,
        "ytick.color": TEXT,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, 4.8), layout="constrained")
        draw(figure.add_subplot())
        output = io.StringIO()
        figure.savefig(output, format="svg", transparent=True, metadata={"Date": None})
    svg = output.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, variable in ((TEXT, "text"), (FAINT, "faint"), (LINE, "line")):
        svg = svg.replace(stand_in, f"var(--{variable})")
    # Its own metadata names only the program; the title is what a screen reader says.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # These ids are the same in every picture, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    label = html.escape(label)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).replace(
        ">", f"><title>{label}</title>", 1
    )


def accuracy_over_latency(axes: Any, accuracies: Sequence[float]) -> None:
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
    axes.grid(color=LINE, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel("top-1, %")


def front(points: Iterable[_Point], of: Callable[[_Point], tuple[float, float]]) -> list[_Point]:
    """The points that none beats in both; `of` gives (latency, accuracy). From fast to slow."""
    kept: list[_Point] = []
    for point in sorted(points, key=lambda point: (of(point)[0], -of(point)[1])):
        if not kept or of(point)[1] > of(kept[-1])[1]:
            kept.append(point)
    return kept
