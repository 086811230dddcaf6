"""A Keras model's graph: looked at, and built anew with some layers replaced.

What the export passes (`kapps.tflite.passes`) are made of. The model itself is never changed.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps._block_skipping import any_depth, nodes_in_order
from kapps._errors import InputError

Call = Callable[..., Any]
"""Takes and returns what a layer does: a new layer, or a function that calls several."""


def identity(x: Any) -> Any:
    """A `Call` that leaves a layer out: its input is its output."""
    return x


class Graph:
    """Which layer of a functional model feeds which; models nested in it count as one layer."""

    def __init__(self, model: keras.Model) -> None:
        self.nodes = nodes_in_order(model)
        self.outputs = {id(tensor) for tensor in model.outputs}
        self._nodes_of: dict[int, list[Any]] = {}
        self._users: dict[int, list[Any]] = {}
        for node in self.nodes:
            self._nodes_of.setdefault(id(node.operation), []).append(node)
            for tensor in node.input_tensors:
                self._users.setdefault(id(tensor), []).append(node)

    @property
    def layers(self) -> list[keras.Operation]:
        """Each layer or bare operation once, after those that it depends on."""
        return list(dict.fromkeys(node.operation for node in self.nodes))

    def once(self, layer: keras.Operation) -> bool:
        """Whether it is a layer that is called once, with one tensor or list, to give one tensor.

        One that was called with further arguments, such as `training=True`, is not understood.
        """
        nodes = self._nodes_of[id(layer)]
        if not isinstance(layer, keras.Layer) or len(nodes) != 1 or len(nodes[0].outputs) != 1:
            return False
        arguments = nodes[0].arguments
        given = [v for v in arguments.kwargs.values() if v is not None and v is not False]
        return len(arguments.args) == 1 and not given

    def inputs(self, layer: keras.Operation) -> list[keras.KerasTensor]:
        """The tensors that a layer that is called once takes."""
        return list(self._nodes_of[id(layer)][0].input_tensors)

    def output(self, layer: keras.Operation) -> keras.KerasTensor:
        """The tensor that a layer that is called once gives."""
        return self._nodes_of[id(layer)][0].outputs[0]

    def before(self, layer: keras.Operation) -> Any:
        """The layer that makes the only input of this one; None unless both are called once."""
        inputs = self.inputs(layer) if self.once(layer) else []
        if len(inputs) != 1:
            return None
        source = inputs[0]._keras_history.operation
        return source if id(source) in self._nodes_of and self.once(source) else None

    def after(self, layer: keras.Operation) -> list[keras.Operation] | None:
        """The layers that take the output of this one, by the number of times that they do.

        None if it leaves the model, or one of the layers is called more than once.
        """
        if not self.once(layer) or id(self.output(layer)) in self.outputs:
            return None
        users = [node.operation for node in self._users.get(id(self.output(layer)), [])]
        return users if all(self.once(user) for user in users) else None

    def only_after(self, layer: keras.Operation) -> Any:
        """The one layer that takes the output of this one, and takes nothing else; or None."""
        users = self.after(layer) or []
        return users[0] if len(users) == 1 and len(self.inputs(users[0])) == 1 else None


_sharing: contextvars.ContextVar[bool] = contextvars.ContextVar("sharing", default=False)


@contextlib.contextmanager
def sharing_weights() -> Iterator[None]:
    """Within, copies of layers hold the variables of the original, and not copies of these.

    For models that are only looked at: a network of hundreds of MiB goes through a dozen passes.
    """
    token = _sharing.set(True)
    try:
        yield
    finally:
        _sharing.reset(token)


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Within, new layers compute in float32, whatever Keras's dtype policy and floatx are."""
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


Plan = Callable[[Graph], Mapping[keras.Operation, Call]]
"""Says of a graph which layers are replaced, and by what; only such as `Graph.once` knows."""


@any_depth()
def rebuild(
    model: keras.Model,
    *,
    keep: Callable[[keras.Layer], bool] = lambda layer: True,
    plan: Plan = lambda graph: {},
    batch_size: int | None = None,
    front: Call = identity,
    changes: Callable[[keras.Operation], Mapping[str, Any]] = lambda layer: {},
) -> keras.Model:
    """A copy of a functional model with some layers left out or replaced: the rest stays.

    Args:
        model: the model; models nested in it are rebuilt too, and stay nested.
        keep: says of each layer whether it stays; one that goes hands its input on.
        plan: says of each graph what is called in the place of which layer.
        batch_size: the batch dimension of the inputs, by default that of the model.
        front: what is called on each input before anything else.
        changes: says of each layer how the configuration of its copy differs.

    Raises:
        InputError: the model is no functional or Sequential one, so its graph is not known.
    """
    graph = _functional(model)
    copies: dict[int, tuple[keras.Layer, keras.Layer]] = {}
    replaced = plan(Graph(graph))
    fronted: dict[int, Any] = {}  # by the input

    def call(layer: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(lambda x: fronted.get(id(x), x), (args, kwargs))
        if layer in replaced:
            return replaced[layer](*args)  # `Graph.once`: called with nothing else
        if isinstance(layer, keras.Layer) and not keep(layer):
            return args[0]
        if id(layer) not in copies:
            nested = isinstance(layer, keras.Model)
            copy = (
                rebuild(layer, keep=keep, plan=plan, changes=changes)
                if nested
                else copy_layer(layer, **changes(layer))
            )
            copies[id(layer)] = layer, copy
            return _called(copy, layer, args, kwargs)
        return copies[id(layer)][1](*args, **kwargs)

    names = [layer.name for layer in graph.layers if isinstance(layer, layers.InputLayer)]
    inputs = [
        keras.Input(
            batch_shape=(batch_size or x.shape[0], *x.shape[1:]),
            **({"dtype": x.dtype} | dict(changes(x._keras_history.operation))),
            name=name,
        )
        for x, name in zip(graph.inputs, names, strict=True)
    ]
    fronted.update({id(x): front(x) for x in inputs})
    return keras.models.clone_model(
        graph,
        input_tensors=_plain(inputs),
        clone_function=lambda layer: layer,  # `call` copies: it also sees the arguments
        call_function=call,
    )


def _called(copy: Any, layer: Any, args: Any, kwargs: Any) -> Any:
    """What the copy of a layer gives, with the layer's weights from now on."""
    with undrawn(copy):
        outputs = copy(*args, **kwargs)
    # A bare op has no weights, and a nested model has got its own.
    if isinstance(layer, keras.Layer) and not isinstance(layer, keras.Model):
        _take_weights(copy, layer)
    return outputs


@contextlib.contextmanager
def undrawn(layer: Any) -> Iterator[None]:
    """Within, the layer is built with zeros: to draw 100 million numbers takes seconds."""
    drawn = {name: value for name, value in vars(layer).items() if name.endswith("_initializer")}
    for name in drawn:
        setattr(layer, name, keras.initializers.Zeros())
    try:
        yield
    finally:
        for name, value in drawn.items():
            setattr(layer, name, value)


class Scaled:
    """A kernel times factors, of which any part is computed when it is asked for.

    While weights are shared it stands in the place of a variable's value: the kernels of a network
    with its batch norms folded in would be a second copy of the network, most of which TensorFlow's
    allocator keeps. `settle` makes variables of those that are left.
    """

    def __init__(self, kernel: np.ndarray | Scaled, factors: np.ndarray | float) -> None:
        self.shape: tuple[int, ...] = tuple(kernel.shape)
        self._kernel = kernel
        self._factors = np.broadcast_to(np.asarray(factors, "float64"), self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        return (self._kernel[index] * self._factors[index]).astype("float32")

    def numpy(self) -> np.ndarray:
        """All of it: so `layer.get_weights()` asks for the value of a variable."""
        values = np.empty(self.shape, "float32")
        for some in filters_at_once(self.shape):
            values[..., some] = self[..., some]
        return values


def over_one_pixel(kernel: np.ndarray | Scaled) -> np.ndarray | Scaled:
    """That of a dense layer, as one of a convolution."""
    if isinstance(kernel, Scaled):
        return Scaled(over_one_pixel(kernel._kernel), kernel._factors)
    return kernel[None, None]


def filters_at_once(shape: Sequence[int]) -> Iterator[slice]:
    """Parts of a kernel's last axis, of some MiB each, for what is done with one after another."""
    step = max(1, _AT_ONCE * shape[-1] // (4 * math.prod(shape)))
    for start in range(0, shape[-1], step):
        yield slice(start, start + step)


_AT_ONCE = 4 << 20  # bytes

_LEAST_SCALED = 128 << 10  # bytes of a kernel that is worth it


def values_of(variable: Any) -> np.ndarray | Scaled:
    """What a variable holds; not copied while weights are shared."""
    value = variable.value
    if not _sharing.get():
        return np.asarray(variable.numpy())
    return value if isinstance(value, Scaled) else np.asarray(memoryview(value.read_value()))


def settle(model: keras.Model) -> None:
    """Computes what is `Scaled` in a model, so that it can be called."""
    for variable in model.variables:
        if isinstance(variable.value, Scaled):
            variable._initialize(variable.value.numpy())  # Keras has no public way


def _take_weights(copy: Any, layer: Any) -> None:
    if not _sharing.get():
        copy.set_weights(layer.get_weights())
        return
    for new, old in zip(copy.weights, layer.weights, strict=True):
        if (new.shape, new.dtype) == (old.shape, old.dtype):
            new._value = old._value  # Keras has no public way to hand in a variable
        else:
            new.assign(old)


def leaves(model: keras.Model) -> dict[str, keras.Layer]:
    """The layers of a model and of those nested in it, by names that are unique in all of it.

    A layer of a nested model has its own name, and where several layers have that, those of the
    models that it is in before it: "backbone_conv1".
    """
    found: list[tuple[str, keras.Layer]] = []  # names of the models that it is in, joined
    seen: set[int] = set()

    def collect(model: keras.Model, path: str) -> None:
        for layer in model.layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            if isinstance(layer, keras.Model):
                collect(layer, f"{path}{layer.name}_")
            elif not (path and isinstance(layer, layers.InputLayer)):
                found.append((path, layer))

    collect(model, "")
    count = Counter(layer.name for _, layer in found)
    named = {
        f"{path}{layer.name}" if count[layer.name] > 1 else layer.name: layer
        for path, layer in found
    }
    if len(named) < len(found):
        raise InputError(
            f"model {model.name!r} has models nested in it whose layers cannot be told apart by "
            "their names; give the nested models other names"
        )
    return named


@any_depth()
def flattened(model: keras.Model) -> keras.Model:
    """The same with the layers of nested models in their place, named as in `leaves`.

    The model itself if nothing is nested in it.

    Raises:
        InputError: as `rebuild`.
    """
    graph = _functional(model)
    if not any(isinstance(layer, keras.Model) for layer in graph.layers):
        return model
    names = {id(layer): name for name, layer in leaves(graph).items()}
    copies: dict[int, tuple[Any, Any]] = {}

    def call(layer: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.Model):
            return run(_functional(layer), args[0])
        if id(layer) not in copies:
            copy = copy_layer(layer, **({"name": names[id(layer)]} if id(layer) in names else {}))
            copies[id(layer)] = layer, copy
            return _called(copy, layer, args, kwargs)
        return copies[id(layer)][1](*args, **kwargs)

    def run(graph: keras.Model, inputs: Any) -> Any:
        tensors = {
            id(x): value for x, value in zip(graph.inputs, keras.tree.flatten(inputs), strict=True)
        }
        for node in Graph(graph).nodes:
            if node.is_input:
                continue
            args, kwargs = node.arguments.fill_in(tensors)
            outputs = keras.tree.flatten(call(node.operation, *args, **kwargs))
            tensors.update({id(x): y for x, y in zip(node.outputs, outputs, strict=True)})
        return _plain([tensors[id(x)] for x in graph.outputs])

    inputs = [keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name) for x in graph.inputs]
    return keras.Model(_plain(inputs), run(graph, _plain(inputs)), name=model.name)


def replace(model: keras.Model, plan: Plan) -> keras.Model:
    """A copy of a model with some layers replaced; the model itself if `plan` replaces none.

    Raises:
        InputError: as `rebuild`.
    """
    graph = Graph(_functional(model))
    if any(isinstance(layer, keras.Model) for layer in graph.layers):
        return rebuild(model, plan=plan)
    replaced = plan(graph)
    return rebuild(model, plan=lambda graph: replaced) if replaced else model


@any_depth()
def _functional(model: keras.Model) -> keras.Model:
    """As a plain functional model: the same graph, without what `compile` left."""
    if not isinstance(model, (keras.Sequential, keras.models.Model)) or not model.built:
        raise InputError(f"expected a built Keras model, got {type(model).__name__}")
    try:
        return keras.Model(_plain(model.inputs), _plain(model.outputs), name=model.name)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"model {model.name!r} is no functional model, so its graph is not known; "
            "build it from layers called on keras.Input"
        ) from error


def _plain(tensors: list[keras.KerasTensor]) -> Any:
    """One tensor without a list around it: a model gives back what it was built with."""
    return tensors[0] if len(tensors) == 1 else tensors


def copy_layer(layer: keras.Operation, **changes: Any) -> keras.Operation:
    """A new layer of the same configuration but for `changes`, without its weights.

    Raises:
        InputError: the layer has no configuration.
    """
    if isinstance(layer, layers.Lambda):
        raise InputError(
            f"layer {layer.name!r} is a Lambda, whose function nobody can look into: use keras.ops "
            "on the tensors in its place, or write it as a layer class with call and get_config"
        )
    try:
        return layer.__class__.from_config({**layer.get_config(), **changes})
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InputError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be copied: {error} "
            "Write it as a layer class with get_config."
        ) from error


def edited(
    graph: Graph,
    layer: keras.Operation,
    weights: Sequence[np.ndarray | Scaled] | None,
    **changes: Any,
) -> keras.Operation:
    """A layer that is called once, with other weights, and with `changes` of its configuration.

    The weights are its own if they are None.
    """
    copy: Any = copy_layer(layer, **changes)
    with undrawn(copy):
        copy.build(graph.inputs(layer)[0].shape)
    if weights is None:
        _take_weights(copy, layer)
        return copy
    for variable, value in zip(copy.weights, weights, strict=True):
        if not isinstance(value, Scaled):
            variable.assign(value)
        elif _sharing.get() and 4 * math.prod(value.shape) >= _LEAST_SCALED:
            variable._value = value
        else:
            variable.assign(value.numpy())
    return copy
