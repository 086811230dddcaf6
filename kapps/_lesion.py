"""A network without one of its blocks, and which blocks can be removed.

Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", section
4.1: a residual network hardly misses one, a plain one is destroyed.
"""

from __future__ import annotations

from typing import Any

import keras

from kapps._anatomy import Anatomy
from kapps._block_skipping import BuiltModel, any_depth, nodes_in_order
from kapps._heads import keep_facts
from kapps._profile import checked_graph, graph_of


def lesion(model: keras.Model, block: str) -> keras.Model:
    """The model without one block, as a model of its own.

        kapps.lesion(kapps.ResNet50(weights="imagenet"), "layer3.2").predict(images)

    Of a residual block the shortcut stays, with its convolution where it has one, and what follows
    the sum; of a dense layer what it was given, with zeros for its channels; a block without
    shortcut, or a convolution with its batch norm and activation, is left out. All other layers are
    those of the model, and so are the weights: to train one is to train the other.

    Args:
        model: functional or sequential, of kapps or not. One that holds the network as a nested
            layer has to be opened: `model.get_layer("ResNet50")`.
        block: one of `removable_blocks`; or the name of a sum with a shortcut, of a convolution or
            of any group of layers, as "layer3", whose output is of the shape of its input.

    Returns:
        A functional model; of kapps' own class, with what kapps knows of it, where `model` is.

    Raises:
        InputError: there is no such block, or it cannot be removed; the message names those that
            can.
    """
    removal = _anatomy(model, "kapps.lesion").removal(block)
    graph = graph_of(model)
    values = {id(tensor): tensor for tensor in graph.inputs}
    with any_depth():
        for node in nodes_in_order(graph):
            _call_again(node, values)
            if any(tensor is removal.removed for tensor in node.outputs):
                values[id(removal.removed)] = removal.stand_in(values[id(removal.kept)])
        outputs = [values[id(tensor)] for tensor in graph.outputs]
        # Of the same class: it may have residual blocks that are not to be computed.
        kind = type(model) if isinstance(model, BuiltModel) else keras.Model
        inputs = graph.inputs if len(graph.inputs) > 1 else graph.inputs[0]
        found = kind(inputs, outputs if len(outputs) > 1 else outputs[0], name=model.name)
    keep_facts(model, found)
    if hasattr(model, "auxiliary_weights"):
        found.auxiliary_weights = model.auxiliary_weights
    end = getattr(model, "features_layer", None)
    if end == removal.removed._keras_history.operation.name:
        found.features_layer = values[id(removal.removed)]._keras_history.operation.name
    return found


def removable_blocks(model: keras.Model) -> tuple[str, ...]:
    """The names of the blocks that `lesion` can remove, in the order of execution.

    They are residual blocks, dense layers, blocks without shortcut that keep the shape, and of the
    convolutions outside of all blocks those that do. A block is named as in checkpoints,
    "layer3.2"; one of a model that kapps has not built by its sum, without "_add" at the end.

    Raises:
        InputError: the model is no functional one.
    """
    return _anatomy(model, "kapps.removable_blocks").names


def _anatomy(model: Any, caller: str) -> Anatomy:
    graph = checked_graph(model, caller)
    return Anatomy(model, nodes_in_order(graph), graph.outputs)


def _call_again(node: Any, values: dict[int, Any]) -> None:
    """Adds its outputs to `values`: the model's own where nothing before it was replaced."""
    if node.is_input:
        return
    if all(values[id(tensor)] is tensor for tensor in node.input_tensors):
        values.update((id(tensor), tensor) for tensor in node.outputs)
        return
    arguments, keywords = node.arguments.fill_in(values)
    outputs = keras.tree.flatten(node.operation(*arguments, **keywords))
    values.update(zip(map(id, node.outputs), outputs, strict=True))
