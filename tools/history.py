"""What a training run has written about itself while it ran: losses, accuracies, speed.

A run's folder has them in metrics.jsonl, a JSON object a line: one for each epoch, and some for
single steps in between. Runs of earlier versions have those of the epochs in result.json alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kapps._errors import InputError, is_whole
from kapps.tools.json_files import read_json

METRICS = "metrics.jsonl"
_DAMAGED = "restore it, or leave this run out"

Figures = Mapping[str, float]
"""What was measured at one time, by name, such as "train_loss"; "epoch" is the time itself."""


@dataclass(frozen=True)
class History:
    """The course of one run."""

    folder: Path
    settings: Mapping[str, Any]
    """Of config.json."""
    epochs: tuple[Figures, ...]
    """In their order; "epoch" counts those done, 1 after the first."""
    steps: tuple[Figures, ...]
    """In their order; "epoch" has a fraction: 1.5 in the middle of the second."""

    def seconds(self) -> float | None:
        """How long it has trained, without validation and breaks; None if it does not tell."""
        steps = _steps_per_epoch(self.settings)
        speed = column(self.epochs, "images_per_second")
        if steps is None or not len(speed) or not (speed > 0).all():
            return None
        return float((steps * self.settings["batch_size"] / speed).sum())


def read_history(folder: str | os.PathLike[str]) -> History:
    """The course of the run in a folder, which may still be training.

    Where a run was stopped and has gone back to a checkpoint, an epoch or step is there twice: the
    later one counts. The phases of a run that has several follow one another.

    Raises:
        InputError: there is no run, or no epoch and no step yet, or a file is damaged.
    """
    folder = Path(folder)
    settings = read_json(folder / "config.json", _DAMAGED)
    if settings is None:
        raise InputError(
            f"{folder} holds no training run (config.json); name the --workdir of a kapps-train"
        )
    lines = list(_metric_lines(folder / METRICS)) or list(_result_lines(folder / "result.json"))
    if not lines:
        raise InputError(
            f"{folder} has no figures yet ({METRICS} or result.json); plot it after its first epoch"
        )
    length = _steps_per_epoch(settings)
    epochs: list[Figures] = []
    steps: list[Figures] = []
    for phase in dict.fromkeys(line.phase for line in lines):
        before = epochs[-1]["epoch"] if epochs else 0.0
        by_epoch, by_step = (_ordered(lines, phase, kind) for kind in ("epoch", "step"))
        steps += _moved(_with_fractions(by_step, by_epoch, length), before)
        epochs += _moved(by_epoch, before)
    return History(folder, settings, tuple(epochs), tuple(steps))


def column(lines: Sequence[Figures], name: str) -> np.ndarray:
    """The figures of that name, (lines,) float64; NaN where a line has none."""
    return np.array([line.get(name, math.nan) for line in lines], np.float64)


class _Line(NamedTuple):
    phase: str
    kind: str
    figures: Figures


def _result_lines(path: Path) -> Iterator[_Line]:
    history = (read_json(path, _DAMAGED) or {}).get("history", [])
    if not isinstance(history, list):
        raise InputError(f"{path} is damaged; {_DAMAGED}")
    for entry in history:
        yield _line(entry, "epoch", str(path))


def _metric_lines(path: Path) -> Iterator[_Line]:
    try:
        *whole, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    for number, text in enumerate([*whole, last], start=1):
        where = f"{path}, line {number}"
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number > len(whole):  # nothing, or the run is writing it, or was killed meanwhile
                return
            raise InputError(f"{where} is damaged; {_DAMAGED}") from error
        kind = line.get("kind") if isinstance(line, dict) else "epoch"
        if kind in ("epoch", "step"):
            yield _line(line, kind, where)


def _line(values: Any, kind: str, where: str) -> _Line:
    """The numbers of a line; that of its epoch or step has to be a whole one."""
    number = values.get(kind) if isinstance(values, dict) else None
    if not is_whole(number) or not 0 <= int(number) < 1 << 53:
        raise InputError(f"{where} is damaged: no whole number {kind!r}; {_DAMAGED}")
    figures = {name: _number(value) for name, value in values.items()}
    told = {name: value for name, value in figures.items() if value is not None}
    return _Line(str(values.get("phase", "")), kind, told)


def _number(value: Any) -> float | None:
    """NaN for null and infinity, None for what is no number at all."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 else math.nan


def _ordered(lines: Sequence[_Line], phase: str, kind: str) -> list[Figures]:
    """Those of a phase and a kind, each epoch or step once, in their order."""
    last = {
        line.figures[kind]: line.figures
        for line in lines
        if line.phase == phase and line.kind == kind
    }
    return [last[number] for number in sorted(last)]


def _moved(lines: Sequence[Figures], epochs: float) -> list[Figures]:
    """The same after as many epochs of earlier phases."""
    return [{**line, "epoch": line.get("epoch", math.nan) + epochs} for line in lines]


def _steps_per_epoch(settings: Mapping[str, Any]) -> int | None:
    """As the run's settings say; None if they do not."""
    images, batch_size = (settings.get(name) for name in ("images", "batch_size"))
    if not is_whole(images) or not is_whole(batch_size) or int(batch_size) < 1:
        return None
    return int(images) // int(batch_size) or None


def _with_fractions(
    steps: Sequence[Figures], epochs: Sequence[Figures], steps_per_epoch: int | None
) -> list[Figures]:
    """The steps with their places among the epochs, which tell at what step they ended."""
    ends = [(0.0, 0.0), *((e["step"], e["epoch"]) for e in epochs if e.get("step", 0) > 0)]
    if len(ends) == 1 and steps_per_epoch is None:
        return list(steps)
    if len(ends) == 1:
        ends.append((float(steps_per_epoch or 1), 1.0))
    at, epoch = np.array(ends).T
    slope = (epoch[-1] - epoch[-2]) / max(at[-1] - at[-2], 1.0)
    places = [
        np.interp(line["step"], at, epoch) + max(line["step"] - at[-1], 0) * slope for line in steps
    ]
    return [{**line, "epoch": float(place)} for line, place in zip(steps, places, strict=True)]
