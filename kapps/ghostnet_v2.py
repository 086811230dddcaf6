"""GhostNetV2: Tang et al. 2022, "GhostNetV2: Enhance Cheap Operation with Long-Range Attention".

Layer names are those of timm's `ghostnetv2_*`, to whose logits the networks are equal.
"""

from __future__ import annotations

import functools

from keras import KerasTensor, layers

from kapps import _layers
from kapps._layers import act, bn, conv, depthwise, make_divisible
from kapps._mbconv import check_alpha
from kapps._model import model
from kapps._network import Architecture, Net, hidden_head
from kapps.custom_layers import NearestDoubling2D

# Table 1 of Han et al. 2020, "GhostNet: More Features from Cheap Operations", whose bottlenecks V2
# has too, stage by stage: kernel, expanded channels, filters, squeeze-and-excitation
_STAGES = (
    ((3, 16, 16, False),),
    ((3, 48, 24, False), (3, 72, 24, False)),
    ((5, 72, 40, True), (5, 120, 40, True)),
    (
        (3, 240, 80, False),
        (3, 200, 80, False),
        (3, 184, 80, False),
        (3, 184, 80, False),
        (3, 480, 112, True),
        (3, 672, 112, True),
    ),
    (
        (5, 672, 160, True),
        (5, 960, 160, False),
        (5, 960, 160, True),
        (5, 960, 160, False),
        (5, 960, 160, True),
    ),
)


def _ghost(x: KerasTensor, filters: int, path: str, activation: str = "linear") -> KerasTensor:
    """1x1, BN, act; and behind it what a depthwise 3x3, BN, act makes of that.

    Han et al. 2020, figure 2: half of the channels are cheap to make of the other half.
    """

    def end(x: KerasTensor, part: str) -> KerasTensor:
        x = bn(x, f"{path}.{part}.1")
        return x if activation == "linear" else act(x, activation, f"{path}.{part}.2")

    primary = end(conv(x, filters // 2, 1, f"{path}.primary_conv.0"), "primary_conv")
    cheap = end(depthwise(primary, 3, f"{path}.cheap_operation.0"), "cheap_operation")
    return layers.Concatenate(name=_layers.layer_name(f"{path}.concat"))([primary, cheap])


def _attention(x: KerasTensor, filters: int, path: str) -> KerasTensor:
    """2x2 mean, 1x1, BN, depthwise 1x5, BN, depthwise 5x1, BN, sigmoid, enlarged to the input.

    The paper's decoupled fully connected attention. The paper enlarges it bilinearly; the authors'
    code, whose weights are published, takes the nearest neighbour, and so does timm's.
    """
    y = _layers.avg_pool(x, 2, 2, f"{path}.pool")
    y = bn(conv(y, filters, 1, f"{path}.short_conv.0"), f"{path}.short_conv.1")
    y = bn(depthwise(y, (1, 5), f"{path}.short_conv.2"), f"{path}.short_conv.3")
    y = bn(depthwise(y, (5, 1), f"{path}.short_conv.4"), f"{path}.short_conv.5")
    y = act(y, "sigmoid", f"{path}.gate")
    return NearestDoubling2D(name=_layers.layer_name(f"{path}.doubling"))([y, x])


def _bottleneck(
    x: KerasTensor,
    net: Net,
    path: str,
    *,
    kernel: int,
    stride: int,
    expanded: int,
    filters: int,
    attention: bool,
    se_channels: int,
) -> KerasTensor:
    """Ghost [, times attention] [, depthwise, BN] [, SE], ghost without act, + shortcut.

    The shortcut is the input, or depthwise, BN, 1x1, BN of it where the shape changes.
    """
    shortcut = x
    x = _ghost(x, expanded, f"{path}.ghost1", "relu")
    if attention:
        gate = _attention(shortcut, expanded, f"{path}.ghost1")
        x = layers.Multiply(name=_layers.layer_name(f"{path}.ghost1.scale"))([x, gate])
    if stride > 1:
        x = bn(depthwise(x, kernel, f"{path}.conv_dw", stride=stride), f"{path}.bn_dw")
    if se_channels:
        x = _layers.se(x, se_channels, f"{path}.se", gate="hard_sigmoid")
    x = _ghost(x, filters, f"{path}.ghost2")
    if stride > 1 or filters != shortcut.shape[-1]:
        own = f"{path}.shortcut"
        shortcut = depthwise(shortcut, kernel, f"{own}.0", stride=stride)
        shortcut = conv(bn(shortcut, f"{own}.1"), filters, 1, f"{own}.2")
        shortcut = bn(shortcut, f"{own}.3")
    return net.add(x, shortcut, path)


def ghostnet_v2(alpha: float) -> Architecture:
    """A GhostNetV2 whose channels are multiplied by `alpha`."""

    def wide(channels: float) -> int:
        return make_divisible(channels * alpha, 4)

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = act(bn(conv(x, wide(16), 3, "conv_stem", stride=2), "bn1"), "relu", "act1")
        for i, j in net.blocks(map(len, _STAGES)):
            kernel, expanded, filters, se = _STAGES[i][j]
            x = _bottleneck(
                x,
                net,
                # timm counts the first block of a stage, which halves the map, as one of its own.
                f"blocks.{2 * i}.{j - 1}" if j else f"blocks.{max(2 * i - 1, 0)}.0",
                kernel=kernel,
                stride=2 if i and not j else 1,
                expanded=wide(expanded),
                filters=wide(filters),
                attention=i + j > 1,  # all but the first two
                se_channels=make_divisible(wide(expanded) / 4, 4) if se else 0,
            )
        path = f"blocks.{2 * len(_STAGES) - 1}.0"
        x = conv(x, wide(_STAGES[-1][-1][1]), 1, f"{path}.conv")
        return act(bn(x, f"{path}.bn1"), "relu", f"{path}.act1")

    head = functools.partial(hidden_head, filters=1280, activation="relu")
    return Architecture(features, head)


# The dropout is that of the authors' command: https://github.com/huawei-noah/Efficient-AI-Backbones,
# ghostnetv2_pytorch. The last attention halves a map of stride 32, which takes 33 pixels.
@model(dropout_rate=0.2, min_size=33)
def GhostNetV2(alpha: float = 1.0) -> Architecture:
    """GhostNetV2 of any width: 6,156,908 parameters, 167.0 million MACs at 224 px by default.

    `alpha`, above 0, multiplies the channels of all layers but the last hidden one, which are
    rounded to multiples of 4. Anything else raises `InputError`.
    """
    return ghostnet_v2(check_alpha("GhostNetV2", alpha))


@model(dropout_rate=0.2, min_size=33)
def GhostNetV2_130() -> Architecture:
    """GhostNetV2 1.3: 8,960,404 parameters, 269.3 million MACs at 224 px."""
    return ghostnet_v2(1.3)


@model(dropout_rate=0.2, min_size=33)
def GhostNetV2_160() -> Architecture:
    """GhostNetV2 1.6: 12,392,698 parameters, 398.6 million MACs at 224 px."""
    return ghostnet_v2(1.6)
