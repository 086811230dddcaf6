"""The page of a report: a title, facts, and sections, each with a table or a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kapps._files import atomic_write
from kapps.tflite.tables import markdown, markdown_text

_TEMPLATE = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
).from_string(
    """\
{% macro cell(table, column, content, head, shade) %}
  {% set tag = "th" if head else "td" %}
  <{{ tag }}{% if head %} scope="{{ head }}"{% endif %}
  {%- if column in table.text_columns %} class="text"{% endif %}
  {%- if shade %} style="background: {{ shade }}"{% endif %}>
  {%- if column == table.links and not head %}<a href="{{ content }}">{{ content }}</a>
  {%- else %}{{ content }}{% endif %}</{{ tag }}>
{% endmacro %}
{% macro show(table) %}
  <table{% if table.kind %} class="{{ table.kind }}"{% endif %}>
  {% if table.caption %}<caption>{{ table.caption }}</caption>{% endif %}
  <thead><tr>
  {% for name in table.header %}{{ cell(table, loop.index0, name, "col", "") }}{% endfor %}
  </tr></thead><tbody>
  {% for row in table.rows %}
    {% set shades = table.shades[loop.index0] if table.shades else [] %}
    <tr>
    {% for content in row %}
      {% set head = "row" if table.row_heads and loop.first else "" %}
      {{ cell(table, loop.index0, content, head, shades[loop.index0] if shades else "") }}
    {% endfor %}
    </tr>
  {% endfor %}
  </tbody></table>
{% endmacro %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
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
</style></head><body>
<h1>{{ title }}</h1>
{% if facts %}
  <dl>{% for name, value in facts.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% endif %}
{% for section in sections %}
<h2>{{ section.heading }}</h2>
<figure>{% if section.table %}{{ show(section.table) }}{% endif %}
  {% if section.picture %}{{ section.picture }}{% endif %}</figure>
{% endfor %}
</body></html>
"""
)


@dataclass(frozen=True)
class Table:
    """Cells of text.

    Attributes:
        header: the names of the columns.
        rows: the cells.
        text_columns: the numbers of those columns that hold text; in others numbers stand to the
            right.
        caption: what the table shows.
        kind: its class in the page's style.
        links: the number of the column whose cells are names of files beside the page.
        row_heads: the first column names the rows.
        shades: the color behind each cell, as CSS; "" for none.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = ()
    caption: str = ""
    kind: str = ""
    links: int | None = None
    row_heads: bool = False
    shades: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Section:
    """A heading, and a table or a picture (SVG); only some tables are in the Markdown as well."""

    heading: str
    table: Table | None = None
    picture: Markup | None = None
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
        "report.html": _TEMPLATE.render(title=title, facts=facts, sections=sections) + "\n",
    }
    paths = []
    for name, content in contents.items():
        paths.append(Path(folder) / name)
        with atomic_write(paths[-1]) as temporary:
            temporary.write_text(content, encoding="utf-8")
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
