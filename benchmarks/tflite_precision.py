"""What int8, with and without its steps, and 4 bits leave of a network with real weights.

    pip install scikit-image
    python benchmarks/tflite_precision.py [--folds=3]

writes docs/tflite_precision.md. EfficientNetLite0 with its ImageNet weights on the 33 photographs
that packages carry: foolbox's 20 of ImageNet, scikit-learn's two, matplotlib's one, scikit-image's
ten. No file is judged on what it was calibrated with: the photographs are dealt to folds, and each
fold is judged by a file that was calibrated on the others. Four crops of each photograph, a quarter
smaller than it and two of them mirrored, are judged in its fold as well.

The exit code is 1 if int8 agrees with float32 on less than 0.93 of the photographs, or drifts by
more than 0.03, or is not one piece for the delegate.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from machine import measured_on
from real_data import PICTURES, WEIGHTS, installed, lite0

from kapps import EvalTransform
from kapps._files import atomic_write
from kapps.tflite import Runner, convert, refinement, tables
from kapps.tflite.verification import Verification, compare, probabilities

AGREEMENT, DRIFT = 0.93, 0.03
OF_SCIKIT_IMAGE = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "motorcycle_left.png", "rocket.jpg"),
)
# Its name on the page, the quantization, and the steps of int8 that are tried.
FILES = (
    ("int8, no steps", "int8", ()),
    ("int8", "int8", refinement.STEPS),
    ("int4_blockwise", "int4_blockwise", refinement.STEPS),
    ("int4", "int4", refinement.STEPS),
)


@dataclasses.dataclass
class Found:
    """Of the files of one kind: what they make of the images that they were not calibrated on."""

    outputs: list[np.ndarray]
    step: float = 0.0
    size_bytes: int = 0
    pieces: int = 0
    steps: list[str] = dataclasses.field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("docs/tflite_precision.md"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "weak check")
    model = lite0(installed(*WEIGHTS))
    photographs, crops = read()
    expected = probabilities(model, photographs), probabilities(model, crops)
    order = np.random.default_rng(0).permutation(len(photographs))
    found = {name: Found([np.zeros_like(values) for values in expected]) for name, *_ in FILES}
    for fold in range(options.folds):
        judged = order[fold :: options.folds]
        others = np.setdiff1d(order, judged)
        cut = (judged[:, None] * 4 + np.arange(4)).ravel()
        for name, quantization, steps in FILES:
            print(f"fold {fold}: {name}", file=sys.stderr, flush=True)
            refinement.STEPS = steps
            with tempfile.TemporaryDirectory() as folder:
                made = convert(
                    model,
                    Path(folder) / "net.tflite",
                    quantization=quantization,
                    calibration=photographs[others],
                    verification=photographs[judged],
                )
                runner, of = Runner(made.path), found[name]
                of.outputs[0][judged] = runner.predict(photographs[judged])
                of.outputs[1][cut] = runner.predict(crops[cut])
            of.step, of.size_bytes = runner.output_quantization[0], made.size_bytes
            of.pieces = runner.delegate_pieces
            of.steps += [step for step in made.refinements if step not in of.steps]
    text, reached = page(found, expected, options.folds)
    with atomic_write(options.output) as temporary:
        temporary.write_text(text)
    print(text)
    return 0 if reached else 1


def read() -> tuple[np.ndarray, np.ndarray]:
    """The photographs, (n, 224, 224, 3) in 0..255, and four crops of each, one after the other."""
    paths = sorted(installed(*PICTURES).glob("imagenet_*.jpg"))
    paths += [installed("sklearn", f"datasets/images/{name}.jpg") for name in ("china", "flower")]
    paths.append(installed("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"))
    paths += [installed("skimage", f"data/{name}") for name in OF_SCIKIT_IMAGE]
    whole, part = EvalTransform(224, 0.875, "bicubic"), EvalTransform(224, 1.0, "bicubic")
    photographs, crops = [], []
    for path in paths:
        image = Image.open(path).convert("RGB")
        photographs.append(whole(image))
        width, height = image.size
        side = int(min(width, height) * 0.75)
        for number, (x, y) in enumerate(
            (x, y) for y in (0, height - side) for x in (0, width - side)
        ):
            crop = image.crop((x, y, x + side, y + side))
            if number % 2:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            crops.append(part(crop))
    return np.stack(photographs).astype("float32"), np.stack(crops).astype("float32")


def page(
    found: dict[str, Found], expected: tuple[np.ndarray, np.ndarray], folds: int
) -> tuple[str, bool]:
    """The page, and whether int8 reaches its targets."""
    rows = []
    for name, of in found.items():
        row = [name, f"{of.size_bytes / 1e6:.2f}", str(of.pieces)]
        for actual, values in zip(of.outputs, expected, strict=True):
            figures = compare(values, actual, step=of.step)
            low, high = interval(figures)
            row += [f"{figures.agreement:.3f} ({low:.2f} to {high:.2f})", f"{figures.drift:.3f}"]
        rows.append([*row, ", ".join(of.steps)])
    figures = compare(expected[0], found["int8"].outputs[0], step=found["int8"].step)
    reached = (
        figures.agreement >= AGREEMENT and figures.drift <= DRIFT and found["int8"].pieces == 1
    )
    header = ("File", "MB", "Pieces", "Photographs: agreement", "drift", "Crops: agreement")
    table = tables.markdown([*header, "drift", "Steps that a fold kept"], rows, right=range(1, 7))
    return (
        "# What precision leaves of a network with real weights\n\n"
        f"`benchmarks/tflite_precision.py`, "
        f"{measured_on('kapps', 'tensorflow', 'ai-edge-litert', 'ai-edge-quantizer')}. "
        f"EfficientNetLite0 with its ImageNet weights; {len(expected[0])} photographs in {folds} "
        "folds, each judged by a file that was calibrated on the others, and four crops of each. "
        "Agreement: the share of images of the float network's class, with its 95 % interval "
        "(Wilson's, which for crops is too narrow: four of them share a photograph). Drift: the "
        "share of probability that moved to other classes.\n\n"
        f"{table}\n\n"
        f"Wanted of int8: an agreement of {AGREEMENT}, a drift of at most {DRIFT} on the "
        f"photographs, one piece: {'reached' if reached else 'not reached'}.\n"
    ), reached


def interval(figures: Verification) -> tuple[float, float]:
    """Wilson's, of 95 %."""
    n, share, z = figures.images, figures.agreement, 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, min(1.0, middle + half)


if __name__ == "__main__":
    sys.exit(main())
