"""What the units of a network look for, and what they answer: filters and activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kapps._errors import InputError, check_whole
from kapps.explain._classifier import Classifier, as_array
from kapps.explain._graph import Tensor

_CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)


def filters(model: keras.Model, layer: str | None = None) -> np.ndarray:
    """The kernels of a convolution as pictures.

    Each filter is scaled by its largest magnitude: a weight of zero is mid-gray, 127.5, positive
    ones are brighter and negative ones darker. Where the model normalizes its images, the kernels
    are those that the normalized images meet.

    Args:
        model: a network, with classes or without.
        layer: a convolution; by default the first one.

    Returns:
        (count, height, width, channels), float32, 0..255. Kernels over one or three channels are
        gray or coloured pictures, in the order of the layer's channels. Of others each input
        channel is a gray picture of its own, the channels of one filter next to one another.

    Raises:
        InputError: there is no such layer, or it is no convolution.
    """
    net = Classifier(model, "filters", headless=True)
    kernel = _kernel(net, _convolution(net, layer))
    height, width, channels, count = kernel.shape
    pictures = np.moveaxis(kernel, -1, 0)
    largest = np.abs(pictures).max(axis=(1, 2, 3), keepdims=True)
    scaled = 127.5 + 127.5 * pictures / np.where(largest > 0, largest, 1)
    if channels not in (1, 3):
        scaled = np.moveaxis(scaled, -1, 1).reshape(count * channels, height, width, 1)
    return scaled.astype("float32")


def _convolution(net: Classifier, layer: str | None) -> Any:
    found = [call for call in net.calls if isinstance(call.operation, _CONVOLUTIONS)]
    if not found:
        raise InputError(f"filters: {net.model.name} has no two-dimensional convolution")
    if layer is None:
        return found[0].operation
    operation = net.maker(net.layer(layer)).operation
    if not isinstance(operation, _CONVOLUTIONS):
        raise InputError(
            f"filters: {layer} is a {type(operation).__name__}, no two-dimensional convolution; "
            f"the first one is {found[0].name}"
        )
    return operation


def _kernel(net: Classifier, operation: Any) -> np.ndarray:
    """(height, width, input channels that a filter sees, filters)."""
    if isinstance(operation, layers.SeparableConv2D):
        kernel = operation.depthwise_kernel
    else:
        kernel = operation.kernel
    weights: np.ndarray = ops.convert_to_numpy(kernel).astype("float32")
    if isinstance(operation, (layers.DepthwiseConv2D, layers.SeparableConv2D)):
        return weights.reshape(*weights.shape[:2], 1, -1)
    return weights


def activations(model: keras.Model, images: Any, layer: str | None = None) -> np.ndarray:
    """The feature maps of images at a layer.

    Args:
        model: a network, with classes or without.
        images: (N, height, width, channels) in the model's own range, or an iterable of batches
            of them, alone or first in a tuple, as a data set gives them.
        layer: which makes a map; by default the one that the head takes.

    Returns:
        (N, height, width, channels) of the map, float32.

    Raises:
        InputError: the images do not fit the model, or there is no such map.
    """
    net = Classifier(model, "activations", headless=True)
    at = net.features() if layer is None else net.map(layer)
    parts = [ops.convert_to_numpy(maps) for _, maps in maps_by_batch(net, images, at)]
    return np.concatenate(parts).astype("float32")


def maps_by_batch(net: Classifier, images: Any, at: Tensor) -> Iterator[tuple[np.ndarray, Any]]:
    """Images and their maps, a batch at a time: of a data set only the batch is in memory."""
    empty = True
    for given in [images] if hasattr(images, "shape") else _batches(net, images):
        empty = False
        checked = net.images(given)
        start = 0
        for (batch,) in net.batches(checked):
            stop = start + len(batch)
            yield checked[start:stop], net.maps_of(batch, [at])[0]
            start = stop
    if empty:
        raise InputError(f"{net.caller}: there are no images")


def _batches(net: Classifier, images: Any) -> Iterator[Any]:
    if not isinstance(images, Iterable) or isinstance(images, (str, bytes, dict)):
        raise InputError(
            f"{net.caller}: images must be an array (N, height, width, channels) or an iterable of "
            f"such batches, not {type(images).__name__}"
        )
    for batch in images:
        yield batch[0] if isinstance(batch, tuple) else batch


def check_channel(net: Classifier, at: Tensor, channel: Any) -> None:
    """Raises InputError if the map has no such channel."""
    check_whole(net.caller, "channel", channel, least=0)
    channels = at.shape[-1]
    if channels is not None and channel >= channels:
        raise InputError(
            f"{net.caller}: {net.name_of(at)} has the channels 0 to {channels - 1}, not {channel}"
        )


def grid(
    pictures: Any, columns: int | None = None, *, gap: int = 2, value: float = 255
) -> np.ndarray:
    """One picture of many, row by row.

    Args:
        pictures: (count, height, width, channels), or a list of pictures (height, width, channels)
            whose sizes may differ: each is in the middle of a cell of the largest height and width.
            Gray ones among coloured ones become gray RGB.
        columns: how many in a row; by default about as many as there are rows.
        gap: pixels between them.
        value: of what no picture covers.

    Returns:
        (height, width, channels), float32.

    Raises:
        InputError: there is none, or one is no picture.
    """
    arrays = [_picture(picture) for picture in pictures]
    if not arrays:
        raise InputError("grid: there are no pictures")
    check_whole("grid", "gap", gap, least=0)
    columns = check_whole("grid", "columns", columns or math.ceil(math.sqrt(len(arrays))))
    columns = min(columns, len(arrays))
    height, width = (max(array.shape[axis] for array in arrays) for axis in (0, 1))
    channels = max(array.shape[2] for array in arrays)
    rows = math.ceil(len(arrays) / columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    found = np.full(shape, value, "float32")
    for number, array in enumerate(arrays):
        row, column = divmod(number, columns)
        top = row * (height + gap) + (height - array.shape[0]) // 2
        left = column * (width + gap) + (width - array.shape[1]) // 2
        found[top : top + array.shape[0], left : left + array.shape[1]] = array
    return found


def _picture(given: Any) -> np.ndarray:
    array = as_array(given, "grid: the numbers of a picture")
    if array.ndim != 3 or array.shape[2] not in (1, 3) or not array.size:
        raise InputError(
            "grid: a picture is (height, width, 1 or 3); of a map (height, width, channels) give "
            f"the channels one by one, as np.moveaxis(map, -1, 0)[..., None]; this is {array.shape}"
        )
    return array
