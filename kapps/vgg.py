"""VGG: Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Recognition".

Layer names are those of timm's `vgg*`, to whose logits the networks are equal at any size. The
batch-normalized ones are not in the paper; they came with torchvision.
"""

from __future__ import annotations

from keras import KerasTensor

from kapps import _layers
from kapps._layers import act, bn, conv, max_pool
from kapps._model import model
from kapps._network import Architecture, Net


def vgg(repeats: tuple[int, int, int, int, int], *, norm: bool = False) -> Architecture:
    """A VGG with that many convolutions in each of the five stages."""

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        """Stages of (3x3, [BN,] ReLU) times n, max-pool."""
        i = 0  # timm numbers all the layers in one sequence
        for n, filters in zip(repeats, (64, 128, 256, 512, 512), strict=True):
            for _ in range(n):
                x = conv(x, filters, 3, f"features.{i}", bias=True)
                if norm:
                    x, i = bn(x, f"features.{i + 1}"), i + 1
                x, i = act(x, "relu", f"features.{i + 1}"), i + 2
            x, i = max_pool(x, 2, 2, f"features.{i}"), i + 1
        return x

    def head(x: KerasTensor, net: Net) -> KerasTensor:
        """7x7 to 4096, ReLU, dropout, 1x1, ReLU, global mean, dropout, classifier.

        The paper's fully connected layers, applied at all places of a larger map (section 3.2).
        """
        _layers.check_fixed(x)
        height, width = (max(side, 7) for side in x.shape[1:3])
        x = _layers.adaptive_pool(x, (height, width), "pre_logits.pool")
        x = conv(x, 4096, 7, "pre_logits.fc1", bias=True, padding="valid")
        x = net.dropout(act(x, "relu", "pre_logits.act1"), "pre_logits.drop")
        x = act(conv(x, 4096, 1, "pre_logits.fc2", bias=True), "relu", "pre_logits.act2")
        x = net.dropout(_layers.global_pool(x, "head.global_pool"), "head.drop")
        return net.classifier(x, "head.fc")

    return Architecture(features, head)


# Table 1 of the paper, columns A, B, D and E: convolutions in each stage
_VGG11, _VGG13 = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2)
_VGG16, _VGG19 = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)


@model(dropout_rate=0.5)
def VGG11() -> Architecture:
    """VGG-11: 132,863,336 parameters, 7,609.1 million MACs at 224 px."""
    return vgg(_VGG11)


@model(dropout_rate=0.5)
def VGG11_BN() -> Architecture:
    """VGG-11 with batch norm: 132,868,840 parameters, 7,609.1 million MACs at 224 px."""
    return vgg(_VGG11, norm=True)


@model(dropout_rate=0.5)
def VGG13() -> Architecture:
    """VGG-13: 133,047,848 parameters, 11,308.5 million MACs at 224 px."""
    return vgg(_VGG13)


@model(dropout_rate=0.5)
def VGG13_BN() -> Architecture:
    """VGG-13 with batch norm: 133,053,736 parameters, 11,308.5 million MACs at 224 px."""
    return vgg(_VGG13, norm=True)


@model(dropout_rate=0.5)
def VGG16() -> Architecture:
    """VGG-16: 138,357,544 parameters, 15,470.3 million MACs at 224 px."""
    return vgg(_VGG16)


@model(dropout_rate=0.5)
def VGG16_BN() -> Architecture:
    """VGG-16 with batch norm: 138,365,992 parameters, 15,470.3 million MACs at 224 px."""
    return vgg(_VGG16, norm=True)


@model(dropout_rate=0.5)
def VGG19() -> Architecture:
    """VGG-19: 143,667,240 parameters, 19,632.1 million MACs at 224 px."""
    return vgg(_VGG19)


@model(dropout_rate=0.5)
def VGG19_BN() -> Architecture:
    """VGG-19 with batch norm: 143,678,248 parameters, 19,632.1 million MACs at 224 px."""
    return vgg(_VGG19, norm=True)
