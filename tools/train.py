"""Trains a network on images: on a CPU, on several GPUs, or on several machines.

Running the same command again continues an interrupted run. Example:

  kapps-train --model=MobileNetV3Small --dataset=digits --recipe=digits --workdir=/tmp/run

A recipe names the settings of a paper, and each of them has a flag that stands above it. Exit
codes: 0; 2 for a mistake of the user's; 130, 143 and 129 when interrupted, and when ended by
SIGTERM or SIGHUP, of which the last two save first; 75 where another worker failed.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from absl import flags

from kapps.tools import cli, launch, recipe_flags, watch
from kapps.tools.streams import start_keras

# A flag for each field of runs.TrainConfig, by its name.
_MODEL = flags.DEFINE_string("model", None, "network, such as MobileNetV3Small")
_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "digits, synthetic, folder:PATH (a sub-folder a class), tfrecord:PATH, or a TFDS name",
)
flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie")
flags.DEFINE_boolean("nested", False, "whether folders within class folders are classes too")
flags.DEFINE_enum(
    "on_bad_image", "error", ["error", "skip"], "what to do about an image that cannot be read"
)
flags.DEFINE_float("max_bad_images", 0.01, "largest share of a split that is skipped")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; several machines share it")
_STRATEGY = flags.DEFINE_enum(
    "strategy",
    "none",
    ["none", "mirrored", "multi_worker", "tpu"],
    "one device, all GPUs, the machines of TF_CONFIG or of Slurm, or a TPU",
)
flags.DEFINE_integer(
    "seed", 0, "of weights, order and augmentation", lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_string("weights", None, "file of weights, or tag of published ones, to start from")
flags.DEFINE_string("arguments", None, "further ones of the network, such as depth=56,aux=True")
flags.DEFINE_integer(
    "checkpoint_every", None, "steps between checkpoints, beside that of each epoch", lower_bound=1
)
flags.DEFINE_integer("keep_checkpoints", 3, "how many last ones stay", lower_bound=1)
flags.DEFINE_string("teacher", None, "folder of a finished run to learn from too (distillation)")
flags.DEFINE_float("distillation", 0.5, "the teacher's share of the loss", 0, 1)
flags.DEFINE_float("temperature", 4.0, "that softens the teacher's answers", 0)
flags.DEFINE_boolean("histograms", False, "whether TensorBoard shows the weights of each epoch")
flags.DEFINE_float("start_timeout", 300, "seconds for all workers to be there", 0)
flags.DEFINE_float("step_timeout", 600, "seconds for a step of several workers", 0)

_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", None, "processes to start on this machine, for --strategy=multi_worker", 1
)
_MAX_RESTARTS = flags.DEFINE_integer("max_restarts", 0, "of --num_workers, after a crash", 0)
_LOCAL = flags.DEFINE_boolean(
    "local", False, "whether to shrink the recipe to seconds, to see that it runs"
)
_RECIPE = recipe_flags.define()


def main(argv: list[str]) -> int | None:
    """Runs `training.train` with the flags' values, and prints the result."""
    cli.required(_MODEL, _DATASET, _WORKDIR)
    recipe = recipe_flags.chosen(_RECIPE)
    if _NUM_WORKERS.value is not None and not launch.is_worker(os.environ):
        return launch.run_workers(
            [sys.executable, "-m", "kapps.tools.train", *sys.argv[1:], "--strategy=multi_worker"],
            _NUM_WORKERS.value,
            max_restarts=_MAX_RESTARTS.value,
            log_dir=Path(_WORKDIR.value or "") / "workers",
            environ=os.environ,
        )
    start_keras()
    from kapps.tools import preemption, runs, training

    names = {field.name for field in dataclasses.fields(runs.TrainConfig)} - {"recipe"}
    config = runs.TrainConfig(
        **{name: flags.FLAGS[name].value for name in names},
        recipe=recipe.local() if _LOCAL.value else recipe,
    )
    try:
        result = training.train(config)
    except preemption.Stopped as stopped:
        print(f"kapps-train: {stopped}", file=sys.stderr)
        return stopped.code
    except training.WorkerFailed as failed:
        print(f"kapps-train: error: {failed}", file=sys.stderr)
        return watch.WORKER_FAILED
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
