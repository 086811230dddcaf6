"""Bias correction: what rounding a kernel adds to a layer's output, taken off its bias.

Nagel, van Baalen, Blankevoort and Welling 2019, "Data-Free Quantization Through Weight Equalization
and Bias Correction" (arXiv:1906.04721), section 4.2. A kernel that is rounded by E gives E x more
than the real one, on average E times the mean of x; the more the fewer products a sum has, as in a
depthwise convolution of nine. The mean of x is here that over the calibration images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kapps.tflite.refinement.constants import Weighted, weighted
from kapps.tflite.refinement.statistics import Channels


def correct_biases(
    model: Any,
    channels: Mapping[int, Channels],
    rounding: Callable[[Weighted], np.ndarray | None],
) -> None:
    """Corrects the bias of each convolution and dense layer that has one, in place.

    Zeros of padding count as if they were values like the others.

    Args:
        model: a file of floats as an object of the schema's.
        channels: of its tensors.
        rounding: gives the kernel of a layer as it will be; None if it stays as it is.
    """
    for layer in weighted(model):
        given, kernel = channels.get(int(layer.op.inputs[0])), rounding(layer)
        if layer.bias is not None and given is not None and kernel is not None:
            lost = _summed(layer, layer.kernel - kernel, given.mean)
            if lost is not None:
                layer.set_bias(layer.bias + lost)


def rounded(layer: Weighted) -> np.ndarray:
    """The kernel in 8 bits: 127 steps to the largest magnitude of each output channel."""
    kernel = layer.kernel
    others = tuple(n for n in range(kernel.ndim) if n != layer.axis)
    scale = np.abs(kernel).max(axis=others, keepdims=True).astype("float64") / 127
    scale[scale == 0] = 1
    return np.clip(np.rint(kernel / scale), -127, 127) * scale


def _summed(layer: Weighted, kernel: np.ndarray, mean: np.ndarray) -> np.ndarray | None:
    """The output channels of a kernel for an input that is `mean` everywhere, if it fits."""
    if layer.name == "FULLY_CONNECTED":
        return kernel @ mean if kernel.shape[1] == len(mean) else None
    sums = kernel.sum(axis=(1, 2))  # (filters, channels); of a depthwise one (1, filters)
    if layer.name == "DEPTHWISE_CONV_2D":
        return sums[0] * np.repeat(mean, sums.shape[1] // len(mean))
    groups = len(mean) // sums.shape[1]
    return np.einsum(
        "gfc,gc->gf", sums.reshape(groups, -1, sums.shape[1]), mean.reshape(groups, -1)
    ).reshape(-1)
