"""All workers of a run on this machine: they start together, and end together."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kapps._errors import InputError, check_whole, one_line
from kapps.tools import cluster
from kapps.tools.preemption import handled
from kapps.tools.watch import WORKER_FAILED

_LAUNCHED = "KAPPS_LAUNCHED"
_NOT_AGAIN = (0, 2, 129, 130, 143)  # done, a user's mistake, and SIGHUP, SIGINT, SIGTERM
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def run_workers(
    command: Sequence[str],
    workers: int,
    *,
    max_restarts: int,
    log_dir: Path,
    environ: Mapping[str, str],
    grace: float = 40.0,
) -> int:
    """Runs a command as each of the workers, with TF_CONFIG, until all have ended.

    The first one has this process's output, the others write to worker-1.log and so on. Where one
    fails the others get SIGTERM, and SIGKILL after `grace`; SIGINT, SIGTERM and SIGHUP are passed
    on in the same way. To be called from the main thread. No worker outlives this process, even if
    that is killed.

    Args:
        command: the program and its arguments.
        workers: how many, 1 or more. The machine's GPUs are divided among them.
        max_restarts: how often all are started again after one crashed. A user's mistake (exit code
            2) and an end by signal are no crash.
        log_dir: the folder of the logs, which are added to.
        environ: of the workers, without TF_CONFIG, which each gets as well.
        grace: seconds that a worker has to end in; in 30 of them it may save.

    Returns:
        0, or the exit code of the worker that failed first, or worst of several; 128 + n if signal
        n ended it.

    Raises:
        InputError: `environ` makes this process itself one of several, there are fewer GPUs than
            workers, or the logs cannot be written.
    """
    check_whole("run_workers", "num_workers", workers)
    check_whole("run_workers", "max_restarts", max_restarts, least=0)
    others = cluster.from_environment(environ)
    if others is not None:
        raise InputError(
            "--num_workers starts all workers on this machine, and this process is already one of "
            f"the {len(others.addresses)} that its environment names (TF_CONFIG, Slurm or "
            "Kubernetes); leave --num_workers out"
        )
    shares = _gpu_shares(workers, environ)
    received: list[int] = []
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with handled(ends, lambda number, frame: received.append(number)):
        for left in range(max_restarts, -1, -1):
            with _started(command, shares, log_dir, environ) as team:
                code = _finish(team, received, grace)
            if code in _NOT_AGAIN or received or not left:
                break
            print(f"starting all workers again; restarts left: {left - 1}", file=sys.stderr)
    return code


def is_worker(environ: Mapping[str, str]) -> bool:
    """Whether `run_workers` has started this process, which then is not to start others."""
    return _LAUNCHED in environ


@dataclasses.dataclass
class _Worker:
    name: str
    process: subprocess.Popen[bytes]
    log: Path | None
    """None: its output is this process's."""
    begin: int
    """The log's size at this start, bytes."""

    def code(self) -> int | None:
        """Its exit code, as a shell tells it; None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def story(self) -> str:
        """How it ended, and where that can be read."""
        ended = self.process.returncode
        how = f"ended with {ended}" if ended >= 0 else f"was ended by {_signal_name(-ended)}"
        if self.log is None:
            return f"{self.name} {how}"
        with open(self.log, "rb") as file:
            file.seek(max(self.begin, self.log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "nothing")
        return f"{self.name} {how}; the last line of {self.log}: {one_line(last)}"


@contextlib.contextmanager
def _started(
    command: Sequence[str],
    shares: Sequence[Mapping[str, str]],
    log_dir: Path,
    environ: Mapping[str, str],
) -> Iterator[list[_Worker]]:
    """The workers, running; afterwards none of them runs, nor what they have started."""
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(len(shares)))
    team: list[_Worker] = []
    try:
        for index, share in enumerate(shares):
            own = {
                _LAUNCHED: "1",
                "TF_CONFIG": cluster.tf_config(cluster.Cluster(addresses, index)),
            }
            log = log_dir / f"worker-{index}.log" if index else None
            process, begin = _start(command, {**environ, **share, **own}, log)
            team.append(_Worker(f"worker {index} of {len(shares)}", process, log, begin))
        yield team
    finally:
        for worker in team:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()


def _start(
    command: Sequence[str], environ: Mapping[str, str], log: Path | None
) -> tuple[subprocess.Popen[bytes], int]:
    """A worker, and the size of its log before."""
    with contextlib.ExitStack() as stack:
        output, begin = None, 0
        if log is not None:
            try:
                log.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(open(log, "ab"))
            except OSError as error:
                raise InputError(
                    f"cannot write {log}: {error.strerror}; choose a folder that you may write"
                ) from error
            begin = output.tell()
        process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            # A terminal sends Ctrl-C to a whole session: they would get it twice.
            start_new_session=True,
            preexec_fn=_ending_with(os.getpid()),
        )
    return process, begin


def _ending_with(parent: int) -> Callable[[], None]:
    """Has the kernel kill a child when this process ends, however that comes about.

    A pipe to watch would need a thread of the child that runs, and a stuck child has none.
    """
    prctl = ctypes.CDLL(None).prctl  # here: after the fork nothing is to be loaded

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != parent:  # it ended in between
            os._exit(1)

    return before_exec


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that were free a moment ago: the operating system names them."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _gpu_shares(workers: int, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """What each worker's environment says of its GPUs: TensorFlow takes all that it sees."""
    gpus = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if "CUDA_VISIBLE_DEVICES" not in environ:
        gpus = [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    if not gpus or gpus[0] == "-1":
        return [{}] * workers
    each = len(gpus) // workers
    if not each:
        raise InputError(
            f"--num_workers={workers} is more than the {len(gpus)} GPUs of this machine; choose "
            "fewer, or set CUDA_VISIBLE_DEVICES=-1 to train on the CPU"
        )
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])} for i in range(workers)
    ]


def _finish(team: list[_Worker], received: Sequence[int], grace: float) -> int:
    """Waits until all have ended, of themselves or because they have to; the exit code."""
    while True:
        ended = {code: worker for worker in team if (code := worker.code()) is not None}
        worst = max(ended, key=_badness, default=0)
        if received:
            _end(team, received[0], grace)
            return max((worker.code() or 0 for worker in team), key=_badness)
        if worst:
            _end(team, signal.SIGTERM, grace)
            print(ended[worst].story(), file=sys.stderr)
            return worst
        if all(worker.code() == 0 for worker in team):
            return 0
        time.sleep(_POLL_SECONDS)


def _badness(code: int) -> int:
    """A mistake and a crash say what was wrong; the others may have ended because of that."""
    if code == 2:
        return 4
    if code in _NOT_AGAIN:  # 0, and by signals that ask for an end
        return min(code, 1)
    return 3 if code != WORKER_FAILED else 2


def _end(team: list[_Worker], number: int, grace: float) -> None:
    """Asks those that still run to end, and kills them where they do not."""
    for worker in team:
        worker.process.send_signal(number)
    deadline = time.monotonic() + grace
    while any(worker.code() is None for worker in team) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for worker in team:
        if worker.code() is None:
            worker.process.kill()
            worker.process.wait()
            print(
                f"{worker.name} did not end within {grace:g} s of {_signal_name(number)}, and was "
                "killed",
                file=sys.stderr,
            )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of the real-time ones
        return f"signal {number}"
