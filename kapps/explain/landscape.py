"""The loss around a network's weights (Li et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kapps._errors import InputError, check_whole, is_number
from kapps.explain._classifier import Classifier
from kapps.explain._differentiation import without_gradients
from kapps.explain.optimization import kernels_of


def loss_landscape(
    model: keras.Model,
    images: Any,
    labels: Any,
    *,
    span: float = 1.0,
    points: int = 11,
    seed: int = 0,
) -> np.ndarray:
    """The mean loss around a network's weights, along two random directions.

    Directions are filter-normalized (Li et al. 2018, "Visualizing the Loss Landscape of Neural
    Nets", section 4): random normal numbers, those of each filter scaled to the filter's own norm;
    biases and batch norm stay as they are. At a distance of 1 every filter is changed by as much as
    it is long, so that networks can be compared. The model's weights are not touched.

    Args:
        model: classifier.
        images: (N, height, width, channels) in the model's own range.
        labels: (N,), class numbers.
        span: the largest distance along either direction.
        points: along each, from -span to span; an odd number has the model itself in the middle.
        seed: of the directions.

    Returns:
        float32 (points, points): cross-entropy, nats, the first direction along the first axis.

    Raises:
        InputError: images and labels do not fit, or span or points are none.
    """
    net = Classifier(model, "loss_landscape")
    images = net.images(images)
    labels = net.labels(labels, len(images), "labels")
    points = check_whole("loss_landscape", "points", points, least=2)
    if not is_number(span) or span <= 0:
        raise InputError(f"loss_landscape: span must be a number above 0, not {span!r}")
    kernels = kernels_of(net.calls)
    if not kernels:
        raise InputError(f"loss_landscape: {net.model.name} has no weights to change")
    losses = net.compiled(_losses(net, kernels))
    first, second = (_directions(net, np.random.default_rng([seed, i])) for i in range(2))
    offsets = np.linspace(-span, span, points)
    found = np.zeros((points, points))
    for i, j in np.ndindex(found.shape):
        changes = (offsets[i] * a + offsets[j] * b for a, b in zip(first, second, strict=True))
        moved = [
            kernel.value + ops.convert_to_tensor(change, dtype=kernel.dtype)
            for kernel, change in zip(kernels, changes, strict=True)
        ]
        for batch, classes in net.batches(images, labels):
            found[i, j] += float(without_gradients(partial(losses, moved, batch, classes)))
    return (found / len(images)).astype("float32")


def _directions(net: Classifier, random: np.random.Generator) -> list[np.ndarray]:
    """Of each kernel one, with the norm of each of its filters."""
    found: dict[int, np.ndarray] = {}
    for call in net.calls:
        for kernel in kernels_of([call]):
            if id(kernel) in found:  # of a layer that is called twice
                continue
            value = ops.convert_to_numpy(kernel.value).astype("float64")
            depthwise = isinstance(call.operation, layers.DepthwiseConv2D)
            axes = (0, 1) if depthwise else tuple(range(value.ndim - 1))
            direction = random.standard_normal(value.shape)
            found[id(kernel)] = direction * (_norms(value, axes) / _norms(direction, axes))
    return list(found.values())


def _norms(value: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.sqrt(np.sum(value**2, axis=axes, keepdims=True))


def _losses(net: Classifier, kernels: Sequence[Any]) -> Callable[..., Any]:
    def losses(values: list[Any], batch: Any, classes: Any) -> Any:
        # A scope hides the one around it, in which JAX may have put the values of all variables.
        known = [(variable, variable.value) for variable in net.variables]
        with keras.StatelessScope([*known, *zip(kernels, values, strict=True)]):
            (logits,) = net.run({net.image: batch}, [net.logits])
        return ops.sum(net.cross_entropy(logits, classes))

    return losses
