"""Training in several processes and on several devices, and training that was killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from kapps.tools import launch

pytestmark = pytest.mark.slow

TINY = Path(__file__).with_name("tiny.py")


def start(devices: int, tf_config: dict | None = None, **arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    if tf_config is not None:
        environment["TF_CONFIG"] = json.dumps(tf_config)
    return subprocess.Popen(
        [sys.executable, TINY, str(devices), *(f"{k}={v}" for k, v in arguments.items())],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    """Waits for all of them; none is left behind, whatever happens."""
    try:
        for process in processes:
            _, errors = process.communicate(timeout=600)  # beside others, on a busy machine
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()


def weights(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same training alone, on two devices of a process, and on two workers."""
    root = tmp_path_factory.mktemp("runs")
    common = {"model": "TinyNet", "recipe": "shared"}
    local = start(2, strategy="none,mirrored", workdir=f"{root}/STRATEGY", **common)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in launch.free_ports(2)]}
    workers = [
        start(
            1,
            {"cluster": cluster, "task": {"type": "worker", "index": index}},
            strategy="multi_worker",
            workdir=str(root / "workers"),
            **common,
        )
        for index in range(2)
    ]
    finish(local, *workers)
    return {name: root / name for name in ("none", "mirrored", "workers")}


@pytest.mark.parametrize("name", ["mirrored", "workers"])
def test_weights_equal_those_of_one_process(runs: dict[str, Path], name: str) -> None:
    """But for the order of sums: 50 steps left 4e-7 when this was written.

    Without synchronized batch norm, or with a batch that is divided otherwise, it is above 1e-3.
    """
    alone, distributed = weights(runs["none"]), weights(runs[name])
    assert alone.keys() == distributed.keys()
    for key, value in alone.items():
        np.testing.assert_allclose(distributed[key], value, rtol=1e-5, atol=1e-5, err_msg=key)


def test_validation_sees_every_image_once(runs: dict[str, Path]) -> None:
    results = [json.loads((run / "result.json").read_text())["validation"] for run in runs.values()]
    assert [result["images"] for result in results] == [200] * 3
    for result in results[1:]:
        assert result["top1"] == results[0]["top1"]
        assert result["loss"] == pytest.approx(results[0]["loss"], abs=1e-5)


def test_workers_are_identical(runs: dict[str, Path]) -> None:
    digests = [(runs["workers"] / f"digest{worker}").read_text() for worker in range(2)]
    assert digests[0] == digests[1]


def test_only_the_chief_writes(runs: dict[str, Path]) -> None:
    names = {path.name for path in (runs["workers"] / "checkpoints").iterdir()}
    epochs = {f"ckpt-{step}" for step in (25, 50)}
    assert names == {"checkpoint"} | {
        f"{epoch}.{part}" for epoch in epochs for part in ("index", "data-00000-of-00001")
    }
    assert len(list((runs["workers"] / "tensorboard").iterdir())) == 1


def test_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL in mid-epoch, twice; then to the end, bit for bit as if nothing had happened."""
    arguments = {"model": "TinyDropNet", "recipe": "random", "strategy": "none"}
    whole = start(1, workdir=str(tmp_path / "whole"), **arguments)
    killed = tmp_path / "killed"
    for step in (25, 75):
        process = start(1, workdir=str(killed), **arguments)
        wait_for(killed / "checkpoints" / f"ckpt-{step}.index", process)
        time.sleep(random.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (killed / "result.json").exists()
    finish(start(1, workdir=str(killed), **arguments), whole)
    expected, resumed = weights(tmp_path / "whole"), weights(killed)
    for key, value in expected.items():
        np.testing.assert_array_equal(resumed[key], value, err_msg=key)
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("whole", "killed")]
    for result in results:
        for row in result["history"]:
            del row["images_per_second"]
    assert results[0] == results[1]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, path
        time.sleep(0.005)
