"""A network that ends in the middle, with a new classifier there.

The features of its later layers are those of the images that it was trained on; where the new ones
are of another kind, earlier layers serve better (Yosinski et al. 2014, "How transferable are
features in deep neural networks?").
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

import kapps
from kapps._block_skipping import any_depth
from kapps._blocks import block_of, counting, is_within, prefixes
from kapps._errors import InputError, unknown
from kapps._features import ancestors, cut_points, features_end, pyramid
from kapps._layers import layer_name
from kapps._network import Net, Regularization, pooled_head
from kapps.tools.network import build_network

if TYPE_CHECKING:
    from kapps import Builder


def cut_network(
    builder: Builder,
    arguments: Mapping[str, Any],
    at: str,
    *,
    input_shape: tuple[int | None, int | None, int] | None = None,
    classes: int | None = None,
    weights: str | None = None,
    whole_weights: str | None = None,
) -> keras.Model:
    """The layers of a network up to a border between its blocks, global mean, classifier.

    The layers keep their names. `features_layer` of the model names the one that is the last.

    Args:
        builder: of the network.
        arguments: of the builder, by name.
        at: a stride, as "16": the last border at that stride; or the name of a block or a group of
            them, as "layer3" or "blocks_4": its end. `borders` lists the names.
        input_shape: (height, width, channels); by default any size, and three channels.
        classes: by default the builder's.
        weights: file of those of the cut network.
        whole_weights: of the network before it is cut, as the builder takes them.

    Raises:
        InputError: there is no such place, or the weights do not fit.
    """
    own = {name: value for name, value in arguments.items() if name != "classifier_activation"}
    whole = build_network(
        builder, {**own, "include_top": False}, input_shape=input_shape, weights=whole_weights
    )
    tensor = _place(whole, at).outputs[0]
    default = inspect.signature(builder).parameters
    rate = arguments.get("dropout_rate", default["dropout_rate"].default)
    activation = arguments.get("classifier_activation", "softmax")
    net = Net(Regularization(rate), classes or default["classes"].default, activation)
    with any_depth():
        # Of the same class: it may have residual blocks that are not to be computed.
        cut = type(whole)(whole.input, pooled_head(tensor, net), name=whole.name)
    for fact in ("kapps_builder", "kapps_weights", "kapps_evaluation"):
        setattr(cut, fact, getattr(whole, fact, None))
    cut.features_layer = tensor._keras_history.operation.name
    cut.checkpoint_headless = False
    if weights is not None:
        kapps.load_weights(cut, weights)
    return cut


def borders(model: keras.Model) -> list[Any]:
    """The calls of layers behind which a network can be cut: none is within a block.

    In the order of execution. A block is as in `kapps._blocks`; a layer outside of all blocks
    stands by itself.
    """
    end = features_end(model)
    order = {id(node): i for i, node in enumerate(ancestors(model, end))}
    nodes = [node for node in ancestors(model, end) if not node.is_input]
    spans: dict[str, tuple[int, int]] = {}
    blocks = counting(_paths(model))
    for node in nodes:
        block = block_of(node.operation.name, blocks)
        if block is not None:
            first, _ = spans.get(block, (order[id(node)], 0))
            spans[block] = first, order[id(node)]
    return [
        node
        for node in cut_points(model, end)
        if not node.is_input
        and len(node.outputs[0].shape) == 4
        and not any(first <= order[id(node)] < last for first, last in spans.values())
    ]


def stage_ends(model: keras.Model) -> list[Any]:
    """The calls that end a stage, in the order of execution: the last border at each stride.

    A stem, which lies before the first block, is no stage of its own.
    """
    found, blocks, ends = borders(model), counting(_paths(model)), []
    for _, tensor in sorted(pyramid(model).items()):
        made = ancestors(model, tensor)
        before = {id(node) for node in made}
        last = [node for node in found if id(node) in before][-1:]
        if not blocks or any(block_of(node.operation.name, blocks) for node in made):
            ends += [node for node in last if node not in ends]
    return ends


def _place(model: keras.Model, at: str) -> Any:
    found = borders(model)
    if at.isdecimal():
        return _at_stride(model, int(at), found)
    wanted = layer_name(at)
    inside = [node for node in found if is_within(node.operation.name, wanted)]
    if not inside:
        raise unknown(f"place to cut {model.name} at", at, _names(model, found))
    return inside[-1]


def _at_stride(model: keras.Model, stride: int, found: Sequence[Any]) -> Any:
    """The last border up to the deepest map of that stride."""
    maps = pyramid(model)
    if stride not in maps:
        known = ", ".join(map(str, sorted(maps)))
        raise InputError(
            f"{model.name} has no map at stride {stride} to cut at; there are: {known}"
        )
    before = {id(node) for node in ancestors(model, maps[stride])}
    return [node for node in found if id(node) in before][-1]


def _paths(model: keras.Model) -> list[str]:
    return [layer.checkpoint_path for layer in model.layers if hasattr(layer, "checkpoint_path")]


def _names(model: keras.Model, found: Sequence[Any]) -> list[str]:
    """What a user may say, beside strides."""
    ends = [node.operation.name for node in found]
    named = {prefix for path in _paths(model) for prefix in prefixes(path)}
    groups = {p for p in named if any(is_within(end, layer_name(p)) for end in ends)}
    inside = {end for end in ends for group in groups if is_within(end, layer_name(group))}
    return sorted(groups | (set(ends) - inside))
