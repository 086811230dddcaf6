"""kapps-report: results of several programs, models and devices on one page."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from pages import read_page
from tflite_crafted import crafted_file
from tflite_net import LABELS

from kapps import InputError
from kapps.tflite import Metadata, Runner
from kapps.tflite.accuracy import (
    Accuracy,
    describe,
    evaluate_file,
    model_and_variant,
    read_accuracy,
    write_accuracy,
)
from kapps.tflite.measurement.benchmark import write_results
from kapps.tflite.measurement.latency import Latency
from kapps.tflite.metadata import with_metadata
from kapps.tflite.report import read_overview, write_overview
from kapps.tflite.robustness import RobustLevel, Robustness

pytest_plugins = ["tflite_fixtures"]

NONE = "\N{EN DASH}"
PHONE, BOARD = "Some <Phone> & co", "ssh:pi: Pi | 4"


def _sha(name):
    return f"{sum(map(ord, name)):064x}"


def _accuracy(model, variant, top1, **values):
    file = f"{model}_{variant}.tflite"
    return Accuracy(
        model=model,
        variant=variant,
        file=file,
        sha256=_sha(file),
        size_bytes=204_800 if variant == "float32" else 102_400,
        dataset="digits",
        split="test",
        images=360,
        top1=top1,
        top5=1.0,
        **values,
    )


def _latency(model, variant, p50, device=PHONE, **values):
    file = f"{model}_{variant}.tflite"
    return Latency(
        **{
            "file": Path(file),
            "device": device,
            "threads": 1,
            "runs": 1000,
            "p50_ms": p50,
            "p90_ms": None if p50 is None else 1.5 * p50,
            "p99_ms": None,
            "mean_ms": 1.0,
            "std_ms": 0.1,
            "initialization_ms": 2.0,
            "delegate_pieces": None,
            "sha256": _sha(file),
            "size_bytes": 204_800 if variant == "float32" else 102_400,
            "date": "2024-01-01T00:00:00+00:00",
        }
        | values
    )


@pytest.fixture
def results(tmp_path):
    """Two models on two devices; not everything was measured of the second."""
    accuracies = [
        _accuracy("NetA", "float32", 0.98125),
        _accuracy("NetA", "int8", 0.975),
        _accuracy("NetA", "int8-qat", 0.98),
        _accuracy("NetB", "float32", 0.9),
    ]
    paths = []
    for accuracy in accuracies:
        paths.append(tmp_path / f"{accuracy.file}.json")
        write_accuracy(accuracy, paths[-1])
    phone = [
        _latency("NetA", "float32", 12.34),
        _latency("NetA", "int8", 5.678),
        _latency("NetA", "int8-qat", 5.7),
        _latency("NetB", "float32", 3.0),
    ]
    paths.append(write_results(phone, tmp_path / "phone.json"))
    board = [_latency("NetA", "float32", 120.0, BOARD), _latency("NetB", "int8", None, BOARD)]
    paths.append(write_results(board, tmp_path / "board.json"))
    return paths


def _rows(text, heading):
    section = text.partition(f"## {heading}\n\n")[2]
    if not section.startswith("|"):  # a caption
        section = section.partition("\n\n")[2]
    section = section.partition("\n\n")[0]
    lines = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in section.splitlines()]
    return [[cell.strip() for cell in line] for line in lines]


def test_the_table_of_models(results, tmp_path):
    write_overview(read_overview(results), tmp_path / "out", title="Title")
    text = (tmp_path / "out" / "report.md").read_text()
    header, _, *rows = _rows(text, "Models")
    assert header[1:5] == ["top-1 float32, %", "top-1 PTQ, %", "top-1 QAT, %", "size, KiB"]
    assert header[5:] == ["p50 on A, ms", "p50 on B, ms"]
    assert rows == [
        ["NetA", "98.12", "97.50", "98.00", "200 → 100", "12.3 → 5.68", f"120 → {NONE}"],
        ["NetB", "90.00", NONE, NONE, "200 → 100", f"3.00 → {NONE}", NONE],
    ]
    assert "- Device A: Some &lt;Phone> & co, cpu, 1 thread\n" in text
    assert "- Top-1, %: of the files, on digits, test split, 360 images\n" in text


def test_the_table_of_files(results, tmp_path):
    write_overview(read_overview(results), tmp_path, title="Title")
    rows = _rows((tmp_path / "report.md").read_text(), "Files")[2:]
    assert rows[0] == [
        *("NetA_float32.tflite", "NetA", "float32", "98.12", "200", "A"),
        *("12.3", "18.5", NONE, "1,000", NONE, NONE),
    ]
    assert [row[0] for row in rows] == [
        *("NetA_float32.tflite", "NetA_float32.tflite", "NetA_int8.tflite"),
        *("NetA_int8-qat.tflite", "NetB_float32.tflite", "NetB_int8.tflite"),
    ]
    assert rows[-1][2:8] == ["int8", NONE, "100", "B", NONE, NONE]


def test_the_order_of_results_does_not_matter(results):
    def known(paths):
        return {entry.sha256: entry for entry in read_overview(paths).entries}

    assert known(results) == known(results[::-1])
    assert known(results) == known([*results, *results])


def test_json_has_every_figure(results, tmp_path):
    overview = read_overview(results)
    write_overview(overview, tmp_path, title="Title")
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["kapps_report"] == 1
    assert values["devices"] == [f"{PHONE}, cpu, 1 thread", f"{BOARD}, cpu, 1 thread"]
    files = [asdict(entry) for entry in overview.entries]
    assert values["files"] == json.loads(json.dumps(files))  # of tuples, lists


def test_the_page(results, tmp_path):
    path = write_overview(read_overview(results), tmp_path, title="A <b> title")[2]
    page = read_page(path)
    assert "A <b> title" in page.text
    assert PHONE in page.text
    assert page.tags.count("svg") == 1
    assert page.tags.count("table") == 2
    assert not {"b", "phone", "script"} & set(page.tags)
    assert all(source.startswith("#") for source in page.sources)
    text = path.read_text()
    assert "<title>Top-1 accuracy over median latency of 4 files on 2 devices" in text
    assert re.search(r"<text[^>]*>NetA</text>", text)  # beside its point of the front
    assert not re.search(r"#0[0-9]0[0-9]0[0-9]|(stroke|fill): ?(black|#000000)", text)


def _robustness(clean, top1s, *, source="a", **values):
    """By PGD of one network, or as the values say; `top1s` by eps."""
    levels = tuple(RobustLevel(eps, eps / 8, top1) for eps, top1 in top1s.items())
    settings = {"method": "pgd", "norm": "linf", "iterations": 20, "start": "random"}
    settings |= {"restarts": 1, "seed": 0, "images": 200} | values
    return Robustness(
        **settings, source="NetA", source_sha256=_sha(source), clean=clean, levels=levels
    )


def _attacked(folder, *results):
    """Files of results of NetA: (variant, robustness)."""
    paths = []
    for number, (variant, robustness) in enumerate(results):
        paths.append(folder / f"attacked{number}.json")
        accuracy = _accuracy("NetA", variant, 0.975)
        write_accuracy(replace(accuracy, robustness=robustness), paths[-1])
    return paths


def test_clean_and_robust_accuracy_by_eps(tmp_path):
    paths = _attacked(
        tmp_path,
        ("float32", _robustness(0.99, {4: 0.5, 8: 0.125})),
        ("int8", _robustness(0.98, {8: 0.25})),
        ("int8", _robustness(0.98, {2: 0.75})),
        ("int8-qat", None),
    )
    overview = read_overview(paths)
    _, text, page = write_overview(overview, tmp_path / "out", title="t")
    header, _, *rows = _rows(text.read_text(), "Robustness")
    assert header[3:] == [
        "clean, %",
        "eps 2, step 0.25, %",
        "eps 4, step 0.5, %",
        "eps 8, step 1, %",
    ]
    assert rows == [
        ["NetA_float32.tflite", "NetA", "float32", "99.00", NONE, "50.00", "12.50"],
        ["NetA_int8.tflite", "NetA", "int8", "98.00", "75.00", NONE, "25.00"],
    ]
    told = "PGD, Linf, 20 iterations, random start, 1 restart, seed 0, "
    told += f"gradients of NetA ({_sha('a')[:8]})"
    assert f"\n{told}, 200 images. Top-1 of these images as they are" in text.read_text()
    assert "- Attacks: " not in text.read_text()
    text = page.read_text()
    assert f"<title>Top-1 over eps under {told}, 200 images" in text
    assert re.search(r"<text[^>]*>NetA_int8\.tflite</text>", text)
    assert not re.search(r"<text[^>]*>NetA_int8-qat\.tflite</text>", text)
    values = json.loads((tmp_path / "out" / "report.json").read_text())["files"]
    assert values[1]["robustness"][0]["levels"][0] == {"eps": 2, "step": 0.25, "top1": 0.75}
    assert values[2]["robustness"] == []


@pytest.mark.parametrize(
    "other",
    [
        {"method": "square", "start": "stripes"},
        {"iterations": 40},
        {"restarts": 2},
        {"start": "image"},
        {"seed": 1},
        {"source": "b"},
    ],
)
def test_other_attacks_have_their_own_table(other, tmp_path):
    paths = _attacked(
        tmp_path,
        ("int8", _robustness(0.99, {4: 0.5})),
        ("float32", _robustness(0.98, {4: 0.4}, **other)),
        ("int8", _robustness(0.97, {4: 0.3}, **other)),
    )
    text = write_overview(read_overview(paths), tmp_path, title="t")[1].read_text()
    assert "- Attacks: they differ in settings" in text
    found = [_rows(text, f"Robustness to attack {number}")[2:] for number in (1, 2)]
    assert sorted([[row[3:] for row in rows] for rows in found]) == [
        [["98.00", "40.00"], ["97.00", "30.00"]],
        [["99.00", "50.00"]],
    ]


def test_black_boxes_of_two_files_are_one_attack(tmp_path):
    square = {"method": "square", "start": "stripes"}
    paths = _attacked(
        tmp_path,
        *((v, _robustness(0.99, {4: 0.5}, source=v, **square)) for v in ("float32", "int8")),
    )
    text = write_overview(read_overview(paths), tmp_path, title="t")[1].read_text()
    assert len(_rows(text, "Robustness")) == 4


def test_steps_have_columns_of_their_own(tmp_path):
    other = replace(_robustness(0.9, {4: 0.5}), levels=(RobustLevel(4, 1.0, 0.25),))
    paths = _attacked(tmp_path, ("int8", _robustness(0.9, {4: 0.5})), ("float32", other))
    text = write_overview(read_overview(paths), tmp_path, title="t")[1].read_text()
    header, _, *rows = _rows(text, "Robustness")
    assert header[4:] == ["eps 4, step 0.5, %", "eps 4, step 1, %"]
    assert [row[4:] for row in rows] == [[NONE, "25.00"], ["50.00", NONE]]


def test_an_attack_that_contradicts_another(tmp_path):
    one = _robustness(0.9, {4: 0.5})
    for other, message in (
        (replace(one, clean=0.8), "clean top-1 of NetA_int8.tflite under PGD"),
        (_robustness(0.9, {4: 0.6}), "top-1 at eps 4 of NetA_int8.tflite under PGD"),
    ):
        with pytest.raises(InputError, match=message) as error:
            read_overview(_attacked(tmp_path, ("int8", one), ("int8", other)))
        assert "attacked0.json and" in str(error.value)


def test_accuracy_alone_and_latency_alone(results, tmp_path):
    for number, part in enumerate((results[:1], results[-1:])):
        path = write_overview(read_overview(part), tmp_path / str(number), title="t")[2]
        assert "svg" not in read_page(path).tags


def test_threads_and_accelerators_are_devices_of_their_own(tmp_path):
    file = write_results(
        [
            _latency("N", "int8", 3.0),
            _latency("N", "int8", 2.0, threads=4),
            _latency("N", "int8", 1.0, accelerator="gpu"),
        ],
        tmp_path / "r.json",
    )
    assert read_overview([file]).devices == [
        f"{PHONE}, cpu, 1 thread",
        f"{PHONE}, cpu, 4 threads",
        f"{PHONE}, gpu, 1 thread",
    ]


def _contradict(tmp_path, *results):
    paths = []
    for number, result in enumerate(results):
        paths.append(tmp_path / f"{number}.json")
        if isinstance(result, Accuracy):
            write_accuracy(result, paths[-1])
        else:
            write_results([result], paths[-1])
    with pytest.raises(InputError, match="contradict each other") as error:
        read_overview(paths)
    assert all(str(path) in str(error.value) for path in paths)
    return str(error.value)


def test_contradictions_name_both(tmp_path):
    one = _accuracy("N", "int8", 0.9)
    assert "top-1 of N_int8" in _contradict(tmp_path, one, replace(one, top1=0.8))
    assert "different images" in _contradict(tmp_path, one, replace(one, dataset="cats"))
    assert "is a file of" in _contradict(tmp_path, one, replace(one, model="M"))
    assert "two sizes" in _contradict(tmp_path, one, _latency("N", "int8", 1.0, size_bytes=7))
    other = replace(one, sha256="0" * 64, file="other.tflite")
    assert "N_int8.tflite and other.tflite differ" in _contradict(tmp_path, one, other)
    twice = [_latency("N", "int8", value) for value in (1.0, 2.0)]
    assert "two measurements of N_int8" in _contradict(tmp_path, *twice)


BAD = {
    "{": "is no JSON",
    "[]": "is neither a result of kapps-evaluate --tflite",
    "[" * 100_000: "is no JSON",
    '{"kapps_accuracy": 2}': "is no result of kapps-evaluate --tflite: expected",
    '{"kapps_benchmark": 7}': "is of version 7",
    "\x00\xff": "is no JSON",
}


@pytest.mark.parametrize("text", BAD)
def test_no_results(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=BAD[text]) as error:
        read_overview([path])
    assert str(path) in str(error.value)


def test_no_such_file_and_nothing(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*absent\.json: No such file"):
        read_overview([tmp_path / "absent.json"])
    with pytest.raises(InputError, match="nothing to report"):
        read_overview([])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("top1", value) for value in (float("nan"), 1.5, -0.1, "0.9", True, None, 10**400)),
        *(("images", value) for value in (0, 1.5, True)),
        *(("sha256", value) for value in ("", "x" * 64, "A" * 64, 7)),
        *(("model", value) for value in ("", [], None, "\ud800", "a\nb", "x" * 1001)),
        *(("dataset", value) for value in ("two\nlines", "\x1b[31m")),
    ],
)
def test_an_accuracy_that_cannot_be(tmp_path, field, value):
    path = tmp_path / "r.json"
    values = {"kapps_accuracy": 1} | asdict(_accuracy("N", "int8", 0.5)) | {field: value}
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=rf"r\.json\.{field}: expected"):
        read_accuracy(path)


def test_a_variant_is_no_formula(tmp_path):
    values = _accuracy("N <b>", "$\\foo$", 0.5)
    write_accuracy(values, tmp_path / "a.json")
    latency = _latency("N", "x", 1.0, sha256=values.sha256, size_bytes=values.size_bytes)
    paths = [tmp_path / "a.json", write_results([latency], tmp_path / "b.json")]
    _, text, page = write_overview(read_overview(paths), tmp_path, title="t")
    assert re.search(r"\| N &lt;b> +\| \$\\foo\$ +\|", text.read_text())
    assert re.search(r"<text[^>]*>\$\\foo\$</text>", page.read_text())  # in the legend


def test_accuracies_come_back(tmp_path):
    accuracy = _accuracy("N", "int8", 0.5)
    write_accuracy(accuracy, tmp_path / "r.json")
    assert read_accuracy(tmp_path / "r.json") == accuracy


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("MobileNetV2_int8.tflite", ("MobileNetV2", "int8")),
        ("ShuffleNetV2_x0_5_float32.tflite", ("ShuffleNetV2_x0_5", "float32")),
        ("a-int8-qat.tflite", ("a", "int8-qat")),
        ("a_qat.tflite", ("a", "int8-qat")),
        ("a_int16x8.tflite", ("a", "int16x8")),
        ("net.tflite", ("net", "")),
        ("int8.tflite", ("int8", "")),
    ],
)
def test_what_a_name_says(file, expected):
    assert model_and_variant(file) == expected


def _main(program, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"kapps.{program}", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_the_program(results, tmp_path):
    done = _main("tflite.programs.report", *results, f"--output={tmp_path / 'out'}", "--title=T")
    assert done.returncode == 0
    names = ("report.json", "report.md", "report.html")
    assert done.stdout.splitlines() == [str(tmp_path / "out" / name) for name in names]
    assert (tmp_path / "out" / "report.md").read_text().startswith("# T\n")


def test_the_program_says_what_is_wrong(tmp_path):
    done = _main("tflite.programs.report", tmp_path / "absent.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"kapps-report: error: cannot read .*absent\.json: .*\n", done.stderr)
    done = _main("tflite.programs.report")
    assert done.returncode == 2
    assert "RESULT... must be given" in done.stderr


# The accuracy of a file. The small network's own files are what other tests convert.


def _batches(images, labels, size=100):
    """With a last batch that is filled up, as the data pipeline does it."""
    for start in range(0, len(images), size):
        batch, truth = images[start : start + size], labels[start : start + size]
        missing = size - len(batch)
        yield (
            np.concatenate([batch, np.zeros((missing, *images.shape[1:]), "uint8")]),
            np.concatenate([truth, np.full(missing, -1)]),
        )


@pytest.mark.parametrize("quantization", ["float32", "float16", "dynamic", "int8"])
def test_the_accuracy_of_a_file(conversions, digits, quantization):
    images, labels = digits[1][0][:150], digits[1][1][:150]
    path = conversions[quantization].path
    scores = Runner(path).predict(images)
    order = np.argsort(-scores, axis=1, kind="stable")
    done = []
    result = evaluate_file(
        path, _batches(images, labels), dataset="digits", split="test", progress=done.append
    )
    assert result.top1 == (order[:, 0] == labels).mean() > 0.9
    assert result.top5 == (order[:, :5] == labels[:, None]).any(axis=1).mean()
    assert (result.model, result.variant) == ("small_net", quantization)
    assert result.images == done[-1] == 150
    assert result.size_bytes == path.stat().st_size
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_many_images_go_in_parts(conversions, digits, monkeypatch):
    images, labels = digits[1][0][:60], digits[1][1][:60]
    settings = {"dataset": "d", "split": "s"}
    whole = evaluate_file(conversions["int8"].path, _batches(images, labels, 20), **settings)
    monkeypatch.setattr("kapps.tflite.accuracy._CHUNK_BYTES", images[:25].nbytes)
    done = []
    batches = _batches(images, labels, 20)
    parts = evaluate_file(conversions["int8"].path, batches, **settings, progress=done.append)
    assert parts == whole
    assert done == sorted(done)


def test_the_name_says_that_training_knew(conversions, tmp_path):
    path = tmp_path / "net_int8_qat.tflite"
    shutil.copy(conversions["int8"].path, path)
    assert describe(path).variant == "int8-qat"
    assert describe(path).labels == LABELS
    assert describe(path).image_size == (16, 16)


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "bad.tflite").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad\.tflite"):
        describe(tmp_path / "bad.tflite")
    with pytest.raises(InputError, match=r"no such file: absent\.tflite"):
        describe("absent.tflite")


@pytest.mark.parametrize("shape", [[1, 1, 1, 12], [1, 2, 2, 3], [12], [2, 6], [1, 1, 12]])
def test_what_is_no_classifier(shape, tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(crafted_file(shape))
    message = f"a.tflite gives {shape}: expected [1, classes]"
    with pytest.raises(InputError, match=re.escape(message)):
        describe(path)
    images, labels = np.zeros((3, 4, 4, 3), "uint8"), np.zeros(3, int)
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate_file(path, [(images, labels)], dataset="d", split="s")


def test_a_quantized_file_of_tensorflow_1(tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(crafted_file([1, 12], "UINT8"))
    assert describe(path).variant == "int8"
    assert describe(path).classes == 12
    path.write_bytes(crafted_file([1, 12]))
    assert describe(path).variant == "float32"


def test_a_file_of_any_name(tmp_path):
    path = tmp_path / "two\nlines.tflite"
    path.write_bytes(crafted_file([1, 12]))
    images, labels = np.zeros((3, 4, 4, 3), "uint8"), np.zeros(3, int)
    result = evaluate_file(path, [(images, labels)], dataset="a\nb", split="s")
    write_accuracy(result, tmp_path / "r.json")
    assert read_accuracy(tmp_path / "r.json") == result
    assert (result.file, result.dataset, result.top1) == ("two lines.tflite", "a b", 1.0)


@pytest.mark.parametrize(("std", "right"), [(1.0, 1.0), (-1.0, 0.0)])
def test_the_normalization_of_the_metadata_is_obeyed(std, right, tmp_path):
    """The file gives what it is given: the brightest pixels, or, if it asks so, the darkest."""
    path = tmp_path / "a.tflite"
    metadata = Metadata("net", ("a",) * 12, mean=(0.0,), std=(std,))
    path.write_bytes(with_metadata(crafted_file([1, 12]), metadata))
    images = np.zeros((1, 4, 4, 3), "uint8")
    images[0, :2, :2, 0] = 255
    result = evaluate_file(path, [(images, np.zeros(1, int))], dataset="d", split="s")
    assert result.top1 == right


def test_images_that_do_not_fit(conversions, digits):
    images, labels = digits[1][0][:2], np.array([3, 10])
    settings = {"dataset": "d", "split": "s"}
    path = conversions["int8"].path
    with pytest.raises(InputError, match="10 classes apart, and the data set d has an image of"):
        evaluate_file(path, [(images, labels)], **settings)
    with pytest.raises(InputError, match="expected images of shape"):
        evaluate_file(path, [(images[:, :8], labels[:1].repeat(2))], **settings)
    with pytest.raises(InputError, match="no images"):
        evaluate_file(path, [], **settings)
