"""What shortcuts do to training, seen on scikit-learn's digits.

    python benchmarks/lesions.py [--runs=build/lesions] [--docs=docs]

writes docs/lesions.md and the picture docs/lesions.png. It trains two networks of 20 layers, each
from two seeds, by kapps-train with the recipe digits at 16 px; what is in the folder of runs is not
done again. Some ten minutes on two cores.

Lesions: Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks",
section 4.1. Gradients: Balduzzi et al. 2017, "The Shattered Gradients Problem". Landscape: Li et
al. 2018, "Visualizing the Loss Landscape of Neural Nets".

The exit code is 1 unless a lesion costs the residual networks at most a fifth of what it costs the
plain ones, in loss and in top-1, by mean over the blocks and the seeds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import keras
import numpy as np
from chains import chain
from machine import measured_on

from kapps._files import atomic_write
from kapps.explain import Lesion, gradient_norms, lesions, loss_landscape, shattering
from kapps.tools import data
from kapps.tools.pictures import COLORS, Inks, png
from kapps.tools.runs import load_run

PICTURE = "lesions.png"
SEEDS = (0, 1)
NETWORKS = {"residual20": "depth=20", "plain20": "depth=20,residual=False"}
FLAGS = ("--model=CifarResNet", "--dataset=digits", "--recipe=digits", "--image_size=16")
DEPTHS = (2, 10, 30, 50)
LAGS = (1, 2, 4, 8)

Images = tuple[np.ndarray, np.ndarray]  # and labels


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("build/lesions"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    found: dict[str, list[list[Lesion]]] = {name: [] for name in NETWORKS}
    surfaces: dict[str, list[np.ndarray]] = {name: [] for name in NETWORKS}
    for name, seed in ((name, seed) for name in NETWORKS for seed in SEEDS):
        model, transform = trained(options.runs, name, seed)
        found[name].append(lesions(model, *images_of(data.load("digits").test, transform)))
        few = images_of(data.Subset(data.load("digits").train, np.arange(128)), transform)
        surfaces[name].append(loss_landscape(model, *few, points=11))
        print(name, seed, [round(one.loss_rise, 3) for one in found[name][-1]], file=sys.stderr)
    with atomic_write(options.docs / PICTURE) as temporary:
        temporary.write_bytes(png(lambda *canvas: draw(surfaces, *canvas), (9, 4)))
    ratios = [
        mean(found["residual20"], figure) / mean(found["plain20"], figure)
        for figure in ("loss_rise", "accuracy_fall")
    ]
    text = page(found, ratios, surfaces, *untrained())
    with atomic_write(options.docs / "lesions.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return int(max(ratios) > 1 / 5)


def trained(runs: Path, name: str, seed: int) -> tuple[keras.Model, Any]:
    """A network and what it sees of an image; trained, if that has not been done."""
    run = runs / f"{name}-{seed}"
    if not (run / "result.json").is_file():
        own = (f"--arguments={NETWORKS[name]}", f"--seed={seed}", f"--workdir={run}")
        subprocess.run([sys.executable, "-m", "kapps.tools.train", *FLAGS, *own], check=True)
    loaded = load_run(run)
    return loaded.model, loaded.transform


def images_of(source: Any, transform: Any) -> Images:
    pairs = [source[i] for i in range(len(source))]
    images = np.stack([transform(np.asarray(image)) for image, _ in pairs])
    return images.astype("float32"), np.array([label for _, label in pairs])


def mean(seeds: Sequence[Sequence[Lesion]], figure: str) -> float:
    return statistics.mean(
        statistics.mean(getattr(one, figure) for one in blocks) for blocks in seeds
    )


def untrained() -> tuple[list[list[str]], list[list[str]]]:
    """Tables of networks as they begin: gradient norms, autocorrelations."""
    source = data.load("digits").train
    pairs = [source[i] for i in range(64)]
    images = np.stack([np.asarray(image)[..., :1] for image, _ in pairs]).astype("float32")
    labels = np.array([label for _, label in pairs])
    norms, correlations = [], []
    for residual in (False, True):
        kind = "residual" if residual else "plain"
        for depth in DEPTHS:
            first, last, lags = [], [], []
            for seed in SEEDS:
                keras.utils.set_random_seed(seed)
                net = chain(depth, residual=residual)
                by_name = {one.name: one for one in gradient_norms(net, images, labels)}
                first.append(by_name["conv0"].activations)
                last.append(by_name[f"conv{depth - 1}"].activations)
                net = chain(depth, residual=residual, bn=True)
                net(images, training=True)
                lags.append(shattering(net, images[:5], 0, lags=max(LAGS)).mean(0))
            ratio = statistics.mean(first) / statistics.mean(last)
            norms.append(
                [
                    kind,
                    str(depth),
                    *(f"{statistics.mean(x):.2e}" for x in (first, last)),
                    f"{ratio:.2g}",
                ]
            )
            line = np.mean(lags, axis=0)
            correlations.append([kind, str(depth), *(f"{line[lag]:.2f}" for lag in LAGS)])
    return norms, correlations


def non_convexity(surface: np.ndarray) -> float:
    """The share of inner points where the loss curves down in some direction of the plane."""
    along, across = np.gradient(surface.astype("float64"))
    (aa, ab), (_, bb) = np.gradient(along), np.gradient(across)
    hessians = np.stack([np.stack([aa, ab], -1), np.stack([ab, bb], -1)], -2)
    return float(np.mean(np.linalg.eigvalsh(hessians)[1:-1, 1:-1, 0] < 0))


def draw(surfaces: dict[str, list[np.ndarray]], figure: Any, inks: Inks) -> None:
    """The surfaces of the first seed, on one scale."""
    first = {name: np.log10(found[0]) for name, found in surfaces.items()}
    low, high = (f(s.min() if f is min else s.max() for s in first.values()) for f in (min, max))
    axes = figure.subplots(1, len(first))
    for axis, (name, surface) in zip(axes, first.items(), strict=True):
        shown = axis.contourf(
            *2 * [np.linspace(-1, 1, len(surface))], surface, np.linspace(low, high, 16)
        )
        axis.contour(
            *2 * [np.linspace(-1, 1, len(surface))],
            surface,
            np.linspace(low, high, 16),
            colors=inks.text,
            linewidths=0.4,
        )
        axis.plot(0, 0, "o", color=COLORS[1])
        axis.set_title(name)
    figure.colorbar(shown, ax=axes, label="log10 of the loss, nats")


def page(
    found: dict[str, list[list[Lesion]]],
    ratios: Sequence[float],
    surfaces: dict[str, list[np.ndarray]],
    norms: list[list[str]],
    correlations: list[list[str]],
) -> str:
    rows = []
    for name, seeds in found.items():
        for seed, blocks in enumerate(seeds):
            rows.append(
                [
                    *(name, str(seed), f"{blocks[0].intact_loss:.3f}"),
                    f"{blocks[0].intact_accuracy:.4f}",
                    *(f"{mean([blocks], f):.3f}" for f in ("loss_rise", "accuracy_fall")),
                ]
            )
    plain = {one.name: one for one in found["plain20"][0]}
    by_block = [
        [
            one.name,
            *(f"{x:.3f}" for x in (one.loss_rise, one.accuracy_fall)),
            *(
                f"{x:.3f}"
                for x in (
                    (plain[one.name].loss_rise, plain[one.name].accuracy_fall)
                    if one.name in plain
                    else ()
                )
            ),
        ]
        for one in found["residual20"][0]
    ]
    flat = [
        [
            *(name, str(seed), f"{s[len(s) // 2, len(s) // 2]:.3f}"),
            *(f"{x:.2f}" for x in (np.median(s), s.max(), non_convexity(s))),
        ]
        for name, seeds in surfaces.items()
        for seed, s in enumerate(seeds)
    ]
    bent = {name: statistics.mean(map(non_convexity, found)) for name, found in surfaces.items()}
    reached = "Reached" if max(ratios) <= 1 / 5 else "Not reached"
    versions = measured_on("kapps", "keras", "tensorflow", "scikit-learn")
    parts = [
        "# What shortcuts do to training",
        f"`benchmarks/lesions.py`, {versions}. scikit-learn's digits. The trained networks are "
        "`CifarResNet` with 20 layers, with and without shortcuts: "
        f"`kapps-train {' '.join(FLAGS)} --arguments=...`.",
        "## Lesions",
        "`kapps.explain.lesions`: each block of two convolutions is removed in turn, and the "
        "network is measured on the 360 held-out images. Mean over all blocks that can be removed: "
        "in the residual network all nine, in the plain one the seven that keep the shape. The "
        "loss is in nats.",
        table(
            *("Network", "Seed", "Loss", "Top-1", "Mean rise in loss", "Mean fall of top-1"),
            rows=rows,
        ),
        f"A lesion costs the residual networks {ratios[0]:.3f} of the loss that it costs the plain "
        f"ones, and {ratios[1]:.3f} of the top-1; wanted: at most 0.2. {reached}. By block, seed "
        "0:",
        table("Block", "Residual: rise", "Fall", "Plain: rise", "Fall", rows=by_block),
        "## Gradients by depth",
        "`kapps.explain.gradient_norms` by what the first and the last convolution make, at "
        "initialization: chains of 3x3 convolutions of 8 channels with ReLU, 8 px, no batch norm, "
        "weights as of Glorot and Bengio 2010, mean of two seeds.",
        table("Chain", "Depth", "First", "Last", "First by last", rows=norms),
        "Without shortcuts the gradient vanishes; with them it grows, since nothing normalizes the "
        "sums.",
        "## Shattering",
        "`kapps.explain.shattering`, which has the definition: the autocorrelation of the input "
        "gradient at 128 points on lines between digits, at initialization, with batch norm in "
        "each layer by the statistics of 64 digits; mean of four lines and two seeds. White noise "
        f"has 0, within {1 / np.sqrt(128):.2f}.",
        table("Chain", "Depth", *(f"Lag {lag}" for lag in LAGS), rows=correlations),
        "## Loss landscape",
        "`kapps.explain.loss_landscape` of the trained networks on 128 training images, 11 x 11 "
        "points up to a distance of 1. Not convex: the share of the inner points where the loss "
        "curves down in some direction of the plane.",
        table(
            *("Network", "Seed", "Loss in the middle", "Median", "Largest", "Not convex"),
            rows=flat,
        ),
        f"Not convex by mean over the seeds: {bent['residual20']:.2f} with shortcuts, "
        f"{bent['plain20']:.2f} without. Li et al. see the difference at 56 layers and more; "
        "two seeds of 20 layers do not settle it.",
        f"![The loss around both networks, seed 0]({PICTURE})",
    ]
    return "\n\n".join(parts) + "\n"


def table(*titles: str, rows: Sequence[Sequence[str]]) -> str:
    padded = [[*row, *[""] * (len(titles) - len(row))] for row in rows]
    return "\n".join(
        "| " + " | ".join(row) + " |"
        for row in (titles, ["---", *["---:"] * (len(titles) - 1)], *padded)
    )


if __name__ == "__main__":
    sys.exit(main())
