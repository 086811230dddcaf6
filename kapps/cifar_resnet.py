"""Residual networks for images of 32x32.

`CifarResNet`: He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2, with the
shortcuts and activation orders of He et al. 2016, "Identity Mappings in Deep Residual Networks";
`CifarResNetV2`: the networks that the latter arrives at; `CifarResNeXt`: Xie et al. 2017,
"Aggregated Residual Transformations for Deep Neural Networks". No published checkpoints: layer
names are in the style of timm's `resnet*` and `resnetv2_*`.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Sequence

import keras
from keras import KerasTensor, layers

from kapps import custom_layers
from kapps._errors import InputError, check_whole, is_number, unknown
from kapps._layers import act, avg_pool, bn, conv, layer_name
from kapps._model import CIFAR_MEAN, CIFAR_STD, model
from kapps._network import Architecture, Net, pooled_head
from kapps.resnet import Block, stages
from kapps.resnet_v2 import bottleneck as v2_bottleneck
from kapps.resnet_v2 import preactivation_stages

# He et al. 2016, figure 4: a block's branch, and what follows the sum
_ORDERS = {
    "original": ("conv bn act conv bn", "act"),
    "bn_after_addition": ("conv bn act conv", "bn act"),
    "relu_before_addition": ("conv bn act conv bn act", ""),
    "relu_preactivation": ("act conv bn act conv bn", ""),
    "full_preactivation": ("bn act conv bn act conv", ""),
}

_SHORTCUTS = (
    "identity",
    "projection",
    "scaling",
    "shortcut_scaling",
    "exclusive_gating",
    "shortcut_gating",
    "conv",
    "dropout",
)


def _shortcut(
    x: KerasTensor, branch: KerasTensor, net: Net, path: str, kind: str, gate_bias: float
) -> tuple[KerasTensor, KerasTensor]:
    """The two summands: the branch, and the block's input `x` by the kind of shortcut."""
    filters, stride = branch.shape[-1], 1 if x.shape[-1] == branch.shape[-1] else 2
    if kind == "conv" or (kind == "projection" and stride == 2):
        shortcut = conv(x, filters, 1, f"{path}.downsample.0", stride=stride)
        return branch, bn(shortcut, f"{path}.downsample.1")
    shortcut, name = x, layer_name(f"{path}.shortcut")
    if stride == 2:  # He et al. 2015, section 3.3, option A
        shortcut = avg_pool(x, 1, 2, f"{path}.shortcut.subsample")
        shortcut = custom_layers.ChannelPad(filters, name=f"{name}_widen")(shortcut)
    if kind.endswith("gating"):
        gate = layers.Conv2D(
            filters,
            1,
            strides=stride,
            bias_initializer=keras.initializers.Constant(gate_bias),
            name=layer_name(f"{path}.gate"),
        )
        gate.checkpoint_path = f"{path}.gate"
        g = act(gate(x), "sigmoid", f"{path}.gate.act")
        closed = layers.Rescaling(-1.0, 1.0, name=f"{name}_gate")(g)
        shortcut = layers.Multiply(name=f"{name}_scale")([shortcut, closed])
        if kind == "exclusive_gating":
            branch = layers.Multiply(name=layer_name(f"{path}.branch_scale"))([branch, g])
    elif kind.endswith("scaling"):
        shortcut = layers.Rescaling(0.5, name=f"{name}_scale")(shortcut)
        if kind == "scaling":
            branch = layers.Rescaling(0.5, name=layer_name(f"{path}.branch_scale"))(branch)
    elif kind == "dropout":
        shortcut = net.dropout(shortcut, f"{path}.shortcut.dropout", rate=0.5)
    return branch, shortcut


def _sequence(
    x: KerasTensor,
    parts: Sequence[str],
    counts: collections.Counter[str],
    path: str,
    filters: int,
    stride: int,
) -> KerasTensor:
    """The layers named by `parts`; each is numbered within its kind from `counts` on."""
    for part in parts:
        counts[part] += 1
        name = f"{path}.{part}{counts[part]}"
        if part == "conv":
            x = conv(x, filters, 3, name, stride=stride if counts[part] == 1 else 1)
        else:
            x = bn(x, name) if part == "bn" else act(x, "relu", name)
    return x


def cifar_resnet(
    n: int,
    *,
    residual: bool = True,
    shortcut: str = "identity",
    order: str = "original",
    gate_bias: float = 0.0,
) -> Architecture:
    """Three stages of n blocks of two 3x3 convolutions, with 16, 32 and 64 filters."""
    branch_parts, last_parts = (parts.split() for parts in _ORDERS[order])
    first_conv = branch_parts.index("conv")

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = act(bn(conv(x, 16, 3, "conv1"), "bn1"), "relu", "act1")
        for i, j in net.blocks((n, n, n)):
            path, filters = f"layer{i + 1}.{j}", 16 * 2**i
            # What comes before the first block's convolution is done by the stem, for both paths
            # (He et al. 2016, section 4.1).
            skipped = first_conv if i == j == 0 else 0
            counts = collections.Counter(branch_parts[:skipped])
            stride = 2 if i > 0 and j == 0 else 1
            y = _sequence(x, branch_parts[skipped:], counts, path, filters, stride)
            if residual:
                y, x = _shortcut(x, y, net, path, shortcut, gate_bias)
                y = net.add(y, x, path)
            x = _sequence(y, last_parts, counts, path, filters, 1)
        # And what comes before a convolution follows the last sum as well.
        for part in branch_parts[:first_conv]:
            x = bn(x, "bn2") if part == "bn" else act(x, "relu", "act2")
        return x

    return Architecture(features, functools.partial(pooled_head, classifier="fc"))


def _blocks_per_stage(builder: str, depth: int, step: int) -> int:
    """n of a depth of step * n + 2 layers."""
    n, rest = divmod(check_whole(builder, "depth", depth) - 2, step)
    if n < 1 or rest:
        below = max(n, 1) * step + 2  # two depths near to what was asked for
        raise InputError(
            f"{builder}: depth must be {step}n + 2, such as {below} or {below + step}, not {depth}"
        )
    return n


@model(size=32, min_size=4, classes=10, mean=CIFAR_MEAN, std=CIFAR_STD)
def CifarResNet(
    depth: int = 20,
    residual: bool = True,
    shortcut: str = "identity",
    order: str = "original",
    gate_bias: float = -6.0,
) -> Architecture:
    """The family; at its defaults ResNet-20: 269,722 parameters, 40.6 million MACs at 32 px.

    `depth` is 6n + 2: 20, 32, 44, 56, 110 and 1202 are the paper's. Without `residual` it is the
    plain network. `shortcut` and `order` are those that "Identity Mappings" compares (its tables 1
    and 2), and an `InputError` names what they, or `depth`, may be.

    `shortcut`: "identity": the input, where the shape changes every second pixel of it with zeros
    for the new channels; "projection": there a 1x1 convolution, BN; "conv": these in every block;
    "scaling": both summands times 0.5; "shortcut_scaling": the shortcut alone; "exclusive_gating":
    the branch times a gate and the shortcut times 1 - gate, where the gate is a sigmoid of a 1x1
    convolution of the input; "shortcut_gating": the shortcut alone; "dropout": of half of the
    shortcut. `gate_bias` is the initial bias of that convolution.

    `order`, figure 4: "original"; "bn_after_addition"; "relu_before_addition";
    "relu_preactivation": ReLU comes before each convolution, BN behind; "full_preactivation": both
    come before.
    """
    n = _blocks_per_stage("CifarResNet", depth, 6)
    if shortcut not in _SHORTCUTS:
        raise unknown("shortcut of CifarResNet", shortcut, _SHORTCUTS)
    if order not in _ORDERS:
        raise unknown("order of CifarResNet", order, _ORDERS)
    if not residual and (shortcut, order) != ("identity", "original"):
        raise InputError(
            "CifarResNet: shortcut and order describe residual blocks; leave them at their "
            "defaults with residual=False"
        )
    if not is_number(gate_bias):
        raise InputError(f"CifarResNet: gate_bias must be a number, not {gate_bias!r}")
    return cifar_resnet(
        n, residual=residual, shortcut=shortcut, order=order, gate_bias=float(gate_bias)
    )


@model(size=32, min_size=4, classes=10, mean=CIFAR_MEAN, std=CIFAR_STD)
def CifarResNetV2(depth: int = 164, bottleneck: bool = True) -> Architecture:
    """The family; at its defaults ResNet-164: 1,703,258 parameters, 244.5 million MACs at 32 px.

    `depth` is 9n + 2 with bottleneck blocks, 164 and 1001 in the paper, and 6n + 2 without, 110
    there; an `InputError` says so. A bottleneck's shortcut is a 1x1 convolution where the shape
    changes; without bottleneck this is `CifarResNet(depth, order="full_preactivation")`.

    ResNet-1001 has 10,327,706 parameters: the 10.2 million that the paper prints are those of its
    convolutions and classifier, 10,178,490, without the batch norms'.
    """
    if not bottleneck:
        n = _blocks_per_stage("CifarResNetV2 without bottleneck", depth, 6)
        return cifar_resnet(n, order="full_preactivation")
    n = _blocks_per_stage("CifarResNetV2", depth, 9)

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = conv(x, 16, 3, "stem.conv")
        rows = [(n, stride, v2_bottleneck(filters)) for stride, filters in _V2_STAGES]
        return preactivation_stages(x, net, rows)

    return Architecture(features, functools.partial(pooled_head, classifier="head.fc"))


# Stride and filters, https://github.com/KaimingHe/resnet-1k-layers: the stride is on the first 1x1.
_V2_STAGES = ((1, 64), (2, 128), (2, 256))


@model(size=32, min_size=4, classes=10, mean=CIFAR_MEAN, std=CIFAR_STD)
def CifarResNeXt(depth: int = 29, cardinality: int = 8, width: int = 64) -> Architecture:
    """The family; at its defaults ResNeXt-29 (8x64d), at 32 px.

    34,426,698 parameters, 5,387.3 million MACs.

    `depth` is 9n + 2. The 3x3 convolution of a block has `cardinality` groups of `width` channels
    in the first stage, and of twice and four times as many in the next two. An `InputError` says
    which of them is not as described.

    ResNeXt-29 (16x64d), the paper's largest, has 68,155,210 parameters, which it prints as 68.1
    million.
    """
    n = _blocks_per_stage("CifarResNeXt", depth, 9)
    cardinality = check_whole("CifarResNeXt", "cardinality", cardinality)
    width = check_whole("CifarResNeXt", "width", width)

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = act(bn(conv(x, 64, 3, "conv1"), "bn1"), "relu", "act1")
        return stages(x, net, (n, n, n), Block(cardinality=cardinality, width=width))

    return Architecture(features, functools.partial(pooled_head, classifier="fc"))
