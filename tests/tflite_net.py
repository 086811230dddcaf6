"""The networks of the tests of kapps.tflite: a small one, and those of phones."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers
from nights import at_night

from kapps import _layers, custom_layers, ghostnet_v2
from kapps._network import Net, Regularization, pooled_head

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# The networks that are made for phones.
_NETS = (
    *("MobileNetV3Small", "ShuffleNet", "ShuffleNetV2_x0_5", "EfficientNetB0"),
    *("MobileNet", "MobileNetV2", "MobileNetV3Large", "EfficientNetLite0", "EfficientNetV2B0"),
    "MobileNetV4ConvSmall",
)


def phone_nets(*often: str) -> list[object]:
    """Their names, as a test's parameters: those that are not among `often` run at night."""
    return [*often, *at_night(*(name for name in _NETS if name not in often))]


def smooth_images(n: int, side: int) -> np.ndarray:
    """Squares of colors, which no check takes for noise."""
    coarse = np.random.default_rng(1).uniform(0, 255, (n, 4, 4, 3))
    return np.kron(coarse, np.ones((1, side // 4, side // 4, 1))).astype("uint8")


def gated_net() -> keras.Model:
    """Two blocks of GhostNetV2, whose gates are enlarged to 7 pixels and to 4."""
    x = image = keras.Input((16, 16, 3))
    x = custom_layers.ImageNormalization(0.3, 0.4, name="normalization")(x)
    x = _layers.conv(x, 8, 3, "stem", stride=2, padding="valid")
    x = _layers.act(_layers.bn(x, "bn1"), "relu", "act1")
    net = Net(Regularization(), 10, "softmax")
    block = {"kernel": 3, "expanded": 16, "filters": 8, "attention": True}
    x = ghostnet_v2._bottleneck(x, net, "odd", stride=2, se_channels=4, **block)
    x = ghostnet_v2._bottleneck(x, net, "even", stride=1, se_channels=0, **block)
    return keras.Model(image, pooled_head(x, net), name="gated_net")


def small_net(channels: int = 3) -> keras.Model:
    """All that is hard on a converter, small: hard-swish, a hard-sigmoid gate, shuffle, noise."""
    x = image = keras.Input((16, 16, channels))
    x = custom_layers.ImageNormalization(0.3, 0.4, name="normalization")(x)
    x = _layers.conv(x, 16, 3, "stem", stride=2)
    x = shortcut = _layers.act(_layers.bn(x, "bn1"), "hard_silu", "act1")
    x = _layers.bn(_layers.depthwise(x, 3, "dw"), "bn2")
    x = _layers.se(_layers.act(x, "hard_silu", "act2"), 4, "se", gate="hard_sigmoid")
    x = _layers.bn(_layers.conv(x, 16, 1, "pw"), "bn3")
    x = custom_layers.StochasticDepth(0.1, name="drop_path")(x)
    x = layers.Add(name="add")([x, shortcut])
    x = custom_layers.ChannelShuffle(2, name="shuffle")(x)
    x = _layers.act(_layers.bn(_layers.conv(x, 32, 3, "last"), "bn4"), "relu6", "act4")
    x = layers.GaussianNoise(0.1, name="noise")(x)
    x = layers.Dropout(0.1, name="dropout")(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(image, _layers.dense(x, 10, "head", "softmax"), name="small_net")
