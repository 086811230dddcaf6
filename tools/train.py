"""Trains a network on images: on a CPU, on several GPUs, or on several machines.

Running the same command again continues an interrupted run. Example:

  kapps-train --model=MobileNetV3Small --dataset=digits --recipe=digits --workdir=/tmp/run

A recipe names the settings of a paper, and each of them has a flag that stands above it. Exit
codes: 0; 2 for a mistake of the user's; 130, 143 and 129 when interrupted, and when ended by
SIGTERM or SIGHUP, of which the last two save first; 75 where another worker failed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from absl import flags

from kapps.tools import cli, launch, recipe_flags, run_flags, watch
from kapps.tools.streams import start_keras

_MODEL, _DATASET, _WORKDIR = run_flags.define(
    "file of weights, or tag of published ones, to start from",
    ("none", "mirrored", "multi_worker", "tpu"),
    "one device, all GPUs, the machines of TF_CONFIG or of Slurm, or a TPU",
)
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
    from kapps.tools import runs, training

    config = run_flags.config(runs.TrainConfig, recipe.local() if _LOCAL.value else recipe)
    try:
        result = training.train(config)
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
