"""From a Keras model to a verified .tflite file with labels and metadata.

    conversion = convert(model, "model.tflite", quantization="int8", calibration=images)

The model goes through the passes of `kapps.tflite.passes` and TensorFlow's converter; the file then
has to agree with the model on real images before it gets its name.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import kapps
from kapps import _hub
from kapps._block_skipping import any_depth
from kapps._errors import InputError
from kapps._files import atomic_write, sha256
from kapps.tflite import file_facts, four_bits
from kapps.tflite.classifier import as_classifier
from kapps.tflite.content import Made, check_steps, make_content, where
from kapps.tflite.images import check_images, check_pixels, weaknesses
from kapps.tflite.interpreter import Runner
from kapps.tflite.large import is_large
from kapps.tflite.memory import give_back_free_memory
from kapps.tflite.metadata import Metadata, check_labels, weights_sha256, write_with_metadata
from kapps.tflite.mixed import Trade
from kapps.tflite.onnx_file import verify_onnx, write_onnx
from kapps.tflite.passes.graph import in_float32, sharing_weights
from kapps.tflite.quantizations import (
    CALIBRATED,
    IO,
    Format,
    Quantization,
    check_quantization,
    check_target,
)
from kapps.tflite.verification import Verification, probabilities, verify_against


@dataclass(frozen=True)
class Conversion:
    """A file that was written, and how it compares to the model that it came from.

    `float_operations` names what a calibrated file still computes in float, such as "SIN in layer
    'odd'": what the runtime has no integer form of, or its delegate takes none of, as of GELU and
    of attention, where the way out of the delegate costs more than floats do; and what a mixed file
    keeps so. `refinements` are the steps of `kapps.tflite.refinement` that brought an int8 or mixed
    file nearer to the model. `trade` says of a mixed file what layers in float cost and gain.
    """

    path: Path
    quantization: Quantization
    io: IO
    size_bytes: int
    verification: Verification
    float_operations: tuple[str, ...] = ()
    refinements: tuple[str, ...] = ()
    trade: Trade | None = None
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
    target_loss: float | None = None,
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

    An int8 file of a network below that is refined: bias correction, equalization and ranges of the
    smallest error (`kapps.tflite.refinement`) are each kept if they lessen the drift on the
    calibration images. A large network's ranges are the smallest and the largest values.

    Args:
        model: a functional image classifier of fixed input size that ends in a softmax, or in one
            unit with a sigmoid, which becomes two classes, 1 - p and p; of any dtype policy, the
            file's arithmetic is that of `quantization`. Or the `tf_keras` model that
            quantize_aware returned, trained.
        path: where the file goes; one that is there is replaced only once the new one is verified.
        quantization: see `Quantization`.
        calibration: for int8, mixed and int16x8, and of use for int4 and int4_blockwise: real
            images (n, height, width, channels), RGB in 0..255, uint8 or float, of the kind that the
            model will see: 100 to 500 of the training set.
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
        target_loss: of a mixed file, and needed for it: the largest share of the calibration
            images, 0 to 1, that it may put into another class than the float network (1 less
            `Verification.agreement`, which no loss of accuracy on them exceeds). The fewest layers
            that were found to reach it stay in float. A network of L layers with weights is
            quantized L times for that, and with over 64 MiB of weights needs eleven times as much
            memory.
        file_format: "tflite", or "onnx": float32 for ONNX Runtime, under the same check; such a
            file takes any number of images at once, and writing it needs the extra `onnx`.

    Warns:
        UserWarning: the file agrees with the model, and that says little: few images, or noise;
            probabilities that hardly vary, or are certain where nothing tells the model's range.

    Raises:
        InputError: an argument does not fit, the model needs an operation that is not built in, or
            no mixed file reaches the target; it has the best one's figures.
        ConversionError: the file does not do what the model does; it has the figures.
    """
    io = check_quantization(quantization, io, file_format)
    check_target(quantization, target_loss)
    four_bits.check_installed(quantization)
    if keras.config.backend() != "tensorflow":
        raise InputError(
            f"conversion runs on TensorFlow, and Keras on {keras.config.backend()}: save the "
            "weights, and convert in a process with KERAS_BACKEND=tensorflow"
        )
    whole, tuned = model, _is_tuned(model)
    if not tuned:
        with sharing_weights():
            model = as_classifier(model, mean, std)
        if quantization in CALIBRATED:
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
    elif quantization in CALIBRATED and not tuned:
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
        refinements: tuple[str, ...] = ()
        trade = None
        if file_format == "onnx":
            write_onnx(model, temporary, metadata)
            figures = verify_onnx(expected, model, temporary, verification, str(path))
        else:
            made = (
                Made(_convert_tuned(model, quantization, io))
                if tuned
                else make_content(model, quantization, io, calibration, target_loss)
            )
            if quantization in CALIBRATED:
                graph = file_facts.read_graph(made.content)
                check_steps(graph, model, quantization)
                floats = tuple(where(op, graph, model) for op in file_facts.float_operations(graph))
            if not tuned and is_large(model):
                gc.collect()  # of graphs
                give_back_free_memory()
            with open(temporary, "wb+") as file:
                write_with_metadata(file, made.content, metadata)
            refinements, trade = made.refinements, made.trade
            del made  # with hundreds of MiB
            figures = verify_against(
                expected, model, temporary, verification, quantization, str(path)
            )
            _check_input(temporary, quantization, io)
    path = Path(path)
    size = path.stat().st_size
    return Conversion(
        path, quantization, io, size, figures, floats, refinements, trade, file_format
    )


def _check_input(path: Path, quantization: Quantization, io: IO) -> None:
    """Whether an int8 file takes the bytes of an image as they are."""
    if quantization not in ("int8", "mixed") or io == "float32":
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


def _check_no_loop(model: keras.Model, quantization: str) -> None:
    """TensorFlow's calibrator, which runs the file, dies of a loop in it, and takes all with it."""
    for layer in model._flatten_layers():
        if isinstance(layer, (layers.RNN, layers.Bidirectional)):
            raise InputError(
                f"layer {layer.name!r} ({type(layer).__name__}) is a loop, which TensorFlow Lite "
                f"cannot calibrate for {quantization}; use float32, float16 or dynamic"
            )
