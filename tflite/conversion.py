"""From a Keras model to a verified .tflite file with labels and metadata.

    conversion = convert(model, "model.tflite", quantization="int8", calibration=images)

The model goes through the passes of `kapps.tflite.passes` and TensorFlow's converter; the file then
has to agree with the model on real images before it gets its name.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

import kapps
from kapps._errors import InputError, unknown
from kapps._files import atomic_write
from kapps.tflite.interpreter import Runner
from kapps.tflite.metadata import Metadata, check_labels, with_metadata
from kapps.tflite.passes import run_passes
from kapps.tflite.verification import Verification, verify

Quantization = Literal["float32", "float16", "dynamic", "int8"]
"""float16: weights of 16 bits, float arithmetic. dynamic: weights of 8 bits, activations quantized
as they come. int8: weights and activations of 8 bits, by calibration."""

QUANTIZATIONS: tuple[Quantization, ...] = ("float32", "float16", "dynamic", "int8")

IO = Literal["uint8", "int8", "float32"]


@dataclass(frozen=True)
class Conversion:
    """A file that was written, and how it compares to the model that it came from."""

    path: Path
    quantization: Quantization
    io: IO
    size_bytes: int
    verification: Verification


def convert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    quantization: Quantization = "float32",
    calibration: np.ndarray | None = None,
    verification: np.ndarray | None = None,
    labels: Sequence[str] | None = None,
    io: IO | None = None,
    name: str | None = None,
    description: str = "",
    author: str = "",
    licence: str = "",
) -> Conversion:
    """Writes `model` as a .tflite file for LiteRT, Android and MediaPipe.

    The file has a static batch of 1 and uses built-in operations only. It takes RGB pixels in
    0..255, whatever its input type, and gives class probabilities; for int8 the input's scale is 1
    and its zero point 0, so that an app passes the bytes of the image as they are. MediaPipe
    refuses models for gray images: convert `rgb_input(model)` for it.

    Args:
        model: a functional image classifier of fixed input size that ends in a softmax.
        path: where the file goes; one that is there is replaced only once the new one is verified.
        quantization: see `Quantization`.
        calibration: for int8: real images (n, height, width, channels) in 0..255, uint8 or float,
            of the kind that the model will see: 100 to 500 of the training set.
        verification: real images for the check, preferably held out; by default `calibration`.
        labels: the name of each class, in the order of the outputs; "0", "1", ... by default.
        io: the type of input and output: for int8 "uint8" (default), "int8" (which MediaPipe
            refuses) or "float32"; otherwise "float32".
        name: the name in the metadata, by default that of the model.
        description: what the model does, for the metadata.
        author: for the metadata.
        licence: for the metadata: an SPDX identifier, or the text.

    Raises:
        InputError: an argument does not fit, or the model needs an operation that is not built in.
        ConversionError: the file does not do what the model does; it has the figures.
    """
    if quantization not in QUANTIZATIONS:
        raise unknown("quantization", quantization, QUANTIZATIONS)
    if keras.config.backend() != "tensorflow":
        raise InputError(
            f"conversion runs on TensorFlow, and Keras on {keras.config.backend()}: save the "
            "weights, and convert in a process with KERAS_BACKEND=tensorflow"
        )
    io = _check_io(io, quantization)
    height, width, channels = _image_shape(model)
    labels = check_labels(
        [str(i) for i in range(model.output_shape[-1])] if labels is None else labels,
        model.output_shape[-1],
    )
    if calibration is not None:
        calibration = _check_images(calibration, "calibration", (height, width, channels))
    elif quantization == "int8":
        raise InputError("int8 needs calibration images: pass a few hundred of the training set")
    if verification is not None:
        verification = _check_images(verification, "verification", (height, width, channels))
    elif calibration is not None:
        verification = calibration
    else:
        raise InputError("pass real images, as `verification`, to check the converted file on")

    metadata = Metadata(
        name=name or model.name,
        labels=labels,
        description=description,
        version=f"kapps {kapps.__version__}",
        author=author,
        licence=licence,
    )
    with atomic_write(path) as temporary:  # first of all: it finds out whether that can be written
        content = _convert(model, quantization, io, calibration)
        temporary.write_bytes(with_metadata(content, metadata))
        figures = verify(model, temporary, verification, quantization, where=str(path))
        if quantization == "int8" and io != "float32":
            scale, zero_point = Runner(temporary).input_quantization
            if (scale, zero_point) != (1.0, -128 if io == "int8" else 0):
                raise RuntimeError(
                    f"input quantized with {scale=}, {zero_point=}, not as raw bytes"
                )
    path = Path(path)
    return Conversion(path, quantization, io, path.stat().st_size, figures)


def _check_io(io: IO | None, quantization: Quantization) -> IO:
    known: tuple[IO, ...] = ("uint8", "int8", "float32") if quantization == "int8" else ("float32",)
    if io is None:
        return known[0]
    if io not in known:
        raise InputError(f"io: {quantization} files take {' or '.join(known)}, not {io!r}")
    return io


def _image_shape(model: keras.Model) -> tuple[int, int, int]:
    shape = getattr(model, "input_shape", None)  # absent on unbuilt and on subclassed models
    if not isinstance(shape, tuple) or len(shape) != 4 or len(model.output_shape) != 2:
        raise InputError(
            f"model {model.name!r} is no image classifier: expected a functional model from "
            "(batch, height, width, channels) to (batch, classes)"
        )
    if None in shape[1:]:
        raise InputError(
            f"model {model.name!r} takes images of any size, a file has one: build it with "
            "input_shape=(height, width, channels)"
        )
    return shape[1:]


def _check_images(images: np.ndarray, what: str, shape: tuple[int, int, int]) -> np.ndarray:
    """The images as they came, if they can be real pixels of the model's input size."""
    images = np.asarray(images)
    height, width, channels = shape
    expected = f"expected shape (n, {height}, {width}, {channels}), uint8 or float in 0..255"
    if images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(f"{what} images have shape {images.shape}; {expected}")
    if not len(images):
        raise InputError(f"no {what} images; {expected}")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"{what} images are {images.dtype}; {expected}")
    low, high = float(images.min()), float(images.max())
    if not 0 <= low <= high <= 255:  # nan too is refused
        raise InputError(f"{what} images go from {low:g} to {high:g}; {expected}")
    if high <= 1:
        raise InputError(
            f"{what} images go from {low:g} to {high:g}, as if normalized already; {expected}: "
            "the model normalizes them itself"
        )
    return images


def _convert(
    model: keras.Model, quantization: Quantization, io: IO, calibration: np.ndarray | None
) -> bytes:
    """The file's content, without metadata."""
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    model = run_passes(model)
    # The converter goes by way of a saved model, which holds the variables that it can find. It
    # does not look into a Keras model: unlisted, the weights would be missing, without an error.
    holder = tf.Module()
    holder.weights = [variable.value for variable in model.variables]
    function = tf.function(
        lambda image: {"probability": model(image, training=False)},
        input_signature=[tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="image")],
        autograph=False,
    ).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if quantization != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        assert calibration is not None
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: _calibration_set(calibration)
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io)
    with warnings.catch_warnings():
        # Said of every full-integer conversion: input statistics belong to the TF 1 converter.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")
        try:
            return bytes(converter.convert())
        except ConverterError as error:
            missing = set(re.findall(r"'tf\.(\w+)' op is neither", str(error)))
            if not missing:
                raise
            raise _not_builtin(missing, function, model) from error


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
    """Names the layers whose `operations` the runtime lacks: a path holds "layer" or "layer_1"."""
    names = {layer.name for layer in model.layers}
    found = []
    for node in function.graph.get_operations():
        if node.type in operations:
            parts = [part for part in node.name.split("/") if part]
            parts += [re.sub(r"_\d+$", "", part) for part in parts]
            layer = next((part for part in parts if part in names), node.name)
            found.append(f"{node.type} in layer {layer!r}")
    return InputError(
        "TensorFlow Lite has no built-in operation for "
        f"{', '.join(found) or ', '.join(sorted(operations))}; "
        "replace the layer by one that is made of built-in operations"
    )
