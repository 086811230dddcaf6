"""Training: one loop for a CPU, several GPUs and several machines.

What it leaves in the run's folder: kapps.tools.runs. What a step computes: kapps.tools.steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kapps
from kapps._errors import InputError
from kapps._evaluation import evaluation_of
from kapps.tools import cluster, data, layers, pipeline, preemption, run_lock, runs, watch
from kapps.tools.averages import Average, averaged
from kapps.tools.checkpoints import Checkpoints, State, by_path
from kapps.tools.distribution import Devices, make_devices
from kapps.tools.json_files import write_json
from kapps.tools.loop import Loop, evaluate, run_epochs
from kapps.tools.metrics import Metrics
from kapps.tools.network import build_network
from kapps.tools.optimizers import make_optimizer
from kapps.tools.recipe import Recipe
from kapps.tools.runs import Evaluation, TrainConfig, TrainResult
from kapps.tools.schedules import PlateauState, Schedule
from kapps.tools.steps import LossScale

__all__ = ["Loop", "check_batch_size", "evaluate", "run_epochs", "train"]

_SILENCE = 8.0  # seconds
# Weights of 16 bits do not notice small steps: Micikevicius et al. 2018, "Mixed Precision
# Training", section 3.1.
_DTYPE_POLICIES = ("float32", "float64", "mixed_bfloat16")


def train(config: TrainConfig, *, progress: bool = True) -> TrainResult:
    """Trains a network, from where an earlier run in the same folder has stopped.

    The weights of the last epoch are the result, not the best ones of the history: picking the
    best by its validation accuracy would make that figure a flattering one, and with a falling
    learning rate the last ones are as good.

    Args:
        config: the run.
        progress: whether to show a progress bar and a line for each epoch on stderr.

    Raises:
        InputError: an argument, a file or a folder is at fault; the message says which.
        Stopped: a signal has ended the run, and its state is saved.
    """
    with session(config, progress=progress) as begun:
        return begun.finished or run(begun)


@dataclasses.dataclass(frozen=True)
class Session:
    """A run that has been begun, and is this process's: see `session`."""

    config: TrainConfig
    recipe: Recipe
    dataset: data.Dataset
    devices: Devices
    settings: dict[str, Any]
    """For config.json."""
    stop: preemption.Request
    watched: watch.Watch | None
    progress: bool
    finished: TrainResult | None
    """The result, if an earlier call has come to the end."""


@contextlib.contextmanager
def session(config: TrainConfig, *, progress: bool = True) -> Iterator[Session]:
    """What surrounds all that a run does: its folder is locked, and signals are heeded.

    Nothing has been written yet.

    Raises:
        InputError: an argument, a file or a folder is at fault; the message says which.
    """
    recipe = config.resolved()
    policy = _dtype_policy(recipe)
    workdir = Path(config.workdir)
    with contextlib.ExitStack() as stack:
        watched = _watch(config, stack)
        devices = make_devices(config.strategy)  # before TensorFlow has computed anything
        stop = stack.enter_context(preemption.requests())
        _say(watched, "listing the images")
        dataset = data.load(
            config.dataset, config.data_dir, nested=config.nested, on_bad_image=config.on_bad_image
        )
        recipe = recipe.for_images(len(dataset.train))
        check_batch_size(recipe.batch_size, dataset, config.dataset)
        settings = runs.settings_of(config, recipe, dataset)
        _say(watched, "comparing settings")
        _compare_workers(devices, settings)
        if watched is None:
            stack.enter_context(run_lock.RunLock(workdir))
        runs.check_same_run(workdir, settings, (type(config), type(recipe)))
        finished = runs.read_result(workdir, TrainResult)
        if finished is None:
            _say(watched, "checking images")
            _check_images(config, dataset)
        elif progress and devices.is_chief:
            print(f"{workdir}: this run is finished; its result is returned", file=sys.stderr)
        stack.enter_context(_policy(policy))
        with _failed_workers_named(watched):
            yield Session(
                config, recipe, dataset, devices, settings, stop, watched, progress, finished
            )


def _check_images(config: TrainConfig, dataset: data.Dataset) -> None:
    """Refuses damaged images of those that are looked at late, unless they are to be skipped."""
    if config.on_bad_image == "error" and (damaged := data.check(dataset)):
        more = f", and {len(damaged) - 1} more" if damaged[1:] else ""
        raise InputError(f"{damaged[0]}{more}; or go on without: --on_bad_image=skip")


@contextlib.contextmanager
def _failed_workers_named(watched: watch.Watch | None) -> Iterator[None]:
    """What TensorFlow says when another worker is gone, as one line that names it."""
    try:
        yield
    except tf.errors.OpError as error:
        if watched is None:
            raise
        time.sleep(_SILENCE)  # until the silence of a dead worker is telling
        suspects = watched.suspects()
        if not suspects:
            raise
        raise WorkerFailed(
            f"{'; '.join(suspects)}; start the same command on all workers again, which goes on "
            "from the last checkpoint"
        ) from error


class WorkerFailed(Exception):
    """Another worker has ended or does not answer: a program ends with `watch.WORKER_FAILED`."""


def _watch(config: TrainConfig, stack: contextlib.ExitStack) -> watch.Watch | None:
    """Of several workers: all are there when it returns, and the folder is locked."""
    if config.strategy != "multi_worker":
        return None
    workers = cluster.required(os.environ)
    if workers.is_chief:  # first: a second run would disturb the reports of the workers
        stack.enter_context(run_lock.RunLock(Path(config.workdir)))
    watched = stack.enter_context(
        watch.Watch(
            Path(config.workdir) / "workers",
            workers.index,
            workers.addresses,
            start_timeout=config.start_timeout,
            step_timeout=config.step_timeout,
        )
    )
    watched.wait()
    return watched


def _say(watched: watch.Watch | None, phase: str) -> None:
    if watched is not None:
        watched.phase(phase)


def run(
    begun: Session,
    *,
    cut_at: str | None = None,
    frozen_statistics: bool = False,
    rate_decay: float = 1.0,
) -> TrainResult:
    """Trains to the end of the recipe.

    Args:
        begun: the run.
        cut_at: see `build_network`.
        frozen_statistics: whether batch norm normalizes as in inference; see
            `layers.freeze_statistics`.
        rate_decay: see `layers.rates`.

    Raises:
        InputError: an argument, a file or a folder is at fault; the message says which.
        Stopped: a signal has ended the run, and its state is saved.
    """
    config, recipe, dataset = begun.config, begun.recipe, begun.dataset
    devices, settings, watched = begun.devices, begun.settings, begun.watched
    workdir, chief = Path(config.workdir), devices.is_chief
    show = begun.progress and chief
    steps = recipe.steps_per_epoch(len(dataset.train))
    _say(watched, "building the network")
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        model = logits_network(
            config, recipe, settings["arguments"], len(dataset.class_names), cut_at=cut_at
        )
        if frozen_statistics:
            layers.freeze_statistics(model)
        scale = keras.Variable(1.0, trainable=False, name="plateau")
        schedule = make_schedule(recipe, steps, scale)
        optimizer = make_recipe_optimizer(
            recipe, schedule, model.trainable_variables, layers.rates(model, rate_decay)
        )
        average = None if recipe.average is None else Average(model.weights, recipe.average)
        loss_scale = LossScale() if recipe.precision == "mixed_float16" else None
    recipe = evaluated_as_published(recipe, model)
    clock = layers.Clock(optimizer, recipe.accumulate, devices.replicas)
    layers.prepare(model, clock, recipe, steps * recipe.epochs, config.seed)
    loop = Loop(
        devices,
        model,
        optimizer,
        clock,
        recipe,
        dataset,
        config.seed,
        average=average,
        loss_scale=loss_scale,
        teacher=_teacher(config, dataset),
        distillation=(config.distillation, config.temperature),
        bad=pipeline.BadImages(config.on_bad_image == "skip", config.max_bad_images),
        data_service=config.data_service,
    )
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        devices,
        {
            "model": by_path(model.variables, model.name),
            "optimizer": by_path(optimizer.variables, optimizer.name),
            "average": by_path(average.variables, average.name) if average else {},
            "loss_scale": loss_scale.variables if loss_scale else {},
        },
        config.keep_checkpoints,
    )
    _say(watched, "reading the last checkpoint")
    checkpoints.restore()
    state = checkpoints.state
    scale.assign(PlateauState(**state.plateau).scale)
    transform = loop.evaluation_transform
    if chief:
        runs.write_settings(workdir, settings, transform)
    if show:
        for line in (dataset.note, _going_on(workdir, state)):
            if line:
                print(line, file=sys.stderr)
    run_epochs(
        loop,
        checkpoints,
        Metrics(workdir, chief),
        title=config.model,
        show=show,
        save_every=config.checkpoint_every,
        stop=begun.stop,
        beat=watched.beat if watched else lambda step: None,
        scale=scale,
        best=workdir / "best.safetensors" if chief else None,
        histograms=config.histograms,
    )
    _say(watched, "writing the weights")
    return finish(config, model, average, state, transform, workdir if chief else None)


def finish(
    config: TrainConfig,
    model: keras.Model,
    average: Average | None,
    state: State,
    transform: kapps.EvalTransform,
    folder: Path | None,
) -> TrainResult:
    """The result; the chief writes the weights and it to the folder."""
    weights = Path(config.workdir) / "weights.safetensors"
    result = TrainResult(
        model=config.model,
        weights=str(weights),
        epochs=state.epoch,
        steps=state.step,
        validation=runs.from_values(Evaluation, state.validation),
        history=tuple(state.history),
    )
    if average is not None and folder is not None:
        kapps.save_weights(model, folder / "last.safetensors", evaluation=transform)
    with averaged(average):
        if folder is not None:
            kapps.save_weights(model, weights, evaluation=transform)
            write_json(
                folder / "result.json", dataclasses.asdict(result) | {"weights": weights.name}
            )
    return result


def logits_network(
    config: TrainConfig,
    recipe: Recipe,
    arguments: dict[str, Any],
    classes: int,
    *,
    cut_at: str | None = None,
) -> keras.Model:
    """The network to train: of logits, and for any size where the sizes change.

    Args:
        config: names the network and its weights.
        recipe: with its image size.
        arguments: as `TrainConfig.network` gives them.
        classes: of the data set.
        cut_at: see `build_network`.
    """
    return build_network(
        kapps.get_builder(config.model),
        {**arguments, "classifier_activation": None},
        weights=config.weights,
        input_shape=input_shape(recipe),
        classes=classes,
        cut_at=cut_at,
    )


def input_shape(recipe: Recipe) -> tuple[int | None, int | None, int]:
    """Height, width and channels of the images that a run shows; None where sizes change."""
    sizes = {recipe.image_size, recipe.eval_size or recipe.image_size, *_grown_sizes(recipe)}
    size = recipe.image_size if len(sizes) == 1 else None
    return (size, size, 3)


def _grown_sizes(recipe: Recipe) -> set[int | None]:
    return {recipe.at_stage(stage).image_size for stage in range(recipe.stages)}


def make_schedule(recipe: Recipe, steps_per_epoch: int, scale: Any = None) -> Schedule:
    """The recipe's learning rate by step; `scale` is the variable of the schedule plateau."""
    return Schedule(
        recipe.schedule,
        recipe.learning_rate,
        epochs=recipe.epochs,
        steps_per_epoch=max(steps_per_epoch, 1),
        warmup_epochs=recipe.warmup_epochs,
        warmup_start=recipe.warmup_start,
        final=recipe.final_rate,
        boundaries=recipe.boundaries,
        factor=recipe.factor,
        decay_epochs=recipe.decay_epochs,
        by_epoch=recipe.rate_by_epoch,
        scale=scale,
    )


def make_recipe_optimizer(
    recipe: Recipe,
    schedule: Schedule,
    variables: list[Any],
    rates: Sequence[float] | None = None,
) -> keras.optimizers.Optimizer:
    """The recipe's optimizer, for these variables. To be made in the devices' scope.

    `rates` are what the learning rate is multiplied by, for each of them.
    """
    return make_optimizer(
        recipe.optimizer,
        schedule,
        variables,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        rho=recipe.rho,
        beta_2=recipe.beta_2,
        epsilon=recipe.epsilon,
        rates=rates,
    )


def evaluated_as_published(recipe: Recipe, model: keras.Model) -> Recipe:
    """With the evaluation of the weights that the run starts from, where the recipe has none."""
    known = evaluation_of(model)
    crop, interpolation = (
        (0.875, "bilinear") if known is None else (known.crop, known.interpolation)
    )
    return dataclasses.replace(
        recipe,
        crop=crop if recipe.crop is None else recipe.crop,
        interpolation=interpolation if recipe.interpolation is None else recipe.interpolation,
    )


def _teacher(config: TrainConfig, dataset: data.Dataset) -> keras.Model | None:
    """The network of another run, giving logits, which takes the images that are trained on."""
    if config.teacher is None:
        return None
    run = runs.load_run(config.teacher)
    if run.class_names != dataset.class_names:
        raise InputError(
            f"--teacher={config.teacher} knows other classes than {config.dataset}; train one on "
            "the same data set"
        )
    logits = run.model.layers[-1]
    if getattr(logits, "activation", None) is keras.activations.softmax:
        logits.activation = keras.activations.linear
    return keras.Model(run.model.inputs, run.model.outputs, trainable=False)


def _dtype_policy(recipe: Recipe) -> str:
    """What the network computes in.

    Raises:
        InputError: Keras's dtype policy, where the recipe has none, is none of `_DTYPE_POLICIES`.
    """
    if recipe.precision is not None:
        return recipe.precision
    name: str = keras.config.dtype_policy().name
    if name not in _DTYPE_POLICIES:
        raise InputError(
            f"the dtype policy {name} (of keras.json's floatx, or of "
            "keras.config.set_dtype_policy) is not one to train in: small gradients and steps are "
            f"lost; choose {', '.join(_DTYPE_POLICIES)}, or the precision mixed_float16, which "
            "scales its loss"
        )
    return name


@contextlib.contextmanager
def _policy(name: str) -> Any:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _compare_workers(devices: Devices, settings: dict[str, Any]) -> None:
    """Refuses to train where the workers were started with different settings."""
    names = sorted(settings)
    digests = devices.gathered(np.array([runs.digest(settings[name]) for name in names]))
    differing = [
        name for name, column in zip(names, digests.T, strict=True) if len(set(column)) > 1
    ]
    if differing:
        raise InputError(
            f"the workers were started with different settings: {', '.join(differing)}; here "
            + ", ".join(f"{name} is {settings[name]!r}" for name in differing[:5])
            + "; start the same command on each"
        )


def _going_on(workdir: Path, state: State) -> str:
    return f"{workdir}: going on after step {state.step}" if state.step else ""


def check_batch_size(batch_size: int | None, dataset: data.Dataset, name: str) -> None:
    """Refuses a batch that the training images do not fill.

    Args:
        batch_size: images a step.
        dataset: with the images.
        name: how the user calls it.

    Raises:
        InputError: there are fewer.
    """
    if len(dataset.train) < (batch_size or 1):
        raise InputError(
            f"a batch of {batch_size} images is more than the {len(dataset.train)} training "
            f"images of {name}; choose a smaller --batch_size"
        )
