"""kapps-evaluate --exit_confidence: a run with auxiliary classifiers, which an image may end at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import run_here

import kapps
from kapps.tools import runs
from kapps.tools.json_files import write_json
from kapps.tools.recipes import get_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as training leaves it; the weights are random, and so are the answers."""
    folder = tmp_path_factory.mktemp("googlenet")
    from kapps.tools import data

    config = runs.TrainConfig(
        "GoogLeNet", "digits", str(folder), recipe=get_recipe("digits"), arguments="aux=True"
    )
    model = kapps.GoogLeNet(aux=True, input_shape=(32, 32, 3), classes=10)
    transform = {"size": 32, "crop": 1.0, "interpolation": "bilinear"}
    settings = runs.settings_of(config, config.resolved(), data.load("digits"))
    write_json(folder / "config.json", settings | {"evaluation": transform})
    kapps.save_weights(model, folder / "weights.safetensors")
    return folder


@pytest.mark.parametrize(("confidence", "place"), [(0, 0), (1, 2)])
def test_all_end_at_the_first_or_the_last(
    workdir: Path, capsys: pytest.CaptureFixture[str], confidence: int, place: int
) -> None:
    flags = f"--workdir={workdir} --exit_confidence={confidence} --json={workdir}/exits.json"
    answer = run_here("tflite.programs.evaluate", flags, capsys)
    assert not answer.code, answer.stderr
    found = json.loads((workdir / "exits.json").read_text())
    assert [each["images"] for each in found["exits"]] == [240 * (i == place) for i in range(3)]
    assert found["macs"] == found["exits"][place]["macs"]
    assert found["exits"][0]["macs"] < found["whole_macs"] < found["exits"][2]["macs"]
    if place == 2:
        assert found["top1"] == found["whole_top1"]
    assert f"top-1 {found['top1']:.4f} at " in answer.stdout


def test_a_run_is_evaluated_without_its_auxiliary_heads(workdir: Path) -> None:
    assert len(runs.load_run(workdir).model.outputs) == 1
    assert len(runs.load_run(workdir, auxiliary_heads=True).model.outputs) == 3


def test_a_network_without_them(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--tflite=net.tflite --exit_confidence=0.5"
    answer = run_here("tflite.programs.evaluate", flags, capsys)
    assert answer.code == 2 and "--exit_confidence is of a run" in answer.stderr
