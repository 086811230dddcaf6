"""Reading and writing weights: strict both ways, and nothing half done."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess

import keras
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from make_pth_goldens import GOLDENS, trained
from pth_writer import FORMS, write_pth

import kapps
from kapps._evaluation import Evaluation

EVALUATION = Evaluation(224, 0.95, "bicubic", "center", 288, 1.0, "timm/resnet50.a1_in1k")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return kapps.LeNet5()


@pytest.fixture(scope="module")
def mobile() -> keras.Model:
    return kapps.MobileNetV3Small(input_shape=(32, 32, 3))


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> bytes:
    """Its .safetensors file."""
    file = tmp_path_factory.mktemp("saved") / "w.safetensors"
    kapps.save_weights(model, file)
    return file.read_bytes()


@pytest.fixture
def tensors(saved) -> dict[str, np.ndarray]:
    return safetensors.numpy.load(saved)


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


def test_names_with_dots_and_underscores(mobile, tmp_path):
    kapps.save_weights(mobile, tmp_path / "w.safetensors")
    names = set(safetensors.numpy.load_file(tmp_path / "w.safetensors"))
    assert {"conv_stem.weight", "blocks.0.0.se.conv_reduce.bias", "bn1.running_var"} <= names


def test_layers_before_the_input_tensor_are_not_the_networks(model, tmp_path):
    file = tmp_path / "w.safetensors"
    kapps.save_weights(model, file)
    # Of a kind that has a published form, and of one that has none.
    x = keras.layers.Conv2D(6, 1)(keras.Input((32, 32, 2)))
    x = keras.layers.Conv2D(1, 1, name="gray")(keras.layers.PReLU()(x))
    net = kapps.LeNet5(input_tensor=x, weights=file)
    own = net.weights[-len(model.weights) :]
    for a, b in zip(own, model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(kapps.InputError, match="layer 'p_re_lu.*' of LeNet5 is a PReLU"):
        kapps.save_weights(net, tmp_path / "net.safetensors")  # or theirs would be lost


def test_a_network_without_weights_in_its_head_is_strict_too(tmp_path):
    """LeNet5Original ends in the distances to fixed bitmaps."""
    net = kapps.LeNet5Original()
    kapps.save_weights(net, tmp_path / "a.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    tensors["c7.weight"] = np.zeros((1, 1), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "b.safetensors")
    refused(net, tmp_path / "b.safetensors", "only in the file: c7.weight")


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


def test_the_same_layer_twice_is_refused(mobile, tmp_path):
    kapps.save_weights(mobile, tmp_path / "w.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    tensors["conv.stem.weight"] = tensors["conv_stem.weight"]
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    refused(mobile, tmp_path / "x.safetensors", "only in the file: conv(.|_)stem.weight")


@pytest.mark.parametrize("suffix", [".safetensors", ".weights.h5"])
def test_damaged_files(model, suffix, tmp_path):
    good = tmp_path / f"good{suffix}"
    kapps.save_weights(model, good)
    content = good.read_bytes()
    bad = tmp_path / f"bad{suffix}"
    for damaged in (b"", content[:50], content[: len(content) // 2], b"<!doctype html><html>" * 40):
        bad.write_bytes(damaged)
        refused(model, bad, "damaged|does not fit")


@pytest.fixture(scope="module")
def victim() -> keras.Model:
    return kapps.LeNet5()


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 700), value=st.integers(0, 255))
def test_a_damaged_header_never_crashes(victim, saved, tmp_path_factory, position, value):
    """The header holds names, shapes and offsets; the tensors' bytes need a checksum."""
    file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    content = bytearray(saved)
    content[position] = value
    file.write_bytes(content)
    try:
        kapps.load_weights(victim, file)
    except kapps.InputError as error:
        assert str(file) in str(error)


def test_another_network(model, mobile, tmp_path):
    for suffix, reason in (
        (".safetensors", "and [0-9]+ more.*another network"),
        (".weights.h5", "another model"),
    ):
        kapps.save_weights(mobile, tmp_path / f"w{suffix}")
        refused(model, tmp_path / f"w{suffix}", reason)


def test_unknown_suffix(model, tmp_path):
    for path in (tmp_path / "model.pt", "imagenet"):
        with pytest.raises(
            kapps.InputError, match=r"\.safetensors, \.pth, \.pth\.tar or \.weights"
        ):
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


def test_gray_stem_without_preprocessing_has_the_sum_of_the_colours(tmp_path):
    """Whoever normalizes by themselves gives all colours the same numbers."""
    arguments = {"include_preprocessing": False, "classifier_activation": None}
    colour = kapps.LeNet5(input_shape=(32, 32, 3), **arguments)
    kapps.save_weights(colour, tmp_path / "w.safetensors")
    gray = kapps.LeNet5(weights=tmp_path / "w.safetensors", **arguments)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 1)).astype(np.float32)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(gray(x)),
        keras.ops.convert_to_numpy(colour(x.repeat(3, -1))),
        atol=1e-5,  # float32, numbers of about 1
    )


def imagenet_normalization(net: keras.Model) -> None:
    net.get_layer("normalization").mean.assign([0.485, 0.456, 0.406])
    net.get_layer("normalization").std.assign([0.229, 0.224, 0.225])


def test_gray_is_answered_as_colour_that_is_normalized_channel_by_channel(tmp_path):
    """Exactly, where the first convolution has no padding: here with a bias for the constant."""
    colour = kapps.LeNet5(input_shape=(32, 32, 3), classifier_activation=None)
    imagenet_normalization(colour)
    kapps.save_weights(colour, tmp_path / "w.safetensors")
    gray = kapps.LeNet5(weights=tmp_path / "w.safetensors", classifier_activation=None)
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(gray(x)),
        keras.ops.convert_to_numpy(colour(x.repeat(3, -1))),
        atol=1e-5,
    )


@pytest.mark.parametrize("with_metadata", [True, False])
def test_gray_differs_from_colour_at_the_edges_alone(with_metadata, tmp_path):
    """With padding, and a batch norm for the constant. Files of others say no mean: then it is what
    the builder has.
    """
    file, arguments = tmp_path / "w.safetensors", {"include_top": False, "depth": 8}
    colour = kapps.CifarResNet(input_shape=(16, 16, 3), **arguments)
    if with_metadata:
        imagenet_normalization(colour)
    statistics = colour.get_layer("bn1").moving_mean
    statistics.assign(np.random.default_rng(1).standard_normal(statistics.shape))
    kapps.save_weights(colour, file)
    if not with_metadata:
        safetensors.numpy.save_file(safetensors.numpy.load_file(file), file)
        (tmp_path / "w.safetensors.sha256").unlink()
    gray = kapps.CifarResNet(input_shape=(16, 16, 1), weights=file, **arguments)
    x = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1))
    a, b = (
        keras.ops.convert_to_numpy(keras.Model(net.input, net.get_layer("bn1").output)(image))
        for net, image in ((gray, x), (colour, x.repeat(3, -1)))
    )
    inside = np.s_[:, 1:-1, 1:-1]  # the kernel is 3x3
    np.testing.assert_allclose(a[inside], b[inside], atol=1e-5)  # float32, numbers of about 1
    assert np.abs(a - b).max() > 0.01


def test_gray_weights_are_loaded_as_they_are(tmp_path):
    arguments = {"input_shape": (16, 16, 1), "depth": 8}
    gray = kapps.CifarResNet(**arguments)
    kapps.save_weights(gray, tmp_path / "w.safetensors")
    again = kapps.CifarResNet(weights=tmp_path / "w.safetensors", **arguments)
    for one, other in zip(gray.weights, again.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, other)))


def test_a_stem_of_more_channels_answers_as_loud(tmp_path):
    """The published ones repeat: an image beside itself gets the answer of the image alone."""
    one = kapps.LeNet5(input_shape=(32, 32, 3))
    kapps.save_weights(one, tmp_path / "w.safetensors")
    beside = kapps.LeNet5(input_shape=(32, 32, 6), weights=tmp_path / "w.safetensors")
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(beside(np.concatenate([x, x], -1))),
        keras.ops.convert_to_numpy(one(x)),
        atol=1e-5,
    )


def test_writing_keeps_the_old_file_when_it_fails(model, tmp_path, monkeypatch):
    file = tmp_path / "w.safetensors"
    kapps.save_weights(model, file)
    good = file.read_bytes()

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(kapps.InputError, match="cannot write .*: No space left on device; free"):
        kapps.save_weights(kapps.LeNet5(), file)
    assert file.read_bytes() == good
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.safetensors", "w.safetensors.sha256"]
    kapps.load_weights(model, file)


def test_what_is_no_regular_file_stays(model, tmp_path):
    link, target = tmp_path / "link.safetensors", tmp_path / "target.safetensors"
    link.symlink_to(target.name)
    kapps.save_weights(model, link)
    assert link.is_symlink() and target.is_file() and not target.is_symlink()
    kapps.load_weights(model, link)
    pipe, folder = tmp_path / "pipe.safetensors", tmp_path / "folder.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(kapps.InputError, match="pipe.safetensors: it is no regular file"):
        kapps.save_weights(model, pipe)
    assert pipe.is_fifo()
    folder.mkdir()
    with pytest.raises(kapps.InputError, match="folder.safetensors: it is a folder; name a file"):
        kapps.save_weights(model, folder)


def test_unwritable_folder(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(kapps.InputError, match="cannot write .*w.safetensors"):
        kapps.save_weights(model, tmp_path / "file" / "w.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".weights.h5"])
def test_the_sum_beside_the_file(model, suffix, tmp_path):
    file, beside = tmp_path / f"w{suffix}", tmp_path / f"w{suffix}.sha256"
    kapps.save_weights(model, file)
    assert beside.read_text() == f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", beside.name], cwd=tmp_path, check=True)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # in a tensor: without the sum it would load
    file.write_bytes(content)
    refused(model, file, f"damaged: its SHA-256 is not that of {beside.name}")
    beside.write_text("not a sum")
    refused(model, file, re.escape(f"{beside} does not begin with a SHA-256"))
    kapps.save_weights(model, file)
    kapps.load_weights(model, file)


@pytest.mark.parametrize("crash_at", range(2))
def test_a_crash_never_leaves_a_file_with_the_sum_of_another(crash_at, tmp_path, monkeypatch):
    file = tmp_path / "w.safetensors"
    old, new = kapps.LeNet5(), kapps.LeNet5()
    kapps.save_weights(old, file)
    replace, calls = os.replace, []

    def crashing(*arguments):
        calls.append(arguments)
        if len(calls) > crash_at:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(os, "replace", crashing)
    with pytest.raises(KeyboardInterrupt):
        kapps.save_weights(new, file)
    monkeypatch.undo()
    loaded = kapps.LeNet5(weights=file)
    for a, b in zip(loaded.get_weights(), (new if crash_at else old).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_pth_files(form, model, tensors, tmp_path):
    (tmp_path / "w.pth").write_bytes(write_pth(tensors, form))
    loaded = kapps.LeNet5(weights=tmp_path / "w.pth")
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pth_files_of_another_network(model):
    refused(model, GOLDENS / "zip.pth", "zip.pth does not fit LeNet5; only in the file: ")


def small_net() -> keras.Model:
    """The network of `make_pth_goldens.trained`."""
    image = keras.Input((8, 8, 3))
    x = marked(keras.layers.Conv2D(4, 3, use_bias=False, name="stem_conv"), "stem.conv")(image)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, marked(keras.layers.Dense(3, name="fc"), "fc", head=True)(x))


def is_filled(net: keras.Model, average: bool = False) -> bool:
    wanted = trained(average)
    kernel, dense, bias = net.get_weights()
    return (
        np.array_equal(kernel.transpose(3, 2, 0, 1), wanted["stem.conv.weight"])
        and np.array_equal(dense.T, wanted["fc.weight"])
        and np.array_equal(bias, wanted["fc.bias"])
    )


@pytest.mark.parametrize(
    ("checkpoint", "key", "average"),
    [
        ("timm", None, True),
        ("timm", "state_dict", False),
        ("torchvision", None, True),  # its names begin with "module."
        ("torchvision", "model", False),
        ("tutorial", None, False),
        ("parallel", None, False),  # and these with "_orig_mod.module."
    ],
)
def test_checkpoints_of_training_programs(checkpoint, key, average):
    net = small_net()
    kapps.load_weights(net, GOLDENS / f"checkpoint_{checkpoint}.pth", key=key)
    assert is_filled(net, average)


def test_a_key_that_is_not_there(model, tmp_path):
    net = small_net()
    file = GOLDENS / "checkpoint_timm.pth"
    with pytest.raises(kapps.InputError, match="tensors at 'model'; there are: 'state_dict', 'sta"):
        kapps.load_weights(net, file, key="model")
    kapps.save_weights(model, tmp_path / "w.safetensors")
    with pytest.raises(kapps.InputError, match=r"key='model' is for \.pth files; leave it out"):
        kapps.load_weights(model, tmp_path / "w.safetensors", key="model")


def test_timms_name_of_a_checkpoint_and_wrapped_names_elsewhere(tmp_path):
    shutil.copy(GOLDENS / "checkpoint_timm.pth", tmp_path / "model_best.pth.tar")
    net = small_net()
    kapps.load_weights(net, tmp_path / "model_best.pth.tar")
    assert is_filled(net, average=True)
    wrapped = {f"module._orig_mod.{name}": value for name, value in trained().items()}
    safetensors.numpy.save_file(wrapped, tmp_path / "w.safetensors")
    kapps.load_weights(net, tmp_path / "w.safetensors")
    assert is_filled(net)
    wrapped["fc.bias"] = wrapped.pop("module._orig_mod.fc.bias")  # of one only: no wrapper
    safetensors.numpy.save_file(wrapped, tmp_path / "w.safetensors")
    refused(net, tmp_path / "w.safetensors", "only in the file: module._orig_mod.")


@pytest.mark.parametrize("suffix", [".safetensors", ".weights.h5"])
def test_the_same_weights_give_the_same_bytes(suffix, model, tmp_path):
    files = [tmp_path / f"{i}{suffix}" for i in range(6)]
    model.kapps_evaluation = EVALUATION  # five entries in the metadata have 120 orders
    for file in files:
        kapps.save_weights(model, file)
    del model.kapps_evaluation
    assert len({file.read_bytes() for file in files}) == 1
    kapps.load_weights(model, files[0])
    if suffix == ".safetensors":  # or another process would have another order
        length, content = int.from_bytes(files[0].read_bytes()[:8], "little"), files[0].read_bytes()
        header = json.loads(content[8 : 8 + length])
        assert list(header["__metadata__"]) == ["evaluation", "format", "mean", "std"]
        assert list(header) == ["__metadata__", *sorted(header.keys() - {"__metadata__"})]


def test_the_metadata_may_be_of_any_text(tmp_path):
    """The header is written once more, and must keep its length."""
    net = small_net()
    net.kapps_evaluation = dataclasses.replace(EVALUATION, source='\u00e9\u4e2d"\\\n\x7f\x01')
    kapps.save_weights(net, tmp_path / "w.safetensors")
    other = small_net()
    kapps.load_weights(other, tmp_path / "w.safetensors")
    assert other.kapps_evaluation == net.kapps_evaluation


# Batch norm without scale or center, which PyTorch has only together


def normalized(scale: bool, center: bool) -> keras.Model:
    image = keras.Input((4, 4, 3))
    layer = keras.layers.BatchNormalization(scale=scale, center=center, name="bn")
    net = keras.Model(image, marked(layer, "bn")(image))
    random = np.random.default_rng(0)
    net.set_weights([random.uniform(0.5, 2, w.shape) for w in net.get_weights()])
    return net


@pytest.mark.parametrize(("scale", "center"), [(True, False), (False, True), (False, False)])
def test_batch_norm_without_scale_or_center(scale, center, tmp_path):
    file = tmp_path / "w.safetensors"
    net = normalized(scale, center)
    kapps.save_weights(net, file)
    tensors = safetensors.numpy.load_file(file)
    statistics = {"bn.running_mean", "bn.running_var"}
    assert tensors.keys() == statistics | ({"bn.weight", "bn.bias"} if scale or center else set())
    assert scale or not center or tensors["bn.weight"].tolist() == [1, 1, 1]
    assert center or not scale or tensors["bn.bias"].tolist() == [0, 0, 0]
    # a full batch norm with these numbers computes the same
    full = normalized(True, True)
    kapps.save_weights(full, tmp_path / "full.safetensors")
    tensors = {"bn.weight": np.ones(3, "f"), "bn.bias": np.zeros(3, "f"), **tensors}
    safetensors.numpy.save_file(tensors, tmp_path / "full.safetensors")
    (tmp_path / "full.safetensors.sha256").unlink()
    kapps.load_weights(full, tmp_path / "full.safetensors")
    x = np.random.default_rng(1).standard_normal((2, 4, 4, 3)).astype("f")
    np.testing.assert_allclose(logits(full, x), logits(net, x), rtol=1e-6)
    # and both files fill one without
    for name in ("w", "full"):
        again = normalized(scale, center)
        again.set_weights([np.ones_like(w) for w in again.get_weights()])
        kapps.load_weights(again, tmp_path / f"{name}.safetensors")
        for a, b in zip(again.get_weights(), net.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_scale_that_the_layer_has_not_is_refused(tmp_path):
    net = normalized(False, True)
    kapps.save_weights(normalized(True, True), tmp_path / "w.safetensors")
    refused(
        net, tmp_path / "w.safetensors", "bn.weight is not 1 throughout, and layer 'bn' of the mod"
    )
    tensors = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    del tensors["bn.bias"]
    safetensors.numpy.save_file(tensors, tmp_path / "b.safetensors")
    refused(normalized(False, True), tmp_path / "b.safetensors", "only in the model: bn.bias;")


# Other dtypes than float32


@pytest.fixture
def policy():
    """Sets Keras's dtypes; a test leaves none behind."""
    before = keras.config.floatx(), keras.config.dtype_policy()

    def set_to(name: str) -> None:
        if name.startswith("floatx "):  # as by keras.json
            keras.config.set_floatx(name.removeprefix("floatx "))
            keras.config.set_dtype_policy(keras.config.floatx())
        else:
            keras.config.set_dtype_policy(name)

    yield set_to
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.mark.parametrize("suffix", [".safetensors", ".weights.h5"])
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("mixed_float16", 0),
        ("mixed_bfloat16", 0),
        ("floatx float64", 0),
        ("floatx float16", 2**-11),
        ("bfloat16", 2**-8),
    ],
)
def test_weights_go_from_float32_to_another_dtype_and_back(
    name, precision, suffix, model, policy, tmp_path
):
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    kapps.save_weights(model, first)
    policy(name)
    other = kapps.LeNet5(weights=first)
    kapps.save_weights(other, second)
    exact = kapps.LeNet5(weights=second)  # what was saved of a dtype fills it without a loss
    for a, b in zip(exact.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    policy("floatx float32")
    again = kapps.LeNet5(weights=second)
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        assert a.dtype == np.float32
        # float16 loses what is below 6e-8
        np.testing.assert_allclose(a, b, rtol=precision, atol=6e-8 if precision else 0)


def test_numbers_beyond_the_models_dtype_are_refused(policy, tmp_path):
    tensors = trained()
    tensors["fc.bias"][1] = 70_000
    file = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(tensors, file)
    policy("floatx float16")
    refused(
        small_net(), file, "fc.bias has numbers beyond float16, of which the model is: build it"
    )
    policy("mixed_float16")  # whose weights are of float32
    large = small_net()
    kapps.load_weights(large, file)
    kapps.save_weights(large, tmp_path / "w.weights.h5")
    policy("floatx float16")
    refused(small_net(), tmp_path / "w.weights.h5", "numbers beyond float16")
    policy("floatx float32")
    tensors["fc.bias"] = np.array([1, 1e39, 0])
    safetensors.numpy.save_file(tensors, file)
    refused(small_net(), file, "fc.bias has numbers beyond float32")


def raw_safetensors(tensors: dict[str, tuple[str, np.ndarray]]) -> bytes:
    header, content = {}, b""
    for name, (dtype, value) in tensors.items():
        stop = len(content) + value.nbytes
        header[name] = {"dtype": dtype, "shape": value.shape, "data_offsets": [len(content), stop]}
        content += value.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def test_half_and_brain_floats(model, tensors, tmp_path):
    bits = {n: ("BF16", (v.view(np.uint32) >> 16).astype("<u2")) for n, v in tensors.items()}
    (tmp_path / "b.safetensors").write_bytes(raw_safetensors(bits))
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    safetensors.numpy.save_file(half, tmp_path / "h.safetensors")
    for name in ("b", "h"):
        loaded = kapps.LeNet5(weights=tmp_path / f"{name}.safetensors")
        # 8 and 11 bits of precision; half also loses what is below 6e-8
        relative = {"b": 2**-7, "h": 2**-11}[name]
        pairs = zip(loaded.trainable_weights, model.trainable_weights, strict=True)
        for a, b in ((keras.ops.convert_to_numpy(x) for x in pair) for pair in pairs):
            assert a.dtype == np.float32
            np.testing.assert_allclose(a, b, rtol=relative, atol=6e-8)


def test_whole_numbers_are_refused(model, tensors, tmp_path):
    tensors["fc1.weight"] = tensors["fc1.weight"].astype(np.int8)
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    refused(model, tmp_path / "w.safetensors", "fc1.weight is of int8, not of floating point")


@keras.saving.register_keras_serializable("kapps_tests")
class Scale(keras.layers.Layer):
    """A layer with weights of its own, as kapps marks them."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")
        self.checkpoint_variables = {"alpha": self.scale}

    def call(self, x):
        return x * self.scale


def marked(layer, path, head=False):
    layer.checkpoint_path = path
    if head:
        layer.checkpoint_head = True
    return layer


def with_auxiliary(classes: int = 10, auxiliary: bool = True, top: bool = True) -> keras.Model:
    """A stem, a scale, a classifier, and a second one that exists for training only."""
    image = keras.Input((8, 8, 3))
    x = marked(keras.layers.Conv2D(4, 3, name="stem_conv"), "stem.conv")(image)
    x = marked(Scale(name="stem_scale"), "stem.scale")(x)
    outputs = [keras.layers.Flatten(name="flatten")(x)]
    if top:
        outputs = [
            marked(keras.layers.Dense(classes, name=name), path, head=True)(outputs[0])
            for name, path in (("fc", "fc"), ("aux1_fc", "aux1.fc"))[: 1 + auxiliary]
        ]
    model = keras.Model(image, outputs)
    model.checkpoint_auxiliary = ("aux1",)
    return model


def test_layers_with_weights_of_their_own(tmp_path):
    model, other = with_auxiliary(), with_auxiliary()
    model.get_layer("stem_scale").scale.assign([1.0, 2.0, 3.0, 4.0])
    kapps.save_weights(model, tmp_path / "w.safetensors")
    assert "stem.scale.alpha" in safetensors.numpy.load_file(tmp_path / "w.safetensors")
    kapps.load_weights(other, tmp_path / "w.safetensors")
    scale = keras.ops.convert_to_numpy(other.get_layer("stem_scale").scale)
    assert scale.tolist() == [1, 2, 3, 4]


def test_auxiliary_heads_of_the_file_and_of_the_model(tmp_path):
    file, without = tmp_path / "with.safetensors", tmp_path / "without.safetensors"
    kapps.save_weights(with_auxiliary(), file)
    kapps.save_weights(with_auxiliary(auxiliary=False), without)
    kapps.load_weights(with_auxiliary(auxiliary=False), file)  # and no warning
    with pytest.warns(UserWarning, match="no weights for auxiliary heads.*random start: aux1_fc"):
        kapps.load_weights(with_auxiliary(), without)
    with pytest.warns(UserWarning) as found:
        kapps.load_weights(with_auxiliary(classes=3), file)
    (warning,) = found
    assert "10 classes and the model 3: the classifier 'fc' keeps" in str(warning.message)


def test_a_model_without_classifier_leaves_the_files(tmp_path):
    kapps.save_weights(with_auxiliary(), tmp_path / "w.safetensors")
    kapps.load_weights(with_auxiliary(top=False), tmp_path / "w.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    tensors["stem.conv2.weight"] = np.zeros((4, 4, 3, 3), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "deeper.safetensors")
    refused(
        with_auxiliary(top=False), tmp_path / "deeper.safetensors", "in the file: stem.conv2.weight"
    )


# What kapps has trained, others load


def logits(net: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(net(images, training=False))


def peer_logits(net, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return net.eval()(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()


@pytest.mark.parametrize("builder", ["MobileNetV3Small", "ShuffleNetV2_x0_5"])
def test_timm_and_torchvision_load_what_is_saved(builder, tmp_path):
    torch = pytest.importorskip("torch")
    vision = torchvision()
    from safetensors.torch import load_file

    net = getattr(kapps, builder)(
        input_shape=(64, 64, 3), include_preprocessing=False, classifier_activation=None
    )
    random = np.random.default_rng(0)
    for layer in net.layers:  # as after some training: a swapped statistic would show
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(0.1 * random.standard_normal(layer.moving_mean.shape))
            layer.moving_variance.assign(random.uniform(0.5, 2, layer.moving_variance.shape))
    kapps.save_weights(net, tmp_path / "w.safetensors")
    state = load_file(tmp_path / "w.safetensors")
    if builder == "MobileNetV3Small":
        peer = pytest.importorskip("timm").create_model("mobilenetv3_small_100")
    else:
        peer = vision.models.shufflenet_v2_x0_5()
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    images = random.standard_normal((2, 64, 64, 3)).astype(np.float32)
    ours, theirs = logits(net, images), peer_logits(peer, images)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.std(), rtol=0)
    # and back, as the peer writes it
    torch.save(peer.state_dict(), tmp_path / "peer.pth")
    again = getattr(kapps, builder)(weights=tmp_path / "peer.pth", input_shape=(64, 64, 3))
    kapps.save_weights(again, tmp_path / "again.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "again.safetensors")
    for name, value in safetensors.numpy.load_file(tmp_path / "w.safetensors").items():
        np.testing.assert_array_equal(found[name], value)


@functools.cache
def torchvision():
    """torchvision, which timm imports as well."""
    pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:  # its compiled half does not fit the installed PyTorch
        from make_goldens import declare_torchvision_operators

        torchvision.library = declare_torchvision_operators()  # they are forgotten with it
        return pytest.importorskip("torchvision")
