"""Which models there can be a file of, and what is said of the others, before any work."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kapps
from kapps import InputError
from kapps.tflite import convert
from kapps.tflite.classifier import as_classifier
from kapps.tflite.inference import batches, images_at_once
from kapps.tflite.passes import remove_training_layers, run_passes
from kapps.tflite.verification import predict


def _net(*ends, policy=None):
    """A small network behind which come these layers."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv", dtype=policy)(image)
    x = layers.GlobalAveragePooling2D(dtype=policy)(x)
    for end in ends:
        x = end(x)
    return keras.Model(image, x, name="mine")


def _images(count=4, size=8):
    return np.random.default_rng(0).uniform(0, 255, (count, size, size, 3)).astype("float32")


class _Odd(keras.Model):
    def call(self, x):
        return x


def _dict_of_one():
    net = _net(layers.Dense(4, "softmax"))
    return keras.Model(net.inputs[0], {"p": net.outputs[0]}, name="mine")


def _two_outputs():
    net = _net()
    x = net.outputs[0]
    heads = [layers.Dense(4, "softmax", name="which")(x), layers.Dense(1, name="where")(x)]
    return keras.Model(net.inputs[0], heads, name="mine")


def _two_inputs():
    image, other = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="other")
    x = layers.Concatenate()([layers.Flatten()(image), other])
    return keras.Model([image, other], layers.Dense(4, "softmax")(x), name="mine")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "net.keras", "'net.keras' is no image classifier: .*load_model"),
        (lambda: keras.Sequential([layers.Dense(3)]), "Sequential without an input size"),
        (_Odd, r"subclass of keras.Model \(_Odd\)"),
        (_dict_of_one, r"returns a dict with the key 'p'.*keras.Model\(model.inputs\[0\]"),
        (_two_outputs, r"2 outputs.*'which' \(batch, 4\), softmax; 'where' \(batch, 1\), linear"),
        (_two_inputs, r"2 inputs \('image', 'other'\)"),
        (lambda: _net(layers.Reshape((2, 2))), r"returns \(batch, 2, 2\).*global pooling"),
        (lambda: _net(layers.Dense(1, "softmax")), "softmax over a single class, which is 1"),
        (lambda: _net(layers.Dense(1)), "one number of any size, as of a regression"),
        (lambda: _net(layers.Dense(5)), 'logits; .*classifier_activation="softmax".*Softmax'),
        (lambda: _net(layers.Dense(5), layers.Dropout(0.5)), "gives logits"),
        (lambda: _net(layers.Dense(5, "sigmoid")), "5 probabilities that do not depend on each"),
        (lambda: _net(layers.Dense(5), layers.Activation("sigmoid")), "several things"),
        (lambda: _net(layers.Dense(5, "tanh")), "gives what tanh gives"),
        (lambda: _net(layers.Dense(5, "log_softmax")), "logarithms"),
    ],
)
def test_others_are_refused_in_words_of_their_own(make, message):
    with pytest.raises(InputError, match=message):
        as_classifier(make())


@pytest.mark.parametrize(
    "ends",
    [
        [layers.Dense(4, "softmax")],
        [layers.Dense(4), layers.Softmax()],
        [layers.Dense(4), layers.Activation("softmax", dtype="float32")],
        [layers.Dense(4), keras.ops.softmax],
        [keras.Sequential([layers.Dense(4), layers.Softmax()])],
    ],
    ids=["dense", "layer", "activation", "operation", "nested"],
)
def test_a_softmax_is_a_softmax_however_it_is_written(ends):
    model = _net(*ends)
    np.testing.assert_array_equal(
        predict(as_classifier(model), _images()), predict(model, _images())
    )


@pytest.mark.parametrize(
    "ends",
    [
        [layers.Dense(1, "sigmoid", bias_initializer="ones")],
        [layers.Dense(1, use_bias=False), layers.Activation("sigmoid")],
        [keras.Sequential([layers.Dense(1, "sigmoid")])],
    ],
    ids=["dense", "activation", "nested"],
)
def test_one_sigmoid_becomes_two_classes(ends):
    model = _net(*ends)
    images = _images() / 255  # of probabilities that are not 0 or 1
    p = predict(model, images)
    assert 0.01 < p.min() < p.max() < 0.99
    np.testing.assert_allclose(
        predict(as_classifier(model), images), np.hstack([1 - p, p]), atol=1e-6
    )


def test_lists_of_one_are_what_is_in_them():
    net = _net(layers.Dense(4, "softmax"))
    listed = as_classifier(keras.Model(net.inputs, net.outputs))
    assert (listed.input_shape, listed.output_shape) == ((None, 8, 8, 3), (None, 4))
    np.testing.assert_array_equal(predict(listed, _images()), predict(net, _images()))


def test_a_lambda_is_one_clear_line():
    model = _net(layers.Lambda(lambda x: 2 * x, name="twice"), layers.Dense(3, "softmax"))
    with pytest.raises(InputError, match="layer 'twice' is a Lambda") as raised:
        run_passes(as_classifier(model))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("loop", [layers.LSTM(3), layers.Bidirectional(layers.GRU(3))])
def test_a_loop_cannot_be_calibrated(loop, tmp_path):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Dense(3, "softmax")(loop(layers.Reshape((8, 24))(image))))
    with pytest.raises(InputError, match=f"{loop.name!r}.*cannot calibrate for int8"):
        convert(model, tmp_path / "net.tflite", quantization="int8", calibration=_images())


# Precision.


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "float64"])
def test_any_policy_becomes_float32(policy):
    model = _net(layers.Dense(4, "softmax", dtype=policy), policy=policy)
    result = as_classifier(model)
    assert {w.dtype for w in result.weights} == {"float32"}
    assert {layer.compute_dtype for layer in result.layers} == {"float32"}
    same = _net(layers.Dense(4, "softmax"))
    same.set_weights([np.asarray(w).astype("float32") for w in model.get_weights()])
    np.testing.assert_allclose(predict(result, _images()), predict(same, _images()), atol=1e-6)
    assert {w.dtype for w in model.weights} == ({"float32"} if "mixed" in policy else {policy})


def test_passes_under_a_mixed_policy_make_float32_layers():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = kapps.LeNet5(input_shape=(32, 32, 3), classes=3)
        result = run_passes(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in result.layers} == {"float32"}


# Normalization outside of the model.


@pytest.mark.parametrize(
    ("mean", "std"), [(None, 255), (127.5, 127.5), ((120, 110, 100.0), (60, 50, 40)), (10, None)]
)
def test_mean_and_std_go_into_the_graph(mean, std):
    model = _net(layers.Dense(4, "softmax"))
    images = _images()
    outside = (images - (0 if mean is None else mean)) / (1 if std is None else std)
    expected = predict(model, outside)
    for result in (as_classifier(model, mean, std), run_passes(as_classifier(model, mean, std))):
        found = np.concatenate([predict(result, image[None]) for image in images])
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "arguments", [{"std": 0}, {"std": (1, 2)}, {"mean": "x"}, {"mean": np.nan}, {"std": -1}]
)
def test_a_mean_or_std_that_is_none(arguments):
    with pytest.raises(InputError, match="expected (a number|numbers)"):
        as_classifier(_net(layers.Dense(4, "softmax")), **arguments)


# Inference.


def test_augmentation_is_for_training_only():
    image = keras.Input((8, 8, 3))
    x = layers.RandomFlip()(layers.RandomBrightness(0.5)(layers.RandomRotation(0.3)(image)))
    inner = keras.Model(image, x, name="augmentation")
    outer = keras.Input((8, 8, 3))
    model = keras.Model(outer, layers.Flatten()(inner(outer)))
    images = _images()
    np.testing.assert_array_equal(predict(model, images), images.reshape(4, -1))
    removed = remove_training_layers(model)
    np.testing.assert_array_equal(predict(removed, images), images.reshape(4, -1))
    assert len(removed.get_layer("augmentation").layers) == 1


def test_batches_fit_the_largest_map():
    image = keras.Input((256, 256, 3))
    inner = keras.Sequential([layers.Conv2D(16, 1)])  # 4 MiB an image
    model = keras.Model(image, layers.GlobalAveragePooling2D()(inner(image)))
    assert images_at_once(model) == 4
    assert [len(b[0]) for b in batches(model, np.zeros((6, 256, 256, 3), "uint8"))] == [4, 2]
    assert images_at_once(_net()) == 64
