"""Small .tflite files straight from TensorFlow's converter, for tests of what reads them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from tflite_net import LABELS, small_net

from kapps.tflite import Metadata
from kapps.tflite.metadata import with_metadata

Mode = Literal["float32", "dynamic", "int8", "uint8", "float32 I/O", "flex"]
"""int8, uint8 and float32 I/O: quantized throughout, with input and output of this type. flex: with
operations that only TensorFlow has."""


def plain_file(
    function: Callable[[Any], Any], shape: tuple[int | None, ...], mode: Mode = "float32"
) -> bytes:
    """The .tflite content of a function of one image of this shape."""
    signature = [tf.TensorSpec(shape, tf.float32, name="image")]
    graph = tf.function(function, input_signature=signature, autograph=False)
    holder = tf.Module()
    concrete = graph.get_concrete_function()
    holder.weights = list(concrete.variables)  # or the converter would not find them
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], holder)
    io = mode.removesuffix(" I/O")
    if mode in ("int8", "uint8", "float32 I/O"):
        images = np.random.default_rng(0).random((4, 1, *shape[1:]), "float32") * 6 - 3
        converter.representative_dataset = lambda: ([image] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io)
    if mode == "flex":
        ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
        converter.target_spec.supported_ops = ops
    if mode not in ("float32", "flex"):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")
        return bytes(converter.convert())


def plain_net(mode: Mode = "float32") -> bytes:
    """The small network of the tests with random weights, as a file with labels."""
    net = small_net()
    content = plain_file(lambda image: net(image, training=False), (1, 16, 16, 3), mode)
    return with_metadata(content, Metadata(name="small_net", labels=LABELS))
