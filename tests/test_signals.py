"""Runs that are ended from outside, and two that meet in one folder: in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from nights import at_night
from PIL import Image

pytestmark = pytest.mark.slow

FLAGS = (
    "--model=LeNet5 --recipe=digits --image_size=32 --batch_size=8 --epochs=2 "
    "--checkpoint_every=1000 --stop_at=1"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that the threads that read them are busy when the signal comes."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in "ab":
        (root / name).mkdir()
        for i in range(40):
            small = Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8))
            small.resize((1200, 900)).save(root / name / f"{i}.jpg")
    return root


def start(workdir: Path, flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kapps.tools.train", *FLAGS.split(), *flags.split()]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # which nohup had ignored
    )


def wait_until_trains(process: subprocess.Popen[str]) -> None:
    """Until the progress bar shows a loss, which is that of a step."""
    assert process.stderr is not None
    shown = ""
    while "loss=" not in shown:
        piece = process.stderr.read(1)
        assert piece, shown  # it has ended
        shown += piece


def end(process: subprocess.Popen[str], number: int) -> tuple[int, str, float]:
    """Exit code, what it said since, and the seconds that it took."""
    begun = time.monotonic()
    process.send_signal(number)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said, time.monotonic() - begun


def test_ctrl_c_ends_at_once(photos: Path, tmp_path: Path) -> None:
    """It hung, with threads still reading images, in half of the tries."""
    for attempt in range(2):
        process = start(tmp_path / f"run{attempt}", f"--dataset=folder:{photos} --epochs=500")
        wait_until_trains(process)
        code, said, seconds = end(process, signal.SIGINT)
        assert code == 130 and "interrupted" in said
        assert seconds < 10


@pytest.mark.parametrize("name", ["SIGTERM", *at_night("SIGHUP")])
def test_a_run_that_is_ended_is_saved_and_goes_on(tmp_path: Path, name: str) -> None:
    """In mid-epoch, and to the bit what the run would have been."""
    whole = start(tmp_path / "whole", "--dataset=digits --epochs=1")
    process = start(tmp_path / "run", "--dataset=digits --epochs=1")
    wait_until_trains(process)
    number = signal.Signals[name]
    code, said, seconds = end(process, number)
    assert code == 128 + number and seconds < 30
    last = said.strip().splitlines()[-1]
    assert f"ended by {name}, step " in last and "the same command goes on from there" in last
    step = int(last.split("step ")[1].split()[0])
    assert (tmp_path / "run" / "checkpoints" / f"ckpt-{step}.index").exists()
    again = start(tmp_path / "run", "--dataset=digits --epochs=1")
    for each in (whole, again):
        _, said = each.communicate(timeout=300)
        assert each.returncode == 0, said
    assert f"going on after step {step}" in said
    expected = safetensors.numpy.load_file(tmp_path / "whole" / "weights.safetensors")
    for key, value in safetensors.numpy.load_file(tmp_path / "run" / "weights.safetensors").items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    first = start(tmp_path, "--dataset=digits --epochs=500")
    try:
        wait_until_trains(first)
        second = start(tmp_path, "--dataset=digits --epochs=500")
        _, said = second.communicate(timeout=120)
        assert second.returncode == 2
        assert f"process {first.pid}" in said.strip().splitlines()[-1]
    finally:
        first.kill()
        first.communicate()


def test_workers_with_other_settings(tmp_path: Path) -> None:
    """Another learning rate on one of them trained on, to weights that differed."""
    from kapps.tools import cluster, launch

    addresses = tuple(f"127.0.0.1:{port}" for port in launch.free_ports(2))
    workers = []
    for index in range(2):
        env = os.environ | {"TF_CONFIG": cluster.tf_config(cluster.Cluster(addresses, index))}
        rate = f"--learning_rate=0.0{index + 1}"
        command = [sys.executable, "-m", "kapps.tools.train", *FLAGS.split(), "--dataset=digits"]
        command += [rate, "--strategy=multi_worker", f"--workdir={tmp_path}"]
        workers.append(
            subprocess.Popen(
                command, env=env, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
            )
        )
    try:
        for index, worker in enumerate(workers):
            _, said = worker.communicate(timeout=180)
            assert worker.returncode == 2, said
            assert (
                "the workers were started with different settings: learning_rate; here "
                f"learning_rate is 0.0{index + 1}" in said
            )
    finally:
        for worker in workers:
            worker.kill()


def test_local_workers_train_as_one_process(tmp_path: Path) -> None:
    """By the command of the README, with the log of the second and its end by SIGTERM."""
    process = start(tmp_path, "--dataset=digits --epochs=500 --num_workers=2")
    wait_until_trains(process)
    code, said, seconds = end(process, signal.SIGTERM)
    assert code == 143 and seconds < 45, said
    assert "ended by SIGTERM, step " in said
    steps = [path.name for path in (tmp_path / "checkpoints").glob("ckpt-*.index")]
    assert steps and (tmp_path / "workers" / "worker-1.log").exists()
    report = json.loads((tmp_path / "workers" / "worker-1.json").read_text())
    assert report["step"] > 0
