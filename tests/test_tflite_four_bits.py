"""Files with weights of 4 bits, and what tells which runtime computes them right."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers
from tflite_net import smooth_images

from kapps import InputError
from kapps.tflite import Runner, convert, four_bits, inspect, read_metadata
from kapps.tflite.inspection.versions import oldest_runtime
from kapps.tflite.verification import compare, predict


def net() -> keras.Model:
    x = image = keras.Input((20, 20, 3))
    x = layers.Conv2D(32, 3, strides=2, activation="relu6", name="stem")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(x)
    x = layers.Conv2D(64, 1, activation="relu6", name="point")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(64, activation="relu", name="hidden")(x)
    return keras.Model(image, layers.Dense(7, activation="softmax", name="classes")(x), name="net")


@pytest.fixture(scope="module")
def model():
    return net()


@pytest.mark.parametrize(
    ("quantization", "types", "runtime"),
    [
        ("int4", {"stem": "INT4", "point": "INT4", "hidden": "INT4"}, "2.19"),
        (
            "int4_blockwise",
            {"stem": "INT8", "depthwise": "INT8", "point": "INT8", "hidden": "INT4"},
            "2.20",
        ),
    ],
)
def test_a_file_of_four_bits(model, quantization, types, runtime, tmp_path):
    pytest.importorskip("ai_edge_quantizer")
    pixels = smooth_images(12, 20)
    made = convert(
        model,
        tmp_path / "net.tflite",
        quantization=quantization,
        calibration=pixels[::2],
        verification=pixels[1::2],
        labels=list("abcdefg"),
    )
    assert read_metadata(made.path).labels == tuple("abcdefg")
    figures = compare(predict(model, pixels), Runner(made.path).predict(pixels))
    assert figures.drift < 0.05
    found = inspect(made.path)
    assert found.variant == quantization
    assert found.oldest_runtime == runtime
    assert found.min_runtime_version.startswith(runtime)
    tensors = found.subgraphs[0].tensors
    kernels = {
        layer: tensors[op.inputs[1]]
        for op in found.operations
        for layer in types
        if f"/{layer}" in tensors[op.outputs[0]].name.split(";")[0] and len(op.inputs) == 3
    }
    assert {layer: tensor.dtype for layer, tensor in kernels.items()} == types
    for tensor in kernels.values():
        numbers = int(np.prod(tensor.shape))
        assert tensor.bytes == (numbers // 2 if tensor.dtype == "INT4" else numbers)
    assert kernels["hidden"].block == (32 if quantization == "int4_blockwise" else 0)
    if quantization == "int4_blockwise":
        assert "in blocks of 32" in str(found)


def test_the_kernels_are_read_as_they_are_stored(model, tmp_path):
    """What the correction takes for a kernel is what the runtime computes with."""
    pytest.importorskip("ai_edge_quantizer")
    for quantization in ("int4", "int4_blockwise"):
        path = tmp_path / f"{quantization}.tflite"
        convert(model, path, quantization=quantization, verification=smooth_images(4, 20))
        file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        tensors = file.subgraphs[0].tensors
        compared = 0
        for op in file.subgraphs[0].operators:
            name = tensors[op.outputs[0]].name.decode().split(";")[0]
            if len(op.inputs) != 3 or ("/hidden" not in name and "/point" not in name):
                continue
            layer = "hidden" if "/hidden" in name else "point"
            kernel = four_bits._kernel(file, op)
            real = model.get_layer(layer).kernel.numpy().T.reshape(kernel.shape)
            step = np.abs(real).max() / (7 if tensors[op.inputs[1]].type == 17 else 127)
            assert np.abs(kernel - real).max() <= 1.01 * step
            assert np.corrcoef(kernel.ravel(), real.ravel())[0, 1] > 0.97
            compared += 1
        assert compared == 2


def test_without_the_extra_a_line_says_what_to_install(tmp_path):
    """In a fresh process, before an image is read."""
    code = (
        "import sys; sys.modules['ai_edge_quantizer'] = None\n"
        "from kapps.tflite.programs import convert\n"
        "convert.run()"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", code, "--model=LeNet5", "--calibration=folder:nowhere"),
            *(f"--output={tmp_path}/net.tflite", "--quantization=int4"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode and "Traceback" not in done.stderr
    assert "made by ai-edge-quantizer: pip install 'kapps[quantizer]'" in done.stderr


def test_the_runtime_of_weights_of_four_bits():
    assert oldest_runtime("CONV_2D", 1) == "1.5"
    assert oldest_runtime("CONV_2D", 1, four_bits=True) == "2.19"
    assert oldest_runtime("FULLY_CONNECTED", 1, four_bits=True) == "2.14"
    assert oldest_runtime("FULLY_CONNECTED", 12, four_bits=True) == "2.17"  # what it needs anyway
    assert oldest_runtime("FULLY_CONNECTED", 1, four_bits=True, blocks=True) == "2.20"
    assert oldest_runtime("CONV_2D", 99, four_bits=True) is None


def test_a_file_for_a_newer_runtime_says_so(model, tmp_path):
    path = tmp_path / "net.tflite"
    convert(model, path, verification=smooth_images(4, 20))
    file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    for code in file.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.CONV_2D:
            code.version = 99
    path.write_bytes(four_bits.packed(file))
    with pytest.raises(
        InputError,
        match=r"net.tflite needs a newer runtime than LiteRT [\d.]+: pip install -U ai-edge-litert "
        r"\(.*CONV_2D.*99.*\)$",
    ):
        Runner(path)
