"""The demonstration: networks from scratch on real digits, to measured files and a report.

The networks are trained on scikit-learn's handwritten digits. Each becomes a .tflite file for each
quantization, compared with the network that it came from, scored on the held-out images, and timed
on this machine.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from kapps.tflite.conversion import convert
from kapps.tflite.interpreter import Runner
from kapps.tflite.measurement.latency import measure
from kapps.tflite.quantizations import QUANTIZATIONS
from kapps.tflite.report import Confusion, Row, write_report
from kapps.tools import data, pipeline, runs, training
from kapps.tools.progress import progress_bar
from kapps.tools.recipes import get_recipe

DATASET = "digits"
NETWORKS = {  # height and width of the input, pixels; epochs: enough for each, and no more
    "LeNet5": (32, 30),
    "MobileNetV3Small": (64, 20),
    "ShuffleNetV2_x0_5": (64, 16),
    "EfficientNetLite0": (64, 12),
}
_CALIBRATION_IMAGES = 300

# What the demonstration has to reach, as shares of the held-out images.
_MIN_TOP1 = 0.97
_MAX_INT8_LOSS = 0.01


class File(NamedTuple):
    """A verified file, and the classes that it gives the held-out images."""

    model: str
    variant: str
    path: Path
    top1: float
    predicted: np.ndarray


def demonstrate(
    output: Path, seed: int = 0, say: Callable[[str], object] = lambda line: None
) -> list[File]:
    """Trains, converts, verifies and measures, and writes the reports.

    Running it again with the same folder continues an interrupted run.

    Args:
        output: folder of the reports and the files.
        seed: of weights and order.
        say: told what is being done.

    Returns:
        The files.
    """
    dataset = data.load(DATASET)
    files: list[File] = []
    for number, model in enumerate(NETWORKS, start=1):
        say(f"\n[{number}/{len(NETWORKS)}] {model}")
        files += _train_and_convert(model, dataset, output, seed)
    say(f"\nlatency of {len(files)} files on this machine, in turns")
    with progress_bar(100, "%", "measuring") as bar:
        latencies = measure(
            [file.path for file in files],
            progress=lambda share: bar.update(round(100 * share) - bar.n),
        )
    worst = min((file for file in files if file.variant == "int8"), key=lambda file: file.top1)
    write_report(
        [
            Row.of(file.model, file.variant, file.top1, latency)
            for file, latency in zip(files, latencies, strict=True)
        ],
        output,
        title="kapps: four networks on handwritten digits",
        facts={
            "Data": f"{DATASET}: {len(dataset.train)} images for training, "
            f"{len(dataset.validation)} for validation, {len(dataset.test)} held out",
            "Top-1": "of the file in the LiteRT interpreter, on the held-out images",
            "Seed": str(seed),
        },
        confusion=Confusion.of(
            f"{worst.model}, {worst.variant}: the int8 file with the most mistakes",
            dataset.class_names,
            np.array([dataset.test[i][1] for i in range(len(dataset.test))]),
            worst.predicted,
        ),
    )
    return files


def shortfalls(files: Sequence[File]) -> list[str]:
    """Where the accuracies are not what they have to be, a line each."""
    top1 = {(file.model, file.variant): file.top1 for file in files}
    short = []
    for model in dict.fromkeys(file.model for file in files):
        exact, int8 = top1[model, "float32"], top1[model, "int8"]
        if exact < _MIN_TOP1:
            short.append(f"{model} reaches {exact:.4f} in float32, below {_MIN_TOP1}")
        if exact - int8 > _MAX_INT8_LOSS:
            short.append(f"{model} loses {exact - int8:.4f} by int8, more than {_MAX_INT8_LOSS}")
    return short


def _train_and_convert(model: str, dataset: data.Dataset, output: Path, seed: int) -> list[File]:
    """A network from scratch, as one verified file for each quantization."""
    size, epochs = NETWORKS[model]
    keras.backend.clear_session()
    workdir = output / "runs" / model
    recipe = dataclasses.replace(get_recipe("digits"), image_size=size, epochs=epochs)
    training.train(
        runs.TrainConfig(
            model=model, dataset=DATASET, workdir=str(workdir), recipe=recipe, seed=seed
        )
    )
    run = runs.load_run(workdir)
    calibration, _ = pipeline.images(dataset.train, run.transform)
    images, labels = pipeline.images(dataset.test, run.transform)
    files = []
    with progress_bar(len(QUANTIZATIONS), "file", "converting") as bar:
        for variant in QUANTIZATIONS:
            conversion = convert(
                run.model,
                output / f"{model}_{variant}.tflite",
                quantization=variant,
                calibration=calibration[:_CALIBRATION_IMAGES],
                verification=images,
                labels=run.class_names,
                description=f"{model}, trained by kapps on the data set {DATASET}",
                licence="Apache-2.0",
            )
            predicted = Runner(conversion.path).predict(images).argmax(axis=1)
            top1 = float((predicted == labels).mean())
            files.append(File(model, variant, conversion.path, top1, predicted))
            bar.write(f"{conversion.path.name}: {conversion.verification}", file=sys.stderr)
            bar.update()
    return files
