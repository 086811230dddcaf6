"""ONNX files, for what is no phone: written by tf2onnx, run by ONNX Runtime (extra `onnx`).

Like a .tflite file of kapps, such a file takes RGB pixels in 0..255, float32 and channels last, and
gives class probabilities; unlike it, it takes any number of images at once. What it says about
itself is in its `metadata_props`: those that ONNX defines for images, and the labels, one a line.

https://onnx.ai/onnx/repo-docs/MetadataProps.html
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

import kapps
from kapps._errors import InputError
from kapps._lazy import imported
from kapps.tflite.comparison import layers_in
from kapps.tflite.converter import quiet
from kapps.tflite.metadata import Metadata
from kapps.tflite.passes import PASSES, run_passes, static_batch
from kapps.tflite.passes.graph import Call, Graph, replace, settle, sharing_weights
from kapps.tflite.verification import Verification, compare, judge

OPSET = 17
"""Of the operations: that of ONNX 1.12, of June 2022, which ONNX Runtime 1.12 and later runs."""

_AT_ONCE = 16  # images of a verification


def write_onnx(model: keras.Model, path: str | os.PathLike[str], metadata: Metadata) -> None:
    """Writes a classifier as an ONNX file of float32.

    Args:
        model: a functional classifier that takes 0..255, as `classifier.as_classifier` has it.
        path: the file.
        metadata: what it says about itself.

    Raises:
        InputError: the extra is not installed, or ONNX has no operation for a layer.
    """
    onnx, tf2onnx = (imported(name, "--format=onnx", "onnx") for name in ("onnx", "tf2onnx"))
    with sharing_weights():
        model = run_passes(model, passes=[step for step in PASSES if step.run is not static_batch])
        model = replace(model, _uncompiled)
    settle(model)
    graph = _converted(model, tf2onnx)
    missing = [
        f"{node.op_type} in layer {next(iter(layers_in(node.name, model)), node.name)!r}"
        for node in graph.graph.node
        if not onnx.defs.has(node.op_type, node.domain)
    ]
    if missing:
        raise InputError(
            f"ONNX has no operation for {', '.join(dict.fromkeys(missing))}; replace the layer by "
            "one that is made of plain operations"
        )
    graph.graph.name = metadata.name
    graph.producer_name, graph.producer_version = "kapps", kapps.__version__
    graph.doc_string = metadata.description
    onnx.helper.set_model_props(graph, _properties(metadata))
    onnx.save(graph, os.fspath(path))


class OnnxRunner:
    """An ONNX image classifier of kapps, loaded by ONNX Runtime on the CPU.

    Args:
        path: the file: one of your own, for it runs in this process.
        threads: of the runtime.

    Raises:
        InputError: the extra is not installed, or the runtime does not load the file.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1) -> None:
        onnxruntime = imported("onnxruntime", "OnnxRunner", "onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's have no class in common
            raise InputError(f"{path} is no ONNX file that runs here: {error}") from error
        self._input = self._session.get_inputs()[0].name
        self.properties: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The outputs for images (n, height, width, channels) in 0..255: float32 (n, classes)."""
        parts = [images[i : i + _AT_ONCE] for i in range(0, len(images), _AT_ONCE)]
        return np.concatenate(
            [self._session.run(None, {self._input: part.astype("float32")})[0] for part in parts]
        )


def verify_onnx(
    expected: np.ndarray,
    model: keras.Model,
    path: str | os.PathLike[str],
    images: np.ndarray,
    where: str,
) -> Verification:
    """The file's probabilities against those of the model, as of a float32 .tflite file.

    Args:
        expected: the model's `probabilities` for the images.
        model: the model that the file came from.
        path: the file.
        images: (n, height, width, channels) in 0..255.
        where: what to call the file in the error.

    Raises:
        ConversionError: the file does not do what the model does.
    """
    figures = compare(expected, OnnxRunner(path).predict(images))
    judge(figures, expected, model, images, "float32", where)
    return figures


class _Uncompiled(layers.Conv2D):
    """A convolution of groups as one operation.

    Keras has it compiled by XLA, since TensorFlow's own kernel for CPUs has no groups, and what is
    compiled stays a call that no converter looks into (keras/src/backend/tensorflow/nn.py).
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        import tensorflow as tf

        return tf.nn.convolution(
            inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate
        )


def _uncompiled(graph: Graph) -> Mapping[keras.Operation, Call]:
    found: dict[keras.Operation, Call] = {}
    for layer in graph.layers:
        if type(layer) is layers.Conv2D and layer.groups > 1 and graph.once(layer):
            copy = _Uncompiled.from_config(layer.get_config())
            copy.build(graph.inputs(layer)[0].shape)
            copy.set_weights(layer.get_weights())
            found[layer] = copy
    return found


def _converted(model: keras.Model, tf2onnx: Any) -> Any:
    import tensorflow as tf

    function = tf.function(
        lambda image: {"probability": model(image, training=False)},
        input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")],
        autograph=False,
    )
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)  # it tells each step
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        graph, _ = tf2onnx.convert.from_function(
            function,
            function.input_signature,
            opset=OPSET,
            custom_rewriter=[_not_scalar],
            custom_op_handlers={"Erfc": (_erfc, [])},
        )
    return graph


def _not_scalar(graph: Any, operations: list[Any]) -> list[Any]:
    """Numbers as vectors of one: tf2onnx fails to look for the longest side of what has none.

    A transposition stays at each layer then (transpose_optimizer.py, `_add_handler`).
    """
    for constant in operations:
        if constant.type != "Const" or constant.get_tensor_value(as_list=False).shape:
            continue
        users = graph.find_output_consumers(constant.output[0])
        if all(user.type in ("Add", "AddV2", "Mul", "Sub") for user in users):
            constant.set_tensor_value(constant.get_tensor_value(as_list=False).reshape(1))
    return operations


def _erfc(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """TensorFlow makes it of the error function in GELU; ONNX has the latter only."""
    shape, dtype = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0])
    graph.remove_node(name)
    one = graph.make_const(f"{name}_one", np.ones(1, "float32"))
    erf = graph.make_node("Erf", node.input, shapes=[shape], dtypes=[dtype])
    graph.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        name=name,
        outputs=node.output,
        shapes=[shape],
        dtypes=[dtype],
    )


def _properties(metadata: Metadata) -> dict[str, str]:
    properties = {
        "Image.BitmapPixelFormat": "Rgb8",
        "Image.ColorSpaceGamma": "SRGB",
        "Image.NominalPixelRange": "NominalRange_0_255",
        "author": metadata.author,
        "labels": "\n".join(metadata.labels),
        "license": metadata.licence,
        "version": metadata.version,
        "weights_name": metadata.weights_name,
        "weights_sha256": metadata.weights_sha256,
    }
    return {key: value for key, value in properties.items() if value}
