"""The page that compares training runs: their settings, their figures and their curves."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kapps._errors import InputError, one_line, printable
from kapps._files import atomic_write, write_text
from kapps.tools import curves
from kapps.tools.history import History, read_history
from kapps.tools.page import Section, Table, render
from kapps.tools.pictures import png, svg

_MISSING = "\N{EN DASH}"
_MOST_TEXT = 40  # characters of a setting in the table
_TOGETHER = "together.png"

# Settings with a column of their own, and those that tell nothing of how it was trained.
_NOT_COMPARED = {
    *("model", "dataset", "class_names", "images"),
    *("data_dir", "evaluation", "format", "versions"),
}


@dataclass(frozen=True)
class RunFigures:
    """What is told of a run; None is what it does not tell. Accuracies are shares, 0 to 1.

    Attributes:
        run: its name: the folder's, with as much of the path as tells it from the others.
        folder: as it was given.
        picture: the name of the file of its curves.
        model: the network.
        dataset: what it was trained on.
        settings: those in which the runs differ.
        epochs: how many are done.
        seconds: of training, without validation and breaks.
        best_top1: of validation, likewise all that follow.
        best_top1_epoch: after which epoch it was first reached, counted from 1.
        last_top1: after the last epoch.
        last_top5: likewise.
        best_loss: mean cross-entropy, nats; the least.
        best_loss_epoch: as `best_top1_epoch`.
        last_loss: after the last epoch.
    """

    run: str
    folder: str
    picture: str
    model: str
    dataset: str
    settings: Mapping[str, Any]
    epochs: int
    seconds: float | None
    best_top1: float | None
    best_top1_epoch: int | None
    last_top1: float | None
    last_top5: float | None
    best_loss: float | None
    best_loss_epoch: int | None
    last_loss: float | None

    def __str__(self) -> str:
        text = f"{self.run}: {self.model} on {self.dataset}, {self.epochs} epochs"
        if self.best_top1 is None:
            return text
        return (
            f"{text}; validation top-1 {_number(self.last_top1, '.4f')}, at best "
            f"{self.best_top1:.4f} after epoch {self.best_top1_epoch}"
        )


def write_runs(
    folders: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]
) -> list[RunFigures]:
    """Draws the curves of runs, each alone and all together, and compares their figures.

    Args:
        folders: those of the runs, which may still be training; one that comes twice counts once.
        output: folder for a PNG file of each run, `together.png` if there are several, and
            `index.html`, which has all of it and needs none of them.

    Raises:
        InputError: there is no run, a file of it is damaged, or the output cannot be written.
    """
    distinct = list({os.path.realpath(folder): Path(folder) for folder in folders}.values())
    if not distinct:
        raise InputError("nothing to plot: name the folder of a run")
    histories = [read_history(folder) for folder in distinct]
    names = tell_apart(distinct)
    files = file_names(names)
    pictures = {
        file: (f"Run {name}", curves.alone(history))
        for file, name, history in zip(files, names, histories, strict=True)
    }
    if len(histories) > 1:
        pictures = {_TOGETHER: ("All runs", curves.together(names, histories)), **pictures}
    compared = differing(histories)
    found = [
        _figures(name, history, file, compared)
        for name, history, file in zip(names, histories, files, strict=True)
    ]
    sections = [Section("Figures", _table(found))]
    for number, (file, (heading, picture)) in enumerate(pictures.items()):
        with atomic_write(Path(output) / file) as temporary:
            temporary.write_bytes(png(*picture))
        label = f"{heading}: loss, top-1, learning rate and images/s over the epochs"
        shown = svg(*picture, label=label, number=number)
        sections.append(Section(heading, picture=shown))
    write_text(Path(output) / "index.html", render("Training runs", _FACTS, sections))
    return found


def tell_apart(folders: Sequence[Path]) -> list[str]:
    """A name for each of several folders: its own, with as much of its path as it takes."""
    paths = [Path(os.path.realpath(folder)).parts for folder in folders]
    names = []
    for own in paths:
        length = 1
        while sum(other[-length:] == own[-length:] for other in paths) > 1:
            length += 1
        names.append(printable(os.path.join(*own[-length:])))
    return names


def file_names(names: Sequence[str]) -> list[str]:
    """A PNG file for each run: of letters that every disk takes, and no two the same."""
    taken = {_TOGETHER}
    files = []
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9.-]+", "_", name).lstrip(".")[:100] or "run"
        numbered = (f"{stem}{'' if n == 1 else f'_{n}'}.png" for n in itertools.count(1))
        file = next(file for file in numbered if file.lower() not in taken)
        taken.add(file.lower())
        files.append(file)
    return files


def differing(histories: Sequence[History]) -> list[str]:
    """The settings that are not the same in all runs; where a run lacks one it is None."""
    names = dict.fromkeys(name for history in histories for name in history.settings)
    return [
        name
        for name in names
        if name not in _NOT_COMPARED
        and len({json.dumps(history.settings.get(name)) for history in histories}) > 1
    ]


def _figures(name: str, history: History, file: str, compared: Sequence[str]) -> RunFigures:
    last = history.epochs[-1] if history.epochs else {}
    top1, top1_epoch = _best(history, "validation_top1", max)
    loss, loss_epoch = _best(history, "validation_loss", min)
    return RunFigures(
        run=name,
        folder=str(history.folder),
        picture=file,
        model=printable(history.settings.get("model", _MISSING)),
        dataset=printable(history.settings.get("dataset", _MISSING)),
        settings={name: history.settings.get(name) for name in compared},
        epochs=int(last.get("epoch", 0)),
        seconds=history.seconds(),
        best_top1=top1,
        best_top1_epoch=top1_epoch,
        last_top1=_known(last.get("validation_top1")),
        last_top5=_known(last.get("validation_top5")),
        best_loss=loss,
        best_loss_epoch=loss_epoch,
        last_loss=_known(last.get("validation_loss")),
    )


def _best(
    history: History, name: str, choose: Callable[..., tuple[float, float]]
) -> tuple[float | None, int | None]:
    """The best figure of that name, and the first epoch that has it."""
    known = [(line[name], line["epoch"]) for line in history.epochs if name in line]
    known = [(value, epoch) for value, epoch in known if not math.isnan(value)]
    if not known:
        return None, None
    value, epoch = choose(known, key=lambda pair: pair[0])
    return value, int(epoch)


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


# The table.

_FACTS = {
    "Best": "of all epochs, and after which one; a choice by validation flatters the figure",
    "Time": "of training alone, without validation and breaks",
    "Settings": "only those in which the runs differ",
    _MISSING: "not told by the run",
}
_HEADER = (
    *("epochs done", "time", "top-1 last, %", "top-1 best, %", "top-5 last, %"),
    *("loss last", "loss best"),
)


def _table(runs: Sequence[RunFigures]) -> Table:
    settings = list(runs[0].settings)
    header = ["run", "model", "data set", *_HEADER, *settings]
    header = [name.replace("-", "\N{NON-BREAKING HYPHEN}") for name in header]
    rows = [
        [
            *(run.run, run.model, run.dataset),
            *(str(run.epochs), _duration(run.seconds)),
            _percent(run.last_top1),
            _at(_percent(run.best_top1), run.best_top1_epoch),
            _percent(run.last_top5),
            _number(run.last_loss, ".4f"),
            _at(_number(run.best_loss, ".4f"), run.best_loss_epoch),
            *(_setting(run.settings[name]) for name in settings),
        ]
        for run in runs
    ]
    caption = "Top-1, top-5 and loss are those of the validation images."
    return Table(header, rows, text_columns=range(3), caption=caption)


def _setting(value: Any) -> str:
    if value is None:
        return _MISSING
    return one_line(value if isinstance(value, str) else json.dumps(value), _MOST_TEXT)


def _at(text: str, epoch: int | None) -> str:
    return text if epoch is None else f"{text}\N{NO-BREAK SPACE}({epoch})"


def _number(value: float | None, form: str) -> str:
    return _MISSING if value is None else format(value, form)


def _percent(share: float | None) -> str:
    return _MISSING if share is None else f"{100 * share:.2f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _MISSING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
