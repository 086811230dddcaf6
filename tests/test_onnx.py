"""ONNX files: what ONNX Runtime makes of them, alone in a fresh process, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import onnx
import pytest
from keras import layers
from programs import run_here
from tflite_net import LABELS, phone_nets, small_net, smooth_images

import kapps
from kapps import InputError
from kapps.tflite import ConversionError, convert, onnx_file
from kapps.tflite.verification import predict

pytest_plugins = ["tflite_fixtures"]

# As someone has it who was given the file.
_ALONE = """
import sys
import numpy, onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = numpy.load(sys.argv[2]).astype("float32")
labels = session.get_modelmeta().custom_metadata_map["labels"].split("\\n")
for row in session.run(["probability"], {"image": images})[0]:
    print(labels[row.argmax()])
assert "tensorflow" not in sys.modules and "kapps" not in sys.modules
"""


@pytest.fixture(scope="module")
def file(net, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    done = convert(
        net,
        path,
        file_format="onnx",
        verification=digits[1][0],
        labels=LABELS,
        licence="Apache-2.0",
        description="Handwritten digits.",
    )
    assert done.verification.agreement == 1
    assert done.verification.max_error < 1e-5
    return path


def test_a_process_with_onnx_runtime_alone_names_the_digits(file, net, digits, tmp_path):
    images = digits[1][0]
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", _ALONE, os.fspath(file), os.fspath(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == [LABELS[i] for i in predict(net, images).argmax(axis=1)]


def test_what_the_file_says_about_itself(file, net):
    graph = onnx.load(file)
    onnx.checker.check_model(graph, full_check=True)
    properties = {entry.key: entry.value for entry in graph.metadata_props}
    assert properties["license"] == "Apache-2.0"
    assert properties["Image.NominalPixelRange"] == "NominalRange_0_255"
    assert properties["weights_sha256"] == kapps.tflite.weights_sha256(net)[0]
    assert graph.doc_string == "Handwritten digits."
    assert {entry.version for entry in graph.opset_import if not entry.domain} == {17}
    (image,) = graph.graph.input
    sides = [side.dim_value for side in image.type.tensor_type.shape.dim]
    assert sides == [0, 16, 16, 3]  # any number of images


def test_a_transposition_at_the_input_and_no_more(file):
    """tf2onnx leaves one at each layer where a number is no vector."""
    operations = [node.op_type for node in onnx.load(file).graph.node]
    assert operations.count("Transpose") == 1
    assert "BatchNormalization" not in operations


def _foreign() -> keras.Model:
    """Layers that kapps has not, two classes in one unit, and normalization outside."""
    x = image = keras.Input((24, 32, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", name="stem")(x)
    x = layers.LeakyReLU()(layers.BatchNormalization()(x))
    x = y = layers.Conv2D(32, 3, groups=4, padding="same", activation="silu", name="groups")(x)
    x = layers.Conv2D(32, 3, groups=8, dilation_rate=2, padding="same", name="dilated")(x)
    x = layers.SeparableConv2D(32, 3, padding="same", activation="elu")(layers.Add()([x, y]))
    x = keras.ops.concatenate([x, keras.ops.softplus(y)], axis=-1)
    x = layers.UpSampling2D(2)(layers.AveragePooling2D(3, strides=2, padding="same")(x))
    x = layers.Conv2DTranspose(8, 3, strides=2, activation="gelu")(x)
    x = layers.LayerNormalization()(layers.GlobalMaxPooling2D()(x))
    return keras.Model(image, layers.Dense(1, activation="sigmoid")(x), name="foreign")


@pytest.mark.filterwarnings("ignore:weak check")
def test_a_model_that_is_not_ours(tmp_path):
    model = _foreign()
    images = np.random.default_rng(0).integers(0, 256, (5, 24, 32, 3), dtype="uint8")
    path = tmp_path / "net.onnx"
    convert(model, path, file_format="onnx", verification=images, mean=127.5, std=127.5)
    actual = onnx_file.OnnxRunner(path).predict(images)
    (p,) = predict(model, images / 127.5 - 1).T
    np.testing.assert_allclose(actual, np.stack([1 - p, p], axis=1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:weak check")
@pytest.mark.parametrize("name", phone_nets("MobileNetV3Small"))
def test_the_networks_convert(name, tmp_path):
    model = getattr(kapps, name)(input_shape=(32, 32, 3), classes=10)
    path = tmp_path / "net.onnx"
    convert(model, path, file_format="onnx", verification=smooth_images(8, 32))
    operations = [node.op_type for node in onnx.load(path).graph.node]
    shuffles = 16 if name == "ShuffleNet" else 0  # each behind groups, which nothing folds
    assert operations.count("Transpose") <= 1 + 3 * shuffles


@pytest.mark.slow
def test_the_program(tmp_path, capsys):
    model = kapps.LeNet5(input_shape=(32, 32, 3), classes=10)
    weights = tmp_path / "net.safetensors"
    kapps.save_weights(model, weights)
    arguments = (
        f"--model=LeNet5 --weights={weights} --image_size=32 --classes=10 --calibration=digits "
        f"--format=onnx --output={tmp_path}/net.onnx"
    )
    code, stdout, stderr = run_here("tflite.programs.convert", arguments, capsys)
    assert not code, stderr
    assert "net.onnx: ONNX, float32 input" in stdout
    assert onnx_file.OnnxRunner(tmp_path / "net.onnx").properties["labels"].startswith("0\n1\n")

    arguments += " --quantization=int8"
    code, _, stderr = run_here("tflite.programs.convert", arguments, capsys)
    assert code == 2
    assert "ONNX files are float32, not int8; leave --quantization out" in stderr


def test_a_file_that_is_wrong_replaces_none(file, net, digits, tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(file.read_bytes())

    def doubled(graph, operations):
        for constant in operations:
            if constant.type == "Const" and constant.get_tensor_value(as_list=False).ndim == 4:
                constant.set_tensor_value(2 * constant.get_tensor_value(as_list=False))
        return operations

    monkeypatch.setattr(onnx_file, "_not_scalar", doubled)
    with pytest.raises(ConversionError, match=r"net\.onnx: the float32 file does not do what"):
        convert(net, path, file_format="onnx", verification=digits[1][0])
    assert path.read_bytes() == file.read_bytes()
    assert os.listdir(tmp_path) == ["net.onnx"]


class _Erfinv(layers.Layer):
    def call(self, x):
        return keras.ops.erfinv(x)


def test_an_operation_that_onnx_lacks(tmp_path):
    x = image = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(_Erfinv(name="odd")(layers.Conv2D(4, 3)(x)))
    model = keras.Model(image, layers.Dense(10, activation="softmax")(x))
    with pytest.raises(InputError, match=r"ONNX has no operation for Erfinv in layer 'odd'; rep"):
        onnx_file.write_onnx(model, tmp_path / "net.onnx", kapps.tflite.Metadata("net", LABELS))
    assert not os.listdir(tmp_path)


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(InputError, match=r"pip install 'kapps\[onnx\]'"):
        convert(
            small_net(), tmp_path / "a.onnx", file_format="onnx", verification=smooth_images(8, 16)
        )


def test_no_onnx_file(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("not one")
    with pytest.raises(InputError, match=r"net\.onnx is no ONNX file that runs here"):
        onnx_file.OnnxRunner(path)
