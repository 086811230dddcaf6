"""Trains a network on images: on a CPU, on several GPUs, or on several machines.

Running the same command again continues an interrupted run. Example:

  kapps-train --model=MobileNetV3Small --dataset=digits --recipe=digits --workdir=/tmp/run
"""

from __future__ import annotations

from absl import flags

from kapps.tools import cli

_MODEL = flags.DEFINE_string("model", None, "network, such as MobileNetV3Small")
_DATASET = flags.DEFINE_string(
    "dataset", None, "digits, synthetic, folder:PATH (a sub-folder a class), or a TFDS name"
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; several machines share it")
_RECIPE = flags.DEFINE_string("recipe", "default", "hyperparameters: default, digits or imagenet")
_STRATEGY = flags.DEFINE_string(
    "strategy", "none", "none, mirrored (all GPUs) or multi_worker (the machines of TF_CONFIG)"
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "images a step, over all replicas")
_EPOCHS = flags.DEFINE_integer("epochs", None, "passes over the training images")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "the highest of the schedule")
_SEED = flags.DEFINE_integer(
    "seed", 0, "of weights, order and augmentation", lower_bound=0, upper_bound=2**32 - 1
)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "height and width of the input, pixels")
_WEIGHTS = flags.DEFINE_string("weights", None, "file of weights to start from")


def main(argv: list[str]) -> int | None:
    """Runs `training.train` with the flags' values, and prints the result."""
    model, dataset, workdir = cli.required(_MODEL, _DATASET, _WORKDIR)
    from kapps.tools import runs, training

    result = training.train(
        runs.TrainConfig(
            model=model,
            dataset=dataset,
            workdir=workdir,
            data_dir=_DATA_DIR.value,
            recipe=_RECIPE.value,
            strategy=_STRATEGY.value,
            batch_size=_BATCH_SIZE.value,
            epochs=_EPOCHS.value,
            learning_rate=_LEARNING_RATE.value,
            seed=_SEED.value,
            image_size=_IMAGE_SIZE.value,
            weights=_WEIGHTS.value,
        )
    )
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
