"""Transfer learning: a network that knows other images learns the classes of a data set.

The classifier is fitted first, to features that the rest, frozen, gives once for each image; then
the whole is trained at a tenth of the recipe's learning rate. Running the same command again
continues an interrupted run. Example:

  kapps-finetune --model=MobileNetV2 --weights=imagenet --dataset=folder:flowers --workdir=/tmp/run

Of few images like those that the weights were trained on, --phases=head may be all that is needed;
where they are of another kind, --cut_at=16 lets the network end earlier. Exit codes as of
kapps-train.
"""

from __future__ import annotations

from absl import flags

from kapps.tools import cli, recipe_flags, run_flags
from kapps.tools.streams import start_keras

_MODEL, _DATASET, _WORKDIR = run_flags.define(
    "to start from: imagenet, the tag of other published ones, a file, or the folder of a run, "
    "which brings its network (then leave --model out)",
    ("none", "mirrored"),
    "one device, or all GPUs for the phase all",
)

# A flag for each further field of transfer_config.TransferConfig.
flags.DEFINE_enum("phases", "head,all", ["head", "head,all", "all"], "what is trained, in turn")
flags.DEFINE_string(
    "cut_at", None, "where the network ends: a stride such as 16, or a block such as layer3"
)
flags.DEFINE_integer(
    "feature_copies", 1, "how often the head sees an image, from the second on augmented", 1
)
flags.DEFINE_boolean("keep_features", False, "whether the features stay on the disk")
flags.DEFINE_float("all_rate", 0.1, "of the learning rate: what the phase all has of it")
flags.DEFINE_float(
    "rate_decay", 1.0, "of a stage's learning rate: what the stage before it has (phase all)"
)
flags.DEFINE_boolean(
    "freeze_statistics", True, "whether batch norm stays in inference mode in the phase all"
)
_RECIPE = recipe_flags.define()


def main(argv: list[str]) -> int | None:
    """Runs `transfer.finetune` with the flags' values, and prints the result."""
    cli.required(_DATASET, _WORKDIR)
    recipe = recipe_flags.chosen(_RECIPE)
    start_keras()
    from kapps.tools import transfer, transfer_config

    result = transfer.finetune(run_flags.config(transfer_config.TransferConfig, recipe))
    seen = result.validation
    print(
        f"{result.model}: validation top-1 {seen.top1:.4f}, top-5 {seen.top5:.4f} on {seen.images} "
        f"images, by the head and {result.epochs} epochs; {result.weights}"
    )
    return None


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
