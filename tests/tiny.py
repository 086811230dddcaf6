"""Small networks for the tests of training, with all that the loop treats specially.

Importing this module makes them known to kapps; as a program it trains one, in a process of its
own: `python tests/tiny.py DEVICES key=value ...` with the fields of a TrainConfig.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path

import keras
import tensorflow as tf
from keras import KerasTensor

from kapps._layers import act, bn, conv, depthwise
from kapps._model import model
from kapps._network import Architecture, Net
from kapps.tools import training
from kapps.tools.recipes import RECIPES
from kapps.tools.runs import TrainConfig


def _features(x: KerasTensor, net: Net) -> KerasTensor:
    x = act(bn(conv(x, 8, 3, "stem", stride=2), "bn1"), "silu", "act1")
    y = bn(depthwise(x, 3, "depthwise"), "bn2")
    x = net.add(y, x, "block")
    return act(bn(conv(x, 16, 3, "last", stride=2), "bn3"), "silu", "act3")


@model(size=32, min_size=8)
def TinyNet() -> Architecture:
    """Batch norm and depthwise convolution, and nothing random.

    It is smooth: a ReLU can turn a rounding error near zero into another gradient.
    """
    return Architecture(_features)


@model(size=32, min_size=8, dropout_rate=0.3)
def TinyDropNet() -> Architecture:
    """The same with dropout."""
    return Architecture(_features)


# SGD, since Adam divides by the size of the gradient, and so makes rounding errors of gradients
# that are near zero as large as any other step.
PLAIN = dataclasses.replace(
    RECIPES["default"],
    optimizer="sgd",
    learning_rate=0.05,
    weight_decay=1e-3,
    train_crop="none",
    flip=0.0,
    crop=0.875,
    batch_size=40,
    epochs=2,
    image_size=16,
    bn_momentum=0.99,
)

# Everything that could differ after a restart: moments, dropout, augmentation, schedule.
RANDOM = dataclasses.replace(
    PLAIN,
    optimizer="adamw",
    learning_rate=3e-3,
    train_crop="random",
    flip=0.5,
    policy="randaugment",
    cutmix=1.0,
    average=0.9,
    epochs=6,
)

# What depends on the batch as a whole, on each image, and on all steps before.
SHARED = dataclasses.replace(
    PLAIN, train_crop="random", flip=0.5, policy="randaugment", mixup=0.2, cutmix=1.0, average=0.9
)


def main(devices: int, arguments: dict[str, str]) -> None:
    """Trains, once by each strategy, and leaves a digest of this very process's weights."""
    if devices > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * devices,
        )
    built: list[keras.Model] = []
    build = training.build_network

    def recorded(*arguments: object, **keywords: object) -> keras.Model:
        built.append(build(*arguments, **keywords))
        return built[-1]

    training.build_network = recorded
    worker = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    for strategy in arguments["strategy"].split(","):
        workdir = arguments["workdir"].replace("STRATEGY", strategy)
        training.train(
            TrainConfig(
                model=arguments["model"],
                dataset="synthetic",
                recipe={"random": RANDOM, "shared": SHARED}[arguments["recipe"]],
                workdir=workdir,
                strategy=strategy,
            ),
            progress=False,
        )
        digest = hashlib.sha256(b"".join(w.tobytes() for w in built[-1].get_weights()))
        Path(workdir, f"digest{worker}").write_text(digest.hexdigest())


if __name__ == "__main__":
    main(int(sys.argv[1]), dict(argument.split("=", 1) for argument in sys.argv[2:]))
