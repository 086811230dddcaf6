"""Metadata in a .tflite file: written beside the weights, read back, and safe to read."""

from __future__ import annotations

import dataclasses
import io
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from tflite_plain import plain_file

from kapps import InputError
from kapps.tflite import Metadata, Runner, read_metadata
from kapps.tflite import metadata as metadata_module
from kapps.tflite.metadata import (
    BUFFER_NAME,
    LABEL_FILE,
    WEIGHTS_FILE,
    pixels_to_input,
    weights_sha256,
    with_metadata,
)

pytest_plugins = ["tflite_fixtures"]

METADATA = Metadata(
    name="net",
    labels=("café", "猫", "a label, with; signs"),
    description="Zwölf Boxkämpfer.",
    version="1.2",
    author="me",
    licence="MIT",
    mean=(127.5,),
    std=(128.0,),
    weights_sha256="0123456789abcdef" * 4,
    weights_name="a net.safetensors",
)


def _model(weights: np.ndarray, padding: int) -> bytes:
    """A .tflite file that returns `weights`: no operation, one constant of 16-byte alignment."""
    b = flatbuffers.Builder(1024)
    description = b.CreateString("x" * padding)
    b.StartVector(1, weights.nbytes, 16)
    b.head = b.head - weights.nbytes
    b.Bytes[b.head : b.head + weights.nbytes] = weights.tobytes()
    data = b.EndVector()
    buffers = []
    for content in (None, data):
        schema.BufferStart(b)
        if content:
            schema.BufferAddData(b, content)
        buffers.append(schema.BufferEnd(b))
    tensors = []
    for name, shape, buffer in (("image", (1, 4, 4, 3), 0), ("weights", weights.shape, 1)):
        text = b.CreateString(name)
        dimensions = b.CreateNumpyVector(np.array(shape, "int32"))
        schema.TensorStart(b)
        schema.TensorAddName(b, text)
        schema.TensorAddShape(b, dimensions)
        schema.TensorAddBuffer(b, buffer)
        tensors.append(schema.TensorEnd(b))
    inputs = b.CreateNumpyVector(np.array([0], "int32"))
    outputs = b.CreateNumpyVector(np.array([1], "int32"))
    tensors_vector = metadata_module._offsets(b, tensors)
    operators = metadata_module._offsets(b, [])
    schema.SubGraphStart(b)
    schema.SubGraphAddTensors(b, tensors_vector)
    schema.SubGraphAddInputs(b, inputs)
    schema.SubGraphAddOutputs(b, outputs)
    schema.SubGraphAddOperators(b, operators)
    graph = metadata_module._offsets(b, [schema.SubGraphEnd(b)])
    codes, buffer_vector = metadata_module._offsets(b, []), metadata_module._offsets(b, buffers)
    schema.ModelStart(b)
    schema.ModelAddVersion(b, 3)
    schema.ModelAddDescription(b, description)
    schema.ModelAddOperatorCodes(b, codes)
    schema.ModelAddSubgraphs(b, graph)
    schema.ModelAddBuffers(b, buffer_vector)
    b.Finish(schema.ModelEnd(b), file_identifier=b"TFL3")
    return bytes(b.Output())


@pytest.fixture
def file(tmp_path):
    def write(content: bytes):
        path = tmp_path / "model.tflite"
        path.write_bytes(content)
        return path

    return write


def test_round_trip(file):
    content = with_metadata(_model(np.ones((1, 3), "float32"), 0), METADATA)
    assert read_metadata(file(content)) == METADATA


@pytest.mark.parametrize("padding", range(0, 20, 3))
def test_weights_keep_value_and_alignment(padding, file):
    weights = np.random.default_rng(0).random((1, 3)).astype("float32")
    content = with_metadata(_model(weights, padding), METADATA)
    model = schema.Model.GetRootAs(content, 0)
    assert model.Version() == 3
    assert model.Description() == b"x" * padding
    for index in range(1, model.BuffersLength()):
        buffer = model.Buffers(index)
        assert buffer._tab.Vector(buffer._tab.Offset(4)) % 16 == 0
    interpreter = Interpreter(str(file(content)))
    interpreter.allocate_tensors()
    interpreter.invoke()
    output = interpreter.get_output_details()[0]["index"]
    np.testing.assert_array_equal(interpreter.get_tensor(output), weights)


def test_real_files_answer_the_same_with_and_without(conversions, digits, monkeypatch, tmp_path):
    """The file without its first bytes and its zip is the converter's own."""
    for conversion in conversions.values():
        content = conversion.path.read_bytes()
        original = content[content.rindex(b"TFL3") - 4 :]  # the old header stays in the tail
        (tmp_path / "original.tflite").write_bytes(original)
        answers = []
        for path in (conversion.path, tmp_path / "original.tflite"):
            interpreter = Interpreter(str(path))
            interpreter.allocate_tensors()
            details = interpreter.get_input_details()[0]
            image = digits[1][0][:1].astype(details["dtype"])
            interpreter.set_tensor(details["index"], image)
            interpreter.invoke()
            answers.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
        np.testing.assert_array_equal(*answers)
        with pytest.raises(InputError, match="carries no metadata"):
            read_metadata(tmp_path / "original.tflite")


def test_the_same_input_gives_the_same_bytes():
    model = _model(np.ones((1, 3), "float32"), 0)
    assert with_metadata(model, METADATA) == with_metadata(model, METADATA)


def test_labels_and_sum_lie_in_an_uncompressed_zip():
    content = with_metadata(_model(np.ones((1, 3), "float32"), 0), METADATA)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == [LABEL_FILE, WEIGHTS_FILE]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read(WEIGHTS_FILE).decode() == (
            "0123456789abcdef" * 4 + "  a net.safetensors\n"
        )


def test_without_a_sum(file):
    without = dataclasses.replace(METADATA, weights_sha256="", weights_name="")
    content = with_metadata(_model(np.ones((1, 3), "float32"), 0), without)
    assert read_metadata(file(content)) == without
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == [LABEL_FILE]


def test_a_sum_of_weights_in_memory(file):
    nameless = dataclasses.replace(METADATA, weights_name="")
    content = with_metadata(_model(np.ones((1, 3), "float32"), 0), nameless)
    assert read_metadata(file(content)) == nameless


def test_the_sum_of_a_file(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert weights_sha256(None, tmp_path / "w.safetensors") == (digest, "w.safetensors")
    with pytest.raises(InputError, match="cannot read"):
        weights_sha256(None, tmp_path / "none.safetensors")


def test_the_sum_of_weights_depends_on_values_and_shapes_alone():
    def net(name, weights):
        image = keras.Input((4,))
        model = keras.Model(image, layers.Dense(2, name=name)(image))
        model.set_weights(weights)
        return model

    kernel, bias = np.arange(8, dtype="float32").reshape(4, 2), np.zeros(2, "float32")
    digest, name = weights_sha256(net("a", [kernel, bias]))
    assert (len(digest), name) == (64, "")
    assert weights_sha256(net("b", [kernel, bias])) == (digest, "")
    assert weights_sha256(net("a", [kernel, bias + 1]))[0] != digest
    assert weights_sha256(net("a", [kernel[::-1], bias]))[0] != digest


def test_a_sum_that_is_none(file):
    content = _with_zip({LABEL_FILE: b"a\n", WEIGHTS_FILE: b"none\n"})
    with pytest.raises(InputError, match="malformed metadata"):
        read_metadata(file(content))


def test_metadata_is_not_added_twice():
    content = with_metadata(_model(np.ones((1, 3), "float32"), 0), METADATA)
    with pytest.raises(InputError, match="already carries metadata"):
        with_metadata(content, METADATA)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no .tflite file"),
        (b"hello, world, here I am", "no .tflite file"),
        (b"\x00\x00\x00\x7fTFL3" + bytes(64), "malformed"),
    ],
)
def test_not_a_model(content, message, file):
    with pytest.raises(InputError, match=message):
        read_metadata(file(content))


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_metadata(tmp_path / "none.tflite")


def test_a_label_bomb_is_refused(file):
    """A zip whose member is, or says that it is, larger than any list of labels."""
    monster = _with_zip({LABEL_FILE: bytes(metadata_module._MAX_LABEL_BYTES + 1)})
    with pytest.raises(InputError, match="refused"):
        read_metadata(file(monster))


def test_a_missing_label_file(file):
    with pytest.raises(InputError, match="malformed metadata"):
        read_metadata(file(_with_zip({"other.txt": b"a\n"})))


def _with_zip(members: dict[str, bytes]) -> bytes:
    content = with_metadata(_model(np.ones((1, 3), "float32"), 0), METADATA)
    start = content.index(b"PK\x03\x04")
    output = io.BytesIO()
    output.write(content[:start])
    with zipfile.ZipFile(output, "a", compression=zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return output.getvalue()


def test_random_damage_is_an_input_error_or_harmless(file):
    """Nothing but `InputError` comes out of a damaged file, whatever byte is hit."""
    good = with_metadata(_model(np.ones((1, 3), "float32"), 0), METADATA)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(600):
        content = bytearray(good)
        for position in random.integers(0, len(content), 3):
            content[position] = random.integers(0, 256)
        try:
            read_metadata(file(bytes(content)))
        except InputError:
            refused += 1
    assert 30 < refused < 570


def test_buffer_name_is_the_one_that_readers_look_for():
    content = with_metadata(_model(np.ones((1, 3), "float32"), 0), METADATA)
    model = schema.Model.GetRootAs(content, 0)
    names = [model.Metadata(i).Name() for i in range(model.MetadataLength())]
    assert names == [BUFFER_NAME.encode()] == [b"TFLITE_METADATA"]


# The normalization that a file asks for.


def _asking(**changes):
    return dataclasses.replace(METADATA, **changes)


@pytest.mark.parametrize(
    ("metadata", "dtype", "quantization", "expected"),
    [
        (None, "float32", (0.0, 0), [0, 51, 255]),
        (_asking(mean=(127.5,), std=(127.5,)), "float32", (0.0, 0), [-1, -0.6, 1]),
        (_asking(mean=(), std=(255.0,)), "float32", (0.0, 0), [0, 0.2, 1]),
        (_asking(mean=(0.0, 51.0, 5.0), std=(1.0, 2.0, 50.0)), "float32", (0.0, 0), [0, 0, 5]),
        (_asking(mean=(0.0,), std=(255.0,)), "int8", (1 / 255, -128), [-128, -77, 127]),
        (_asking(mean=(127.5,), std=(127.5,)), "uint8", (2 / 255, 128), [0, 51, 255]),
        (None, "uint8", (1 / 255, 0), [0, 51, 255]),
        (None, "int16", (255 / 32767, 0), [0, 6553, 32767]),
    ],
)
def test_pixels_become_what_the_file_asks_for(metadata, dtype, quantization, expected):
    pixels = np.array([[[[0, 51, 255]]]], "uint8")
    value = pixels_to_input(pixels, metadata, dtype, quantization)
    assert value.dtype == dtype
    np.testing.assert_allclose(value[0, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("changes", [{"mean": (1.0, 2.0)}, {"std": (0.0,)}])
def test_a_normalization_that_is_none_is_refused(changes):
    with pytest.raises(InputError, match="metadata states mean"):
        pixels_to_input(np.zeros((1, 2, 2, 3), "uint8"), _asking(**changes), "float32")


def test_a_runner_obeys_the_metadata(tmp_path):
    """A network that wants -1..1, with metadata that says so, is given just that."""
    content = plain_file(lambda image: image[:, 0, 0] * 2, (1, 2, 2, 3))
    (tmp_path / "plain.tflite").write_bytes(content)
    stated = with_metadata(content, _asking(mean=(127.5,), std=(127.5,)))
    (tmp_path / "stated.tflite").write_bytes(stated)
    images = np.full((1, 2, 2, 3), 255, "uint8")
    np.testing.assert_array_equal(Runner(tmp_path / "plain.tflite").predict(images), [[510] * 3])
    np.testing.assert_array_equal(Runner(tmp_path / "stated.tflite").predict(images), [[2] * 3])
