"""The files of a report: the page of `kapps.tools.page`, the same as Markdown, and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kapps._files import write_text
from kapps.tflite.tables import markdown, markdown_text
from kapps.tools import page


@dataclass(frozen=True)
class Section(page.Section):
    """A section of the page, which only in some cases is in the Markdown as well."""

    in_markdown: bool = True


def write_pages(
    folder: str | os.PathLike[str],
    *,
    title: str,
    facts: Mapping[str, str],
    sections: Sequence[Section],
    values: Any,
) -> list[Path]:
    """Writes report.json, of `values`, report.md and report.html, and returns their paths.

    Raises:
        InputError: the folder cannot be written.
    """
    contents = {
        "report.json": json.dumps(values, indent=2, allow_nan=False) + "\n",
        "report.md": _markdown(title, facts, sections),
        "report.html": page.render(title, facts, sections),
    }
    paths = []
    for name, content in contents.items():
        paths.append(Path(folder) / name)
        write_text(paths[-1], content)
    return paths


def _markdown(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    text = markdown_text
    lines = [f"# {text(title)}", ""]
    if facts:
        lines += [*(f"- {text(name)}: {text(value)}" for name, value in facts.items()), ""]
    for section in sections:
        table = section.table
        if table is None or not section.in_markdown:
            continue
        right = set(range(len(table.header))) - set(table.text_columns)
        lines += [f"## {text(section.heading)}", ""]
        if table.caption:
            lines += [text(table.caption), ""]
        lines += [markdown(table.header, table.rows, right=right), ""]
    return "\n".join(lines)
