"""From a folder of pictures to what goes on the phone, in one call: `ship`.

Transfer learning (`kapps.tools.transfer`), verified files, quantization-aware training where int8
after training loses too much, a report, a model card and an Android project. Each step is one that
the other programs offer; an interrupted run goes on where it was.

In the folder:

run/              of transfer learning, as `kapps-finetune` leaves it
tuned/            of quantization-aware training, if it was needed
files/            the .tflite files that were weighed
model.tflite      the one of them that was chosen
labels.txt        its classes, one a line
report/           accuracy, size and latency of all of them
MODEL_CARD.md     what it is, from what, and how good
android/          the app's project, with the model in it
page.html         classifies pictures in the browser, if that was asked for
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import kapps
from kapps import _index
from kapps._errors import InputError, is_number
from kapps._files import copy, write_text
from kapps.tflite import conversion_run, evaluation, source, tuning_run, web
from kapps.tflite.accuracy import Accuracy, write_accuracy
from kapps.tflite.evaluation import Split
from kapps.tflite.measurement import benchmark as benchmarking
from kapps.tflite.measurement.latency import Latency
from kapps.tflite.quantizations import Quantization
from kapps.tflite.report import read_overview, write_overview
from kapps.tflite.shipping import android
from kapps.tflite.shipping.card import Shipped, card, name_of
from kapps.tools import data, runs, transfer
from kapps.tools.transfer_config import TransferConfig

_QAT = "int8-qat"


@dataclasses.dataclass(frozen=True)
class ShipConfig:
    """What is to be shipped."""

    training: TransferConfig
    """The data set, the network and how it learns; its `workdir` is set by `ship`."""
    output: str
    """The folder."""
    target_loss: float = 0.01
    """How much top-1 on the validation images int8 may lose against float32, 0 to 1."""
    device: str | None = None
    """Where latency is measured, as of `benchmark`; None: nowhere."""
    binary: str | None = None
    """`benchmark_model` for it."""
    package: str = "com.example.classifier"
    """Of the Android app."""
    title: str | None = None
    """Of the app and the card; by default the network's name."""
    author: str = ""
    licence: str | None = None
    """Of the model: an SPDX identifier or a text; by default that of the published weights."""
    data_licence: str = ""
    """Of the pictures, for the card."""
    litertjs: str | None = None
    """The folder with LiteRT.js, for a page; see `kapps.tflite.web`. None: there is none."""


@dataclasses.dataclass(frozen=True)
class Shipment:
    """What was shipped; accuracies are top-1, 0 to 1.

    Attributes:
        file: model.tflite.
        chosen: how it does on the held-out images; files are all that were weighed.
        validation: by file name, the top-1 by which it was chosen.
        reason: why it was chosen.
        latencies: of the files, if a device was named.
        new_project: whether the Android project is new; else only the model in it is.
    """

    file: Path
    chosen: Accuracy
    files: tuple[Accuracy, ...]
    validation: dict[str, float]
    reason: str
    latencies: tuple[Latency, ...]
    new_project: bool


def ship(
    config: ShipConfig, *, say: Callable[[str], object] = lambda line: None, progress: bool = True
) -> Shipment:
    """Trains, converts, chooses, measures and packs.

    Of int8 after training, int8 with quantization-aware training, which is only done where the
    first loses more than `target_loss`, and float16, it ships the first that loses no more than
    that on the validation images. What it then tells is of the held-out ones.

    Args:
        config: what.
        say: told what is being done.
        progress: whether training and reading show how far they are.

    Raises:
        InputError: an argument, a file or a folder is at fault, or the device is, in which case all
            else is there already; the message says which.
        Stopped: a signal has ended training; what it has done is saved.
    """
    output = Path(config.output)
    start = _check(config)
    training = dataclasses.replace(config.training, workdir=str(output / "run"))
    say(f"training {training.model or training.weights} on {training.dataset}")
    transfer.finetune(training, progress=progress)
    workdir = training.workdir
    model = source.load_model(workdir, None, None)
    dataset = data.load(training.dataset, training.data_dir, nested=training.nested)
    licence = config.licence if config.licence is not None else start.license if start else ""
    title = config.title or model.model.name
    learned = f"{model.model.name}, trained on {name_of(dataset.name)}"
    about = conversion_run.About(title, learned, config.author, licence)
    images = conversion_run.read_images(model, conversion_run.Images(data_dir=training.data_dir))
    base = output / "files" / f"{model.model.name}.tflite"
    files: dict[str, Path] = {}
    wanted: tuple[Quantization, ...] = ("float32", "float16", "int8")
    for each in conversion_run.convert_each(model, base, wanted, images, about=about):
        say(conversion_run.summary(each))
        files[each.quantization] = each.path

    def accuracy(variant: str, split: str) -> Accuracy:
        return evaluation.evaluate_on(
            str(files[variant]),
            dataset,
            model.transform,
            Split(split=split),
            model=model.model.name,
            variant=variant,
        )

    validation = {name: accuracy(name, "validation").top1 for name in files}
    least = validation["float32"] - config.target_loss
    if validation["int8"] < least:
        say(f"int8 loses {validation['float32'] - validation['int8']:.4f}: training for int8")
        files[_QAT] = _tuned(training, output, model.model.name, progress)
        validation[_QAT] = accuracy(_QAT, "validation").top1
    order = [name for name in ("int8", _QAT, "float16", "float32") if name in files]
    chosen = next(name for name in order if validation[name] >= least)
    reason = _reason(chosen, validation, config.target_loss)
    say(reason)
    split = "test" if len(dataset.test) else "validation"
    results = {name: accuracy(name, split) for name in files}

    file = output / "model.tflite"
    copy(files[chosen], file)
    write_text(output / "labels.txt", "".join(f"{name}\n" for name in model.labels or ()))
    new = android.write_project(
        output / "android", file, model.transform, package=config.package, title=title
    )
    if config.litertjs is not None:
        web.web_page(file, output / "page.html", litertjs=config.litertjs)
    shipped = Shipped(
        title,
        model,
        runs.read_settings(workdir) or {},
        dataset,
        licence,
        config.data_licence,
        config.author,
        start,
        results[chosen],
        list(results.values()),
        {files[name].name: value for name, value in validation.items()},
        reason,
        (),
    )
    _report(output, shipped)
    if config.device is not None:
        say(f"latency of {len(files)} files on {config.device}")
        latencies = benchmarking.benchmark(
            list(files.values()), device=config.device, binary=config.binary
        )
        shipped = dataclasses.replace(shipped, latencies=latencies)
        _report(output, shipped)
    return Shipment(
        file,
        shipped.chosen,
        tuple(shipped.files),
        dict(shipped.validation),
        reason,
        tuple(shipped.latencies),
        new,
    )


def _check(config: ShipConfig) -> kapps.PublishedWeights | None:
    """What is wrong before anything has begun; gives the published weights that it starts from."""
    if not is_number(config.target_loss) or not 0 <= config.target_loss <= 1:
        raise InputError(f"--target_loss must be 0 to 1, not {config.target_loss!r}")
    android.check_package(config.package)
    if config.device is not None:
        benchmarking.parse_device(config.device)
    if config.litertjs is not None:
        web.check_litertjs(config.litertjs)
    weights = config.training.weights or ""
    if Path(weights).exists() or Path(weights).suffix in (".safetensors", ".pth", ".h5"):
        return None
    start = _index.find(config.training.model, weights)
    if "-nc" in start.license and config.licence is not None:
        raise InputError(
            f"--licence={config.licence}: the weights {start.tag} are {start.license}, not for "
            "commerce, and so is what is made of them; leave --licence out, or start from others "
            f"(kapps.list_weights({config.training.model!r}) lists them)"
        )
    return start


def _tuned(training: TransferConfig, output: Path, name: str, progress: bool) -> Path:
    """The file of quantization-aware training."""
    config = tuning_run.TuneConfig(
        training.workdir, str(output / "tuned"), quantize_aware=True, data_dir=training.data_dir
    )
    tuning_run.tune(config, progress=progress)
    file = output / "files" / f"{name}_int8-qat.tflite"
    copy(output / "tuned" / "model.tflite", file)
    return file


def _reason(chosen: str, validation: dict[str, float], target: float) -> str:
    exact = validation["float32"]
    lost = {name: exact - top1 for name, top1 in validation.items()}
    text = (
        f"{chosen} loses {max(lost[chosen], 0):.4f} of float32's top-1, {exact:.4f}, on the "
        f"validation images, where {target:g} may be lost"
    )
    more = [
        f"{name} loses {lost[name]:.4f}" for name in ("int8", _QAT) if lost.get(name, 0) > target
    ]
    return text + (f"; {' and '.join(more)}." if more else ".")


def _report(output: Path, shipped: Shipped) -> None:
    """The report's page and the card, with what is known so far."""
    folder = output / "report"
    results: list[Path] = []
    for each in shipped.files:
        results.append(folder / f"{Path(each.file).stem}.json")
        write_accuracy(each, results[-1])
    if shipped.latencies:
        results.append(benchmarking.write_results(shipped.latencies, folder / "latency.json"))
    write_overview(read_overview(results), folder, title=shipped.title)
    write_text(output / "MODEL_CARD.md", card(shipped))
