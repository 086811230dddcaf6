"""The report: the same figures in three forms, and a page that needs nothing from outside."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from pages import read_page

from kapps import InputError
from kapps.tflite import Confusion, Latency, Row, write_report
from kapps.tflite.report.picture import front

DEVICE = "host: Some <CPU> & co, 2 cores"


def _row(model="LeNet5", variant="int8", top1=0.97, p50=1.0, device=DEVICE):
    return Row(
        model=model,
        variant=variant,
        top1=top1,
        size_bytes=123456,
        latency_ms={"p50": p50, "p90": 1.25 * p50, "p99": 2 * p50},
        threads=1,
        device=device,
        delegate_pieces=1,
        file=f"{model}-{variant}.tflite",
    )


ROWS = [
    _row(f"Net{i}", variant, 0.9 + 0.01 * i - 0.002 * j, 0.1 * 2**i + 0.01 * j)
    for i in range(4)
    for j, variant in enumerate(("float32", "float16", "dynamic", "int8"))
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The report of ROWS."""
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    return write_report(ROWS, folder, title="A <b> & c", facts={"x": "<script>"})


def test_json_is_the_rows(paths):
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    rows = json.loads(paths[0].read_text())
    assert rows[0] == {
        "model": "Net0",
        "variant": "float32",
        "top1": 0.9,
        "size_bytes": 123456,
        "latency_ms": {"p50": 0.1, "p90": 0.125, "p99": 0.2},
        "threads": 1,
        "device": DEVICE,
        "delegate_pieces": 1,
        "file": "Net0-float32.tflite",
    }
    assert len(rows) == 16


def test_a_row_of_a_measured_file(tmp_path):
    file = tmp_path / "a.tflite"
    file.write_bytes(bytes(100))
    latency = Latency(file, DEVICE, 2, 64, 1.0, 2.0, 3.0, 1.5, 0.1, 9.0, 4)
    row = Row.of("A", "int8", 0.5, latency)
    assert row.latency_ms == {"p50": 1.0, "p90": 2.0, "p99": 3.0}
    assert (row.size_bytes, row.threads, row.device) == (100, 2, DEVICE)
    assert (row.delegate_pieces, row.file) == (4, "a.tflite")


def test_markdown_has_every_figure_and_the_device(paths):
    text = paths[1].read_text()
    assert text.startswith("# A &lt;b> & c\n\n- x: &lt;script>\n")
    assert "Latency of one image on host: Some &lt;CPU> & co, 2 cores." in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(ROWS)
    assert len({line.count("|") for line in lines}) == 1
    line = next(line for line in lines if re.match(r"\| Net3 +\| int8 ", line))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:6] == ["Net3", "int8", "0.9240", "120.6", "0.830", "1.038"]
    assert cells[6:] == ["1.660", "1", "1", "Net3-int8.tflite"]


def test_the_page_is_self_contained(paths):
    path = paths[2]
    page = read_page(path)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "A <b> & c" in page.text
    assert all(source.startswith("#") or source in _files() for source in page.sources)
    assert not re.search(r"@import|url\((?!#)", path.read_text())
    assert len(page.ids) == len(set(page.ids))


def _files():
    return {row.file for row in ROWS}


def test_the_page_follows_light_and_dark_and_has_titles(paths):
    text = paths[2].read_text()
    assert "prefers-color-scheme: dark" in text
    svg = text[text.index("<svg") : text.index("</svg>")]
    assert 'role="img"' in svg
    assert "<title>Top-1 accuracy over median latency of 16 files on host: Some &lt;CPU" in svg
    assert "var(--text)" in svg
    assert not re.search(r"#0[0-9]0[0-9]0[0-9]|(stroke|fill): ?(black|#000000)", svg)


def test_each_device_has_its_own_picture(tmp_path):
    rows = [_row(), _row(device="host: Other")]
    page = read_page(write_report(rows, tmp_path, title="t")[2])
    assert page.tags.count("svg") == 2
    assert len(page.ids) == len(set(page.ids))


def test_the_same_rows_give_the_same_bytes(paths, tmp_path):
    again = write_report(ROWS, tmp_path, title="A <b> & c", facts={"x": "<script>"})
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_confusion_counts():
    confusion = Confusion.of("t", "abc", np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]))
    assert confusion.counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_confusion_matrix_on_the_page(tmp_path):
    confusion = Confusion.of("On <held-out>", ["cat", "dog"], np.array([0, 0, 1]), np.zeros(3, int))
    path = write_report(ROWS[:1], tmp_path, title="t", confusion=confusion)[2]
    assert "On <held-out>" in read_page(path).text
    table = path.read_text().partition('<table class="confusion">')[2]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", table) == ["2", "·", "1", "·"]


def test_many_classes_are_listed_by_their_worst_pairs(tmp_path):
    labels = [f"class {i}" for i in range(100)]
    truth = np.array([5] * 7 + [6] * 3 + [7] * 9)
    predicted = np.array([8] * 7 + [9] * 3 + [7] * 9)
    confusion = Confusion.of("t", labels, truth, predicted)
    text = write_report(ROWS[:1], tmp_path, title="t", confusion=confusion)[2].read_text()
    table = text.partition('<table class="pairs">')[2]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    assert cells == ["class 5", "class 8", "7", "class 6", "class 9", "3"]


def test_pareto_front():
    rows = [
        _row("slow", top1=0.99, p50=4),
        _row("beaten", top1=0.95, p50=3),
        _row("good", top1=0.97, p50=2),
        _row("equal but slower", top1=0.97, p50=2.5),
        _row("fast", top1=0.90, p50=1),
    ]
    best = front(rows, lambda row: (row.latency_ms["p50"], row.top1))
    assert [row.model for row in best] == ["fast", "good", "slow"]


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="no rows"):
        write_report([], tmp_path, title="t")
