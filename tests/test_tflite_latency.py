"""Latency, measured in a child process."""

from __future__ import annotations

import pytest

from kapps import InputError
from kapps.tflite import measure

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
        assert result.size_bytes == result.file.stat().st_size
        assert len(result.samples_ms) == result.runs
    assert results[0].delegate_pieces == 1


def test_runs_at_least_as_long_as_asked(conversions):
    for result in measure(
        [conversions["int8"].path, conversions["dynamic"].path], min_runs=1, min_seconds=0.3
    ):
        assert sum(result.samples_ms) >= 300


def test_the_memory_is_each_files_own(conversions, tmp_path):
    """What a file holds beyond another is in its figure, whatever is measured beside it."""
    small, large = conversions["float32"].path, conversions["int8"].path
    alone = measure([small], min_runs=1, min_seconds=0)[0].peak_memory_mb
    beside = measure([large, small], min_runs=1, min_seconds=0)[1].peak_memory_mb
    assert alone > 0
    assert beside == pytest.approx(alone, abs=1.0)  # MB


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
    with pytest.raises(InputError, match=r"net-int8\.tflite: took over 4 s and was ended"):
        measure([conversions["int8"].path], min_seconds=100, time_limit=4)


@pytest.mark.parametrize("arguments", [{"threads": 0}, {"min_runs": 0}, {"warmup": -1}])
def test_bad_arguments(arguments, conversions):
    with pytest.raises(InputError, match="at least"):
        measure([conversions["int8"].path], **arguments)
