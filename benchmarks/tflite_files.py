"""Writes one .tflite file of a net with random weights, for `tflite_peers.py`.

    python benchmarks/tflite_files.py SOURCE NET QUANTIZATION SIZE FILE

SOURCE is one of:

- kapps: `kapps.tflite.convert`, pixels in 0..255 and softmax in the graph.
- keras: keras.applications through `tf.lite.TFLiteConverter.from_keras_model`, as anyone would.
- keras-static: the same from a model that was built with a batch of 1.
- zeromodels, zeromodels-static: as keras and keras-static, of ZeroModels, without normalization.
  These need an environment with tensorflow and zeromodels.
- torchvision, timm: through litert-torch, channels last, without normalization and softmax,
  branches merged by timm's own function; int8 by ai-edge-quantizer's recipe static_wi8_ai8. These
  need an environment with torch, litert-torch and ai-edge-quantizer, and neither kapps nor
  tensorflow.

The process ends with the file, so that no converter leaves anything to the next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_CALIBRATION = 8  # images: random weights have no statistics worth more
# Of random weights: deep networks may amplify what int8 loses of them until the file is refused,
# whose time they do not change.
_DRAWS = 4
_SCALED = ("MobileNet", "MobileNetV2")  # of keras.applications, these take -1..1


def main(arguments: list[str]) -> None:
    source, net, quantization, size, path = arguments
    maker = _MAKERS[source]
    content = maker(source, net, quantization, int(size))
    temporary = Path(f"{path}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _kapps(source: str, net: str, quantization: str, size: int) -> bytes:
    import tempfile

    import keras

    import kapps
    from kapps.tflite import ConversionError, convert

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{net}.tflite"
        for seed in range(_DRAWS):
            keras.utils.set_random_seed(seed)
            model = kapps.get_builder(net)(weights=None, input_shape=(size, size, 3))
            try:
                convert(model, path, quantization=quantization, calibration=_pixels(size))  # type: ignore[arg-type]
                return path.read_bytes()
            except ConversionError as error:
                refused = error
    raise refused


def _keras(source: str, net: str, quantization: str, size: int) -> bytes:
    import keras

    builder = getattr(keras.applications, net)
    if source == "keras-static":
        image = keras.Input(batch_shape=(1, size, size, 3))
        model = builder(weights=None, input_tensor=image)
    else:
        model = builder(weights=None, input_shape=(size, size, 3))
    return _converted(model, quantization, size, scaled=net in _SCALED)


# The classifier of each, and what differs from its defaults.
_ZEROMODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "MobileNetV2": ("mobilenetv2", "MobileNetV2", {}),
    "MobileNetV3Small": ("mobilenetv3", "MobileNetV3", {"config": "small"}),
    "MobileNetV3Large": ("mobilenetv3", "MobileNetV3", {}),
    "EfficientNetB0": ("efficientnet", "EfficientNet", {}),
    "EfficientNetLite0": ("efficientnet_lite", "EfficientNetLite", {}),
    "EfficientNetV2B0": (
        "efficientnetv2",
        "EfficientNetV2",
        {"block_arch": "EfficientNetV2B", "default_size": 192},
    ),
    "MobileNetV4ConvSmall": ("mobilenetv4", "MobileNetV4", {}),
    "MobileNetV4ConvMedium": ("mobilenetv4", "MobileNetV4", {"config": "conv_medium"}),
    "MobileNetV4HybridMedium": ("mobilenetv4", "MobileNetV4", {"config": "hybrid_medium"}),
}


def _zeromodels(source: str, net: str, quantization: str, size: int) -> bytes:
    import importlib

    import keras

    family, name, changes = _ZEROMODELS[net]
    module = importlib.import_module(f"zeromodels.models.{family}")
    if source == "zeromodels-static":
        changes = {**changes, "input_tensor": keras.Input(batch_shape=(1, size, size, 3))}
    builder = getattr(module, f"{name}ImageClassify")
    model = builder(image_size=size, classifier_activation="softmax", **changes)
    return _converted(model, quantization, size, scaled=True)


def _converted(model: Any, quantization: str, size: int, *, scaled: bool) -> bytes:
    """By TensorFlow's converter; int8 is calibrated on pixels in -1..1 if the net takes such."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if quantization == "int8":

        def images() -> Iterator[list[np.ndarray]]:
            for image in _pixels(size):
                value = image[None].astype("float32")
                yield [value / 127.5 - 1 if scaled else value]

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = images
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        # The fastest there is: uint8 would add an operation at each end.
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def _torch(source: str, net: str, quantization: str, size: int) -> bytes:
    import tempfile

    import litert_torch
    import torch

    _import_torchvision()
    torch.manual_seed(0)
    model: Any
    if source == "timm":
        import timm

        model = timm.create_model(net, pretrained=False)
        model = timm.utils.reparameterize_model(model.eval())  # MobileOne's branches, as is meant
    else:
        import torchvision

        model = torchvision.models.get_model(net, weights=None)
    model = litert_torch.to_channel_last_io(model.eval(), args=[0])
    edge_model = litert_torch.convert(model, (torch.zeros(1, size, size, 3),))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        edge_model.export(str(path))
        content = path.read_bytes()
    return _static_int8(content, size) if quantization == "int8" else content


def _static_int8(content: bytes, size: int) -> bytes:
    """By ai-edge-quantizer, with integers at both ends as far as it makes them."""
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(bytearray(content), recipe.static_wi8_ai8())
    images = (_pixels(size).astype("float32") / 127.5 - 1)[:, None]
    (signature,) = _signatures(content)
    name, key = signature
    found = made.calibrate({name: [{key: image} for image in images]})
    return bytes(made.quantize(found).quantized_model)


def _signatures(content: bytes) -> list[tuple[str, str]]:
    """The name of each entrance of a file, and that of its only input."""
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(model_content=content).get_signature_list()
    return [(name, signature["inputs"][0]) for name, signature in found.items()]


def _import_torchvision() -> None:
    """Imports it, also where its wheel's compiled half, which needs CUDA, does not load.

    The import then asks for two operators of object detection, which no classifier runs.
    """
    import importlib

    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        importlib.import_module("torchvision")


def _pixels(size: int) -> np.ndarray:
    shape = (_CALIBRATION, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


_MAKERS: dict[str, Callable[[str, str, str, int], bytes]] = {
    "kapps": _kapps,
    "keras": _keras,
    "keras-static": _keras,
    "zeromodels": _zeromodels,
    "zeromodels-static": _zeromodels,
    "torchvision": _torch,
    "timm": _torch,
}

if __name__ == "__main__":
    main(sys.argv[1:])
