"""From real images to phone-ready models: trains, converts, verifies, measures and reports.

Four networks are trained from scratch on scikit-learn's handwritten digits. Each becomes four
.tflite files, which are compared with the network that they came from, scored on 360 held-out
images, and timed on this machine. Running it again continues an interrupted run.

  kapps-demo --output=build/demo
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from absl import flags

from kapps.tools import cli

if TYPE_CHECKING:
    from kapps.tools import data

_OUTPUT = flags.DEFINE_string("output", "build/demo", "folder of the report and the .tflite files")
_SEED = flags.DEFINE_integer("seed", 0, "of weights and order", lower_bound=0)

_DATASET = "digits"
_NETWORKS = {  # height and width of the input, pixels; epochs: enough for each, and no more
    "LeNet5": (32, 30),
    "MobileNetV3Small": (64, 25),
    "ShuffleNetV2_x0_5": (64, 30),
    "EfficientNetLite0": (64, 16),
}
_CALIBRATION_IMAGES = 300

# What the demonstration has to reach, as shares of the held-out images.
_MIN_TOP1 = 0.97
_MAX_INT8_LOSS = 0.01


class _File(NamedTuple):
    """A verified file, and the classes that it gives the held-out images."""

    model: str
    variant: str
    path: Path
    top1: float
    predicted: np.ndarray


def main(argv: list[str]) -> int:
    """Runs all of it; returns 1 if an accuracy falls short of what has to be reached."""
    from kapps import tflite
    from kapps.tools import data
    from kapps.tools.progress import progress_bar

    output = Path(_OUTPUT.value)
    dataset = data.load(_DATASET)
    files: list[_File] = []
    for number, model in enumerate(_NETWORKS, start=1):
        _say(f"\n[{number}/{len(_NETWORKS)}] {model}")
        files += _train_and_convert(model, dataset, output)

    _say(f"\nlatency of {len(files)} files on this machine, in turns")
    with progress_bar(100, "%", "measuring") as bar:
        latencies = tflite.measure(
            [file.path for file in files],
            progress=lambda share: bar.update(round(100 * share) - bar.n),
        )
    rows = [
        tflite.Row.of(file.model, file.variant, file.top1, latency)
        for file, latency in zip(files, latencies, strict=True)
    ]
    worst = min((file for file in files if file.variant == "int8"), key=lambda file: file.top1)
    tflite.write_report(
        rows,
        output,
        title="kapps: four networks on handwritten digits",
        facts={
            "Data": f"{_DATASET}: {len(dataset.train)} images for training, "
            f"{len(dataset.validation)} for validation, {len(dataset.test)} held out",
            "Top-1": "of the file in the LiteRT interpreter, on the held-out images",
            "Seed": str(_SEED.value),
        },
        confusion=tflite.Confusion.of(
            f"{worst.model}, {worst.variant}: the int8 file with the most mistakes",
            dataset.class_names,
            np.array([dataset.test[i][1] for i in range(len(dataset.test))]),
            worst.predicted,
        ),
    )
    print((output / "report.md").read_text())
    print(f"The same with pictures: {output / 'report.html'}; the .tflite files lie beside it.")
    return _judge(files)


def _train_and_convert(model: str, dataset: data.Dataset, output: Path) -> list[_File]:
    """A network from scratch, as one verified file for each quantization."""
    import keras

    from kapps import tflite
    from kapps.tools import pipeline, runs, training
    from kapps.tools.progress import progress_bar

    size, epochs = _NETWORKS[model]
    keras.backend.clear_session()
    workdir = output / "runs" / model
    training.train(
        runs.TrainConfig(
            model=model,
            dataset=_DATASET,
            workdir=str(workdir),
            recipe="digits",
            image_size=size,
            epochs=epochs,
            seed=_SEED.value,
        )
    )
    run = runs.load_run(workdir)
    calibration, _ = pipeline.images(dataset.train, size)
    images, labels = pipeline.images(dataset.test, size)
    files = []
    with progress_bar(len(tflite.QUANTIZATIONS), "file", "converting") as bar:
        for variant in tflite.QUANTIZATIONS:
            conversion = tflite.convert(
                run.model,
                output / f"{model}_{variant}.tflite",
                quantization=variant,
                calibration=calibration[:_CALIBRATION_IMAGES],
                verification=images,
                labels=run.class_names,
                description=f"{model}, trained by kapps on the data set {_DATASET}",
                licence="Apache-2.0",
            )
            predicted = tflite.Runner(conversion.path).predict(images).argmax(axis=1)
            top1 = float((predicted == labels).mean())
            files.append(_File(model, variant, conversion.path, top1, predicted))
            bar.write(f"{conversion.path.name}: {conversion.verification}", file=sys.stderr)
            bar.update()
    return files


def _judge(files: list[_File]) -> int:
    """Says whether the accuracies are what they have to be."""
    top1 = {(file.model, file.variant): file.top1 for file in files}
    short = []
    for model in _NETWORKS:
        exact, int8 = top1[model, "float32"], top1[model, "int8"]
        if exact < _MIN_TOP1:
            short.append(f"{model} reaches {exact:.4f} in float32, below {_MIN_TOP1}")
        if exact - int8 > _MAX_INT8_LOSS:
            short.append(f"{model} loses {exact - int8:.4f} by int8, more than {_MAX_INT8_LOSS}")
    for line in short:
        _say(f"not reached: {line}")
    return 1 if short else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
