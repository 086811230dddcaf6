"""Runs that are killed at random moments, and go on as if nothing had happened.

    python benchmarks/survival.py [--seed=0] [--output=docs/survival.md]

kapps-train is started as by a user, as often without interruption as --pairs says (the second time
beside two processes that keep the cores busy): where those differ, this ends with exit code 1.
Then each of the kinds of `KINDS` begins in a fresh folder and gets SIGKILL at a moment that is
drawn evenly from the time that the uninterrupted run took: by turns of two runs from that between
its first step and its last one, which else is little beside that of TensorFlow's start, and from
the whole. What is in the folder then has to be readable. The same command goes on; every second run
is killed once more on its way. At the end, to the byte, the weights are those of the uninterrupted
run, and the figures of all epochs; and the folder and TMPDIR have the same files as there.

A run notes each step that it has done, by a sitecustomize.py on PYTHONPATH that looks on as the
progress bar is moved: steps that were done before a kill, and come after the checkpoint that the
run then goes on from, are repeated. Those have to be --checkpoint_every at most.

The exit code is 1 where anything of this is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from machine import measured_on
from survival_folder import differences, leftovers, unreadable

from kapps._files import atomic_write, sha256

BATCH = 128  # whose gradients once were added up in the order of the threads
EVERY = 4  # steps, of 9 an epoch: in mid-epoch
COMMON = f"--dataset=digits --image_size=32 --batch_size={BATCH}"
RANDOM = "--train_crop=shift --flip=0.5 --mixup=0.2 --cutmix=1 --average=0.99 --stop_at=1"
NETWORKS = {
    "LeNet5": f"--model=LeNet5 --recipe=digits --epochs=6 {RANDOM} {COMMON}",
    "CifarResNet": f"--model=CifarResNet --arguments=depth=8 --epochs=2 {RANDOM} {COMMON}",
}
PLAIN = f"--model=CifarResNet --recipe=default --epochs=1 {COMMON}"
AVX2 = {  # as on a processor that knows no more
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
ALONE = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
SPY = """
import os
import time
from tqdm import tqdm

update = tqdm.update

def noted(self, n=1):
    shown = update(self, n)
    if not self.disable:
        with open(os.environ["SURVIVAL_STEPS"], "a") as file:
            file.write(f"{self.n} {time.time()}\\n")
    return shown

tqdm.update = noted
"""


@dataclasses.dataclass(frozen=True)
class Kind:
    """Runs that are killed in one way."""

    network: str
    workers: int
    victim: str
    """What is killed: "all", the launcher and whatever it started, or "launcher" or "worker"."""
    runs: int
    hogs: int = 0
    """Busy processes beside."""
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def flags(self) -> str:
        """Of kapps-train."""
        several = f" --num_workers={self.workers}" if self.workers > 1 else ""
        return f"{NETWORKS[self.network]} --checkpoint_every={EVERY}{several}"


KINDS = (
    Kind("LeNet5", 1, "all", 10),
    Kind("CifarResNet", 1, "all", 10, hogs=2),
    Kind("CifarResNet", 1, "all", 1, environment=tuple(AVX2.items())),
    Kind("LeNet5", 2, "launcher", 4),
    Kind("LeNet5", 2, "worker", 4),
    Kind("CifarResNet", 2, "launcher", 1, hogs=2),
    Kind("CifarResNet", 2, "worker", 1, hogs=2),
)


@dataclasses.dataclass
class Outcome:
    """What became of one run."""

    kills: int = 0
    in_training: int = 0
    """Of them, those after the first step of a start."""
    repeated: int = 0
    """The most steps after one kill."""
    wrong: list[str] = dataclasses.field(default_factory=list)
    unreadable: list[str] = dataclasses.field(default_factory=list)
    leftovers: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


class Folder:
    """A run's, with a TMPDIR of its own, and what its starts have said."""

    def __init__(self, root: Path) -> None:
        self.files, self._notes, self._starts = root / "files", root / "notes", 0
        for folder in (self.files / "tmp", self._notes):
            folder.mkdir(parents=True)
        (self._notes / "sitecustomize.py").write_text(SPY)

    def start(
        self, flags: str, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """The next start, of a session of its own."""
        self._starts += 1
        own = {
            "TMPDIR": str(self.files / "tmp"),
            "PYTHONPATH": str(self._notes),
            "SURVIVAL_STEPS": str(self._notes / f"steps{self._starts}"),
        }
        inherited = {name: value for name, value in os.environ.items() if name not in ALONE}
        program = str(Path(sys.executable).with_name("kapps-train"))
        with open(self._log, "wb") as log:
            return subprocess.Popen(
                [program, *flags.split(), f"--workdir={self.files / 'run'}"],
                env=inherited | own | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self) -> str:
        """The output of the last start."""
        return self._log.read_text(errors="replace")

    def steps(self, start: int | None = None) -> list[int]:
        """Those that a start has done, by default the last one; 1 is the first."""
        notes = self._notes / f"steps{start or self._starts}"
        if not notes.exists():
            return []
        return [round(float(n)) // BATCH for n, _ in self._noted(notes)]

    def training_seconds(self) -> float:
        """From the first to the last step of the first start."""
        times = [float(when) for _, when in self._noted(self._notes / "steps1")]
        return times[-1] - times[0]

    def repeated(self) -> int:
        """How many steps of earlier starts the last one has done again, or will."""
        before = [step for start in range(1, self._starts) for step in self.steps(start)]
        own = self.steps()
        return max(before) - own[0] + 1 if before and own else 0

    @property
    def weights(self) -> Path:
        return self.files / "run" / "weights.safetensors"

    @staticmethod
    def _noted(notes: Path) -> list[list[str]]:
        """How many images, and when; the last line may be cut short."""
        lines = notes.read_text().splitlines(keepends=True)
        return [line.split() for line in lines if line.endswith("\n")]

    @property
    def _log(self) -> Path:
        return self._notes / f"log{self._starts}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--share", type=float, default=1.0, help="of the kills")
    parser.add_argument("--pairs", type=int, default=2, help="uninterrupted runs of each kind")
    parser.add_argument("--plain", type=int, default=10, help="of the plain command")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", help="Markdown; by default it is printed")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    bench = Bench(options)
    with tempfile.TemporaryDirectory() as name:
        alike = bench.uninterrupted(Path(name))
        kills = [bench.killed(Path(name), kind) for kind in KINDS] if alike else []
    text = page(options, bench.same, kills)
    if options.output:
        with atomic_write(options.output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        print(text)
    return int(bench.failed)


class Bench:
    """The runs, and what they have shown."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.failed = False
        self.same: list[str] = []
        self._whole: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[Folder, float]] = {}

    def uninterrupted(self, root: Path) -> bool:
        """Whether the same command always gives the same weights."""
        commands = {(kind.flags, kind.environment): self._options.pairs for kind in KINDS}
        commands |= {(PLAIN, ()): self._options.plain, (PLAIN, tuple(AVX2.items())): 2}
        alike = True
        for number, ((flags, environment), count) in enumerate(commands.items()):
            folders = [Folder(root / f"whole{number}-{run}") for run in range(count)]
            times = [timed(folders[0], flags, dict(environment))]
            with busy(2), ThreadPoolExecutor(self._options.jobs) as pool:
                others = [pool.submit(timed, f, flags, dict(environment)) for f in folders[1:]]
                times += [run.result() for run in others]
            digests = {sha256(folder.weights) for folder in folders}
            self._whole[flags, environment] = folders[0], sum(times) / count
            alike = alike and len(digests) == 1
            row = (
                f"| `{flags}` | {'AVX2' if environment else ''} | {count} | {len(digests)} "
                f"| {', '.join(sorted(d[:12] for d in digests))} | {sum(times) / count:.0f} |"
            )
            self.same.append(row)
            print(row, file=sys.stderr, flush=True)
        self.failed = self.failed or not alike
        return alike

    def killed(self, root: Path, kind: Kind) -> str:
        """A row of the table."""
        count = max(1, round(kind.runs * self._options.share))
        place = root / f"killed{KINDS.index(kind)}"
        with busy(kind.hogs), ThreadPoolExecutor(self._options.jobs) as pool:
            runs = [pool.submit(self._run, place / str(i), kind, i) for i in range(count)]
            outcomes = [run.result() for run in runs]
        lost = [o for o in outcomes if o.wrong or o.unreadable or o.leftovers]
        most = max(o.repeated for o in outcomes)
        self.failed = self.failed or bool(lost) or most > EVERY
        for outcome in lost:
            print(kind, outcome, file=sys.stderr, flush=True)
        row = (
            f"| {kind.network} | {kind.workers} | {kind.victim} | {kind.hogs} "
            f"| {'AVX2' if kind.environment else ''} | {count} "
            f"| {sum(o.kills for o in outcomes)} | {sum(o.in_training for o in outcomes)} "
            f"| {sum(not o.wrong for o in outcomes)} | {most} "
            f"| {sum(len(o.unreadable) for o in outcomes)} "
            f"| {sum(len(o.leftovers) for o in outcomes)} "
            f"| {sum(o.seconds for o in outcomes):.0f} |"
        )
        print(row, file=sys.stderr, flush=True)
        return row

    def _run(self, root: Path, kind: Kind, number: int) -> Outcome:
        """Kills a run once, or an odd one twice, and lets it go on to its end."""
        whole, seconds = self._whole[kind.flags, kind.environment]
        draws = random.Random(f"{self._options.seed} {kind} {number}")
        outcome, begun, attempt = Outcome(), time.monotonic(), 0
        while not outcome.kills and not outcome.wrong:  # until one was not at its end before
            folder = Folder(root / str(attempt))
            attempt += 1
            for _ in range(1 + number % 2):
                in_training = number // 2 % 2 == 0
                most = whole.training_seconds() if in_training else seconds
                if not self._kill_one(folder, kind, draws, most, in_training, outcome):
                    break
        code = folder.start(kind.flags, dict(kind.environment)).wait()
        outcome.seconds = time.monotonic() - begun
        if code:
            outcome.wrong.append(f"exit code {code}: {folder.said()[-500:]}")
            return outcome
        outcome.repeated = max(outcome.repeated, folder.repeated())
        outcome.wrong += differences(folder.files, whole.files)
        outcome.unreadable += unreadable(folder.files)
        outcome.leftovers = leftovers(folder.files, whole.files)
        return outcome

    def _kill_one(
        self,
        folder: Folder,
        kind: Kind,
        draws: random.Random,
        seconds: float,
        in_training: bool,
        outcome: Outcome,
    ) -> bool:
        """Starts the command and kills it; whether it had not ended before."""
        process = folder.start(kind.flags, dict(kind.environment))
        while in_training and process.poll() is None and not folder.steps():
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draws.uniform(0, seconds))
        if process.poll() is not None:
            if process.returncode:
                outcome.wrong.append(f"exit code {process.returncode}: {folder.said()[-500:]}")
            return False
        kill(process, kind.victim, draws)
        outcome.kills += 1
        outcome.in_training += bool(folder.steps())
        outcome.repeated = max(outcome.repeated, folder.repeated())
        outcome.unreadable += unreadable(folder.files)
        return True


def timed(folder: Folder, flags: str, environment: dict[str, str]) -> float:
    """The seconds that a run takes which nothing interrupts."""
    begun = time.monotonic()
    if folder.start(flags, environment).wait() != 0:
        raise RuntimeError(folder.said())
    return time.monotonic() - begun


def kill(process: subprocess.Popen[bytes], victim: str, draws: random.Random) -> None:
    """Returns when nothing of it runs any more.

    Raises:
        RuntimeError: something still does after a minute.
    """
    workers = [
        int(pid)
        for file in Path(f"/proc/{process.pid}/task").glob("*/children")
        for pid in file.read_text().split()
    ]
    if victim == "worker" and workers:
        os.kill(draws.choice(workers), signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    deadline = time.monotonic() + 60
    while any(runs(worker) for worker in workers):
        if time.monotonic() > deadline:
            raise RuntimeError(f"workers have outlived process {process.pid}: {workers}")
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Beside so many processes that never rest."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def page(options: argparse.Namespace, same: list[str], kills: list[str]) -> str:
    isa = "AVX-512" if "avx512f" in Path("/proc/cpuinfo").read_text() else "AVX2 or less"
    settings = " and ".join(f"`{name}={value}`" for name, value in AVX2.items())
    lines = [
        "# Runs that are killed",
        "",
        f"`benchmarks/survival.py`, {measured_on('keras', 'tensorflow', 'numpy')}, which know "
        f"{isa}; seed {options.seed}, {options.jobs} runs at a time.",
        "",
        "## Without interruption",
        "",
        "The same command, again and again; all but the first time beside two busy processes. "
        f"AVX2: with {settings}, as on a processor that does not know AVX-512. oneDNN computes "
        "convolutions and products of matrices, and with NumPy is what chooses its code by the "
        "processor; TensorFlow's other operations are compiled into its wheel for all processors "
        "alike. What the compiler's own libraries choose could not be switched. A run is the same "
        "on one kind of processor, and differs between kinds, where sums are in another order.",
        "",
        "| Command | Instructions | Runs | Different results | SHA-256 | Seconds a run |",
        "|---|---|---:|---:|---|---:|",
        *same,
        "",
        "## With SIGKILL",
        "",
        "At moments drawn evenly from a run's duration, or from that of its steps; "
        f"`--checkpoint_every={EVERY}`, of 9 steps an epoch. The same command goes on. Of several "
        "workers the launcher is killed, or one of them. Busy: processes beside that never rest. "
        "In training: after the first step of a start. Identical: all weights and "
        "the figures of every epoch.",
        "",
        "| Network | Workers | Killed | Busy | Instructions | Runs | Kills | In training "
        "| Identical | Most steps repeated | Unreadable files | Leftovers | Seconds |",
        "|---|---:|---|---:|---|" + "---:|" * 8,
        *kills,
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
