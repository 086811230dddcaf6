"""Latency, measured in a child process."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_crafted import crafted_file, crafted_sine, packed

from kapps import InputError
from kapps.tflite import child, measure
from kapps.tflite.interpreter import load_interpreter
from kapps.tflite.measurement import latency, latency_task


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Files that run: {name: path}."""
    folder = tmp_path_factory.mktemp("nets")
    contents = {
        "float32": crafted_file([1, 12]),
        "int8": crafted_sine(),
        "large": crafted_file([1, 3 * 512**2], side=1024),
    }
    for name, content in contents.items():
        (folder / f"net-{name}.tflite").write_bytes(content)
    return {name: folder / f"net-{name}.tflite" for name in contents}


def test_measures_each_file(nets):
    paths = [nets["float32"], nets["int8"]]
    results = measure(paths, min_runs=64, min_seconds=0)
    assert [result.file for result in results] == paths
    for result in results:
        assert result.runs >= 64
        assert 0 < result.p50_ms <= result.p90_ms <= result.p99_ms
        assert result.mean_ms > 0
        assert result.std_ms >= 0
        assert result.initialization_ms > 0
        assert result.threads == 1
        assert result.device.startswith("host: ")
        assert result.size_bytes == result.file.stat().st_size
        assert len(result.samples_ms) == result.runs
    assert results[0].delegate_pieces == 1


def test_runs_at_least_as_long_as_asked(nets):
    for result in measure([nets["int8"], nets["large"]], min_runs=1, min_seconds=0.3):
        assert sum(result.samples_ms) >= 300


def test_the_memory_is_each_files_own(nets):
    """What a file holds beyond another is in its figure, whatever is measured beside it."""
    small, large = nets["float32"], nets["large"]
    (alone,) = measure([small], min_runs=1, min_seconds=0)
    much, beside = measure([large, small], min_runs=1, min_seconds=0)
    assert alone.peak_memory_mb > 0
    assert beside.peak_memory_mb == pytest.approx(alone.peak_memory_mb, abs=1.0)
    assert much.peak_memory_mb > alone.peak_memory_mb + 12  # the image alone


def test_the_memory_is_the_same_where_python_compiles_first(nets, tmp_path, monkeypatch):
    """What compiling has freed is not where a network's tensors go uncounted."""
    (cached,) = measure([nets["large"]], min_runs=1, min_seconds=0)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (compiled,) = measure([nets["large"]], min_runs=1, min_seconds=0)
    assert compiled.peak_memory_mb == pytest.approx(cached.peak_memory_mb, abs=1.5)


def test_strings_are_measured(tmp_path):
    """A file that takes text: only its RESHAPE is left of the crafted one."""
    model = schema.ModelT.InitFromPackedBuf(crafted_file([1, 12]), 0)
    (graph,) = model.subgraphs
    graph.operators = graph.operators[1:]
    for tensor in graph.tensors[1:3]:
        tensor.type, tensor.shape = schema.TensorType.STRING, [1, 12]
    graph.inputs = [1]
    (tmp_path / "text.tflite").write_bytes(packed(model))
    (result,) = measure([tmp_path / "text.tflite"], min_runs=1, min_seconds=0)
    assert result.peak_memory_mb > 0


def test_progress_goes_up_to_one(nets):
    shares = []
    measure([nets["int8"]], min_runs=100, min_seconds=0, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == 1


@pytest.mark.parametrize(
    "times",
    [
        *([], [1.0, float("nan")], [float("inf")], [0.0], [-1.0], [[1.0]], [1]),
        np.array([1.0], "float32"),
        np.array([None]),
    ],
)
def test_times_that_cannot_be(times, tmp_path):
    np.save(tmp_path / "0.npy", np.asarray(times))
    with pytest.raises(InputError, match=r"a\.tflite makes its reader send .*is the file intact\?"):
        latency._samples(tmp_path / "0.npy", Path("a.tflite"))


@pytest.mark.parametrize("size", [None, 0, 10, 100, 135])
def test_saved_times_that_are_cut_short(size, tmp_path):
    path = tmp_path / "0.npy"
    if size is not None:
        np.save(path, np.ones(1))
        assert latency._samples(path, Path("a.tflite")).tolist() == [1.0]
        os.truncate(path, size)
    with pytest.raises(InputError, match="makes its reader send garbage"):
        latency._samples(path, Path("a.tflite"))


def test_a_file_that_is_replaced_meanwhile(tmp_path):
    """The result is of the file that was measured."""
    path, other = tmp_path / "a.tflite", tmp_path / "b.tflite"
    content = crafted_file([1, 12])
    path.write_bytes(content)
    other.write_bytes(crafted_file([1, 12], "UINT8"))
    (result,) = measure(
        [path],
        min_runs=1,
        min_seconds=0,
        progress=lambda share: other.replace(path) if share == 1 else None,
    )
    assert not other.exists()
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert result.size_bytes == len(content)


def test_samples_do_not_pass_as_text(tmp_path):
    """There may be millions, and what a child may send is limited."""
    path, messages = tmp_path / "a.tflite", []
    path.write_bytes(crafted_file([1, 12]))
    request = {"paths": [str(path)], "folder": str(tmp_path), "threads": 1, "warmup": 0}
    request |= {"min_runs": 20_000, "min_seconds": 0, "turn_ms": 50, "input_shape": None}
    child.run("measurement.latency_task", request, time_limit=60, on_message=messages.append)
    assert len(np.load(tmp_path / "0.npy")) >= 20_000
    assert len(json.dumps(messages)) < 20_000


def test_the_place_of_a_file_does_not_count(tmp_path, monkeypatch):
    """The first one is not charged for the start of the runtime."""
    path = tmp_path / "a.tflite"
    path.write_bytes(crafted_file([1, 12]))
    loads = []

    def load(*arguments):
        if not loads:
            time.sleep(0.2)
        loads.append(arguments)
        return load_interpreter(*arguments)

    monkeypatch.setattr(latency_task, "load_interpreter", load)
    request = {"paths": [str(path)] * 3, "folder": str(tmp_path), "threads": 1, "warmup": 0}
    request |= {"min_runs": 1, "min_seconds": 0, "turn_ms": 1, "input_shape": None}
    results = latency_task.work(request, lambda **message: None)
    assert all(0 < result["initialization_ms"] < 100 for result in results)


def test_a_file_for_images_of_any_size(tmp_path):
    path = tmp_path / "any.tflite"
    path.write_bytes(crafted_file([1, 12], any_size=True))
    with pytest.raises(InputError, match=r"any\.tflite takes an input of \?x\?x\?x3, which is no"):
        measure([path], min_runs=1, min_seconds=0)
    (result,) = measure([path], min_runs=1, min_seconds=0, input_shape=(1, 4, 4, 3))
    assert result.p50_ms > 0
    assert result.peak_memory_mb > 0


def test_a_result_is_shown_without_its_samples(tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(crafted_file([1, 12]))
    (result,) = measure([path], min_runs=1000, min_seconds=0)
    assert result.runs >= 1000
    assert "runs=" in repr(result)
    assert len(repr(result)) < 1500


def test_times_are_milliseconds(tmp_path):
    """The runs take most of the time that the task takes, and never more."""
    path = tmp_path / "a.tflite"
    path.write_bytes(crafted_file([1, 12]))
    request = {"paths": [str(path)], "folder": str(tmp_path), "threads": 1, "warmup": 0}
    request |= {"min_runs": 20_000, "min_seconds": 0, "turn_ms": 50}
    began = time.perf_counter()
    latency_task.work(request, lambda **message: None)
    elapsed_ms = 1e3 * (time.perf_counter() - began)
    # The machine may be busy with other things between two runs, but not a hundred times as long.
    assert elapsed_ms / 100 < np.load(tmp_path / "0.npy").sum() <= elapsed_ms


def test_nothing_to_measure():
    assert measure([]) == []


def test_a_file_that_is_not_there(tmp_path, nets):
    with pytest.raises(InputError, match=r"no such file: .*none\.tflite"):
        measure([nets["int8"], tmp_path / "none.tflite"])


def test_a_file_that_does_not_load_is_named(tmp_path, nets):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(nets["int8"].read_bytes()[:500])
    with pytest.raises(InputError, match=r"bad\.tflite is no \.tflite file"):
        measure([nets["int8"], bad])


def test_an_endless_measurement_is_ended(nets):
    with pytest.raises(InputError, match=r"net-int8\.tflite: took over 2 s and was ended"):
        measure([nets["int8"]], min_seconds=100, time_limit=2)


@pytest.mark.parametrize("arguments", [{"threads": 0}, {"min_runs": 0}, {"warmup": -1}])
def test_bad_arguments(arguments, nets):
    with pytest.raises(InputError, match="at least"):
        measure([nets["int8"]], **arguments)
