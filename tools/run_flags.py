"""The flags of the programs that train: one for each field of `runs.TrainConfig`, by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from absl import flags

if TYPE_CHECKING:
    from kapps.tools.recipe import Recipe
    from kapps.tools.runs import TrainConfig

    _Config = TypeVar("_Config", bound=TrainConfig)

flags.disclaim_key_flags()  # they belong to the program that asks for them


class RunFlags(NamedTuple):
    """Those that a program looks at itself."""

    model: flags.FlagHolder
    dataset: flags.FlagHolder
    workdir: flags.FlagHolder


def define(weights: str, strategies: Sequence[str], strategy: str) -> RunFlags:
    """Defines the flags, which belong to the calling program.

    Args:
        weights: help of --weights.
        strategies: the values of --strategy, the first one by default.
        strategy: what they mean.
    """
    model = flags.DEFINE_string("model", None, "network, such as MobileNetV3Small")
    dataset = flags.DEFINE_string(
        "dataset",
        None,
        "digits, synthetic, folder:PATH (a sub-folder a class), tfrecord:PATH, or a TFDS name",
    )
    workdir = flags.DEFINE_string("workdir", None, "folder of the run; several machines share it")
    flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie")
    flags.DEFINE_boolean("nested", False, "whether folders within class folders are classes too")
    flags.DEFINE_enum(
        "on_bad_image", "error", ["error", "skip"], "what to do about an image that cannot be read"
    )
    flags.DEFINE_float("max_bad_images", 0.01, "largest share of a split that is skipped")
    flags.DEFINE_enum("strategy", strategies[0], list(strategies), strategy)
    flags.DEFINE_integer("seed", 0, "of weights, order and augmentation", 0, 2**32 - 1)
    flags.DEFINE_string("weights", None, weights)
    flags.DEFINE_string("arguments", None, "further ones of the network, such as depth=56,aux=True")
    flags.DEFINE_integer(
        "checkpoint_every", None, "steps between checkpoints, beside that of each epoch", 1
    )
    flags.DEFINE_integer("keep_checkpoints", 3, "how many last ones stay", 1)
    flags.DEFINE_string(
        "teacher", None, "folder of a finished run to learn from too (distillation)"
    )
    flags.DEFINE_float("distillation", 0.5, "the teacher's share of the loss", 0, 1)
    flags.DEFINE_float("temperature", 4.0, "that softens the teacher's answers", 0)
    flags.DEFINE_string(
        "data_service", None, "grpc://HOST:PORT of a tf.data service that reads training images"
    )
    flags.DEFINE_boolean("histograms", False, "whether TensorBoard shows the weights of each epoch")
    return RunFlags(model, dataset, workdir)


def config(kind: type[_Config], recipe: Recipe) -> _Config:
    """The run that the flags describe; a field without a flag has its default."""
    names = {field.name for field in dataclasses.fields(kind)} & set(flags.FLAGS) - {"recipe"}
    return kind(**{name: flags.FLAGS[name].value for name in names}, recipe=recipe)
