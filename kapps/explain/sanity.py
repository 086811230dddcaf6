"""Whether a method's maps depend on what the network has learned (Adebayo et al. 2018)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kapps._errors import InputError, check_whole
from kapps.custom_layers import ImageNormalization
from kapps.explain._classifier import BATCH, Classifier, as_array
from kapps.explain._differentiation import without_gradients

Method = Callable[[keras.Model, np.ndarray, np.ndarray], Any]
"""Takes a model, images and classes; returns maps (N, h, w)."""

THRESHOLD = 0.5
"""The mean rank correlation at which a method fails.

With all layers re-drawn even the maps of guided backpropagation change, as those of the first
layer's edges do: what sets it apart is that it hardly notices the layers above. So the mean over
the steps is looked at. On EfficientNet-Lite0 it is about 0.7 for guided backpropagation, which
failed in the paper, and for the gradient and Grad-CAM, which passed, about 0.3 and 0.1: half way
between no agreement and full one parts them. `benchmarks/explain_scores.py` measures it.
"""

_PREPROCESSING = (ImageNormalization, layers.Normalization)  # its numbers are of the images


@dataclasses.dataclass(frozen=True, eq=False)
class Randomization:
    """How a method's maps change while the network forgets what it has learned.

    Attributes:
        layers: the lowest layer that is re-drawn at each step; all above it are as well.
        correlations: (steps, N), Spearman's rank correlation of each image's map with its map of
            the trained network, both without signs; 0 for a map that is constant.
        constant: (steps, N), whether the map is constant, or the method refuses the image: the
            random network gives the class no gradient.
    """

    layers: tuple[str, ...]
    correlations: np.ndarray
    constant: np.ndarray

    @property
    def mean(self) -> float:
        """The correlation over all images and steps."""
        return float(self.correlations.mean())

    @property
    def passes(self) -> bool:
        """Whether the maps depend on what was learned: see `verdict`."""
        return not self._undecided and self.mean < THRESHOLD

    @property
    def verdict(self) -> str:
        """One line, that starts with "passes", "fails" or "undecided", and says the rule."""
        steps = len(self.layers)
        found = f"mean rank correlation {self.mean:.2f} over {steps} steps of randomization"
        if self._undecided:
            return (
                f"undecided: {self.constant.mean():.0%} of the maps of the random networks are "
                "constant"
            )
        if self.passes:
            return f"passes: {found}, below {THRESHOLD:g}"
        return f"fails: {found}, {THRESHOLD:g} or more: the maps hardly depend on the weights"

    @property
    def _undecided(self) -> bool:
        return bool(self.constant.mean() > 0.5)


def randomization(
    model: keras.Model,
    images: Any,
    method: Method,
    classes: Any = None,
    steps: int = 8,
    seed: int = 0,
) -> Randomization:
    """Cascading randomization: layers are re-drawn from the logits down, and maps compared.

    A layer is re-drawn by shuffling each of its weights among themselves: that keeps the scale at
    which its signals neither vanish nor blow up, and needs no initializer, which a loaded model
    does not tell. (The paper draws from the initializer.) The statistics of batch normalization are
    no weights: beside re-drawn weights they would be wrong, by orders of magnitude for channels
    that hardly vary, and are measured again on the images. Preprocessing stays as it is.

    The model's own weights change meanwhile, so that any method sees them, and are put back bit by
    bit, whatever happens. Nothing else may use the model at that time.

    Args:
        model: a trained functional or sequential classifier.
        images: (N, height, width, channels), in the model's own range.
        method: one of those here, as `kapps.explain.grad_cam`, or any function of a model, images
            and classes that returns maps (N, h, w).
        classes: (N,), or one for all; for None those that the trained network predicts.
        steps: into how many the layers are divided: at the first the logits' is re-drawn, and
            after the last all of them.
        seed: of the shuffling.

    Raises:
        InputError: the model or images do not fit, or the method returns no maps, or only constant
            ones of the trained network.
    """
    caller = "randomization"
    net = Classifier(model, caller)
    images = net.images(images)
    if not callable(method):
        raise InputError(
            f"{caller}: method must be a function of model, images and classes, as "
            f"kapps.explain.grad_cam, not {method!r}"
        )
    steps = check_whole(caller, "steps", steps, least=2)
    generator = np.random.default_rng(check_whole(caller, "seed", seed, least=0))
    chosen = net.classes_of(images, classes)
    weights = _weights(net)
    counts = np.unique(np.rint(np.linspace(len(weights), 1, steps)).astype(int))

    maps = _maps_of(method, model, images, chosen)
    first = _ranks(maps)
    if _constant(first).all():
        raise InputError(f"{caller}: every map of the trained network is constant")
    names, correlations, constant = [], [], []
    with _put_back(model):
        done = 0
        for count in counts:
            for name in list(weights)[done:count]:
                for variable in weights[name]:
                    values = ops.convert_to_numpy(variable)
                    variable.assign(generator.permutation(values.ravel()).reshape(values.shape))
            done = count
            _measure_again(net, images[:BATCH], list(weights)[:done])
            ranks = _ranks(_or_constant(method, model, images, chosen, maps.shape))
            names.append(list(weights)[done - 1])
            constant.append(_constant(ranks))
            correlations.append(_correlation(first, ranks))
    return Randomization(tuple(names), np.stack(correlations), np.stack(constant))


def _weights(net: Classifier) -> dict[str, list[Any]]:
    """The weights of each layer, the last layer first; each of them once."""
    found: dict[str, list[Any]] = {}
    known: set[int] = set()
    for call in reversed(net.calls):
        own = []
        if isinstance(call.operation, keras.Layer) and not isinstance(
            call.operation, _PREPROCESSING
        ):
            inner = call.operation._flatten_layers()
            kept = {id(v) for layer in inner for v in _statistics(layer)}
            own = [
                v
                for v in call.operation.weights
                if id(v) not in kept | known and keras.backend.is_float_dtype(v.dtype)
            ]
        if own:
            found.setdefault(call.name, []).extend(own)
            known.update(map(id, own))
    if not found:
        raise InputError(f"{net.caller}: no layer of {net.model.name} has weights")
    return found


def _statistics(layer: Any) -> list[Any]:
    if isinstance(layer, layers.BatchNormalization) and layer.built:
        return [layer.moving_mean, layer.moving_variance]
    return []


@contextlib.contextmanager
def _put_back(model: keras.Model) -> Iterator[None]:
    variables = model.variables
    saved = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
    try:
        yield
    finally:
        try:
            _assign(variables, saved)
        except BaseException:  # a second Ctrl-C
            _assign(variables, saved)
            raise


def _assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _measure_again(net: Classifier, images: np.ndarray, names: Sequence[str]) -> None:
    """Gives the batch normalizations of these layers the mean and variance of what they take."""
    wanted = {call for call in net.calls if call.name in names and _statistics(call.operation)}
    if not wanted:
        return
    last = {tensor: call for call in net.calls for tensor in call.input_tensors}

    def walk() -> None:
        known = {net.image: ops.convert_to_tensor(images)}
        for call in net.calls[1:]:
            if call in wanted:
                (taken,) = call.input_tensors
                _measure(call.operation, known[taken])
            known.update(zip(call.outputs, call.run(known, None), strict=True))
            for tensor in call.input_tensors:
                if last[tensor] is call:
                    known.pop(tensor, None)

    without_gradients(walk)


def _measure(layer: layers.BatchNormalization, taken: Any) -> None:
    axes = [axis for axis in range(len(taken.shape)) if axis != layer.axis % len(taken.shape)]
    mean, variance = ops.moments(ops.cast(taken, "float32"), axes=axes)
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)


def _maps_of(method: Method, model: keras.Model, images: Any, classes: Any) -> np.ndarray:
    maps = as_array(method(model, images, classes), "randomization: maps")
    if maps.ndim != 3 or len(maps) != len(images) or maps.dtype.kind not in "fiub":
        raise InputError(
            f"randomization: method must return maps (N, h, w), one for each of the {len(images)} "
            f"images, not {maps.shape} of {maps.dtype}"
        )
    return maps


def _or_constant(
    method: Method, model: keras.Model, images: Any, classes: Any, shape: tuple[int, ...]
) -> np.ndarray:
    """The maps; a constant one where the method refuses an image of the random network."""
    try:
        return _maps_of(method, model, images, classes)
    except InputError:
        if len(images) == 1:
            return np.zeros((1, *shape[1:]))
    single = (slice(i, i + 1) for i in range(len(images)))
    found = [_or_constant(method, model, images[i], classes[i], shape) for i in single]
    return np.concatenate(found)


def _ranks(maps: np.ndarray) -> np.ndarray:
    """The ranks of each map's absolute values, (N, h * w); equal values share their mean rank."""
    found = np.empty((len(maps), maps[0].size))
    for i, values in enumerate(np.abs(maps.astype("float64")).reshape(len(maps), -1)):
        values = np.where(np.isfinite(values), values, 0)
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        found[i] = (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()]
    return found


def _constant(ranks: np.ndarray) -> np.ndarray:
    return np.asarray(np.ptp(ranks, axis=1) == 0)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's, row by row; 0 where a row is constant."""
    a, b = (rows - rows.mean(axis=1, keepdims=True) for rows in (a, b))
    length = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.where(length > 0, length, 1))
