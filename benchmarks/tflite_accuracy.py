"""What int8 costs in accuracy: every mobile net on `digits`, float, PTQ and QAT.

    python benchmarks/tflite_accuracy.py [--runs=build/accuracy] [--nets NET ...]

writes docs/tflite_accuracy.md. The binaries do the work, as a user would call them: kapps-train
trains each net at 64 px, kapps-convert writes its float32 and int8 files, the latter calibrated on
300 training images (PTQ), and kapps-tune --quantize_aware goes on from the trained weights (QAT).
What is in the folder of runs, RUNS/<net> and RUNS/<net>-qat, is not done again, files excepted.

The files then classify all held-out images, in a process with limits. Held out are validation and
test, 600 images of which none was trained on: a difference of 0.005 is 3 of them, and would be less
than 2 of the 360 of test alone, whose figures stand beside.

The exit code is 1 if a float file gets less than 0.97, PTQ loses more than 0.01, or QAT more than
0.005.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kapps import EvalTransform
from kapps._errors import InputError
from kapps._files import atomic_write
from kapps.tflite.accuracy import evaluate_file
from kapps.tools import data, pipeline

SIZE = 64  # pixels
EPOCHS = {  # at most; the recipe ends early once a net has learned what there is
    "MobileNet": 16,
    "MobileNetV2": 16,
    "MobileNetV3Small": 25,
    "MobileNetV3Large": 16,
    "ShuffleNet": 25,
    "ShuffleNetV2_x0_5": 30,
    "ShuffleNetV2_x1_0": 25,
    "EfficientNetB0": 14,
    "EfficientNetLite0": 16,
    "EfficientNetV2B0": 14,
}
LEAST = 0.97  # of a float file
LOSS = {"int8": 0.01, "int8-qat": 0.005}  # at most
VARIANTS = {"float32": "float32", "int8": "PTQ", "int8-qat": "QAT"}


@dataclass(frozen=True)
class Top1:
    """Of one file: the share of all held-out images, that of test alone, and the file's bytes."""

    held_out: float
    test: float
    size_bytes: int


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("build/accuracy"))
    parser.add_argument("--nets", nargs="*", default=list(EPOCHS))
    parser.add_argument("--output", type=Path, default=Path("docs/tflite_accuracy.md"))
    options = parser.parse_args()
    rows: dict[str, dict[str, Top1]] = {}
    failures: dict[str, str] = {}
    for net in options.nets:
        try:
            rows[net] = measure(net, options.runs)
        except InputError as error:
            failures[net] = str(error)
            print(f"{net}: {error}", file=sys.stderr)
    text, reached = report(rows, failures)
    with atomic_write(options.output) as temporary:
        temporary.write_text(text)
    print(text)
    return 0 if reached else 1


def measure(net: str, folder: Path) -> dict[str, Top1]:
    """Trains, tunes and converts what is not there yet, and classifies with each file.

    Raises:
        InputError: one of the binaries failed; the message is its own.
    """
    run, tuned = folder / net, folder / f"{net}-qat"
    if not (run / "result.json").is_file():
        call(
            "tools.train", f"--model={net}", "--dataset=digits", "--recipe=digits",
            f"--image_size={SIZE}", f"--epochs={EPOCHS[net]}", f"--workdir={run}",
        )  # fmt: skip
    if not (tuned / "result.json").is_file():
        call("tflite.programs.tune", f"--init_from={run}", "--quantize_aware", f"--workdir={tuned}")
    output = folder / f"{net}.tflite"
    call(
        "tflite.programs.convert", f"--workdir={run}", f"--output={output}",
        "--quantization=float32,int8",
    )  # fmt: skip
    files = {
        "float32": output.with_name(f"{net}_float32.tflite"),
        "int8": output.with_name(f"{net}_int8.tflite"),
        "int8-qat": tuned / "model.tflite",
    }
    return {variant: top1(path, net, variant) for variant, path in files.items()}


def call(module: str, *arguments: str) -> None:
    """Runs a binary of kapps; its progress goes to the screen."""
    print(f"kapps.{module} {' '.join(arguments)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", f"kapps.{module}", *arguments],
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(lines[-1])


def top1(path: Path, net: str, variant: str) -> Top1:
    """On the held-out images."""
    dataset = data.load("digits")
    right, images = {}, {}
    for split in ("validation", "test"):
        pixels, labels = pipeline.images(dataset.split(split), EvalTransform(SIZE, 1.0, "bilinear"))
        found = evaluate_file(
            path, [(pixels, labels)], dataset="digits", split=split, model=net, variant=variant
        )
        right[split], images[split] = found.top1 * found.images, found.images
    held_out = sum(right.values()) / sum(images.values())
    return Top1(held_out, right["test"] / images["test"], path.stat().st_size)


def report(rows: dict[str, dict[str, Top1]], failures: dict[str, str]) -> tuple[str, bool]:
    """The page, and whether every net reaches its targets."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in (
            "kapps",
            "keras",
            "tensorflow",
            "tensorflow-model-optimization",
            "scikit-learn",
        )
    )
    lines = [
        "# Accuracy of the TFLite files",
        "",
        f"`benchmarks/tflite_accuracy.py`, {datetime.date.today()}, on {platform.machine()}, "
        f"Python {platform.python_version()}, {versions}. `digits` (scikit-learn's 1,797, 1,197 of "
        f"them for training) at {SIZE} px; top-1 of the .tflite files on the 600 held-out images "
        "(validation and test), in brackets on the 360 of test alone. Loss: float32 less the file.",
        "",
        "| Net | float32 | PTQ int8 | Loss | QAT int8 | Loss | MB, float32 | MB, PTQ | MB, QAT "
        "| Reached |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    reached = not failures
    for net, found in rows.items():
        exact = found["float32"]
        losses = {variant: exact.held_out - found[variant].held_out for variant in LOSS}
        # Counted in images, so that 3 of 600 are 0.005 whatever the rounding of floats.
        fits = exact.held_out >= LEAST and all(
            round(losses[variant], 9) <= limit for variant, limit in LOSS.items()
        )
        reached &= fits
        ptq, qat = found["int8"], found["int8-qat"]
        sizes = " | ".join(f"{found[variant].size_bytes / 1e6:.2f}" for variant in VARIANTS)
        lines.append(
            f"| {net} | {_shares(exact)} | {_shares(ptq)} | {losses['int8']:+.4f} | {_shares(qat)} "
            f"| {losses['int8-qat']:+.4f} | {sizes} | {'yes' if fits else 'no'} |"
        )
    lines += [
        "",
        f"Wanted: float32 at least {LEAST}, a loss of at most {LOSS['int8']} with PTQ and "
        f"{LOSS['int8-qat']} with QAT.",
    ]
    if failures:
        lines += ["", "Failed:", "", *(f"- {net}: {why}" for net, why in failures.items())]
    return "\n".join(lines) + "\n", reached


def _shares(top: Top1) -> str:
    return f"{top.held_out:.4f} ({top.test:.4f})"


if __name__ == "__main__":
    sys.exit(main())
