"""Damaged and crafted files through inspection, comparison and benchmark.

No file may end or hang this process, and each that is refused gets one line that names it. There
are 500 of them, always the same, and each night 2,000 others.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from nights import at_night
from tflite_mutants import byte_mutants, structure_mutants
from tflite_net import small_net
from tflite_plain import plain_net

from kapps import InputError
from kapps.tflite import child, compare_layers, measure
from kapps.tflite.inspection import Inspection, inspect, inspect_each
from kapps.tflite.measurement.benchmark import table

_TIME_LIMIT = 8.0  # seconds a file; a sound one takes 0.01


def _files(bases, folder, each, seed=0):
    """`each` mutants of either sort, half of them of each base, as files."""
    files = []
    for number, base in enumerate(bases):
        content = base.read_bytes()
        for mutants in (byte_mutants, structure_mutants):
            for index, (way, mutant) in enumerate(
                mutants(content, each // len(bases), seed + number)
            ):
                path = folder / f"{mutants.__name__}-{number}-{index}-{way}.tflite"
                path.write_bytes(mutant)
                files.append(path)
    assert len(files) == 2 * each
    return files


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    (folder / "float32.tflite").write_bytes(plain_net("float32"))
    (folder / "int8.tflite").write_bytes(plain_net("int8"))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def few(bases, tmp_path_factory):
    return _files(bases, tmp_path_factory.mktemp("few"), 50)


@pytest.fixture(scope="module")
def many(bases, tmp_path_factory):
    return _files(bases, tmp_path_factory.mktemp("many"), 250)


def _inspect(files, folder):
    return inspect_each(files, time_limit=_TIME_LIMIT)


def _compare(files, folder):
    """The part of the comparison that opens the file."""
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype="uint8")
    np.savez(folder / "images.npz", images=image)
    requests = [{"file": str(path), "folder": str(folder)} for path in files]
    return child.run_each("comparison_task", requests, time_limit=_TIME_LIMIT)


def _benchmark(files, folder):
    """The part of the measurement that opens the file."""
    once = {"threads": 1, "warmup": 0, "min_runs": 1, "min_seconds": 0, "turn_ms": 1}
    requests = [{"paths": [str(path)], "folder": str(folder), **once} for path in files]
    return child.run_each("measurement.latency_task", requests, time_limit=_TIME_LIMIT)


_TASKS = [_inspect, _compare, _benchmark]


def _check(files, answers, record_property):
    refused = [
        (p, str(a)) for p, a in zip(files, answers, strict=True) if isinstance(a, InputError)
    ]
    for path, message in refused:
        assert str(path) in message
        assert message.isprintable()
        assert len(message) <= 500
    for kind, sign in (("died", "kills the interpreter"), ("hung", "and was ended")):
        record_property(kind, sum(sign in message for _, message in refused))
    record_property("refused", len(refused))
    # Neither all nor none: damage in the weights is none that a reader could see.
    assert 0.2 < len(refused) / len(files) < 0.9


@pytest.mark.parametrize("task", _TASKS)
def test_sound_files_pass(task, bases, tmp_path):
    assert not any(isinstance(answer, InputError) for answer in task(bases, tmp_path))


@pytest.mark.parametrize("task", _TASKS)
def test_a_few_bad_files(task, few, tmp_path, record_property):
    _check(few, task(few, tmp_path), record_property)


# Inspection sees most of a file; the others get a few of them above, and all at night.
@pytest.mark.slow
@pytest.mark.parametrize("task", [_inspect, *at_night(*_TASKS[1:])])
def test_all_bad_files(task, many, tmp_path, record_property):
    _check(many, task(many, tmp_path), record_property)


@pytest.mark.nightly
@pytest.mark.parametrize("task", _TASKS)
def test_other_bad_files_each_night(task, bases, tmp_path, record_property, seed):
    files = _files(bases, tmp_path, 1000, seed)
    _check(files, task(files, tmp_path), record_property)


@pytest.mark.slow
@pytest.mark.parametrize("sort", ["byte_mutants", "structure_mutants"])
def test_accepted_mutants_through_the_whole_of_it(sort, few, record_property):
    """What comes back from a file that its reader accepts does no harm to this process either."""
    mutants = [path for path in few if path.name.startswith(sort)]
    inspections = inspect_each(mutants, time_limit=_TIME_LIMIT)
    accepted = [
        path
        for path, answer in zip(mutants, inspections, strict=True)
        if isinstance(answer, Inspection)
    ]
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype="uint8")
    model, refused = small_net(), 0
    sample = accepted[:6]
    assert len(sample) == 6
    for path in sample:
        for work in (
            lambda path: compare_layers(model, path, image, time_limit=_TIME_LIMIT).table(),
            lambda path: table(measure([path], min_runs=1, min_seconds=0, time_limit=_TIME_LIMIT)),
        ):
            try:
                assert work(path)
            except InputError as error:
                refused += 1
                assert str(path) in str(error)
                assert len(str(error)) <= 1000
    record_property("refused", refused)
    assert refused < 2 * len(sample)


def test_what_inspection_makes_of_an_accepted_mutant_can_be_shown(few):
    shown = [i for i in inspect_each(few, time_limit=_TIME_LIMIT) if isinstance(i, Inspection)]
    assert len(shown) > 10
    for inspection in shown:
        assert all(line.isprintable() for line in str(inspection).splitlines())
        assert inspection.to_json()["path"] == inspection.path


def test_the_mutants_are_the_same_each_time(bases):
    for mutants in (byte_mutants, structure_mutants):
        content = bases[0].read_bytes()
        first, second = (dict(enumerate(mutants(content, 20, 3))) for _ in range(2))
        assert first == second
        assert not any(mutant == content for _, mutant in first.values())
        for (_, a), (_, b) in itertools.combinations(first.values(), 2):
            assert a != b


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "is no .tflite file: it lacks the identifier TFL3"),
        (b"\x1c\0\0\0TFL3" + bytes(100), "is no .tflite file that runs here"),
        (b"\xff\xff\xff\xffTFL3", "is no .tflite file that runs here"),
    ],
)
def test_no_model(content, message, tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        inspect(path)
    assert str(caught.value).startswith(f"{path} {message}")


def test_a_huge_file(tmp_path):
    path = tmp_path / "huge.tflite"
    with open(path, "wb") as file:
        file.write(b"\x1c\0\0\0TFL3")
        file.truncate(1 << 40)  # sparse
    with pytest.raises(InputError, match=r"huge\.tflite has \d+ bytes; over 4 GiB is refused"):
        inspect(path)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"no such file: .*none\.tflite"):
        inspect(tmp_path / "none.tflite")
    with pytest.raises(InputError, match="is no regular file"):
        inspect(tmp_path)


def test_a_name_full_of_signs(tmp_path, bases):
    path = tmp_path / "a b\n'\"$(echo x);\x1b[31m \u202e ü.tflite"
    path.write_bytes(b"hello")
    with pytest.raises(InputError, match="is no .tflite file") as caught:
        inspect(path)
    assert str(caught.value).isprintable()
    path.write_bytes(bases[0].read_bytes())
    assert inspect(path).pieces == 1
    assert str(inspect(path)).splitlines()[0].isprintable()
