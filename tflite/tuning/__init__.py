"""Training for the phone: quantization-aware, pruned, clustered, and what combines them.

    tuned = quantize_aware(model)         # a tf_keras model to fine-tune; images 0..255 in
    ...                                   # train it: kapps-tune, or tf_keras's own `fit`
    content = tflite_bytes(tuned, "uint8")
    model = restore(tuned, model)         # the weights, back in a Keras 3 model

Pruning, clustering and the emulation of quantization are tensorflow-model-optimization's
(https://www.tensorflow.org/model_optimization), which knows tf_keras models only. A model that has
been pruned or clustered stays so when it is made quantization-aware.
"""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras.experimental import (
    cluster as sparse_clustering,
)
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import (
    PruneLowMagnitude,
)

from kapps._errors import InputError, check_whole
from kapps.tflite.classifier import check_graph
from kapps.tflite.converter import converted, converter_of
from kapps.tflite.passes.graph import leaves
from kapps.tflite.tuning import quantized_graph, tf_keras_copy
from kapps.tflite.tuning.in_float import in_float

IO = Literal["uint8", "int8", "float32"]


def quantize_aware(model: keras.Model | tf_keras.Model) -> tf_keras.Model:
    """A model to fine-tune with the int8 arithmetic of the file to come emulated.

    Kernels are quantized by output channel, feature maps by moving ranges that start with the
    first training batch; until then only what has a fixed range is quantized: the image, gates and
    probabilities. Input normalization is part of it. Weights that pruning or clustering left zero
    or equal stay so. GELU and attention are in floats, between integers: XNNPACK has no integer
    form of them. Branches of convolutions whose outputs are added, as MobileOne's, are one.

    Args:
        model: a Keras 3 model, which stays as it is, and may have models nested in it; or one from
            `prune` or `cluster`, trained, whose layers the result shares.

    Returns:
        A tf_keras model: images (n, height, width, channels) in 0..255 to what `model` gives. The
        layers that act in training only, such as dropout, are gone.

    Raises:
        InputError: a layer cannot be rebuilt or has no int8 form; it is named.
    """
    return _made_of(model, quantized_graph.quantized(_float(model)))


def prune(
    model: keras.Model | tf_keras.Model,
    schedule: float | tfmot.sparsity.keras.PruningSchedule,
) -> tf_keras.Model:
    """A model to fine-tune whose smallest weights become zero.

    Convolutions and dense layers are pruned, but for depthwise and grouped ones and for the first
    layer, which have few weights and are the most sensitive.

    Args:
        model: as for `quantize_aware`.
        schedule: the share of zeros in each of these kernels, above 0 and below 1, held from the
            first step; or a schedule of tensorflow-model-optimization, by training step.

    Raises:
        InputError: a layer cannot be rebuilt, nothing is to be pruned, or the share is no share.
    """
    if isinstance(schedule, (int, float)):
        if not 0 < schedule < 1:
            raise InputError(f"sparsity must be above 0 and below 1, not {schedule!r}")
        schedule = tfmot.sparsity.keras.ConstantSparsity(float(schedule), 0, frequency=10)

    def wrap(layer: Any) -> Any:
        return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule)

    tuned = _wrapped(_float(model), wrap)
    for layer in tuned.layers:
        if isinstance(layer, PruneLowMagnitude):
            layer.pruning_step.assign(0)  # -1 asks for a callback of `fit` to start the count
    return _made_of(model, tuned)


def cluster(model: keras.Model | tf_keras.Model, clusters: int) -> tf_keras.Model:
    """A model to fine-tune whose kernels have only so many different values each.

    The layers are those of `prune`. Zeros of a pruned model stay zero, and are one of the values.

    Args:
        model: as for `quantize_aware`.
        clusters: how many values, 2 to 256 (3 and more for a pruned model).

    Raises:
        InputError: a layer cannot be rebuilt, nothing is to be clustered, or the number is wrong.
    """
    check_whole("cluster", "clusters", clusters)
    plain = _float(model)
    sparse = sparsity(plain) > 0.05
    if not (3 if sparse else 2) <= clusters <= 256:
        raise InputError(f"clusters must be {3 if sparse else 2} to 256, not {clusters}")
    start = tfmot.clustering.keras.CentroidInitialization
    shared = {"number_of_clusters": clusters, "cluster_centroids_init": start.KMEANS_PLUS_PLUS}

    def wrap(layer: Any) -> Any:
        if sparse:
            return sparse_clustering.cluster_weights(layer, preserve_sparsity=True, **shared)
        return tfmot.clustering.keras.cluster_weights(layer, **shared)

    return _made_of(model, _wrapped(plain, wrap, least=2 * clusters))


def strip(tuned: tf_keras.Model) -> tf_keras.Model:
    """The plain model that `prune` or `cluster` wrapped, with the weights that it has now.

    Raises:
        InputError: the model is quantization-aware; `restore` brings its weights back.
    """
    if quantized_graph.is_quantized(tuned):
        raise InputError(f"model {tuned.name!r} is quantization-aware: use restore(tuned, model)")
    for layer in tuned.layers:
        if isinstance(layer, PruneLowMagnitude):
            for weight, mask, _ in layer.pruning_vars:
                weight.assign(weight * mask)  # the last step moved them off zero
    return tfmot.clustering.keras.strip_clustering(tfmot.sparsity.keras.strip_pruning(tuned))


def restore(tuned: tf_keras.Model, model: keras.Model) -> keras.Model:
    """A copy of a Keras 3 model with the weights of the tuned one: before quantization, unfolded.

    Branches that were merged for tuning stay layers, of which one has all of the sum and the others
    give zero. Such a model is to be evaluated, converted and tuned, and not to be trained with its
    branches: the batch norms behind them do not know what goes through them.

    Args:
        tuned: from `quantize_aware`, `prune` or `cluster`.
        model: the model that it was made of.

    Raises:
        InputError: it was made of another model.
    """
    if quantized_graph.is_quantized(tuned):
        values = quantized_graph.weights_of(tuned)
    else:
        plain = strip(tuned)
        values = {layer.name: layer.get_weights() for layer in plain.layers if layer.weights}
    return tf_keras_copy.copy_weights(values, model)


def restored(tuned: tf_keras.Model) -> keras.Model | None:
    """What `restore` gives for the model that it was made of; None if that is not known."""
    source = getattr(tuned, "made_of", None)
    return None if source is None else restore(tuned, source)


def sparsity(model: keras.Model | tf_keras.Model) -> float:
    """The share of zeros, 0 to 1, in the kernels that `prune` would prune."""
    model = strip(model) if isinstance(model, tf_keras.Model) else tf_keras_copy.prepared(model)
    kernels = [np.asarray(layer.get_weights()[0]) for layer in _prunable(model)]
    return sum(int((k == 0).sum()) for k in kernels) / max(sum(k.size for k in kernels), 1)


def logits(tuned: tf_keras.Model) -> tf_keras.Model:
    """The model without the softmax at its end, for a loss on logits; it shares the layers."""
    # A layer may be part of several graphs: what comes in is asked of the node in this one.
    for depth in sorted(tuned._nodes_by_depth)[:2]:  # behind it there may be its quantization
        for node in tuned._nodes_by_depth[depth]:
            if "softmax" in (getattr(node.layer, "kind", ""), getattr(node.layer, "act", "")):
                return tf_keras.Model(tuned.input, node.keras_inputs[0], name=tuned.name)
    return tuned


def tflite_bytes(tuned: tf_keras.Model, io: IO = "uint8") -> bytes:
    """The content of the .tflite file of a quantization-aware model, int8 inside.

    A static batch of 1 and built-in operations only. The input's scale is 1 and its zero point 0
    (int8: -128): bytes of pixels as they are. What is better in float is float, see
    `kapps.tflite.file_facts.better_in_float`. Metadata is not added.

    Args:
        tuned: from `quantize_aware`, trained.
        io: the type of input and output.

    Raises:
        InputError: the model is not quantization-aware (convert what `restore` gives), or was not
            trained.
    """
    if io not in ("uint8", "int8", "float32"):
        raise InputError(f"io: expected uint8, int8 or float32, not {io!r}")
    if not quantized_graph.is_quantized(tuned):
        raise InputError(
            f"model {tuned.name!r} is not quantization-aware: convert restore(tuned, model)"
        )
    quantized_graph.finish(tuned)
    with converter_of(tuned, tuned.variables) as (converter, _):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io)
        return in_float(converted(converter))


def _float(model: keras.Model | tf_keras.Model) -> tf_keras.Model:
    """A plain float tf_keras model: a Keras 3 model rebuilt, or a tuned one stripped."""
    if isinstance(model, tf_keras.Model):
        return strip(model)
    check_graph(model)
    return tf_keras_copy.rebuild(model)


def _made_of(model: keras.Model | tf_keras.Model, tuned: tf_keras.Model) -> tf_keras.Model:
    """The tuned model, remembering the Keras 3 model that it is made of: see `restored`."""
    source = model if isinstance(model, keras.Model) else getattr(model, "made_of", None)
    object.__setattr__(tuned, "made_of", source)  # not as a part of it, with variables to track
    return tuned


def _prunable(model: Any) -> list[Any]:
    """Convolutions and dense layers, but for depthwise and grouped ones, and for the first."""
    kinds = ("Conv2D", "DepthwiseConv2D", "Dense")
    found = leaves(model).values() if isinstance(model, keras.Model) else model.layers
    weighted = [layer for layer in found if type(layer).__name__ in kinds]
    return [
        layer
        for layer in weighted[1:]
        if type(layer).__name__ == "Dense"
        or (type(layer).__name__ == "Conv2D" and layer.groups == 1)
    ]


def _wrapped(model: tf_keras.Model, wrap: Any, least: int = 0) -> tf_keras.Model:
    """With a wrapper around each prunable layer of at least so many weights."""
    chosen = {id(layer) for layer in _prunable(model) if layer.count_params() >= least}
    if not chosen:
        raise InputError(f"model {model.name!r} has no convolution or dense layer to tune")
    return tf_keras.models.clone_model(
        model, clone_function=lambda layer: wrap(layer) if id(layer) in chosen else layer
    )
