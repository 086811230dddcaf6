"""Latency, measured in a child process."""

from __future__ import annotations

import sys

import pytest

from kapps import InputError
from kapps.tflite import latency, measure

pytest_plugins = ["tflite_fixtures"]


def test_measures_each_file(conversions):
    paths = [conversions["float32"].path, conversions["int8"].path]
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
    assert results[0].delegate_pieces == 1


def test_runs_at_least_as_long_as_asked(conversions):
    (result,) = measure([conversions["int8"].path], min_runs=1, min_seconds=0.3)
    assert result.runs * result.mean_ms > 100  # most of the 300 ms


def test_progress_goes_up_to_one(conversions):
    shares = []
    measure([conversions["int8"].path], min_runs=100, min_seconds=0, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == 1


def test_nothing_to_measure():
    assert measure([]) == []


def test_a_file_that_is_not_there(tmp_path, conversions):
    with pytest.raises(InputError, match=r"no such file: .*none\.tflite"):
        measure([conversions["int8"].path, tmp_path / "none.tflite"])


def test_a_file_that_does_not_load_is_named(tmp_path, conversions):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(conversions["int8"].path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"bad\.tflite is no \.tflite file"):
        measure([conversions["int8"].path, bad])


def test_an_endless_measurement_is_ended(conversions):
    with pytest.raises(InputError, match=r"over 4 s and was ended at .*net-int8\.tflite"):
        measure([conversions["int8"].path], min_seconds=100, time_limit=4)


@pytest.mark.parametrize(
    ("death", "message"),
    [
        ('print(\'{"at": "x.tflite"}\', flush=True); os.abort()', r"x\.tflite kills .* -6"),
        ('print(\'{"at": "x.tflite"}\\n{"resul\', flush=True); sys.exit(3)', r"x\.tflite .* 3"),
    ],
)
def test_a_child_that_dies_names_the_file_at_hand(
    death, message, conversions, tmp_path, monkeypatch
):
    """`Interpreter` rarely dies of a file, so the child is replaced by one that does."""
    child = tmp_path / "child"
    child.write_text(f"#!{sys.executable}\nimport os, sys\n{death}\n")
    child.chmod(0o755)
    monkeypatch.setattr(latency.sys, "executable", str(child))
    with pytest.raises(InputError, match=message):
        measure([conversions["int8"].path])


def test_a_child_that_does_not_start_is_no_mistake_of_the_user(conversions, tmp_path, monkeypatch):
    child = tmp_path / "child"
    child.write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")
    child.chmod(0o755)
    monkeypatch.setattr(latency.sys, "executable", str(child))
    with pytest.raises(RuntimeError, match="exit code 1: no such module"):
        measure([conversions["int8"].path])


@pytest.mark.parametrize("arguments", [{"threads": 0}, {"min_runs": 0}, {"warmup": -1}])
def test_bad_arguments(arguments, conversions):
    with pytest.raises(InputError, match="at least"):
        measure([conversions["int8"].path], **arguments)
