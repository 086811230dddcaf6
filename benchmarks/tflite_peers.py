"""How fast the .tflite files of kapps are beside those that its peers make of the same nets.

    python benchmarks/tflite_peers.py --torch_python=PATH --zeromodels_python=PATH
        [--folder=build/peers] [--rounds=60]

writes docs/tflite_peers.md. The paths are the Pythons of environments for the nets of torchvision
and timm, and for those of ZeroModels; without one they are left out:

    python -m venv litert
    litert/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    litert/bin/pip install --no-deps torchvision==0.28.0 timm==1.0.31
    litert/bin/pip install pyyaml litert-torch==0.10.0 ai-edge-quantizer==0.10.0

    python -m venv zeromodels
    zeromodels/bin/pip install tensorflow==2.21.0 keras==3.15.1 zeromodels==1.3.6

Every file is written by a process of its own (`tflite_files.py`) and kept in the folder: what is
there is not written again, so delete the kapps-* files after a change of the converter.

One process then loads all files and measures them in one interleaved run on one thread. A round
gives every file a turn, those of a net one after the other, in an order of its own: one run that
does not count, since it finds the caches full of another file, and then RUNS that do. After some
rounds all files are loaded anew, because where their memory lies may make a percent or two.

What counts is the processor time of the thread: on a machine with nothing else to do that is the
time on the clock, and on a shared one it leaves out the time in which others had the core. A turn
counts as its quickest run, the one that others disturbed least; a file's figure is the median over
the rounds, and a ratio the median of the rounds' ratios, with a 95 % bootstrap interval over them.

The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import importlib.metadata
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kapps._files import atomic_write
from kapps.tflite.interpreter import delegate_pieces, load_interpreter, operations
from kapps.tflite.measurement.latency import host_device

SIZE = 224  # pixels
RUNS = 5  # a turn
RELOAD = 5  # rounds

# kapps, in keras.applications, in ZeroModels   torchvision            timm
NETS = (
    ("MobileNet", True, False, "", "mobilenetv1_100"),
    ("MobileNetV2", True, True, "mobilenet_v2", "mobilenetv2_100"),
    ("MobileNetV3Small", True, True, "mobilenet_v3_small", "mobilenetv3_small_100"),
    ("MobileNetV3Large", True, True, "mobilenet_v3_large", "mobilenetv3_large_100"),
    ("ShuffleNet", False, False, "", ""),
    ("ShuffleNetV2_x0_5", False, False, "shufflenet_v2_x0_5", ""),
    ("ShuffleNetV2_x1_0", False, False, "shufflenet_v2_x1_0", ""),
    ("EfficientNetB0", True, True, "efficientnet_b0", "tf_efficientnet_b0"),
    ("EfficientNetLite0", False, True, "", "tf_efficientnet_lite0"),
    ("EfficientNetV2B0", True, True, "", "tf_efficientnetv2_b0"),
    ("MobileNetV4ConvSmall", False, True, "", "mobilenetv4_conv_small"),
    ("MobileNetV4ConvMedium", False, True, "", "mobilenetv4_conv_medium"),
    ("MobileNetV4HybridMedium", False, True, "", "mobilenetv4_hybrid_medium"),
    ("MobileOneS0", False, False, "", "mobileone_s0"),
)

# The highest ratio, ours by the best peer's, in float32.
FLOAT_TARGETS = {
    "MobileNet": 1.02,
    "MobileNetV2": 1.02,
    "MobileNetV3Small": 1.02,
    "MobileNetV3Large": 1.02,
    "EfficientNetB0": 1.02,
    "ShuffleNetV2_x1_0": 0.85,
}
INT8_TARGET = 1.0  # for each net that a peer has
INT8_MEAN_TARGET = 0.95  # their geometric mean


@dataclass(frozen=True)
class File:
    """A .tflite file: `net` is the name of kapps, `name` that of its source."""

    source: str
    net: str
    name: str
    quantization: str

    @property
    def stem(self) -> str:
        return f"{self.source}-{self.name}-{self.quantization}"


@dataclass(frozen=True)
class Figures:
    """What was measured of a file: `ms` is an array (rounds, RUNS) of milliseconds."""

    ms: np.ndarray
    wall_ms: np.ndarray
    pieces: int
    outside: tuple[str, ...]
    size_bytes: int

    @property
    def turns(self) -> np.ndarray:
        return self.ms.min(axis=1)

    @property
    def median(self) -> float:
        return float(np.median(self.turns))


@dataclass(frozen=True)
class Ratio:
    """Ours by a peer's time, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/peers"))
    parser.add_argument("--torch_python", default="")
    parser.add_argument("--zeromodels_python", default="")
    parser.add_argument("--nets", nargs="*", default=[net[0] for net in NETS])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--processes", type=int, default=1, help="files written at once")
    parser.add_argument("--output", type=Path, default=Path("docs/tflite_peers.md"))
    parser.add_argument("--measure_only", action="store_true", help="of files that are there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    pythons = {
        "torchvision": options.torch_python,
        "timm": options.torch_python,
        "zeromodels": options.zeromodels_python,
        "zeromodels-static": options.zeromodels_python,
    }
    wanted = files(options.nets, {source for source, python in pythons.items() if not python})
    if options.measure_only:
        paths = {file: options.folder / f"{file.stem}.tflite" for file in wanted}
        failures = {file: "not written" for file, path in paths.items() if not path.is_file()}
    else:
        failures = make(wanted, options.folder, pythons, options.processes)
    made = [file for file in wanted if file not in failures]
    figures, failed = measure(made, options.folder, options.rounds)
    failures |= failed
    save(figures, options.folder / "measurements.json")
    about = versions(options.torch_python, options.zeromodels_python)
    text, reached = report(figures, failures, about, options.rounds)
    with atomic_write(options.output) as temporary:
        temporary.write_text(text)
    print(text)
    return 0 if reached else 1


def files(nets: list[str], without: set[str]) -> list[File]:
    """All files to compare, but for those of some sources."""
    found = []
    for net, keras, zeromodels, torchvision, timm in NETS:
        if net not in nets:
            continue
        names = {"kapps": net, "torchvision": torchvision, "timm": timm}
        for source, there in (("keras", keras), ("zeromodels", zeromodels)):
            names |= {source: net, f"{source}-static": net} if there else {}
        for quantization in ("float32", "int8"):
            for source, name in names.items():
                if name and source not in without:
                    found.append(File(source, net, name, quantization))
    return found


def make(
    wanted: list[File], folder: Path, pythons: dict[str, str], processes: int
) -> dict[File, str]:
    """Writes the files that are not there; why one could not be, for those.

    `pythons` has the interpreter of a source that needs another than this one.
    """
    failures: dict[File, str] = {}
    script = Path(__file__).with_name("tflite_files.py")

    def write(file: File) -> None:
        path = folder / f"{file.stem}.tflite"
        if path.is_file():
            return
        python = pythons.get(file.source, sys.executable)
        say(f"writing {path}")
        done = subprocess.run(
            [python, script, file.source, file.name, file.quantization, str(SIZE), path],
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            failures[file] = lines[-1][:200]
            say(f"failed: {file.stem}: {failures[file]}")

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        list(pool.map(write, wanted))
    return failures


def measure(
    made: list[File], folder: Path, rounds: int
) -> tuple[dict[File, Figures], dict[File, str]]:
    """Runs all files in turns, in this process; why one did not load, for those."""
    failures: dict[File, str] = {}
    cpu: dict[File, list[list[float]]] = {}
    wall: dict[File, list[list[float]]] = {}
    random = np.random.default_rng(0)
    nets = list(dict.fromkeys(file.net for file in made))
    interpreters: dict[File, Any] = {}
    for number in range(rounds):
        if number % RELOAD == 0:
            say(f"round {number} of {rounds}")
            interpreters.clear()
            for file in [made[index] for index in random.permutation(len(made))]:
                try:
                    interpreters[file] = _loaded(folder / f"{file.stem}.tflite")
                except (RuntimeError, ValueError) as error:
                    failures[file] = str(error).splitlines()[0][:200]
        for net in random.permutation(nets):
            own = [file for file in interpreters if file.net == net]
            for file in [own[index] for index in random.permutation(len(own))]:
                turn = [_run(interpreters[file]) for _ in range(1 + RUNS)][1:]
                cpu.setdefault(file, []).append([run[0] for run in turn])
                wall.setdefault(file, []).append([run[1] for run in turn])
    figures = {
        file: Figures(
            np.array(cpu[file]),
            np.array(wall[file]),
            delegate_pieces(interpreters[file]),
            _outside(interpreters[file]),
            (folder / f"{file.stem}.tflite").stat().st_size,
        )
        for file in made
        if file in interpreters
    }
    return figures, failures


def _loaded(path: Path) -> Any:
    """An interpreter that has run once."""
    interpreter = load_interpreter(path, 1)
    detail = interpreter.get_input_details()[0]
    image = np.random.default_rng(0).integers(0, 128, detail["shape"])
    interpreter.set_tensor(detail["index"], image.astype(detail["dtype"]))
    interpreter.invoke()
    return interpreter


def _run(interpreter: Any) -> tuple[float, float]:
    """Milliseconds of one run: of the thread, and on the clock."""
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    interpreter.invoke()
    return (time.thread_time_ns() - cpu) / 1e6, (time.perf_counter_ns() - wall) / 1e6


def _outside(interpreter: Any) -> tuple[str, ...]:
    """What the delegate left to the plain kernels, such as "3 x HARD_SWISH"."""
    plan = _execution_plan(interpreter)
    names = [op["op_name"] for op in plan if op["op_name"] != "DELEGATE"]
    return tuple(f"{names.count(name)} x {name}" for name in sorted(set(names)))


def _execution_plan(interpreter: Any) -> list[dict[str, Any]]:
    """The operations that run.

    The interpreter lists those that a delegate took as well, before its pieces. A delegate's piece
    gives whatever others need of it, so what was taken is what a piece and an operation both give,
    or what gives nothing that is read.
    """
    listed = operations(interpreter)
    pieces = [op for op in listed if op["op_name"] == "DELEGATE"]
    needed = {int(d["index"]) for d in interpreter.get_output_details()}
    given = {int(t) for op in pieces for t in op["outputs"]}
    needed |= {int(t) for op in pieces for t in op["inputs"]}
    plan = list(pieces)
    for op in reversed([op for op in listed if op["op_name"] != "DELEGATE"]):
        outputs = {int(t) for t in op["outputs"]}
        if outputs & needed and not outputs & given:
            plan.append(op)
            needed |= {int(t) for t in op["inputs"]}
    return plan


def ratio(ours: Figures, peer: Figures) -> Ratio:
    """Of the times of two files that were measured in the same rounds."""
    each = ours.turns / peer.turns
    samples = np.random.default_rng(0).choice(each, (2000, len(each)))
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return Ratio(float(np.median(each)), float(low), float(high))


def report(
    figures: dict[File, Figures], failures: dict[File, str], about: str, rounds: int
) -> tuple[str, bool]:
    """The page, and whether all that it has a target for is reached."""
    lines = [
        "# TFLite files beside those of the peers",
        "",
        f"`benchmarks/tflite_peers.py`, {datetime.date.today()}, on {host_device()}, "
        f"{processor()}: never a phone's latency. {about}. {SIZE} px, random weights, batch 1, one "
        f"thread, XNNPACK; {rounds} interleaved rounds, the quickest of {RUNS} runs in each, "
        "processor time of the thread; the median of the rounds. A ratio is ours by the peer's: "
        "below 1, ours is faster; in brackets its 95 % interval. "
        f"Files are loaded anew every {RELOAD} rounds.",
        "",
        "The files of kapps take pixels in 0..255, normalize them and end in a softmax, all in "
        "the graph. Those of keras.applications end in a softmax too; MobileNet and MobileNetV2 "
        "have to be given pixels scaled to -1..1, the others scale in the graph. Those of "
        "ZeroModels end in a softmax, and have to be given normalized pixels. Those of torchvision "
        "and timm, through litert-torch with channels last, have to be given normalized pixels, "
        "and give logits. What a peer needs outside of its graph is not in its time. The int8 "
        "files of kapps take and give uint8, those of keras.applications and ZeroModels int8; "
        "those of torchvision and timm are ai-edge-quantizer's static_wi8_ai8, and take and give "
        "what it makes.",
        "",
    ]
    reached = True
    by_net: dict[tuple[str, str], list[File]] = {}
    for file in figures:
        by_net.setdefault((file.quantization, file.net), []).append(file)
    for quantization in ("float32", "int8"):
        lines += [
            f"## {quantization}",
            "",
            "| Net | kapps, ms | Pieces | Best peer | Its ms | Pieces | Ratio | Target | Reached |",
            "|---|---:|---:|---|---:|---:|---:|---:|---|",
        ]
        values = []
        for net, *_ in NETS:
            group = by_net.get((quantization, net), [])
            ours = next((file for file in group if file.source == "kapps"), None)
            if ours is None:
                continue
            own = figures[ours]
            peers = sorted(
                (file for file in group if file != ours), key=lambda file: figures[file].median
            )
            pieces_fit = quantization != "float32" or own.pieces == 1
            row = f"| {net} | {own.median:.2f} | {own.pieces} "
            if not peers:
                lines.append(f"{row}| | | | | | {'' if pieces_fit else 'no'} |")
                reached &= pieces_fit
                continue
            found = ratio(own, figures[peers[0]])
            if quantization == "float32":
                target = FLOAT_TARGETS.get(net)
            else:
                target = INT8_TARGET
                values.append(found.value)
            fits = pieces_fit and (target is None or found.value <= target)
            reached &= fits
            lines.append(
                f"{row}| {peers[0].source} `{peers[0].name}` | {figures[peers[0]].median:.2f} | "
                f"{figures[peers[0]].pieces} | {found} | {target or ''} | "
                f"{'yes' if fits else 'no'} |"
            )
        if values:
            mean = float(np.exp(np.mean(np.log(values))))
            fits = mean <= INT8_MEAN_TARGET
            reached &= fits
            lines.append(
                f"| Geometric mean | | | | | | {mean:.3f} | {INT8_MEAN_TARGET} | "
                f"{'yes' if fits else 'no'} |"
            )
        lines.append("")
    lines += [
        "## All files",
        "",
        "`keras` and `zeromodels` are `TFLiteConverter.from_keras_model` as it comes, with a batch "
        "of any size, which is 1 when it runs; `-static` the same of a model built with a batch of "
        "1. "
        "Outside: what the delegate left to the plain kernels.",
        "",
        "| Net | Source | Type | ms | On the clock, ms | kapps by it | MB | Pieces | Outside |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for (quantization, net), group in sorted(by_net.items(), key=lambda item: item[0][::-1]):
        ours = next((file for file in group if file.source == "kapps"), None)
        for file in sorted(group, key=lambda file: figures[file].median):
            own = figures[file]
            against = ""
            if ours is not None and file != ours:
                against = f"{ratio(figures[ours], own).value:.3f}"
            lines.append(
                f"| {net} | {file.source} `{file.name}` | {quantization} | {own.median:.2f} | "
                f"{np.median(own.wall_ms):.2f} | {against} | {own.size_bytes / 1e6:.1f} | "
                f"{own.pieces} | {', '.join(own.outside)} |"
            )
    if failures:
        lines += ["", "Not measured:", ""]
        lines += [f"- {file.stem}: {reason}" for file, reason in failures.items()]
    return "\n".join(lines) + "\n", reached


def versions(torch_python: str, zeromodels_python: str) -> str:
    """What the files were made with."""
    found = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("kapps", "keras", "tensorflow", "ai-edge-litert")
    ]
    for python, names in (
        (torch_python, ("torch", "torchvision", "timm", "litert-torch", "ai-edge-quantizer")),
        (zeromodels_python, ("zeromodels",)),
    ):
        if python:
            code = (
                f"from importlib.metadata import version\n"
                f"for name in {names!r}:\n"
                f"    print(name, version(name))"
            )
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
            found += done.stdout.split("\n")[:-1]
    return ", ".join(found)


def processor() -> str:
    """What of the processor's instructions matters to int8."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    has = "with" if flags & {"avx512_vnni", "avx_vnni", "asimddp"} else "without"
    wide = next((name for name in ("avx512f", "avx2") if name in flags), "no AVX2").upper()
    return f"{wide}, {has} instructions for dot products of bytes (VNNI)"


def save(figures: dict[File, Figures], path: Path) -> None:
    """Writes the raw samples."""
    samples = {
        file.stem: {"ms": own.ms.round(4).tolist(), "wall_ms": own.wall_ms.round(4).tolist()}
        for file, own in figures.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(samples))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
