"""MobileNetV3: Howard et al. 2019, "Searching for MobileNetV3".

Layer names are those of timm's `mobilenetv3_small_100`, to whose logits the network is equal.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from keras import KerasTensor, layers

from kapps import _layers
from kapps._layers import act, bn, conv, make_divisible
from kapps._mbconv import MBConv
from kapps._model import Architecture, Net, model

_Block = tuple[int, int, int, bool, str, int]

# Table 2 of the paper, a block a tuple, stage by stage:
# kernel, expanded channels, filters, squeeze-and-excitation, activation, stride
_SMALL: Sequence[Sequence[_Block]] = (
    ((3, 16, 16, True, "relu", 2),),
    ((3, 72, 24, False, "relu", 2), (3, 88, 24, False, "relu", 1)),
    (
        (5, 96, 40, True, "hard_silu", 2),
        (5, 240, 40, True, "hard_silu", 1),
        (5, 240, 40, True, "hard_silu", 1),
    ),
    ((5, 120, 48, True, "hard_silu", 1), (5, 144, 48, True, "hard_silu", 1)),
    (
        (5, 288, 96, True, "hard_silu", 2),
        (5, 576, 96, True, "hard_silu", 1),
        (5, 576, 96, True, "hard_silu", 1),
    ),
)


def mobilenet_v3(stages: Sequence[Sequence[_Block]], head_filters: int) -> Architecture:
    """A MobileNetV3 of these stages; `head_filters` is the width of the last hidden layer."""
    block = MBConv("symmetric", bn, functools.partial(_layers.se, gate="hard_sigmoid"))

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = conv(x, 16, 3, "conv_stem", stride=2)
        x = act(bn(x, "bn1"), "hard_silu", "act1")
        total, done = sum(len(stage) for stage in stages), 0
        for i, stage in enumerate(stages):
            for j, (kernel, expanded, filters, se, activation, stride) in enumerate(stage):
                x = block(
                    x,
                    net,
                    f"blocks.{i}.{j}",
                    kernel=kernel,
                    stride=stride,
                    expanded=expanded,
                    filters=filters,
                    activation=activation,
                    se_channels=make_divisible(expanded / 4) if se else 0,
                    depth=done / total,
                )
                done += 1
        path = f"blocks.{len(stages)}.0"
        x = conv(x, stages[-1][-1][1], 1, f"{path}.conv")
        return act(bn(x, f"{path}.bn1"), "hard_silu", f"{path}.act1")

    def head(x: KerasTensor, net: Net) -> KerasTensor:
        x = _layers.global_pool(x, "global_pool", keepdims=True)
        x = act(conv(x, head_filters, 1, "conv_head", bias=True), "hard_silu", "act2")
        x = layers.Flatten(name="flatten")(x)
        return net.classifier(net.dropout(x), "classifier")

    return Architecture(features, head)


@model(dropout_rate=0.2)
def MobileNetV3Small() -> Architecture:
    """MobileNetV3-Small: 2,542,856 parameters, 56.5 million MACs at 224 px."""
    return mobilenet_v3(_SMALL, 1024)
