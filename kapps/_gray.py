"""The first layers of a colour network for gray images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import layers

from kapps._layers import layer_name


def gray_stem(
    tensors: dict[str, np.ndarray],
    stem: keras.Layer,
    name: Callable[[keras.Layer], str],
    mean: Sequence[float] | float,
    std: Sequence[float] | float,
) -> dict[str, np.ndarray]:
    """The tensors of a colour network for one that takes gray images, and has one kernel a filter.

    It answers to a gray image as the other does to the image in all three colours, of which each is
    normalized by its own mean and standard deviation, and gray by the average of these. The sum of
    the kernels, each by its standard deviation, leaves a constant in each channel, which goes into
    the bias or the running mean of the batch norm that follows. It is exact but where the kernel
    reaches over the edge: there the padding is 0 in every colour, and the constant another. Where
    there is neither bias nor batch norm, as in networks of pre-activation, the constant is left.

    Args:
        tensors: by published names, in PyTorch's layout. They are returned as they are unless
            their first convolution is of these colours.
        stem: the first convolution of the gray network.
        name: that of a layer whose tensors these are.
        mean: of the colours, 0..1.
        std: likewise.
    """
    keys = {(layer_name(k.rpartition(".")[0]), k.rpartition(".")[2]): k for k in tensors}
    means, stds = (np.atleast_1d(np.asarray(x, np.float64)) for x in (mean, std))
    key = keys.get((name(stem), "weight"), "")
    kernel = tensors.get(key, np.empty(0))
    channels = kernel.shape[1] if kernel.ndim == 4 and kernel.dtype.kind == "f" else 1
    if channels == 1 or not channels == len(means) == len(stds):
        return tensors
    colours = (1, -1, 1, 1)
    by_std = kernel / stds.reshape(colours)
    constant = (by_std * (means - means.mean()).reshape(colours)).sum((1, 2, 3))
    changed = {key: by_std.sum(1, keepdims=True) * stds.mean()}
    readers = [node.operation for node in stem._outbound_nodes]
    if stem.use_bias:
        key = keys.get((name(stem), "bias"), "")
        constant = -constant
    elif len(readers) == 1 and isinstance(readers[0], layers.BatchNormalization):
        key = keys.get((name(readers[0]), "running_mean"), "")
    else:
        key = ""
    if key and tensors[key].dtype.kind == "f" and tensors[key].shape == constant.shape:
        changed[key] = tensors[key] + constant
    return tensors | {key: value.astype(np.float32) for key, value in changed.items()}
