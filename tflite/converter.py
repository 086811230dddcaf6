"""TensorFlow's converter for a model of Keras 3 or of tf_keras, as every file of kapps is made."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import tensorflow as tf

from kapps._files import temporary_folder
from kapps.tflite.file_facts import better_in_float, read_graph


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


@contextlib.contextmanager
def converter_of(model: Any, variables: Sequence[tf.Variable]) -> Iterator[tuple[Any, Any]]:
    """A converter to a static batch of 1 and built-in operations, and the function it converts.

    It goes by way of a saved model, which holds the variables that it can find. It does not look
    into a Keras model: unlisted, the weights would be missing, without an error; and of a tf_keras
    model it would trace every layer's call. The saved model is without gradients, of which an
    activation may have one of its own: to write these takes longer than all the rest.
    """
    holder = tf.Module()
    holder.weights = list(variables)
    function = tf.function(
        lambda image: {"probability": model(image, training=False)},
        input_signature=[tf.TensorSpec((1, *model.input_shape[1:]), tf.float32, name="image")],
        autograph=False,
    ).get_concrete_function()
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with temporary_folder() as folder:
        with quiet():
            tf.saved_model.save(holder, os.fspath(folder), signatures=function, options=options)
            converter = tf.lite.TFLiteConverter.from_saved_model(os.fspath(folder))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        yield converter, function


def converted(converter: Any) -> bytes:
    """The file's content. What TensorFlow prints is dropped, see `quiet`."""
    _spare_copies(converter)
    with warnings.catch_warnings(), quiet():
        # Said of every full-integer conversion: input statistics belong to the TF 1 converter.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")
        return bytes(converter.convert())


class Quantize(Protocol):
    """From a file of floats with the range of each tensor to one of integers."""

    def __call__(self, content: bytes, *, in_float: Sequence[str] = ()) -> bytes:
        """`in_float` names the outputs of the operations that stay in floats."""


def calibrate_by(converter: Any, calibrate: Callable[[bytes, Quantize], bytes]) -> bool:
    """Has `calibrate` make the file of integers, of that of floats, with the quantizer it is given.

    In the place of TensorFlow's calibrator, which has copies of the whole file in memory, and looks
    at the inputs of an operation after it as well: a sum may lie there by then. And it leaves in
    float what is better there (`file_facts.better_in_float`).

    Returns:
        Whether it does: the place is private to the converter.
    """
    if not hasattr(converter, "_quantize"):
        return False
    from tensorflow.lite.python.convert import mlir_quantize

    def quantize_with(content: bytes, input_type: Any, output_type: Any, *args: Any) -> bytes:
        _, _, _, variables, debug_options = args

        def quantize(content: bytes, *, in_float: Sequence[str] = ()) -> bytes:
            graph = read_graph(content)
            better = {graph.tensors[op.outputs[0]].name for op in better_in_float(graph)}
            return bytes(
                mlir_quantize(
                    content,
                    converter._experimental_disable_per_channel,
                    input_data_type=input_type,
                    output_data_type=output_type,
                    denylisted_nodes={*in_float, *better} or None,
                    enable_variable_quantization=variables,
                    disable_per_channel_for_dense_layers=(
                        converter._experimental_disable_per_channel_quantization_for_dense_layers
                    ),
                    debug_options_str=debug_options.SerializeToString(),
                )
            )

        return calibrate(content, quantize)

    converter._quantize = quantize_with
    return True


_LARGE = 64 << 20  # bytes of a file, below which its copies do not matter


def _spare_copies(converter: Any) -> None:
    """Keeps the converter from holding copies of the weights that it does not need.

    It has the saved model in memory throughout, and reads it anew. And to merge equal constants, it
    takes the file apart into Python objects and writes it anew, three copies; those of a large file
    are its kernels, which are not equal. Both are private to it (tensorflow/lite/python/lite.py):
    where they are not found the conversion takes more memory, and no more than that.
    """
    optimize = getattr(converter, "_optimize_tflite_model", None)
    if optimize is None or not hasattr(converter, "_trackable_obj"):
        return
    converter._trackable_obj = None

    def optimize_as_one(model: bytes, *args: Any, **kwargs: Any) -> Any:
        # By then it only says whether to merge.
        converter._experimental_use_buffer_offset = len(model) > _LARGE
        return optimize(model, *args, **kwargs)

    converter._optimize_tflite_model = optimize_as_one
