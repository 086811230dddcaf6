"""MobileNetV2: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks".

Layer names are those of timm's `mobilenetv2_*`, to whose logits the networks are equal.
"""

from __future__ import annotations

from keras import KerasTensor

from kapps._layers import act, bn, conv, make_divisible
from kapps._mbconv import MBConv, check_alpha
from kapps._model import model
from kapps._network import Architecture, Net

# Table 2 of the paper: expansion, filters, repeats, stride of the first
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(alpha: float) -> Architecture:
    """A MobileNetV2 whose channels are multiplied by `alpha`."""
    block = MBConv("symmetric", bn)

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = conv(x, make_divisible(32 * alpha), 3, "conv_stem", stride=2)
        x = act(bn(x, "bn1"), "relu6", "act1")
        for i, j in net.blocks(repeats for _, _, repeats, _ in _STAGES):
            expansion, filters, _, stride = _STAGES[i]
            x = block(
                x,
                net,
                f"blocks.{i}.{j}",
                kernel=3,
                stride=stride if j == 0 else 1,
                expanded=x.shape[-1] * expansion,
                filters=make_divisible(filters * alpha),
                activation="relu6",
            )
        # The last layer grows but does not shrink: section 6.1 of the paper.
        x = conv(x, max(1280, make_divisible(1280 * alpha)), 1, "conv_head")
        return act(bn(x, "bn2"), "relu6", "act2")

    return Architecture(features, drop_path_schedule="efficientnet")


# The dropout is that of the authors' TensorFlow code, mobilenet_v2.py in tensorflow/models.
@model(dropout_rate=0.2)
def MobileNetV2(alpha: float = 1.0) -> Architecture:
    """MobileNetV2 of any width: 3,504,872 parameters, 300.8 million MACs at 224 px by default.

    `alpha`, above 0, multiplies the channels of all layers, which are rounded to multiples of 8;
    those of the last convolution, 1280, only where it is above 1. Anything else raises
    `InputError`.
    """
    return mobilenet_v2(check_alpha("MobileNetV2", alpha))


@model(dropout_rate=0.2)
def MobileNetV2_035() -> Architecture:
    """MobileNetV2 0.35: 1,677,128 parameters, 59.3 million MACs at 224 px."""
    return mobilenet_v2(0.35)


@model(dropout_rate=0.2)
def MobileNetV2_050() -> Architecture:
    """MobileNetV2 0.5: 1,968,680 parameters, 97.1 million MACs at 224 px."""
    return mobilenet_v2(0.5)


@model(dropout_rate=0.2)
def MobileNetV2_075() -> Architecture:
    """MobileNetV2 0.75: 2,636,424 parameters, 209.1 million MACs at 224 px."""
    return mobilenet_v2(0.75)


@model(dropout_rate=0.2)
def MobileNetV2_140() -> Architecture:
    """MobileNetV2 1.4: 6,108,776 parameters, 582.2 million MACs at 224 px."""
    return mobilenet_v2(1.4)
