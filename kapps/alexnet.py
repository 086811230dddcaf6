"""AlexNet: Krizhevsky et al. 2012, "ImageNet Classification with Deep CNNs".

`AlexNet` is the one-tower form (Krizhevsky 2014, "One weird trick for parallelizing convolutional
neural networks"), whose layer names are those of torchvision's `alexnet`, to whose logits it is
equal. `AlexNetOriginal` is the network of 2012, with its layers' names in Caffe's model zoo.
"""

from __future__ import annotations

import keras
from keras import KerasTensor, layers, ops

from kapps import _layers
from kapps._layers import act, conv, dense, flat_dense, max_pool
from kapps._model import IMAGENET_MEAN, model
from kapps._network import Architecture, Net
from kapps.custom_layers import LocalResponseNormalization


def _features(x: KerasTensor, net: Net) -> KerasTensor:
    """11x11, pool, 5x5, pool, 3x3, 3x3, 3x3, pool; a ReLU behind every convolution."""
    x = conv(x, 64, 11, "features.0", stride=4, bias=True, padding=2)
    x = max_pool(act(x, "relu", "features.1"), 3, 2, "features.2")
    x = conv(x, 192, 5, "features.3", bias=True)
    x = max_pool(act(x, "relu", "features.4"), 3, 2, "features.5")
    for i, filters in ((6, 384), (8, 256), (10, 256)):
        x = conv(x, filters, 3, f"features.{i}", bias=True)
        x = act(x, "relu", f"features.{i + 1}")
    return max_pool(x, 3, 2, "features.12")


def _head(x: KerasTensor, net: Net) -> KerasTensor:
    """Mean over 6x6 windows, dropout, 4096, ReLU, dropout, 4096, ReLU, classifier."""
    x = net.dropout(_layers.adaptive_pool(x, (6, 6), "avgpool"), "classifier.0")
    x = act(flat_dense(x, 4096, "classifier.1"), "relu", "classifier.2")
    x = net.dropout(layers.Flatten(name="flatten")(x), "classifier.3")
    x = act(dense(x, 4096, "classifier.4"), "relu", "classifier.5")
    return net.classifier(x, "classifier.6")


def _started(x: KerasTensor, bias: float) -> KerasTensor:
    """Redraws the weights of the layer that made `x` as section 5 of the paper says."""
    layer = x._keras_history.operation
    layer.kernel.assign(keras.random.normal(layer.kernel.shape, stddev=0.01))
    layer.bias.assign(ops.full(layer.bias.shape, bias))
    return x


# Figure 2 of the paper: filters, kernel, stride, groups (the two GPUs), initial bias (section 5),
# response normalization, pooling
_CONVOLUTIONS = (
    (96, 11, 4, 1, 0.0, True, True),
    (256, 5, 1, 2, 1.0, True, True),
    (384, 3, 1, 1, 0.0, False, False),
    (384, 3, 1, 2, 1.0, False, False),
    (256, 3, 1, 2, 1.0, False, True),
)


def _original_features(x: KerasTensor, net: Net) -> KerasTensor:
    """Five times convolution, ReLU, response normalization, overlapping max-pool, as the table."""
    for i, (filters, kernel, stride, groups, bias, norm, pool) in enumerate(_CONVOLUTIONS, start=1):
        padding: _layers.Padding = "valid" if stride > 1 else "symmetric"
        path = f"conv{i}"
        x = conv(x, filters, kernel, path, stride=stride, groups=groups, bias=True, padding=padding)
        x = act(_started(x, bias), "relu", f"relu{i}")
        if norm:
            x = LocalResponseNormalization(name=f"norm{i}")(x)
        if pool:
            x = max_pool(x, 3, 2, f"pool{i}")
    return x


def _original_head(x: KerasTensor, net: Net) -> KerasTensor:
    """4096, ReLU, dropout, 4096, ReLU, dropout, classifier."""
    x = act(_started(flat_dense(x, 4096, "fc6"), 1.0), "relu", "relu6")
    x = net.dropout(layers.Flatten(name="flatten")(x), "drop6")
    x = act(_started(dense(x, 4096, "fc7"), 1.0), "relu", "relu7")
    return _started(net.classifier(net.dropout(x, "drop7"), "fc8"), 0.0)


@model(min_size=63, dropout_rate=0.5)
def AlexNet() -> Architecture:
    """AlexNet, one tower: 61,100,840 parameters, 714.2 million MACs at 224 px."""
    return Architecture(_features, _head)


# The paper subtracts the mean and leaves the scale at 0..255, which its constants in the response
# normalization and its initial weights are made for.
@model(size=227, min_size=67, dropout_rate=0.5, mean=IMAGENET_MEAN, std=(1 / 255,) * 3)
def AlexNetOriginal() -> Architecture:
    """AlexNet as published: 60,965,224 parameters, 724.4 million MACs at 227 px.

    Two groups in convolutions 2, 4 and 5, response normalization behind the first two, and the
    paper's initial weights. The paper's 224 px do not fit its own 55x55 map; 227 do.
    """
    return Architecture(_original_features, _original_head)
