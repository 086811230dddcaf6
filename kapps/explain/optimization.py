"""How well a network can be trained: the gradients of its loss by depth, and by place.

Everything is measured in inference, with batch norm's statistics as they are. Those of a network
that was not trained are 0 and 1, which leaves its maps unnormalized; `model(images, training=True)`
gives them the images' own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, check_whole
from kapps.explain._classifier import Classifier
from kapps.explain._differentiation import value_and_gradients
from kapps.explain._graph import Call, Tensor


@dataclasses.dataclass(frozen=True)
class LayerGradient:
    """How strongly the loss depends on a layer."""

    name: str
    """The layer's; within a nested model "model/layer"."""
    activations: float
    """The root mean square, over the images, of the L2 norm of the gradient of an image's loss by
    what the layer makes of it."""
    kernel: float | None
    """The L2 norm of the gradient of the mean loss by the layer's kernel, or kernels; None where it
    has none."""


def gradient_norms(model: keras.Model, images: Any, labels: Any) -> list[LayerGradient]:
    """The norm of the loss's gradient by each layer, by its activations and its kernel.

    In a deep plain network it falls from the last layer to the first: there the gradient vanishes
    (Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural
    networks", figure 7). The loss is the cross-entropy, in nats.

    Args:
        model: classifier.
        images: (N, height, width, channels) in the model's own range.
        labels: (N,), class numbers.

    Returns:
        One for each call of a layer up to the logits, in the order of execution.

    Raises:
        InputError: images and labels do not fit.
    """
    net = Classifier(model, "gradient_norms")
    images = net.images(images)
    labels = net.labels(labels, len(images), "labels")
    calls = [call for call in net.calls[1:] if _is_real(call.outputs[0])]
    kernels = kernels_of(calls)
    squares, sums = np.zeros(len(calls)), [np.zeros(kernel.shape) for kernel in kernels]
    for batch, classes in net.batches(images, labels):
        by_maps, by_kernels = _gradients(net, batch, classes, calls, kernels)
        squares += [np.square(gradient, dtype="float64").sum() for gradient in by_maps]
        sums = [total + gradient for total, gradient in zip(sums, by_kernels, strict=True)]
    norms = {
        id(kernel): float(np.linalg.norm(total)) / len(images)
        for kernel, total in zip(kernels, sums, strict=True)
    }
    found = []
    for call, norm in zip(calls, np.sqrt(squares / len(images)), strict=True):
        own = [norms[id(kernel)] for kernel in kernels_of([call])]
        found.append(LayerGradient(call.name, float(norm), math.hypot(*own) if own else None))
    return found


def _gradients(
    net: Classifier, batch: Any, classes: Any, calls: Sequence[Call], kernels: Sequence[Any]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of the sum of a batch's losses, by what each call makes, and by kernels."""
    outputs = [call.outputs[0] for call in calls]
    # The gradient by a tensor is that by what is added to it.
    zeros = [ops.zeros_like(value) for value in net.maps_of(batch, outputs)]

    def objective(inputs: list[Any]) -> tuple[Any, Any]:
        added = dict(zip(outputs, inputs, strict=False))
        with keras.StatelessScope(zip(kernels, inputs[len(outputs) :], strict=True)):
            (logits,) = net.run({net.image: batch}, [net.logits], added=added)
        return ops.sum(net.cross_entropy(logits, classes)), logits

    values = [kernel.value for kernel in kernels]
    _, logits, found = value_and_gradients(objective, [*zeros, *values])
    net.check_logits(ops.convert_to_numpy(logits))
    arrays = [ops.convert_to_numpy(gradient) for gradient in found]
    return arrays[: len(outputs)], arrays[len(outputs) :]


def _is_real(tensor: Tensor) -> bool:
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


def kernels_of(calls: Sequence[Call]) -> list[Any]:
    """The weights of two or more dimensions, each once."""
    weights = (weight for call in calls for weight in getattr(call.operation, "weights", ()))
    return list({id(weight): weight for weight in weights if len(weight.shape) > 1}.values())


def shattering(
    model: keras.Model, images: Any, classes: Any = None, *, points: int = 128, lags: int = 15
) -> np.ndarray:
    """The autocorrelation of the input gradient along lines between images.

    A line goes from each image to the next, x(t) = (1 - t) a + t b, at equally spaced t from 0 to
    1; g(t) is the gradient of a class's logit by x(t), less the mean over the line. The
    autocorrelation at lag k is the sum of the products g(t) g(t + k) by that of the squares |g(t)|,
    each by the number of its terms, so that it is 1 at lag 0. White noise has 0 behind (within
    about the root of 1 / `points`); a smooth function hardly falls. In deep plain networks it falls
    to that of white noise, with shortcuts more slowly (Balduzzi et al. 2017, "The Shattered
    Gradients Problem: If resnets are the answer, then what is the question?", section 2).

    Args:
        model: classifier.
        images: (N, height, width, channels) in the model's own range, N at least 2.
        classes: (N - 1,), one for each line, or one number; by default that which its first image
            is taken for.
        points: on each line.
        lags: the largest, below `points`.

    Returns:
        float32 (N - 1, lags + 1).

    Raises:
        InputError: images or classes do not fit, or a gradient is zero or the same everywhere.
    """
    net = Classifier(model, "shattering")
    images = net.images(images)
    points = check_whole("shattering", "points", points, least=2)
    lags = check_whole("shattering", "lags", lags)
    if len(images) < 2:
        raise InputError("shattering: a line takes two images, and there is one")
    if lags >= points:
        raise InputError(f"shattering: lags is {lags}, and has to be below points, {points}")
    chosen = net.classes_of(images, None)[:-1]
    if classes is not None:
        chosen = net.labels(classes, len(images) - 1)
    t = np.linspace(0, 1, points, dtype=images.dtype)[:, None, None, None]
    return np.stack(
        [
            _autocorrelation(net, (1 - t) * first + t * last, int(wanted), lags)
            for first, last, wanted in zip(images, images[1:], chosen, strict=False)
        ]
    )


def _autocorrelation(net: Classifier, line: np.ndarray, wanted: int, lags: int) -> np.ndarray:
    classes = np.full(len(line), wanted)
    parts = [net.gradients(x, c, net.image)[1] for x, c in net.batches(line, classes)]
    gradients = np.concatenate([ops.convert_to_numpy(part) for part in parts]).astype("float64")
    net.check_gradient(gradients, classes)
    flat = gradients.reshape(len(line), -1)
    centered = flat - flat.mean(0)
    found = [np.mean(np.sum(centered[k:] * centered[: len(line) - k], -1)) for k in range(lags + 1)]
    if found[0] < 1e-12 * np.mean(np.sum(flat**2, -1)):
        raise InputError(
            f"shattering: the gradient of class {wanted} is the same all along a line, and so has "
            "no autocorrelation; take images that are further apart, or a net that is not linear"
        )
    return (np.array(found) / found[0]).astype("float32")
