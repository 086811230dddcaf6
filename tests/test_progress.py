"""What programs say of their progress: a bar in a terminal, whole lines in a log."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from kapps.tools import progress

# As the loop of training shows it, but for the seconds.
PROGRAM = """
import sys
from kapps.tools.progress import progress_bar
with progress_bar(4000, "img", initial=1000) as bar:
    bar.set_description("LeNet5 epoch 2/4")
    for step in range(300):
        bar.update(10)
        bar.set_postfix(loss="2.303", top1="0.100")
    bar.write("LeNet5 epoch 2: done", file=sys.stderr)
"""


def test_a_log_has_whole_lines_and_few() -> None:
    """Carriage returns made megabytes of it, as one line."""
    command = [sys.executable, "-c", PROGRAM]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stderr
    assert "\r" not in said and said.endswith("\n")
    first, done, last = said.splitlines()
    assert first.startswith("LeNet5 epoch 2/4: 1010 of 4000 img, ")
    assert "img/s, loss=2.303, top1=0.100" in first
    assert done == "LeNet5 epoch 2: done"
    assert last.startswith("LeNet5 epoch 2/4: 4000 of 4000 img, 00:00 left, ")


def test_a_terminal_has_a_bar() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while piece := _read(ours):
            said += piece
    os.close(ours)
    assert process.returncode == 0
    assert said.count(b"\r") > 3 and b"100%|" in said and b"img/s, loss=2.303" in said


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux tells that the other side has left
        return b""


def test_lines_come_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress_bar(300, "img", "features") as bar:
        for _ in range(300):  # a second each
            now[0] += 1
            bar.update()
            bar.refresh()
    lines = capsys.readouterr().err.splitlines()
    # the second image, as with the first there may be no rate yet; then 30 s; and the end
    assert 10 <= len(lines) <= 12
    assert all(line.startswith("features: ") for line in lines)
    assert lines[-1].startswith("features: 300 of 300 img")
