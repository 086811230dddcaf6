"""kapps-tune: from a finished run to a tuned one, with its files; resuming; what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from programs import run_here

import kapps
from kapps import InputError
from kapps.tools import training
from kapps.tools.run_lock import RunLock
from kapps.tools.runs import TrainConfig, load_run

pytest.importorskip("tf_keras")
tuning_run = pytest.importorskip("kapps.tflite.tuning_run")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the smallest network."""
    kapps.list_models()
    import tiny

    from kapps import _registry

    _registry._BUILDERS["TinyNet"] = tiny.TinyNet
    folder = tmp_path_factory.mktemp("run")
    recipe = dataclasses.replace(tiny.PLAIN, epochs=4)
    training.train(TrainConfig("TinyNet", "synthetic", str(folder), recipe=recipe), progress=False)
    yield folder
    del _registry._BUILDERS["TinyNet"]


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    """That run pruned and made quantization-aware: how, what came of it, and what it said."""
    folder = tmp_path_factory.mktemp("tuned")
    config = tuning_run.TuneConfig(
        str(run), str(folder), prune=0.5, quantize_aware=True, epochs=2, learning_rate=0.01
    )
    with contextlib.redirect_stderr(io.StringIO()) as said:
        result = tuning_run.tune(config)
    return config, result, said.getvalue()


def test_pruned_and_quantized(tuned, tmp_path, capsys):
    from kapps.tflite import Runner, read_metadata, tuning

    config, result, said = tuned
    assert "TinyNet quantize_aware epoch 2: loss" in said
    phases = [(row["phase"], row["epoch"]) for row in result.history]
    assert phases == [(phase, i) for phase in ("prune", "quantize_aware") for i in (1, 2)]
    assert result.sparsity == pytest.approx(0.5, abs=0.02)
    shutil.copytree(config.workdir, tmp_path, dirs_exist_ok=True)
    config = dataclasses.replace(config, workdir=str(tmp_path))
    loaded = load_run(tmp_path)
    assert tuning.sparsity(loaded.model) == result.sparsity
    assert Runner(tmp_path / "model.tflite").input_quantization == (1.0, 0)
    assert abs(result.file - result.tuned) <= 0.03
    metadata = read_metadata(tmp_path / "model.tflite")
    weights = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    assert metadata.weights_sha256 == weights
    assert "quantization-aware" in metadata.description  # kapps-report knows it by that
    from kapps.tools import data

    again = training.evaluate(
        loaded.model,
        data.load("synthetic").validation,
        transform=loaded.transform,
    )
    assert again.top1 == result.restored

    weights_here = str(tmp_path / "weights.safetensors")
    assert tuning_run.tune(config) == dataclasses.replace(result, weights=weights_here)
    assert "is finished" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"holds another run: prune was 0.5 and is 0.6"):
        tuning_run.tune(dataclasses.replace(config, prune=0.6))
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result.json is damaged; delete it"):
        tuning_run.tune(config)


def test_going_on_gives_the_same_as_never_stopping(tuned, tmp_path):
    config, whole, _ = tuned
    one, other = Path(config.workdir), tmp_path / "other"
    shutil.copytree(one, other)
    for file in ("result.json", "weights.safetensors", "model.tflite"):
        (other / file).unlink()
    for file in (other / "checkpoints" / "quantize_aware").glob("ckpt-2.*"):
        file.unlink()
    resumed = tuning_run.tune(dataclasses.replace(config, workdir=str(other)), progress=False)
    assert resumed.tuned == whole.tuned and len(resumed.history) == 4
    for old, new in zip(
        load_run(one).model.get_weights(), load_run(other).model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(new, old, atol=1e-6)


def test_batch_norm_that_transfer_learning_has_frozen_stays_as_it_is(run, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(run, start)
    settings = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(settings | {"freeze_statistics": True}))
    config = tuning_run.TuneConfig(
        str(start), str(tmp_path / "tuned"), quantize_aware=True, epochs=1, learning_rate=0.01
    )
    tuning_run.tune(config, progress=False)
    before, after = (
        safetensors.numpy.load_file(Path(folder) / "weights.safetensors")
        for folder in (start, config.workdir)
    )
    same = {name for name, value in before.items() if (value == after[name]).all()}
    assert same == {name for name in before if name.startswith("bn")}
    assert json.loads(Path(config.workdir, "config.json").read_text())["freeze_statistics"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to do: give --quantize_aware, --prune or --cluster"),
        ({"prune": 1.5}, "--prune must be above 0 and below 1, not 1.5"),
        ({"quantize_aware": True, "init_from": "/nowhere"}, "/nowhere holds no finished run"),
        ({"quantize_aware": True, "workdir": "RUN"}, "--workdir is the folder of --init_from"),
        ({"quantize_aware": True, "recipe": "digit"}, "unknown recipe 'digit'"),
        ({"quantize_aware": True, "batch_size": 10**6}, "choose a smaller --batch_size"),
        ({"quantize_aware": True, "dataset": "digits"}, "knows other classes than 'digits'"),
        ({"cluster": 1}, "--cluster must be 2 to 256, not 1"),
    ],
)
def test_mistakes_are_named(run, tmp_path, changes, message):
    own = {key: str(run) if value == "RUN" else value for key, value in changes.items()}
    config = tuning_run.TuneConfig(**{"init_from": str(run), "workdir": str(tmp_path), **own})
    with pytest.raises(InputError, match=message):
        tuning_run.tune(config, progress=False)
    assert not (tmp_path / "result.json").exists()


def test_another_process_in_the_same_folder(run, tmp_path):
    config = tuning_run.TuneConfig(str(run), str(tmp_path), quantize_aware=True)
    with RunLock(tmp_path), pytest.raises(InputError, match="is being trained by process"):
        tuning_run.tune(config, progress=False)
    assert not (tmp_path / "config.json").exists()


def test_a_run_whose_images_lie_elsewhere_here(run, tmp_path, monkeypatch, capsys):
    moved = shutil.copytree(run, tmp_path / "run")
    settings = json.loads((run / "config.json").read_text())
    settings |= {"dataset": "folder:/gone", "data_dir": "/gone"}
    (moved / "config.json").write_text(json.dumps(settings))
    asked = []
    load = tuning_run.data.load

    def noting(name, data_dir, nested):
        asked.append((name, data_dir))
        return load(name, data_dir, nested=nested)

    monkeypatch.setattr(tuning_run.data, "load", noting)
    flags = shlex.join([f"--init_from={moved}", f"--workdir={tmp_path}/tuned"])
    flags += " --quantize_aware --batch_size=1000000"
    answer = run_here("tflite.programs.tune", flags, capsys)
    assert "there is no folder /gone" in answer.stderr
    flags += " --dataset=synthetic --data_dir=/here"
    answer = run_here("tflite.programs.tune", flags, capsys)
    assert "training images of synthetic; choose a smaller --batch_size" in answer.stderr
    assert asked == [("folder:/gone", "/gone"), ("synthetic", "/here")]


def test_help_and_flags():
    command = [sys.executable, "-m", "kapps.tflite.programs.tune"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "usage: kapps-tune" in shown.stdout and "--quantize_aware" in shown.stdout
    missing = subprocess.run(command, capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert missing.stderr.endswith(
        "--init_from and --workdir must be given; --help lists the flags\n"
    )


def test_result_is_json(run, tmp_path):
    config = tuning_run.TuneConfig(str(run), str(tmp_path), cluster=4, epochs=1)
    result = tuning_run.tune(config, progress=False)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["restored"] == result.restored and written["file"] is None
    assert not (tmp_path / "model.tflite").exists()
