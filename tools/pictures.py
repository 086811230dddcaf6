"""Pictures by matplotlib: as PNG files, and as SVG in a page, where they follow light and dark."""

from __future__ import annotations

import base64
import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from markupsafe import Markup

# Okabe and Ito's colors for the color-blind, those that stand out on white and on black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Inks(NamedTuple):
    """The colors of what is no data."""

    text: str
    faint: str
    line: str


Draw = Callable[[Any, Inks], object]
"""Draws into an empty `matplotlib.figure.Figure`."""

_ON_WHITE = Inks("#1b1b1f", "#6b6b76", "#d5d5dc")
# In a page these are replaced by its own colors: a renderer takes no CSS variables.
_STAND_INS = Inks("#010203", "#040506", "#070809")


def png(draw: Draw, size: tuple[float, float], *, dpi: float = 120) -> bytes:
    """A PNG file on white.

    Args:
        draw: what is in it.
        size: width and height, inches of `dpi` pixels.
        dpi: of them, text being 11 points high.
    """
    return _render(draw, size, _ON_WHITE, {"format": "png", "dpi": dpi, "metadata": {}}, "")


def svg(draw: Draw, size: tuple[float, float], *, label: str, number: int = 0) -> Markup:
    """A picture in the colors of a page of `kapps.tools.page`.

    Args:
        draw: what is in it.
        size: width and height, inches of 72 points, text being 11 points high.
        label: what a screen reader says.
        number: of the picture on its page, so that no two have the same ids.
    """
    options = {"format": "svg", "transparent": True, "metadata": {"Date": None}}
    text = _render(draw, size, _STAND_INS, options, f"kapps{number}").decode()
    text = text[text.index("<svg") :]
    for ink, stand_in in _STAND_INS._asdict().items():
        text = text.replace(stand_in, f"var(--{ink})")
    # Its own metadata names only the program; the title is what a screen reader says.
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # These ids are the same in every picture, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    label = html.escape(label)
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return Markup(text.replace(">", f"><title>{label}</title>", 1))


def inline(image: bytes, *, label: str) -> Markup:
    """A PNG or JPEG file as part of a page; `label` is what a screen reader says."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(image).decode()
    return Markup('<img alt="{}" src="data:image/{};base64,{}">').format(label, kind, data)


def _render(
    draw: Draw, size: tuple[float, float], inks: Inks, options: dict[str, Any], salt: str
) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,  # ids: the same each time, different on one page
        "font.family": "sans-serif",
        "font.size": 11,
        "text.color": inks.text,
        "text.parse_math": False,  # a name with dollars is no formula
        "axes.labelcolor": inks.text,
        "axes.edgecolor": inks.line,
        "grid.color": inks.line,
        "grid.linewidth": 0.5,
        "xtick.color": inks.text,
        "ytick.color": inks.text,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    output = io.BytesIO()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Names in scripts that the font lacks; a browser has them.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, inks)
        figure.savefig(output, **options)
    return output.getvalue()
