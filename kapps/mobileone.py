"""MobileOne: Vasu et al. 2023, "MobileOne: An Improved One Millisecond Mobile Backbone".

Layer names are those of timm's `mobileone_*`, to whose logits the networks are equal. They are
those that are trained, of several branches a block; `kapps.tflite` puts these together into one
convolution (`merge_branches`), to write a file and to tune it.
"""

from __future__ import annotations

from collections.abc import Sequence

from keras import KerasTensor, layers

from kapps import _layers
from kapps._layers import act, bn, conv, depthwise, make_divisible
from kapps._model import model
from kapps._network import Architecture, Net, pooled_head

# Table 2 of the paper: blocks of each stage, each a depthwise and a pointwise one, and filters,
# which the widths of its table 3 multiply.
_STAGES = ((2, 64), (8, 128), (10, 256), (1, 512))


def _block(
    x: KerasTensor,
    net: Net,
    path: str,
    *,
    kernel: int,
    stride: int = 1,
    filters: int = 0,
    branches: int = 1,
    se: bool = False,
) -> KerasTensor:
    """The sum of `branches` times conv, BN; of 1x1, BN beside a 3x3; and of BN; [SE,] act.

    Figure 3 of the paper; the last summand where input and output are of one shape. Depthwise
    without `filters`.
    """
    shortcut = x

    def branch(size: int, name: str) -> KerasTensor:
        own = f"{path}.{name}"
        if filters:
            y = conv(shortcut, filters, size, f"{own}.conv", stride=stride)
        else:
            y = depthwise(shortcut, size, f"{own}.conv", stride=stride)
        return bn(y, f"{own}.bn")

    parts = [branch(1, "conv_scale")] if kernel > 1 else []
    parts += [branch(kernel, f"conv_kxk.{i}") for i in range(branches)]
    x = parts[0]
    if len(parts) > 1:
        x = layers.Add(name=_layers.layer_name(f"{path}.branches"))(parts)
    if stride == 1 and x.shape[-1] == shortcut.shape[-1]:
        x = net.add(x, bn(shortcut, f"{path}.identity"), path)
    if se:
        channels = make_divisible(x.shape[-1] / 16)
        x = _layers.se(x, channels, f"{path}.attn", names=("fc1", "fc2"))
    return act(x, "relu", f"{path}.act")


def mobileone(
    widths: Sequence[float], branches: int = 1, squeezed: Sequence[int] = (0, 0, 0, 0)
) -> Architecture:
    """A MobileOne.

    Args:
        widths: what the filters of each stage are multiplied by.
        branches: of each convolution, but for the first.
        squeezed: the number of blocks with squeeze-and-excitation, the last ones of each stage.
    """

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        stem = min(64, int(64 * widths[0]))
        x = _block(x, net, "stem", kernel=3, stride=2, filters=stem)
        for i, j in net.blocks(2 * blocks for blocks, _ in _STAGES):
            blocks, filters = _STAGES[i]
            x = _block(
                x,
                net,
                f"stages.{i}.{j}",
                kernel=1 if j % 2 else 3,
                stride=2 if j == 0 else 1,
                filters=int(filters * widths[i]) if j % 2 else 0,
                branches=branches,
                se=j // 2 >= blocks - squeezed[i],
            )
        return x

    def head(x: KerasTensor, net: Net) -> KerasTensor:
        return pooled_head(x, net, "head.fc")

    return Architecture(features, head, drop_path_schedule="linspace")


@model()
def MobileOneS0() -> Architecture:
    """MobileOne-S0: 5,293,272 parameters in training, 2.1 million merged, 224 px."""
    return mobileone((0.75, 1.0, 1.0, 2.0), branches=4)


@model()
def MobileOneS1() -> Architecture:
    """MobileOne-S1: 4,825,192 parameters in training, 4.8 million merged, 224 px."""
    return mobileone((1.5, 1.5, 2.0, 2.5))


@model()
def MobileOneS2() -> Architecture:
    """MobileOne-S2: 7,884,648 parameters in training, 7.8 million merged, 224 px."""
    return mobileone((1.5, 2.0, 2.5, 4.0))


@model()
def MobileOneS3() -> Architecture:
    """MobileOne-S3: 10,170,600 parameters in training, 10.1 million merged, 224 px."""
    return mobileone((2.0, 2.5, 3.0, 4.0))


@model()
def MobileOneS4() -> Architecture:
    """MobileOne-S4, with squeeze-and-excitation: 14,951,248 parameters in training, 224 px."""
    return mobileone((3.0, 3.5, 3.5, 4.0), squeezed=(0, 0, 5, 1))
