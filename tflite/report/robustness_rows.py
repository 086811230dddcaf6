"""The part of a report on attacked images: a table and a picture for each attack.

Figures of attacks with other settings do not compare: they are never in one column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from kapps.tflite.report.page import Section
from kapps.tflite.report.picture import Curve, curves
from kapps.tflite.robustness import RobustLevel, Robustness, at
from kapps.tools.page import Table

_MISSING = "\N{EN DASH}"
_Attacked = tuple[str, str, str, tuple[Robustness, ...]]
"""A file's name, its model and its variant, and how it did under each attack."""


def joined(known: Sequence[Robustness], more: Robustness) -> tuple[Robustness, ...]:
    """The figures with those of another result, at other budgets or of another attack."""
    found = {each.settings: each for each in known}
    before = found.get(more.settings)
    if before is not None:
        more = replace(more, levels=tuple(sorted({*before.levels, *more.levels}, key=_order)))
    found[more.settings] = more
    return tuple(found.values())


def attacks_of(robustness: Iterable[Sequence[Robustness]]) -> dict[Any, Robustness]:
    """The attacks of other settings: for each the first of its figures."""
    found: dict[Any, Robustness] = {}
    for each in robustness:
        for one in each:
            found.setdefault(one.settings, one)
    return found


def robustness_sections(files: Sequence[_Attacked]) -> list[Section]:
    """A section for each attack; none if nothing was attacked."""
    attacks = attacks_of(figures for *_, figures in files)
    sections = []
    for number, (settings, attack) in enumerate(attacks.items(), 1):
        own = [
            (name, model, variant, figures)
            for name, model, variant, all_figures in files
            for figures in all_figures
            if figures.settings == settings
        ]
        lines = [Curve(name, _points(figures)) for name, _, _, figures in own]
        heading = "Robustness" if len(attacks) == 1 else f"Robustness to attack {number}"
        picture = curves(lines, label=f"Top-1 over eps under {attack.attack}", number=number)
        sections.append(Section(heading, _table(own, attack), picture))
    return sections


def _table(files: Sequence[tuple[str, str, str, Robustness]], attack: Robustness) -> Table:
    """A row a file, a column a budget."""
    levels = {(each.eps, each.step): each for *_, own in files for each in own.levels}
    columns = sorted(levels.values(), key=_order)
    rows = []
    for name, model, variant, own in files:
        known = {(each.eps, each.step): f"{100 * each.top1:.2f}" for each in own.levels}
        left = (known.get((column.eps, column.step), _MISSING) for column in columns)
        rows.append([name, model, variant, f"{100 * own.clean:.2f}", *left])
    header = ["file", "model", "variant", "clean, %", *(f"{at(each)}, %" for each in columns)]
    return Table(
        header,
        rows,
        text_columns=(0, 1, 2),
        caption=(
            f"{attack.attack}. Top-1 of these images as they are, and of those that are right as "
            "they are and attacked; eps and step in gray levels of 0..255."
        ),
    )


def _points(figures: Robustness) -> list[tuple[float, float]]:
    return [(0, figures.clean), *((each.eps, each.top1) for each in figures.levels)]


def _order(level: RobustLevel) -> tuple[int, float]:
    return level.eps, level.step or 0
