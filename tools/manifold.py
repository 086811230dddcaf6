"""A network in parts, between which manifold mixup mixes what a batch has become.

Verma et al. 2019, "Manifold Mixup: Better Representations by Interpolating Hidden States", section
3: a place is drawn for each batch, the hidden states there and the labels are mixed, and the rest
of the network goes on from that.
"""

from __future__ import annotations

from typing import Any

import keras

from kapps._block_skipping import BuiltModel, any_depth
from kapps._errors import InputError
from kapps._features import cut_points
from kapps._profile import graph_of
from kapps.tools import mixing
from kapps.tools.cutting import stage_ends

_STAGES = 2  # section 5 of the paper: the input, and the ends of two residual groups


class MixedForward:
    """The forward pass of a network in training, with its batch mixed at one of some places.

    Place 0 is the input, which the caller mixes; the others are the ends of the first two stages,
    at the borders between blocks. All are in the step that is compiled: where a batch is not mixed
    a row has the whole weight, and its neighbour none, which leaves every finite number as it is.

    Args:
        model: functional, of Keras 3; its layers are shared.

    Raises:
        InputError: it has no such place.
    """

    def __init__(self, model: keras.Model) -> None:
        if not isinstance(model, keras.Model) or graph_of(model) is None:
            raise InputError(
                f"{type(model).__name__} is no functional model, whose layers manifold_mixup could "
                "mix at; set manifold_mixup to 0"
            )
        graph = graph_of(model)
        outputs = keras.tree.flatten(graph.outputs)
        # An auxiliary head, too, has to be computed from what was mixed.
        common = [{id(node) for node in cut_points(model, output)} for output in outputs]
        found = [node for node in stage_ends(model) if all(id(node) in each for each in common)]
        if not found:
            raise InputError(
                f"{model.name} has no stage whose end manifold_mixup could mix at; set it to 0"
            )
        tensors = [graph.inputs[0], *(node.outputs[0] for node in found[:_STAGES])]
        kind = type(model) if isinstance(model, BuiltModel) else keras.Model
        with any_depth():
            self._parts = [
                kind(begin, end, name=f"{model.name}_part{i}")
                for i, (begin, end) in enumerate(
                    zip(tensors, [*tensors[1:], graph.outputs], strict=True)
                )
            ]

    @property
    def places(self) -> int:
        """How many there are, the input included."""
        return len(self._parts)

    def __call__(self, images: Any, mix: Any, training: bool = True) -> Any:
        """What the network gives; `mix` is `mixing.Mix.vector`."""
        first, *others = self._parts
        x = first(images, training=training)
        for place, part in enumerate(others, start=1):
            mixed = mixing.mix_features(x, mixing.share_at(mix, place))
            x = part(mixed, training=training)
        return x
