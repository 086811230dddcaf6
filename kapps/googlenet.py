"""GoogLeNet: Szegedy et al. 2014, "Going Deeper with Convolutions".

Layer names are those of torchvision's `googlenet`. `GoogLeNet` is equal to its logits: batch norm,
and a 3x3 convolution where the paper has 5x5, which its weights were trained with
(https://github.com/pytorch/vision/issues/906). `GoogLeNetOriginal` is the network of the paper.
`SEGoogLeNet` adds squeeze-and-excitation to the former.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
from keras import KerasTensor, layers

from kapps import _layers
from kapps._errors import InputError
from kapps._layers import act, bn, conv, flat_dense, max_pool
from kapps._model import HALF, IMAGENET_MEAN, model
from kapps._network import Architecture, Net
from kapps.custom_layers import LocalResponseNormalization

# Table 1 of the paper: filters of the 1x1, of the 3x3 and its 1x1, of the 5x5 and its 1x1, and of
# the 1x1 behind the pool
_MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_AUXILIARY = {"4a": "aux1", "4d": "aux2"}


def _unit(
    x: KerasTensor, filters: int, kernel: int, path: str, *, stride: int = 1, norm: bool
) -> KerasTensor:
    """k x k, BN, ReLU; without BN the convolution has a bias."""
    x = conv(x, filters, kernel, f"{path}.conv", stride=stride, bias=not norm)
    if norm:
        x = bn(x, f"{path}.bn", epsilon=1e-3)
    else:
        # Nothing keeps the scale here: the start over fan_out, as elsewhere, makes logits of
        # thousands, for a reduction has far fewer outputs than inputs. As Caffe's model starts:
        layer = x._keras_history.operation
        limit = math.sqrt(3 / math.prod(layer.kernel.shape[:-1]))
        layer.kernel.assign(keras.random.uniform(layer.kernel.shape, -limit, limit))
        layer.bias.assign(keras.ops.full(layer.bias.shape, 0.2))
    return act(x, "relu", f"{path}.relu")


def _module(
    x: KerasTensor, filters: tuple[int, ...], path: str, *, wide: int, norm: bool
) -> KerasTensor:
    """1x1 | 1x1, 3x3 | 1x1, wide x wide | 3x3 max-pool, 1x1: side by side (figure 2b)."""
    one, reduced3, three, reduced5, five, projected = filters
    a = _unit(x, one, 1, f"{path}.branch1", norm=norm)
    b = _unit(x, reduced3, 1, f"{path}.branch2.0", norm=norm)
    b = _unit(b, three, 3, f"{path}.branch2.1", norm=norm)
    c = _unit(x, reduced5, 1, f"{path}.branch3.0", norm=norm)
    c = _unit(c, five, wide, f"{path}.branch3.1", norm=norm)
    d = max_pool(x, 3, 1, f"{path}.branch4.0", padding="symmetric")
    d = _unit(d, projected, 1, f"{path}.branch4.1", norm=norm)
    return layers.Concatenate(name=_layers.layer_name(f"{path}.concat"))([a, b, c, d])


def _auxiliary(x: KerasTensor, net: Net, path: str, *, norm: bool) -> KerasTensor:
    """Mean of 4x4 windows, 1x1, [BN,] ReLU, 1024, ReLU, dropout 0.7, classifier.

    The windows of the paper, 5x5 at stride 3, are 4x4 on its map of 14x14.
    """
    if norm:
        x = _layers.adaptive_pool(x, (4, 4), f"{path}.pool")
    else:
        if any(side is not None and side < 5 for side in x.shape[1:3]):
            raise InputError(
                "GoogLeNetOriginal: the auxiliary classifiers average windows of 5x5, which the "
                f"map of {x.shape[1]}x{x.shape[2]} does not hold; give an input of 79 pixels or "
                "more a side, or aux=False"
            )
        x = _layers.avg_pool(x, 5, 3, f"{path}.pool")
    x = _unit(x, 128, 1, f"{path}.conv", norm=norm)
    x = act(flat_dense(x, 1024, f"{path}.fc1"), "relu", f"{path}.relu")
    x = layers.Flatten(name=f"{path}_flatten")(x)
    return net.classifier(net.dropout(x, f"{path}.dropout", rate=0.7), f"{path}.fc2")


def _pass(x: KerasTensor, path: str) -> KerasTensor:
    return x


def googlenet(
    *,
    original: bool = False,
    aux: bool = False,
    recalibrate: Callable[[KerasTensor, str], KerasTensor] = _pass,
) -> Architecture:
    """A GoogLeNet; `recalibrate` is what follows each module, given its path."""
    norm, wide = not original, 5 if original else 3
    taps: dict[str, KerasTensor] = {}  # what the auxiliary classifiers see

    def respond(x: KerasTensor, path: str) -> KerasTensor:
        """Figure 3 of the paper has response normalizations, its table 1 leaves them out."""
        return LocalResponseNormalization(name=path)(x) if original else x

    def features(x: KerasTensor, net: Net) -> KerasTensor:
        x = _unit(x, 64, 7, "conv1", stride=2, norm=norm)
        x = respond(max_pool(x, 3, 2, "maxpool1", padding="ceil"), "norm1")
        x = _unit(x, 64, 1, "conv2", norm=norm)
        x = respond(_unit(x, 192, 3, "conv3", norm=norm), "norm2")
        x = max_pool(x, 3, 2, "maxpool2", padding="ceil")
        for name, filters in _MODULES.items():
            if name == "4a":
                x = max_pool(x, 3, 2, "maxpool3", padding="ceil")
            elif name == "5a":  # 2x2 is torchvision's
                x = max_pool(x, 3 if original else 2, 2, "maxpool4", padding="ceil")
            path = f"inception{name}"
            x = recalibrate(_module(x, filters, path, wide=wide, norm=norm), path)
            if name in _AUXILIARY:
                taps[_AUXILIARY[name]] = x
        return x

    def head(x: KerasTensor, net: Net) -> KerasTensor | list[KerasTensor]:
        """Global mean, dropout, classifier."""
        x = net.classifier(net.dropout(_layers.global_pool(x, "avgpool")), "fc")
        if not aux:
            return x
        return [x, *(_auxiliary(tap, net, path, norm=norm) for path, tap in taps.items())]

    # Both losses are weighed by 0.3: section 5 of the paper.
    return Architecture(features, head, auxiliary=("aux1.", "aux2."), auxiliary_weight=0.3)


# The published weights come from a network that took images in -1..1.
@model(min_size=15, dropout_rate=0.2, mean=HALF, std=HALF)
def GoogLeNet(aux: bool = False) -> Architecture:
    """GoogLeNet with batch norm: 6,624,904 parameters, 1,498.4 million MACs at 224 px.

    With `aux`, and with the classifier, the model has three outputs: the main one and those of the
    auxiliary classifiers on modules 4a and 4d, all through `classifier_activation`; 13,004,888
    parameters. They are for training: the model's `auxiliary_weights` are what their losses count.
    """
    return googlenet(aux=aux)


# The paper subtracts the mean and leaves the scale at 0..255.
@model(min_size=31, dropout_rate=0.4, mean=IMAGENET_MEAN, std=(1 / 255,) * 3)
def GoogLeNetOriginal(aux: bool = False) -> Architecture:
    """GoogLeNet as published: 6,998,552 parameters, 1,582.7 million MACs at 224 px.

    5x5 convolutions, response normalization, no batch norm. The paper's 1.5 billion MACs are the
    sum of its table 1, which has 34 million for the first convolution; 7x7x3 to 112x112x64 are 118.

    With `aux`, and with the classifier, the model has three outputs: the main one and those of the
    auxiliary classifiers on modules 4a and 4d, all through `classifier_activation`; 13,378,280
    parameters. They are for training: the model's `auxiliary_weights` are what their losses count,
    0.3 in the paper. They need an input of 79 pixels or more a side.
    """
    return googlenet(original=True, aux=aux)


def _squeeze_excite(x: KerasTensor, path: str) -> KerasTensor:
    return _layers.se(x, x.shape[-1] // 16, f"{path}.se", names=("fc1", "fc2"))


@model(min_size=15, dropout_rate=0.2)
def SEGoogLeNet() -> Architecture:
    """GoogLeNet with squeeze-and-excitation: 7,105,007 parameters, 1,498.9 million MACs at 224 px.

    Hu et al. 2018, "Squeeze-and-Excitation Networks", figure 2: behind each Inception module, with
    a reduction of 16. Here the modules are those of `GoogLeNet`.
    """
    return googlenet(recalibrate=_squeeze_excite)
