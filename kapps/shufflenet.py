"""ShuffleNet: Zhang et al. 2018, "ShuffleNet: An Extremely Efficient Convolutional Neural Network
for Mobile Devices".

Layer names are in the style of torchvision's `shufflenet_v2_*`. The network is that of the authors'
code, https://github.com/megvii-model/ShuffleNet-Series, but for the place of the shuffle, which is
the paper's, and for the classifier's bias.
"""

from __future__ import annotations

import functools

from keras import KerasTensor, layers

from kapps import _layers, custom_layers
from kapps._errors import InputError, is_number
from kapps._layers import act, bn, conv, depthwise
from kapps._model import model
from kapps._network import Architecture, Net, pooled_head

# Table 1 of the paper: output channels of stage 2, by groups; stages 3 and 4 have twice and four
# times as many
_FILTERS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}

# Channels of conv1, by scale. The paper has 24 at 1x and is silent on the others: these are of the
# authors' code, but for 0.25x, which it lacks. There 12 gives 13.3 million MACs with 3 groups, and
# table 2 prints 13; a scaled 6 would give 11.0.
_STEM = {0.25: 12, 0.5: 12, 1.0: 24, 1.5: 24, 2.0: 48}


def _unit(
    x: KerasTensor, filters: int, stride: int, groups: int, first_groups: int, path: str
) -> tuple[KerasTensor, KerasTensor]:
    """1x1, BN, ReLU, shuffle, 3x3 depthwise, BN, 1x1, BN; and the shortcut.

    Figure 2, b and c, of the paper: at stride 2 the shortcut is average-pooled, and its channels
    are among the `filters` ones of the unit.
    """
    name, shortcut, middle = _layers.layer_name(path), x, filters // 4
    if stride == 2:
        shortcut = _layers.avg_pool(x, 3, 2, f"{path}.avgpool", padding="symmetric")
        filters -= x.shape[-1]
    x = conv(x, middle, 1, f"{path}.conv1", groups=first_groups)
    x = act(bn(x, f"{path}.bn1"), "relu", f"{path}.relu1")
    if groups > 1:
        x = custom_layers.ChannelShuffle(groups, name=f"{name}_shuffle")(x)
    x = bn(depthwise(x, 3, f"{path}.conv2", stride=stride), f"{path}.bn2")
    return bn(conv(x, filters, 1, f"{path}.conv3", groups=groups), f"{path}.bn3"), shortcut


def _multiple(channels: float, of: int) -> int:
    """The nearest multiple, the upper one of two."""
    return int(channels / of + 0.5) * of


def shufflenet(groups: int, scale: float) -> Architecture:
    """A ShuffleNet; the channels are rounded so that they divide into groups."""
    stage2 = _multiple(_FILTERS[groups] * scale, 4 * groups)  # 4: of the bottleneck
    stem = _multiple(_STEM[scale], groups)

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = act(bn(conv(x, stem, 3, "conv1.0", stride=2), "conv1.1"), "relu", "conv1.2")
        x = _layers.max_pool(x, 3, 2, "maxpool", padding="symmetric")
        for i, j in net.blocks((4, 8, 4)):
            path, stride = f"stage{i + 2}.{j}", 2 if j == 0 else 1
            # The stem has too few channels to be grouped: section 3.2 of the paper.
            first_groups = 1 if i == j == 0 else groups
            y, shortcut = _unit(x, stage2 * 2**i, stride, groups, first_groups, path)
            if stride == 2:
                name = f"{_layers.layer_name(path)}_concat"
                x = layers.Concatenate(name=name)([shortcut, y])
            else:
                x = net.add(y, shortcut, path)
            x = act(x, "relu", f"{path}.relu3")
        return x

    return Architecture(features, functools.partial(pooled_head, classifier="fc"))


@model()
def ShuffleNet(groups: int = 3, scale: float = 1.0) -> Architecture:
    """ShuffleNet: 1,865,728 parameters, 137.5 million MACs at 224 px by default.

    `groups`, 1, 2, 3, 4 or 8, divide the 1x1 convolutions; `scale`, 0.25, 0.5, 1.0, 1.5 or 2.0,
    multiplies the channels, which are rounded to what the groups divide. Anything else raises
    `InputError`.

    Table 1 of the paper prints 143, 140, 137, 133 and 137 million MACs for the five groups at 1x,
    where its layers make 143.1, 140.8, 137.5, 134.3 and 138.4. With 3 groups 0.25x, 0.5x, 1.5x and
    2x have 13.3, 37.6, 292.4 and 524.1; the paper prints 13, 38, 292 and 524.
    """
    for name, value, known in (("groups", groups, _FILTERS), ("scale", scale, _STEM)):
        if not is_number(value) or value not in known:  # True is equal to 1
            raise InputError(
                f"ShuffleNet: {name} must be one of {', '.join(map(str, known))}, not {value!r}"
            )
    return shufflenet(int(groups), float(scale))
