"""Fine-tuning a finished run of kapps-train for the phone, with its data and its loop.

What a run leaves in its folder, beside what kapps.tools.runs lists, so that it can be evaluated,
converted and tuned on like any other:

checkpoints/<phase>/  the last epochs of each phase: prune, cluster, quantize_aware
weights.safetensors   the weights in the Keras 3 model: pruned, clustered, not quantized
model.tflite          after quantize_aware: the int8 file
result.json           accuracies on the validation images
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

import kapps
from kapps._errors import InputError
from kapps._files import sha256
from kapps.tflite import file_facts, tuning
from kapps.tflite.conversion import convert
from kapps.tflite.interpreter import Runner
from kapps.tools import data, layers, pipeline, runs, training
from kapps.tools.checkpoints import Checkpoints
from kapps.tools.distribution import make_devices
from kapps.tools.json_files import write_json
from kapps.tools.metrics import Metrics
from kapps.tools.recipe import Recipe
from kapps.tools.recipes import get_recipe
from kapps.tools.run_lock import RunLock

_PHASES = ("prune", "cluster", "quantize_aware")
_EPOCHS = 5
# Of the recipe's highest learning rate, by phase. For quantize_aware more unlearns what the run has
# learned: see Wu et al. 2020, "Integer Quantization for Deep Learning Inference", on the workflow.
_RATES = {"prune": 0.1, "cluster": 0.1, "quantize_aware": 0.01}
_FROZEN = "freeze_statistics"  # a setting of transfer learning, which stays with the run


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """One tuning run. What is None is as in the run that it starts from, where nothing is said."""

    init_from: str
    """The folder of a finished run."""
    workdir: str
    prune: float | None = None
    """The share of zeros in the end, above 0 and below 1."""
    cluster: int | None = None
    """How many different values a kernel keeps."""
    quantize_aware: bool = False
    dataset: str | None = None
    data_dir: str | None = None
    """Where the TensorFlow data sets lie."""
    recipe: str | None = None
    batch_size: int | None = None
    epochs: int | None = None
    """Of each phase: by default 5."""
    learning_rate: float | None = None
    """The highest of the schedule: by default a tenth of the recipe's, and a hundredth of it for
    quantize_aware."""
    seed: int = 0

    def phases(self) -> tuple[str, ...]:
        """What is to be done, in this order.

        Raises:
            InputError: nothing.
        """
        asked = {
            "prune": self.prune is not None,
            "cluster": self.cluster is not None,
            "quantize_aware": self.quantize_aware,
        }
        phases = tuple(phase for phase in _PHASES if asked[phase])
        if not phases:
            raise InputError("nothing to do: give --quantize_aware, --prune or --cluster")
        return phases


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """How a run ended; accuracies are top-1 on the validation images, shares of 0 to 1."""

    model: str
    weights: str
    """The file of the tuned weights."""
    sparsity: float
    """The share of zeros in the kernels that pruning prunes."""
    before: float
    """Of the model that the run started from."""
    tuned: float
    """Of the tuned model as it was trained, so with quantization emulated if that was asked for."""
    restored: float
    """Of the tuned weights in the Keras 3 model."""
    file: float | None
    """Of the int8 file on this machine; None without quantize_aware."""
    history: tuple[dict[str, Any], ...]
    """An entry for each epoch, with its phase."""


def tune(config: TuneConfig, *, progress: bool = True) -> TuneResult:
    """Tunes a run's model, from where an earlier call with the same folder has stopped.

    The phases follow each other, each with all of the recipe's epochs: prune, cluster, and then
    quantize_aware, which keeps what the earlier ones did. Images, order and augmentation are those
    of the recipe, by default the one that the run was trained by; there is no warm-up, and no end
    before the last epoch. Layers that act in training only, such as dropout, are left out. Batch
    norm stays as it is where transfer learning has frozen its statistics: what the later layers
    have learned of them is lost with those of the batches. Branches that a file has merged are so
    here, see `kapps.tflite.restore` on what that leaves of them.

    Args:
        config: the run.
        progress: whether to show a progress bar and a line for each epoch on stderr.

    Raises:
        InputError: an argument, a file or a folder is at fault; the message says which.
    """
    phases, workdir = config.phases(), Path(config.workdir)
    if config.prune is not None and not 0 < config.prune < 1:
        raise InputError(f"--prune must be above 0 and below 1, not {config.prune:g}")
    least = 2 if config.prune is None else 3  # zero is one of them
    if config.cluster is not None and not least <= config.cluster <= 256:
        raise InputError(f"--cluster must be {least} to 256, not {config.cluster}")
    if workdir.resolve() == Path(config.init_from).resolve():
        raise InputError("--workdir is the folder of --init_from; choose another one")
    run = runs.load_run(config.init_from)
    run = dataclasses.replace(
        run,
        dataset=config.dataset or run.dataset,
        data_dir=run.data_dir if config.data_dir is None else config.data_dir,
    )
    start = json.loads((Path(config.init_from) / "config.json").read_text())  # checked above
    recipe = _recipe(config, start, run.transform)
    rate = config.learning_rate
    dataset = data.load(run.dataset, run.data_dir, nested=run.nested)
    recipe = recipe.for_images(len(dataset.train))
    gentle = {
        phase: dataclasses.replace(
            recipe, learning_rate=_RATES[phase] * recipe.learning_rate if rate is None else rate
        )
        for phase in phases
    }
    if dataset.class_names != run.class_names:
        raise InputError(f"the run in {config.init_from} knows other classes than {run.dataset!r}")
    settings = {
        **runs.settings_of(_train_config(config, start["model"], run, recipe), recipe, dataset),
        # With these it is built, and tuned, again.
        **{name: start[name] for name in ("arguments", "cut_at", _FROZEN) if start.get(name)},
        "learning_rates": {phase: each.learning_rate for phase, each in gentle.items()},
        "init_from": str(Path(config.init_from).resolve()),
        "init_sha256": _weights_sum(config.init_from),
        **{phase: getattr(config, phase) for phase in _PHASES},
    }
    with RunLock(workdir):
        runs.check_same_run(workdir, settings)
        finished = runs.read_result(workdir, TuneResult)
        if finished is not None:
            if progress:
                print(f"{workdir}: this run is finished; its result is returned", file=sys.stderr)
            return finished
        training.check_batch_size(recipe.batch_size, dataset, run.dataset)
        if config.quantize_aware:
            tuning.quantize_aware(run.model)  # a layer without such a form is named now, not later
        write_json(workdir / "config.json", settings)
        result = _tune(config, settings, run, gentle, dataset, progress)
        told = dataclasses.asdict(result) | {"weights": Path(result.weights).name}
        write_json(workdir / "result.json", told)
        return result


def _tune(
    config: TuneConfig,
    settings: dict[str, Any],
    run: runs.Run,
    recipes: dict[str, Recipe],
    dataset: data.Dataset,
    progress: bool,
) -> TuneResult:
    """The phases of `recipes`, and what they have made, in the run's folder."""

    def top1(model: Any) -> float:
        return training.evaluate(model, dataset.validation, transform=run.transform).top1

    workdir, model, history = Path(config.workdir), run.model, []
    before = top1(model)
    for phase, recipe in recipes.items():
        keras.utils.set_random_seed(config.seed)  # where clusters start
        steps = recipe.steps_per_epoch(len(dataset.train)) * recipe.epochs
        tuned = _tuned(phase, config, model, steps)
        for norm in _batch_norms(tuned):
            if settings.get(_FROZEN):
                norm.trainable = False  # inference mode, in TensorFlow 2
            if recipe.bn_momentum is not None:
                norm.momentum = recipe.bn_momentum
        history += _train(tuned, phase, recipe, dataset, config.seed, workdir, progress)
        model = tuning.restore(tuned, model)
    weights, file = workdir / "weights.safetensors", None
    kapps.save_weights(model, weights)
    if config.quantize_aware:
        file = _write_file(tuned, workdir / "model.tflite", dataset, run, weights)
    return TuneResult(
        model=settings["model"],
        weights=str(weights),
        sparsity=tuning.sparsity(model),
        before=before,
        tuned=top1(tuned),
        restored=top1(model),
        file=file,
        history=tuple(history),
    )


def _recipe(config: TuneConfig, start: dict[str, Any], transform: kapps.EvalTransform) -> Recipe:
    """The recipe to tune by: that of the run, or the one that is asked for, made short."""
    if config.recipe is not None:
        base = get_recipe(config.recipe)
    else:
        fields = {field.name for field in dataclasses.fields(Recipe)}
        told = {name: value for name, value in start.items() if name in fields}
        base = Recipe(source="", command="", expected="", **told)
    return dataclasses.replace(
        base,
        batch_size=base.batch_size if config.batch_size is None else config.batch_size,
        epochs=_EPOCHS if config.epochs is None else config.epochs,
        image_size=transform.size,
        eval_size=None,
        crop=transform.crop,
        interpolation=transform.interpolation,
        warmup_epochs=0.0,
        adversarial_warmup_epochs=0.0,
        manifold_mixup=0.0,
        average=None,
        clip_adaptive=None,
        stages=1,
        start=(),
        stop_at=None,
    )


def _train_config(config: TuneConfig, model: str, run: runs.Run, recipe: Recipe) -> Any:
    return runs.TrainConfig(
        model, run.dataset, config.workdir, run.data_dir, recipe=recipe, seed=config.seed
    )


def _weights_sum(folder: str) -> str:
    """The SHA-256 of a run's weights: another training in the same folder is another start."""
    return sha256(Path(folder) / "weights.safetensors")


def _tuned(phase: str, config: TuneConfig, model: keras.Model, steps: int) -> tf_keras.Model:
    if phase == "prune":
        # More and more through the first half, so that the second half can make up for it: Zhu and
        # Gupta 2017, "To prune, or not to prune", section 3.
        schedule = tfmot.sparsity.keras.PolynomialDecay(
            0.0, config.prune, 0, max(steps // 2, 1), frequency=max(steps // 40, 1)
        )
        return tuning.prune(model, schedule)
    if phase == "cluster":
        assert config.cluster is not None
        return tuning.cluster(model, config.cluster)
    return tuning.quantize_aware(model)


def _batch_norms(tuned: tf_keras.Model) -> list[tf_keras.layers.Layer]:
    return [each for each in tuned.layers if isinstance(each, tf_keras.layers.BatchNormalization)]


def _train(
    tuned: tf_keras.Model,
    phase: str,
    recipe: Recipe,
    dataset: data.Dataset,
    seed: int,
    workdir: Path,
    progress: bool,
) -> list[dict[str, Any]]:
    """Trains in place; returns an entry for each epoch."""
    logits = tuning.logits(tuned)
    schedule = training.make_schedule(recipe, recipe.steps_per_epoch(len(dataset.train)))
    optimizer = training.make_recipe_optimizer(recipe, schedule, logits.trainable_variables)
    devices = make_devices("none")
    checkpoints = Checkpoints(
        workdir / "checkpoints" / phase,
        devices,
        {
            "model": _by_place(tuned.variables),
            "optimizer": _by_place([variable.value for variable in optimizer.variables]),
        },
    )
    checkpoints.restore()
    clock = layers.Clock(optimizer, recipe.accumulate)
    loop = training.Loop(devices, logits, optimizer, clock, recipe, dataset, seed)
    training.run_epochs(
        loop,
        checkpoints,
        Metrics(workdir, True, phase),
        title=f"{tuned.name} {phase}",
        show=progress,
    )
    return [{"phase": phase, **row} for row in checkpoints.state.history]


def _by_place(variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
    """Their names are not unique, and depend on what else the process has built."""
    return {str(i): variable for i, variable in enumerate(variables)}


def _write_file(
    tuned: tf_keras.Model, path: Path, dataset: data.Dataset, run: runs.Run, weights: Path
) -> float:
    """Writes the int8 file, and returns its top-1 on the validation images."""
    images = dataset.validation
    # A source may be sorted by class, and too large to be held whole.
    order = np.random.default_rng(0).permutation(len(images))
    shares = [data.Subset(images, np.sort(s)) for s in np.split(order, range(256, len(order), 256))]
    checked, _ = pipeline.images(shares[0], run.transform)
    conversion = convert(
        tuned,
        path,
        quantization="int8",
        verification=checked,
        labels=run.class_names,
        description=f"{tuned.name}, quantization-aware training by kapps on {dataset.name}",
        weights=weights,
    )
    graph = file_facts.read_graph(path.read_bytes())
    kept = len(file_facts.better_in_float(graph))
    if len(conversion.float_operations) > kept:
        raise InputError(f"{path} computes in float: {', '.join(conversion.float_operations)}")
    runner, hits = Runner(path), 0
    for share in shares:
        pixels, labels = pipeline.images(share, run.transform)
        hits += int((runner.predict(pixels).argmax(axis=1) == labels).sum())
    return hits / len(images)
