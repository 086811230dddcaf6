"""LeNet-5: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition".

The modern form: full connections between the first two convolutions, ReLU, max-pooling and a
softmax. Layer names are those of the network in PyTorch's tutorial "Training a Classifier".
"""

from __future__ import annotations

from keras import KerasTensor, layers

from kapps._errors import InputError
from kapps._layers import act, conv, dense, flat_dense, max_pool
from kapps._model import Architecture, Net, model


def _features(x: KerasTensor, net: Net) -> KerasTensor:
    """5x5, ReLU, max-pool, 5x5, ReLU, max-pool: C1 to S4 of the paper's figure 2."""
    x = act(conv(x, 6, 5, "conv1", bias=True, padding="valid"), "relu", "relu1")
    x = max_pool(x, 2, 2, "pool1")
    x = act(conv(x, 16, 5, "conv2", bias=True, padding="valid"), "relu", "relu2")
    return max_pool(x, 2, 2, "pool2")


def _head(x: KerasTensor, net: Net) -> KerasTensor:
    """C5 as a convolution over the whole map, ReLU, F6, ReLU, output."""
    if None in x.shape[1:3]:
        raise InputError(
            "LeNet5 with its classifier needs a fixed height and width: give input_shape such as "
            "(32, 32, 1), or include_top=False"
        )
    x = act(flat_dense(x, 120, "fc1"), "relu", "relu3")
    x = layers.Flatten(name="flatten")(x)
    x = act(dense(x, 84, "fc2"), "relu", "relu4")
    return net.classifier(net.dropout(x), "fc3")


# Mean and standard deviation are those of MNIST's training images.
@model(size=32, channels=1, min_size=16, classes=10, mean=(0.1307,), std=(0.3081,))
def LeNet5() -> Architecture:
    """LeNet-5, modern form: 61,706 parameters at 32x32x1."""
    return Architecture(_features, _head)
