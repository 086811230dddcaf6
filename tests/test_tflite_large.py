"""Large networks are converted without TensorFlow's converter holding their weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers
from nights import at_night
from tflite_net import smooth_images

from kapps.tflite import content, convert, refinement, verification
from kapps.tflite.file_facts import read_graph
from kapps.tflite.interpreter import Runner
from kapps.tflite.large import NotFound, ranges, stand_ins
from kapps.tflite.passes import graph as graph_module
from kapps.tflite.passes import run_passes
from kapps.tflite.passes.graph import Scaled, filters_at_once, settle, sharing_weights


def net(groups: int = 2) -> keras.Model:
    """All that a large convolution may be, with small ones between them."""
    x = image = keras.Input((20, 20, 3))
    x = layers.Conv2D(64, 3, padding="same", activation="relu", name="small")(x)
    x = layers.Conv2D(96, 3, strides=2, padding="same", name="strided")(x)
    x = skip = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(192, 3, dilation_rate=2, padding="same", activation="relu6", name="wide")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(96, (3, 2), padding="same", use_bias=False, name="narrow")(x)
    x = layers.ReLU()(layers.Add(name="add")([x, skip]))
    x = layers.Conv2D(96, 3, groups=groups, padding="same", name="grouped")(x)
    x = layers.Conv2D(384, 1, activation="swish", name="point")(x)
    x = layers.Conv2D(64, 10, name="flat")(x)  # over the whole map
    x = layers.Conv2D(1024, 1, name="one")(x)
    x = layers.Dense(7, activation="softmax", name="classes")(layers.Flatten()(x))
    model = keras.Model(image, x, name="net")
    random = np.random.default_rng(0)
    for weight in model.weights:
        if "kernel" not in weight.path:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    wide = model.get_layer("wide").kernel
    wide.assign(wide * (np.arange(192) != 5))  # a filter of nothing
    return model


def images() -> np.ndarray:
    return smooth_images(6, 20)


def read(path: Path):
    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def graph_of(model):
    """All that the file's graph says, and what its tensors hold."""
    (graph,) = model.subgraphs
    tensors = []
    for tensor in graph.tensors:
        quantized = tensor.quantization
        data = model.buffers[tensor.buffer].data
        tensors.append(
            (
                tensor.name,
                tuple(tensor.shape),
                tensor.type,
                None
                if quantized is None or quantized.scale is None
                else (list(quantized.scale), list(quantized.zeroPoint)),
                None if data is None else bytes(data),
            )
        )
    operations = [
        (
            vars(model.operatorCodes[op.opcodeIndex]),
            list(op.inputs),
            list(op.outputs),
            None if op.builtinOptions is None else vars(op.builtinOptions),
        )
        for op in graph.operators
    ]
    (runtime,) = [
        bytes(model.buffers[note.buffer].data)
        for note in model.metadata
        if note.name == b"min_runtime_version"
    ]
    return tensors, operations, list(graph.inputs), list(graph.outputs), runtime


@pytest.mark.parametrize(
    ("quantization", "groups"),
    [("float32", 1), ("dynamic", 1), ("int8", 2), *at_night(("float16", 1), ("int8", 1))],
)
def test_the_file_is_that_of_the_converter(quantization, groups, tmp_path, monkeypatch):
    """Bit by bit, the weights' rounding included."""
    found = []
    monkeypatch.setattr(refinement, "STEPS", ())  # of which large networks have none

    def remembered(model):
        found.append(stand_ins.with_stand_ins(model))
        return found[-1]

    monkeypatch.setattr(content, "with_stand_ins", remembered)
    model = net(groups)
    files = []
    for least in (0, 1 << 40):
        monkeypatch.setattr(stand_ins, "LEAST_BYTES", least)
        path = tmp_path / f"{least}.tflite"
        convert(model, path, quantization=quantization, calibration=images())
        files.append(graph_of(read(path)))
    ((small, stood),) = found
    # strided, wide, narrow, grouped if it is not, point, flat, one
    assert len(stood) == 8 - groups
    assert small.count_params() < model.count_params() / 8
    for ours, theirs in zip(*files, strict=True):
        assert ours == theirs


@pytest.mark.parametrize("quantization", ["float16", "int8", *at_night("float32", "dynamic")])
def test_dense_layers_are_convolutions(quantization, tmp_path, monkeypatch):
    """The converter, too, is to see fewer weights of them; the file computes the same."""
    x = image = keras.Input((20, 20, 3))
    x = layers.Conv2D(32, 5, strides=5, activation="relu", name="patches")(x)
    x = layers.Dense(96, use_bias=False, name="norm_follows")(layers.Flatten()(x))
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Dense(64, activation="swish", name="second")(x)
    model = keras.Model(image, layers.Dense(7, activation="softmax", name="classes")(x))
    random = np.random.default_rng(0)
    for weight in model.get_layer("norm").weights:
        weight.assign(random.uniform(0.5, 1.5, weight.shape))
    monkeypatch.setattr(refinement, "STEPS", ())
    given, operations = [], []
    for least in (0, 1 << 40):
        monkeypatch.setattr(stand_ins, "LEAST_BYTES", least)
        monkeypatch.setattr(stand_ins, "_LEAST_DENSE_BYTES", 16 << 10)
        path = tmp_path / f"{least}.tflite"
        convert(model, path, quantization=quantization, calibration=images())
        given.append(Runner(path).predict(images()))
        operations.append([op.name for op in read_graph(path.read_bytes()).operations])
    assert [names.count("FULLY_CONNECTED") for names in operations] == [1, 3]
    assert operations[0].count("CONV_2D") == 3
    # Of int8, a rounding may fall on the other side.
    tolerance = 1 / 256 if quantization == "int8" else 1e-6
    np.testing.assert_allclose(given[0], given[1], rtol=0, atol=1.01 * tolerance)


def test_it_is_what_happens_to_large_networks():
    """Hundreds of MiB of weights, of which the process holds no more than one copy."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("convert_large.py"))],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["weights"] > 300
    # TensorFlow takes eleven times the weights.
    assert found["peak"] < 1.3 * found["weights"]


def test_folded_kernels_are_computed_when_they_are_asked_for():
    """A second copy of the network would be held until the file is there."""
    model = net()
    folded = run_passes(model)
    with sharing_weights():
        shared = run_passes(model)
    held = shared.get_layer("strided").kernel.value
    assert isinstance(held, Scaled)
    assert not isinstance(shared.get_layer("small").kernel.value, Scaled)  # too small for it
    for ours, theirs in zip(shared.weights, folded.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
    settle(shared)
    assert not any(isinstance(weight.value, Scaled) for weight in shared.weights)
    values = images().astype("float32")
    np.testing.assert_array_equal(
        shared.predict(values, verbose=0), folded.predict(values, verbose=0)
    )


def test_any_part_of_a_kernel_times_factors(monkeypatch):
    monkeypatch.setattr(graph_module, "_AT_ONCE", 1000)
    random = np.random.default_rng(0)
    kernel = random.normal(size=(3, 2, 6, 32)).astype("float32")
    by_filter, by_channel = random.normal(size=32), random.normal(size=(6, 1))
    once = (kernel * by_filter).astype("float32")
    twice = (once * by_channel).astype("float32")
    scaled = Scaled(Scaled(kernel, by_filter), by_channel)
    assert scaled.shape == kernel.shape
    np.testing.assert_array_equal(scaled.numpy(), twice)
    np.testing.assert_array_equal(scaled[..., 5:9], twice[..., 5:9])
    parts = [scaled[..., some] for some in filters_at_once(scaled.shape)]
    assert len(parts) > 4
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), twice)


def test_a_file_that_is_too_large_to_be_held_twice(tmp_path, monkeypatch):
    """XNNPACK, which has a copy of the weights, does not run it; all else is the same."""
    found = []

    class Seen(Runner):
        def predict(self, values):
            found.append(self.delegate_pieces)
            return super().predict(values)

    monkeypatch.setattr(verification, "Runner", Seen)
    for most in (1 << 40, 0):
        monkeypatch.setattr(verification, "_MOST_TWICE", most)
        done = convert(net(), tmp_path / "a.tflite", calibration=images())
        assert done.verification.agreement == 1
    assert found[0] > 0
    assert found[1] == 0


def test_what_the_converter_has_changed_is_not_filled(tmp_path, monkeypatch):
    """Then the network is converted as it is."""
    monkeypatch.setattr(stand_ins, "LEAST_BYTES", 0)
    refused = []

    def changed(self, values):
        refused.append(self)
        return False

    monkeypatch.setattr(stand_ins.StandIn, "is_in", changed)
    done = convert(net(), tmp_path / "a.tflite", quantization="int8", calibration=images())
    assert refused
    assert done.verification.agreement == 1


def test_a_stand_in_is_found_as_it_was_given():
    random = np.random.default_rng(0)
    kernel = random.normal(size=(3, 3, 64, 32)).astype("float32")
    largest = abs(kernel).max(axis=(0, 1, 2))
    signs = random.choice(np.array([-1, 1], "float32"), 32)
    stood = stand_ins.StandIn(kernel, 4, largest, signs)
    values = np.broadcast_to((signs * largest)[:, None, None, None], stood.shape)
    integers = np.sign(values).astype("int8") * 127
    for found in (values, values.astype("float16"), integers):
        assert stood.is_in(found)
        assert not stood.is_in(-found)
        assert not stood.is_in(found[::-1])
        assert not stood.is_in(found + np.arange(4, dtype=found.dtype))
    assert not stood.is_in(2 * values)


@pytest.mark.parametrize("quantization", ["float16", *at_night("float32", "dynamic")])
def test_a_kernel_that_the_converter_has_scaled_is_not_found(quantization, monkeypatch):
    """As it does where the passes have left a batch norm behind a convolution."""
    monkeypatch.setattr(stand_ins, "LEAST_BYTES", 0)
    model = run_passes(net(), quantization=quantization)
    whole, stood = stand_ins.with_stand_ins(model)
    content._content(whole, quantization, "float32", None, None, stood)
    whole, stood = stand_ins.with_stand_ins(net())
    with pytest.raises(NotFound):
        content._content(whole, quantization, "float32", None, None, stood)


def outputs_of(model: keras.Model, name: str, values: np.ndarray) -> np.ndarray:
    part = keras.Model(model.inputs, model.get_layer(name).output)
    return part.predict(values, verbose=0)


def test_the_ranges_are_those_of_the_network(tmp_path, monkeypatch):
    """TensorFlow's calibrator takes a sum, which lies where a term was, for that term."""
    monkeypatch.setattr(refinement, "STEPS", ())
    x = image = keras.Input((20, 20, 3))
    x = skip = layers.Conv2D(16, 3, padding="same", activation="relu", name="stem")(x)
    x = layers.Conv2D(16, 3, padding="same", name="branch")(x)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, skip]))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(5, activation="softmax")(x))
    convert(model, tmp_path / "a.tflite", quantization="int8", calibration=images())
    values = images().astype("float32")
    values[0, 0, 0], values[0, -1, -1] = 0, 255  # as the calibration sets them
    (graph,) = read(tmp_path / "a.tflite").subgraphs
    for name in ("stem", "branch", "relu"):
        true = outputs_of(model, name, values)
        (tensor,) = [
            tensor
            for tensor in graph.tensors
            if name.encode() in tensor.name.split(b";")[0]
            and len(tensor.shape) == 4
            and tensor.shape[0] == 1
        ]
        (scale,), (zero,) = tensor.quantization.scale, tensor.quantization.zeroPoint
        low, high = (-128 - zero) * scale, (127 - zero) * scale
        assert low == pytest.approx(min(true.min(), 0), abs=float(scale))
        assert high == pytest.approx(true.max(), abs=float(scale))


def test_parts_find_what_the_whole_finds(tmp_path, monkeypatch):
    """However many there are, and however few images go through one before the next."""
    monkeypatch.setattr(stand_ins, "LEAST_BYTES", 0)
    asked = []

    def remembered(model, weights, values, folder):
        asked.append((model, weights, list(values)))
        return find(*asked[-1], folder)

    find = ranges.find_ranges
    monkeypatch.setattr(ranges, "find_ranges", remembered)
    convert(net(), tmp_path / "a.tflite", quantization="int8", calibration=images())
    ((model, weights, values),) = asked
    found, files = [], []
    for part, between in ((1 << 40, 1 << 40), (1 << 16, 1 << 18), (1, 1)):
        monkeypatch.setattr(ranges, "_PART_BYTES", part)
        monkeypatch.setattr(ranges, "_BETWEEN_BYTES", between)
        folder = tmp_path / str(part)
        folder.mkdir()
        found.append(find(model, weights, values, folder))
        files.append(len(list(folder.iterdir())))
    assert found[0] == found[1] == found[2]
    assert files == sorted({1, *files})  # more and more of them
