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
from kapps.tools import data, runs
from kapps.tools.json_files import write_json
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


@pytest.mark.parametrize("folder", ["finished", "stopped"])
def test_a_run_of_the_first_format_is_not_gone_on_with(
    folder: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was trained by other sums: what came of it would be neither the one nor the other."""
    workdir = request.getfixturevalue(folder)
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    answer = run_here("tools.train", f"{RUN} --batch_size=171 --workdir={workdir}", capsys)
    assert answer.code == 2
    assert "holds a run of an earlier kapps, which trained otherwise" in answer.stderr
    assert all(path.read_bytes() == content for path, content in before.items())


@dataclasses.dataclass(frozen=True)
class Longer(Recipe):
    """A recipe of a later kapps."""

    sharpness: float = 0.0
    sizes: tuple[int, ...] = (16, 24)


def settings(recipe: type[Recipe] = Recipe, **new: object) -> dict[str, object]:
    """Of a run, by a kapps whose recipes have more fields."""
    digits = dataclasses.replace(get_recipe("digits"), image_size=16, epochs=2, batch_size=171)
    config = runs.TrainConfig("TinyDropNet", "digits", "", recipe=digits, seed=3)
    values = dataclasses.asdict(digits) | new
    return runs.settings_of(config, recipe(**values), data.load("digits"))


KINDS = (runs.TrainConfig, Longer)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", settings() | {"versions": {"kapps": "0.0.1"}})
    return tmp_path


def test_a_changed_setting_is_named(begun: Path) -> None:
    runs.check_same_run(begun, settings())
    with pytest.raises(kapps.InputError, match=r"another run: flip was 0.0 and is 0.5. Choose"):
        runs.check_same_run(begun, settings(flip=0.5))


def test_a_recipe_may_grow(begun: Path) -> None:
    runs.check_same_run(begun, settings(Longer), KINDS)
    with pytest.raises(
        kapps.InputError, match=r"another run: sharpness was 0.0 and is 0.2. Choose"
    ):
        runs.check_same_run(begun, settings(Longer, sharpness=0.2), KINDS)
    write_json(begun / "config.json", settings(Longer, sharpness=0.2))
    runs.check_same_run(begun, settings(Longer, sharpness=0.2), KINDS)
    with pytest.raises(
        kapps.InputError, match=r"another run: sharpness was 0.2 and is 0.0. Choose"
    ):
        runs.check_same_run(begun, settings(Longer), KINDS)
    with pytest.raises(kapps.InputError, match=r"sharpness was 0.2 and is no setting here"):
        runs.check_same_run(begun, settings())


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
    assert f"config.json is of format {runs.FORMAT + 1}, and this kapps knows" in answer.stderr
