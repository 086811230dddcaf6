"""From a folder of pictures to an Android app: trains, quantizes, verifies, measures and packs.

A network with published weights learns the classes of the folder, as by kapps-finetune. Its int8
file is taken if it loses no more than --target_loss of the accuracy, else quantization-aware
training is tried, else float16. The output has the file, its labels, a report, a model card and an
Android project. Running the same command again goes on where it was. Example:

  kapps-ship --dataset=folder:flowers --model=MobileNetV4ConvSmall --output=flowers_app
"""

from __future__ import annotations

import sys

from absl import flags

from kapps._errors import printable
from kapps.tools import cli, recipe_flags
from kapps.tools.streams import start_keras

_DATASET = flags.DEFINE_string(
    "dataset", None, "folder:PATH (a sub-folder a class), or what else kapps-train takes"
)
_MODEL = flags.DEFINE_string("model", None, "network, such as MobileNetV4ConvSmall")
_WEIGHTS = flags.DEFINE_string(
    "weights",
    "imagenet",
    "to start from: imagenet, the tag of other published ones, a file, or the folder of a run, "
    "which brings its network (then leave --model out)",
)
_OUTPUT = flags.DEFINE_string("output", None, "folder for all that is made")
_TARGET_LOSS = flags.DEFINE_float(
    "target_loss", 0.01, "share of top-1 that int8 may lose on the validation images", 0, 1
)
_DEVICE = flags.DEFINE_string(
    "device", None, "where latency is measured, as for kapps-benchmark: host, adb, ssh:HOST"
)
_BENCHMARK_BINARY = flags.DEFINE_string("benchmark_binary", None, "benchmark_model for the device")
_WEB = flags.DEFINE_boolean("web", False, "whether to make a page that classifies pictures as well")
_LITERTJS = flags.DEFINE_string(
    "litertjs", "node_modules", "folder in which npm has put @litertjs/core, for --web"
)
_PACKAGE = flags.DEFINE_string("package", "com.example.classifier", "name of the Android app")
_TITLE = flags.DEFINE_string("title", None, "of the app; by default the network's name")
_AUTHOR = flags.DEFINE_string("author", "", "for the metadata and the card")
_LICENCE = flags.DEFINE_string(
    "licence", None, "of the model, as an SPDX identifier; by default that of published weights"
)
_DATA_LICENCE = flags.DEFINE_string("data_licence", "", "of the pictures, for the card")
flags.DEFINE_string("arguments", None, "further ones of the network, such as alpha=0.5")
flags.DEFINE_string("data_dir", None, "where the TensorFlow data sets lie")
flags.DEFINE_boolean("nested", False, "whether folders within class folders are classes too")
flags.DEFINE_enum(
    "on_bad_image", "error", ["error", "skip"], "what to do about an image that cannot be read"
)
flags.DEFINE_integer("seed", 0, "of weights, order and augmentation", 0, 2**32 - 1)
flags.DEFINE_enum("phases", "head,all", ["head", "head,all", "all"], "what is trained, in turn")
flags.DEFINE_string("cut_at", None, "where the network ends, as for kapps-finetune")
_RECIPE = recipe_flags.define()


def main(argv: list[str]) -> int | None:
    """Runs `shipping.ship` with the flags' values, and prints what came of it."""
    dataset, output = cli.required(_DATASET, _OUTPUT)
    recipe = recipe_flags.chosen(_RECIPE)
    start_keras()
    from kapps.tflite import shipping
    from kapps.tools.transfer_config import TransferConfig

    own = ("arguments", "data_dir", "nested", "on_bad_image", "seed", "phases", "cut_at")
    training = TransferConfig(
        _MODEL.value or "",
        dataset,
        "",
        recipe=recipe,
        weights=_WEIGHTS.value,
        **{name: flags.FLAGS[name].value for name in own},
    )
    done = shipping.ship(
        shipping.ShipConfig(
            training,
            output,
            target_loss=_TARGET_LOSS.value,
            device=_DEVICE.value,
            binary=_BENCHMARK_BINARY.value,
            package=_PACKAGE.value,
            title=_TITLE.value,
            author=_AUTHOR.value,
            licence=_LICENCE.value,
            data_licence=_DATA_LICENCE.value,
            litertjs=_LITERTJS.value if _WEB.value else None,
        ),
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    project = f"{output}/android: {'the app' if done.new_project else 'the model in the app'}"
    print(
        f"{printable(done.file)}: {done.chosen.variant}, top-1 {done.chosen.top1:.4f} on "
        f"{done.chosen.images} held-out images, {done.chosen.size_bytes / 2**20:.2f} MiB\n"
        f"{printable(project)}; {printable(output)}/MODEL_CARD.md"
    )
    return None


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
