"""The content of a file: a model of Keras 3 through the passes, the converter and the quantizer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from kapps._errors import InputError
from kapps.tflite import file_facts, four_bits
from kapps.tflite.comparison import layers_in
from kapps.tflite.file_facts import Content
from kapps.tflite.large import NotFound, StandIn, filled, is_large, with_ranges, with_stand_ins
from kapps.tflite.mixed import Mixed, Trade, mixed
from kapps.tflite.passes import run_passes
from kapps.tflite.passes.graph import rebuild, settle, sharing_weights
from kapps.tflite.quantizations import CALIBRATED, FOUR_BITS, IO, Quantization
from kapps.tflite.refinement import Refined, refined
from kapps.tflite.refinement.statistics import inputs_of


@dataclass(frozen=True)
class Made:
    """A file's content, without metadata, and how it came about, as `Conversion` has it."""

    content: Content
    refinements: tuple[str, ...] = ()
    trade: Trade | None = None


def make_content(
    model: keras.Model,
    quantization: Quantization,
    io: IO,
    calibration: np.ndarray | None,
    target_loss: float | None = None,
) -> Made:
    """The file's content, without metadata."""
    if quantization in FOUR_BITS:
        plain = make_content(model, "float32", "float32", None).content
        return Made(*four_bits.quantized(bytes(plain), quantization, calibration))
    with sharing_weights():
        model = run_passes(model, quantization=quantization)
        if quantization == "int16x8":
            model = _without_hard_swish(model)
        elif is_large(model) and quantization != "mixed":
            small, stand_ins = with_stand_ins(model)
            with contextlib.suppress(NotFound):
                return _content(small, quantization, io, calibration, None, stand_ins)
    return _content(model, quantization, io, calibration, target_loss, [])


def _content(
    model: keras.Model,
    quantization: Quantization,
    io: IO,
    calibration: np.ndarray | None,
    target_loss: float | None,
    stand_ins: Sequence[StandIn],
) -> Made:
    """The content of the file of a model after the passes, with `stand_ins` in it."""
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    from kapps.tflite.converter import Quantize, calibrate_by, converted, converter_of

    about: list[Any] = []

    def quantized(content: bytes, quantize: Quantize) -> bytes:
        assert calibration is not None
        if stand_ins:
            return quantize(with_ranges(content, stand_ins, inputs_of(calibration)))
        found: Refined | Mixed
        if target_loss is None:
            found = refined(content, calibration, quantize)
            about.append(found.steps)
        else:
            found = mixed(
                content,
                calibration,
                quantize,
                target_loss=target_loss,
                named=lambda name: next(iter(layers_in(name, model)), name),
            )
            about.extend([found.steps, found.trade])
        return found.content

    settle(model)
    with converter_of(model, [variable.value for variable in model.variables]) as (
        converter,
        function,
    ):
        if quantization != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantization == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantization in CALIBRATED:
            assert calibration is not None
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
                if quantization == "int16x8"
                else tf.lite.OpsSet.TFLITE_BUILTINS_INT8
            ]
            converter.representative_dataset = lambda: ([image] for image in inputs_of(calibration))
            converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io)
            if quantization != "int16x8" and not calibrate_by(converter, quantized):
                if stand_ins:
                    raise NotFound
                if target_loss is not None:
                    raise InputError(
                        f"TensorFlow {tf.__version__} does not let kapps leave layers in float: "
                        "use int8, or an earlier TensorFlow"
                    )
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
            plain = make_content(model, "float32", "float32", None).content
            found = _layers_of(missing, plain, model)
            raise InputError(
                f"TensorFlow Lite has no {quantization} form of {', '.join(found)}; use int8, "
                "which leaves such operations in float, or replace the layer"
            ) from error
    return Made(filled(content, stand_ins) if stand_ins else content, *about)


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
    return [where(op, graph, model) for op in graph.operations if op.name in operations]


def check_steps(
    graph: file_facts.PlainGraph, model: keras.Model, quantization: Quantization
) -> None:
    too_fine = [where(op, graph, model) for op in file_facts.too_fine(graph)]
    if too_fine:
        raise InputError(
            f"{quantization} has no form of {', '.join(too_fine)}: weights, or what comes of them, "
            "are too small beside what goes in, as of a layer that gives zeros alone; are these "
            "trained weights? Use float32"
        )


def where(op: file_facts.PlainOperation, graph: file_facts.PlainGraph, model: keras.Model) -> str:
    return _in_layer(op.name, graph.tensors[op.outputs[0]].name, model)
