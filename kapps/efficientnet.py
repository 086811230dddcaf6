"""EfficientNet-Lite: EfficientNet (Tan and Le 2019) made fit for phones by its authors.

https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite: no
squeeze-and-excitation, ReLU6 for swish, and a stem and head that do not scale. Layer names are
those of timm's `tf_efficientnet_lite*`, to whose logits the networks are equal: the reference was
born in TensorFlow, hence its padding and its batch norm epsilon.
"""

from __future__ import annotations

import functools
import math

from keras import KerasTensor

from kapps._layers import act, bn, conv, make_divisible
from kapps._mbconv import MBConv
from kapps._model import Architecture, Net, model

# Table 1 of the paper: repeats, kernel, stride, expansion, filters
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def efficientnet_lite(width: float, depth: float) -> Architecture:
    """An EfficientNet-Lite whose channels and repeats are scaled by `width` and `depth`."""
    norm = functools.partial(bn, epsilon=1e-3, momentum=0.99)
    block = MBConv("same", norm)
    repeats = [math.ceil(n * depth) for n, *_ in _STAGES]
    repeats[0] = repeats[-1] = 1  # Lite scales neither the first nor the last stage's depth

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = conv(x, 32, 3, "conv_stem", stride=2, padding="same")
        x = act(norm(x, "bn1"), "relu6", "act1")
        total, done = sum(repeats), 0
        for i, (_, kernel, stride, expansion, filters) in enumerate(_STAGES):
            for j in range(repeats[i]):
                x = block(
                    x,
                    net,
                    f"blocks.{i}.{j}",
                    kernel=kernel,
                    stride=stride if j == 0 else 1,
                    expanded=x.shape[-1] * expansion,
                    filters=make_divisible(filters * width),
                    activation="relu6",
                    depth=done / total,
                )
                done += 1
        x = conv(x, 1280, 1, "conv_head")
        return act(norm(x, "bn2"), "relu6", "act2")

    return Architecture(features)


@model(dropout_rate=0.2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
def EfficientNetLite0() -> Architecture:
    """EfficientNet-Lite0: 4,652,008 parameters, 385.2 million MACs at 224 px."""
    return efficientnet_lite(1.0, 1.0)
