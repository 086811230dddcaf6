"""Workers that are missing, dead, frozen, stuck, or not the ones that they should be."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kapps import InputError
from kapps.tools.roster import Report, Roster
from kapps.tools.watch import WORKER_FAILED, Watch

INTERVAL = 0.1  # seconds; a worker is a suspect after five of them
TIMEOUT = 1.0  # of the start or of a step, where it has to run out
NEVER = 60.0  # where it has not
DEADLINE = 30.0  # on a busy machine

# A worker: it does what it reads, line by line.
WORKER = """
import sys
from pathlib import Path
from kapps.tools.watch import Watch

folder, index, count, start, step, interval = sys.argv[1:]
names = [f"host{i}:22" for i in range(int(count))]
with Watch(
    Path(folder),
    int(index),
    names,
    start_timeout=float(start),
    step_timeout=float(step) or None,
    interval=float(interval),
) as watch:
    watch.wait()
    print("there", flush=True)
    for line in sys.stdin:
        exec(line)
        print("done", line, flush=True)
"""


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Worker:
    """A process that watches."""

    def __init__(self, folder: Path, index: int, of: int, start: float, step: float) -> None:
        self._out, self._err = (folder / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER]
                + [str(x) for x in (folder / "workers", index, of, start, step, INTERVAL)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                text=True,
            )

    def said(self) -> str:
        return self._out.read_text()

    def told(self) -> str:
        return self._err.read_text()

    def there(self) -> None:
        wait_for(lambda: "there" in self.said())

    def begin(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def do(self, line: str) -> None:
        before = self.said().count("done")
        self.begin(line)
        wait_for(lambda: self.said().count("done") > before)

    def suspects(self) -> str:
        self.do("print(watch.suspects())")
        return self.said().splitlines()[-3]

    def end(self) -> int:
        """Its exit code, after the last line."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(DEADLINE)

    def failed(self) -> str:
        """The one line that it ended with."""
        assert self.process.wait(DEADLINE) == WORKER_FAILED
        (line,) = self.told().splitlines()
        assert line.startswith("kapps: ") and line.endswith(f"; exit code {WORKER_FAILED}")
        return line


Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a worker; none is left behind."""
    workers: list[Worker] = []

    def one(index: int = 0, of: int = 2, start: float = NEVER, step: float = NEVER) -> Worker:
        workers.append(Worker(tmp_path, index, of, start, step))
        return workers[-1]

    yield one
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()


def report_of(folder: Path, index: int) -> dict[str, object]:
    return json.loads((folder / "workers" / f"worker-{index}.json").read_text())


def test_all_are_there_and_end(start: Start, tmp_path: Path) -> None:
    workers = [start(index, of=3) for index in range(3)]
    for worker in workers:
        worker.there()
    workers[0].do("watch.phase('train'); watch.beat(7)")
    wait_for(lambda: report_of(tmp_path, 0)["step"] == 7)
    assert report_of(tmp_path, 0)["phase"] == "train"
    # The others go on although one has ended.
    assert workers[2].end() == 0
    wait_for(lambda: ") has ended, at step 0" in workers[0].suspects())
    assert [worker.end() for worker in workers] == [0, 0, 0]
    assert not any(worker.told() for worker in workers)


def test_worker_that_never_comes(start: Start) -> None:
    line = start(0, of=3, start=TIMEOUT).failed()
    assert "within 1 s: worker 1 of 3 (host1:22) has not come; worker 2 of 3 (host2:22)" in line
    assert "start the same command there" in line and "--start_timeout" in line


def test_what_an_earlier_start_has_left_does_not_count(start: Start, tmp_path: Path) -> None:
    """Neither what ended well, nor what was killed."""
    before = [start(0), start(1)]
    for worker in before:
        worker.there()
    before[0].end()
    before[1].process.kill()
    before[1].process.wait()
    assert report_of(tmp_path, 1)["phase"] == "start"
    assert "worker 1 of 2 (host1:22) has not come" in start(0, start=TIMEOUT).failed()
    assert "worker 0 of 2 (host0:22) has not come" in start(1, start=TIMEOUT).failed()
    again = [start(0), start(1)]
    for worker in again:
        worker.there()


def test_worker_that_dies(start: Start) -> None:
    workers = [start(0, step=2 * TIMEOUT), start(1)]
    for worker in workers:
        worker.there()
    workers[1].process.send_signal(signal.SIGKILL)
    wait_for(lambda: "worker 1" in workers[0].suspects())
    assert "it is dead, frozen, or cut off" in workers[0].suspects()
    line = workers[0].failed()
    assert re.search(
        r"no worker has got on for 2 s: worker 1 of 2 \(host1:22, process \d+ on ", line
    )
    assert "--step_timeout" in line


def test_worker_that_is_frozen_and_thaws(start: Start) -> None:
    workers = [start(0), start(1)]
    for worker in workers:
        worker.there()
    wait_for(lambda: workers[0].suspects() == "[]")
    workers[1].process.send_signal(signal.SIGSTOP)
    wait_for(lambda: f"process {workers[1].process.pid} on" in workers[0].suspects())
    workers[1].process.send_signal(signal.SIGCONT)
    wait_for(lambda: workers[0].suspects() == "[]")
    workers[1].there()


def test_worker_that_is_stuck(start: Start) -> None:
    """It reports, but falls behind: both say the same of it."""
    workers = [start(0, step=2 * TIMEOUT), start(1, step=2 * TIMEOUT)]
    for worker in workers:
        worker.there()
    for worker in workers:
        worker.do("watch.phase('train'); watch.beat(120)")
    workers[0].do("watch.beat(121)")
    for worker in workers:
        line = worker.failed()
        assert re.search(
            r"worker 1 of 2 \(.*\) has been at step 120 \(train\) for \d s, while", line
        )
        assert "others are at step 121" in line and "worker 0 of 2" not in line


def test_all_that_stand_at_the_same_step_are_told(start: Start) -> None:
    workers = [start(0, of=3, step=2 * TIMEOUT), start(1, of=3), start(2, of=3)]
    for worker, phase in zip(workers, ["train", "input", "train"], strict=True):
        worker.there()
        worker.do(f"watch.beat(7); watch.phase('{phase}')")
    line = workers[0].failed()
    assert "workers 0, 2 at step 7 (train), worker 1 at step 7 (input)" in line


def test_progress_of_any_kind_keeps_all_alive(start: Start) -> None:
    """A step of one or a phase of another, for twice the timeout."""
    workers = [start(0, step=1.5 * TIMEOUT), start(1, step=1.5 * TIMEOUT)]
    for worker in workers:
        worker.there()
    begin, count = time.monotonic(), 0
    while time.monotonic() < begin + 3 * TIMEOUT:
        count += 1
        workers[count % 2].do(("watch.beat(%d)" if count % 2 else "watch.phase('%d')") % count)
        time.sleep(INTERVAL)
    assert [worker.end() for worker in workers] == [0, 0]


def test_worker_that_was_started_again_ends_the_others(start: Start) -> None:
    """They wait for a process that is no more, while its successor looks alive."""
    workers = [start(0), start(1)]
    for worker in workers:
        worker.there()
    workers[1].process.kill()
    workers[1].process.wait()
    start(1)
    line = workers[0].failed()
    assert "worker 1 of 2 (host1:22, process" in line and "was started again" in line


def test_two_processes_that_are_the_same_worker(start: Start) -> None:
    workers = [start(1), start(1)]
    wait_for(lambda: any(worker.process.poll() is not None for worker in workers))
    first = next(worker for worker in workers if worker.process.poll() is not None)
    assert "another process is worker 1 as well" in first.failed()


def test_failure_is_told_to_the_others(start: Start) -> None:
    workers = [start(0), start(1)]
    for worker in workers:
        worker.there()
    workers[1].begin("raise ValueError('boom')")
    assert workers[1].process.wait(DEADLINE) == 1
    wait_for(lambda: ") has failed, at step 0" in workers[0].suspects())


def test_one_worker_without_a_timeout_is_never_ended(start: Start, tmp_path: Path) -> None:
    worker = start(0, of=1, start=0.1, step=0)
    worker.there()
    beat = report_of(tmp_path, 0)["beat"]
    assert isinstance(beat, int)
    wait_for(lambda: report_of(tmp_path, 0)["beat"] == beat + 8)
    assert worker.end() == 0


def test_call_that_keeps_all_threads_waiting_is_ended(start: Start) -> None:
    """As TensorFlow's does that makes a strategy: no code of Python can end it."""
    worker = start(0, of=1, step=TIMEOUT)
    worker.there()
    worker.begin("import ctypes; ctypes.PyDLL(None).sleep(600)")  # PyDLL: does not let others run
    assert worker.process.wait(DEADLINE) == 1
    assert worker.told().startswith("Timeout") and "<string>" in worker.told()


def test_folder_that_cannot_be_written(start: Start, tmp_path: Path) -> None:
    """At the start it is a mistake; later it may be so for a while only."""
    worker = start(0, of=1)
    worker.there()
    shutil.rmtree(tmp_path / "workers")
    wait_for(lambda: "No such file or directory; going on" in worker.told())
    (tmp_path / "workers").mkdir()
    wait_for((tmp_path / "workers" / "worker-0.json").exists)
    assert worker.end() == 0
    assert len(worker.told().splitlines()) == 1
    (tmp_path / "file").touch()
    watch = Watch(tmp_path / "file" / "workers", 0, ["a:1"], start_timeout=1, step_timeout=None)
    with pytest.raises(InputError, match="file/workers: Not a directory; choose"), watch:
        pass


def test_damaged_reports_are_no_news(start: Start, tmp_path: Path) -> None:
    """Of another version, or cut off where the share knows no atomic rename."""
    (tmp_path / "workers").mkdir()
    worker = start(0, start=TIMEOUT)
    report = tmp_path / "workers" / "worker-1.json"
    texts = ["{", "[]", "{}", '{"pid": "x"}', "[" * 100000]
    while worker.process.poll() is None:
        report.write_text(random.choice(texts))
        time.sleep(0.01)
    assert "worker 1 of 2 (host1:22) has not come" in worker.failed()


class Simulation:
    """Rosters of a few workers and the reports between them, without processes and time."""

    def __init__(self, rng: random.Random) -> None:
        self.count = rng.randint(1, 4)
        self.now = 0.0
        left = ("old",) * self.count
        self.reports: list[Report | None] = [
            rng.choice([None, Report(f"old {i}", 1, "host", 9, "train", 5, left)])
            for i in range(self.count)
        ]
        self.rosters: dict[int, Roster] = {}
        self.processes = [f"{i}." for i in range(self.count)]

    def come(self, i: int) -> None:
        """A worker comes, or is started again."""
        self.processes[i] += "again"
        self.rosters[i] = Roster(["host"] * self.count, i, still=1e9)
        self.look(i, first=True)

    def look(self, i: int, *, first: bool = False) -> None:
        self.now += 1
        roster = self.rosters[i]
        for j in set(range(self.count)) - {i}:
            roster.note(j, self.reports[j], self.now, first=first)
        sees = tuple(roster.processes())
        report = Report(self.processes[i], 1, "host", int(self.now), "start", 0, sees)
        self.reports[i] = report
        roster.note(i, report, self.now)

    def complete(self) -> list[bool]:
        return [roster.is_complete(self.now) for roster in self.rosters.values()]


def test_complete_only_with_the_processes_of_this_start(seed: int) -> None:
    """With any leftovers, and any order of coming, coming again and looking.

    None takes a start as complete unless all are there, and all know the very processes that are;
    once they stay, each does, and none complains.
    """
    rng = random.Random(seed)
    completed = 0
    for _ in range(300):
        world = Simulation(rng)
        for _ in range(rng.randint(0, 40)):
            i = rng.randrange(world.count)
            if i not in world.rosters or (not any(world.complete()) and rng.random() < 0.3):
                world.come(i)
            else:
                world.look(i)
            if any(world.complete()):
                assert {r and r.sees for r in world.reports} == {tuple(world.processes)}
        if len(world.rosters) == world.count:
            for i in [*range(world.count)] * 4:
                world.look(i)
            assert all(world.complete())
            assert not any(roster.replaced() for roster in world.rosters.values())
            completed += 1
    assert completed > 50  # or this would show nothing
