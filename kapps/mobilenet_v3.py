"""MobileNetV3: Howard et al. 2019, "Searching for MobileNetV3".

Layer names are those of timm's `mobilenetv3_*`, to whose logits the networks are equal.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from keras import KerasTensor

from kapps import _layers
from kapps._layers import act, bn, conv, make_divisible
from kapps._mbconv import MBConv, check_alpha
from kapps._model import model
from kapps._network import Architecture, Net, hidden_head

_Block = tuple[int, int, int, bool, str, int]

# Table 1 of the paper, a block a tuple, stage by stage:
# kernel, expanded channels, filters, squeeze-and-excitation, activation, stride
_LARGE: Sequence[Sequence[_Block]] = (
    ((3, 16, 16, False, "relu", 1),),
    ((3, 64, 24, False, "relu", 2), (3, 72, 24, False, "relu", 1)),
    (
        (5, 72, 40, True, "relu", 2),
        (5, 120, 40, True, "relu", 1),
        (5, 120, 40, True, "relu", 1),
    ),
    (
        (3, 240, 80, False, "hard_silu", 2),
        (3, 200, 80, False, "hard_silu", 1),
        (3, 184, 80, False, "hard_silu", 1),
        (3, 184, 80, False, "hard_silu", 1),
    ),
    ((3, 480, 112, True, "hard_silu", 1), (3, 672, 112, True, "hard_silu", 1)),
    (
        (5, 672, 160, True, "hard_silu", 2),
        (5, 960, 160, True, "hard_silu", 1),
        (5, 960, 160, True, "hard_silu", 1),
    ),
)

# Table 2 of the paper, likewise.
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


def mobilenet_v3(
    stages: Sequence[Sequence[_Block]], head_filters: int, alpha: float
) -> Architecture:
    """A MobileNetV3 of these stages, whose channels are multiplied by `alpha`.

    `head_filters` is the width of the last hidden layer, which is not scaled.
    """
    block = MBConv("symmetric", bn, functools.partial(_layers.se, gate="hard_sigmoid"))

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        # timm keeps the stem of narrow ones: https://github.com/huggingface/pytorch-image-models/
        # blob/main/timm/models/mobilenetv3.py, `fix_stem`
        x = conv(x, 16 if alpha < 0.75 else make_divisible(16 * alpha), 3, "conv_stem", stride=2)
        x = act(bn(x, "bn1"), "hard_silu", "act1")
        unscaled = 16  # the channels of x at alpha 1, by which the table expands
        for i, j in net.blocks(map(len, stages), behind=1):  # the 1x1, timm's last block
            kernel, expanded, filters, se, activation, stride = stages[i][j]
            expanded = make_divisible(x.shape[-1] * expanded / unscaled)
            x = block(
                x,
                net,
                f"blocks.{i}.{j}",
                kernel=kernel,
                stride=stride,
                expanded=expanded,
                filters=make_divisible(filters * alpha),
                activation=activation,
                se_channels=make_divisible(expanded / 4) if se else 0,
            )
            unscaled = filters
        path = f"blocks.{len(stages)}.0"
        x = conv(x, make_divisible(stages[-1][-1][1] * alpha), 1, f"{path}.conv")
        return act(bn(x, f"{path}.bn1"), "hard_silu", f"{path}.act1")

    head = functools.partial(hidden_head, filters=head_filters, activation="hard_silu")
    return Architecture(features, head, drop_path_schedule="efficientnet")


# The dropout is that of section 6.1 of the paper.
@model(dropout_rate=0.2)
def MobileNetV3Small(alpha: float = 1.0) -> Architecture:
    """MobileNetV3-Small: 2,542,856 parameters, 56.5 million MACs at 224 px by default.

    `alpha`, above 0, multiplies the channels of all layers but the last hidden one and, below 0.75,
    the stem; they are rounded to multiples of 8. Anything else raises `InputError`.
    """
    return mobilenet_v3(_SMALL, 1024, check_alpha("MobileNetV3Small", alpha))


@model(dropout_rate=0.2)
def MobileNetV3Small_050() -> Architecture:
    """MobileNetV3-Small 0.5: 1,593,224 parameters, 24.2 million MACs at 224 px."""
    return mobilenet_v3(_SMALL, 1024, 0.5)


@model(dropout_rate=0.2)
def MobileNetV3Small_075() -> Architecture:
    """MobileNetV3-Small 0.75: 2,041,872 parameters, 43.4 million MACs at 224 px."""
    return mobilenet_v3(_SMALL, 1024, 0.75)


@model(dropout_rate=0.2)
def MobileNetV3Large(alpha: float = 1.0) -> Architecture:
    """MobileNetV3-Large: 5,483,032 parameters, 216.6 million MACs at 224 px by default.

    `alpha` acts as in `MobileNetV3Small`.
    """
    return mobilenet_v3(_LARGE, 1280, check_alpha("MobileNetV3Large", alpha))


@model(dropout_rate=0.2)
def MobileNetV3Large_075() -> Architecture:
    """MobileNetV3-Large 0.75: 3,993,528 parameters, 154.6 million MACs at 224 px."""
    return mobilenet_v3(_LARGE, 1280, 0.75)
