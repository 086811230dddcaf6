"""An HTML page that needs nothing from outside: a title, facts, and sections of tables, pictures
and cards. It follows light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

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
figure > img { max-width: 100%; } figcaption { color: var(--faint); }
svg { width: 100%; height: auto; min-width: 40rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: .5rem; }
th, td { padding: .25rem .55rem; border-bottom: 1px solid var(--line); text-align: right; }
th.text, td.text { text-align: left; white-space: nowrap; } thead th { vertical-align: bottom; }
table.confusion td { text-align: center; min-width: 2rem; }
dt { float: left; clear: left; width: 11rem; color: var(--faint); }
dd { margin-left: 12rem; } dl { overflow: hidden; }
ul.cards { display: flex; flex-wrap: wrap; gap: 1rem; padding: 0; list-style: none; }
ul.cards li { width: 10rem; font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; }
ul.cards img { width: 10rem; height: 10rem; object-fit: contain; image-rendering: pixelated;
  background: var(--line); }
ul.large li, ul.large img { width: 13rem; } ul.large img { height: 13rem; }
ul.large p.message { width: 11rem; height: 11rem; padding: calc(1rem - 1px); margin: 0 0 .4rem;
  border: 1px solid var(--line); box-sizing: content-box; overflow: auto; color: var(--faint); }
ul.cards span { display: block; } ul.cards span:last-child { color: var(--faint); }
</style></head><body>
<h1>{{ title }}</h1>
{% if facts %}
  <dl>{% for name, value in facts.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% endif %}
{% for section in sections %}
<h2>{{ section.heading }}</h2>
<figure>{% if section.table %}{{ show(section.table) }}{% endif %}
  {% if section.picture %}{{ section.picture }}{% endif %}
  {% if section.note %}<figcaption>{{ section.note }}</figcaption>{% endif %}
  {% if section.cards %}<ul class="cards{% if section.kind %} {{ section.kind }}{% endif %}">
  {% for card in section.cards %}
    <li>{{ card.picture }}{% for line in card.lines %}<span>{{ line }}</span>{% endfor %}</li>
  {% endfor %}</ul>{% endif %}</figure>
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
class Card:
    """A small picture with lines of text below it, the last of them faint."""

    picture: Markup
    lines: Sequence[str]


@dataclass(frozen=True)
class Section:
    """A heading with a table, a picture (see `kapps.tools.pictures`), cards, or several of them.

    Attributes:
        kind: the cards' class in the page's style: "large" for pictures of 208 pixels.
        note: what stands below the picture.
    """

    heading: str
    table: Table | None = None
    picture: Markup | None = None
    cards: Sequence[Card] = ()
    kind: str = ""
    note: str = ""


def render(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The page, as HTML."""
    return _TEMPLATE.render(title=title, facts=facts, sections=sections) + "\n"
