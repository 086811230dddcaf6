"""The report on .tflite files that were scored and measured at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kapps._errors import InputError
from kapps.tflite.measurement.latency import Latency
from kapps.tflite.report.page import Section, write_pages
from kapps.tflite.report.picture import Point, picture
from kapps.tools.page import Table


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
    sections = []
    for number, (device, members) in enumerate(_by_device(rows).items()):
        points = [Point(r.latency_ms["p50"], r.top1, r.model, r.variant) for r in members]
        label = f"Top-1 accuracy over median latency of {len(members)} files on {device}"
        shown = picture(points, label=label, where=device, number=number)
        table = Table(
            _HEADER,
            [_cells(row) for row in members],
            text_columns=(0, 1, 9),
            caption=f"Latency of one image on {device}.",
            links=9,
        )
        sections += [Section("Accuracy and latency", picture=shown), Section("Figures", table)]
    if confusion is not None:
        sections.append(Section("Confusion", _confusion(confusion), in_markdown=False))
    return write_pages(
        folder,
        title=title,
        facts=dict(facts or {}),
        sections=sections,
        values=[asdict(row) for row in rows],
    )


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


_MAX_MATRIX = 30  # classes; beyond that nobody finds a cell


def _confusion(confusion: Confusion) -> Table:
    """The matrix, or, of many classes, the pairs that were mixed up most often."""
    labels, counts = confusion.labels, np.asarray(confusion.counts)
    caption = f"{confusion.title}; images, row true class, column predicted class."
    if len(labels) > _MAX_MATRIX:
        wrong = np.where(np.eye(len(labels), dtype=bool), 0, counts)
        worst = np.argsort(wrong, axis=None)[::-1][:_MAX_MATRIX]
        pairs = zip(*np.unravel_index(worst, wrong.shape), strict=True)
        return Table(
            ("true", "taken for", "images"),
            [[labels[t], labels[p], str(wrong[t, p])] for t, p in pairs if wrong[t, p]],
            text_columns=(0, 1),
            caption=caption,
            kind="pairs",
        )
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows, shades = [], []
    for t, label in enumerate(labels):
        rows.append([label, *(str(count or "·") for count in counts[t])])
        strengths = np.where(counts[t] > 0, 0.15 + 0.5 * share[t], 0.0)
        colors = ["hit" if t == p else "miss" for p in range(len(labels))]
        pairs = zip(colors, strengths, strict=True)
        shades.append(["", *(f"rgba(var(--{color}), {alpha:.2f})" for color, alpha in pairs)])
    return Table(
        ("true \\ predicted", *labels),
        rows,
        text_columns=(0,),
        caption=caption,
        kind="confusion",
        row_heads=True,
        shades=shades,
    )
