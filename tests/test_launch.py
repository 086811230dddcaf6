"""Workers on this machine: they start together, and none outlives the others or its launcher."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kapps import InputError
from kapps.tools.cluster import Cluster, tf_config
from kapps.tools.launch import is_worker, run_workers

DEADLINE = 60.0  # seconds, on a busy machine

LAUNCHER = """
import os, sys
from pathlib import Path
from kapps.tools.launch import run_workers

workers, restarts, code = sys.argv[1:]
command = [sys.executable, "-c", code]
options = {"max_restarts": int(restarts), "log_dir": Path("logs"), "environ": os.environ}
sys.exit(run_workers(command, int(workers), grace=1.0, **options))
"""

# What the workers of a test have in common; each start leaves a file with what it was told,
# and all may wait for one another.
WORKER = """
import json, os, signal, sys, time
from pathlib import Path

told = json.loads(os.environ["TF_CONFIG"])
index = told["task"]["index"]
start = len(list(Path("starts").glob(f"{index}-*")))

def ready():
    note = {"pid": os.getpid(), "gpus": os.environ["CUDA_VISIBLE_DEVICES"], **told}
    Path(f"{index}").write_text(json.dumps(note))
    os.replace(f"{index}", f"starts/{index}-{start}")

def meet():
    ready()
    for i in range(len(told["cluster"]["worker"])):
        while not Path(f"starts/{i}-{start}").exists():
            time.sleep(0.01)

def end(number, frame):
    print("worker", index, "has saved", flush=True)
    sys.exit(128 + number)

def end_by(*numbers):
    for number in numbers:
        signal.signal(number, end)
"""


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Not so a process that nobody has asked about since it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Launcher:
    """A process that runs workers, in a folder."""

    def __init__(self, folder: Path, code: str, workers: int, restarts: int, gpus: str) -> None:
        self._starts = folder / "starts"
        self._starts.mkdir()
        environ = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(workers), str(restarts), WORKER + code],
            cwd=folder,
            env={**environ, "CUDA_VISIBLE_DEVICES": gpus},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out, err

    def starts(self) -> dict[str, dict[str, Any]]:
        """What each start of a worker was told: "1-0" is the first one of worker 1."""
        return {path.name: json.loads(path.read_text()) for path in self._starts.iterdir()}

    def wait_for(self, *starts: str) -> None:
        wait_for(lambda: set(starts) <= set(self.starts()))

    def go(self) -> None:
        """Makes the file that some workers wait for."""
        (self._starts.parent / "go").touch()

    def none_runs(self) -> bool:
        return not any(is_running(start["pid"]) for start in self.starts().values())


Launch = Callable[..., Launcher]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Launches workers; nothing is left behind, whatever the test finds."""
    launchers: list[Launcher] = []

    def one(code: str, *, workers: int = 2, restarts: int = 0, gpus: str = "-1") -> Launcher:
        launchers.append(Launcher(tmp_path, code, workers, restarts, gpus))
        return launchers[-1]

    yield one
    for launcher in launchers:
        launcher.process.kill()
        for start in launcher.starts().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(start["pid"], signal.SIGKILL)
        launcher.process.communicate()  # last: its workers have its output too


def test_each_is_told_who_it_is(launch: Launch, tmp_path: Path) -> None:
    """The first one has the launcher's output, and the others a log that is added to."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-1.log").write_text("an earlier run\n")
    launcher = launch("ready(); print('I am', index, os.environ['KAPPS_LAUNCHED'])", workers=3)
    assert launcher.end() == (0, "I am 0 1\n", "")
    starts = launcher.starts()
    assert [starts[f"{i}-0"]["task"] for i in range(3)] == [
        {"type": "worker", "index": i} for i in range(3)
    ]
    (addresses,) = {tuple(start["cluster"]["worker"]) for start in starts.values()}
    assert len(set(addresses)) == 3
    assert all(address.startswith("127.0.0.1:") for address in addresses)
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs == {"worker-1.log": "an earlier run\nI am 1 1\n", "worker-2.log": "I am 2 1\n"}


def test_one_that_fails_ends_the_others(launch: Launch, tmp_path: Path) -> None:
    """Its code is the launcher's, and its last words are told."""
    launcher = launch(
        "end_by(signal.SIGTERM); meet()\n"
        "if index != 1: time.sleep(600)\n"
        "print('warm'); sys.exit('out of\\tpaper')",
        workers=3,
    )
    code, out, err = launcher.end()
    assert (code, out) == (1, "worker 0 has saved\n")
    assert err == "worker 1 of 3 ended with 1; the last line of logs/worker-1.log: out of paper\n"
    assert (tmp_path / "logs" / "worker-2.log").read_text() == "worker 2 has saved\n"
    assert launcher.none_runs()


def test_one_that_does_not_end_is_killed(launch: Launch) -> None:
    """Nor one that is frozen, nor what it has started; the code stays that of the first."""
    launcher = launch(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if index == 1 and not os.fork(): index = 9\n"
        "ready()\n"
        "while index or not Path('go').exists(): time.sleep(0.01)\n"
        "sys.exit(3)",
        workers=3,
    )
    launcher.wait_for("0-0", "1-0", "2-0", "9-0")
    os.kill(launcher.starts()["2-0"]["pid"], signal.SIGSTOP)
    launcher.go()
    code, _, err = launcher.end()
    assert code == 3
    assert "worker 1 of 3 did not end within 1 s of SIGTERM, and was killed" in err
    assert "worker 2 of 3 did not end within 1 s of SIGTERM, and was killed" in err
    wait_for(launcher.none_runs)


@pytest.mark.parametrize("end", ["sys.exit(75)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_all_start_again_after_a_crash(launch: Launch, end: str) -> None:
    launcher = launch(
        "end_by(signal.SIGTERM); meet()\n"
        "if index and start == 0: print('of the first', flush=True)\n"
        f"if start < 2: {end} if index else time.sleep(600)",
        restarts=2,
    )
    code, _, err = launcher.end()
    assert code == 0
    assert set(launcher.starts()) == {f"{i}-{start}" for i in range(2) for start in range(3)}
    how = "ended with 75" if "75" in end else "was ended by SIGKILL"
    for last in ("of the first", "nothing"):  # of each start its own
        assert err.count(f"worker 1 of 2 {how}; the last line of logs/worker-1.log: {last}\n") == 1
    assert "starting all workers again; restarts left: 1\n" in err
    first, last = (launcher.starts()[f"0-{i}"]["cluster"]["worker"] for i in (0, 2))
    assert first != last  # a port may have been taken meanwhile


def test_restarts_come_to_an_end(launch: Launch) -> None:
    launcher = launch("ready(); sys.exit(5 * index)", restarts=1)
    assert launcher.end()[0] == 5
    assert {name for name in launcher.starts() if name[0] == "1"} == {"1-0", "1-1"}


@pytest.mark.parametrize("code", [2, 129, 130, 143])
def test_what_is_no_crash_is_not_started_again(launch: Launch, code: int) -> None:
    """A user's mistake, or an end that someone asked for."""
    launcher = launch(f"ready(); sys.exit({code})", restarts=3)
    assert launcher.end()[0] == code
    assert set(launcher.starts()) <= {"0-0", "1-0"}


def test_the_worst_of_several_codes_is_told(launch: Launch) -> None:
    """One ended because of another, and a third one knows why: all at once."""
    launcher = launch(
        "ready()\nwhile not Path('go').exists(): pass\nos._exit([75, 1, 143][index])", workers=3
    )
    launcher.wait_for("0-0", "1-0", "2-0")
    launcher.process.send_signal(signal.SIGSTOP)
    pids = [start["pid"] for start in launcher.starts().values()]
    launcher.go()
    wait_for(lambda: not any(is_running(pid) for pid in pids))
    launcher.process.send_signal(signal.SIGCONT)
    code, _, err = launcher.end()
    assert code == 1 and err.startswith("worker 1 of 3 ended with 1;")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(launch: Launch, tmp_path: Path, number: int) -> None:
    """To all, once each, and without a restart: they save together."""
    launcher = launch(f"end_by({int(number)}); ready(); time.sleep(600)", restarts=3)
    launcher.wait_for("0-0", "1-0")
    launcher.process.send_signal(number)
    assert launcher.end() == (128 + number, "worker 0 has saved\n", "")
    assert (tmp_path / "logs" / "worker-1.log").read_text() == "worker 1 has saved\n"
    assert set(launcher.starts()) == {"0-0", "1-0"}


def test_signal_that_a_worker_does_not_heed(launch: Launch) -> None:
    launcher = launch(
        "signal.signal(15, signal.SIG_IGN) if index else end_by(15); ready()\ntime.sleep(600)"
    )
    launcher.wait_for("0-0", "1-0")
    launcher.process.send_signal(signal.SIGTERM)
    code, out, err = launcher.end()
    assert (code, out) == (137, "worker 0 has saved\n")
    assert err == "worker 1 of 2 did not end within 1 s of SIGTERM, and was killed\n"


def test_no_worker_outlives_a_launcher_that_is_killed(launch: Launch) -> None:
    """Even where it is frozen."""
    launcher = launch("ready(); time.sleep(600)")
    launcher.wait_for("0-0", "1-0")
    os.kill(launcher.starts()["1-0"]["pid"], signal.SIGSTOP)
    launcher.process.kill()
    wait_for(launcher.none_runs)


def test_gpus_are_divided(launch: Launch) -> None:
    launcher = launch("ready()", gpus="4,5,6,7,MIG-8")
    assert launcher.end()[0] == 0
    assert {n: s["gpus"] for n, s in launcher.starts().items()} == {"0-0": "4,5", "1-0": "6,7"}


def refused(tmp_path: Path, workers: int = 2, **environ: str) -> str:
    with pytest.raises(InputError) as caught:
        run_workers(
            [sys.executable, "-c", "raise SystemExit(1)"],
            workers,
            max_restarts=0,
            log_dir=tmp_path / "logs",
            environ={"CUDA_VISIBLE_DEVICES": "-1", **environ},
        )
    return str(caught.value)


def test_mistakes(tmp_path: Path) -> None:
    assert "num_workers must be a whole number above 0" in refused(tmp_path, 0)
    assert "more than the 1 GPUs" in refused(tmp_path, CUDA_VISIBLE_DEVICES="3")
    config = tf_config(Cluster(("a:1", "b:2", "c:3"), 0))
    assert "already one of the 3" in refused(tmp_path, TF_CONFIG=config)


def test_logs_that_cannot_be_written(launch: Launch, tmp_path: Path) -> None:
    """The worker that already runs is ended."""
    (tmp_path / "logs").touch()
    code, _, err = launch("ready(); time.sleep(600)").end()
    assert code == 1 and "InputError: cannot write logs/worker-1.log: " in err


def test_a_worker_does_not_launch() -> None:
    assert is_worker({"KAPPS_LAUNCHED": "1"}) and not is_worker({})
