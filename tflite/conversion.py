"""From a Keras model to a verified .tflite file with labels and metadata.

    conversion = convert(model, "model.tflite", quantization="int8", calibration=images)

The model goes through the passes of `kapps.tflite.passes` and TensorFlow's converter; the file then
has to agree with the model on real images before it gets its name.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import layers

import kapps
from kapps import _hub
from kapps._block_skipping import any_depth
from kapps._errors import InputError, unknown
from kapps._files import atomic_write, sha256
from kapps.tflite import file_facts
from kapps.tflite.classifier import as_classifier
from kapps.tflite.comparison import layers_in
from kapps.tflite.file_facts import Content
from kapps.tflite.images import check_images, check_pixels, weaknesses
from kapps.tflite.interpreter import Runner
from kapps.tflite.large import NotFound, StandIn, filled, is_large, with_ranges, with_stand_ins
from kapps.tflite.memory import give_back_free_memory
from kapps.tflite.metadata import Metadata, check_labels, weights_sha256, write_with_metadata
from kapps.tflite.onnx_file import verify_onnx, write_onnx
from kapps.tflite.passes import run_passes
from kapps.tflite.passes.graph import in_float32, rebuild, settle, sharing_weights
from kapps.tflite.verification import Verification, probabilities, verify_against

Quantization = Literal["float32", "float16", "dynamic", "int8", "int16x8"]
"""float16: weights of 16 bits, float arithmetic. dynamic: weights of 8 bits, activations quantized
as they come. int8: weights and activations of 8 bits, by calibration. int16x8: the same with
activations of 16 bits, nearly exact, and some ten times slower than int8."""

QUANTIZATIONS: tuple[Quantization, ...] = ("float32", "float16", "dynamic", "int8")
"""Those that are fast on a phone: all but int16x8."""

_CALIBRATED = ("int8", "int16x8")

IO = Literal["uint8", "int8", "int16", "float32"]

Format = Literal["tflite", "onnx"]
"""onnx: for what is no phone, see `kapps.tflite.onnx_file`; float32 only."""

_IO: dict[str, tuple[IO, ...]] = {
    "int8": ("uint8", "int8", "float32"),
    "int16x8": ("float32", "int16"),
}
"""What a file can take and give, the default first; float32 alone for the others."""


@dataclass(frozen=True)
class Conversion:
    """A file that was written, and how it compares to the model that it came from.

    `float_operations` names what an int8 or int16x8 file still computes in float, such as "SIN in
    layer 'odd'", since the runtime has no integer form of it; or none that its delegate takes, as
    of GELU and of attention, where the way out of the delegate costs more than floats do.
    """

    path: Path
    quantization: Quantization
    io: IO
    size_bytes: int
    verification: Verification
    float_operations: tuple[str, ...] = ()
    file_format: Format = "tflite"


@in_float32()
@any_depth()
def convert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    quantization: Quantization = "float32",
    calibration: np.ndarray | None = None,
    verification: np.ndarray | None = None,
    labels: Sequence[str] | Mapping[str, int] | None = None,
    io: IO | None = None,
    name: str | None = None,
    description: str = "",
    author: str = "",
    licence: str = "",
    weights: str | os.PathLike[str] | kapps.PublishedWeights | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    file_format: Format = "tflite",
) -> Conversion:
    """Writes `model` as a .tflite file for LiteRT, Android and MediaPipe; or as an ONNX file.

    The file has a static batch of 1 and uses built-in operations only. It takes RGB pixels in
    0..255, whatever its input type, and gives class probabilities; for int8 the input's scale is 1
    and its zero point 0, so that an app passes the bytes of the image as they are. MediaPipe
    refuses models for gray images: convert `rgb_input(model)` for it.

    The weights of a network of over 64 MiB go to the file by way of the folder for temporary files
    (TMPDIR), where int8 takes up to twice their size; a dense layer of over 16 MiB in it becomes a
    convolution over one pixel.

    Args:
        model: a functional image classifier of fixed input size that ends in a softmax, or in one
            unit with a sigmoid, which becomes two classes, 1 - p and p; of any dtype policy, the
            file's arithmetic is that of `quantization`. Or the `tf_keras` model that
            quantize_aware returned, trained.
        path: where the file goes; one that is there is replaced only once the new one is verified.
        quantization: see `Quantization`.
        calibration: for int8 and int16x8: real images (n, height, width, channels), RGB in 0..255,
            uint8 or float, of the kind that the model will see: 100 to 500 of the training set.
            Where the model has been trained, images of another range or channel order are refused.
        verification: real images for the check, preferably held out; by default `calibration`.
        labels: the name of each class, in the order of the outputs, or by name the index of its
            output, as Keras's `class_indices`; "0", "1", ... by default.
        io: the type of input and output: for int8 "uint8" (default), "int8" (which MediaPipe
            refuses) or "float32"; for int16x8 "float32" (default) or "int16"; otherwise "float32".
        name: the name in the metadata, by default that of the model.
        description: what the model does, for the metadata.
        author: for the metadata.
        licence: for the metadata: an SPDX identifier, or the text; by default that of the published
            weights that the model was built with.
        weights: the file that the model's weights were loaded from, or `model.kapps_weights` if
            they are published ones, unchanged: the metadata gets its name and SHA-256. By default
            it gets that of the weights in memory, see `weights_sha256`.
        mean: for a model that was trained on images normalized outside of it, `(pixels - mean) /
            std`: a number of 0..255, or one a channel, 0 by default. The file normalizes then, and
            takes pixels in 0..255 like any other; so do the model's calibration and check here.
        std: the other half: 255 for a model trained on `pixels / 255`; for one trained on
            `pixels / 127.5 - 1` mean and std are 127.5.
        file_format: "tflite", or "onnx": float32 for ONNX Runtime, under the same check; such a
            file takes any number of images at once, and writing it needs the extra `onnx`.

    Warns:
        UserWarning: the file agrees with the model, and that says little: few images, or noise;
            probabilities that hardly vary, or are certain where nothing tells the model's range.

    Raises:
        InputError: an argument does not fit, or the model needs an operation that is not built in.
        ConversionError: the file does not do what the model does; it has the figures.
    """
    io = check_quantization(quantization, io, file_format)
    if keras.config.backend() != "tensorflow":
        raise InputError(
            f"conversion runs on TensorFlow, and Keras on {keras.config.backend()}: save the "
            "weights, and convert in a process with KERAS_BACKEND=tensorflow"
        )
    whole, tuned = model, _is_tuned(model)
    if not tuned:
        with sharing_weights():
            model = as_classifier(model, mean, std)
        if quantization in _CALIBRATED:
            _check_no_loop(model, quantization)
    elif (mean, std) != (None, None):
        raise InputError(
            "mean and std belong to the Keras 3 model: a tuned one normalizes its images as the "
            "model that it was made of"
        )
    elif file_format == "onnx":
        raise InputError(
            f"model {model.name!r} is tuned for int8, and ONNX files are float32: restore its "
            "weights into the Keras 3 model, restore(tuned, model), and convert that"
        )
    shape, classes = model.input_shape[1:], model.output_shape[-1]
    labels = check_labels([str(i) for i in range(classes)] if labels is None else labels, classes)
    images: dict[str, np.ndarray] = {}
    if calibration is not None:
        images["calibration"] = check_images(calibration, "calibration", shape)
    elif quantization in _CALIBRATED and not tuned:
        raise InputError(
            f"{quantization} needs calibration images: pass a few hundred of the training set"
        )
    if verification is not None and verification is not calibration:
        images["verification"] = check_images(verification, "verification", shape)
    if not images:
        raise InputError("pass real images, as `verification`, to check the converted file on")
    calibration, verification = images.get("calibration"), list(images.values())[-1]
    if not tuned:
        for what, values in images.items():
            check_pixels(model, values, what, normalized=(mean, std) != (None, None))
    expected = probabilities(model, verification)
    for weakness in weaknesses(None if tuned else model, images, expected):
        # Behind this function and its two decorators is whoever chose the images.
        warnings.warn(f"weak check: {weakness}", stacklevel=4)

    if isinstance(weights, kapps.PublishedWeights):
        digest, source = sha256(_hub.fetch(weights)), weights.file_name
    else:
        digest, source = weights_sha256(whole, weights)
    published = getattr(whole, "kapps_weights", None)
    metadata = Metadata(
        name=name or model.name,
        labels=labels,
        description=description,
        version=f"kapps {kapps.__version__}",
        author=author,
        licence=licence or (published.license if published else ""),
        weights_sha256=digest,
        weights_name=source,
    )
    with atomic_write(path) as temporary:  # first of all: it finds out whether that can be written
        floats: tuple[str, ...] = ()
        if file_format == "onnx":
            write_onnx(model, temporary, metadata)
            figures = verify_onnx(expected, model, temporary, verification, str(path))
        else:
            content: Content = (
                _convert_tuned(model, quantization, io)
                if tuned
                else _convert(model, quantization, io, calibration)
            )
            if quantization in _CALIBRATED:
                graph = file_facts.read_graph(content)
                _check_steps(graph, model, quantization)
                floats = tuple(
                    _where(op, graph, model) for op in file_facts.float_operations(graph)
                )
            if not tuned and is_large(model):
                gc.collect()  # of graphs
                give_back_free_memory()
            with open(temporary, "wb+") as file:
                write_with_metadata(file, content, metadata)
            del content  # of hundreds of MiB
            figures = verify_against(
                expected, model, temporary, verification, quantization, str(path)
            )
            _check_input(temporary, quantization, io)
    path = Path(path)
    return Conversion(path, quantization, io, path.stat().st_size, figures, floats, file_format)


def _check_input(path: Path, quantization: Quantization, io: IO) -> None:
    """Whether an int8 file takes the bytes of an image as they are."""
    if quantization != "int8" or io == "float32":
        return
    scale, zero_point = Runner(path, delegate=False).input_quantization
    if (scale, zero_point) != (1.0, -128 if io == "int8" else 0):
        raise RuntimeError(f"input quantized with {scale=}, {zero_point=}, not as raw bytes")


def _is_tuned(model: Any) -> bool:
    """Whether it is a model of tf_keras, which nothing but tuning makes; only then it is loaded."""
    tf_keras = sys.modules.get("tf_keras")
    return tf_keras is not None and isinstance(model, tf_keras.Model)


def _convert_tuned(model: Any, quantization: Quantization, io: IO) -> bytes:
    """The content of the file of a tuned model, without metadata."""
    from kapps.tflite.tuning import tflite_bytes
    from kapps.tflite.tuning.quantized_graph import is_quantized

    if not is_quantized(model):
        raise InputError(
            f"model {model.name!r} is pruned or clustered: restore its weights into the Keras 3 "
            "model, restore(tuned, model), and convert that"
        )
    if quantization != "int8":
        raise InputError(
            f"model {model.name!r} is tuned for int8: pass quantization='int8', or restore its "
            f"weights into the Keras 3 model and convert that to {quantization}"
        )
    assert io != "int16"  # which int8 files do not take
    return bytes(tflite_bytes(model, io=io))


def check_quantization(
    quantization: Quantization, io: IO | None, file_format: Format = "tflite"
) -> IO:
    """The type of input and output, if there is such a quantization and it can have that type.

    Raises:
        InputError: it is not so.
    """
    if quantization not in get_args(Quantization):
        raise unknown("quantization", quantization, get_args(Quantization))
    if file_format not in get_args(Format):
        raise unknown("format", file_format, get_args(Format))
    if file_format == "onnx" and quantization != "float32":
        raise InputError(f"ONNX files are float32, not {quantization}; leave --quantization out")
    known = _IO.get(quantization, ("float32",))
    if io is None:
        return known[0]
    if io not in known:
        raise InputError(f"io: {quantization} files take {' or '.join(known)}, not {io!r}")
    return io


def _check_no_loop(model: keras.Model, quantization: str) -> None:
    """TensorFlow's calibrator, which runs the file, dies of a loop in it, and takes all with it."""
    for layer in model._flatten_layers():
        if isinstance(layer, (layers.RNN, layers.Bidirectional)):
            raise InputError(
                f"layer {layer.name!r} ({type(layer).__name__}) is a loop, which TensorFlow Lite "
                f"cannot calibrate for {quantization}; use float32, float16 or dynamic"
            )


def _convert(
    model: keras.Model, quantization: Quantization, io: IO, calibration: np.ndarray | None
) -> Content:
    """The file's content, without metadata."""
    with sharing_weights():
        model = run_passes(model, quantization=quantization)
        if quantization == "int16x8":
            model = _without_hard_swish(model)
        elif is_large(model):
            small, stand_ins = with_stand_ins(model)
            with contextlib.suppress(NotFound):
                return _content(small, quantization, io, calibration, stand_ins)
    return _content(model, quantization, io, calibration, [])


def _content(
    model: keras.Model,
    quantization: Quantization,
    io: IO,
    calibration: np.ndarray | None,
    stand_ins: Sequence[StandIn],
) -> Content:
    """The content of the file of a model after the passes, with `stand_ins` in it."""
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    from kapps.tflite.converter import calibrate_by, converted, converter_of

    settle(model)
    with converter_of(model, [variable.value for variable in model.variables]) as (
        converter,
        function,
    ):
        if quantization != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantization == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantization in _CALIBRATED:
            assert calibration is not None
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS_INT8
                if quantization == "int8"
                else tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
            ]
            converter.representative_dataset = lambda: _calibration_set(calibration)
            converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io)
            if quantization == "int8":
                calibrated = calibrate_by(
                    converter,
                    lambda content: with_ranges(
                        content, stand_ins, (image for (image,) in _calibration_set(calibration))
                    ),
                )
                if stand_ins and not calibrated:
                    raise NotFound
        try:
            content = converted(converter)
        except ConverterError as error:
            missing = set(re.findall(r"'tf\.(\w+)' op is neither", str(error)))
            if not missing:
                raise
            raise _not_builtin(missing, function, model) from error
        except RuntimeError as error:  # of the quantizer, which follows the converter
            missing = set(re.findall(r"not yet supported for op: '(\w+)'", str(error)))
            if not missing:
                raise
            found = _layers_of(missing, _convert(model, "float32", "float32", None), model)
            raise InputError(
                f"TensorFlow Lite has no {quantization} form of {', '.join(found)}; use int8, "
                "which leaves such operations in float, or replace the layer"
            ) from error
    return filled(content, stand_ins) if stand_ins else content


class _HardSwish(layers.Layer):
    """x * relu6(x + 3) / 6, in steps that the converter does not put together."""

    def call(self, x: Any) -> Any:
        return x * ((keras.ops.relu(x + 3) - keras.ops.relu(x - 3)) / 6)


def _without_hard_swish(model: keras.Model) -> keras.Model:
    """The model with hard-swish in steps: the runtime's HARD_SWISH has no 16-bit form."""

    def call(layer: keras.Operation, *args: Any, **kwargs: Any) -> Any:
        if getattr(layer, "activation", None) is keras.activations.hard_silu:
            if not isinstance(layer, layers.Activation):
                layer.activation = keras.activations.linear
                return _HardSwish(name=f"{layer.name}_activation")(layer(*args, **kwargs))
            layer = _HardSwish(name=layer.name)
        return layer(*args, **kwargs)

    own = rebuild(model, batch_size=1)
    return keras.models.clone_model(own, clone_function=lambda layer: layer, call_function=call)


def _calibration_set(images: np.ndarray) -> Iterator[list[np.ndarray]]:
    """One image at a time, float32.

    The input's quantization comes from the smallest and the largest value seen: with exactly 0 and
    255 it is scale 1, zero point 0. Images need not reach them, so two corner pixels of the first
    image are set: that moves no statistics inside the network, as all-black and all-white images
    would.
    """
    for index, image in enumerate(images):
        value = image[None].astype("float32")
        if index == 0:
            value[0, 0, 0] = 0
            value[0, -1, -1] = 255
        yield [value]


def _not_builtin(operations: set[str], function: Any, model: keras.Model) -> InputError:
    """Names the layers whose `operations`, of TensorFlow, the runtime lacks."""
    found = [
        _in_layer(node.type, node.name, model)
        for node in function.graph.get_operations()
        if node.type in operations
    ]
    return InputError(
        "TensorFlow Lite has no built-in operation for "
        f"{', '.join(found) or ', '.join(sorted(operations))}; "
        "replace the layer by one that is made of built-in operations"
    )


def _in_layer(operation: str, name: str, model: keras.Model) -> str:
    return f"{operation} in layer {next(iter(layers_in(name, model)), name)!r}"


def _layers_of(operations: set[str], content: Content, model: keras.Model) -> list[str]:
    """The layers of a file's `operations`, each as "SIN in layer 'odd'"."""
    graph = file_facts.read_graph(content)
    return [_where(op, graph, model) for op in graph.operations if op.name in operations]


def _check_steps(
    graph: file_facts.PlainGraph, model: keras.Model, quantization: Quantization
) -> None:
    too_fine = [_where(op, graph, model) for op in file_facts.too_fine(graph)]
    if too_fine:
        raise InputError(
            f"{quantization} has no form of {', '.join(too_fine)}: weights, or what comes of them, "
            "are too small beside what goes in, as of a layer that gives zeros alone; are these "
            "trained weights? Use float32"
        )


def _where(op: file_facts.PlainOperation, graph: file_facts.PlainGraph, model: keras.Model) -> str:
    return _in_layer(op.name, graph.tensors[op.outputs[0]].name, model)
