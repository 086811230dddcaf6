"""ShuffleNetV2: Ma et al. 2018, "ShuffleNet V2: Practical Guidelines for Efficient CNN Design".

Layer names are those of torchvision's `shufflenet_v2_*`, to whose logits the networks are equal.
"""

from __future__ import annotations

import functools

from keras import KerasTensor, layers

from kapps import _layers, custom_layers
from kapps._errors import InputError, is_number
from kapps._layers import act, bn, conv, depthwise
from kapps._model import model
from kapps._network import Architecture, Net, pooled_head


def _branch(x: KerasTensor, filters: int, stride: int, path: str) -> KerasTensor:
    """1x1, BN, ReLU, 3x3 depthwise, BN, 1x1, BN, ReLU."""
    x = conv(x, filters, 1, f"{path}.0")
    x = act(bn(x, f"{path}.1"), "relu", f"{path}.2")
    x = bn(depthwise(x, 3, f"{path}.3", stride=stride), f"{path}.4")
    x = conv(x, filters, 1, f"{path}.5")
    return act(bn(x, f"{path}.6"), "relu", f"{path}.7")


def _downsample(x: KerasTensor, filters: int, path: str) -> KerasTensor:
    """3x3 depthwise at stride 2, BN, 1x1, BN, ReLU."""
    x = bn(depthwise(x, 3, f"{path}.0", stride=2), f"{path}.1")
    x = conv(x, filters, 1, f"{path}.2")
    return act(bn(x, f"{path}.3"), "relu", f"{path}.4")


def _unit(x: KerasTensor, filters: int, stride: int, path: str) -> KerasTensor:
    """Half the channels as they are (stride 2: downsampled), half through the branch, shuffled.

    Figure 3, c and d of the paper.
    """
    name, half = _layers.layer_name(path), filters // 2
    if stride == 1:
        left = custom_layers.ChannelSlice(0, half, name=f"{name}_left")(x)
        x = custom_layers.ChannelSlice(half, filters, name=f"{name}_right")(x)
    else:
        left = _downsample(x, half, f"{path}.branch1")
    right = _branch(x, half, stride, f"{path}.branch2")
    x = layers.Concatenate(name=f"{name}_concat")([left, right])
    return custom_layers.ChannelShuffle(2, name=f"{name}_shuffle")(x)


# Table 5 of the paper: output channels of stages 2, 3, 4 and of conv5, by scale
_FILTERS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


def shufflenet_v2(filters: tuple[int, int, int, int]) -> Architecture:
    """A ShuffleNetV2 with these output channels of stages 2, 3, 4 and of conv5."""

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = act(bn(conv(x, 24, 3, "conv1.0", stride=2), "conv1.1"), "relu", "conv1.2")
        x = _layers.max_pool(x, 3, 2, "maxpool", padding="symmetric")
        for stage, (repeats, channels) in enumerate(
            zip((4, 8, 4), filters[:3], strict=True), start=2
        ):
            for i in range(repeats):
                x = _unit(x, channels, 2 if i == 0 else 1, f"stage{stage}.{i}")
        return act(bn(conv(x, filters[3], 1, "conv5.0"), "conv5.1"), "relu", "conv5.2")

    return Architecture(features, functools.partial(pooled_head, classifier="fc"))


@model()
def ShuffleNetV2(scale: float = 1.0) -> Architecture:
    """ShuffleNetV2: 2,278,604 parameters, 144.9 million MACs at 224 px by default.

    `scale` is one of the paper's, 0.5, 1.0, 1.5 and 2.0, whose channels do not follow a formula.
    Anything else raises `InputError`.
    """
    if not is_number(scale) or scale not in _FILTERS:  # True is equal to 1
        raise InputError(
            f"ShuffleNetV2: scale must be one of {', '.join(map(str, _FILTERS))}, not {scale!r}"
        )
    return shufflenet_v2(_FILTERS[scale])


@model()
def ShuffleNetV2_x0_5() -> Architecture:
    """ShuffleNetV2 0.5x: 1,366,792 parameters, 40.5 million MACs at 224 px."""
    return shufflenet_v2(_FILTERS[0.5])


@model()
def ShuffleNetV2_x1_0() -> Architecture:
    """ShuffleNetV2 1x: 2,278,604 parameters, 144.9 million MACs at 224 px."""
    return shufflenet_v2(_FILTERS[1.0])


@model()
def ShuffleNetV2_x1_5() -> Architecture:
    """ShuffleNetV2 1.5x: 3,503,624 parameters, 295.8 million MACs at 224 px."""
    return shufflenet_v2(_FILTERS[1.5])


@model()
def ShuffleNetV2_x2_0() -> Architecture:
    """ShuffleNetV2 2x: 7,393,996 parameters, 583.3 million MACs at 224 px."""
    return shufflenet_v2(_FILTERS[2.0])
