"""What all tests share."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # inherited by every child process


@pytest.fixture(scope="session")
def mediapipe_python():
    """An interpreter that can import mediapipe, to run in a child process.

    mediapipe and tensorflow-model-optimization want different versions of absl-py, so that they do
    not install together: `make test` gives mediapipe an environment of its own, and names its
    interpreter in KAPPS_MEDIAPIPE_PYTHON. Where that is set, it has to work.
    """
    python = os.environ.get("KAPPS_MEDIAPIPE_PYTHON")
    command = [python or sys.executable, "-c", "import mediapipe"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode and not python:
        pytest.skip("no mediapipe here; `make test` sets it up")
    assert found.returncode == 0, found.stderr
    return command[0]
