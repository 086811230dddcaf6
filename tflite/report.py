"""Accuracy, size and latency of .tflite files: as JSON, as Markdown and as one HTML page."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kapps._errors import InputError
from kapps._files import atomic_write
from kapps.tflite import _page
from kapps.tflite._page import markdown_table
from kapps.tflite.measurement.latency import Latency


@dataclass(frozen=True)
class Row:
    """One .tflite file in the report.

    Attributes:
        model: the network.
        variant: its quantization.
        top1: accuracy on held-out images, 0 to 1.
        size_bytes: of the file.
        latency_ms: milliseconds an image: {"p50": ..., "p90": ..., "p99": ...}.
        threads: with which the latency was measured.
        device: on which the latency was measured.
        delegate_pieces: into how many pieces the delegate took the graph.
        file: the file's name.
    """

    model: str
    variant: str
    top1: float
    size_bytes: int
    latency_ms: Mapping[str, float]
    threads: int
    device: str
    delegate_pieces: int
    file: str

    @classmethod
    def of(cls, model: str, variant: str, top1: float, latency: Latency) -> Row:
        """The row of a measured file.

        Raises:
            InputError: it was measured by a tool that tells no percentiles.
        """
        figures = {"p50": latency.p50_ms, "p90": latency.p90_ms, "p99": latency.p99_ms}
        told = {name: value for name, value in figures.items() if value is not None}
        if len(told) < len(figures) or latency.delegate_pieces is None:
            raise InputError(
                f"{latency.file.name}: {latency.device} does not tell all that a row has; "
                "use kapps-report for it"
            )
        return cls(
            model=model,
            variant=variant,
            top1=top1,
            size_bytes=latency.file.stat().st_size,
            latency_ms=told,
            threads=latency.threads,
            device=latency.device,
            delegate_pieces=latency.delegate_pieces,
            file=latency.file.name,
        )


@dataclass(frozen=True)
class Confusion:
    """How often which class was taken for which.

    Attributes:
        title: of which model, on which images.
        labels: the classes.
        counts: (classes, classes) images: row true class, column predicted class.
    """

    title: str
    labels: Sequence[str]
    counts: np.ndarray

    @classmethod
    def of(
        cls, title: str, labels: Sequence[str], truth: np.ndarray, predicted: np.ndarray
    ) -> Confusion:
        """Counts from the class index of each image, true and predicted."""
        counts = np.zeros((len(labels), len(labels)), int)
        np.add.at(counts, (truth, predicted), 1)
        return cls(title, tuple(labels), counts)


def write_report(
    rows: Sequence[Row],
    folder: str | os.PathLike[str],
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    confusion: Confusion | None = None,
) -> list[Path]:
    """Writes report.json, report.md and report.html, and returns their paths.

    Args:
        rows: a row a file.
        folder: where the reports go; it is made if need be.
        title: of the report.
        facts: what else the reader should know (data set, seed ...), a line each.
        confusion: for the HTML page.

    Raises:
        InputError: no rows, or the folder cannot be written.
    """
    if not rows:
        raise InputError("nothing to report: no rows")
    facts = dict(facts or {})
    contents = {
        "report.json": json.dumps([asdict(row) for row in rows], indent=2) + "\n",
        "report.md": _markdown(rows, title, facts),
        "report.html": _html(rows, title, facts, confusion),
    }
    paths = []
    for name, content in contents.items():
        paths.append(Path(folder) / name)
        with atomic_write(paths[-1]) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return paths


_HEADER = (
    "model",
    "variant",
    "top-1",
    "size, KiB",
    "p50, ms",
    "p90, ms",
    "p99, ms",
    "threads",
    "delegate pieces",
    "file",
)
_TEXT_COLUMNS = (0, 1, 9)
_FILE_COLUMN = 9


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.model,
        row.variant,
        f"{row.top1:.4f}",
        f"{row.size_bytes / 1024:,.1f}",
        *(f"{row.latency_ms[p]:.3f}" for p in ("p50", "p90", "p99")),
        str(row.threads),
        str(row.delegate_pieces),
        row.file,
    )


def _by_device(rows: Sequence[Row]) -> dict[str, list[Row]]:
    devices: dict[str, list[Row]] = {}
    for row in rows:
        devices.setdefault(row.device, []).append(row)
    return devices


def _caption(device: str) -> str:
    return f"Latency of one image on {device}"


def _markdown(rows: Sequence[Row], title: str, facts: Mapping[str, str]) -> str:
    text = _page.markdown_text
    lines = [f"# {text(title)}", ""]
    if facts:
        lines += [*(f"- {text(name)}: {text(value)}" for name, value in facts.items()), ""]
    for device, device_rows in _by_device(rows).items():
        lines += [f"{text(_caption(device))}.", ""]
        table = [_HEADER, *map(_cells, device_rows)]
        lines += [*markdown_table(table, _TEXT_COLUMNS), ""]
    return "\n".join(lines)


def _html(
    rows: Sequence[Row], title: str, facts: Mapping[str, str], confusion: Confusion | None
) -> str:
    parts: list[str] = []
    for number, (device, device_rows) in enumerate(_by_device(rows).items()):
        parts += [
            "<h2>Accuracy and latency</h2>",
            f"<figure>{_picture(device_rows, device, number)}</figure>",
            "<h2>Figures</h2>",
            f"<figure><table><caption>{html.escape(_caption(device))}.</caption><thead><tr>",
            *(_cell("th", i, name) for i, name in enumerate(_HEADER)),
            "</tr></thead><tbody>",
        ]
        for row in device_rows:
            cells = (_cell("td", i, cell) for i, cell in enumerate(_cells(row)))
            parts.append(f"<tr>{''.join(cells)}</tr>")
        parts.append("</tbody></table></figure>")
    if confusion is not None:
        parts += ["<h2>Confusion</h2>", _confusion(confusion)]
    return _page.page(title, facts, parts)


def _cell(tag: str, column: int, content: str) -> str:
    kind = ' class="text"' if column in _TEXT_COLUMNS else ""
    scope = ' scope="col"' if tag == "th" else ""
    content = html.escape(content)
    if tag == "td" and column == _FILE_COLUMN:
        content = f'<a href="{content}">{content}</a>'
    return f"<{tag}{scope}{kind}>{content}</{tag}>"


_MAX_MATRIX = 30  # classes; beyond that nobody finds a cell


def _confusion(confusion: Confusion) -> str:
    e = html.escape
    labels, counts = confusion.labels, np.asarray(confusion.counts)
    if len(labels) > _MAX_MATRIX:
        wrong = np.where(np.eye(len(labels), dtype=bool), 0, counts)
        worst = np.argsort(wrong, axis=None)[::-1][:_MAX_MATRIX]
        body = [
            f'<tr><td class="text">{e(labels[t])}</td><td class="text">{e(labels[p])}</td>'
            f"<td>{wrong[t, p]}</td></tr>"
            for t, p in zip(*np.unravel_index(worst, wrong.shape), strict=True)
            if wrong[t, p]
        ]
        head = '<th scope="col" class="text">true</th><th scope="col" class="text">taken for</th>'
        head += '<th scope="col">images</th>'
        kind = "pairs"
    else:
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        body = []
        for t, label in enumerate(labels):
            cells = []
            for p in range(len(labels)):
                color = "hit" if t == p else "miss"
                alpha = 0.0 if not counts[t, p] else 0.15 + 0.5 * share[t, p]
                cells.append(
                    f'<td style="background: rgba(var(--{color}), {alpha:.2f})">'
                    f"{counts[t, p] or '·'}</td>"
                )
            body.append(f'<tr><th scope="row" class="text">{e(label)}</th>{"".join(cells)}</tr>')
        head = '<th scope="col" class="text">true \\ predicted</th>'
        head += "".join(f'<th scope="col">{e(label)}</th>' for label in labels)
        kind = "confusion"
    return (
        f'<figure><table class="{kind}"><caption>{e(confusion.title)}; images, row true class, '
        f"column predicted class.</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></figure>"
    )


def _picture(rows: Sequence[Row], device: str, number: int) -> str:
    """Accuracy over latency as SVG: color by model, marker by variant, and the Pareto front."""
    front = pareto(rows)
    models = list(dict.fromkeys(row.model for row in rows))
    variants = list(dict.fromkeys(row.variant for row in rows))
    colors = {model: _page.COLORS[i % len(_page.COLORS)] for i, model in enumerate(models)}
    markers = {variant: _page.MARKERS[i % len(_page.MARKERS)] for i, variant in enumerate(variants)}

    def draw(axes: Any) -> None:
        from matplotlib.lines import Line2D

        axes.plot(
            [row.latency_ms["p50"] for row in front],
            [100 * row.top1 for row in front],
            color=_page.FAINT,
            linewidth=1.5,
            linestyle="--",
            zorder=1,
        )
        for row in rows:
            axes.plot(
                row.latency_ms["p50"],
                100 * row.top1,
                linestyle="none",
                marker=markers[row.variant],
                # Smaller from variant to variant: what lies on one spot stays visible.
                markersize=max(11 - 1.5 * variants.index(row.variant), 6),
                markerfacecolor=colors[row.model] if row in front else "none",
                markeredgecolor=colors[row.model],
                markeredgewidth=1.8,
                zorder=3,
            )
        _page.accuracy_over_latency(axes, [100 * row.top1 for row in rows])
        axes.set_xlabel(f"median latency of one image, ms (log scale) — {device}")
        entries = [
            *(
                Line2D([], [], color=colors[m], marker="o", linestyle="none", label=m)
                for m in models
            ),
            *(
                Line2D([], [], color=_page.TEXT, marker=markers[v], linestyle="none", label=v)
                for v in variants
            ),
            Line2D([], [], color=_page.FAINT, linestyle="--", label="Pareto front (filled)"),
        ]
        axes.legend(handles=entries, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    label = f"Top-1 accuracy over median latency of {len(rows)} files on {device}"
    return _page.picture(draw, label, number=number)


def pareto(rows: Sequence[Row]) -> list[Row]:
    """The rows that none beats in both accuracy and median latency, from fast to slow."""
    return _page.front(rows, lambda row: (row.latency_ms["p50"], row.top1))
