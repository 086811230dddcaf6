"""ResNet V2: He et al. 2016, "Identity Mappings in Deep Residual Networks".

Batch norm and ReLU come before the convolutions, and nothing after the sum. Layer names are those
of timm's `resnetv2_*`, to whose logits the networks are equal. As there, a bottleneck's stride is
on its 3x3 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

from keras import KerasTensor, layers

from kapps import _layers
from kapps._layers import act, bn, conv
from kapps._model import HALF, model
from kapps._network import Architecture, Net
from kapps.resnet import check_blocks

Stage = tuple[int, int, Sequence[tuple[int, int]]]
"""Blocks, stride of the first one, and kernel and filters of each convolution of a block."""


def norm_act(x: KerasTensor, path: str) -> KerasTensor:
    """BN, ReLU."""
    return act(bn(x, path), "relu", f"{path}.act")


def _block(
    x: KerasTensor,
    net: Net,
    path: str,
    *,
    convs: Sequence[tuple[int, int, int]],
    dropout: float,
) -> KerasTensor:
    """BN, ReLU, convolution, and so on [, dropout between them], + shortcut.

    `convs` has kernel, filters and stride of each. Where the shape changes, the shortcut is a 1x1
    convolution of the first activation, elsewhere the input.
    """
    shortcut, filters = x, convs[-1][1]
    stride = max(step for _, _, step in convs)
    projected = stride > 1 or x.shape[-1] != filters
    for i, (kernel, channels, step) in enumerate(convs, start=1):
        x = norm_act(x, f"{path}.norm{i}")
        if i == 1 and projected:
            shortcut = conv(x, filters, 1, f"{path}.downsample.conv", stride=stride)
        if i > 1:
            x = net.dropout(x, f"{path}.drop{i - 1}", rate=dropout)
        x = conv(x, channels, kernel, f"{path}.conv{i}", stride=step)
    return net.add(x, shortcut, path)


def preactivation_stages(
    x: KerasTensor,
    net: Net,
    stages: Sequence[Stage],
    *,
    strided: int = 0,
    dropout: float = 0.0,
) -> KerasTensor:
    """The stages, BN, ReLU. The stride is on the convolution of index `strided` of a block."""
    for i, j in net.blocks(repeats for repeats, _, _ in stages):
        _, stride, convs = stages[i]
        strides = [stride if j == 0 and k == strided else 1 for k in range(len(convs))]
        x = _block(
            x,
            net,
            f"stages.{i}.blocks.{j}",
            convs=[(*conv, step) for conv, step in zip(convs, strides, strict=True)],
            dropout=dropout,
        )
    return norm_act(x, "norm")


def bottleneck(filters: int) -> Sequence[tuple[int, int]]:
    """Kernels and filters of the block of that many filters at its end."""
    return ((1, filters // 4), (3, filters // 4), (1, filters))


def _head(x: KerasTensor, net: Net) -> KerasTensor:
    """Global mean, dropout, 1x1 convolution: the published weights are those of one."""
    x = net.dropout(_layers.global_pool(x, "global_pool", keepdims=True))
    x = net.conv_classifier(x, "head.fc")
    return net.activate(layers.Flatten(name="flatten")(x))


def resnet_v2(blocks: Sequence[int], *, bottlenecks: bool = True) -> Architecture:
    """A network of so many blocks in each stage."""

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = conv(x, 64, 7, "stem.conv", stride=2)
        x = _layers.max_pool(x, 3, 2, "stem.pool", padding="mirror")  # no ReLU before it
        widths = [64 * 2**i for i in range(len(blocks))]
        stages = [
            (
                repeats,
                1 if i == 0 else 2,
                bottleneck(4 * width) if bottlenecks else ((3, width), (3, width)),
            )
            for i, (repeats, width) in enumerate(zip(blocks, widths, strict=True))
        ]
        return preactivation_stages(x, net, stages, strided=1 if bottlenecks else 0)

    return Architecture(features, _head, drop_path_schedule="linspace")


# The reference weights want images in -1..1.
@model(mean=HALF, std=HALF)
def ResNetV2(blocks: Sequence[int] = (3, 4, 6, 3), bottleneck: bool = True) -> Architecture:
    """The family; at its defaults `ResNet50V2`: 25,549,352 parameters.

    `blocks` has the number of residual blocks of each of the four stages. A block has two 3x3
    convolutions, or with `bottleneck` 1x1, 3x3, 1x1 with four times the filters at the end. An
    `InputError` says that `blocks` is something else than four whole numbers above 0.
    """
    return resnet_v2(check_blocks("ResNetV2", blocks), bottlenecks=bottleneck)


@model(mean=HALF, std=HALF)
def ResNet18V2() -> Architecture:
    """ResNet-18 V2: 11,687,720 parameters, 1,814.1 million MACs at 224 px."""
    return resnet_v2((2, 2, 2, 2), bottlenecks=False)


@model(mean=HALF, std=HALF)
def ResNet34V2() -> Architecture:
    """ResNet-34 V2: 21,795,880 parameters, 3,663.8 million MACs at 224 px."""
    return resnet_v2((3, 4, 6, 3), bottlenecks=False)


@model(mean=HALF, std=HALF)
def ResNet50V2() -> Architecture:
    """ResNet-50 V2: 25,549,352 parameters, 4,089.2 million MACs at 224 px."""
    return resnet_v2((3, 4, 6, 3))


@model(mean=HALF, std=HALF)
def ResNet101V2() -> Architecture:
    """ResNet-101 V2: 44,541,480 parameters, 7,801.4 million MACs at 224 px."""
    return resnet_v2((3, 4, 23, 3))


@model(mean=HALF, std=HALF)
def ResNet152V2() -> Architecture:
    """ResNet-152 V2: 60,185,128 parameters, 11,513.6 million MACs at 224 px."""
    return resnet_v2((3, 8, 36, 3))
