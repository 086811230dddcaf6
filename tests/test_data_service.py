"""A data service reads for a run, which ends as it would without, whatever the workers do."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import kapps
from kapps.tools import data, data_service, pipeline, training
from kapps.tools.data_service import Reader, ServiceLoader, identity
from kapps.tools.launch import free_ports
from kapps.tools.recipes import RECIPES
from kapps.tools.runs import TrainConfig

pytestmark = pytest.mark.slow

RECIPE = dataclasses.replace(
    RECIPES["default"], policy="randaugment", image_size=32, scales=(1.0, 1.5), mixup=0.2
)
PIXELS = pipeline.TrainingPixels(RECIPE, 32)
ORDER = pipeline.training_order(0, 1, 1000, 20)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="module")
def expected(digits: data.Dataset) -> list[pipeline.Batch]:
    return list(pipeline.Loader(digits.train, PIXELS, replace=True).batches(ORDER, 0, 1))


def start(dataset: str, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kapps.tools.data_worker", f"--dataset={dataset}", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """A dispatcher that reads, and another worker."""
    (port,) = free_ports(1)
    workers = [start("digits", f"--dispatch={port}")]
    try:
        assert workers[0].stderr is not None
        said = workers[0].stderr.readline()
        assert said.startswith("digits: 1197 training images are read for grpc://"), said
        workers.append(start("digits", f"--dispatcher=localhost:{port}"))
        assert workers[1].stderr is not None and workers[1].stderr.readline()
        yield f"grpc://localhost:{port}", workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def assert_same(found: list[pipeline.Batch], expected: list[pipeline.Batch]) -> None:
    assert len(found) == len(expected)
    for batch, wanted in zip(found, expected, strict=True):
        for one, other in zip(batch, wanted, strict=True):
            np.testing.assert_array_equal(one, other, strict=True)


def test_batches_are_the_same_and_in_order(
    service, digits, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none is read here."""
    loader = ServiceLoader(service[0], digits, PIXELS)
    monkeypatch.setattr(pipeline.Loader, "batches", None)
    assert_same(list(loader.batches(ORDER, 0, 1)), expected)


def test_other_images_are_refused(service) -> None:
    loader = ServiceLoader(service[0], data.load("synthetic"), PIXELS)
    with pytest.raises(kapps.InputError, match="a worker has the dataset .* the same --dataset"):
        list(loader.batches(ORDER, 0, 1))


def test_a_run_ends_with_the_same_weights(service, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=2, batch_size=100)
    files = []
    for name, address in (("alone", None), ("served", service[0])):
        run = TrainConfig("LeNet5", "digits", str(tmp_path / name), recipe=recipe)
        run = dataclasses.replace(run, data_service=address)
        files.append(training.train(run, progress=False).weights)
    alone, served = map(safetensors.numpy.load_file, files)
    for key, value in alone.items():
        np.testing.assert_array_equal(served[key], value, err_msg=key)


def test_a_run_goes_on_without_its_workers(
    service, digits, expected, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """One is killed with batches that it had begun, then the other, and the dispatcher with it."""
    monkeypatch.setattr(data_service, "_PATIENCE", 2.0)
    address, (first, second) = service
    loader = ServiceLoader(address, digits, PIXELS)
    batches = loader.batches(ORDER, 0, 1)
    found = [next(batches) for _ in range(5)]
    second.kill()
    found += [next(batches) for _ in range(20)]
    first.kill()
    found += list(batches)
    assert_same(found, expected)
    said = f"data service {address} gives no batches; this process reads until it does\n"
    assert capsys.readouterr().err == said
    again = list(loader.batches(ORDER, 0, 1))  # as of the next epoch
    assert_same(again, expected)
    assert capsys.readouterr().err == said
    with pytest.raises(kapps.InputError, match=r"no dispatcher answers there \(.*start one with"):
        ServiceLoader(address, digits, PIXELS)


def test_a_picture_that_cannot_be_read_is_left_to_the_run(digits: data.Dataset) -> None:
    """Which replaces it, or ends, and counts it."""

    class Damaged(data.ArraySource):
        def __getitem__(self, index: int):
            if index == 7:
                raise data.BadImage("picture 7 cannot be read", "7")
            return super().__getitem__(index)

    source = Damaged(digits.train.images, digits.train.labels)
    reader = Reader(dataclasses.replace(digits, train=source))
    about = json.dumps(reader._own | {"pixels": dataclasses.asdict(PIXELS)}).encode()
    key = np.array([0, 1])
    for row, images in ((np.arange(8), 0), (np.arange(7), 7)):
        step, pixels, labels, problem = reader(5, row, key, about)
        assert (step, problem) == (5, b"")
        assert pixels.shape == (images, 32, 32, 3) and len(labels) == images


def test_a_function_with_another_name_is_refused(digits: data.Dataset) -> None:
    """Or a run would call one that does something else."""
    try:
        kept = data_service.named(Reader(digits))  # the first one, if no other test has made one
    except kapps.InputError:
        kept = None
    with pytest.raises(kapps.InputError, match="calls the reader pyfunc_[0-9]+, and not pyfunc_0"):
        data_service.named(Reader(digits))
    assert kept is None or kept.structured_outputs


def test_addresses_that_are_none() -> None:
    for address in ("host", "http://host:80", "grpc://host:x", ":"):
        with pytest.raises(kapps.InputError, match="give grpc://HOST:PORT"):
            data_service.checked(address)


def test_data_sets_are_told_apart(digits: data.Dataset, tmp_path: Path) -> None:
    other = digits.train.images.copy()
    other[-1] ^= 1
    changed = dataclasses.replace(digits, train=data.ArraySource(other, digits.train.labels))
    renamed = dataclasses.replace(digits, class_names=digits.class_names[::-1])
    assert len({identity(each) for each in (digits, changed, renamed)}) == 3
    assert identity(digits) == identity(data.load("digits"))
