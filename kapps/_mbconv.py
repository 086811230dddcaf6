"""The mobile inverted bottleneck, which MobileNets from V2 on and the EfficientNets are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from keras import KerasTensor

from kapps import _layers
from kapps._errors import InputError, is_number
from kapps._network import Net


@dataclasses.dataclass(frozen=True)
class MBConv:
    """How a family builds the block: its activation, padding, batch norm and SE gate."""

    padding: _layers.Padding
    bn: Callable[[KerasTensor, str], KerasTensor]
    se: Callable[[KerasTensor, int, str], KerasTensor] = _layers.se

    def __call__(
        self,
        x: KerasTensor,
        net: Net,
        path: str,
        *,
        kernel: int,
        stride: int,
        expanded: int,
        filters: int,
        activation: str,
        se_channels: int = 0,
    ) -> KerasTensor:
        """[1x1, BN, act,] depthwise, BN, act, [SE,] 1x1, BN [, + input].

        Sandler et al. 2018, figure 4d. Without expansion (`expanded` equal to the input's
        channels) there is no first 1x1, and the names are those of a depthwise separable block.
        """
        shortcut = x
        separable = expanded == x.shape[-1]
        if not separable:
            x = _layers.conv(x, expanded, 1, f"{path}.conv_pw")
            x = _layers.act(self.bn(x, f"{path}.bn1"), activation, f"{path}.act1")
        last = ("conv_pw", "bn2") if separable else ("conv_pwl", "bn3")
        middle = 1 if separable else 2
        x = _layers.depthwise(x, kernel, f"{path}.conv_dw", stride=stride, padding=self.padding)
        x = _layers.act(self.bn(x, f"{path}.bn{middle}"), activation, f"{path}.act{middle}")
        if se_channels:
            x = self.se(x, se_channels, f"{path}.se")
        x = self.bn(_layers.conv(x, filters, 1, f"{path}.{last[0]}"), f"{path}.{last[1]}")
        if stride == 1 and filters == shortcut.shape[-1]:
            x = net.add(x, shortcut, path)
        return x


def fused_mbconv(
    x: KerasTensor,
    net: Net,
    path: str,
    *,
    stride: int,
    expanded: int,
    filters: int,
    activation: str,
    padding: _layers.Padding = "symmetric",
    bn: Callable[[KerasTensor, str], KerasTensor] = _layers.bn,
) -> KerasTensor:
    """3x3, BN, act, 1x1, BN [, + input]; without expansion 3x3, BN, act [, + input].

    Tan and Le 2021, "EfficientNetV2", figure 2.
    """
    shortcut = x
    single = expanded == x.shape[-1]
    name, channels = ("conv", filters) if single else ("conv_exp", expanded)
    x = _layers.conv(x, channels, 3, f"{path}.{name}", stride=stride, padding=padding)
    x = _layers.act(bn(x, f"{path}.bn1"), activation, f"{path}.act1")
    if not single:
        x = bn(_layers.conv(x, filters, 1, f"{path}.conv_pwl"), f"{path}.bn2")
    if stride == 1 and filters == shortcut.shape[-1]:
        x = net.add(x, shortcut, path)
    return x


def check_alpha(builder: str, alpha: float) -> float:
    """The multiplier of a family's channels, where it is one."""
    if not is_number(alpha) or alpha <= 0:
        raise InputError(f"{builder}: alpha must be a number above 0, such as 1.0, not {alpha!r}")
    return alpha
