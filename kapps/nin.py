"""NiN: Lin et al. 2013, "Network In Network", the network for CIFAR-10.

Layer names are those of the authors' model for Caffe. Both pools take the maximum, as the paper
says; in that model the second takes the mean.
"""

from __future__ import annotations

from keras import KerasTensor

from kapps._layers import act, conv, global_pool, max_pool
from kapps._model import CIFAR_MEAN, CIFAR_STD, model
from kapps._network import Architecture, Net

# Kernel, and filters of the three layers of a block; the last layer of all is the classifier.
_BLOCKS = ((5, (192, 160, 96)), (5, (192, 192, 192)), (3, (192, 192)))


def _features(x: KerasTensor, net: Net) -> KerasTensor:
    """Three mlpconv blocks (k x k, ReLU, 1x1, ReLU, 1x1, ReLU), pool and dropout between them."""
    for i, (kernel, (first, *others)) in enumerate(_BLOCKS):
        if i > 0:
            x = max_pool(x, 3, 2, f"pool{i}", padding="ceil")
            x = net.dropout(x, f"drop{i}")
        x = act(conv(x, first, kernel, f"conv{i + 1}", bias=True), "relu", f"relu_conv{i + 1}")
        for j, filters in enumerate(others, start=2 * i + 1):
            x = act(conv(x, filters, 1, f"cccp{j}", bias=True), "relu", f"relu_cccp{j}")
    return x


def _head(x: KerasTensor, net: Net) -> KerasTensor:
    """1x1 to the classes, ReLU, global mean: each class has its map (section 3.2)."""
    x = act(net.conv_classifier(x, "cccp6"), "relu", "relu_cccp6")
    return net.activate(global_pool(x, "global_pool"))


@model(size=32, min_size=4, classes=10, dropout_rate=0.5, mean=CIFAR_MEAN, std=CIFAR_STD)
def NiN() -> Architecture:
    """NiN for CIFAR-10: 966,986 parameters, 222.5 million MACs at 32 px."""
    return Architecture(_features, _head)
