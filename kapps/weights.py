"""Reading and writing weights under their published names.

A layer is named after its parameters' path in the published checkpoint, dots written as
underscores, so one rule reads every file: drop the last component of a key, replace the dots, find
the layer, transpose by the layer's type. Every name must be found, both ways.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from kapps._errors import InputError
from kapps._files import atomic_write
from kapps._layers import ImageNormalization, layer_name

_SUFFIXES = (".safetensors", ".weights.h5")
_IGNORED = "num_batches_tracked"  # PyTorch's batch norm counts its steps; inference has no use


class Parameter(NamedTuple):
    """One published tensor and where it lives in the model."""

    layer: keras.Layer
    variable: keras.Variable
    component: str
    """The last component of its published name: weight, bias, running_mean or running_var."""
    shape: tuple[int, ...]
    """Of the published tensor, in PyTorch's layout."""
    to_published: Callable[[np.ndarray], np.ndarray]
    from_published: Callable[[np.ndarray], np.ndarray]


def _kernel(layer: keras.Layer) -> Parameter:
    """A kernel in PyTorch's layout: convolutions (out, in / groups, h, w), dense (out, in)."""
    if isinstance(layer, layers.Dense):
        shape = layer.kernel.shape[::-1]
        return Parameter(layer, layer.kernel, "weight", shape, np.transpose, np.transpose)
    if isinstance(layer, layers.DepthwiseConv2D):
        height, width, channels, multiplier = layer.kernel.shape
        split = (channels, multiplier, height, width)
        return Parameter(
            layer,
            layer.kernel,
            "weight",
            (channels * multiplier, 1, height, width),
            lambda value: value.transpose(2, 3, 0, 1).reshape(-1, 1, height, width),
            lambda value: value.reshape(split).transpose(2, 3, 0, 1),
        )
    height, width, inputs, outputs = layer.kernel.shape
    whole = (outputs, inputs, height, width)
    # A dense layer over a feature map is a convolution here, and 2-D in the file.
    flat = getattr(layer, "checkpoint_flat", False)
    return Parameter(
        layer,
        layer.kernel,
        "weight",
        (outputs, inputs * height * width) if flat else whole,
        lambda value: value.transpose(3, 2, 0, 1).reshape((outputs, -1) if flat else whole),
        lambda value: value.reshape((outputs, -1, height, width)).transpose(2, 3, 1, 0),
    )


def published_parameters(model: keras.Model) -> list[Parameter]:
    """All published tensors of a model, in the order of its layers."""
    found: list[Parameter] = []

    def vector(layer: keras.Layer, variable: keras.Variable, component: str) -> None:
        found.append(
            Parameter(layer, variable, component, tuple(variable.shape), np.asarray, np.asarray)
        )

    for layer in model.layers:
        if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)):
            found.append(_kernel(layer))
            if layer.use_bias:
                vector(layer, layer.bias, "bias")
        elif isinstance(layer, layers.BatchNormalization):
            vector(layer, layer.gamma, "weight")
            vector(layer, layer.beta, "bias")
            vector(layer, layer.moving_mean, "running_mean")
            vector(layer, layer.moving_variance, "running_var")
        elif layer.weights and not isinstance(layer, ImageNormalization):
            raise InputError(
                f"layer {layer.name!r} of {model.name} is a {type(layer).__name__}, whose weights "
                "have no published form; use a .weights.h5 file for this model"
            )
    return found


def load_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Fills a model with the weights of a file.

    `.safetensors` files hold the published names and layouts of timm or torchvision. Every tensor
    must have its layer and every layer its tensors; two things are adapted: a classifier for
    another number of classes keeps its random start, said in a warning, and the first convolution
    is adapted to another number of input channels. Mean and standard deviation of the input are
    taken from the file's metadata where `save_weights` has put them. `.weights.h5` files are
    Keras's own.

    Nothing of the model is changed unless the whole file fits.

    Raises:
        InputError: the file is missing, damaged, or not of this model.
    """
    file = _weights_path(path)
    if not file.is_file():
        raise InputError(
            f"no weights file {file}; `weights` takes None or the path of a file that ends in "
            f"{' or '.join(_SUFFIXES)}"
        )
    if file.name.endswith(".weights.h5"):
        before = model.get_weights()
        try:
            with warnings.catch_warnings():
                # Keras only warns of a layer that it did not find in the file
                warnings.simplefilter("error", UserWarning)
                model.load_weights(file)
        except Exception as error:  # h5py and Keras raise many kinds
            model.set_weights(before)
            raise InputError(
                f"cannot load {file} into {model.name}: {_first_line(error)}; the file is damaged, "
                "or of another model"
            ) from error
        return
    tensors, metadata = _read_safetensors(file)
    values = _match(model, tensors, file)
    for variable, value in values:
        variable.assign(value)
    normalization = next((x for x in model.layers if isinstance(x, ImageNormalization)), None)
    if normalization is not None and "mean" in metadata and "std" in metadata:
        for variable, key in ((normalization.mean, "mean"), (normalization.std, "std")):
            numbers = _numbers(metadata[key], key, file)
            if len(numbers) != variable.shape[0]:
                numbers = [sum(numbers) / len(numbers)] * variable.shape[0]
            variable.assign(numbers)


def save_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes a model's weights; the file appears whole or not at all.

    `.safetensors` files get the published names and layouts, so that timm or torchvision can load
    them, with the input's mean and standard deviation (RGB, 0..1) as metadata. `.weights.h5` files
    are Keras's own.

    Raises:
        InputError: the path has another suffix or cannot be written, or the model was not built by
            kapps (its layers then have no published names).
    """
    file = _weights_path(path)
    if file.name.endswith(".weights.h5"):
        with atomic_write(file) as temporary:
            model.save_weights(temporary)
        return
    tensors = {
        published_name(parameter, model): np.ascontiguousarray(
            parameter.to_published(keras.ops.convert_to_numpy(parameter.variable))
        )
        for parameter in published_parameters(model)
    }
    metadata = {"format": "pt"}  # what timm's and Hugging Face's readers expect
    for layer in model.layers:
        if isinstance(layer, ImageNormalization):
            for key, variable in (("mean", layer.mean), ("std", layer.std)):
                numbers = keras.ops.convert_to_numpy(variable)
                metadata[key] = " ".join(str(float(number)) for number in numbers)
    safetensors = _safetensors()
    with atomic_write(file) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata)


def published_name(parameter: Parameter, model: keras.Model) -> str:
    """The tensor's name in a published file, such as "blocks.0.0.conv_dw.weight"."""
    path = getattr(parameter.layer, "checkpoint_path", None)
    if path is None:
        raise InputError(
            f"layer {parameter.layer.name!r} of {model.name} has no published name: the model was "
            "not built by kapps, or is a clone or a loaded copy. Build it with kapps, copy the "
            "weights with set_weights(), and save that; or save a .weights.h5 file"
        )
    return f"{path}.{parameter.component}"


def _match(
    model: keras.Model, tensors: dict[str, np.ndarray], file: Path
) -> list[tuple[keras.Variable, np.ndarray]]:
    """Every variable of the model with its value from the file."""
    parameters = published_parameters(model)
    wanted = {(p.layer.name, p.component): p for p in parameters}
    kernels = [p for p in parameters if len(p.shape) > 1]
    stem, head = kernels[0].layer, kernels[-1].layer
    values: list[tuple[keras.Variable, np.ndarray]] = []
    unknown: list[str] = []
    shapes: list[str] = []
    for key, value in tensors.items():
        path, _, component = key.rpartition(".")
        if component == _IGNORED:
            continue
        parameter = wanted.pop((layer_name(path), component), None)
        if parameter is None:
            unknown.append(key)
        elif value.shape == parameter.shape or _views_as(value.shape, parameter.shape):
            values.append((parameter.variable, parameter.from_published(value)))
        elif parameter.layer is head and value.shape[1:] == parameter.shape[1:]:
            if component == "weight":
                warnings.warn(
                    f"{file.name} has {value.shape[0]} classes and the model {parameter.shape[0]}: "
                    f"the classifier {head.name!r} keeps its random start",
                    stacklevel=4,
                )
        elif parameter.layer is stem and _other_channels(value.shape, parameter.shape):
            adapted = _adapt_channels(value, parameter.shape[1])
            values.append((parameter.variable, parameter.from_published(adapted)))
        else:
            shapes.append(f"{key}: {value.shape} in the file, {parameter.shape} in the model")
    problems = []
    if unknown:
        problems.append(f"only in the file: {_some(unknown)}")
    if wanted:
        missing = (f"{name}.{component}" for name, component in wanted)
        problems.append(f"only in the model: {_some(missing)}")
    if shapes:
        problems.append(f"shapes differ: {_some(shapes)}")
    if problems:
        raise InputError(
            f"{file} does not fit {model.name}; {'; '.join(problems)}. Is it of another network, "
            "or of another width or depth?"
        )
    return values


def _views_as(published: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether one is the other flattened: a dense layer and its form as a convolution."""
    return (
        {len(published), len(wanted)} == {2, 4}
        and published[0] == wanted[0]
        and np.prod(published[1:]) == np.prod(wanted[1:])
    )


def _other_channels(published: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return (
        len(published) == len(wanted) == 4
        and published[0] == wanted[0]
        and published[2:] == wanted[2:]
    )


def _adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A stem's kernel (out, in, h, w) for another number of input channels.

    One channel gets the sum of all, which is the answer to a gray image; more of them repeat the
    published ones, scaled so that the response keeps its size.
    """
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    published = kernel.shape[1]
    repeated = np.tile(kernel, (1, -(-channels // published), 1, 1))[:, :channels]
    return repeated * (published / channels)


def _read_safetensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(file, framework="numpy") as reader:
            tensors = {key: reader.get_tensor(key) for key in reader.offset_keys()}
            return tensors, reader.metadata() or {}
    except Exception as error:  # the reader's own kinds, OSError, TypeError for unknown dtypes
        raise InputError(
            f"{file} is not a readable .safetensors file ({_first_line(error)}); it is damaged or "
            "cut short: fetch or save it again"
        ) from error


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise InputError(
            "reading and writing .safetensors files needs the package safetensors: "
            "pip install 'kapps[weights]'"
        ) from error
    return safetensors


def _weights_path(path: str | os.PathLike[str]) -> Path:
    if not os.fspath(path).endswith(_SUFFIXES):
        raise InputError(
            f"weights {os.fspath(path)!r}: kapps reads and writes files that end in "
            f"{' or '.join(_SUFFIXES)}"
        )
    return Path(path)


def _numbers(text: str, key: str, file: Path) -> list[float]:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if not numbers or not np.isfinite(numbers).all():
        raise InputError(f"{file}: the metadata's {key} is {text!r}, not a list of numbers")
    return numbers


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _some(names: Iterable[str], most: int = 8) -> str:
    """The first names of a long list, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
