"""EfficientNet: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for CNNs"; and Lite.

Lite is the same made fit for phones by its authors: no squeeze-and-excitation, ReLU6 for swish, and
a stem and a head that do not scale
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).

Layer names are those of timm's `tf_efficientnet_*`, to whose logits the networks are equal: the
reference was born in TensorFlow, hence its padding and its batch norm epsilon.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from keras import KerasTensor

from kapps import _layers
from kapps._errors import InputError, is_number, is_whole
from kapps._layers import act, bn, conv, make_divisible
from kapps._mbconv import MBConv
from kapps._model import HALF, model
from kapps._network import Architecture, Net

_Stage = tuple[int, int, int, int, int]

# Table 1 of the paper: repeats, kernel, stride, expansion, filters
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

MIN_SIZE = 32  # pixels: the last feature map is then a single one

norm = functools.partial(bn, epsilon=1e-3, momentum=0.99)


def plan(width: float, depth: float, lite: bool = False) -> tuple[int, list[_Stage], int]:
    """Filters of the stem, table 1, filters of the head, at that width and depth."""
    stages = [
        (math.ceil(n * depth), kernel, stride, expansion, make_divisible(filters * width))
        for n, kernel, stride, expansion, filters in _STAGES
    ]
    if not lite:
        return make_divisible(32 * width), stages, make_divisible(1280 * width)
    for i in (0, -1):  # Lite fixes the repeats of the first and the last stage too
        stages[i] = (1, *stages[i][1:])
    return 32, stages, 1280


def check_scaling(builder: str, width: float, depth: float, resolution: int) -> None:
    """Raises InputError unless the three make a network."""
    for name, factor in (("width", width), ("depth", depth)):
        if not is_number(factor) or factor <= 0:
            raise InputError(f"{builder}: {name} must be a number above 0, not {factor!r}")
    if not is_whole(resolution) or resolution < MIN_SIZE:
        raise InputError(
            f"{builder}: resolution must be a whole number of pixels, {MIN_SIZE} or more, "
            f"not {resolution!r}"
        )


def efficientnet(width: float, depth: float, *, lite: bool = False) -> Architecture:
    """An EfficientNet, or a Lite, whose channels and repeats are scaled by `width` and `depth`.

    Squeeze-and-excitation reduces to a quarter of what enters the block, before its expansion.
    """
    stem, stages, head = plan(width, depth, lite)
    activation = "relu6" if lite else "silu"
    block = MBConv("same", norm, functools.partial(_layers.se, activation=activation))

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = conv(x, stem, 3, "conv_stem", stride=2, padding="same")
        x = act(norm(x, "bn1"), activation, "act1")
        for i, j in net.blocks(repeats for repeats, *_ in stages):
            _, kernel, stride, expansion, filters = stages[i]
            channels = x.shape[-1]
            x = block(
                x,
                net,
                f"blocks.{i}.{j}",
                kernel=kernel,
                stride=stride if j == 0 else 1,
                expanded=channels * expansion,
                filters=filters,
                activation=activation,
                se_channels=0 if lite else channels // 4,
            )
        x = conv(x, head, 1, "conv_head")
        return act(norm(x, "bn2"), activation, "act2")

    return Architecture(features, drop_path_schedule="efficientnet")


@model(dropout_rate=0.2)
def EfficientNet(width: float = 1.0, depth: float = 1.0, resolution: int = 224) -> Architecture:
    """EfficientNet, freely scaled: 5,288,548 parameters, 385.8 million MACs by default (B0).

    `width` multiplies the channels, to the nearest multiple of 8, `depth` the blocks of a stage,
    rounded up; both are above 0. `resolution` is the default height and width of the input, 32
    pixels or more. `compound_scaling` and `scaling_for_macs` find balanced ones. Others than these
    are an InputError.
    """
    check_scaling("EfficientNet", width, depth, resolution)
    return dataclasses.replace(efficientnet(width, depth), size=int(resolution))


# Width, depth, size and dropout are those of the authors' code, efficientnet_builder.py.


@model(dropout_rate=0.2)
def EfficientNetB0() -> Architecture:
    """EfficientNet-B0: 5,288,548 parameters, 385.8 million MACs at 224 px."""
    return efficientnet(1.0, 1.0)


@model(size=240, dropout_rate=0.2)
def EfficientNetB1() -> Architecture:
    """EfficientNet-B1: 7,794,184 parameters, 686.8 million MACs at 240 px."""
    return efficientnet(1.0, 1.1)


@model(size=260, dropout_rate=0.3)
def EfficientNetB2() -> Architecture:
    """EfficientNet-B2: 9,109,994 parameters, 993.6 million MACs at 260 px."""
    return efficientnet(1.1, 1.2)


@model(size=300, dropout_rate=0.3)
def EfficientNetB3() -> Architecture:
    """EfficientNet-B3: 12,233,232 parameters, 1,827.1 million MACs at 300 px."""
    return efficientnet(1.2, 1.4)


@model(size=380, dropout_rate=0.4)
def EfficientNetB4() -> Architecture:
    """EfficientNet-B4: 19,341,616 parameters, 4,393.8 million MACs at 380 px."""
    return efficientnet(1.4, 1.8)


@model(size=456, dropout_rate=0.4)
def EfficientNetB5() -> Architecture:
    """EfficientNet-B5: 30,389,784 parameters, 10,266.4 million MACs at 456 px."""
    return efficientnet(1.6, 2.2)


@model(size=528, dropout_rate=0.5)
def EfficientNetB6() -> Architecture:
    """EfficientNet-B6: 43,040,704 parameters, 19,067.6 million MACs at 528 px."""
    return efficientnet(1.8, 2.6)


@model(size=600, dropout_rate=0.5)
def EfficientNetB7() -> Architecture:
    """EfficientNet-B7: 66,347,960 parameters, 37,745.9 million MACs at 600 px."""
    return efficientnet(2.0, 3.1)


@model(dropout_rate=0.2, mean=HALF, std=HALF)
def EfficientNetLite(width: float = 1.0, depth: float = 1.0, resolution: int = 224) -> Architecture:
    """EfficientNet-Lite, freely scaled: 4,652,008 parameters by default (Lite0).

    The parameters are those of `EfficientNet`; stem and head, and the blocks of the first and of
    the last stage, stay as they are.
    """
    check_scaling("EfficientNetLite", width, depth, resolution)
    return dataclasses.replace(efficientnet(width, depth, lite=True), size=int(resolution))


# The authors' code evaluates Lite3 and Lite4 at 280 and 300 px; these are the sizes of timm.


@model(dropout_rate=0.2, mean=HALF, std=HALF)
def EfficientNetLite0() -> Architecture:
    """EfficientNet-Lite0: 4,652,008 parameters, 385.2 million MACs at 224 px."""
    return efficientnet(1.0, 1.0, lite=True)


@model(size=240, dropout_rate=0.2, mean=HALF, std=HALF)
def EfficientNetLite1() -> Architecture:
    """EfficientNet-Lite1: 5,416,680 parameters, 600.2 million MACs at 240 px."""
    return efficientnet(1.0, 1.1, lite=True)


@model(size=260, dropout_rate=0.3, mean=HALF, std=HALF)
def EfficientNetLite2() -> Architecture:
    """EfficientNet-Lite2: 6,092,072 parameters, 859.7 million MACs at 260 px."""
    return efficientnet(1.1, 1.2, lite=True)


@model(size=300, dropout_rate=0.3, mean=HALF, std=HALF)
def EfficientNetLite3() -> Architecture:
    """EfficientNet-Lite3: 8,197,096 parameters, 1,607.6 million MACs at 300 px."""
    return efficientnet(1.2, 1.4, lite=True)


@model(size=380, dropout_rate=0.3, mean=HALF, std=HALF)
def EfficientNetLite4() -> Architecture:
    """EfficientNet-Lite4: 13,006,568 parameters, 3,943.6 million MACs at 380 px."""
    return efficientnet(1.4, 1.8, lite=True)
