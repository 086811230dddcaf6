"""Trains a network on images: on a CPU, on several GPUs, or on several machines.

Running the same command again continues an interrupted run. Example:

  kapps-train --model=MobileNetV3Small --dataset=digits --recipe=digits --workdir=/tmp/run
"""

from __future__ import annotations

import dataclasses

from absl import flags

from kapps.tools import cli
from kapps.tools.streams import start_keras

# A flag for each field of runs.TrainConfig, by its name.
_MODEL = flags.DEFINE_string("model", None, "network, such as MobileNetV3Small")
_DATASET = flags.DEFINE_string(
    "dataset", None, "digits, synthetic, folder:PATH (a sub-folder a class), or a TFDS name"
)
flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; several machines share it")
flags.DEFINE_string("recipe", "default", "hyperparameters: default, digits or imagenet")
flags.DEFINE_string(
    "strategy", "none", "none, mirrored (all GPUs) or multi_worker (the machines of TF_CONFIG)"
)
flags.DEFINE_integer("batch_size", None, "images a step, over all replicas")
flags.DEFINE_integer("epochs", None, "passes over the training images")
flags.DEFINE_float("learning_rate", None, "the highest of the schedule")
flags.DEFINE_integer(
    "seed", 0, "of weights, order and augmentation", lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_integer("image_size", None, "height and width of the input, pixels")
flags.DEFINE_string("weights", None, "file of weights to start from")


def main(argv: list[str]) -> int | None:
    """Runs `training.train` with the flags' values, and prints the result."""
    cli.required(_MODEL, _DATASET, _WORKDIR)
    start_keras()
    from kapps.tools import runs, training

    names = (field.name for field in dataclasses.fields(runs.TrainConfig))
    config = runs.TrainConfig(**{name: flags.FLAGS[name].value for name in names})
    result = training.train(config)
    validation = result.validation
    print(
        f"{result.model}: validation top-1 {validation.top1:.4f}, top-5 {validation.top5:.4f} on "
        f"{validation.images} images after {result.epochs} epochs; {result.weights}"
    )
    return None


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
