"""The classes of the models that the builders return.

Saved models name them. The module is loaded as soon as Keras is, see `kapps._lazy.load_with`, maybe
in the midst of `kapps.custom_layers`: what it takes from there it may only look up when it runs.

A graph of layers computes a residual branch before the layer that would drop it sees the result.
`BlockSkippingModel` draws first, and runs the branch only where it survives; it is the same flat
graph of the same layers, and in inference nothing is different.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from kapps import custom_layers


@dataclasses.dataclass(frozen=True)
class _Skip:
    """A residual sum whose branch may be dropped."""

    branch: tuple[Any, ...]
    """The nodes that nothing but the dropped summand needs, in order of execution."""
    drop: Any
    """The node of the `StochasticDepth`."""
    total: Any
    """That of the sum."""


_CALLS = 20_000
"""Nested calls of Python's functions for a model of about as many layers; the default is 1,000."""


@keras.saving.register_keras_serializable("kapps")
class BuiltModel(keras.Model):
    """A functional model that knows how it was built, also once it was saved and loaded."""

    kapps_builder: str | None = None
    """The name of its builder: its own name may be another."""
    features_layer: str | None = None
    """The layer that makes the feature map: what follows is the head."""
    checkpoint_before: frozenset[str] = frozenset()
    """The layers that are not the network's own: those that its `input_tensor` came from."""
    checkpoint_headless: bool
    """Whether it was built without classifier; a clone does not know."""
    checkpoint_auxiliary: tuple[str, ...] = ()
    """Paths of the heads that exist for training only, whether or not it has them."""
    auxiliary_weights: tuple[float, ...] = ()
    """Of the outputs behind the main one: the loss is the main one's and the sum of theirs, each
    multiplied by its weight. None where the model has one output."""

    def get_config(self) -> dict[str, Any]:
        built = {
            "builder": self.kapps_builder,
            "features_layer": self.features_layer,
            "before": sorted(self.checkpoint_before),
            "headless": getattr(self, "checkpoint_headless", None),
            "auxiliary": list(self.checkpoint_auxiliary),
            "auxiliary_weights": list(self.auxiliary_weights),
        }
        return {**super().get_config(), "built": built}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> BuiltModel:
        own = {key: value for key, value in config.items() if key != "built"}
        model = super().from_config(own, custom_objects)
        built = config.get("built")  # kapps 0.1 saved none
        if built is not None:
            model.kapps_builder = built["builder"]
            model.features_layer = built["features_layer"]
            model.checkpoint_before = frozenset(built["before"])
            if built["headless"] is not None:
                model.checkpoint_headless = built["headless"]
            model.checkpoint_auxiliary = tuple(built["auxiliary"])
            # Files of before did not have it.
            model.auxiliary_weights = tuple(built.get("auxiliary_weights", ()))
        return model


@contextlib.contextmanager
def any_depth() -> Iterator[None]:
    """Within, functional models of any depth can be made.

    Keras walks a new graph by a function that calls itself once for each layer
    (`_build_map_helper` in keras/src/ops/function.py).
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _CALLS))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


@keras.saving.register_keras_serializable("kapps")
class DeepModel(BuiltModel):
    """A functional model of any depth."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # so named, or Keras loads none
        with any_depth():
            super().__init__(*args, **kwargs)


@keras.saving.register_keras_serializable("kapps")
class BlockSkippingModel(DeepModel):
    """A functional model that does not compute what `StochasticDepth` of mode "batch" drops.

    In training only, and on every backend: a condition of the graph on TensorFlow and JAX, plain
    Python on PyTorch. A branch with batch norm that is synchronized among replicas is computed all
    the same, and zeroed: TensorFlow lets no replicas meet within a condition.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not training:
            return super().call(inputs, training=training, mask=mask)
        tensors = self._standardize_inputs(inputs)  # as Keras's own `call` does
        values = {id(symbol): value for symbol, value in zip(self.inputs, tensors, strict=True)}
        for step in self._steps():
            if isinstance(step, _Skip):
                _run_or_skip(step, values)
            else:
                _run((step,), values)
        found = [values[id(symbol)] for symbol in self.outputs]
        return found[0] if len(found) == 1 else found

    def _steps(self) -> Sequence[Any]:
        """The nodes in order of execution; a sum that may be skipped stands for its branch."""
        nodes = [node for node in nodes_in_order(self) if not node.is_input]
        readers: dict[int, list[Any]] = {}
        for node in nodes:
            for tensor in node.input_tensors:
                readers.setdefault(id(tensor), []).append(node)
        makers = {id(tensor): node for node in nodes for tensor in node.outputs}
        places = {id(node): i for i, node in enumerate(nodes)}
        results = {id(tensor) for tensor in self.outputs}
        skips: dict[int, _Skip] = {}  # by the identity of the sum's node
        inside: set[int] = set()
        for node in nodes:
            layer = node.operation
            if not isinstance(layer, custom_layers.StochasticDepth) or layer.mode != "batch":
                continue
            (total,) = readers[id(node.outputs[0])]
            # From the dropped summand backwards: what nothing outside of the branch reads.
            branch, found = {id(node)}, [node]
            for reader in found:
                for earlier in (makers.get(id(tensor)) for tensor in reader.input_tensors):
                    if (
                        earlier is not None
                        and id(earlier) not in branch
                        and all(
                            id(tensor) not in results
                            and all(id(other) in branch for other in readers[id(tensor)])
                            for tensor in earlier.outputs
                        )
                    ):
                        branch.add(id(earlier))
                        found.append(earlier)
            order = tuple(sorted(found[1:], key=lambda n: places[id(n)]))
            if any(getattr(n.operation, "synchronized", False) for n in order):
                continue
            skips[id(total)] = _Skip(order, node, total)
            inside |= branch
        return [skips.get(id(node), node) for node in nodes if id(node) not in inside]


def nodes_in_order(graph: Any) -> list[Any]:
    """The calls of layers in the order in which Keras (3, and 2) executes them, inputs included.

    Keras has no public view of a graph's nodes: the attribute is the one that `keras.Function` runs
    through.
    """
    by_depth = graph._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def _run(nodes: Sequence[Any], values: dict[int, Any]) -> None:
    """Runs the layers of these nodes in training; `values` gains their outputs, by symbol."""
    for node in nodes:
        arguments, keywords = node.arguments.fill_in(values)
        if "training" in keywords:  # the graph remembers the layer's default; Keras replaces it too
            keywords["training"] = True
        outputs = keras.tree.flatten(node.operation(*arguments, **keywords))
        values.update(zip(map(id, node.outputs), outputs, strict=True))


def _run_or_skip(skip: _Skip, values: dict[int, Any]) -> None:
    """Runs the branch and the sum, or takes the shortcut for the sum."""
    drop, total = skip.drop, skip.total
    (shortcut,) = (x for x in total.input_tensors if x is not drop.outputs[0])
    variables = list({id(v): v for node in skip.branch for v in _variables(node)}.values())
    # The branch changes variables (statistics, seeds). JAX lets no change out of a condition but
    # as its result, and TensorFlow's replicas, which average statistics, must not meet within one:
    # so it runs on their values.
    before = [ops.convert_to_tensor(v.value) for v in variables]
    changing = [i for i, v in enumerate(variables) if not v.trainable]

    def computed() -> Any:
        inner = dict(values)
        with keras.StatelessScope(zip(variables, before, strict=True)) as scope:
            _run(skip.branch, inner)
            inner[id(drop.outputs[0])] = drop.operation.scale(inner[id(drop.input_tensors[0])])
            _run((total,), inner)
            after = [scope.get_current_value(variables[i]) for i in changing]
        return inner[id(total.outputs[0])], after

    def skipped() -> Any:
        value = ops.convert_to_tensor(values[id(shortcut)])
        if keras.backend.backend() == "torch":
            # Python has skipped the branch, and its weights would have no gradient where the other
            # backends give zeros; Keras warns of that at every step.
            idle = (ops.reshape(v, (-1,))[0] for v in variables if v.trainable)
            value = value + 0 * sum(idle)
        return value, [before[i] for i in changing]

    value, after = ops.cond(drop.operation.survives(()), computed, skipped)
    values[id(total.outputs[0])] = value
    for i, changed in zip(changing, after, strict=True):
        variables[i].assign(changed)


def _variables(node: Any) -> list[Any]:
    return getattr(node.operation, "variables", [])
