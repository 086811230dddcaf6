"""The steps and epochs of a run, and what they work on."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kapps
from kapps._errors import InputError
from kapps.custom_layers import ImageNormalization
from kapps.tools import data, distribution, layers, mixing, pipeline, steps
from kapps.tools.adversarial import Attack
from kapps.tools.averages import Average, averaged
from kapps.tools.checkpoints import Checkpoints
from kapps.tools.data_service import ServiceLoader
from kapps.tools.manifold import MixedForward
from kapps.tools.metrics import Metrics
from kapps.tools.preemption import Request, Stopped
from kapps.tools.progress import progress_bar
from kapps.tools.recipe import Recipe
from kapps.tools.runs import Evaluation
from kapps.tools.schedules import Plateau, PlateauState

_REFRESH_SECONDS = 0.5  # of the progress bar
_OVERFLOWS = 20  # steps in a row that loss scaling may leave out
_NOTED = 50  # steps between lines of metrics.jsonl
_MIX = 1  # what tells the draws of mixing from those of the order and of augmentation


class Loop:
    """The steps of a run.

    The model gives logits. It may be one of tf_keras.

    Args:
        devices: that compute.
        model: made in their scope, as are optimizer, average and loss scale.
        optimizer: of `kapps.tools.optimizers`.
        clock: of the model's layers.
        recipe: with batch size and image size.
        dataset: whose training and validation images are used.
        seed: of order, augmentation and what the recipe draws beside.
        average: of the weights, which validation then uses.
        loss_scale: of numbers of 16 bits.
        teacher: gives logits to be learned from too.
        distillation: the teacher's share, and the temperature.
        bad: what to do about images that cannot be read.
        data_service: the address of one that reads the training images.
    """

    def __init__(
        self,
        devices: distribution.Devices,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        clock: layers.Clock,
        recipe: Recipe,
        dataset: data.Dataset,
        seed: int,
        *,
        average: Average | None = None,
        loss_scale: steps.LossScale | None = None,
        teacher: keras.Model | None = None,
        distillation: tuple[float, float] = (0.5, 4.0),
        bad: pipeline.BadImages | None = None,
        data_service: str | None = None,
    ) -> None:
        self.devices, self.model, self.optimizer = devices, model, optimizer
        self.recipe, self.dataset, self.seed = recipe, dataset, seed
        self.average = average
        assert recipe.batch_size is not None
        self.batch_size: int = recipe.batch_size
        self.steps_per_epoch = recipe.steps_per_epoch(len(dataset.train))
        self._clock, self._loss_scale, self._bad = clock, loss_scale, bad
        self._teacher, self._distillation = teacher, distillation
        self._service = data_service
        self._check_mixing()
        self._forward = MixedForward(model) if recipe.manifold_mixup else None
        self._attack = (
            Attack(recipe, clock, seed, self.steps_per_epoch) if recipe.adversarial_eps else None
        )
        self.overflows = loss_scale is not None
        self._class_weights = self._weights_of_classes() if recipe.class_weights else None
        self._stage: int | None = None
        self._at_stage = recipe
        self.evaluation_transform = evaluation_transform(recipe)
        self._validation = pipeline.Loader(
            dataset.validation, pipeline.EvaluationPixels(self.evaluation_transform), bad=bad
        )
        self._evaluation_step = devices.compiled(steps.Evaluation(model, from_logits=True))

    def train_steps(
        self, epoch: int, first: int = 0, flag: Callable[[], float] = float
    ) -> Iterator[tf.Tensor]:
        """Runs the steps of an epoch, from `first` on.

        Each yields the sums (loss, hits) over its batch, and that of what `flag` has given on each
        replica before.
        """
        self._enter(self.recipe.stage_of(epoch))
        recipe, devices = self._at_stage, self.devices
        order = pipeline.training_order(
            self.seed, epoch, len(self.dataset.train), self.batch_size, recipe.repeats
        )
        share = pipeline.worker_share(
            order, devices.replicas, devices.first_replica, devices.local_replicas
        )
        batches = self._loader.batches(share[first:], self.seed, epoch)
        with contextlib.closing(batches):
            for step, (images, labels) in enumerate(batches, first):
                mix = self._mix(epoch, step, images.shape[1]).vector()
                flags = np.array([flag()], np.float32)
                yield self._step(devices.batch([mix, flags], images, labels))

    def validate(self, beat: Callable[[int], None] = lambda step: None) -> Evaluation:
        """Runs over the validation images, each once; `beat` is told the batches that are done."""
        devices, images = self.devices, len(self.dataset.validation)
        replicas = devices.replicas
        batch_size = -(-min(self.batch_size, images) // replicas) * replicas
        order = pipeline.worker_share(
            pipeline.evaluation_order(images, batch_size),
            replicas,
            devices.first_replica,
            devices.local_replicas,
        )
        with averaged(self.average):
            return _evaluated(devices, self._evaluation_step, self._validation, order, beat)

    def augmented(self, count: int) -> np.ndarray:
        """The first images of the first epoch as they are trained on: uint8 (count, h, w, 3)."""
        self._enter(0)
        batch = min(count, self.batch_size)
        order = pipeline.training_order(self.seed, 0, len(self.dataset.train), batch)
        batches = self._loader.batches(order[:1], self.seed, 0)
        with contextlib.closing(batches):
            return next(batches)[0]

    def _enter(self, stage: int) -> None:
        """Prepares what differs from stage to stage."""
        if stage == self._stage:
            return
        self._stage = stage
        recipe, before = self.recipe.at_stage(stage), self._at_stage
        self._at_stage = recipe
        layers.set_rates(self.model, recipe, before)
        assert recipe.image_size is not None
        pixels = pipeline.TrainingPixels(recipe, recipe.image_size, **colours(self.model))
        self._loader = (
            pipeline.Loader(self.dataset.train, pixels, bad=self._bad, replace=True)
            if self._service is None
            else ServiceLoader(self._service, self.dataset, pixels, bad=self._bad)
        )
        self._step = self.devices.compiled(
            steps.Training(
                self.model,
                self.optimizer,
                self._clock,
                self.recipe,
                average=self.average,
                loss_scale=self._loss_scale,
                class_weights=self._class_weights,
                teacher=self._teacher,
                distillation=self._distillation,
                forward=self._forward,
                attack=self._attack,
            )
        )

    def _check_mixing(self) -> None:
        """Refuses parts of a batch in which an image has no neighbour, and a teacher of others."""
        if self._teacher is not None and self.recipe.manifold_mixup:
            raise InputError(
                "a teacher sees images that are not mixed, and manifold_mixup mixes what the "
                "network makes of them; give --mixup in its place"
            )
        parts = self.devices.replicas * self.recipe.accumulate
        if self.recipe.mixes and self.batch_size % (2 * parts):
            raise InputError(
                f"images are mixed in pairs, and a batch of {self.batch_size} has {parts} parts "
                f"(replicas times accumulate); choose a --batch_size that is a multiple of "
                f"{2 * parts}"
            )

    def _mix(self, epoch: int, step: int, size: int) -> mixing.Mix:
        recipe = self._at_stage
        random = np.random.default_rng([self.seed, epoch, step, _MIX])
        if self._forward is not None:
            alpha, places = recipe.manifold_mixup, self._forward.places
            return mixing.draw_manifold(random, alpha, places, recipe.mix_probability)
        return mixing.draw(
            random,
            (size, size),
            recipe.mixup,
            recipe.cutmix,
            probability=recipe.mix_probability,
            switch=recipe.mix_switch,
        )

    def _weights_of_classes(self) -> np.ndarray:
        classes = len(self.dataset.class_names)
        return data.class_weights(data.labels_of(self.dataset.train), classes)


def evaluation_transform(recipe: Recipe) -> kapps.EvalTransform:
    """What evaluation does to pictures, by a recipe that tells size, crop and interpolation."""
    size = recipe.eval_size or recipe.image_size
    assert size is not None and recipe.crop is not None and recipe.interpolation is not None
    return kapps.EvalTransform(size, recipe.crop, recipe.interpolation)


def colours(model: keras.Model) -> dict[str, tuple[Any, ...]]:
    """What the model subtracts and divides by, of 0..255; nothing if it does neither."""
    for layer in model.layers:
        if isinstance(layer, ImageNormalization) and len(layer.mean.shape) == 1:
            mean, std = (keras.ops.convert_to_numpy(x) for x in (layer.mean, layer.std))
            if len(mean) == 3:
                fill = tuple(round(255 * float(x)) for x in mean)
                return {"fill": fill, "deviation": tuple(255 * float(x) for x in std)}
    return {}


def evaluate(
    model: keras.Model,
    source: data.Source,
    *,
    transform: kapps.EvalTransform,
    batch_size: int = 64,
    from_logits: bool = False,
) -> Evaluation:
    """Accuracy of a model that gives probabilities (or logits) on every image of a split, once."""
    if not len(source):
        raise InputError("there are no images to evaluate on")
    loader = pipeline.Loader(source, pipeline.EvaluationPixels(transform))
    devices = distribution.make_devices("none")
    step = devices.compiled(steps.Evaluation(model, from_logits))
    order = pipeline.evaluation_order(len(source), min(batch_size, len(source)))
    return _evaluated(devices, step, loader, order)


def _evaluated(
    devices: distribution.Devices,
    step: Callable[..., tf.Tensor],
    loader: pipeline.Loader,
    order: np.ndarray,
    beat: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """What a compiled `steps.Evaluation` finds; `beat` is told the batches that are done."""
    sums = np.zeros(4)
    for done, batch in enumerate(loader.batches(order), 1):
        sums += step(devices.batch([], *batch)).numpy()
        beat(done)
    loss, top1, top5, images = (float(x) for x in sums)
    return Evaluation(top1 / images, top5 / images, loss / images, int(images))


def run_epochs(
    loop: Loop,
    checkpoints: Checkpoints,
    metrics: Metrics,
    *,
    title: str,
    show: bool,
    save_every: int | None = None,
    stop: Request | None = None,
    beat: Callable[[int], None] = lambda step: None,
    scale: Any = None,
    best: Path | None = None,
    histograms: bool = False,
) -> None:
    """Trains from the step that `checkpoints` has restored to the recipe's last one.

    Args:
        loop: with the recipe.
        checkpoints: restored; save after each epoch.
        metrics: are told the figures.
        title: of what is shown.
        show: whether there is a progress bar.
        save_every: steps between checkpoints.
        stop: is looked at after each step.
        beat: is told the steps that are done.
        scale: of the learning rate: the variable that the schedule plateau lowers.
        best: file of the weights of the epoch with the highest validation accuracy.
        histograms: whether the metrics are told the weights.

    Raises:
        InputError: the loss is no number any more, or a checkpoint cannot be written.
        Stopped: there was a request to, and the state is saved.
    """
    recipe, state = loop.recipe, checkpoints.state
    images = loop.steps_per_epoch * loop.batch_size
    if not state.step:
        metrics.images("train/augmented", loop.augmented(16), 0)
    done = state.step * loop.batch_size
    with progress_bar(recipe.epochs * images, "img", initial=done, show=show) as bar:
        epochs = _Epochs(loop, checkpoints, metrics, bar, save_every, stop or Request(), beat)
        while state.epoch < recipe.epochs and not _is_enough(state.good_epochs, recipe):
            bar.set_description(f"{title} epoch {state.epoch + 1}/{recipe.epochs}")
            row = epochs.run()
            if scale is not None and recipe.schedule == "plateau":
                plateau = Plateau(recipe.factor, recipe.patience)
                lowered = plateau.update(PlateauState(**state.plateau), row["validation_top1"])
                state.plateau = dataclasses.asdict(lowered)
                scale.assign(lowered.scale)
            if best is not None and row["validation_top1"] > state.best_top1:
                with averaged(loop.average):
                    kapps.save_weights(loop.model, best, evaluation=loop.evaluation_transform)
            state.best_top1 = max(state.best_top1, row["validation_top1"])
            metrics.write("epoch", {"epoch": state.epoch, "step": state.step, **row})
            if histograms:
                weights = {v.path: np.asarray(v) for v in loop.model.trainable_variables}
                metrics.histograms(weights, state.epoch)
            checkpoints.save()
            if show:
                bar.write(
                    f"{title} epoch {state.epoch}: loss {row['train_loss']:.4f}, "
                    f"top-1 {row['train_top1']:.4f}; validation loss {row['validation_loss']:.4f}, "
                    f"top-1 {row['validation_top1']:.4f}; {row['images_per_second']:.0f} images/s",
                    file=sys.stderr,
                )
            epochs.end_if_asked()


class _Epochs:
    """Runs epochs, and ends between two steps where that is asked for."""

    def __init__(
        self,
        loop: Loop,
        checkpoints: Checkpoints,
        metrics: Metrics,
        bar: Any,
        save_every: int | None,
        stop: Request,
        beat: Callable[[int], None],
    ) -> None:
        self._loop, self._checkpoints, self._metrics = loop, checkpoints, metrics
        self._bar, self._save_every, self._stop, self._beat = bar, save_every, stop, beat
        self._asked, self._lost = False, 0
        self._batch = loop.batch_size

    def run(self) -> dict[str, float]:
        """Finishes the epoch that was begun; returns its figures, which the state then has."""
        loop, state = self._loop, self._checkpoints.state
        epoch, begun = state.epoch, time.monotonic()
        before = state.step
        self._train(epoch, state.step - epoch * loop.steps_per_epoch)
        seconds = time.monotonic() - begun
        rate = float(np.asarray(loop.optimizer.learning_rate))
        validation = loop.validate(lambda done: self._beat(state.step + done))
        if not math.isfinite(validation.loss):
            raise _diverged(state.step, "validation", self._checkpoints.last)
        state.validation = dataclasses.asdict(validation)
        images = loop.steps_per_epoch * self._batch
        row = {
            "train_loss": state.sums[0] / images,
            "train_top1": state.sums[1] / images,
            "validation_loss": validation.loss,
            "validation_top1": validation.top1,
            "learning_rate": rate,
            "images_per_second": (state.step - before) * self._batch / max(seconds, 1e-9),
        }
        good = loop.recipe.stop_at is not None and validation.top1 >= loop.recipe.stop_at
        state.good_epochs = state.good_epochs + 1 if good else 0
        state.sums = [0.0, 0.0]
        state.history.append({"epoch": epoch + 1, **row})
        return row

    def _train(self, epoch: int, first: int) -> None:
        loop, state = self._loop, self._checkpoints.state
        waiting: collections.deque[tf.Tensor] = collections.deque()
        noted = (state.step, state.sums, time.monotonic())
        shown = time.monotonic()
        for sums in loop.train_steps(epoch, first, self._flag):
            waiting.append(sums)
            if len(waiting) > 1:  # while the device computes the one after it
                self._collect(waiting.popleft())
            done = state.step + len(waiting)
            at_end = done == (epoch + 1) * loop.steps_per_epoch
            if not at_end and (self._asked or (self._save_every and not done % self._save_every)):
                self._drain(waiting)
                self._checkpoints.save()
                self.end_if_asked()
            if not state.step % _NOTED and state.step > noted[0]:
                noted = self._note(epoch, noted)
            if time.monotonic() - shown > _REFRESH_SECONDS:
                self._show()
                shown = time.monotonic()
        self._drain(waiting)
        self._show()

    def end_if_asked(self) -> None:
        """Raises `Stopped` once all workers know of a request; the state has just been saved."""
        if self._asked or (self._loop.devices.workers == 1 and self._stop.number is not None):
            # Only one of the workers may have been sent the signal.
            number = self._stop.number or signal.SIGTERM
            raise Stopped(int(number), f"step {self._checkpoints.state.step} is saved")

    def _flag(self) -> float:
        return 0.0 if self._stop.number is None else 1.0

    def _drain(self, waiting: collections.deque[tf.Tensor]) -> None:
        while waiting:
            self._collect(waiting.popleft())

    def _collect(self, sums: tf.Tensor) -> None:
        state = self._checkpoints.state
        loss, hits, asked = (float(x) for x in sums.numpy())
        state.step += 1
        if math.isfinite(loss):
            state.sums = [state.sums[0] + loss, state.sums[1] + hits]
            self._lost = 0
        else:
            # Numbers of 16 bits overflow now and then, and the step is left out.
            self._lost += 1
            if self._lost > (_OVERFLOWS if self._loop.overflows else 0):
                raise _diverged(state.step, "training", self._checkpoints.last)
        self._asked = self._asked or asked > 0
        self._beat(state.step)
        self._bar.update(self._batch)

    def _note(
        self, epoch: int, since: tuple[int, list[float], float]
    ) -> tuple[int, list[float], float]:
        """Writes the figures of the steps since the last such line."""
        state, now = self._checkpoints.state, time.monotonic()
        images = (state.step - since[0]) * self._batch
        self._metrics.write(
            "step",
            {
                "step": state.step,
                "epoch": epoch + 1,
                "train_loss": (state.sums[0] - since[1][0]) / images,
                "train_top1": (state.sums[1] - since[1][1]) / images,
                "learning_rate": float(np.asarray(self._loop.optimizer.learning_rate)),
                "images_per_second": images / max(now - since[2], 1e-9),
            },
        )
        return state.step, state.sums, now

    def _show(self) -> None:
        state = self._checkpoints.state
        images = (state.step - state.epoch * self._loop.steps_per_epoch) * self._batch
        if images:
            self._bar.set_postfix(
                loss=f"{state.sums[0] / images:.3f}", top1=f"{state.sums[1] / images:.3f}"
            )


def _is_enough(good_epochs: int, recipe: Recipe) -> bool:
    return recipe.stop_at is not None and good_epochs >= recipe.stop_patience


def _diverged(step: int, where: str, kept: int | None) -> InputError:
    last = "" if kept is None else f"; the state after step {kept} is kept"
    return InputError(
        f"the loss of {where} is no number any more at step {step}{last}; choose a smaller "
        "--learning_rate and another --workdir"
    )
