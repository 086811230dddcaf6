"""Fine-tunes a finished run of kapps-train for the phone: quantization-aware, pruned, clustered.

Running the same command again continues an interrupted run. The result is a run like any other:
kapps-evaluate takes it, kapps-convert, and kapps-tune itself. Examples:

  kapps-tune --init_from=/tmp/run --quantize_aware --workdir=/tmp/int8
  kapps-tune --init_from=/tmp/run --prune=0.5 --quantize_aware --workdir=/tmp/sparse
"""

from __future__ import annotations

from absl import flags

from kapps.tools import cli
from kapps.tools.streams import start_keras

_INIT_FROM = flags.DEFINE_string("init_from", None, "folder of the finished run to start from")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of this run")
_QUANTIZE_AWARE = flags.DEFINE_bool(
    "quantize_aware", False, "train with int8 emulated, and write model.tflite"
)
_PRUNE = flags.DEFINE_float("prune", None, "share of zeros in the kernels, above 0 and below 1")
_CLUSTER = flags.DEFINE_integer("cluster", None, "how many values a kernel keeps, 2 to 256")
_DATASET = flags.DEFINE_string("dataset", None, "as for kapps-train; by default that of the run")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie")
_RECIPE = flags.DEFINE_string(
    "recipe", None, "hyperparameters, as for kapps-train; by default those of the run"
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "images a step; by default the recipe's")
_EPOCHS = flags.DEFINE_integer("epochs", None, "passes over the images, each phase; by default 5")
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate",
    None,
    "the highest of the schedule; by default a tenth of the recipe's, and for --quantize_aware a "
    "hundredth",
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "of order, augmentation and clusters", lower_bound=0, upper_bound=2**32 - 1
)


def main(argv: list[str]) -> int | None:
    """Runs `tuning_run.tune` with the flags' values, and prints the result."""
    init_from, workdir = cli.required(_INIT_FROM, _WORKDIR)
    start_keras()
    from kapps.tflite import tuning_run

    result = tuning_run.tune(
        tuning_run.TuneConfig(
            init_from=init_from,
            workdir=workdir,
            prune=_PRUNE.value,
            cluster=_CLUSTER.value,
            quantize_aware=_QUANTIZE_AWARE.value,
            dataset=_DATASET.value,
            data_dir=_DATA_DIR.value,
            recipe=_RECIPE.value,
            batch_size=_BATCH_SIZE.value,
            epochs=_EPOCHS.value,
            learning_rate=_LEARNING_RATE.value,
            seed=_SEED.value,
        )
    )
    file = "" if result.file is None else f", int8 file {result.file:.4f}"
    print(
        f"{result.model}: validation top-1 {result.before:.4f} before, {result.tuned:.4f} tuned, "
        f"{result.restored:.4f} in float{file}; {result.sparsity:.0%} zeros; {result.weights}"
    )
    return None


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
