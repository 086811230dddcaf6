"""Every public model, from the one table."""

from __future__ import annotations

import inspect
import pickle
import warnings

import keras
import numpy as np
import pytest
import safetensors.numpy
from model_table import GOLDENS, TABLE, Row, golden_images, tensor

import kapps
from kapps import weights as kapps_weights

pytestmark = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


def build(row: Row, **arguments) -> keras.Model:
    return getattr(kapps, row.name)(**arguments)


def small(row: Row, channels: int | None = None) -> tuple[int, int, int]:
    """The golden images' shape: cheap to run."""
    return (row.golden_size, row.golden_size, channels or row.input_shape[2])


def images(shape: tuple[int, int, int], n: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)


def write_golden_weights(model: keras.Model, path) -> None:
    """The table's weights for this model, as a file in the published form."""
    tensors = {}
    for parameter in kapps_weights.published_parameters(model):
        name = kapps_weights.published_name(parameter, model)
        tensors[name] = tensor(name, parameter.shape)
        if name.endswith("running_var"):  # the peers' files have it, and it must be skipped
            tensors[name.replace("running_var", "num_batches_tracked")] = np.array(0)
    safetensors.numpy.save_file(tensors, path)


def test_default_model(row):
    model = build(row)
    assert model.input_shape == (None, *row.input_shape)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == row.parameters
    assert model.name == row.name
    assert not any(isinstance(layer, keras.Model) for layer in model.layers), "a nested model"
    assert not any("." in layer.name for layer in model.layers)


def test_logits_equal_the_peers(row, tmp_path):
    arguments = {
        "input_shape": small(row),
        "include_preprocessing": False,
        "classifier_activation": None,
    }
    write_golden_weights(build(row, **arguments), tmp_path / "golden.safetensors")
    model = build(row, weights=tmp_path / "golden.safetensors", **arguments)
    expected = np.load(GOLDENS / f"{row.name}.npy")
    logits = keras.ops.convert_to_numpy(model(golden_images(row), training=False))
    assert np.abs(logits - expected).max() <= 1e-4 * expected.std()
    # The images must tell the logits apart by far more than the tolerance.
    assert np.abs(expected[1:] - expected[:1]).mean() > 0.1 * expected.std()


def test_normalization_is_inside(row, tmp_path):
    """Bytes through the whole model equal normalized images through the bare one."""
    inside = build(row, input_shape=small(row))
    bare = build(row, input_shape=small(row), include_preprocessing=False)
    kapps.save_weights(inside, tmp_path / "w.safetensors")
    kapps.load_weights(bare, tmp_path / "w.safetensors")
    x = images(small(row))
    layer = inside.get_layer("normalization")
    mean, std = (keras.ops.convert_to_numpy(v) for v in (layer.mean, layer.std))
    expected = keras.ops.convert_to_numpy(bare((x / np.float32(255) - mean) / std))
    for dtype in (np.uint8, np.int32, np.float32, np.float64):
        actual = keras.ops.convert_to_numpy(inside(x.astype(dtype)))
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert np.array_equal(kapps.preprocess_input(x), x)


def test_probabilities_and_logits(row):
    model = build(row, input_shape=small(row))
    y = keras.ops.convert_to_numpy(model(images(small(row))))
    np.testing.assert_allclose(y.sum(1), 1, atol=1e-5)
    logits = build(row, input_shape=small(row), classifier_activation=None)
    logits.set_weights(model.get_weights())
    y2 = keras.ops.convert_to_numpy(keras.ops.softmax(logits(images(small(row)))))
    np.testing.assert_allclose(y2, y, atol=1e-6)


@pytest.mark.parametrize("pooling", [None, "avg", "max"])
def test_without_top(row, pooling):
    model = build(row, include_top=False, pooling=pooling)
    assert model.input_shape == (None, None, None, row.input_shape[2])
    y = keras.ops.convert_to_numpy(model(images(small(row))))
    assert y.shape[0] == 2 and y.ndim == (4 if pooling is None else 2)
    assert y.shape[-1] == model.output_shape[-1]
    if pooling is not None:
        whole = build(row, include_top=False)
        whole.set_weights(model.get_weights())
        features = keras.ops.convert_to_numpy(whole(images(small(row))))
        reduce = {"avg": np.mean, "max": np.max}[pooling]
        np.testing.assert_allclose(y, reduce(features, axis=(1, 2)), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels(row, channels, tmp_path):
    """Any number of input channels; weights for the default number are adapted."""
    kapps.save_weights(build(row, input_shape=small(row)), tmp_path / "w.safetensors")
    shape = small(row, channels)
    model = build(row, input_shape=shape, weights=tmp_path / "w.safetensors")
    assert np.isfinite(keras.ops.convert_to_numpy(model(images(shape)))).all()


def test_odd_input_size(row):
    shape = (row.golden_size + 3, row.golden_size + 13, row.input_shape[2])
    model = build(row, input_shape=shape)
    assert np.isfinite(keras.ops.convert_to_numpy(model(images(shape)))).all()


def test_smallest_input(row):
    shape = (row.min_size, row.min_size, row.input_shape[2])
    assert build(row, input_shape=shape).output_shape[-1] > 1
    with pytest.raises(kapps.InputError, match=f"{row.min_size}x{row.min_size}"):
        build(row, input_shape=(row.min_size - 1, row.min_size, row.input_shape[2]))


def test_other_classes(row, tmp_path):
    """The body is loaded, the head is fresh, and this is said."""
    source = build(row, input_shape=small(row))
    kapps.save_weights(source, tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match="keeps its random start"):
        model = build(row, input_shape=small(row), classes=7, weights=tmp_path / "w.safetensors")
    assert model.output_shape == (None, 7)
    for ours, theirs in zip(model.layers[:-1], source.layers[:-1], strict=True):
        for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_input_tensor(row):
    start = keras.Input(small(row))
    model = build(row, input_tensor=keras.layers.Rescaling(2.0)(start))
    plain = build(row, input_shape=small(row))
    plain.set_weights(model.get_weights())
    x = images(small(row)).astype(np.float32)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(x)), keras.ops.convert_to_numpy(plain(2 * x)), atol=1e-5
    )


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".safetensors"])
def test_round_trip(row, suffix, tmp_path):
    model = build(row, input_shape=small(row))
    path = tmp_path / f"model{suffix}"
    if suffix == ".keras":
        model.save(path)
        loaded = keras.saving.load_model(path)
    else:
        kapps.save_weights(model, path)
        loaded = build(row, input_shape=small(row), weights=path)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    x = images(small(row))
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model(x)), keras.ops.convert_to_numpy(loaded(x))
    )


def test_signature_and_help(row):
    builder = getattr(kapps, row.name)
    names = list(inspect.signature(builder).parameters)
    assert builder.input_shape == row.input_shape
    assert names[:8] == [
        "include_top",
        "weights",
        "input_tensor",
        "input_shape",
        "pooling",
        "classes",
        "classifier_activation",
        "name",
    ]
    assert f"{row.parameters:,} parameters" in inspect.getdoc(builder)
    assert pickle.loads(pickle.dumps(builder)) is builder
    with pytest.raises(TypeError, match=rf"{row.name}\(\).*'class_number'"):
        builder(class_number=3)


def test_one_training_step_learns(row):
    """Gradients reach every trainable weight."""
    with warnings.catch_warnings():
        model = build(row, input_shape=small(row), classes=3)
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(images(small(row), 4), np.array([0, 1, 2, 0]), batch_size=4, verbose=0)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert not np.array_equal(keras.ops.convert_to_numpy(variable), old), variable.path
