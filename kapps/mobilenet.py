"""MobileNet: Howard et al. 2017, "MobileNets: Efficient Convolutional Neural Networks for Mobile
Vision Applications".

Layer names are those of timm's `mobilenetv1_*`, to whose logits the networks are equal.
"""

from __future__ import annotations

from keras import KerasTensor

from kapps._layers import act, bn, conv, depthwise, make_divisible
from kapps._mbconv import check_alpha
from kapps._model import HALF, model
from kapps._network import Architecture, Net

# Table 1 of the paper: repeats, filters, stride of the first
_STAGES = (
    (1, 64, 1),
    (2, 128, 2),
    (2, 256, 2),
    (6, 512, 2),
    (2, 1024, 2),
)


def _separable(x: KerasTensor, filters: int, stride: int, path: str) -> KerasTensor:
    """3x3 depthwise, BN, ReLU6, 1x1, BN, ReLU6."""
    x = depthwise(x, 3, f"{path}.conv_dw", stride=stride)
    x = act(bn(x, f"{path}.bn1"), "relu6", f"{path}.act1")
    x = conv(x, filters, 1, f"{path}.conv_pw")
    return act(bn(x, f"{path}.bn2"), "relu6", f"{path}.act2")


def mobilenet(alpha: float) -> Architecture:
    """A MobileNet whose channels are multiplied by `alpha`."""

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = conv(x, make_divisible(32 * alpha), 3, "conv_stem", stride=2)
        x = act(bn(x, "bn1"), "relu6", "act1")
        for i, (repeats, filters, stride) in enumerate(_STAGES):
            for j in range(repeats):
                path = f"blocks.{i}.{j}"
                x = _separable(x, make_divisible(filters * alpha), stride if j == 0 else 1, path)
        return x

    return Architecture(features)


# The dropout is that of the authors' TensorFlow code, mobilenet_v1.py in tensorflow/models.
@model(dropout_rate=0.001, mean=HALF, std=HALF)
def MobileNet(alpha: float = 1.0) -> Architecture:
    """MobileNet of any width: 4,231,976 parameters, 568.7 million MACs at 224 px by default.

    `alpha`, above 0, multiplies the channels of all layers, which are rounded to multiples of 8;
    the paper has 1.0, 0.75, 0.5 and 0.25. Anything else raises `InputError`.
    """
    return mobilenet(check_alpha("MobileNet", alpha))


@model(dropout_rate=0.001, mean=HALF, std=HALF)
def MobileNet_125() -> Architecture:
    """MobileNet 1.25: 6,270,840 parameters, 879.5 million MACs at 224 px."""
    return mobilenet(1.25)
