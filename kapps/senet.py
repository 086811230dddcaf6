"""SENet: Hu et al. 2018, "Squeeze-and-Excitation Networks".

ResNets and ResNeXts whose blocks weigh their channels before the residual sum. Layer names are
those of timm's `seresnet*`, `seresnext*` and `senet154`, to whose logits the networks are equal.
"""

from __future__ import annotations

from kapps._model import model
from kapps._network import Architecture
from kapps.resnet import Block, resnet


@model()
def SEResNet18() -> Architecture:
    """SE-ResNet-18: 11,779,624 parameters, 1,814.2 million MACs at 224 px."""
    return resnet((2, 2, 2, 2), Block(bottleneck=False, se=True))


@model()
def SEResNet34() -> Architecture:
    """SE-ResNet-34: 21,960,416 parameters, 3,663.9 million MACs at 224 px."""
    return resnet((3, 4, 6, 3), Block(bottleneck=False, se=True))


@model()
def SEResNet50() -> Architecture:
    """SE-ResNet-50: 28,088,024 parameters, 4,091.7 million MACs at 224 px."""
    return resnet((3, 4, 6, 3), Block(se=True))


@model()
def SEResNet101() -> Architecture:
    """SE-ResNet-101: 49,326,872 parameters, 7,806.1 million MACs at 224 px."""
    return resnet((3, 4, 23, 3), Block(se=True))


@model()
def SEResNet152() -> Architecture:
    """SE-ResNet-152: 66,821,848 parameters, 11,520.2 million MACs at 224 px."""
    return resnet((3, 8, 36, 3), Block(se=True))


@model()
def SEResNeXt50() -> Architecture:
    """SE-ResNeXt-50 (32x4d): 27,559,896 parameters, 4,233.0 million MACs at 224 px."""
    return resnet((3, 4, 6, 3), Block(cardinality=32, width=4, se=True))


@model()
def SEResNeXt101() -> Architecture:
    """SE-ResNeXt-101 (32x4d): 48,955,416 parameters, 7,974.7 million MACs at 224 px."""
    return resnet((3, 4, 23, 3), Block(cardinality=32, width=4, se=True))


# The paper's appendix: a deep stem, 3x3 convolutions in the shortcuts, and half the channels in
# the first convolution of a block. Its dropout of 0.2 before the classifier is not timm's default.
@model()
def SENet154() -> Architecture:
    """SENet-154: 115,088,984 parameters, 20,688.4 million MACs at 224 px."""
    block = Block(cardinality=64, width=4, se=True, shortcut_kernel=3, halved=True)
    return resnet((3, 8, 36, 3), block, deep_stem=True)
