"""A model as one list of calls of layers, nested models opened, that can be run in parts.

Explaining needs what Keras does not give: the logit where the model ends in a softmax, a map in
the middle as a starting point, another rule for the ReLUs. All of it works on the user's own layers
and weights; nothing is added to the model or changed in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import layers

from kapps import _features
from kapps._block_skipping import nodes_in_order
from kapps._errors import InputError, unknown
from kapps._layers import layer_name
from kapps._profile import checked_graph, graph_of, no_graph

_CLASSIFYING = ("softmax", "sigmoid", "log_softmax")
_CLASSIFYING_OPS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax"}
_SWAPPING = threading.Lock()  # a layer's activation is replaced while it is called


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """What a call makes; one of its own for each call, also where a nested model is called twice.

    Attributes:
        shape: with the batch, None where a size is not fixed.
        dtype: its name.
    """

    shape: tuple[int | None, ...]
    dtype: str

    @property
    def is_map(self) -> bool:
        """Whether it is (batch, height, width, channels)."""
        return len(self.shape) == 4


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or operation.

    Attributes:
        name: that of the layer; within a nested model "model/layer", as in `kapps.profile`.
        operation: the layer.
        input_tensors: what it takes.
        outputs: what it makes.
    """

    name: str
    operation: Any
    input_tensors: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    _arguments: Any = dataclasses.field(repr=False)
    _symbols: tuple[int, ...] = dataclasses.field(repr=False)

    @property
    def activation(self) -> str | None:
        """The name of the function that the layer ends in, such as "relu"; None if it has none."""
        operation = self.operation
        if isinstance(operation, layers.Softmax):
            return "softmax"
        if isinstance(operation, layers.ReLU):
            plain = not operation.negative_slope and not operation.threshold
            names: dict[float | None, str] = {None: "relu", 6.0: "relu6"}
            return names.get(operation.max_value) if plain else None
        function = getattr(operation, "activation", None)
        if function is not None:
            name: str = getattr(function, "__name__", type(function).__name__)
            return None if name == "linear" else name
        if isinstance(operation, keras.Layer):
            return None
        kind = type(operation).__name__
        return _CLASSIFYING_OPS.get(kind, {"Relu": "relu", "Relu6": "relu6"}.get(kind))

    @property
    def is_only_activation(self) -> bool:
        """Whether the layer does nothing but its function."""
        only = (layers.Activation, layers.ReLU, layers.Softmax)
        return isinstance(self.operation, only) or not isinstance(self.operation, keras.Layer)

    def run(self, values: Mapping[Tensor, Any], activation: Callable[[Any], Any] | None) -> Any:
        """Its outputs in inference, as a list; with `activation` in place of its own function."""
        symbols = dict(
            zip(self._symbols, (values[tensor] for tensor in self.input_tensors), strict=True)
        )
        arguments, keywords = self._arguments.fill_in(symbols)
        if getattr(self.operation, "_call_has_training_arg", False):
            keywords["training"] = False
        if activation is None:
            return keras.tree.flatten(self.operation(*arguments, **keywords))
        if self.is_only_activation:
            return [activation(arguments[0])]
        with _with_activation(self.operation, activation):
            return keras.tree.flatten(self.operation(*arguments, **keywords))


@contextlib.contextmanager
def _with_activation(layer: Any, activation: Callable[[Any], Any]) -> Iterator[None]:
    with _SWAPPING:
        own = layer.activation
        layer.activation = activation
        try:
            yield
        finally:
            layer.activation = own


class Graph:
    """A classifier of one image, up to its logits; or a network without classes.

    Attributes:
        model: the user's.
        calls: in the order of execution, those that the logits need; the first stands for the
            image, and its operation is None.
        image: the input.
        logits: (batch, classes), before the last softmax or sigmoid; with one column where the
            model has one unit for two classes. Of a network without classes its first output.
    """

    def __init__(self, model: keras.Model, caller: str, *, headless: bool = False) -> None:
        """Reads the graph of `model`; `caller` is named in errors.

        Args:
            model: the user's.
            caller: the function that the user has called.
            headless: whether a network without classes will do, of which all outputs are computed.

        Raises:
            InputError: the model is no functional one with one image as input, or no classifier.
        """
        self.model, self.caller = model, caller
        _check_model(model, caller)
        (symbol,) = graph_of(model).inputs
        self.image = Tensor(tuple(symbol.shape), symbol.dtype)
        if not self.image.is_map or self.image.shape[-1] is None:
            raise InputError(
                f"{caller}: {model.name} takes {self.image.shape}; it has to take images (batch, "
                "height, width, channels)"
            )
        start = Call(symbol._keras_history.operation.name, None, (), (self.image,), None, ())
        found = [start]
        outputs = _open(graph_of(model), [self.image], "", found)
        self._linear: Call | None = None  # ends in a function that the logits are before
        self.logits = self._before_softmax(found, outputs[0])
        is_classifier = len(self.logits.shape) == 2
        if not is_classifier and not headless:
            raise InputError(
                f"{caller}: {model.name} gives {outputs[0].shape}, and has to give (batch, "
                "classes): a classifier, built with include_top=True"
            )
        ends = [self.logits] if is_classifier else outputs
        self.calls: list[Call] = _features.needed(found, ends)

    def _before_softmax(self, calls: Sequence[Call], output: Tensor) -> Tensor:
        makers = {tensor: call for call in calls for tensor in call.outputs}
        while output in makers:
            call = makers[output]
            classifying = call.activation in _CLASSIFYING
            if does_nothing(call.operation) or (classifying and call.is_only_activation):
                output = call.input_tensors[0]
                continue
            if classifying:
                self._linear = call
            break
        return output

    @property
    def classes(self) -> int:
        """Their number; two where the model has one unit."""
        return max(2, int(self.logits.shape[-1] or 0))

    @property
    def maps(self) -> list[Call]:
        """The calls that make a feature map."""
        return [call for call in self.calls[1:] if call.outputs[0].is_map]

    def layer(self, name: str) -> Tensor:
        """The output of a layer, of its last call.

        Args:
            name: the layer's; or its checkpoint's, with dots; or that of a block, as "layer3.1",
                which stands for the last map in it that all that follows is computed from; of a
                nested model with the model's name before it, "model/layer", or alone where it is
                the only one.

        Raises:
            InputError: there is none; the message proposes the nearest names.
        """
        call = self._find(name)
        if call is None:
            names = {call.name for call in self.calls[1:]}
            names |= {name.rpartition("/")[2] for name in names}
            raise unknown(f"layer of {self.model.name}", name, names)
        return call.outputs[0]

    def map(self, name: str) -> Tensor:
        """The feature map that a layer makes; see `layer`.

        Raises:
            InputError: there is no such layer, or it makes no map.
        """
        tensor = self.layer(name)
        if not tensor.is_map:
            maps = [call.name for call in self.maps]
            raise InputError(
                f"{self.caller}: {name} gives {tensor.shape}, no map (batch, height, width, "
                f"channels); the last layer that gives one is {maps[-1] if maps else 'none'}"
            )
        return tensor

    def _find(self, name: str) -> Call | None:
        if not isinstance(name, str):
            raise InputError(f"{self.caller}: a layer is given by its name, not as {name!r}")
        own = layer_name(name)
        for wanted in (name, own):
            same = [call for call in self.calls if call.name == wanted]
            inner = [call for call in self.calls if call.name.rpartition("/")[2] == wanted]
            if same or len({call.name for call in inner}) == 1:
                return (same or inner)[-1]
        within = [call for call in self._cuts() if _within(call.name, own)]
        return within[-1] if within else None

    def _cuts(self) -> list[Call]:
        return [call for call in _features.cuts(self.calls) if call.outputs[0].is_map][1:]

    def features(self) -> Tensor:
        """The map that the head takes: what Grad-CAM looks at where no layer is named.

        Raises:
            InputError: there is none.
        """
        known = None
        for call in self.calls:
            prefix, _, own = call.name.rpartition("/")
            if own == getattr(self._holder(prefix), "features_layer", None):
                known = call
        found = list(_features.cuts(self.calls))
        tensor = known.outputs[0] if known else _features.end_of(found, None)
        if tensor is None or tensor is self.image:
            raise InputError(
                f"{self.caller}: {self.model.name} makes no feature map before its classes; name a "
                "layer"
            )
        return tensor

    def _holder(self, prefix: str) -> Any:
        """The nested model of that name; the model itself for ""."""
        model = self.model
        for part in filter(None, prefix.split("/")):
            model = model.get_layer(part)
        return model

    def maker(self, tensor: Tensor) -> Call:
        """The call whose output it is."""
        return next(call for call in self.calls if tensor in call.outputs)

    def name_of(self, tensor: Tensor) -> str:
        return self.maker(tensor).name

    def between(self, start: Tensor, end: Tensor) -> list[Tensor]:
        """What `end` needs beside `start` of what does not depend on `start`."""
        behind = {start}
        found: dict[Tensor, None] = {}
        for call in _features.needed(self.calls, [end]):
            if behind.isdisjoint(call.input_tensors):
                continue
            behind.update(call.outputs)
            found.update((t, None) for t in call.input_tensors if t not in behind)
        return list(found)

    def run(
        self,
        values: Mapping[Tensor, Any],
        wanted: Sequence[Tensor],
        *,
        added: Mapping[Tensor, Any] | None = None,
        activations: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> list[Any]:
        """The values of `wanted`, of those that are given; only what they need is computed.

        Args:
            values: of tensors, as tensors of the backend.
            wanted: which to compute.
            added: what to add to tensors once they are computed.
            activations: functions to use in place of those of these names ("relu").
        """
        known = dict(values)
        for call in self._needed(known, wanted):
            other = (activations or {}).get(call.activation or "")
            if call is self._linear:
                other = keras.activations.linear
            for tensor, value in zip(call.outputs, call.run(known, other), strict=True):
                known[tensor] = value + added[tensor] if added and tensor in added else value
        return [known[tensor] for tensor in wanted]

    def _needed(self, given: Mapping[Tensor, Any], wanted: Sequence[Tensor]) -> list[Call]:
        missing = {tensor for tensor in wanted if tensor not in given}
        found = []
        for call in reversed(self.calls):
            if not missing.isdisjoint(call.outputs):
                found.append(call)
                missing.update(t for t in call.input_tensors if t not in given)
        return found[::-1]


def _check_model(model: Any, caller: str) -> None:
    graph = checked_graph(model, caller)
    if not _runs_its_graph(model):
        raise no_graph(model, caller)
    if len(graph.inputs) != 1:
        raise InputError(
            f"{caller}: {model.name} has {len(graph.inputs)} inputs; it takes a model of one image"
        )
    if keras.config.image_data_format() != "channels_last":
        raise InputError(
            f"{caller}: Keras is set to channels_first; set it by "
            "keras.config.set_image_data_format('channels_last')"
        )


def _runs_its_graph(model: Any) -> bool:
    """Whether the model computes what its graph says, and no code of its own."""
    return type(model).call.__module__.partition(".")[0] in ("keras", "kapps")


def _open(graph: Any, inputs: Sequence[Tensor], prefix: str, calls: list[Call]) -> list[Tensor]:
    """Adds the calls of a graph to `calls`, nested ones in their place; returns the outputs."""
    tensors = {id(symbol): tensor for symbol, tensor in zip(graph.inputs, inputs, strict=True)}
    for node in nodes_in_order(graph):
        if node.is_input:
            continue
        operation, name = node.operation, prefix + node.operation.name
        sources = tuple(tensors[id(symbol)] for symbol in node.input_tensors)
        nested = isinstance(operation, keras.Model) and _runs_its_graph(operation)
        if nested and graph_of(operation) is not None:
            outputs = _open(graph_of(operation), sources, f"{name}/", calls)
        else:
            outputs = [Tensor(tuple(symbol.shape), symbol.dtype) for symbol in node.outputs]
            symbols = tuple(map(id, node.input_tensors))
            calls.append(Call(name, operation, sources, tuple(outputs), node.arguments, symbols))
        tensors.update(zip(map(id, node.outputs), outputs, strict=True))
    return [tensors[id(symbol)] for symbol in graph.outputs]


def does_nothing(operation: Any) -> bool:
    """In inference, to the numbers."""
    return isinstance(operation, (layers.Dropout, layers.Identity)) or (
        isinstance(operation, layers.Activation) and operation.activation.__name__ == "linear"
    )


def _within(name: str, prefix: str) -> bool:
    return name.rpartition("/")[2].startswith(f"{prefix}_") or name.startswith(f"{prefix}_")
