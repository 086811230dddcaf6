"""What a network costs: parameters, multiplications, activation memory and receptive field.

All of it follows from the shapes in the graph; the network is not run.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import keras
from keras import layers

from kapps._arguments import shape_of
from kapps._block_skipping import nodes_in_order
from kapps._errors import InputError
from kapps._receptive_field import Axis, propagate

_CONV = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_TRANSPOSE = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
# Their weights of two or more dimensions scale, shift or look up: no sum of products.
_ELEMENTWISE = (
    layers.Embedding,
    layers.LayerNormalization,
    layers.Normalization,
    layers.PReLU,
    layers.RMSNormalization,
)
# No weights, and sums of products all the same.
_UNCOUNTED = (layers.Attention, layers.AdditiveAttention, layers.Dot)
_UNCOUNTED_OPS = re.compile(
    "Conv|ConvTranspose|DepthwiseConv|SeparableConv|Dot|DotProductAttention|Einsum|Inner|Matmul|"
    "Outer|Tensordot|Vdot"
)


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """One call of a layer, on one image."""

    name: str
    """That of the layer; within a nested model "model/layer"."""
    kind: str
    """Its class."""
    output_shape: tuple[int, ...]
    """Without the batch; of the first output where there are several."""
    parameters: int
    """Numbers in its weights, batch norm statistics included; 0 where an earlier call has them."""
    trainable_parameters: int
    macs: int
    """Multiply-accumulate operations of convolutions and fully connected layers."""
    activation_bytes: int
    """Memory of its outputs in their own dtype."""
    receptive_field: tuple[int, int] | None
    """Height and width of what one unit of the output sees, in pixels of the image."""
    stride: tuple[float, float] | None
    """Pixels of the image from one unit to the next; None for an output that is no map."""


@dataclasses.dataclass(frozen=True, repr=False)
class Profile:
    """What `kapps.profile` tells; `print` shows it as a table."""

    name: str
    layers: tuple[LayerProfile, ...]
    """Every call of a layer, in the order of execution."""
    peak_activation_bytes: int
    """The largest sum of tensors that are needed at one time, if none is written over another: a
    layer's inputs and outputs, and what later layers still read."""
    receptive_field: tuple[int, int] | None
    """The largest of a feature map, that is of an output with more than one position."""

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def trainable_parameters(self) -> int:
        return sum(layer.trainable_parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        return sum(layer.activation_bytes for layer in self.layers)

    def totals(self) -> str:
        """The sums, one a line."""
        lines = [
            ("parameters", f"{self.parameters:,}, trainable {self.trainable_parameters:,}"),
            ("MACs", f"{self.macs:,}"),
            (
                "activations",
                f"{_kib(self.activation_bytes)} KiB an image, "
                f"at most {_kib(self.peak_activation_bytes)} KiB at one time",
            ),
        ]
        if self.receptive_field is not None:
            lines.append(("receptive field", f"{_by(self.receptive_field)} pixels"))
        width = max(len(title) for title, _ in lines)
        return "\n".join([self.name, *(f"{title:<{width}}  {text}" for title, text in lines)])

    def __str__(self) -> str:
        head = ("layer", "type", "output", "parameters", "MACs", "KiB", "field", "stride")
        rows = [
            (
                layer.name,
                layer.kind,
                _by(layer.output_shape),
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
                _kib(layer.activation_bytes),
                "" if layer.receptive_field is None else _by(layer.receptive_field),
                "" if layer.stride is None else _by(layer.stride),
            )
            for layer in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (head, tuple("-" * width for width in widths), *rows)
        ]
        return "\n".join([*lines, "", self.totals()])

    __repr__ = __str__


def profile(model: keras.Model, input_shape: Sequence[int | None] | None = None) -> Profile:
    """Parameters, MACs, activation memory and receptive field of a model, layer by layer.

    MACs are the multiply-accumulate operations of convolutions and fully connected layers for one
    image, padding included, as the literature counts them; biases, normalizations, activations and
    poolings are not counted. A layer that is called twice counts twice, and its parameters once. A
    layer of one's own with products to count has a method `compute_macs(input_shape) -> int`;
    `input_shape` is what its `build` gets, and the result is for one image.

    Activation memory is that of each layer's output for one image, in the dtype that the layer
    computes in.

    The receptive field is the theoretical one: the extent of all pixels that a unit depends on,
    also where it reaches beyond the edge of the image. After a global mean, or a fully connected
    layer over a map, it is the image; after squeeze-and-excitation, which multiplies each unit by
    what depends on the global mean, as well. A layer that is unknown to Keras counts as a window
    if it has Keras's attributes of one (`kernel_size` or `pool_size`, `strides`, `padding`).
    Otherwise it is taken to treat each position by itself if it keeps height and width, and to see
    the whole image if not.

    Args:
        model: a functional or sequential Keras model, from kapps or not, channels last.
        input_shape: (height, width, channels) for a model that takes images of any size.

    Raises:
        InputError: a size is not fixed, or a layer multiplies in a way that has no rule here; the
            message names the remedy.
    """
    values = inputs_of(model, input_shape)
    walk = Walk([value.shape for value in values])
    outputs = walk.run(model, values, "")
    fields = [
        value.field
        for step in walk.steps
        for value in step.outputs
        if value.field is not None and len(value.shape) == 3 and value.shape[:2] != (1, 1)
    ]
    return Profile(
        name=model.name,
        layers=tuple(step.profile for step in walk.steps),
        peak_activation_bytes=_peak(walk.steps, outputs),
        receptive_field=walk.pixels(fields),
    )


# --- The graph -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph."""

    shape: tuple[int, ...]
    """Without the batch."""
    dtype: str
    field: tuple[Axis, Axis] | None
    """What it sees, vertically and horizontally; None if it does not depend on the image."""

    @property
    def bytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)
        return math.prod(self.shape) * max(1, int(bits[0]) // 8 if bits else 1)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width, 1 for what is no map."""
        return (self.shape[0], self.shape[1]) if len(self.shape) == 3 else (1, 1)


@dataclasses.dataclass(frozen=True)
class _Step:
    profile: LayerProfile
    inputs: Sequence[Value]
    outputs: Sequence[Value]


class Walk:
    """Goes through a graph in the order of execution, nested models included.

    `counting` is whether products are counted: of a layer that has no rule that is an error.
    """

    def __init__(self, input_shapes: Iterable[tuple[int, ...]], counting: bool = True) -> None:
        self.counting = counting
        images = {shape[:2] for shape in input_shapes if len(shape) == 3}
        # Without images, or with those of two sizes, there is nothing to measure a field in.
        self.image = images.pop() if len(images) == 1 else None
        self.steps: list[_Step] = []
        self.values: dict[int, Value] = {}  # by the identity of the outer graph's symbolic tensors
        self.counted: set[int] = set()

    def run(self, model: keras.Model, inputs: Sequence[Value], prefix: str) -> list[Value]:
        """Adds the model's layers to `steps`, and returns its outputs."""
        values = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
        for node in nodes_in_order(graph_of(model)):
            op = node.operation
            name = prefix + op.name
            if node.is_input:
                # Of a nested model they are the outer model's tensors, and there already.
                if not prefix and (value := values.get(id(node.outputs[0]))) is not None:
                    value = dataclasses.replace(value, field=self._image_field(value))
                    values[id(node.outputs[0])] = value
                    self._add(op, name, [], [value], 0)
                continue
            sources = [values[id(tensor)] for tensor in node.input_tensors]
            if isinstance(op, keras.Model) and graph_of(op) is not None:
                results = self.run(op, sources, f"{name}/")
            else:
                results = self._call(node, name, sources)
            values.update(zip(map(id, node.outputs), results, strict=True))
        if not prefix:
            self.values = values
        return [values[id(tensor)] for tensor in model.outputs]

    def _call(self, node: Any, name: str, sources: list[Value]) -> list[Value]:
        op = node.operation
        if getattr(op, "data_format", None) == "channels_first" and any(
            len(source.shape) > 1 for source in sources
        ):
            raise InputError(
                f"{name} is channels_first; kapps.profile reads channels_last models only: build "
                "the model with keras.config.set_image_data_format('channels_last')"
            )
        specs = _output_specs(node, name, sources)
        shapes = [tuple(spec.shape[1:]) for spec in specs]
        if any(None in shape for shape in shapes):
            raise InputError(
                f"{name}: the shape of its output, {shapes[0]}, is known only when it runs; give "
                "the layers before it fixed sizes"
            )
        results = [
            Value(shape, spec.dtype, self._field(op, sources, shape))
            for shape, spec in zip(shapes, specs, strict=True)
        ]
        macs = _macs(op, name, sources, results) if self.counting else 0
        self._add(op, name, sources, results, macs)
        return results

    def _add(
        self, op: Any, name: str, inputs: list[Value], outputs: list[Value], macs: int
    ) -> None:
        new = [v for v in getattr(op, "weights", ()) if id(v) not in self.counted]
        self.counted |= {id(variable) for variable in new}
        trainable = {id(variable) for variable in getattr(op, "trainable_weights", ())}
        first = outputs[0]
        stride = None
        if first.field is not None and len(first.shape) == 3:
            stride = first.field[0].stride, first.field[1].stride
        layer = LayerProfile(
            name=name,
            kind=type(op).__name__,
            output_shape=first.shape,
            parameters=sum(math.prod(v.shape) for v in new),
            trainable_parameters=sum(math.prod(v.shape) for v in new if id(v) in trainable),
            macs=macs,
            activation_bytes=sum(value.bytes for value in outputs),
            receptive_field=self.pixels([v.field for v in outputs if v.field is not None]),
            stride=stride,
        )
        self.steps.append(_Step(layer, inputs, outputs))

    def _image_field(self, value: Value) -> tuple[Axis, Axis] | None:
        if self.image is None or len(value.shape) != 3:
            return None
        return Axis((0,), (0,), 1), Axis((0,), (0,), 1)

    def _field(
        self, op: Any, sources: list[Value], shape: tuple[int, ...]
    ) -> tuple[Axis, Axis] | None:
        seeing = [source for source in sources if source.field is not None]
        if self.image is None or not seeing:
            return None
        is_map = len(shape) == 3
        sides = shape[:2] if is_map else (1, 1)
        vertical, horizontal = (
            propagate(
                op if is_map and len(seeing[0].shape) == 3 else None,  # no window over features
                axis,
                [(s.sides[axis], s.field[axis]) for s in seeing if s.field is not None],
                sides[axis],
                Axis.everything(Fraction(self.image[axis], sides[axis])),
            )
            for axis in (0, 1)
        )
        return vertical, horizontal

    def pixels(self, fields: list[tuple[Axis, Axis]]) -> tuple[int, int] | None:
        """The largest of these receptive fields."""
        if self.image is None or not fields:
            return None
        extents = [max(field[axis].extent for field in fields) for axis in (0, 1)]
        height, width = (
            side if extent == math.inf else int(extent)
            for side, extent in zip(self.image, extents, strict=True)
        )
        return height, width


def graph_of(model: keras.Model) -> Any:
    """The functional part of a model; None if it is written as code."""
    # A sequential model keeps its graph inside.
    graph = getattr(model, "_functional", None) or model
    return graph if hasattr(graph, "_nodes_by_depth") else None


def checked_graph(model: Any, caller: str) -> Any:
    """See `graph_of`.

    Raises:
        InputError: it is no model, or has none.
    """
    graph = graph_of(model) if isinstance(model, keras.Model) else None
    if graph is None:
        raise no_graph(model, caller)
    return graph


def no_graph(model: Any, caller: str) -> InputError:
    """The error for what has no graph to read."""
    return InputError(
        f"{caller} takes a functional or a built sequential Keras model, not "
        f"{type(model).__name__}; it reads the graph, which keras.Model(inputs, outputs) makes"
    )


def inputs_of(
    model: keras.Model, input_shape: Sequence[int | None] | None, caller: str = "kapps.profile"
) -> list[Value]:
    """The model's inputs, of fixed shape; they do not see anything yet."""
    checked_graph(model, caller)
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if input_shape is not None:
        if len(shapes) != 1:
            raise InputError(
                f"{model.name} has {len(shapes)} inputs; build it with a fixed shape for each in "
                "place of input_shape"
            )
        wanted = shape_of(input_shape)
        if wanted is None:
            raise InputError(
                f"input_shape must be (height, width, channels), such as (224, 224, 3), not "
                f"{input_shape!r}"
            )
        if len(wanted) != len(shapes[0]) or any(
            side not in (None, given) for side, given in zip(shapes[0], wanted, strict=True)
        ):
            raise InputError(
                f"input_shape {wanted} does not fit {model.name}, which is built for {shapes[0]}; "
                "build it for the other shape"
            )
        if any(given is not None and given < 1 for given in wanted):
            raise InputError(f"input_shape {wanted}: sizes are at least 1")
        shapes = [wanted]
    if any(None in shape for shape in shapes):
        remedy = (
            f"give input_shape, such as {tuple(s or 224 for s in shapes[0])}"
            if len(shapes) == 1
            else "build it with a fixed shape for each input"
        )
        raise InputError(f"{model.name} takes inputs of any size, {shapes[0]}; {remedy}")
    return [
        Value(shape, tensor.dtype, None) for shape, tensor in zip(shapes, model.inputs, strict=True)
    ]


def _output_specs(node: Any, name: str, sources: list[Value]) -> list[Any]:
    """The symbolic outputs of a call for inputs of these shapes."""
    op = node.operation
    if all(
        tuple(t.shape[1:]) == s.shape for t, s in zip(node.input_tensors, sources, strict=True)
    ) and not any(None in t.shape[1:] for t in node.outputs):
        return node.outputs
    inputs = {
        id(tensor): keras.KerasTensor((tensor.shape[0], *source.shape), tensor.dtype)
        for tensor, source in zip(node.input_tensors, sources, strict=True)
    }
    for tensor in inputs.values():
        _check_input_spec(op, name, tensor.shape)
    arguments, keywords = node.arguments.fill_in(inputs)
    try:
        outputs = keras.tree.flatten(op.compute_output_spec(*arguments, **keywords))
    except ValueError as error:
        shapes = ", ".join(_by(source.shape) for source in sources)
        raise InputError(
            f"{name} does not take an input of {shapes} ({error}); give another input_shape"
        ) from error
    if any(side is not None and side < 1 for tensor in outputs for side in tensor.shape):
        raise InputError(f"nothing is left of the map at {name}; give a larger input_shape")
    return outputs


def _check_input_spec(op: Any, name: str, shape: tuple[int | None, ...]) -> None:
    """That the layer's weights fit: `compute_output_spec` does not look at them."""
    for spec in keras.tree.flatten(getattr(op, "input_spec", None) or []):
        for axis, size in (getattr(spec, "axes", None) or {}).items():
            if size is not None and shape[int(axis)] not in (None, size):
                raise InputError(
                    f"the weights of {name} are for {size} features, and the input has "
                    f"{shape[int(axis)]}; give the input_shape that the model was built for"
                )


def _peak(steps: Sequence[_Step], outputs: Sequence[Value]) -> int:
    """The largest sum of tensors alive, bytes: from their making to their last use."""
    last = {id(value): i for i, step in enumerate(steps) for value in (*step.outputs, *step.inputs)}
    last.update((id(value), len(steps)) for value in outputs)
    # The input is there from the start.
    alive = {id(v): v.bytes for step in steps if not step.inputs for v in step.outputs}
    peak = 0
    for i, step in enumerate(steps):
        alive.update((id(value), value.bytes) for value in step.outputs)
        peak = max(peak, sum(alive.values()))
        alive = {key: size for key, size in alive.items() if last[key] > i}
    return peak


# --- Multiplications -----------------------------------------------------------------------------


def _macs(op: Any, name: str, sources: list[Value], results: list[Value]) -> int:
    """Multiply-accumulate operations of a call for one image."""
    if hasattr(op, "compute_macs"):
        shapes = [(None, *source.shape) for source in sources]
        return int(op.compute_macs(shapes[0] if len(shapes) == 1 else shapes))
    *inside, channels = sources[0].shape or (1,)
    outside = results[0].shape[:-1]
    if isinstance(op, layers.Dense):
        return math.prod(inside) * channels * op.units
    if isinstance(op, _CONV):
        window = math.prod(op.kernel_size) * channels // op.groups
        return math.prod(outside) * window * op.filters
    if isinstance(op, _DEPTHWISE + _SEPARABLE):
        depthwise = math.prod(op.kernel_size) * channels * op.depth_multiplier
        pointwise = 0
        if isinstance(op, _SEPARABLE):
            pointwise = channels * op.depth_multiplier * op.filters
        return math.prod(outside) * (depthwise + pointwise)
    if isinstance(op, _TRANSPOSE):
        # Every number of the input meets the whole kernel.
        return math.prod(inside) * channels * math.prod(op.kernel_size) * op.filters
    if isinstance(op, keras.Layer):
        has_matrix = any(len(variable.shape) > 1 for variable in op.weights)
        unknown = isinstance(op, _UNCOUNTED) or (has_matrix and not isinstance(op, _ELEMENTWISE))
    else:
        unknown = _UNCOUNTED_OPS.fullmatch(type(op).__name__) is not None
    if unknown:
        raise InputError(
            f"{name}: kapps.profile does not know how many products {type(op).__name__} sums; put "
            "it into a layer with a method compute_macs(input_shape) that tells them for one image"
        )
    return 0


def _by(sizes: Sequence[float]) -> str:
    return "x".join(f"{size:g}" if isinstance(size, float) else str(size) for size in sizes)


def _kib(size: int) -> str:
    return f"{size / 1024:,.1f}"
