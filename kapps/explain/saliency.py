"""Saliency maps: what the gradient of a class's logit says of each pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kapps._errors import InputError, check_whole, is_number
from kapps.explain._classifier import Classifier
from kapps.explain._passes import Passes, baseline_of, warn_of_zeros


def saliency(model: keras.Model, images: Any, classes: Any = None) -> np.ndarray:
    """Gradient saliency (Simonyan et al. 2014, section 3).

    Args:
        model: a functional or sequential classifier, flat or nested.
        images: (N, H, W, C), in the model's own range.
        classes: (N,), or one for all; None for the predicted ones.

    Returns:
        (N, H, W), float32: the largest absolute gradient of a pixel's channels, in logits by unit
        of the images.

    Raises:
        InputError: the gradient is zero everywhere; images or classes are none that the model
            takes.
    """
    net = Classifier(model, "saliency")
    return _largest(_gradients(net, images, classes))


def guided_backpropagation(model: keras.Model, images: Any, classes: Any = None) -> np.ndarray:
    """Guided backpropagation (Springenberg et al. 2015, section 3.4). It is not faithful.

    On the way back each ReLU lets pass what is positive alone. What comes out are the edges of the
    picture, nearly the same with random weights or for another class (Adebayo et al. 2018): take it
    for a drawing of the image, never as evidence of why the model decided.

    The rule holds for ReLU and for ReLU clipped at 6, as layers, activations of layers or
    operations; other activations keep their gradient.

    Args, Returns: as `saliency`.

    Raises:
        InputError: as `saliency`; or the model has no ReLU.
    """
    net = Classifier(model, "guided_backpropagation")
    if not any(call.activation in _GUIDED for call in net.calls):
        raise InputError(
            f"guided_backpropagation: {model.name} has no ReLU, whose gradient it would change; "
            "use saliency or integrated_gradients"
        )
    return _largest(_gradients(net, images, classes, activations=_GUIDED))


def smooth_grad(
    model: keras.Model,
    images: Any,
    classes: Any = None,
    samples: int = 50,
    noise: float = 0.15,
    seed: int = 0,
) -> np.ndarray:
    """SmoothGrad (Smilkov et al. 2017): the mean gradient of noisy copies of the image.

    Args:
        model, images, classes: as in `saliency`; predicted is the class of the image itself.
        samples: noisy copies of each image.
        noise: standard deviation of the Gaussian noise, as a share of the range from the image's
            lowest to its highest number: 0.15 is 38 gray levels where the image spans 0..255.
        seed: of the noise, which is the same on all backends.

    Returns:
        (N, H, W), float32: the largest absolute mean gradient of a pixel's channels.

    Raises:
        InputError: as `saliency`; or samples, noise or seed are none.
    """
    net = Classifier(model, "smooth_grad")
    check_whole(net.caller, "samples", samples)
    check_whole(net.caller, "seed", seed, least=0)
    if not is_number(noise) or noise < 0:
        raise InputError(
            f"smooth_grad: noise must be a share of the image's range, 0 or more, not {noise!r}"
        )
    images = net.images(images)
    chosen = net.classes_of(images, classes)
    deviations = noise * np.ptp(images, axis=(1, 2, 3))

    def noisy(i: int, sample: int) -> np.ndarray:
        draw = np.random.default_rng((seed, i, sample)).standard_normal(images.shape[1:])
        return images[i] + deviations[i] * draw

    def arguments(numbers: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, ...]:
        copies = np.stack([noisy(*pair) for pair in zip(numbers, draws, strict=True)])
        return copies.astype(images.dtype), chosen[numbers]

    mean = _weighted_sum(net, images, np.full(samples, 1 / samples), arguments)
    net.check_gradient(mean, chosen)
    return _largest(mean)


def integrated_gradients(
    model: keras.Model,
    images: Any,
    classes: Any = None,
    steps: int = 50,
    baseline: Any = None,
) -> np.ndarray:
    """Integrated gradients (Sundararajan et al. 2017, equation 1), by Gauss-Legendre quadrature.

    The numbers of a map add up to the logit of the image less that of the baseline, but for the
    error of the quadrature: where it matters, take more steps.

    Args:
        model, images, classes: as in `saliency`.
        steps: nodes of the quadrature on the way from the baseline to the image.
        baseline: where the way starts, in the images' range: a number, one a channel, an image, or
            one for each image; None for black.

    Returns:
        (N, H, W), float32, signed: the sum of a pixel's channels, in the logit's unit.

    Raises:
        InputError: as `saliency`; or steps or baseline are none.
    """
    net = Classifier(model, "integrated_gradients")
    check_whole(net.caller, "steps", steps)
    images = net.images(images)
    start = baseline_of(net, images, baseline)
    chosen = net.classes_of(images, classes)
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on -1..1
    shares = ((nodes + 1) / 2).astype(images.dtype)

    def arguments(numbers: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, ...]:
        way = images[numbers] - start[numbers]
        return start[numbers] + shares[nodes, None, None, None] * way, chosen[numbers]

    mean = _weighted_sum(net, images, weights / 2, arguments)
    net.check_gradient(mean, chosen)
    maps = ((images - start) * mean).sum(-1, dtype="float64").astype("float32")
    warn_of_zeros(net, maps, chosen, "it is the baseline itself; give another baseline")
    return maps


def _gradients(net: Classifier, images: Any, classes: Any, **options: Any) -> np.ndarray:
    """Of the logit by the images, (N, H, W, C)."""
    parts = net.checked_gradients(net.images(images), classes, net.image, **options)
    return np.concatenate([ops.convert_to_numpy(gradient) for _, gradient, _ in parts])


def _weighted_sum(
    net: Classifier,
    images: np.ndarray,
    weights: np.ndarray,
    arguments: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]],
) -> np.ndarray:
    """Over an image's variants, of the gradients by them."""

    def gradient(batch: Any, wanted: Any) -> Any:
        return net.gradients(batch, wanted, net.image)[1]

    total = np.zeros(images.shape)
    for numbers, variants, found in Passes(len(images), len(weights)).results(
        net, gradient, arguments
    ):
        np.add.at(total, numbers, weights[variants, None, None, None] * found)
    return total


def _largest(gradients: np.ndarray) -> np.ndarray:
    return np.abs(gradients).max(-1).astype("float32")


def _guided(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, and of its gradient what is positive alone."""

    @ops.custom_gradient
    def guided(x: Any) -> Any:
        y = function(x)

        def gradient(*arguments: Any, upstream: Any = None) -> Any:
            if upstream is None:
                (upstream,) = arguments
            # It rises from 0, and where it is clipped it equals its limit.
            passes = ops.logical_and(x > 0, y >= x)
            return ops.where(passes, ops.relu(upstream), ops.zeros_like(upstream))

        return y, gradient

    return guided


_GUIDED = {"relu": _guided(ops.relu), "relu6": _guided(ops.relu6)}
