"""Transfer learning: a network that knows other images learns new classes from few of them.

Two phases. "head": all but the classifier is frozen, batch norm too, so that what it makes of an
image is computed once; the classifier is fitted to that until it has converged. "all": everything
is trained, at a small share of the recipe's learning rate. A random classifier, trained together
with the rest at the full rate, would send gradients through it that have nothing to do with the
images, and destroy what the network knows; and batches of few images would spoil batch norm's
statistics.

A run's folder has what kapps.tools.runs lists, so that it is evaluated, converted and tuned on like
any other, and beside that

features/          while the head is fitted; kept where that is asked for
head.safetensors   the weights after the phase head
head.json          how well they do on the validation images, and the penalty that was chosen
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import warnings
from pathlib import Path

import keras
import numpy as np

import kapps
from kapps._errors import InputError
from kapps.tools import frozen, linear_head, pipeline, runs, training
from kapps.tools.checkpoints import State
from kapps.tools.cutting import cut_network
from kapps.tools.json_files import read_json, write_json
from kapps.tools.linear_head import Features, LinearHead
from kapps.tools.loop import colours, evaluation_transform
from kapps.tools.metrics import Metrics
from kapps.tools.recipe import Recipe
from kapps.tools.runs import Evaluation, TrainResult
from kapps.tools.transfer_config import TransferConfig, checked, start

_ANEW = "delete head.safetensors to fit the head anew"

# Numbers of 4 bytes: a GiB for the features of the images that the head is fitted to, and some
# arrays of their logits.
_MOST_NUMBERS = 2**28


def finetune(config: TransferConfig, *, progress: bool = True) -> TrainResult:
    """Trains a network from weights, from where an earlier run in the same folder has stopped.

    Args:
        config: the run.
        progress: whether to show progress bars and figures on stderr.

    Raises:
        InputError: an argument, a file or a folder is at fault; the message says which.
        Stopped: a signal has ended the run; what it has done is saved.
    """
    config = checked(config)
    with training.session(config, progress=progress) as begun:
        if begun.finished is not None:
            return begun.finished
        _check_begun(begun, config)
        if "head" in config.phases and not _head_file(config).is_file():
            _learn_head(begun, config)
        if not config.keep_features:
            shutil.rmtree(Path(config.workdir) / "features", ignore_errors=True)
        if config.phases == "head":
            return _finish(begun, config)
        return _learn_all(begun, config)


def _check_begun(begun: training.Session, config: TransferConfig) -> None:
    names = begun.dataset.class_names
    if len(names) < 2:
        raise InputError(f"{config.dataset} has a single class, {names[0]!r}; two are the least")
    if "head" in config.phases and begun.recipe.loss != "softmax":
        raise InputError(
            f"the phase head fits probabilities that sum to 1, and the recipe's loss is "
            f"{begun.recipe.loss}; give --loss=softmax, or --phases=all"
        )
    if config.phases == "head" and begun.recipe.adversarial_eps:
        raise InputError(
            "the phase head sees each image once, through a network that stays as it is, and "
            "attacks none; give --phases=head,all, or --adversarial_eps=0"
        )


def _head_file(config: TransferConfig) -> Path:
    return Path(config.workdir) / "head.safetensors"


def _learn_head(begun: training.Session, config: TransferConfig) -> None:
    """Fits the classifier, and writes head.safetensors and what it reaches."""
    model, workdir = _pretrained(begun, config), Path(config.workdir)
    recipe = training.evaluated_as_published(begun.recipe, model)
    transform = evaluation_transform(recipe)
    layer = frozen.classifier(model)  # whether it can be fitted is known before anything is written
    runs.write_settings(workdir, begun.settings, transform)
    if config.cut_at is not None:
        end = model.get_layer(model.features_layer)
        shape = " x ".join(str(side or "any") for side in end.output.shape[1:])
        _say(begun, f"{model.name} is cut behind {end.name}, of {shape}")
    if config.phases == "head" and begun.dataset.note:  # else training tells it
        _say(begun, begun.dataset.note)
    train, validation = _features(begun, config, model, recipe)
    head = linear_head.fit(
        train, validation, len(begun.dataset.class_names), balanced=recipe.class_weights
    )
    _assign(layer, head)
    learned, seen = (linear_head.evaluate(head, each) for each in (train, validation))
    _tell(begun, config, head, learned, seen)
    write_json(workdir / "head.json", dataclasses.asdict(seen) | {"strength": head.strength})
    kapps.save_weights(model, _head_file(config), evaluation=transform)


def _pretrained(begun: training.Session, config: TransferConfig) -> keras.Model:
    """The network with the weights that the run starts from, and a random classifier."""
    weights, is_cut = start(config)
    arguments, classes = begun.settings["arguments"], len(begun.dataset.class_names)
    keras.utils.set_random_seed(config.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*keeps its random start", UserWarning)
        if config.cut_at is None or is_cut:
            return training.logits_network(
                dataclasses.replace(config, weights=weights),
                begun.recipe,
                arguments,
                classes,
                cut_at=config.cut_at,
            )
        return cut_network(
            kapps.get_builder(config.model),
            {**arguments, "classifier_activation": None},
            config.cut_at,
            input_shape=training.input_shape(begun.recipe),
            classes=classes,
            whole_weights=weights,
        )


def _features(
    begun: training.Session, config: TransferConfig, model: keras.Model, recipe: Recipe
) -> tuple[Features, Features]:
    """Of the training images, or of as many as memory is meant for; and of the validation ones."""
    source, classes = begun.dataset.train, len(begun.dataset.class_names)
    assert recipe.image_size is not None
    cache = frozen.FeatureCache(
        Path(config.workdir) / "features",
        frozen.frozen_part(model),
        {name: begun.settings[name] for name in ("arguments", "cut_at", "dtype_policy", "model")},
        stop=begun.stop,
        show=begun.progress,
        bad=pipeline.BadImages(config.on_bad_image == "skip", config.max_bad_images),
    )
    numbers = (cache.model.output_shape[-1] + 3 * classes) * config.feature_copies
    most, chosen = max(_MOST_NUMBERS // numbers, 2 * classes), np.arange(len(source))
    if most < len(source):
        chosen = np.sort(np.random.default_rng(config.seed).permutation(len(source))[:most])
        _say(begun, f"head: fitted to {most} training images of {len(source)}, drawn by chance")
    seen = pipeline.EvaluationPixels(evaluation_transform(recipe))
    augmented = pipeline.TrainingPixels(recipe, recipe.image_size, **colours(model))
    passes: list[tuple[pipeline.Transform, int]] = [(seen, 0)]
    passes += [(augmented, epoch) for epoch in range(1, config.feature_copies)]
    train = cache.features("train", source, passes, chosen, config.seed)
    validation = begun.dataset.validation
    return train, cache.features("validation", validation, [(seen, 0)], np.arange(len(validation)))


def _assign(layer: keras.Layer, head: LinearHead) -> None:
    """Makes the fit the weights of a dense layer or of a convolution of 1x1."""
    layer.kernel.assign(head.kernel.reshape(layer.kernel.shape))
    layer.bias.assign(head.bias)


def _tell(
    begun: training.Session,
    config: TransferConfig,
    head: LinearHead,
    learned: Evaluation,
    seen: Evaluation,
) -> None:
    """What the head reaches, on stderr and in metrics.jsonl."""
    row = {
        "epoch": 1,
        "step": 0,
        "train_loss": learned.loss,
        "train_top1": learned.top1,
        "validation_loss": seen.loss,
        "validation_top1": seen.top1,
    }
    Metrics(Path(config.workdir), True, "head").write("epoch", row)
    end = f"{head.passes} passes" + (", not converged" * (not head.converged))
    _say(
        begun,
        f"{config.model} head: loss {learned.loss:.4f}, top-1 {learned.top1:.4f}; validation loss "
        f"{seen.loss:.4f}, top-1 {seen.top1:.4f}; penalty {head.strength:g}, {end}",
    )


def _say(begun: training.Session, text: str) -> None:
    if begun.progress:
        print(text, file=sys.stderr)


def _finish(begun: training.Session, config: TransferConfig) -> TrainResult:
    """The result of a run that ends with the head."""
    workdir = Path(config.workdir)
    model = training.logits_network(
        dataclasses.replace(config, weights=str(_head_file(config))),
        begun.recipe,
        begun.settings["arguments"],
        len(begun.dataset.class_names),
        cut_at=config.cut_at,
    )
    seen = read_json(workdir / "head.json", _ANEW)
    if seen is None:
        raise InputError(f"{workdir / 'head.json'} is missing; {_ANEW}")
    del seen["strength"]
    transform = evaluation_transform(training.evaluated_as_published(begun.recipe, model))
    return training.finish(config, model, None, State(validation=seen), transform, workdir)


def _learn_all(begun: training.Session, config: TransferConfig) -> TrainResult:
    """Trains the whole, from the fitted head or, without that phase, from the weights."""
    weights = str(_head_file(config)) if "head" in config.phases else start(config)[0]
    rate = begun.recipe.learning_rate * config.all_rate
    gentle = dataclasses.replace(
        begun,
        config=dataclasses.replace(config, weights=weights),
        recipe=dataclasses.replace(begun.recipe, learning_rate=rate),
    )
    with runs.no_random_classifier("the phase all needs one that fits: give --phases=head,all"):
        return training.run(
            gentle,
            cut_at=config.cut_at,
            frozen_statistics=config.freeze_statistics,
            rate_decay=config.rate_decay,
        )
