"""Reading and writing weights under their published names.

A layer is named after its parameters' path in the published checkpoint, dots written as
underscores, so one rule reads every file: drop the last component of a key, replace the dots, find
the layer, transpose by the layer's type. Every name must be found, both ways.

Published files come from `_hub`, which checks them; which there are says `_index`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
from keras import layers

from kapps import _hub, _index
from kapps._errors import InputError
from kapps._evaluation import Evaluation, evaluation_of
from kapps._files import atomic_write, sha256
from kapps._gray import gray_stem
from kapps._index import PublishedWeights, list_weights
from kapps._layers import layer_name
from kapps._pth import from_bfloat16, read_pth
from kapps.custom_layers import ImageNormalization

if TYPE_CHECKING:
    from kapps.transform import EvalTransform

__all__ = ["PublishedWeights", "list_weights", "load_weights", "save_weights"]

_READS = (".safetensors", ".pth", ".pth.tar", ".weights.h5")
_WRITES = (".safetensors", ".weights.h5")
# PyTorch counts the steps of a batch norm and the updates of a moving average: of no use here.
_IGNORED = ("num_batches_tracked", "n_averaged")
# What DataParallel and moving averages, and torch.compile, put before the names of all weights.
_WRAPPERS = ("module.", "_orig_mod.")


class Parameter(NamedTuple):
    """One published tensor and where it lives in the model."""

    layer: keras.Layer
    variable: keras.Variable | None
    """None where the layer has none, and always computes with `constant`."""
    component: str
    """The last component of its published name, such as weight, bias, running_mean."""
    shape: tuple[int, ...]
    """Of the published tensor, in PyTorch's layout."""
    to_published: Callable[[np.ndarray], np.ndarray]
    from_published: Callable[[np.ndarray], np.ndarray]
    constant: float = 0.0


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
    return _parameters(model.layers, model.name)


def _own(model: keras.Model) -> list[keras.Layer]:
    """The model's layers but those that its `input_tensor` came from."""
    before = getattr(model, "checkpoint_before", ())
    return [layer for layer in model.layers if layer.name not in before]


def _parameters(own: Iterable[keras.Layer], model: str) -> list[Parameter]:
    found: list[Parameter] = []

    def vector(layer: keras.Layer, variable: keras.Variable, component: str) -> None:
        found.append(
            Parameter(layer, variable, component, tuple(variable.shape), np.asarray, np.asarray)
        )

    for layer in own:
        variables = getattr(layer, "checkpoint_variables", None)
        if variables is not None:
            for component, variable in variables.items():
                vector(layer, variable, component)
        elif isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)):
            found.append(_kernel(layer))
            if layer.use_bias:
                vector(layer, layer.bias, "bias")
        elif isinstance(layer, layers.BatchNormalization):
            for variable, component, constant in (
                (layer.gamma, "weight", 1.0),
                (layer.beta, "bias", 0.0),
            ):
                vector(layer, layer.moving_mean, component)
                found[-1] = found[-1]._replace(variable=variable, constant=constant)
            vector(layer, layer.moving_mean, "running_mean")
            vector(layer, layer.moving_variance, "running_var")
        elif layer.weights and not isinstance(layer, ImageNormalization):
            raise InputError(
                f"layer {layer.name!r} of {model} is a {type(layer).__name__}, whose weights "
                "have no published form; use a .weights.h5 file for this model"
            )
    return found


def initialize(
    model: keras.Model,
    builder: str,
    weights: str | os.PathLike[str],
    changed: Mapping[str, Any],
) -> None:
    """Fills a new model with what the builder's argument `weights` names.

    That is "imagenet" for the builder's default published weights, the tag of others, or the path
    of a file. Published weights are downloaded once, and checked before they are read. What is
    known of them stays on the model as `kapps_weights`, for `eval_transform`. `changed` are the
    builder's own parameters that are not at their defaults.

    Raises:
        InputError: there are no such weights, they cannot be fetched, or they do not fit.
    """
    if not isinstance(weights, str) or not re.fullmatch(r"\w+", weights):
        load_weights(model, weights)
        return
    published = _index.find(builder, weights)
    if published.file_name.endswith(".safetensors"):
        _safetensors()  # or the file would be fetched, and could not be read
    file = _hub.fetch(published)
    try:
        _load(model, file, published)
    except InputError as error:
        if changed:  # the file may be a good one
            own = ", ".join(f"{name}={value!r}" for name, value in changed.items())
            others = [name for name in _index.builders() if name.startswith(f"{builder}_")]
            remedy = f"; there are also weights of {', '.join(others)}" if others else ""
            raise InputError(
                f"{error} The published weights are those of {builder} at its defaults, not with "
                f"{own}{remedy}"
            ) from error
        # The bytes are the publisher's, so a new try helps only if it fetches a repaired file.
        _hub.remove(published, file)
        raise InputError(
            f"{error} The file was removed from the cache: try again, or take other weights: "
            f"kapps.list_weights({builder!r})"
        ) from error


def load_weights(
    model: keras.Model, path: str | os.PathLike[str], *, key: str | None = None
) -> None:
    """Fills a model with the weights of a file.

    `.safetensors` and `.pth` files hold the published names and layouts of timm or torchvision.
    Every tensor must have its layer and every layer its tensors. Adapted are: a classifier for
    another number of classes, which keeps its random start, as a warning says; the first
    convolution, to another number of input channels; and a model without classifier, which leaves
    the file's. A model of one channel answers to a gray image as one of three does to the image in
    all of them, but for what the padding at the edges makes of it. Auxiliary heads, which exist for
    training only, may be in the file, the model, both or neither. Names that all begin with
    "module." or "_orig_mod.", as of DataParallel and compiled models, lose that.

    A `.pth` file (`.pth.tar` is the same) is a pickle, but nothing in it is run. It may be the
    checkpoint of a training program, such as timm's train.py or torchvision's references, with much
    else beside the weights. Then the moving average of the weights is taken if there is one, as
    timm does: of "state_dict_ema", "model_ema", "state_dict" and "model" the first; or the only
    dictionary of tensors, whatever its name. `key` names another.

    Mean and standard deviation of the input, and what is known of the evaluation, are taken from
    the file's metadata, where `save_weights` has put them; or they are those that were published
    with the file, if its name is that of published weights: "resnet50-0676ba61.pth", or
    "resnet50.a1_in1k.safetensors" for what the hub has as "timm/resnet50.a1_in1k". Otherwise the
    model's stay as they are.

    `.weights.h5` files are Keras's own.

    Where "<path>.sha256" lies beside the file, the file must have that sum. Nothing of the model
    is changed unless the whole file fits.

    Args:
        model: built by kapps.
        path: of the file.
        key: of the dictionary of tensors in a `.pth` file: "state_dict" for timm's weights without
            moving average.

    Raises:
        InputError: the file is missing, damaged, or not of this model; its numbers are too large
            for the model's dtype; or there is nothing at `key`.
    """
    file = _weights_path(path, _READS)
    if key is not None and not _is_pth(file):
        raise InputError(f"{file}: key={key!r} is for .pth files; leave it out")
    if not file.is_file():
        raise InputError(
            f'no weights file {file}; `weights` takes None, "imagenet", the tag of other published '
            f"weights, or the path of a file that ends in {_either(_READS)}"
        )
    _check_sum(file)
    published = _index.find_file(file.name)
    if published is not None and _is_pth(file) and not _hub.name_matches(file, file.name):
        raise InputError(
            f"{file} is damaged: its SHA-256 does not begin as its name says; fetch it again"
        )
    _load(model, file, published, key)


def _load(
    model: keras.Model, file: Path, published: PublishedWeights | None, key: str | None = None
) -> None:
    if file.name.endswith(".weights.h5"):
        _load_keras(model, file)
        model.kapps_weights = model.kapps_evaluation = None
        return
    metadata: dict[str, str] = {}
    if _is_pth(file):
        tensors = read_pth(file, key)
    else:
        tensors, metadata = _read_safetensors(file)
    if "mean" in metadata and "std" in metadata:  # trained further, perhaps: not as published
        published = None
        mean, std = (_numbers(metadata[name], name, file) for name in ("mean", "std"))
    elif published is not None:
        mean, std = list(published.mean), list(published.std)
    else:
        mean = std = []
    evaluation = None
    if "evaluation" in metadata:
        evaluation = Evaluation.of_text(metadata["evaluation"], str(file))
    tensors = _unwrapped(tensors)
    normalization = next((x for x in _own(model) if isinstance(x, ImageNormalization)), None)
    if normalization is not None and normalization.mean.shape[0] == 1:
        stem = next(p.layer for p in _parameters(_own(model), model.name) if len(p.shape) > 1)
        colours = (mean, std) if mean else (normalization.initial_mean, normalization.initial_std)
        tensors = gray_stem(tensors, stem, _name_in_files, *colours)
    assign(model, tensors, file)
    if normalization is not None and mean:
        for variable, numbers in ((normalization.mean, mean), (normalization.std, std)):
            if len(numbers) != variable.shape[0]:
                numbers = [sum(numbers) / len(numbers)] * variable.shape[0]
            variable.assign(numbers)
    model.kapps_weights, model.kapps_evaluation = published, evaluation


def _is_pth(file: Path) -> bool:
    return file.name.endswith((".pth", ".pth.tar"))


def _unwrapped(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without what precedes the names of all of them, in any number and order."""
    tensors = {name: value for name, value in tensors.items() if name not in _IGNORED}
    while True:
        wrapper = next((w for w in _WRAPPERS if all(name.startswith(w) for name in tensors)), None)
        if wrapper is None or not tensors:
            return tensors
        tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}


def assign(model: keras.Model, tensors: dict[str, np.ndarray], source: Path) -> None:
    """Fills a model with published tensors, by name; `source` is named in errors.

    Nothing of the model is changed unless all of them fit.

    Raises:
        InputError: names or shapes differ.
    """
    for variable, value in _match(model, tensors, source):
        variable.assign(value)


def _load_keras(model: keras.Model, file: Path) -> None:
    before = model.get_weights()
    try:
        with warnings.catch_warnings():
            # Keras only warns of a layer that it did not find in the file
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", "overflow encountered", RuntimeWarning)  # see below
            model.load_weights(file)
        if not all(np.isfinite(weight).all() for weight in _half(model)):
            raise ValueError("it has numbers beyond float16, of which the model is")
    except Exception as error:  # h5py and Keras raise many kinds
        model.set_weights(before)
        raise InputError(
            f"cannot load {file} into {model.name}: {_first_line(error)}; the file is damaged, or "
            "of another model: .weights.h5 files fit only the same classes, channels and top"
        ) from error


def _half(model: keras.Model) -> list[np.ndarray]:
    """The weights of float16, whose largest number is 65,504."""
    weights = [keras.ops.convert_to_numpy(variable) for variable in model.weights]
    return [weight for weight in weights if weight.dtype == np.float16]


def save_weights(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    evaluation: EvalTransform | None = None,
) -> None:
    """Writes a model's weights; the file appears whole or not at all.

    `.safetensors` files get the published names and layouts, so that timm or torchvision can load
    them, with the input's mean and standard deviation (RGB, 0..1) and the evaluation, for
    `eval_transform`, as metadata. A batch norm without scale, or without center, gets ones or zeros
    in their place, since PyTorch's has both or neither. The same weights give the same bytes.
    `.weights.h5` files are Keras's own. "<path>.sha256" is written beside either: `sha256sum
    --check` reads it, and `load_weights`.

    Args:
        model: built by kapps.
        path: of the file, which ends in ".safetensors" or ".weights.h5".
        evaluation: how images are prepared for these weights: what they were trained for. By
            default as for the weights that were loaded into the model, published or of a file, if
            any were.

    Raises:
        InputError: the path has another suffix or cannot be written; the model was not built by
            kapps (its layers then have no published names); or an evaluation is given for a
            `.weights.h5` file, which has no place for it.
    """
    file = _weights_path(path, _WRITES)
    if file.name.endswith(".weights.h5"):
        if evaluation is not None:
            raise InputError(
                f"{file}: Keras's files do not keep the evaluation; write a .safetensors file, or "
                "leave it out"
            )
        with _atomic_write_with_sum(file) as temporary:
            model.save_weights(temporary)
        return
    tensors = {
        published_name(parameter, model): np.ascontiguousarray(
            parameter.to_published(_value(parameter))
        )
        for parameter in published_parameters(model)
        # PyTorch's batch norm has scale and center, or neither (affine=False).
        if parameter.variable is not None or parameter.layer.scale or parameter.layer.center
    }
    metadata = {"format": "pt"}  # what timm's and Hugging Face's readers expect
    for layer in model.layers:
        if isinstance(layer, ImageNormalization):
            for key, variable in (("mean", layer.mean), ("std", layer.std)):
                numbers = keras.ops.convert_to_numpy(variable)
                metadata[key] = " ".join(str(float(number)) for number in numbers)
    known = evaluation_of(model) if evaluation is None else Evaluation.of_transform(evaluation)
    if known is not None:
        metadata["evaluation"] = known.text()
    safetensors = _safetensors()
    with _atomic_write_with_sum(file) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata)
        _sort_metadata(temporary)


def _value(parameter: Parameter) -> np.ndarray:
    if parameter.variable is None:
        return np.full(parameter.shape, parameter.constant, np.float32)
    value = keras.ops.convert_to_numpy(parameter.variable)
    # numpy has no bfloat16 of its own: float32 holds each of its numbers
    return value.astype(np.float32) if value.dtype.name == "bfloat16" else value


def _sort_metadata(file: Path) -> None:
    """Sorts the metadata of a .safetensors file, which its writer puts down in a random order.

    Everything keeps its place: the header's length, and its tensors, are as they were.
    """
    with open(file, "r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:
            raise ValueError(f"the header of {file} grew from {length} to {len(text)} bytes")
        stream.seek(8)
        stream.write(text.ljust(length))


@contextlib.contextmanager
def _atomic_write_with_sum(file: Path) -> Iterator[Path]:
    """As `atomic_write`, with the file's SHA-256 beside it.

    A crash leaves the old pair, or a file without sum; never a file beside another one's sum,
    which would be refused for ever.
    """
    beside = _sum_path(file)
    with atomic_write(file) as temporary:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())  # what may fail does so before the old sum goes
        digest = sha256(temporary)
        beside.unlink(missing_ok=True)
    with atomic_write(beside) as temporary:
        temporary.write_text(f"{digest}  {file.name}\n", encoding="utf-8")


def _check_sum(file: Path) -> None:
    beside = _sum_path(file)
    if not beside.is_file():
        return
    words = beside.read_bytes()[:4096].decode("utf-8", "replace").split()
    if not words or not re.fullmatch("[0-9a-fA-F]{64}", words[0]):
        raise InputError(f"{beside} does not begin with a SHA-256; write it anew, or remove it")
    if sha256(file) != words[0].lower():
        raise InputError(
            f"{file} is damaged: its SHA-256 is not that of {beside.name}; copy or save both "
            f"again, or remove {beside.name} if the file was meant to change"
        )


def _sum_path(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")


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
    parameters = _parameters(_own(model), model.name)
    wanted = {(_name_in_files(p.layer), p.component): p for p in parameters}
    stem = next((p.layer for p in parameters if len(p.shape) > 1), None)
    values: list[tuple[keras.Variable, np.ndarray]] = []
    unknown: list[str] = []
    problems: list[str] = []
    random: dict[str, str] = {}  # classifiers for other classes, and what is to be said of them
    for key, value in tensors.items():
        path, _, component = key.rpartition(".")
        if component in _IGNORED:
            continue
        parameter = wanted.pop((layer_name(path), component), None)
        if parameter is None:
            unknown.append(key)
        elif value.dtype.kind != "f":
            problems.append(f"{key} is of {value.dtype}, not of floating point")
        elif parameter.variable is None:
            if value.shape != parameter.shape or not np.all(value == parameter.constant):
                problems.append(
                    f"{key} is not {parameter.constant:g} throughout, and layer "
                    f"{parameter.layer.name!r} of the model has no such weights"
                )
        elif _overflows(value, parameter.variable):
            problems.append(
                f"{key} has numbers beyond {parameter.variable.dtype}, of which the model is: "
                "build it under the dtype policy float32 or mixed_float16"
            )
        elif value.shape == parameter.shape or _views_as(value.shape, parameter.shape):
            values.append((parameter.variable, parameter.from_published(value)))
        elif _is_head(parameter.layer) and value.shape[1:] == parameter.shape[1:]:
            random[_name_in_files(parameter.layer)] = (
                f"{file.name} has {value.shape[0]} classes and the model {parameter.shape[0]}: "
                f"the classifier {parameter.layer.name!r} keeps its random start"
            )
        elif parameter.layer is stem and _other_channels(value.shape, parameter.shape):
            adapted = _adapt_channels(value, parameter.shape[1])
            values.append((parameter.variable, parameter.from_published(adapted)))
        else:
            problems.append(f"shapes differ: {key}: {value.shape} in the file, ")
            problems[-1] += f"{parameter.shape} in the model"
    wanted = {name: p for name, p in wanted.items() if p.variable is not None}
    untrained = list(dict.fromkeys(name for name, _ in wanted if _is_auxiliary(name, model)))
    unknown = [key for key in unknown if not _is_left_out(key, model)]
    missing = [f"{name}.{component}" for name, component in wanted if name not in untrained]
    if missing:
        problems.insert(0, f"only in the model: {_some(missing)}")
    if unknown:
        problems.insert(0, f"only in the file: {_some(unknown)}")
    if problems:
        raise InputError(
            f"{file} does not fit {model.name}; {_some(problems, '; ')}. Is it of another network, "
            "or of another width or depth?"
        )
    main = [x for x in random if not _is_auxiliary(x, model)] or list(random)
    if main:
        warnings.warn(random[main[-1]], stacklevel=5)
    if untrained:
        warnings.warn(
            f"{file.name} has no weights for auxiliary heads, which keep their random start: "
            f"{_some(untrained)}",
            stacklevel=5,
        )
    return values


def _overflows(value: np.ndarray, variable: keras.Variable) -> bool:
    """Whether a number of the file becomes infinite in the model."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if dtype not in ("float16", "float32") or np.finfo(dtype).max >= np.finfo(value.dtype).max:
        return False
    return bool(np.any(np.isfinite(value) & (np.abs(value) > np.finfo(dtype).max)))


def _name_in_files(layer: keras.Layer) -> str:
    """The layer's name but for the prefix of a second network in one graph."""
    return layer_name(getattr(layer, "checkpoint_path", layer.name))


def _is_head(layer: keras.Layer) -> bool:
    return bool(getattr(layer, "checkpoint_head", False))


def _is_auxiliary(name: str, model: keras.Model) -> bool:
    """Whether a layer, or a published tensor, lies in a head that exists for training only."""
    prefixes = getattr(model, "checkpoint_auxiliary", ())
    return layer_name(name).startswith(tuple(layer_name(x.rstrip(".")) + "_" for x in prefixes))


def _is_left_out(key: str, model: keras.Model) -> bool:
    """Whether a published tensor is of a part that the model has nothing of, and need not have.

    That is an auxiliary head; or, for a model without classifier, the parts behind the feature
    map. Those have names of their own: a tensor of "layer4" is not left out of a model that has
    some of "layer4".
    """
    if _is_auxiliary(key, model):
        return True
    own = _own(model)
    if not getattr(model, "checkpoint_headless", not any(map(_is_head, own))):
        return False
    paths = (getattr(layer, "checkpoint_path", layer.name) for layer in own)
    return key.partition(".")[0] not in {path.partition(".")[0] for path in paths}


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
            tensors = {}
            for key in reader.offset_keys():
                if reader.get_slice(key).get_dtype() == "BF16":
                    tensors[key] = _read_bfloat16(file, key)
                else:
                    tensors[key] = reader.get_tensor(key)
            return tensors, reader.metadata() or {}
    except Exception as error:  # the reader's own kinds, OSError, TypeError for unknown dtypes
        raise InputError(
            f"{file} is not a readable .safetensors file ({_first_line(error)}); it is damaged or "
            "cut short: fetch or save it again"
        ) from error


def _read_bfloat16(file: Path, key: str) -> np.ndarray:
    """A tensor that numpy has no type for, as float32; the reader has checked the header."""
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(length))[key]
        start, stop = entry["data_offsets"]
        stream.seek(8 + length + start)
        bits = np.frombuffer(stream.read(stop - start), "<u2")
    return from_bfloat16(bits).reshape(entry["shape"])


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise InputError(
            "reading and writing .safetensors files needs the package safetensors: "
            "pip install 'kapps[weights]'"
        ) from error
    return safetensors


def _weights_path(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Path:
    if not os.fspath(path).endswith(suffixes):
        verb = "reads" if suffixes == _READS else "writes"
        raise InputError(
            f"weights {os.fspath(path)!r}: kapps {verb} files that end in {_either(suffixes)}"
        )
    return Path(path)


def _either(suffixes: tuple[str, ...]) -> str:
    return f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"


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


def _some(names: Iterable[str], separator: str = ", ", most: int = 8) -> str:
    """The first names of a long list, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + rest
