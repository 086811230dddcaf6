"""The same command, run twice, ends with the same weights: before any test of a resume counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nights import at_night

pytestmark = pytest.mark.slow

COMMAND = "-m kapps.tools.train --dataset=digits --image_size=32 --batch_size=128 --epochs=1"


@pytest.mark.parametrize("model", ["GoogLeNet", *at_night("CifarResNet --arguments=depth=8")])
def test_the_same_command_gives_the_same_weights(model: str, tmp_path: Path) -> None:
    """With all threads that a user has; the tests' own processes have one.

    In a batch of so many images Grappler added up gradients in the order of the threads, wherever
    three or more meet: in front of GoogLeNet's branches, and in a batch norm that is not fused.
    """
    alone = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in alone}
    weights = set()
    for run in ("one", "two"):
        command = [sys.executable, *COMMAND.split(), *f"--model={model}".split()]
        command.append(f"--workdir={tmp_path / run}")
        subprocess.run(command, env=environment, check=True, capture_output=True)
        weights.add((tmp_path / run / "weights.safetensors").read_bytes())
    assert len(weights) == 1
