"""DenseNet: Huang et al. 2017, "Densely Connected Convolutional Networks".

Layer names are those of timm's `densenet*`, to whose logits the networks are equal; the CIFAR form,
which timm does not have, is named alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keras import KerasTensor, layers

from kapps import _layers
from kapps._errors import InputError, check_whole, is_number, is_whole
from kapps._layers import act, bn, conv
from kapps._model import CIFAR_MEAN, CIFAR_STD, model
from kapps._network import Architecture, Net

_Drop = Callable[[KerasTensor, str], KerasTensor]


def _dense_layer(
    x: KerasTensor, growth: int, path: str, bottleneck: bool, drop: _Drop
) -> KerasTensor:
    """BN, ReLU, [1x1, BN, ReLU,] 3x3: `growth` new channels, behind those of the input."""
    y, last = act(bn(x, f"{path}.norm1"), "relu", f"{path}.relu1"), 1
    if bottleneck:
        y = drop(conv(y, 4 * growth, 1, f"{path}.conv1"), f"{path}.dropout1")
        y, last = act(bn(y, f"{path}.norm2"), "relu", f"{path}.relu2"), 2
    y = drop(conv(y, growth, 3, f"{path}.conv{last}"), f"{path}.dropout{last}")
    return layers.Concatenate(name=f"{_layers.layer_name(path)}_concat")([x, y])


def _transition(x: KerasTensor, filters: int, path: str, drop: _Drop) -> KerasTensor:
    """BN, ReLU, 1x1, average pooling."""
    x = act(bn(x, f"{path}.norm"), "relu", f"{path}.relu")
    x = drop(conv(x, filters, 1, f"{path}.conv"), f"{path}.dropout")
    return _layers.avg_pool(x, 2, 2, f"{path}.pool")


def _dense_blocks(
    x: KerasTensor,
    blocks: Sequence[int],
    growth: int,
    compression: float,
    bottleneck: bool,
    drop: _Drop,
) -> KerasTensor:
    """Blocks of so many dense layers, transitions between them; BN, ReLU."""
    for i, repeats in enumerate(blocks, start=1):
        for j in range(1, repeats + 1):
            path = f"features.denseblock{i}.denselayer{j}"
            x = _dense_layer(x, growth, path, bottleneck, drop)
        if i < len(blocks):
            filters = int(x.shape[-1] * compression)
            x = _transition(x, filters, f"features.transition{i}", drop)
    last = len(blocks) + 1
    return act(bn(x, f"features.norm{last}"), "relu", f"features.relu{last}")


def _checked_growth(builder: str, growth: int, compression: float) -> int:
    growth = check_whole(builder, "growth", growth)
    if not is_number(compression) or not 0 < compression <= 1:
        raise InputError(
            f"{builder}: compression must be above 0 and at most 1, not {compression!r}"
        )
    return growth


def densenet(blocks: Sequence[int], growth: int, compression: float = 0.5) -> Architecture:
    """A DenseNet for ImageNet: table 1 of the paper."""

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = conv(x, 2 * growth, 7, "features.conv0", stride=2)
        x = act(bn(x, "features.norm0"), "relu", "features.relu0")
        x = _layers.max_pool(x, 3, 2, "features.pool0", padding="symmetric")
        return _dense_blocks(x, blocks, growth, compression, True, lambda y, path: y)

    return Architecture(features)


@model(min_size=29)
def DenseNet(
    blocks: Sequence[int] = (6, 12, 24, 16), growth: int = 32, compression: float = 0.5
) -> Architecture:
    """DenseNet of any depth and growth; DenseNet-121 by default: 7,978,856 parameters at 224 px.

    `blocks` are the layers of the four dense blocks, each 1 or more. Every layer adds `growth`
    channels (k in the paper; 1 or more), and a transition keeps the share `compression` of its
    input's (theta; above 0, at most 1). Anything else raises `InputError`.
    """
    counts = blocks if isinstance(blocks, Sequence) else ()
    if len(counts) != 4 or any(not is_whole(n) or n < 1 for n in counts):
        raise InputError(f"DenseNet: blocks must be four whole numbers above 0, not {blocks!r}")
    growth = _checked_growth("DenseNet", growth, compression)
    return densenet(tuple(map(int, counts)), growth, compression)


@model(min_size=29)
def DenseNet121() -> Architecture:
    """DenseNet-121: 7,978,856 parameters, 2,834.2 million MACs at 224 px."""
    return densenet((6, 12, 24, 16), growth=32)


@model(min_size=29)
def DenseNet161() -> Architecture:
    """DenseNet-161: 28,681,000 parameters, 7,727.9 million MACs at 224 px."""
    return densenet((6, 12, 36, 24), growth=48)


@model(min_size=29)
def DenseNet169() -> Architecture:
    """DenseNet-169: 14,149,480 parameters, 3,359.8 million MACs at 224 px."""
    return densenet((6, 12, 32, 32), growth=32)


@model(min_size=29)
def DenseNet201() -> Architecture:
    """DenseNet-201: 20,013,928 parameters, 4,291.4 million MACs at 224 px."""
    return densenet((6, 12, 48, 32), growth=32)


@model(min_size=29)
def DenseNet264() -> Architecture:
    """DenseNet-264: 33,337,704 parameters, 5,751.7 million MACs at 224 px."""
    return densenet((6, 12, 64, 48), growth=32)


@model(size=32, min_size=4, classes=10, mean=CIFAR_MEAN, std=CIFAR_STD)
def CifarDenseNet(
    depth: int = 40, growth: int = 12, bottleneck: bool = False, compression: float = 1.0
) -> Architecture:
    """DenseNet for CIFAR: 1,019,722 parameters, 264.8 million MACs at 32 px by default.

    Three dense blocks, as section 4.2 of the paper describes them; table 2 has depth and growth of
    40 and 12 or 100 and 12, and with `bottleneck` and `compression` 0.5 (DenseNet-BC) 100 and 12,
    250 and 24, 190 and 40. `depth` counts the layers with weights: 4 + 3 n, with bottleneck
    4 + 6 n. Every layer adds `growth` channels (1 or more), and a transition keeps the share
    `compression` of its input's (above 0, at most 1). Anything else raises `InputError`.

    Here `dropout_rate` acts behind every convolution but the first, and not before the classifier:
    the paper has 0.2 where the images are not augmented.
    """
    unit = 6 if bottleneck else 3
    if not is_whole(depth) or depth < 4 + unit or (depth - 4) % unit:
        raise InputError(
            f"CifarDenseNet: depth must be 4 + {unit} n for a whole n above 0 "
            f"{'with' if bottleneck else 'without'} bottleneck, not {depth!r}"
        )
    growth = _checked_growth("CifarDenseNet", growth, compression)
    blocks = ((int(depth) - 4) // unit,) * 3

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = conv(x, 2 * growth if bottleneck else 16, 3, "features.conv0")
        return _dense_blocks(x, blocks, growth, compression, bottleneck, net.dropout)

    def head(x: KerasTensor, net: Net) -> KerasTensor:
        return net.classifier(_layers.global_pool(x, "global_pool"), "classifier")

    return Architecture(features, head)
