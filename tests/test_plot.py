"""kapps-plot: what a run has written is read whatever became of the run, and shown as it is."""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from pages import read_page
from PIL import Image
from programs import run_here

from kapps import InputError
from kapps.tools import curves
from kapps.tools.history import column, read_history
from kapps.tools.pictures import Inks
from kapps.tools.runs_page import differing, file_names, tell_apart, write_runs

OLD_RUN = Path(__file__).with_name("run_folder")
SETTINGS = {"model": "LeNet5", "dataset": "digits", "images": 1610, "batch_size": 32, "seed": 0}
INKS = Inks("black", "gray", "silver")


def epoch(number: int, **figures: Any) -> dict[str, Any]:
    return {"kind": "epoch", "epoch": number, "step": 50 * number, "time": "2030-01-01", **figures}


def step(number: int, **figures: Any) -> dict[str, Any]:
    return {"kind": "step", "step": number, "epoch": number // 50 + 1, **figures}


LINES = [
    step(25, train_loss=2.0, learning_rate=0.1, images_per_second=90.0),
    epoch(1, train_loss=1.5, validation_loss=1.4, validation_top1=0.5, images_per_second=100.0),
    step(75, train_loss=1.0, learning_rate=0.2, images_per_second=80.0),
    epoch(2, train_loss=0.9, validation_loss=0.8, validation_top1=0.75, images_per_second=200.0),
    epoch(3, train_loss=0.7, validation_loss=0.9, validation_top1=0.7, images_per_second=100.0),
]


def write_run(
    folder: Path, lines: list[dict[str, Any]] | None = None, end: str = "", **settings: Any
) -> Path:
    """A run's folder; `end` comes after the lines, which are LINES by default."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SETTINGS | settings))
    text = "".join(json.dumps(line) + "\n" for line in (LINES if lines is None else lines))
    (folder / "metrics.jsonl").write_text(text + end)
    return folder


def test_steps_lie_between_their_epochs(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path, [*LINES, step(160, train_loss=0.5)]))
    assert column(history.epochs, "epoch").tolist() == [1, 2, 3]
    assert column(history.steps, "epoch").tolist() == [0.5, 1.5, 3.2]
    assert column(history.steps, "learning_rate").tolist()[:2] == [0.1, 0.2]


def test_steps_of_the_first_epoch_lie_by_the_settings(tmp_path: Path) -> None:
    """1,610 images in batches of 32 are 50 steps."""
    history = read_history(write_run(tmp_path, [step(10), step(20)]))
    assert column(history.steps, "epoch").tolist() == [0.2, 0.4]
    (tmp_path / "config.json").write_text("{}")
    assert column(read_history(tmp_path).steps, "epoch").tolist() == [1, 1]


def test_training_time(tmp_path: Path) -> None:
    """1,600 images an epoch, at 100, 200 and 100 a second; one that does not tell spoils it."""
    assert read_history(write_run(tmp_path)).seconds() == 16 + 8 + 16
    write_run(tmp_path, [*LINES, epoch(4, images_per_second=None)])
    assert read_history(tmp_path).seconds() is None


def test_phases_follow_one_another(tmp_path: Path) -> None:
    """Those of kapps-tune, each of which counts from 1."""
    lines = [
        {**line, "phase": phase}
        for phase, loss in (("prune", 1.0), ("quantize_aware", 0.5))
        for line in (step(25, train_loss=loss), epoch(1), epoch(2))
    ]
    history = read_history(write_run(tmp_path, lines))
    assert column(history.epochs, "epoch").tolist() == [1, 2, 3, 4]
    assert column(history.steps, "epoch").tolist() == [0.5, 2.5]
    assert column(history.steps, "train_loss").tolist() == [1.0, 0.5]


def test_a_run_of_before_metrics_were_written() -> None:
    history = read_history(OLD_RUN)
    assert column(history.epochs, "validation_top1").tolist() == [0.2875, 0.2625]
    assert not history.steps


@given(cut=st.integers(0, 10**6))
def test_a_file_that_is_cut_anywhere(cut: int) -> None:
    """A killed run leaves its whole lines, and part of one, which is as if it were not there."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_run(Path(temporary))
        content = (folder / "metrics.jsonl").read_bytes()
        left = content[: cut % (len(content) + 1)]
        (folder / "metrics.jsonl").write_bytes(left)
        # The last brace ends a line that lacks nothing but its newline.
        whole = left.count(b"\n") + left.endswith(b"}")
        if not whole:
            with pytest.raises(InputError, match="has no figures yet"):
                read_history(folder)
            return
        history = read_history(folder)
        assert len(history.epochs) + len(history.steps) == whole


@given(runs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=5))
def test_of_what_was_written_twice_the_later_counts(runs: list[tuple[int, int]]) -> None:
    """A run that goes back to any step again and again; its loss tells which attempt wrote it."""
    lines, last = [step(99, train_loss=-1.0)], {99.0: -1.0}
    for attempt, (first, count) in enumerate(runs):
        for number in range(first, first + count):
            lines.append(step(number, train_loss=float(attempt)))
            last[number] = float(attempt)
    with tempfile.TemporaryDirectory() as temporary:
        history = read_history(write_run(Path(temporary), lines))
    assert column(history.steps, "step").tolist() == sorted(last)
    assert column(history.steps, "train_loss").tolist() == [last[n] for n in sorted(last)]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1]", "\udcff", "1" * 5000, "[" * 100_000),
        *(
            '{"kind": "step", "st',
            '{"kind": "step", "step": 1.5}',
            '{"kind": "step", "step": true}',
        ),
        *('{"kind": "epoch"}', '{"kind": "epoch", "epoch": -1}', '{"kind": "step", "step": 1e400}'),
    ],
    ids=lambda text: text[:20],
)
def test_damage_elsewhere_is_named(tmp_path: Path, text: str) -> None:
    write_run(tmp_path)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    damaged = text.encode(errors="surrogateescape")
    (tmp_path / "metrics.jsonl").write_bytes(whole + damaged + b"\n" + whole)
    with pytest.raises(InputError, match=r"metrics.jsonl, line 6 is damaged.*leave this run out$"):
        read_history(tmp_path)


def test_what_is_no_figure(tmp_path: Path) -> None:
    """null is NaN, like numbers that are none in floating point; other kinds and texts pass by."""
    lines = [epoch(1, train_loss=None, note="x", ok=True, huge=10**400, validation_top1=0.25)]
    lines += [{"kind": "image", "epoch": "none"}, epoch(2, validation_top1=None)]
    history = read_history(write_run(tmp_path, lines))
    first = history.epochs[0]
    assert math.isnan(first["train_loss"]) and math.isnan(first["huge"])
    assert set(first) == {"epoch", "step", "train_loss", "huge", "validation_top1"}
    (figures,) = write_runs([tmp_path], tmp_path / "out")
    assert (figures.best_top1, figures.best_top1_epoch, figures.last_top1) == (0.25, 1, None)


def drawn(picture: curves.Picture) -> dict[str, Any]:
    """The four panels, by their titles."""
    figure = Figure()
    picture.draw(figure, INKS)
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_curves_of_a_run(tmp_path: Path) -> None:
    panels = drawn(curves.alone(read_history(write_run(tmp_path))))
    assert list(panels) == ["Loss, nats", "Top-1, %", "Learning rate", "Training, images/s"]
    found = {
        name: [line.get_xydata().tolist() for line in axes.lines] for name, axes in panels.items()
    }
    assert found == {
        "Loss, nats": [
            [[0.5, 2.0], [1.5, 1.0]],  # training by step, pale
            [[1, 1.5], [2, 0.9], [3, 0.7]],
            [[1, 1.4], [2, 0.8], [3, 0.9]],
        ],
        "Top-1, %": [[[1, 50], [2, 75], [3, 70]]],
        "Learning rate": [[[0.5, 0.1], [1.5, 0.2]]],
        "Training, images/s": [[[0.5, 90], [1, 100], [1.5, 80], [2, 200], [3, 100]]],
    }
    pale, train, validation = panels["Loss, nats"].lines
    assert pale.get_color() == train.get_color() != validation.get_color()
    assert pale.get_alpha() < 1 and train.get_alpha() is None
    names = [text.get_text() for text in panels["Loss, nats"].figure.legends[0].get_texts()]
    assert names == ["train", "validation"]


def test_curves_of_several_runs(tmp_path: Path) -> None:
    """A color a run, and where the colors come again, markers; only some lines are solid."""
    histories = [read_history(write_run(tmp_path / str(i))) for i in range(9)]
    names = [f"run {i}" for i in range(8)] + ["$x^2$ " + "long" * 20]
    panels = drawn(curves.together(names, histories))
    lines = panels["Loss, nats"].lines
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines]
    assert len(set(looks)) == 18 and {look[2] for look in looks} == {"-", "--"}
    runs, kinds = panels["Top-1, %"].figure.legends
    shown = [text.get_text() for text in runs.get_texts()]
    assert shown[:8] == names[:8] and shown[8].startswith("$x^2$ long") and len(shown[8]) <= 40
    assert [text.get_text() for text in kinds.get_texts()] == ["train", "validation"]


def test_a_long_run_has_few_points_that_tell_the_same(tmp_path: Path) -> None:
    """And one epoch alone is a dot: a line of one point is none."""
    noise = np.random.default_rng(0).normal(size=5000)
    lines = [step(n, train_loss=5 + noise[n]) for n in range(1, 5000)]
    axes = drawn(curves.alone(read_history(write_run(tmp_path / "long", lines))))["Loss, nats"]
    x, y = axes.lines[0].get_xydata().T
    assert 100 <= len(x) <= 500 and x[0] < 0.5 and x[-1] > 99
    assert abs(y.mean() - 5 - noise[1:].mean()) < 0.01  # parts of 12 and of 13 steps
    short = read_history(write_run(tmp_path / "short", LINES[1:2]))
    (dot, _) = drawn(curves.alone(short))["Loss, nats"].lines
    assert dot.get_marker() == "o"


def test_a_first_peak_does_not_hide_the_rest(tmp_path: Path) -> None:
    losses = [1000.0, 1.5, 1.2]
    lines = [epoch(n, train_loss=loss) for n, loss in enumerate(losses, start=1)]
    assert (
        drawn(curves.alone(read_history(write_run(tmp_path, lines))))["Loss, nats"].get_yscale()
        == "log"
    )


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/net", "b/net", "b/other", "c/b/net")]
    assert tell_apart(folders) == [
        f"{tmp_path.name}/b/net" if n == 1 else name
        for n, name in enumerate(["a/net", "", "other", "c/b/net"])
    ]


def test_files_have_names_of_their_own() -> None:
    names = ["a/b", "a b", "A b", "together", ".hidden", "\n", "x" * 300, "-rf"]
    files = file_names(names)
    assert files[:6] == [
        *("a_b.png", "a_b_2.png", "A_b_3.png"),
        *("together_2.png", "hidden.png", "_.png"),
    ]
    assert all(re.fullmatch(r"[\w.-]{1,120}\.png", file) for file in files)


def test_only_settings_that_differ_are_compared(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", learning_rate=0.1, data_dir="/x", mixup=None, stages=[1, 2]),
        write_run(tmp_path / "b", learning_rate=0.2, data_dir="/y", stages=[1, 2]),
        write_run(tmp_path / "c", learning_rate=0.2, model="VGG", stages=[1, 3], format=2),
    ]
    histories = [read_history(run) for run in runs]
    assert differing(histories) == ["learning_rate", "stages"]
    assert differing(histories[:1]) == []


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three runs, one of them given twice."""
    folder = tmp_path_factory.mktemp("plot")
    runs = [write_run(folder / "x/net"), write_run(folder / "y/net", learning_rate=0.5), OLD_RUN]
    write_runs([*runs, runs[0]], folder / "out")
    return folder / "out"


def test_page_has_the_figures(page: Path) -> None:
    found = read_page(page / "index.html")
    header, *rows = found.rows
    plain = [name.replace("\N{NON-BREAKING HYPHEN}", "-") for name in header]
    assert plain[:5] == ["run", "model", "data set", "epochs done", "time"]
    row = dict(zip(plain, rows[0], strict=True))
    assert len(rows) == 3 and [cells[0] for cells in rows] == ["x/net", "y/net", "run_folder"]
    assert (row["model"], row["epochs done"], row["time"]) == ("LeNet5", "3", "0:00:40")
    assert (row["top-1 last, %"], row["top-5 last, %"]) == ("70.00", "\N{EN DASH}")
    assert row["top-1 best, %"] == "75.00\N{NO-BREAK SPACE}(2)"
    assert row["loss best"] == "0.8000\N{NO-BREAK SPACE}(2)"
    assert [cells[plain.index("learning_rate")] for cells in rows] == ["\N{EN DASH}", "0.5", "0.01"]
    assert "images" not in plain


def test_page_needs_nothing_else(page: Path) -> None:
    found = read_page(page / "index.html")
    assert found.tags.count("svg") == 4 and "script" not in found.tags
    assert all(source.startswith("#") for source in found.sources)
    assert not re.search(r"@import|url\((?!#)", (page / "index.html").read_text())
    assert len(found.ids) == len(set(found.ids))


def test_pictures(page: Path) -> None:
    names = ["together.png", "x_net.png", "y_net.png", "run_folder.png"]
    assert {file.name for file in page.iterdir()} == {"index.html", *names}
    for name in names:
        with Image.open(page / name) as image:
            assert image.format == "PNG" and min(image.size) > 700
            assert len(image.convert("RGB").getcolors(1 << 20)) > 50, "no empty picture"


def test_names_are_text(tmp_path: Path) -> None:
    """In the page and in its pictures, and a font that lacks a letter is no warning."""
    run = write_run(tmp_path / "<b>$a_b^", model="<script>", dataset="猫\n<i>")
    (figures,) = write_runs([run, run], tmp_path / "out")
    assert figures.dataset == "猫 <i>"
    found = read_page(tmp_path / "out" / "index.html")
    assert not {"b", "i"} & set(found.tags) and found.tags.count("script") == 0
    assert found.rows[1][:3] == ["<b>$a_b^", "<script>", "猫 <i>"]


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "net", end='{"kind": "epo')
    arguments = f"{run} --output={tmp_path}/out"
    answer = run_here("tools.plot", arguments, capsys)
    assert not answer.code and not answer.stderr, answer.stderr
    assert answer.stdout == (
        "net: LeNet5 on digits, 3 epochs; validation top-1 0.7000, at best 0.7500 after epoch 2\n"
        f"{tmp_path}/out/index.html\n"
    )
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["index.html", "net.png"]
    answer = run_here("tools.plot", arguments + " --json=-", capsys)
    (values,) = json.loads(answer.stdout)
    assert values["best_loss"] == 0.8 and values["best_loss_epoch"] == 2
    assert values["picture"] == "net.png" and values["seconds"] == 40


MISTAKES = {
    "": "RUN... must be given",
    "{tmp}/gone": "{tmp}/gone holds no training run (config.json); name the --workdir",
    "{tmp}": "{tmp} holds no training run",
    "{tmp}/new": "{tmp}/new has no figures yet (metrics.jsonl or result.json)",
    "{tmp}/good {tmp}/damaged": "{tmp}/damaged/metrics.jsonl, line 6 is damaged; restore it",
    "{tmp}/settings": "{tmp}/settings/config.json is damaged; restore it, or leave this run out",
    "{tmp}/history": "{tmp}/history/result.json is damaged: no whole number 'epoch'",
    "{tmp}/good --output={tmp}/file": "cannot write {tmp}/file/good.png",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    write_run(tmp_path / "good")
    write_run(tmp_path / "new", [])
    write_run(tmp_path / "damaged", end="{\n")
    (write_run(tmp_path / "settings") / "config.json").write_text("[]")
    (write_run(tmp_path / "history", []) / "result.json").write_text('{"history": [{}]}')
    (tmp_path / "file").write_text("")
    default = "" if "--output" in arguments else f" --output={tmp_path}/out"
    answer = run_here("tools.plot", arguments.format(tmp=tmp_path) + default, capsys)
    assert answer.code == 2 and not answer.stdout
    assert answer.stderr.startswith("kapps-plot: error: ") and answer.stderr.count("\n") == 1
    assert MISTAKES[arguments].format(tmp=tmp_path) in answer.stderr
    assert not (tmp_path / "out").exists()
