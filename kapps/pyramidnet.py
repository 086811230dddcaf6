"""PyramidNet: Han et al. 2017, "Deep Pyramidal Residual Networks", the additive form.

Layer names are those of the authors' code, https://github.com/dyhan0920/PyramidNet-PyTorch, to
whose logits the networks are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from keras import KerasTensor

from kapps import _layers, custom_layers
from kapps._errors import InputError, check_whole, is_whole
from kapps._layers import act, bn, conv
from kapps._model import CIFAR_MEAN, CIFAR_STD, model
from kapps._network import Architecture, Net, pooled_head


def _shortcut(x: KerasTensor, filters: int, stride: int, path: str) -> KerasTensor:
    """[Average pooling at stride 2,] zeros for the channels that are new."""
    if stride == 2:  # "same": a side of odd length is halved upwards, as the convolution does
        x = _layers.avg_pool(x, 2, 2, f"{path}.downsample", padding="same")
    if x.shape[-1] == filters:
        return x
    return custom_layers.ChannelPad(filters, name=f"{_layers.layer_name(path)}_pad")(x)


def _basic(x: KerasTensor, planes: int, stride: int, path: str) -> KerasTensor:
    """BN, 3x3, BN, ReLU, 3x3, BN: figure 6d of the paper."""
    x = conv(bn(x, f"{path}.bn1"), planes, 3, f"{path}.conv1", stride=stride)
    x = act(bn(x, f"{path}.bn2"), "relu", f"{path}.relu1")
    return bn(conv(x, planes, 3, f"{path}.conv2"), f"{path}.bn3")


def _bottleneck(x: KerasTensor, planes: int, stride: int, path: str) -> KerasTensor:
    """BN, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1 to four times the channels, BN."""
    x = conv(bn(x, f"{path}.bn1"), planes, 1, f"{path}.conv1")
    x = act(bn(x, f"{path}.bn2"), "relu", f"{path}.relu1")
    x = conv(x, planes, 3, f"{path}.conv2", stride=stride)
    x = act(bn(x, f"{path}.bn3"), "relu", f"{path}.relu2")
    return bn(conv(x, 4 * planes, 1, f"{path}.conv3"), f"{path}.bn4")


def _pyramid(
    x: KerasTensor, net: Net, repeats: Sequence[int], alpha: int, bottleneck: bool
) -> KerasTensor:
    """Residual blocks of steadily more channels, `alpha` more at the end; BN, ReLU."""
    start, total = x.shape[-1], sum(repeats)
    block = _bottleneck if bottleneck else _basic
    for k, (i, j) in enumerate(net.blocks(repeats), start=1):
        path, stride = f"layer{i + 1}.{j}", 2 if i > 0 and j == 0 else 1
        # Equation 2 of the paper with the sum rounded to the nearest, as the authors' code has it:
        # rounding every step, as the paper writes it, would never add a channel at an increment
        # below 1, which alpha = 48 at depth 110 is.
        planes = start + (2 * alpha * k + total) // (2 * total)
        y = block(x, planes, stride, path)
        x = net.add(y, _shortcut(x, y.shape[-1], stride, path), path)
    return act(bn(x, "bn_final"), "relu", "relu_final")


@model(size=32, min_size=1, classes=10, mean=CIFAR_MEAN, std=CIFAR_STD)
def PyramidNet(depth: int = 110, alpha: int = 48, bottleneck: bool = False) -> Architecture:
    """PyramidNet for CIFAR: 1,772,706 parameters, 403.8 million MACs at 32 px by default.

    `alpha` channels (1 or more) are added between the first convolution's 16 and the last block, in
    equal steps. The paper has alpha 48, 84 and 270 at depth 110, and with `bottleneck` 200 at depth
    272. `depth` counts the convolutions and the classifier: 2 + 6 n, with bottleneck 2 + 9 n.
    Anything else raises `InputError`.

    The paper counts no batch norms: without them depth 272 has its 26.0 million parameters, and
    with them 26.2. At depth 110 it prints 1.7, 3.8 and 28.3 million for networks of 1.76, 3.89 and
    28.44, or 1.77, 3.90 and 28.49 with batch norms.
    """
    unit = 9 if bottleneck else 6
    if not is_whole(depth) or depth < 2 + unit or (depth - 2) % unit:
        raise InputError(
            f"PyramidNet: depth must be 2 + {unit} n for a whole n above 0 "
            f"{'with' if bottleneck else 'without'} bottleneck, not {depth!r}"
        )
    n, alpha = (int(depth) - 2) // unit, check_whole("PyramidNet", "alpha", alpha)

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = bn(conv(x, 16, 3, "conv1"), "bn1")
        return _pyramid(x, net, (n, n, n), alpha, bottleneck)

    return Architecture(features, lambda x, net: pooled_head(x, net, "fc"))


@model()
def PyramidNet200() -> Architecture:
    """PyramidNet-200, alpha = 300: 62,368,168 parameters, 16,550.5 million MACs at 224 px.

    The paper's 62.1 million are those without the batch norms.
    """

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = act(bn(conv(x, 64, 7, "conv1", stride=2), "bn1"), "relu", "relu")
        x = _layers.max_pool(x, 3, 2, "maxpool", padding="symmetric")
        return _pyramid(x, net, (3, 24, 36, 3), alpha=300, bottleneck=True)

    return Architecture(features, lambda x, net: pooled_head(x, net, "fc"))
