"""One process at a time in a run's folder."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kapps import InputError
from kapps.tools.run_lock import RunLock

HOLDER = """
import sys, time
from pathlib import Path
from kapps.tools.run_lock import RunLock

with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    """Even if it was killed, and could not clear anything away."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            with pytest.raises(InputError) as caught, RunLock(tmp_path / "run"):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    assert re.fullmatch(
        rf"{tmp_path}/run is being trained by process {holder.pid} on {socket.gethostname()} since "
        r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d; end that one, or choose another --workdir",
        str(caught.value),
    )
    for _ in range(2):
        with RunLock(tmp_path / "run"):
            pass
    assert (tmp_path / "run" / "lock").read_text() == ""


def test_a_failure_within_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError), RunLock(tmp_path):
        raise ValueError
    with RunLock(tmp_path):
        pass


def test_process_of_another_machine_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A share's server takes a while to see that a machine has crashed."""
    with RunLock(tmp_path):
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        with pytest.raises(InputError, match="end that one"), RunLock(tmp_path, patience=0.1):
            pass
    monkeypatch.undo()
    assert len(capsys.readouterr().err.splitlines()) == 1
    first = RunLock(tmp_path)
    first.__enter__()
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    timer = threading.Timer(0.2, first.__exit__, (None, None, None))
    timer.start()
    with RunLock(tmp_path, patience=30):  # seconds
        timer.join()
    assert "waiting for its end" in capsys.readouterr().err


def test_share_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunLock(tmp_path):
        pass
    assert "cannot be locked (No locks available)" in capsys.readouterr().err


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="lock: Not a directory; choose a folder"):
        RunLock(tmp_path / "file" / "run").__enter__()
