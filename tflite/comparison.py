"""Where a .tflite file and the model that it came from part: a comparison layer by layer.

    print(compare_layers(model, "model.tflite", images).table())

The converter leaves the names of the layers in the names of the file's tensors. Each such tensor is
compared twice: with what the layer gives in the Keras model, which sums up all that went wrong
before it; and with what the layer gives for the inputs that it has in the file, which is its own
error alone. The second one says which layer is to blame.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps._block_skipping import any_depth
from kapps._errors import InputError
from kapps._files import temporary_folder
from kapps.custom_layers import LayerScale
from kapps.tflite import tables
from kapps.tflite.file_comparison import LIMITS, real_values, run_on_images, share
from kapps.tflite.file_facts import TUNED
from kapps.tflite.metadata import Metadata, pixels_to_input
from kapps.tflite.passes import run_passes
from kapps.tflite.passes.graph import rebuild

_HEADER = (
    *("layer", "kind", "operation"),
    *("own error", "dB", "error", "saturated", "scale", "zero"),
)

StandsFor = dict[str, tuple[str, "np.ndarray | float"]]
"""See `quantized_graph.stands_for`."""


@dataclass(frozen=True)
class LayerError:
    """One layer's output in the file against that in the Keras model, over all images.

    Errors are the root mean square of the difference, as a share of that of the expected values: 0
    is exact, and 0.01 the same as a signal-to-quantization-noise ratio of 40 dB.

    Attributes:
        layer: its name in the Keras model.
        kind: its class, such as Conv2D.
        operation: what gives its output in the file, such as CONV_2D.
        tensor: the name of that output in the file.
        shape: of the output, the batch of 1 included.
        error: against the Keras model on the same images; what went wrong up to here.
        own_error: against the Keras layer on the inputs that it has in the file; the layer's own.
        largest: the largest own difference of a single value, as a share of the root mean square.
        scale: of the file's integers, None if they are floats.
        zero_point: the integer that stands for 0, None if they are floats.
        saturated: share of the values at an end of the integers' range, 0 to 1, that the Keras
            layer has beyond it.
    """

    layer: str
    kind: str
    operation: str
    tensor: str
    shape: tuple[int, ...]
    error: float
    own_error: float
    largest: float
    scale: float | None
    zero_point: int | None
    saturated: float

    @property
    def sqnr(self) -> float:
        """Signal-to-quantization-noise ratio of the layer's own error, dB; infinite if exact."""
        with np.errstate(divide="ignore"):
            return float(-20 * np.log10(self.own_error))


@dataclass(frozen=True)
class Comparison:
    """The layers of a file against those of the model, in the order in which they run.

    Attributes:
        quantization: of the file, as `convert` calls it.
        images: how many images.
        layers: those whose output is in the file; others were fused into the next one.
        unmatched: how many operations give no layer's output, such as the inner ones of a layer.
        parts_at: the first layer whose own error is beyond the limit; None if there is none.
    """

    quantization: str
    images: int
    layers: tuple[LayerError, ...]
    unmatched: int
    parts_at: LayerError | None

    @property
    def worst_first(self) -> list[LayerError]:
        """The layers by their own error; not-a-number comes first."""
        return sorted(self.layers, key=lambda e: (e.own_error != e.own_error, e.own_error))[::-1]

    @property
    def agrees(self) -> bool:
        """Whether the output is within the limit, all that went wrong before included."""
        return self.layers[-1].error <= LIMITS[self.quantization]

    def verdict(self) -> str:
        """One sentence: where the file and the model part."""
        if self.parts_at is not None and self.agrees:
            return (
                f"The first of {len(self.layers)} layers beyond {LIMITS[self.quantization]:g} is "
                f"{_described(self.parts_at)}; the output is within it, error "
                f"{self.layers[-1].error:.2g}."
            )
        if self.parts_at is not None:
            return (
                f"They part at layer {_described(self.parts_at)}: the first of {len(self.layers)} "
                f"layers beyond {LIMITS[self.quantization]:g}."
            )
        return (
            f"No single layer is to blame: the least exact of {len(self.layers)} is "
            f"{_described(self.worst_first[0])}."
        )

    def table(self) -> str:
        """The layers, worst first, as text of fixed columns."""
        rows = [
            [
                *(e.layer, e.kind, e.operation),
                *(f"{e.own_error:.2g}", f"{e.sqnr:.1f}", f"{e.error:.2g}", f"{e.saturated:.1%}"),
                "" if e.scale is None else f"{e.scale:.4g}",
                "" if e.zero_point is None else str(e.zero_point),
            ]
            for e in self.worst_first
        ]
        return tables.aligned(_HEADER, rows, right=range(3, 9))

    def figures(self) -> dict[str, Any]:
        """What a program writes as JSON; worst layer first."""
        return {
            "quantization": self.quantization,
            "images": self.images,
            "agrees": self.agrees,
            "parts_at": self.parts_at and self.parts_at.layer,
            "layers": [asdict(error) for error in self.worst_first],
        }


def compare_layers(
    model: keras.Model,
    path: str | os.PathLike[str],
    images: np.ndarray,
    *,
    time_limit: float = 300,
) -> Comparison:
    """Compares the outputs of all layers in the file at `path` with those of the Keras `model`.

    The file may come from elsewhere: it is opened in a child process.

    Args:
        model: the model that the file was converted from, as `convert` was given it.
        path: the file, of any quantization.
        images: real images (n, height, width, channels) in 0..255; a handful is enough.
        time_limit: seconds for the file to run on all images.

    Raises:
        InputError: the file does not run, or it is of another model.
    """
    if not len(images):
        raise InputError("no images to compare on; pass a few real ones")
    if images.shape[1:] != model.input_shape[1:]:
        raise InputError(
            f"images have shape {images.shape}; model {model.name!r} takes {model.input_shape}"
        )
    with temporary_folder() as folder:
        answer = run_on_images(path, images, folder, time_limit=time_limit)
        quantization = answer["quantization"]
        # What the app does to the pixels is in the graph of neither the file nor the model.
        said = Metadata("", (), mean=tuple(answer["mean"]), std=tuple(answer["std"]))
        stands_for: StandsFor = {}
        if any(TUNED in tensor["name"] for tensor in answer["tensors"]):
            exported, stands_for = _as_tuned(model)
        else:
            exported = run_passes(model, quantization=quantization)
        tapped, taps, sources = _tapped(exported)
        found = _match(answer["tensors"], answer["output"], exported, taps, sources, stands_for)
        if len(found) < 2 or len(found) < len(taps) / 10:
            raise InputError(
                f"{path}: {len(found)} of its {len(answer['tensors'])} tensors bear names of the "
                f"{len(taps)} layers of {model.name!r}; compare it with the model that it was "
                "converted from"
            )
        sums = {name: _Sum() for name in found}
        for index, image in enumerate(images):
            # Infinity and not-a-number in a file are found out, and no reason for a warning.
            with (
                np.load(folder / f"{index}.npz", allow_pickle=False) as saved,
                np.errstate(invalid="ignore", over="ignore"),
            ):
                _add(sums, found, tapped, taps, pixels_to_input(image, said, "float32"), saved)
    errors = tuple(
        _layer_error(exported.get_layer(name), found[name], sums[name]) for name in found
    )
    return Comparison(
        quantization=quantization,
        images=len(images),
        layers=errors,
        unmatched=len(answer["tensors"]) - len(found),
        # Written so that nan counts as beyond it.
        parts_at=next((e for e in errors if not e.own_error <= LIMITS[quantization]), None),
    )


def _as_tuned(model: keras.Model) -> tuple[keras.Model, StandsFor]:
    """The graph of which quantization-aware training made its own, and what that has of it."""
    try:
        from kapps.tflite.tuning import quantized_graph, tf_keras_copy
    except ImportError as error:
        raise InputError(
            "the file is of a quantization-aware model; to compare it install kapps[tflite]"
        ) from error
    prepared = tf_keras_copy.prepared(model)
    return prepared, quantized_graph.stands_for(tf_keras_copy.rebuild(prepared))


def _described(error: LayerError) -> str:
    saturated = f", {error.saturated:.0%} saturated" if error.saturated > 0.01 else ""
    return (
        f"{error.layer!r} ({error.kind}, in the file {error.operation}, own error "
        f"{error.own_error:.2g}{saturated})"
    )


class _Tap(layers.Layer):
    """Hands its input on and remembers it; or hands on `forced` in its place."""

    seen: Any = None
    forced: Any = None

    def call(self, x: Any) -> Any:
        self.seen = x
        return x if self.forced is None else self.forced

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


@any_depth()
def _tapped(model: keras.Model) -> tuple[keras.Model, dict[str, _Tap], dict[str, list[str]]]:
    """A copy of a model with a tap behind each layer; by layer, in graph order, the taps and the
    names of the layers that it takes its input from."""
    taps: dict[str, _Tap] = {}
    sources: dict[str, list[str]] = {}
    origin: dict[int, str] = {}  # of tensors

    def call(layer: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        result = layer(*args, **kwargs)
        if not isinstance(result, keras.KerasTensor) or layer.name in taps:
            return result  # several outputs, or a layer that is used again
        taps[layer.name] = _Tap(name=f"{layer.name}_tap")
        tensors = keras.tree.flatten((args, kwargs))
        sources[layer.name] = [origin[id(t)] for t in tensors if id(t) in origin]
        result = taps[layer.name](result)
        origin[id(result)] = layer.name
        return result

    own = rebuild(model, batch_size=1)  # the taps become part of its layers' graph
    copy = keras.models.clone_model(own, clone_function=lambda layer: layer, call_function=call)
    return copy, taps, sources


def layers_in(name: str, model: keras.Model) -> list[str]:
    """The names of the layers that a tensor's or node's name speaks of, in its order.

    It is a list of paths such as "net_1/stem_1/convolution;net_1/bn_1/add". TensorFlow appends a
    number to a scope that it has seen before; the model's own scope, the first of a path, shows
    what has been appended to all.
    """
    known = {layer.name for layer in model.layers}
    found = []
    for path in name.split(";"):
        parts = [part for part in path.split("/") if part]
        scope = parts[0] if parts else ""
        match = re.fullmatch(re.escape(model.name) + r"(_\d+)?", scope)
        suffix = (match[1] or "") if match else ""
        for part in parts[1:] if match else parts:
            options = (part.removesuffix(suffix), part, re.sub(r"_\d+$", "", part))
            layer = next((option for option in options if option in known), None)
            if layer is not None:
                found.append(layer)
                break
    return found


def _match(
    tensors: Iterable[dict[str, Any]],
    output: int,
    model: keras.Model,
    taps: dict[str, _Tap],
    sources: dict[str, list[str]],
    stands_for: StandsFor,
) -> dict[str, dict[str, Any]]:
    """The tensor of each layer, in graph order, for the layers that have one, with its `factor`.

    A tensor that names several layers is of all of them fused, hence the output of the last one; of
    several that name a layer, the last computed is its output. A batch norm or layer scale that is
    folded into the layer before it leaves no name. The shape has to agree, but for dimensions of 1.
    """
    order = {name: index for index, name in enumerate(taps)}
    found: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        own = tensor["name"].replace(TUNED, "/") if stands_for else tensor["name"]
        names = [name for name in layers_in(own, model) if name in order]
        if tensor["number"] == output:
            names = [model.output_names[0]] if model.output_names[0] in order else []
        if names:
            found[max(names, key=order.__getitem__)] = tensor
    for name, before in sources.items():
        folded = isinstance(model.get_layer(name), (layers.BatchNormalization, LayerScale))
        if folded and before and name not in found and before[0] in found:
            found[name] = found.pop(before[0])
    for name, (layer, factor) in stands_for.items():
        if name in found:
            found[layer] = found.pop(name) | {"factor": factor}
    return {
        name: {"factor": 1.0} | found[name]
        for name in taps
        if name in found and _squeezed(found[name]["shape"]) == _squeezed(taps[name].output.shape)
    }


def _squeezed(shape: Iterable[int | None]) -> list[int | None]:
    return [n for n in shape if n != 1]


@dataclass
class _Sum:
    """Sums over the images."""

    count: int = 0
    expected: float = 0
    """Of the squares of the Keras model's values."""
    expected_own: float = 0
    """The same on the file's inputs."""
    error: float = 0
    own_error: float = 0
    largest: float = 0
    saturated: float = 0


def _add(
    sums: dict[str, _Sum],
    found: dict[str, dict[str, Any]],
    tapped: keras.Model,
    taps: dict[str, _Tap],
    image: np.ndarray,
    saved: Any,
) -> None:
    """Runs the model on one image (float32), as it is and on the file's tensors; adds up errors."""
    pixels = image[None]
    for tap in taps.values():
        tap.forced = None
    tapped(pixels, training=False)
    expected = {name: keras.ops.convert_to_numpy(taps[name].seen) for name in found}
    ends = {}
    actual = {}
    for name, tensor in found.items():
        value = saved[str(tensor["number"])]
        if value.size != expected[name].size:
            raise InputError(f"tensor {tensor['name']!r} changes its shape as it runs")
        if tensor["scale"] is not None:
            limits = np.iinfo(value.dtype)
            ends[name] = (value == limits.min, value == limits.max)
        value = real_values(saved, tensor).reshape(expected[name].shape)
        actual[name] = value * np.float32(tensor["factor"])
        taps[name].forced = keras.ops.convert_to_tensor(actual[name])
    tapped(pixels, training=False)
    for name, total in sums.items():
        own = keras.ops.convert_to_numpy(taps[name].seen).astype(float)
        total.count += own.size
        total.expected += float((expected[name].astype(float) ** 2).sum())
        total.expected_own += float((own**2).sum())
        total.error += float(((actual[name] - expected[name]).astype(float) ** 2).sum())
        total.own_error += float(((actual[name] - own) ** 2).sum())
        total.largest = float(np.fmax(total.largest, np.abs(actual[name] - own).max()))
        if name in ends:
            step = found[name]["scale"] * found[name]["factor"]
            low, high = (end.reshape(own.shape) for end in ends[name])
            beyond = (low & (own < actual[name] - step)) | (high & (own > actual[name] + step))
            total.saturated += float(beyond.sum())


def _layer_error(layer: keras.Layer, tensor: dict[str, Any], total: _Sum) -> LayerError:
    return LayerError(
        layer=layer.name,
        kind=type(layer).__name__,
        operation=tensor["operation"],
        tensor=tensor["name"],
        shape=tuple(tensor["shape"]),
        error=share(total.error, total.expected),
        own_error=share(total.own_error, total.expected_own),
        largest=share(total.largest**2 * total.count, total.expected_own),
        scale=tensor["scale"],
        zero_point=tensor["zero_point"],
        saturated=total.saturated / total.count,
    )
