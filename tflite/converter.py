"""TensorFlow's converter for a model of Keras 3 or of tf_keras, as every file of kapps is made."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def make_converter(model: Any, variables: Sequence[tf.Variable]) -> tuple[Any, Any]:
    """A converter to a static batch of 1 and built-in operations, and the function it converts.

    The converter goes by way of a saved model, which holds the variables that it can find. It does
    not look into a Keras model: unlisted, the weights would be missing, without an error; and of a
    tf_keras model it would trace every layer's call.
    """
    holder = tf.Module()
    holder.weights = list(variables)
    function = tf.function(
        lambda image: {"probability": model(image, training=False)},
        input_signature=[tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="image")],
        autograph=False,
    ).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return converter, function


def converted(converter: Any) -> bytes:
    """The file's content."""
    with warnings.catch_warnings():
        # Said of every full-integer conversion: input statistics belong to the TF 1 converter.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")
        return bytes(converter.convert())
