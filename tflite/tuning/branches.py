"""Networks that are trained with branches, such as MobileOne, are tuned with these merged.

The file has one convolution in the place of such a sum, and its integers are what tuning has to
know. What it learns goes back into one of the branches, so that the network keeps its layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps.tflite.passes.branches import BranchSum, branch_sums, merge_branches
from kapps.tflite.passes.folding import own_batch_norm
from kapps.tflite.passes.graph import Graph


def merged(model: keras.Model) -> keras.Model:
    """With one convolution, with a bias, in the place of each sum that `split` can bring back."""
    return merge_branches(model, keep=_has_no_place)


def split(
    model: keras.Model, values: Mapping[str, list[np.ndarray]]
) -> dict[str, list[np.ndarray]]:
    """Weights of `merged(model)`, by layer, as `model` has them.

    The branch that remained has all of a sum, its batch norm adds the bias, and the others give
    zero. Merged again it is the same, but for the rounding of float32.
    """
    graph, result = Graph(model), dict(values)
    for each in branch_sums(graph):
        if each.main.name not in values or _has_no_place(graph, each):
            continue
        kernel, bias = values[each.main.name]
        for layer in each.branches:
            if type(layer) is layers.BatchNormalization:
                result[layer.name] = _batch_norm(layer, 0.0, 0 * bias)
                continue
            own = [kernel, bias] if layer is each.main else [np.zeros(layer.kernel.shape), 0 * bias]
            result[layer.name] = own if layer.use_bias else own[:1]
            norm = own_batch_norm(graph, layer)
            if norm is not None:
                result[norm.name] = _batch_norm(norm, 1.0, 0 * bias if layer.use_bias else own[1])
    return result


def _has_no_place(graph: Graph, found: BranchSum) -> bool:
    """Whether the bias cannot be in the main branch, or a batch norm alone cannot become zero."""
    alone = (layer for layer in found.branches if type(layer) is layers.BatchNormalization)
    place = found.main.use_bias or own_batch_norm(graph, found.main) is not None
    return not (place and all(layer.scale for layer in alone))


def _batch_norm(norm: Any, factor: float, bias: np.ndarray) -> list[np.ndarray]:
    """Weights with which it gives what comes in times `factor`, plus `bias`."""
    one = np.ones_like(bias)
    scale, center = [factor * one] * norm.scale, [0 * one] * norm.center
    return [*scale, *center, -bias, (1 - norm.epsilon) * one]
