"""The training loop: one for a CPU, several GPUs and several machines.

What it leaves in the run's folder: kapps.tools.runs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

import kapps
from kapps._errors import InputError
from kapps.tools import data, pipeline, runs
from kapps.tools.checkpoints import Checkpoints, State
from kapps.tools.distribution import is_chief, make_strategy
from kapps.tools.json_files import write_json
from kapps.tools.optimization import make_optimizer, prepare_layers
from kapps.tools.progress import progress_bar
from kapps.tools.recipes import Recipe
from kapps.tools.runs import Evaluation, TrainConfig, TrainResult

if TYPE_CHECKING:
    from tqdm import tqdm

# float16 needs its loss scaled, and weights of 16 bits do not notice small steps: Micikevicius et
# al. 2018, "Mixed Precision Training", sections 3.1 and 3.2.
_DTYPE_POLICIES = ("float32", "float64", "mixed_bfloat16")
_REFRESH_SECONDS = 0.5  # of the progress bar; each refresh waits for the device


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
    """
    recipe = config.resolved()
    _check_dtype_policy()
    builder = kapps.get_builder(config.model)
    strategy = make_strategy(config.strategy)
    dataset = data.load(config.dataset, config.data_dir)
    workdir = Path(config.workdir)
    settings = runs.settings_of(config, recipe, dataset)
    runs.check_same_run(workdir, settings, (TrainConfig, type(recipe)))
    finished = runs.read_result(workdir, TrainResult)
    if finished is not None:
        if progress:
            print(f"{workdir}: this run is finished; its result is returned", file=sys.stderr)
        return finished
    check_batch_size(recipe.batch_size, dataset, config.dataset)

    with strategy.scope():
        keras.utils.set_random_seed(config.seed)
        model = builder(
            weights=config.weights,
            input_shape=(recipe.image_size, recipe.image_size, 3),
            classes=len(dataset.class_names),
            classifier_activation=None,
        )
        optimizer = make_optimizer(
            recipe, len(dataset.train) // recipe.batch_size, model.trainable_variables
        )
    prepare_layers(model, optimizer, recipe, strategy, config.seed)

    chief = is_chief(strategy)
    if chief:
        write_json(workdir / "config.json", settings)
    loop = Loop(strategy, model, optimizer, recipe, dataset, config.seed)
    checkpoints = Checkpoints(workdir / "checkpoints", strategy, model, optimizer)
    checkpoints.restore()
    state = checkpoints.state
    if progress and chief:
        if dataset.note:
            print(dataset.note, file=sys.stderr)
        if state.epoch:
            print(f"{workdir}: going on after epoch {state.epoch}", file=sys.stderr)
    run_epochs(loop, checkpoints, workdir / "tensorboard", config.model, progress and chief)

    weights = workdir / "weights.safetensors"
    result = TrainResult(
        model=config.model,
        weights=str(weights),
        epochs=state.epoch,
        steps=int(optimizer.iterations.numpy()),
        validation=runs.from_values(Evaluation, state.validation),
        history=tuple(state.history),
    )
    if chief:
        kapps.save_weights(model, weights)
        write_json(workdir / "result.json", dataclasses.asdict(result) | {"weights": weights.name})
    return result


def _check_dtype_policy() -> None:
    """Refuses those that train to something else than they promise.

    Raises:
        InputError: Keras's dtype policy is none of `_DTYPE_POLICIES`.
    """
    name = keras.config.dtype_policy().name
    if name not in _DTYPE_POLICIES:
        raise InputError(
            f"the dtype policy {name} (of keras.json's floatx, or of "
            "keras.config.set_dtype_policy) is not one to train in: small gradients and steps are "
            f"lost; choose {', '.join(_DTYPE_POLICIES)}"
        )


def check_batch_size(batch_size: int, dataset: data.Dataset, name: str) -> None:
    """Refuses a batch that the training images do not fill.

    Args:
        batch_size: images a step.
        dataset: with the images.
        name: how the user calls it.

    Raises:
        InputError: there are fewer.
    """
    if len(dataset.train) < batch_size:
        raise InputError(
            f"a batch of {batch_size} images is more than the {len(dataset.train)} training "
            f"images of {name}; choose a smaller --batch_size"
        )


def evaluate(
    model: keras.Model,
    source: data.Source,
    *,
    image_size: int,
    crop: float = 1.0,
    batch_size: int = 64,
    from_logits: bool = False,
) -> Evaluation:
    """Accuracy of a model that gives probabilities (or logits) on every image of a split, once."""
    if not len(source):
        raise InputError("there are no images to evaluate on")
    loader = pipeline.Loader(source, image_size, crop)
    step = _evaluation_step(tf.distribute.get_strategy(), model, from_logits)
    order = pipeline.evaluation_order(len(source), min(batch_size, len(source)))
    with loader.named_errors():
        sums = sum(step(batch).numpy().astype(float) for batch in loader.batches(order))
    return _evaluation(sums)


class Loop:
    """The steps of a run, and what they work on.

    The model gives logits. It may be one of tf_keras, with an optimizer of tf_keras.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        recipe: Recipe,
        dataset: data.Dataset,
        seed: int,
    ) -> None:
        self.strategy, self.model, self.optimizer = strategy, model, optimizer
        self.recipe, self.dataset, self.seed = recipe, dataset, seed
        image_size = model.input_shape[1]
        self._train_loader = pipeline.Loader(
            dataset.train, image_size, recipe.crop, recipe.augment, recipe.crop_area
        )
        self._validation_loader = pipeline.Loader(dataset.validation, image_size, recipe.crop)
        self._train_step = _train_step(strategy, model, optimizer, recipe)
        self._evaluation_step = _evaluation_step(strategy, model, from_logits=True)

    def train_epoch(self, epoch: int) -> Iterator[tf.Tensor]:
        """Runs the steps of an epoch; each yields the sums (loss, hits) over its batch."""
        recipe = self.recipe
        order = pipeline.training_order(
            self.seed, epoch, len(self.dataset.train), recipe.batch_size
        )
        with self._train_loader.named_errors():
            for batch in self._distributed(self._train_loader, order, epoch):
                yield self._train_step(batch)

    def validate(self) -> Evaluation:
        """Runs over the validation images, each once."""
        images, replicas = len(self.dataset.validation), self.strategy.num_replicas_in_sync
        batch_size = -(-min(self.recipe.batch_size, images) // replicas) * replicas
        order = pipeline.evaluation_order(images, batch_size)
        with self._validation_loader.named_errors():
            sums = np.zeros(4)
            for batch in self._distributed(self._validation_loader, order, 0):
                sums += self._evaluation_step(batch).numpy()
        return _evaluation(sums)

    def _distributed(self, loader: pipeline.Loader, order: np.ndarray, epoch: int) -> Any:
        def worker_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            share = pipeline.worker_share(
                order,
                context.input_pipeline_id,
                context.num_input_pipelines,
                context.num_replicas_in_sync,
            )
            return loader.batches(share, self.seed, epoch)

        return self.strategy.distribute_datasets_from_function(worker_batches)


def _train_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    recipe: Recipe,
) -> Callable[[Any], tf.Tensor]:
    """A step over a global batch; returns the sums (loss, hits) over its images."""

    def replica_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = tf.cast(model(images, training=True), tf.float32)
            classes = logits.shape[-1]
            targets = tf.one_hot(labels, classes) * (1 - recipe.label_smoothing)
            targets += recipe.label_smoothing / classes
            loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
            # The gradients are summed over the replicas.
            scaled = loss / recipe.batch_size
        variables = model.trainable_variables
        gradients = tape.gradient(scaled, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        hits = tf.reduce_sum(tf.cast(tf.argmax(logits, -1) == labels, tf.float32))
        return tf.stack([loss, hits])

    return _global_step(strategy, replica_step)


def _evaluation_step(
    strategy: tf.distribute.Strategy, model: keras.Model, from_logits: bool
) -> Callable[[Any], tf.Tensor]:
    """A step over a global batch; returns the sums (loss, hits, hits of five, images)."""

    def replica_step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        outputs = tf.cast(model(images, training=False), tf.float32)
        real = labels != pipeline.PADDING
        labels = tf.where(real, labels, 0)
        loss = keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits)
        five = min(5, outputs.shape[-1])
        sums = [
            loss,
            tf.argmax(outputs, -1) == labels,
            tf.math.in_top_k(labels, outputs, five),
            tf.ones_like(loss),
        ]
        return tf.stack([tf.reduce_sum(tf.where(real, tf.cast(x, tf.float32), 0)) for x in sums])

    return _global_step(strategy, replica_step)


def _global_step(
    strategy: tf.distribute.Strategy, replica_step: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
) -> Callable[[Any], tf.Tensor]:
    """A step of all replicas, compiled: the sum of what `replica_step` gives on each."""

    # No XLA: it makes the training of convolutions on a CPU ten times slower.
    @tf.function
    def step(batch: Any) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(replica_step, args=batch), axis=None)

    return step


def _evaluation(sums: np.ndarray) -> Evaluation:
    loss, top1, top5, images = (float(x) for x in sums)
    return Evaluation(top1 / images, top5 / images, loss / images, int(images))


def run_epochs(
    loop: Loop,
    checkpoints: Checkpoints,
    scalars: Path,
    title: str,
    show: bool,
) -> None:
    """Trains from the epoch that `checkpoints` has restored to the recipe's last one.

    TensorBoard's files go to the folder `scalars`.
    """
    recipe, state = loop.recipe, checkpoints.state
    steps = len(loop.dataset.train) // recipe.batch_size
    per_epoch = steps * recipe.batch_size
    writer = (
        tf.summary.create_file_writer(os.fspath(scalars))
        if is_chief(loop.strategy)
        else tf.summary.create_noop_writer()
    )
    with (
        writer.as_default(),
        progress_bar(
            recipe.epochs * per_epoch, "img", initial=state.epoch * per_epoch, show=show
        ) as bar,
    ):
        while state.epoch < recipe.epochs and not _is_enough(state, recipe):
            bar.set_description(f"{title} epoch {state.epoch + 1}/{recipe.epochs}")
            start = time.monotonic()
            loss, accuracy = _train_epoch(loop, state.epoch, bar)
            seconds = time.monotonic() - start
            validation = loop.validate()
            if not math.isfinite(validation.loss):
                raise _diverged(state.epoch)
            state.epoch += 1
            good = recipe.stop_at is not None and validation.top1 >= recipe.stop_at
            state.good_epochs = state.good_epochs + 1 if good else 0
            state.validation = dataclasses.asdict(validation)
            row = {
                "train_loss": loss,
                "train_top1": accuracy,
                "validation_loss": validation.loss,
                "validation_top1": validation.top1,
                "learning_rate": float(loop.optimizer.learning_rate.numpy()),
                "images_per_second": per_epoch / seconds,
            }
            state.history.append({"epoch": state.epoch, **row})
            for name, value in row.items():
                _write_scalar(name.replace("_", "/", 1), value, state.epoch)
            writer.flush()
            checkpoints.save()
            if show:
                bar.write(
                    f"{title} epoch {state.epoch}: loss {loss:.4f}, top-1 {accuracy:.4f}; "
                    f"validation loss {validation.loss:.4f}, top-1 {validation.top1:.4f}; "
                    f"{per_epoch / seconds:.0f} images/s",
                    file=sys.stderr,
                )


def _train_epoch(loop: Loop, epoch: int, bar: tqdm[Any]) -> tuple[float, float]:
    """Mean loss and accuracy over the images of an epoch, each as it was trained on."""
    sums, images = np.zeros(2), 0
    waiting: list[tf.Tensor] = []

    def collect() -> None:
        nonlocal images, sums
        for step_sums in waiting:
            sums += step_sums.numpy()
        if not np.isfinite(sums[0]):
            raise _diverged(epoch)
        done = len(waiting) * loop.recipe.batch_size
        images += done
        waiting.clear()
        bar.set_postfix(
            loss=f"{sums[0] / images:.3f}", top1=f"{sums[1] / images:.3f}", refresh=False
        )
        bar.update(done)

    last = time.monotonic()
    for step_sums in loop.train_epoch(epoch):
        waiting.append(step_sums)
        if time.monotonic() - last > _REFRESH_SECONDS:
            collect()
            last = time.monotonic()
    collect()
    return float(sums[0] / images), float(sums[1] / images)


def _is_enough(state: State, recipe: Recipe) -> bool:
    return recipe.stop_at is not None and state.good_epochs >= recipe.stop_patience


def _diverged(epoch: int) -> InputError:
    return InputError(
        f"the loss is no number any more in epoch {epoch + 1}; choose a smaller --learning_rate "
        "and another --workdir"
    )


def _write_scalar(name: str, value: float, step: int) -> None:
    """As `tf.summary.scalar`, which is part of the package tensorboard; the viewer is optional."""
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    )
    tf.summary.write(name, tf.constant(value, tf.float32), step, metadata)
