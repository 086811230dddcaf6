"""TensorFlow's converter for a model of Keras 3 or of tf_keras, as every file of kapps is made."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, nothing is printed on stderr, unless TF_CPP_MIN_LOG_LEVEL=0 asks for it.

    The converter prints pages there, such as the whole graph where an operation is not built in,
    from C++ and past every logger: only the file descriptor stops it. The errors that it raises say
    the same. If it kills the process, that setting shows what it said last.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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
    """The file's content. What TensorFlow prints is dropped, see `quiet`."""
    with warnings.catch_warnings(), quiet():
        # Said of every full-integer conversion: input statistics belong to the TF 1 converter.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")
        return bytes(converter.convert())
