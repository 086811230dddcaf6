"""What training has to reach on scikit-learn's digits: degradation with depth, and accuracies.

    python benchmarks/training.py [--runs=build/training] [--docs=docs]

writes docs/training.md and the curves docs/degradation.png. The programs do the work, as a user
would call them: kapps-train, then kapps-evaluate. What is in the folder of runs is not done again;
all of them take some 40 minutes on two cores.

Degradation: He et al. 2015, "Deep Residual Learning for Image Recognition", figures 1 and 6. All
networks have the same recipe, that of their section 4.2 made shorter. Their training loss is
measured twice: by the final weights, on all training images as they are, with batch norm as in
inference; and as the run itself and the paper have it, as the mean over the last epoch, on
augmented images and by the statistics of the batches, while the weights still change.

The exit code is 1 if the plain network of 56 layers does not end with a higher training loss than
that of 20, or the residual one of 56 not with a lower one than both, by either measure and by mean
over the seeds; or if an accuracy is missed by any seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import measured_on

from kapps._files import atomic_write
from kapps.tools import curves
from kapps.tools.history import read_history
from kapps.tools.pictures import png

PICTURE = "degradation.png"


@dataclass(frozen=True)
class Task:
    """What is trained, by the flags of kapps-train."""

    name: str
    flags: tuple[str, ...]
    seeds: int
    least: float = 0.0
    """Top-1 that each seed has to reach on the images of test, 0 to 1."""

    @property
    def command(self) -> str:
        return " ".join(["kapps-train", "--dataset=digits", *self.flags])


@dataclass(frozen=True)
class Found:
    """What came of one seed."""

    train_loss: float
    """On the training images as they are, nats."""
    augmented_loss: float
    """Of the last epoch, as the run has shown it."""
    train_top1: float
    """On the training images as they are, 0 to 1."""
    top1: float
    """On the images of test, 0 to 1."""
    seconds: float
    """Of training."""


# Batch 32 in place of 128, since there are 1,197 images, and the rate in proportion (Goyal et al.
# 2017, section 2.1). 30 epochs in place of 164, divided at a half and at three quarters, as there.
# 16 px, twice what the digits have, in place of 32: half the shift. Mirrored digits are no digits.
SHORT = (
    "--recipe=cifar_resnet",
    *("--image_size=16", "--pad=2", "--flip=0"),
    *("--batch_size=32", "--learning_rate=0.025", "--epochs=30", "--boundaries=15,22.5"),
)
DEGRADATION = {
    name: Task(name, ("--model=CifarResNet", f"--arguments={arguments}", *SHORT), 2)
    for name, arguments in (
        ("plain20", "depth=20,residual=False"),
        ("plain56", "depth=56,residual=False"),
        ("residual20", "depth=20"),
        ("residual56", "depth=56"),
    )
}
ACCURACY = (
    Task("LeNet5", ("--model=LeNet5", "--recipe=digits", "--image_size=32"), 3, 0.985),
    Task("CifarResNet", ("--model=CifarResNet", "--recipe=digits", "--image_size=32"), 3, 0.985),
    Task("ShuffleNetV2_x0_5", ("--model=ShuffleNetV2_x0_5", "--image_size=64"), 3, 0.95),
)
# What the recipe default was chosen by.
TRIED = tuple(
    Task(
        f"ShuffleNetV2_x0_5-{rate}-{area}",
        (*ACCURACY[2].flags, f"--learning_rate={rate}", f"--crop_area={area}"),
        1,
    )
    for rate, area in (("1e-3", 0.08), ("1e-3", 0.35), ("1e-3", 0.75), ("3e-3", 0.35))
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("build/training"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    options = parser.parse_args()
    tasks = (*DEGRADATION.values(), *ACCURACY, *TRIED)
    found = {
        task.name: [measure(task, options.runs, seed) for seed in range(task.seeds)]
        for task in tasks
    }
    reached = {
        "degradation": degraded(found),
        **{
            task.name: min(seed.top1 for seed in found[task.name]) >= task.least
            for task in ACCURACY
        },
    }
    draw(options.runs, options.docs / PICTURE)
    text = page(found, reached)
    with atomic_write(options.docs / "training.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return 0 if all(reached.values()) else 1


def folder(task: Task, runs: Path, seed: int) -> Path:
    return runs / f"{task.name}-{seed}"


def measure(task: Task, runs: Path, seed: int) -> Found:
    """Trains, if that has not been done, and evaluates."""
    run = folder(task, runs, seed)
    if not (run / "result.json").is_file():
        call("tools.train", "--dataset=digits", *task.flags, f"--seed={seed}", f"--workdir={run}")
    history = read_history(run)
    train, test = (evaluate(run, split) for split in ("train", "test"))
    return Found(
        train_loss=train["loss"],
        augmented_loss=history.epochs[-1]["train_loss"],
        train_top1=train["top1"],
        top1=test["top1"],
        seconds=history.seconds() or 0.0,
    )


def evaluate(run: Path, split: str) -> dict[str, float]:
    """The figures of kapps-evaluate, which stay in the run's folder."""
    file = run / f"{split}.json"
    if not file.is_file():
        call("tflite.programs.evaluate", f"--workdir={run}", f"--split={split}", f"--json={file}")
    figures: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    return figures


def call(module: str, *arguments: str) -> None:
    """Runs a program of kapps; what it prints goes to the screen."""
    subprocess.run([sys.executable, "-m", f"kapps.{module}", *arguments], check=True)


def degraded(found: dict[str, list[Found]]) -> bool:
    """Whether depth harms the plain network, and not the residual one, by either training loss."""
    for name in ("train_loss", "augmented_loss"):
        plain20, plain56, residual56 = (
            statistics.mean(getattr(seed, name) for seed in found[network])
            for network in ("plain20", "plain56", "residual56")
        )
        if not residual56 < plain20 < plain56:
            return False
    return True


def draw(runs: Path, picture: Path) -> None:
    """The curves of the first seed."""
    histories = [read_history(folder(task, runs, 0)) for task in DEGRADATION.values()]
    with atomic_write(picture) as temporary:
        temporary.write_bytes(png(*curves.together(list(DEGRADATION), histories)))


def page(found: dict[str, list[Found]], reached: dict[str, bool]) -> str:
    """The tables, as Markdown."""
    lines = [
        "# What training reaches",
        "",
        f"`benchmarks/training.py`, {measured_on('kapps', 'keras', 'tensorflow', 'scikit-learn')}. "
        "scikit-learn's digits: 1,197 images to learn, 360 held out (test). Figures are of the "
        f"seeds from 0 on. {'All reached' if all(reached.values()) else 'Not all reached'}.",
        "",
        "## Degradation",
        "",
        "He et al. 2015, figures 1 and 6: without shortcuts the deeper network does not even learn "
        "the training images as well as the shallower one. The training loss is that of the final "
        "weights on the training images as they are, batch norm as in inference; that of the last "
        "epoch is on augmented images, by the statistics of the batches, while the weights still "
        "change.",
        "",
        "| Network | Training loss, nats | Mean | Of the last epoch | Mean | Training top-1 "
        "| Held-out top-1 | Seconds |",
        "|---|---|---:|---|---:|---|---|---|",
    ]
    for name in DEGRADATION:
        final = [seed.train_loss for seed in found[name]]
        last = [seed.augmented_loss for seed in found[name]]
        lines.append(
            f"| {name} | {row(final, '.5f')} | {statistics.mean(final):.5f} "
            f"| {row(last, '.4f')} | {statistics.mean(last):.4f} "
            f"| {row([seed.train_top1 for seed in found[name]], '.4f')} "
            f"| {row([seed.top1 for seed in found[name]], '.4f')} "
            f"| {row([seed.seconds for seed in found[name]], '.0f')} |"
        )
    lines += [
        "",
        "Wanted: plain56 above plain20, residual56 below both, by both means. "
        f"{'Reached' if reached['degradation'] else 'Not reached'}. Where nearly all training "
        "images are right, little is left to compare. The command, with the `--arguments` of the "
        "network:",
        "",
        f"    {DEGRADATION['plain56'].command}",
        "",
        f"![Curves of the four networks, seed 0]({PICTURE})",
        "",
        "## Accuracy",
        "",
        "| Command | Wanted | Held-out top-1 | Seconds | Reached |",
        "|---|---:|---|---|---|",
    ]
    lines += [
        f"| `{task.command}` | {task.least} "
        f"| {row([seed.top1 for seed in found[task.name]], '.4f')} "
        f"| {row([seed.seconds for seed in found[task.name]], '.0f')} "
        f"| {'yes' if reached[task.name] else 'no'} |"
        for task in ACCURACY
    ]
    lines += [
        "",
        "The recipe `default` has 30 epochs, which of so few images are some 2,000 steps. With the "
        "rate and the random parts that are usual for a hundred times as many, the network stays "
        "behind even on what it was shown (seed 0):",
        "",
        "| Command | Training top-1 | Held-out top-1 |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{task.command}` | {row([seed.train_top1 for seed in found[task.name]], '.4f')} "
        f"| {row([seed.top1 for seed in found[task.name]], '.4f')} |"
        for task in TRIED
    ]
    return "\n".join(lines) + "\n"


def row(values: Sequence[float], form: str) -> str:
    """A value for each seed."""
    return ", ".join(format(value, form) for value in values)


if __name__ == "__main__":
    sys.exit(main())
