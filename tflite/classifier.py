"""Is this model an image classifier, of which there can be a file? Said in words of the model.

What a file needs: one image in, of a fixed size, and the probabilities of classes that exclude each
other out.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps._errors import InputError
from kapps.custom_layers import ImageNormalization
from kapps.tflite.passes import float32, remove_auxiliary_heads
from kapps.tflite.passes.graph import Graph, edited, identity, rebuild

Normalization = float | Sequence[float] | None
"""One number, or one a channel, of 0..255."""


def as_classifier(
    model: keras.Model, mean: Normalization = None, std: Normalization = None
) -> keras.Model:
    """The model as its file will compute it: float32, pixels in 0..255 in, class probabilities out.

    A model that ends in one unit with a sigmoid, the probability of the second of two classes, gets
    the two of them: its dense layer becomes one of two units with a softmax, which is the same.

    Args:
        model: what the user has.
        mean: of the normalization `(pixels - mean) / std` that the model leaves to its caller.
        std: the other half of it.

    Raises:
        InputError: the model is no image classifier, or mean or std do not fit it.
    """
    check_graph(model)
    model = float32(_check_ends(remove_auxiliary_heads(model)))
    end = _end(model)
    kind, units = end.activation, int(model.output_shape[-1])
    if kind == "sigmoid" and units == 1:
        model = _of_two_classes(model, end)
    elif problem := _no_classifier(kind, units):
        raise InputError(f"model {model.name!r} is no classifier of exclusive classes: {problem}")
    if mean is not None or std is not None:
        model = _normalized(model, mean, std)
    return model


def image_shape(model: keras.Model) -> tuple[int, int, int]:
    """(height, width, channels) of the images that it takes.

    Raises:
        InputError: it does not give scores of classes for an image of one size.
    """
    check_graph(model)
    _check_ends(remove_auxiliary_heads(model))
    height, width, channels = model.input_shape[1:]
    return height, width, channels


def _refused(model: Any, why: str) -> InputError:
    return InputError(f"model {getattr(model, 'name', model)!r} is no image classifier: {why}")


def check_graph(model: Any) -> None:
    """Refuses what is no built model of Keras 3 whose graph is known.

    Raises:
        InputError: it is none; the message says what it is, and what to do.
    """
    if not isinstance(model, keras.Model):
        kind = type(model).__name__
        raise _refused(
            model,
            "it is the name of a file; pass the model that keras.saving.load_model returns for it"
            if isinstance(model, str)
            else f"expected a model of Keras 3, got {kind}",
        )
    if isinstance(model, keras.Sequential):
        if not model.built or not getattr(model, "_functional", None):
            raise _refused(
                model,
                "it is a Sequential without an input size; begin it with "
                "keras.Input((height, width, channels)), or call model.build",
            )
    elif not hasattr(model, "_nodes_by_depth"):
        raise _refused(
            model,
            f"it is a subclass of keras.Model ({type(model).__name__}), whose graph is not known; "
            "build it from layers called on keras.Input",
        )


def _check_ends(model: keras.Model) -> keras.Model:
    """The model, if it takes one tensor of images and gives one of class scores, in no list.

    Raises:
        InputError: it does not.
    """
    if len(model.inputs) != 1:
        names = ", ".join(repr(tensor.name) for tensor in model.inputs)
        raise _refused(model, f"it takes {len(model.inputs)} inputs ({names}), a file one image")
    if len(model.outputs) != 1:
        raise _refused(model, _several_outputs(model))
    if not isinstance(model, keras.Sequential):  # which has one tensor each, and no `input`
        for what, ends in (("takes its image in", model.input), ("returns", model.output)):
            if isinstance(ends, dict):
                raise _refused(
                    model,
                    f"it {what} a dict with the key {next(iter(ends))!r}; pass "
                    "keras.Model(model.inputs[0], model.outputs[0])",
                )
        if not all(isinstance(ends, keras.KerasTensor) for ends in (model.input, model.output)):
            model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    shape, output_shape = model.input_shape, model.output_shape
    if len(shape) != 4:
        raise _refused(
            model, f"it takes {_text(shape)}; expected images, (batch, height, width, channels)"
        )
    if len(output_shape) != 2 or output_shape[-1] is None:
        raise _refused(
            model,
            f"it returns {_text(output_shape)}; expected (batch, classes): end it in a global "
            "pooling and a dense layer with a softmax",
        )
    if None in shape[1:]:
        raise InputError(
            f"model {model.name!r} takes images of any size, a file has one: build it with "
            "input_shape=(height, width, channels)"
        )
    return model


def _text(shape: Sequence[int | None]) -> str:
    return f"({', '.join('batch' if n is None else str(n) for n in shape)})"


def _several_outputs(model: keras.Model) -> str:
    found = []
    for tensor in model.outputs:
        end = _End(tensor)
        kind = f", {end.activation}" if end.activation else ""
        found.append(f"{end.name!r} {_text(tensor.shape)}{kind}")
    return (
        f"it has {len(model.outputs)} outputs, a file one: {'; '.join(found)}; pass "
        "keras.Model(model.inputs[0], model.outputs[0]), or whichever it is"
    )


class _End:
    """What gives a tensor, seen through layers that hand on what they get.

    Attributes:
        name: of the layer.
        layer: it.
        after: the layers behind it, from the back, and an activation that is a layer of its own.
        activation: what it computes at last, such as "softmax"; None if that is not known.
    """

    def __init__(self, tensor: keras.KerasTensor) -> None:
        self.after: list[Any] = []
        self.activation: str | None = None
        while True:
            operation, node, index = tensor._keras_history
            self.layer, self.name = operation, operation.name
            if isinstance(operation, keras.Model):
                tensor = operation.outputs[index]
                continue
            found = _computes(operation)
            if found not in (None, "linear"):
                self.activation = self.activation or found
            if isinstance(operation, (layers.Dense, layers.Conv2D)):
                self.activation = self.activation or found
                return
            handed_on = found is not None or isinstance(
                operation, (layers.Dropout, layers.Flatten, layers.Reshape)
            )
            inputs = operation._inbound_nodes[node].input_tensors
            if not handed_on or len(inputs) != 1:
                return
            self.after.append(operation)
            tensor = inputs[0]


def _end(model: keras.Model) -> _End:
    return _End(model.outputs[0])


def _computes(operation: Any) -> str | None:
    """The name of the activation that a layer or operation is, or ends in."""
    if isinstance(operation, layers.Softmax):
        return "softmax"
    activation = getattr(operation, "activation", None)
    if activation is not None and isinstance(
        operation, (layers.Activation, layers.Dense, layers.Conv2D)
    ):
        name = getattr(activation, "__name__", None)
        return name if getattr(keras.activations, str(name), None) is activation else None
    kinds = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax"}
    return None if isinstance(operation, keras.Layer) else kinds.get(type(operation).__name__)


def _no_classifier(activation: str | None, units: int) -> str | None:
    """Why what a model gives is no distribution over classes; None if it is, or may be."""
    if activation == "softmax":
        if units > 1:
            return None
        return (
            "it ends in a softmax over a single class, which is 1 for every image; give it 2 "
            "classes, or a sigmoid in place of the softmax"
        )
    if activation == "sigmoid":
        return (
            f"it gives {units} probabilities that do not depend on each other (sigmoid), for "
            "images that may show several things; where each image is of one class, train it with "
            "a softmax"
        )
    if activation == "linear" and units == 1:
        return (
            "it gives one number of any size, as of a regression; if that is the logit of two "
            'classes, add keras.layers.Activation("sigmoid")'
        )
    if activation == "linear":
        return (
            'it gives logits; a model of kapps is built with classifier_activation="softmax", to '
            "any other add keras.layers.Softmax()"
        )
    if activation == "log_softmax":
        return (
            "it gives logarithms of probabilities; end it in a softmax in place of the log_softmax"
        )
    if units == 1:
        return "it gives one number; two classes have two probabilities, or one behind a sigmoid"
    if activation is not None and activation != "exponential":
        return f"it gives what {activation} gives, which is no probability; end it in a softmax"
    return None


def _of_two_classes(model: keras.Model, end: _End) -> keras.Model:
    """softmax([0, z]) is [1 - sigmoid(z), sigmoid(z)]."""
    dense: Any = end.layer
    if not isinstance(dense, layers.Dense) or any(
        isinstance(layer, (layers.Flatten, layers.Reshape)) for layer in end.after
    ):
        raise InputError(
            f"model {model.name!r} ends in one sigmoid, the probability of one of two classes, and "
            "not in a dense layer, so that it cannot be given the other one: end it in "
            'keras.layers.Dense(2, activation="softmax")'
        )
    kernel, *bias = dense.get_weights()
    weights = [np.concatenate([np.zeros_like(kernel), kernel], axis=1)]
    weights += [np.concatenate([np.zeros_like(b), b]) for b in bias]

    def plan(graph: Graph) -> dict[keras.Operation, Callable[..., Any]]:
        return {
            layer: edited(graph, layer, weights, units=2, activation="softmax")
            if layer is dense
            else identity
            for layer in graph.layers
            if layer is dense or any(layer is behind for behind in end.after)
        }

    return rebuild(model, plan=plan)


def _normalized(model: keras.Model, mean: Normalization, std: Normalization) -> keras.Model:
    """The model behind `(pixels - mean) / std`, in one graph, so that the passes see it."""
    channels = model.input_shape[-1]
    values = {
        "mean": _by_channel("mean", 0.0 if mean is None else mean, channels),
        "std": _by_channel("std", 1.0 if std is None else std, channels),
    }
    if min(values["std"]) <= 0:
        raise InputError(f"std: expected numbers above 0, got {std!r}")
    taken = {layer.name for layer in model.layers}
    name = next(n for n in ("normalization", "outer_normalization", "kapps_std") if n not in taken)
    front = ImageNormalization(
        tuple(v / 255 for v in values["mean"]), tuple(v / 255 for v in values["std"]), name=name
    )
    return rebuild(model, front=front)


def _by_channel(what: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    given = [value] if isinstance(value, numbers.Real) else list(np.atleast_1d(value))
    if not all(isinstance(v, numbers.Real) and math.isfinite(v) for v in given) or len(
        given
    ) not in (1, channels):
        raise InputError(
            f"{what}: expected a number of 0..255, or one for each of the {channels} channels, "
            f"got {value!r}"
        )
    return tuple(map(float, given)) * (channels if len(given) == 1 else 1)
