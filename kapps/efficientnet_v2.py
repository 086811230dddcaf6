"""EfficientNetV2: Tan and Le 2021, "EfficientNetV2: Smaller Models and Faster Training".

Layer names are those of timm's `tf_efficientnetv2_*`, to whose logits the networks are equal: the
reference was born in TensorFlow, hence its padding and its batch norm epsilon.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from keras import KerasTensor

from kapps import _layers
from kapps._layers import act, conv
from kapps._mbconv import MBConv, fused_mbconv
from kapps._model import HALF, model
from kapps._network import Architecture, Net
from kapps.efficientnet import check_scaling, norm

_Stage = tuple[bool, int, int, int, int]

# Table 4 of the paper for S, the authors' code, effnetv2_configs.py, for the others:
# fused, repeats, stride, expansion, filters. All kernels are 3x3.
_BASE: Sequence[_Stage] = (
    (True, 1, 1, 1, 16),
    (True, 2, 2, 4, 32),
    (True, 2, 2, 4, 48),
    (False, 3, 2, 4, 96),
    (False, 5, 1, 6, 112),
    (False, 8, 2, 6, 192),
)
_S: Sequence[_Stage] = (
    (True, 2, 1, 1, 24),
    (True, 4, 2, 4, 48),
    (True, 4, 2, 4, 64),
    (False, 6, 2, 4, 128),
    (False, 9, 1, 6, 160),
    (False, 15, 2, 6, 256),
)
_M: Sequence[_Stage] = (
    (True, 3, 1, 1, 24),
    (True, 5, 2, 4, 48),
    (True, 5, 2, 4, 80),
    (False, 7, 2, 4, 160),
    (False, 14, 1, 6, 176),
    (False, 18, 2, 6, 304),
    (False, 5, 1, 6, 512),
)
_L: Sequence[_Stage] = (
    (True, 4, 1, 1, 32),
    (True, 7, 2, 4, 64),
    (True, 7, 2, 4, 96),
    (False, 10, 2, 4, 192),
    (False, 19, 1, 6, 224),
    (False, 25, 2, 6, 384),
    (False, 7, 1, 6, 640),
)
_XL: Sequence[_Stage] = (
    (True, 4, 1, 1, 32),
    (True, 8, 2, 4, 64),
    (True, 8, 2, 4, 96),
    (False, 16, 2, 4, 192),
    (False, 24, 1, 6, 256),
    (False, 32, 2, 6, 512),
    (False, 8, 1, 6, 640),
)

_mbconv = MBConv("same", norm, functools.partial(_layers.se, activation="silu"))
_fused_mbconv = functools.partial(fused_mbconv, padding="same", bn=norm, activation="silu")


def efficientnet_v2(stages: Sequence[_Stage], stem: int, head: int = 1280) -> Architecture:
    """An EfficientNetV2 of these stages; `stem` and `head` are filters."""

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = conv(x, stem, 3, "conv_stem", stride=2, padding="same")
        x = act(norm(x, "bn1"), "silu", "act1")
        for i, j in net.blocks(repeats for _, repeats, *_ in stages):
            fused, _, stride, expansion, filters = stages[i]
            channels = x.shape[-1]
            block: dict[str, Any] = {
                "path": f"blocks.{i}.{j}",
                "stride": stride if j == 0 else 1,
                "expanded": channels * expansion,
                "filters": filters,
            }
            if fused:
                x = _fused_mbconv(x, net, **block)
            else:
                se = channels // 4  # of what enters the block, before its expansion
                x = _mbconv(x, net, kernel=3, activation="silu", se_channels=se, **block)
        x = conv(x, head, 1, "conv_head")
        return act(norm(x, "bn2"), "silu", "act2")

    return Architecture(features, drop_path_schedule="efficientnet")


def _scaled(width: float, depth: float) -> Architecture:
    """The base network at that width and depth."""

    def channels(filters: int) -> int:
        # To the nearest multiple of 8: without V1's rule not to lose more than 10 %.
        return max(8, int(filters * width + 4) // 8 * 8)

    stages = [
        (fused, math.ceil(n * depth), stride, expansion, channels(filters))
        for fused, n, stride, expansion, filters in _BASE
    ]
    return efficientnet_v2(stages, channels(32), channels(1280))


@model(size=192, dropout_rate=0.2)
def EfficientNetV2(width: float = 1.0, depth: float = 1.0, resolution: int = 192) -> Architecture:
    """EfficientNetV2, freely scaled: 7,139,704 parameters, 528.2 million MACs by default (V2-B0).

    `width` multiplies the channels, to the nearest multiple of 8, `depth` the blocks of a stage,
    rounded up; both are above 0. `resolution` is the default height and width of the input, 32
    pixels or more. Others than these are an InputError.
    """
    check_scaling("EfficientNetV2", width, depth, resolution)
    return dataclasses.replace(_scaled(width, depth), size=int(resolution))


# Sizes are those that the training ends with; the authors evaluate at 224, 240, 260 and 300 px (B0
# to B3), and at 384, 480, 480 and 512 px (S to XL).


@model(size=192, dropout_rate=0.2)
def EfficientNetV2B0() -> Architecture:
    """EfficientNetV2-B0: 7,139,704 parameters, 528.2 million MACs at 192 px."""
    return _scaled(1.0, 1.0)


@model(size=192, dropout_rate=0.2)
def EfficientNetV2B1() -> Architecture:
    """EfficientNetV2-B1: 8,141,052 parameters, 747.0 million MACs at 192 px."""
    return _scaled(1.0, 1.1)


@model(size=208, dropout_rate=0.3)
def EfficientNetV2B2() -> Architecture:
    """EfficientNetV2-B2: 10,096,086 parameters, 1,043.5 million MACs at 208 px."""
    return _scaled(1.1, 1.2)


@model(size=240, dropout_rate=0.3, mean=HALF, std=HALF)
def EfficientNetV2B3() -> Architecture:
    """EfficientNetV2-B3: 14,358,406 parameters, 1,908.0 million MACs at 240 px."""
    return _scaled(1.2, 1.4)


@model(size=300, dropout_rate=0.2, mean=HALF, std=HALF)
def EfficientNetV2S() -> Architecture:
    """EfficientNetV2-S: 21,458,488 parameters, 5,307.6 million MACs at 300 px."""
    return efficientnet_v2(_S, 24)


@model(size=384, dropout_rate=0.3, mean=HALF, std=HALF)
def EfficientNetV2M() -> Architecture:
    """EfficientNetV2-M: 54,139,356 parameters, 15,736.8 million MACs at 384 px."""
    return efficientnet_v2(_M, 24)


@model(size=384, dropout_rate=0.4, mean=HALF, std=HALF)
def EfficientNetV2L() -> Architecture:
    """EfficientNetV2-L: 118,515,272 parameters, 35,899.4 million MACs at 384 px."""
    return efficientnet_v2(_L, 32)


@model(size=384, dropout_rate=0.4, mean=HALF, std=HALF)
def EfficientNetV2XL() -> Architecture:
    """EfficientNetV2-XL: 208,119,808 parameters, 52,529.3 million MACs at 384 px."""
    return efficientnet_v2(_XL, 32)
