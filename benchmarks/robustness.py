"""Adversarial training and feature squeezing on scikit-learn's digits, by the programs themselves.

    python benchmarks/robustness.py [--runs=build/robustness] [--output=docs/robustness.md]

kapps-train trains each network twice a seed, without and with adversarial training. Both are
attacked on held-out images by PGD, as it is trained against and far stronger, and where the
adversarial-robustness-toolbox is installed by its APGD and Square, which needs no gradient: were
the robustness a hidden gradient, that one would break what PGD does not. What is in the folder of
runs is not trained again.

The exit code is 1 where the undefended network keeps 20 % or more under the attack, or the defended
one does not keep above 60 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from machine import measured_on

import kapps
from kapps import explain
from kapps._files import atomic_write
from kapps.tools import data, distribution, pipeline, runs, training
from kapps.tools.adversarial import Attack
from kapps.tools.layers import Clock
from kapps.tools.mixing import Mix
from kapps.tools.recipes import get_recipe
from kapps.tools.steps import Training

EPS = 24.0
PLAIN = (
    *("--model=LeNet5", "--dataset=digits", "--recipe=digits", "--image_size=32"),
    *("--batch_size=64", "--learning_rate=5e-3", "--label_smoothing=0", "--stop_at=1"),
)
DEFENCE = (
    *(f"--adversarial_eps={EPS:g}", "--adversarial_iterations=3"),
    "--adversarial_warmup_epochs=6",
)
NETWORKS = {
    "undefended": (*PLAIN, "--epochs=12"),
    "adversarial training": (*PLAIN, "--epochs=18", *DEFENCE),
}
CLEAN, WANTED = "clean", "PGD, 20 steps of 3, 1 start"
BITS, MEDIAN, RATE = (1, 2, 3, 5), 2, 0.05


@dataclasses.dataclass(frozen=True)
class Found:
    """What came of a network of one seed."""

    accuracy: dict[str, float]
    """Top-1 by attack, 0 to 1."""
    flagged: dict[str, tuple[float, float]]
    """By squeezers: shares of clean images, and of those attacked with success."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("build/robustness"))
    parser.add_argument("--output", type=Path, default=Path("docs/robustness.md"))
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    found = {
        name: [measure(name, flags, options.runs, seed) for seed in range(options.seeds)]
        for name, flags in NETWORKS.items()
    }
    reached = all(
        plain.accuracy[WANTED] < 0.2 and robust.accuracy[WANTED] > 0.6
        for plain, robust in zip(*found.values(), strict=True)
    )
    text = page(found, cost(), reached)
    with atomic_write(options.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return 0 if reached else 1


def measure(name: str, flags: tuple[str, ...], folder: Path, seed: int) -> Found:
    """Trains, if that has not been done, and attacks, if that has not."""
    run = folder / f"{name.split()[0]}-{seed}"
    if not (run / "result.json").is_file():
        command = [sys.executable, "-m", "kapps.tools.train", *flags]
        subprocess.run([*command, f"--seed={seed}", f"--workdir={run}"], check=True)
    file = run / "robustness.json"
    if not file.is_file():
        accuracy, flagged = attack(run)
        file.write_text(json.dumps([accuracy, flagged]), encoding="utf-8")
    accuracy, flagged = json.loads(file.read_text(encoding="utf-8"))
    pairs = {squeezers: tuple(shares) for squeezers, shares in flagged.items()}
    return Found(accuracy, pairs)


def attack(folder: Path) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Top-1 by attack, and what squeezing flags of the images of the wanted one."""
    run, digits = runs.load_run(folder), data.load("digits")
    model = run.model
    validation, _ = pipeline.images(digits.validation, run.transform)
    images, labels = pipeline.images(digits.test, run.transform)
    validation, images = validation.astype("float32"), images.astype("float32")
    right = {CLEAN: answers(model, images) == labels}
    worst = pgd(model, images, labels, 3.0, 20, 0)
    right[WANTED] = answers(model, worst) == labels
    many = right[WANTED].copy()
    for seed in range(1, 4):
        many &= answers(model, pgd(model, images, labels, 2.0, 50, seed)) == labels
    right["PGD, 50 steps of 2, the worst of 3 starts, and of that above"] = many
    right |= by_art(model, images, labels)
    fooled = worst[right[CLEAN] & ~right[WANTED]]
    flagged = {}
    for bits in BITS:
        settings = {"bits": bits, "median": MEDIAN}
        threshold = explain.squeezing_threshold(model, validation, rate=RATE, **settings)
        shares = [
            float((explain.feature_squeezing(model, each, **settings) > threshold).mean())
            for each in (images, fooled)
        ]
        flagged[f"{bits} bits, median of {MEDIAN}x{MEDIAN}"] = (shares[0], shares[1])
    return {name: float(each.mean()) for name, each in right.items()}, flagged


def pgd(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, step: float, steps: int, seed: int
) -> np.ndarray:
    return explain.pgd(
        model, images, labels, eps=EPS, step=step, iterations=steps, random_start=True, seed=seed
    )


def answers(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return model.predict(images, batch_size=120, verbose=0).argmax(-1)


def by_art(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Which answers stay right under two attacks of the adversarial-robustness-toolbox."""
    if importlib.util.find_spec("art") is None:
        print("left out: APGD and Square; pip install 'kapps[attack]'", file=sys.stderr)
        return {}
    from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack

    classifier = explain.art_classifier(model)
    np.random.seed(0)  # ART draws from NumPy's own generator
    apgd = AutoProjectedGradientDescent(
        classifier,
        norm=np.inf,
        eps=EPS,
        eps_step=2 * EPS,
        max_iter=40,
        nb_random_init=1,
        batch_size=120,
        loss_type="cross_entropy",
        verbose=False,
    )
    square = SquareAttack(
        classifier, norm=np.inf, eps=EPS, max_iter=300, batch_size=120, verbose=False
    )
    found = {
        "APGD (ART), cross-entropy, 40 steps, 1 start": apgd,
        "Square (ART), 300 queries, no gradient": square,
    }
    return {
        name: answers(model, attack.generate(images, labels)) == labels
        for name, attack in found.items()
    }


def cost() -> dict[int, float]:
    """What a step with so many iterations takes, in steps without; 0 iterations is without."""
    recipe = dataclasses.replace(get_recipe("digits"), batch_size=32, image_size=32)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    devices = distribution.make_devices("none")
    shared = [Mix().vector(), np.zeros(1, np.float32)]
    batch = devices.batch(shared, images, np.arange(32) % 10)
    steps = {}
    for iterations in (0, 1, 3, 7):
        own = recipe
        if iterations:
            own = dataclasses.replace(
                recipe, adversarial_eps=EPS, adversarial_iterations=iterations
            )
        model = training.build_network(
            kapps.CifarResNet,
            {"depth": 8, "classifier_activation": None},
            input_shape=(32, 32, 3),
            classes=10,
        )
        optimizer = training.make_recipe_optimizer(
            own, training.make_schedule(own, 1), model.trainable_variables
        )
        clock = Clock(optimizer)
        given = Attack(own, clock, 0, 1) if iterations else None
        steps[iterations] = devices.compiled(Training(model, optimizer, clock, own, attack=given))
        steps[iterations](batch).numpy()
    times: dict[int, list[float]] = {iterations: [] for iterations in steps}
    for _ in range(5):  # in turn: what else the machine does falls on all
        for iterations, step in steps.items():
            begun = time.process_time()
            step(batch).numpy()
            times[iterations].append(time.process_time() - begun)
    least = {iterations: min(each) for iterations, each in times.items()}
    return {iterations: each / least[0] for iterations, each in least.items() if iterations}


def page(found: dict[str, list[Found]], cost: dict[int, float], reached: bool) -> str:
    """The tables, as Markdown."""
    packages = ["kapps", "keras", "tensorflow", "scikit-learn"]
    if importlib.util.find_spec("art"):
        packages.append("adversarial-robustness-toolbox")
    lines = [
        "# Adversarial training and detection",
        "",
        f"`benchmarks/robustness.py`, {measured_on(*packages)}. scikit-learn's digits, LeNet5 of "
        "32 px: 1,197 images to learn, 240 to validate, 360 held out (test), which are attacked. "
        f"Norm Linf, eps {EPS:g} of 255 throughout; steps are in gray levels, all starts random. A "
        "figure for each seed, from 0 on. Wanted: below 0.2 undefended and above 0.6 defended, "
        f"under {WANTED}. {'Reached' if reached else 'Not reached'}.",
        "",
        "## Top-1 under attack",
        "",
        f"| Attack | {' | '.join(found)} |",
        f"|---|{'---|' * len(found)}",
    ]
    first = next(iter(found.values()))[0]
    for name in first.accuracy:
        cells = [row([seed.accuracy[name] for seed in seeds], ".4f") for seeds in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "The attacks below the wanted one show whether the robustness is real (Athalye et al. "
        '2018, "Obfuscated Gradients Give a False Sense of Security"): hidden gradients would hold '
        "against PGD, and break under an attack that uses none. No such figure is a guarantee: it "
        "bounds the accuracy under the worst images from above. The commands:",
        "",
        *(f"    kapps-train {' '.join(flags)} --workdir=DIR" for flags in NETWORKS.values()),
        "",
        "## Detection by feature squeezing",
        "",
        f"Xu et al. 2018, `kapps.explain.feature_squeezing`. The threshold flags {RATE:.0%} of the "
        "validation images. Flagged of the clean held-out images, and of those that the attack "
        f"({WANTED}) has changed from right to wrong. The attack knows nothing of the detector; "
        "one that does can evade it.",
        "",
        "| Squeezers | " + " | ".join(f"{name}: clean | {name}: attacked" for name in found) + " |",
        f"|---|{'---|---|' * len(found)}",
    ]
    for name in first.flagged:
        cells = [
            row([seed.flagged[name][i] for seed in seeds], ".3f")
            for seeds in found.values()
            for i in range(2)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "## What a step costs",
        "",
        "Processor time of a step of CifarResNet (8 layers, batch 32, 32 px) with adversarial "
        "training, in steps without; the least of five, measured in turn. An iteration is a "
        "forward pass in inference and a backward one that needs no gradients of weights.",
        "",
        "| Iterations | Steps without |",
        "|---:|---:|",
        *(f"| {iterations} | {times:.2f} |" for iterations, times in cost.items()),
    ]
    return "\n".join(lines) + "\n"


def row(values: list[float], form: str) -> str:
    """A value for each seed."""
    return ", ".join(format(value, form) for value in values)


if __name__ == "__main__":
    sys.exit(main())
