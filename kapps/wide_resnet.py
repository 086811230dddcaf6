"""Wide residual networks: Zagoruyko and Komodakis 2016, "Wide Residual Networks".

For images of 32x32; those for ImageNet are in resnet.py. No published checkpoints: layer names are
in the style of timm's `resnetv2_*`.
"""

from __future__ import annotations

import functools

from keras import KerasTensor

from kapps._errors import InputError, check_whole, is_number, unknown
from kapps._layers import conv
from kapps._model import CIFAR_MEAN, CIFAR_STD, model
from kapps._network import Architecture, Net, pooled_head
from kapps.resnet_v2 import Stage, preactivation_stages

# Section 2.1 of the paper: kernels of a block's convolutions
_BLOCKS = {
    "B(3,3)": (3, 3),
    "B(3,1,3)": (3, 1, 3),
    "B(1,3,1)": (1, 3, 1),
    "B(1,3)": (1, 3),
    "B(3,1)": (3, 1),
    "B(3,1,1)": (3, 1, 1),
}


def wide_resnet(repeats: int, width: int, kernels: tuple[int, ...], dropout: float) -> Architecture:
    """Three stages of so many blocks, `width` times as wide as a ResNet's: the paper's table 1."""

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = conv(x, 16, 3, "stem.conv")
        stages: list[Stage] = [
            (repeats, stride, [(kernel, filters * width) for kernel in kernels])
            for stride, filters in ((1, 16), (2, 32), (2, 64))
        ]
        return preactivation_stages(x, net, stages, dropout=dropout)

    return Architecture(features, functools.partial(pooled_head, classifier="head.fc"))


@model(size=32, min_size=4, classes=10, mean=CIFAR_MEAN, std=CIFAR_STD)
def WideResNet(
    depth: int = 28, width: int = 10, block: str = "B(3,3)", dropout: float = 0.0
) -> Architecture:
    """The family; at its defaults WRN-28-10: 36,479,194 parameters, 5,243.3 million MACs at 32 px.

    `depth` is 6n + 4, for n blocks in each stage: 16, 22, 28 and 40 are the paper's. That counts
    two convolutions a block, whatever its type, as the paper's table 2 does: its parameters follow
    from no other count (WRN-40-2-B(1,3,1), printed as 1.4 million, has 1,429,082). `width` is the
    paper's k. `block` names the kernels of a block's convolutions: B(3,3), B(3,1,3), B(1,3,1),
    B(1,3), B(3,1) or B(3,1,1). `dropout` is the rate between them, 0 to below 1: the paper has 0.3
    for CIFAR and 0.4 for SVHN. An `InputError` says which of these is not as described.
    """
    depth = check_whole("WideResNet", "depth", depth)
    width = check_whole("WideResNet", "width", width)
    if block not in _BLOCKS:
        raise unknown("block of WideResNet", block, _BLOCKS)
    n, rest = divmod(depth - 4, 6)
    if n < 1 or rest:
        raise InputError(
            f"WideResNet: depth must be 6n + 4, such as {max(n, 1) * 6 + 4} or "
            f"{max(n, 1) * 6 + 10}, not {depth}"
        )
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise InputError(f"WideResNet: dropout must be at least 0 and below 1, not {dropout!r}")
    return wide_resnet(n, width, _BLOCKS[block], dropout)


# Table 4 of the paper.


@model(size=32, min_size=4, classes=10, mean=CIFAR_MEAN, std=CIFAR_STD)
def WideResNet16_8() -> Architecture:
    """WRN-16-8: 10,961,370 parameters, 1,548.1 million MACs at 32 px."""
    return wide_resnet(2, 8, (3, 3), 0.0)


@model(size=32, min_size=4, classes=10, mean=CIFAR_MEAN, std=CIFAR_STD)
def WideResNet28_10() -> Architecture:
    """WRN-28-10: 36,479,194 parameters, 5,243.3 million MACs at 32 px."""
    return wide_resnet(4, 10, (3, 3), 0.0)


@model(size=32, min_size=4, classes=10, mean=CIFAR_MEAN, std=CIFAR_STD)
def WideResNet40_4() -> Architecture:
    """WRN-40-4: 8,949,210 parameters, 1,298.6 million MACs at 32 px."""
    return wide_resnet(6, 4, (3, 3), 0.0)
