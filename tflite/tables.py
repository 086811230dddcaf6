"""Tables of text: aligned for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tabulate import tabulate


def aligned(
    header: Sequence[str] | None, rows: Sequence[Sequence[str]], *, right: Collection[int] = ()
) -> str:
    """Columns two spaces apart, those of the numbers in `right` to the right; no cell is cut."""
    table = _table(header, rows, "plain", right)
    return "\n".join(line.rstrip() for line in table.splitlines())


def markdown(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()
) -> str:
    """A Markdown table of cells that are text: in none of them HTML or a column begins."""
    cells = [[markdown_text(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    return _table(cells[0], cells[1:], "pipe", right)


def markdown_text(text: str) -> str:
    """The text as one line of Markdown in which no HTML begins."""
    return " ".join(text.split()).replace("<", "&lt;")


def _table(
    header: Sequence[str] | None,
    rows: Sequence[Sequence[str]],
    form: str,
    right: Collection[int],
) -> str:
    sides = tuple(
        "right" if n in right else "left" for n in range(len(rows[0] if rows else header or ()))
    )
    return tabulate(
        rows,
        header or (),
        tablefmt=form,
        colalign=sides if rows else None,
        disable_numparse=True,
    )
