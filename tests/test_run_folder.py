"""Runs that an earlier kapps has left: run_folder/ is of the first format, of two epochs.

It was made before config.json named its format, and holds the first epoch's checkpoint as well.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from programs import run_here

import kapps
from kapps.tools import runs, training
from kapps.tools.recipes import Recipe, get_recipe

FOLDER = Path(__file__).with_name("run_folder")
pytestmark = pytest.mark.usefixtures("tiny")

RUN = "--model=TinyDropNet --dataset=digits --recipe=digits --image_size=16 --epochs=2 --seed=3"


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return shutil.copytree(FOLDER, tmp_path / "run")


@pytest.fixture
def stopped(finished: Path) -> Path:
    """The same, killed in its second epoch."""
    (finished / "result.json").unlink()
    for file in finished.glob("weights*"):
        file.unlink()
    return finished


def change(workdir: Path, **settings: object) -> None:
    file = workdir / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_a_finished_run_is_read(finished: Path) -> None:
    run = runs.load_run(finished)
    assert (run.model.name, run.image_size, run.crop) == ("TinyDropNet", 16, 1.0)
    assert run.class_names == tuple("0123456789")
    stored = safetensors.numpy.load_file(FOLDER / "weights.safetensors")
    np.testing.assert_array_equal(
        run.model.get_layer("classifier").kernel.numpy().T, stored["classifier.weight"]
    )


def test_a_finished_run_is_known_by_its_flags(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = run_here("tools.train", f"{RUN} --batch_size=171 --workdir={finished}", capsys)
    assert not answer.code and "this run is finished" in answer.stderr
    assert "validation top-1 0.2625, top-5 0.6833 on 240 images after 2 epochs" in answer.stdout


@pytest.mark.slow
def test_a_stopped_run_is_gone_on_with(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights to 2e-3, a fifth of the learning rate: it is another machine's rounding as well."""
    answer = run_here("tools.train", f"{RUN} --batch_size=171 --workdir={stopped}", capsys)
    assert not answer.code and "going on after epoch 1" in answer.stderr, answer.stderr
    earlier, result = (
        json.loads((folder / "result.json").read_text()) for folder in (FOLDER, stopped)
    )
    assert result["history"][0] == earlier["history"][0] and result["steps"] == 14
    expected = safetensors.numpy.load_file(FOLDER / "weights.safetensors")
    for name, value in safetensors.numpy.load_file(stopped / "weights.safetensors").items():
        np.testing.assert_allclose(value, expected[name], atol=2e-3, err_msg=name)
    assert json.loads((stopped / "config.json").read_text())["format"] == runs.FORMAT


def test_another_flag_is_named(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = run_here("tools.train", f"{RUN} --batch_size=100 --workdir={stopped}", capsys)
    assert answer.code == 2
    assert "holds another run: batch_size was 171 and is 100. Choose" in answer.stderr


@dataclasses.dataclass(frozen=True)
class Longer(Recipe):
    """A recipe of a later kapps."""

    mixup: float = 0.0
    sizes: tuple[int, ...] = (16, 24)


def settings(recipe: type[Recipe] = Recipe, **new: object) -> dict[str, object]:
    """Of the run, by a kapps whose recipes have more fields."""
    config = runs.TrainConfig(
        "TinyDropNet",
        "digits",
        "",
        recipe="digits",
        image_size=16,
        epochs=2,
        batch_size=171,
        seed=3,
    )
    values = dataclasses.asdict(config.resolved()) | new
    from kapps.tools import data

    return runs.settings_of(config, recipe(**values), data.load("digits"))


def test_a_recipe_may_grow(finished: Path) -> None:
    kinds = (runs.TrainConfig, Longer)
    runs.check_same_run(finished, settings(Longer), kinds)
    with pytest.raises(kapps.InputError, match="another run: mixup was 0.0 and is 0.2. Choose"):
        runs.check_same_run(finished, settings(Longer, mixup=0.2), kinds)
    change(finished, **settings(Longer, mixup=0.2))
    runs.check_same_run(finished, settings(Longer, mixup=0.2), kinds)
    with pytest.raises(kapps.InputError, match="another run: mixup was 0.2 and is 0.0. Choose"):
        runs.check_same_run(finished, settings(Longer), kinds)
    with pytest.raises(kapps.InputError, match="mixup was 0.2 and is no setting here"):
        runs.check_same_run(finished, settings())


def test_training_compares_by_its_recipes_own_fields(finished: Path) -> None:
    fields = dataclasses.asdict(get_recipe("digits")) | {"batch_size": 171, "epochs": 2}
    config = runs.TrainConfig(
        "TinyDropNet", "digits", str(finished), recipe=Longer(**fields), image_size=16, seed=3
    )
    assert training.train(config, progress=False).validation.top1 == 0.2625


def test_a_result_of_another_version_is_read(finished: Path) -> None:
    file = finished / "result.json"
    values = json.loads(file.read_text())
    values["validation"] |= {"calibration": 0.1}
    file.write_text(json.dumps(values | {"seconds": 3.5}))
    result = runs.read_result(finished, runs.TrainResult)
    assert result is not None and result.validation.top1 == 0.2625


@pytest.mark.parametrize("program", ["tools.train", "tflite.programs.evaluate"])
def test_a_newer_format_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str], program: str
) -> None:
    change(finished, format=runs.FORMAT + 1)
    flags = f"{RUN} --batch_size=171" if program == "tools.train" else ""
    answer = run_here(program, f"{flags} --workdir={finished}", capsys)
    assert answer.code == 2 and len(answer.stderr.splitlines()) == 1
    assert "config.json is of format 2, and this kapps knows 1" in answer.stderr
