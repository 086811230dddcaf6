"""Reading and writing weights: strict both ways, and nothing half done."""

from __future__ import annotations

import os

import keras
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import kapps


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return kapps.LeNet5()


@pytest.fixture
def tensors(model, tmp_path) -> dict[str, np.ndarray]:
    kapps.save_weights(model, tmp_path / "good.safetensors")
    return safetensors.numpy.load_file(tmp_path / "good.safetensors")


def refused(model, path, match: str) -> None:
    """Loading fails with that message, and the model is as before."""
    before = model.get_weights()
    with pytest.raises(kapps.InputError, match=match) as error:
        kapps.load_weights(model, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_published_names_and_layouts(tensors):
    assert {name: value.shape for name, value in tensors.items()} == {
        "conv1.weight": (6, 1, 5, 5),
        "conv1.bias": (6,),
        "conv2.weight": (16, 6, 5, 5),
        "conv2.bias": (16,),
        "fc1.weight": (120, 400),
        "fc1.bias": (120,),
        "fc2.weight": (84, 120),
        "fc2.bias": (84,),
        "fc3.weight": (10, 84),
        "fc3.bias": (10,),
    }


def test_names_with_dots_and_underscores(tmp_path):
    net = kapps.MobileNetV3Small(input_shape=(32, 32, 3))
    kapps.save_weights(net, tmp_path / "w.safetensors")
    names = set(safetensors.numpy.load_file(tmp_path / "w.safetensors"))
    assert {"conv_stem.weight", "blocks.0.0.se.conv_reduce.bias", "bn1.running_var"} <= names


def test_missing_extra_and_misshapen_are_all_named(model, tensors, tmp_path):
    tensors["fc9.weight"] = np.zeros((2, 2), np.float32)
    del tensors["conv2.bias"]
    tensors["fc2.weight"] = np.zeros((84, 121), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "bad.safetensors")
    refused(
        model,
        tmp_path / "bad.safetensors",
        r"only in the file: fc9.weight; only in the model: conv2.bias; shapes differ: "
        r"fc2.weight: \(84, 121\) in the file, \(84, 120\) in the model",
    )


def test_the_same_layer_twice_is_refused(model, tensors, tmp_path):
    net = kapps.MobileNetV3Small(input_shape=(32, 32, 3))
    kapps.save_weights(net, tmp_path / "w.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    tensors["conv.stem.weight"] = tensors["conv_stem.weight"]
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    refused(net, tmp_path / "w.safetensors", "only in the file: conv(.|_)stem.weight")


@pytest.mark.parametrize("suffix", [".safetensors", ".weights.h5"])
def test_damaged_files(model, suffix, tmp_path):
    good = tmp_path / f"good{suffix}"
    kapps.save_weights(model, good)
    content = good.read_bytes()
    bad = tmp_path / f"bad{suffix}"
    for damaged in (b"", content[:50], content[: len(content) // 2], b"<!doctype html><html>" * 40):
        bad.write_bytes(damaged)
        refused(model, bad, "damaged|does not fit")


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 700), value=st.integers(0, 255))
def test_a_damaged_header_never_crashes(tmp_path_factory, position, value):
    """The header holds names, shapes and offsets; the tensors' bytes need a checksum."""
    model = kapps.LeNet5()
    file = tmp_path_factory.mktemp("w") / "w.safetensors"
    kapps.save_weights(model, file)
    content = bytearray(file.read_bytes())
    content[position] = value
    file.write_bytes(content)
    try:
        kapps.load_weights(model, file)
    except kapps.InputError as error:
        assert str(file) in str(error)


def test_another_network(tmp_path):
    kapps.save_weights(kapps.ShuffleNetV2_x0_5(), tmp_path / "w.safetensors")
    refused(kapps.LeNet5(), tmp_path / "w.safetensors", "and [0-9]+ more.*another network")
    kapps.save_weights(kapps.ShuffleNetV2_x0_5(), tmp_path / "w.weights.h5")
    refused(kapps.LeNet5(), tmp_path / "w.weights.h5", "another model")


def test_unknown_suffix(model, tmp_path):
    for path in (tmp_path / "model.pt", "imagenet"):
        with pytest.raises(kapps.InputError, match=r"\.safetensors or \.weights\.h5"):
            kapps.load_weights(model, path)
        with pytest.raises(kapps.InputError, match=r"\.safetensors or \.weights\.h5"):
            kapps.save_weights(model, path)


def test_a_clone_has_no_published_names(model, tmp_path):
    with pytest.raises(kapps.InputError, match="not built by kapps"):
        kapps.save_weights(keras.models.clone_model(model), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_foreign_layer_is_named(tmp_path):
    image = keras.Input((8, 8, 3))
    net = keras.Model(image, keras.layers.SeparableConv2D(4, 3, name="sep")(image))
    with pytest.raises(kapps.InputError, match="'sep'.*SeparableConv2D"):
        kapps.save_weights(net, tmp_path / "w.safetensors")


def test_normalization_travels_with_the_weights(model, tmp_path):
    model = kapps.LeNet5()
    model.get_layer("normalization").mean.assign([0.25])
    model.get_layer("normalization").std.assign([0.75])
    kapps.save_weights(model, tmp_path / "w.safetensors")
    for channels in (1, 3):
        layer = kapps.LeNet5(
            input_shape=(32, 32, channels), weights=tmp_path / "w.safetensors"
        ).get_layer("normalization")
        assert keras.ops.convert_to_numpy(layer.mean).tolist() == [0.25] * channels
        assert keras.ops.convert_to_numpy(layer.std).tolist() == [0.75] * channels


def test_gray_stem_answers_as_the_colour_stem_to_gray(tmp_path):
    colour = kapps.LeNet5(input_shape=(32, 32, 3))
    kapps.save_weights(colour, tmp_path / "w.safetensors")
    gray = kapps.LeNet5(weights=tmp_path / "w.safetensors")
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(gray(x)),
        keras.ops.convert_to_numpy(colour(x.repeat(3, -1))),
        atol=1e-5,
    )


def test_writing_keeps_the_old_file_when_it_fails(model, tmp_path, monkeypatch):
    file = tmp_path / "w.safetensors"
    kapps.save_weights(model, file)
    good = file.read_bytes()

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        kapps.save_weights(kapps.LeNet5(), file)
    assert file.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_unwritable_folder(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(kapps.InputError, match="cannot write .*w.safetensors"):
        kapps.save_weights(model, tmp_path / "file" / "w.safetensors")
