"""Where a network's feature maps are: its pyramid, and where the features end and the head begins.

The functions read the graph of layers, so that they also serve a model that was saved and loaded,
and one from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import KerasTensor, layers

from kapps._block_skipping import DeepModel, nodes_in_order
from kapps._errors import InputError, is_whole
from kapps._profile import Walk, graph_of, inputs_of
from kapps.custom_layers import MirrorPadding2D

# They only prepare the map for the window that follows.
_BORDERS = (layers.ZeroPadding2D, layers.Cropping2D, MirrorPadding2D)
_HEADS = (
    layers.Dense,
    layers.Flatten,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.Reshape,
)
_ANY_SIZE = 256  # pixels: what a side that is not fixed is taken for; strides do not depend on it


def features(model: keras.Model, strides: Sequence[int] = (4, 8, 16, 32)) -> keras.Model:
    """The model that gives feature maps in place of classes: a pyramid for detection, say.

        backbone = kapps.features(kapps.ResNet50(weights="imagenet"))
        c2, c3, c4, c5 = backbone(images)  # at 224 px: 56, 28, 14 and 7 pixels a side

    It consists of the layers of `model`, with the same weights: to train one is to train the other.
    Of each stride it gives the deepest map that all that follows is computed from, and nothing of
    the head: after a residual stage the sum with its activation; in networks of inverted
    bottlenecks the expanded map within the block that goes on to the next stride, which SSDLite
    takes as well (Sandler et al. 2018, section 6.2).

    Args:
        model: of kapps, with or without classifier, built or loaded, of any input size; or another
            functional or sequential Keras model, channels last, with one image as its input. A
            model that holds the network as one nested layer has to be opened:
            `model.get_layer("ResNet50")`.
        strides: pixels of the image from one unit of a map to the next, in the order in which the
            maps are wanted.

    Returns:
        A model whose output is a list of maps (batch, height, width, channels); where one stride is
        asked for, the map, as Keras has it.

    Raises:
        InputError: there is no map at a stride; the message names those that there are.
    """
    if not isinstance(strides, (tuple, list)) or not strides or not all(map(is_whole, strides)):
        raise InputError(
            f"features: strides must be whole numbers, such as (8, 16, 32), not {strides!r}"
        )
    found = pyramid(model)
    for stride in strides:
        if stride not in found:
            known = ", ".join(str(s) for s in sorted(found)) or "none at all"
            raise InputError(
                f"features: {model.name} has no feature map at stride {stride}; there are: {known}"
            )
    (image,) = graph_of(model).inputs
    outputs = [found[int(stride)] for stride in strides]
    name = f"{model.name}_features"
    try:
        return keras.Model(image, outputs, name=name)
    except RecursionError:
        return DeepModel(image, outputs, name=name)


def features_end(model: keras.Model) -> KerasTensor:
    """The feature map that the head of a classifier takes; of a model without head its output.

    Models of kapps know it, and keep it when they are saved. Of others, the head begins with the
    last convolution that makes classes of a map, or with what makes a single vector of it: a global
    pooling, a flattening, a window over the whole map.

    Raises:
        InputError: the model makes no feature map.
    """
    found = list(cut_points(model, graph_of(model).outputs[0]))
    end = end_of(found, getattr(model, "features_layer", None))
    if end is None:
        raise InputError(f"features: {model.name} makes no feature map")
    return end


def pyramid(model: keras.Model) -> dict[int, KerasTensor]:
    """The deepest map at each stride, up to where the head begins."""
    values = inputs_of(model, _fixed_shape(model), "kapps.features")
    if len(values) != 1:
        raise InputError(f"features: {model.name} has {len(values)} inputs; it takes one image")
    walk = Walk([value.shape for value in values], counting=False)
    walk.run(model, values, "")
    end = features_end(model)
    found: dict[int, KerasTensor] = {}
    for node in cut_points(model, end):
        value = walk.values[id(node.outputs[0])]
        if len(value.shape) != 3 or value.field is None or isinstance(node.operation, _BORDERS):
            continue
        if max(axis.extent for axis in value.field) == 1:  # the image, and what treats its pixels
            continue
        vertical, horizontal = (axis.spacing for axis in value.field)
        if vertical == horizontal and vertical.denominator == 1:
            found[int(vertical)] = node.outputs[0]
    return found


def _fixed_shape(model: keras.Model) -> tuple[int | None, ...] | None:
    """The model's input shape with a size for each side that has none; None if all have one."""
    graph = graph_of(model)
    if graph is None or len(graph.inputs) != 1:
        return None
    shape = graph.inputs[0].shape[1:]
    if None not in shape:
        return None
    return tuple(_ANY_SIZE if side is None else side for side in shape)


def end_of(found: Sequence[Any], layer: str | None) -> Any:
    """The feature map that the head takes, as `features_end` has it; None if there is none.

    Args:
        found: the calls that all later ones depend on alone, the last of them that of the output.
        layer: the name of the one that makes the map, where it is known.
    """
    last = None
    output = found[-1].outputs[0].shape
    classes, is_classifier = output[-1], len(output) == 2
    for node in found:
        tensor = node.outputs[0]
        if layer is not None and node.operation.name == layer:
            return tensor
        if layer is None and (
            isinstance(node.operation, _HEADS)
            or _covers_the_map(node)
            or (is_classifier and _classifies(node, classes) and not _weighted_behind(node, found))
        ):
            break
        if len(tensor.shape) == 4 and not isinstance(node.operation, _BORDERS):
            last = tensor
    return last


def _covers_the_map(node: Any) -> bool:
    """Whether a layer is a window over a whole map of more than one unit."""
    layer = node.operation
    size = getattr(layer, "kernel_size", getattr(layer, "pool_size", None))
    if size is None or not node.input_tensors or len(node.input_tensors[0].shape) != 4:
        return False
    sides = tuple(node.input_tensors[0].shape[1:3])
    return sides not in ((1, 1), (None, None)) and tuple(size) == sides


def _classifies(node: Any, classes: int | None) -> bool:
    layer = node.operation
    return (
        isinstance(layer, layers.Conv2D)
        and layer.filters == classes
        and tuple(layer.kernel_size) == (1, 1)
    )


def _weighted_behind(node: Any, cuts: Sequence[Any]) -> bool:
    """Whether layers with weights follow."""
    behind = cuts[[id(other) for other in cuts].index(id(node)) + 1 :]
    return any(getattr(other.operation, "weights", ()) for other in behind)


def cut_points(model: keras.Model, end: KerasTensor) -> Iterator[Any]:
    """The calls of layers, up to the one that makes `end`, that all later ones depend on alone.

    In the order of execution. Between them lie the parallel paths: the branch and the shortcut of a
    residual block, the branches of an Inception module.
    """
    return cuts(ancestors(model, end))


def cuts(nodes: Sequence[Any]) -> Iterator[Any]:
    """Those of the calls, in the order of execution, that all later ones depend on alone."""
    makers = {id(tensor): i for i, node in enumerate(nodes) for tensor in node.outputs}
    last_reader = list(range(len(nodes)))
    for i, node in enumerate(nodes):
        for tensor in node.input_tensors:
            last_reader[makers[id(tensor)]] = i
    reach = 0  # the last call that reads what was made before this one
    for i, node in enumerate(nodes):
        if reach <= i and len(node.outputs) == 1:
            yield node
        reach = max(reach, last_reader[i])


def ancestors(model: keras.Model, end: KerasTensor) -> list[Any]:
    """The calls that `end` is computed by, in the order of execution."""
    return needed(nodes_in_order(graph_of(model)), [end])


def needed(nodes: Sequence[Any], ends: Sequence[Any]) -> list[Any]:
    """Those of the calls, which are in the order of execution, that `ends` are computed by."""
    wanted, found = {id(end) for end in ends}, []
    for node in reversed(nodes):
        if any(id(tensor) in wanted for tensor in node.outputs):
            wanted |= {id(tensor) for tensor in node.input_tensors}
            found.append(node)
    return found[::-1]
