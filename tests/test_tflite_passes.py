"""The passes of the export pipeline: exact, and the model that went in stays as it was."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from tflite_net import small_net

from kapps import InputError
from kapps.tflite.passes import PASSES, rebuild, remove_training_layers, rgb_input, static_batch

pytest_plugins = ["tflite_fixtures"]


def _weights(model):
    return [(layer.name, weight) for layer in model.layers for weight in layer.get_weights()]


def _outputs(model, images):
    """One image at a time, since a batch may be of one."""
    return np.concatenate([model(image[None].astype("float32")) for image in images])


@pytest.mark.parametrize("export_pass", PASSES, ids=lambda export_pass: export_pass.__name__)
def test_exact_and_leaves_its_input_alone(export_pass, net, digits):
    images = digits[1][0][:8]
    before, weights = _outputs(net, images), _weights(net)
    inbound = [len(layer._inbound_nodes) for layer in net.layers]
    result = export_pass(net)
    np.testing.assert_array_equal(_outputs(result, images), before)
    np.testing.assert_array_equal(_outputs(net, images), before)
    assert [len(layer._inbound_nodes) for layer in net.layers] == inbound
    assert not set(map(id, net.layers)) & set(map(id, result.layers))
    for (name, weight), (old_name, old_weight) in zip(_weights(result), weights, strict=True):
        assert name == old_name
        np.testing.assert_array_equal(weight, old_weight)


def test_remove_training_layers_takes_those_and_no_others(net):
    gone = [layer.name for layer in net.layers]
    for layer in remove_training_layers(net).layers:
        gone.remove(layer.name)
    assert gone == ["drop_path", "noise", "dropout"]


def test_without_training_layers_training_mode_changes_nothing_but_batch_norm(net, digits):
    model = remove_training_layers(net)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
    images = digits[1][0][:8].astype("float32")
    np.testing.assert_array_equal(model(images, training=True), model(images, training=False))


def test_static_batch_reaches_the_output(net):
    model = static_batch(net)
    assert model.input_shape == (1, 16, 16, 3)
    assert model.output_shape == (1, 10)


def test_shared_nested_and_sequential_models(digits):
    inner = keras.Sequential(
        [layers.Conv2D(4, 3, padding="same"), layers.Dropout(0.5), layers.BatchNormalization()],
        name="inner",
    )
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    image = keras.Input((16, 16, 3))
    x = inner(image)
    x = layers.Add()([shared(x), shared(shared(x))])
    model = keras.Model(image, layers.Flatten()(x))
    result = static_batch(remove_training_layers(model))
    images = digits[1][0][:4]
    np.testing.assert_array_equal(_outputs(result, images), _outputs(model, images))
    assert len(result.weights) == len(model.weights)
    assert not any(isinstance(layer, layers.Dropout) for layer in result.get_layer("inner").layers)


def test_a_compiled_models_loss_is_not_copied(net):
    assert net.compiled
    assert not rebuild(net).compiled


class _Subclassed(keras.Model):
    def call(self, x):
        return x


def test_a_model_without_a_graph_is_refused():
    model = _Subclassed(name="odd")
    model(np.zeros((1, 4, 4, 3), "float32"))
    with pytest.raises(InputError, match="'odd' is no functional model"):
        rebuild(model)


class _NoConfig(layers.Layer):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x


def test_a_layer_that_cannot_be_copied_is_named():
    image = keras.Input((4, 4, 3))
    with pytest.raises(InputError, match=r"layer 'mine' \(_NoConfig\) cannot be copied"):
        rebuild(keras.Model(image, _NoConfig(object(), name="mine")(image)))


def test_rgb_input_equals_the_gray_model_on_gray_images(digits):
    model = small_net(channels=1)
    rgb = rgb_input(model)
    images = digits[1][0][:16]
    assert rgb.input_shape == (None, 16, 16, 3)
    expected = _outputs(model, images[..., :1])
    np.testing.assert_allclose(_outputs(rgb, images), expected, atol=1e-6)


def test_rgb_input_is_the_luma_of_color_images(digits):
    from PIL import Image

    image = keras.Input((16, 16, 1))
    rgb = rgb_input(keras.Model(image, layers.Flatten()(image)))
    color = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype="uint8")
    expected = np.asarray(Image.fromarray(color).convert("L"), "float32")
    assert np.abs(_outputs(rgb, color[None]).reshape(16, 16) - expected).max() <= 1  # its rounding


def test_rgb_input_refuses_a_color_model(net):
    with pytest.raises(InputError, match="takes 3 channels; expected 1"):
        rgb_input(net)
