"""What the builders share: the decorator, the arguments, the regularizers."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_table import TABLE

import kapps
from kapps import _layers
from kapps._model import _BUILDERS, Architecture, model


def test_the_table_lists_every_public_model():
    assert sorted(row.name for row in TABLE) == kapps.list_models()
    assert set(kapps.list_models()) <= set(kapps.__all__)


def test_get_builder_proposes_the_nearest():
    assert kapps.get_builder("LeNet5") is kapps.LeNet5
    with pytest.raises(kapps.InputError, match="did you mean MobileNetV3Small"):
        kapps.get_builder("mobilenet_v3_small")
    with pytest.raises(kapps.InputError, match="known: .*LeNet5"):
        kapps.get_builder("zzzzzz")


def test_own_parameters_join_the_signature():
    try:

        @model(size=32)
        def Tiny(width: int = 4) -> Architecture:
            """A net of our own."""
            return Architecture(lambda x, net: _layers.conv(x, width, 3, "stem.conv"))

        parameters = inspect.signature(Tiny).parameters
        assert list(parameters)[-1] == "width"
        assert parameters["width"].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters["width"].annotation is int
        assert Tiny.__doc__.startswith("A net of our own.")
        assert Tiny(width=6).get_layer("stem_conv").filters == 6
        assert Tiny(False, None, None, (40, 40, 3)).input_shape == (None, 40, 40, 3)
    finally:
        _BUILDERS.pop("Tiny", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "average", "include_top": False}, "unknown pooling 'average'.*avg"),
        ({"classes": 0}, "classes"),
        ({"classes": 2.5}, "classes"),
        ({"dropout_rate": 1.0}, "dropout_rate"),
        ({"drop_path_rate": -0.1}, "drop_path_rate"),
        ({"input_shape": (224, 224)}, "height, width, channels"),
        ({"input_shape": (3, 224, 224)}, "channels last|too small"),
        ({"input_tensor": np.zeros((1, 64, 64, 3))}, "input_tensor must be a Keras tensor"),
        ({"weights": "imagenet"}, "safetensors"),
        ({"weights": "nowhere.safetensors"}, "no weights file nowhere.safetensors"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(kapps.InputError, match=message):
        kapps.MobileNetV3Small(**arguments)


def test_input_tensor_and_shape_must_agree():
    with pytest.raises(kapps.InputError, match="give one of the two"):
        kapps.MobileNetV3Small(input_tensor=keras.Input((64, 64, 3)), input_shape=(96, 96, 3))


def test_lenet_needs_a_fixed_size():
    with pytest.raises(kapps.InputError, match="fixed height and width"):
        kapps.LeNet5(input_shape=(None, None, 1))


def test_any_size_with_the_classifier():
    net = kapps.MobileNetV3Small(input_shape=(None, None, 3))
    for size in (40, 64):
        assert net(np.zeros((1, size, size, 3))).shape == (1, 1000)


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(kapps.InputError, match="set_image_data_format"):
            kapps.LeNet5()
    finally:
        keras.config.set_image_data_format("channels_last")


def test_no_residual_blocks_no_stochastic_depth():
    with pytest.raises(kapps.InputError, match="no residual blocks"):
        kapps.LeNet5(drop_path_rate=0.2)


def test_stochastic_depth_grows_with_depth():
    net = kapps.EfficientNetLite0(drop_path_rate=0.2)
    rates = [x.rate for x in net.layers if isinstance(x, _layers.StochasticDepth)]
    assert rates == sorted(rates) and 0 < rates[0] < rates[-1] < 0.2
    plain = kapps.EfficientNetLite0()
    assert [w.path for w in plain.weights] == [w.path for w in net.weights]


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    layer = _layers.StochasticDepth(0.25, seed=0)
    x = np.ones((4000, 2, 2, 1), np.float32)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x)), x)
    y = keras.ops.convert_to_numpy(layer(x, training=True))
    assert set(np.unique(y.round(5))) == {0.0, np.float32(1 / 0.75).round(5)}
    assert (y == y[:, :1, :1, :1]).all()
    # 4,000 draws at p = 0.25: one standard deviation of the mean is 0.009
    assert abs(y.mean() - 1) < 0.04


def test_layers_start_apart_and_as_the_seed_says():
    def kernels(seed):
        keras.utils.set_random_seed(seed)
        net = kapps.ShuffleNetV2_x0_5(input_shape=(32, 32, 3))
        found = [keras.ops.convert_to_numpy(w) for w in net.weights if "kernel" in w.path]
        return [w for w in found if w.shape == (1, 1, 48, 48)]

    first, again, other = kernels(0), kernels(0), kernels(1)
    assert len(first) == 17
    assert len({w.tobytes() for w in first}) == 17
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_dropout_has_no_layer_at_rate_0():
    assert "dropout" in [x.name for x in kapps.MobileNetV3Small().layers]
    assert "dropout" not in [x.name for x in kapps.MobileNetV3Small(dropout_rate=0).layers]


@given(groups=st.integers(1, 6), per_group=st.integers(1, 6), size=st.integers(1, 4))
def test_shuffle_interleaves_and_is_undone_by_its_twin(groups, per_group, size):
    channels = groups * per_group
    x = np.arange(2 * size * size * channels, dtype=np.float32).reshape(2, size, size, channels)
    y = keras.ops.convert_to_numpy(_layers.ChannelShuffle(groups)(x))
    for g in range(groups):  # group g's k-th channel comes to place k * groups + g
        np.testing.assert_array_equal(
            y[..., g::groups], x[..., g * per_group : (g + 1) * per_group]
        )
    back = keras.ops.convert_to_numpy(_layers.ChannelShuffle(per_group)(y))
    np.testing.assert_array_equal(back, x)


@given(value=st.floats(1, 4096), divisor=st.sampled_from([4, 8, 16]))
def test_make_divisible(value, divisor):
    rounded = _layers.make_divisible(value, divisor)
    assert rounded % divisor == 0 and rounded >= 0.9 * value
    assert rounded <= max(divisor, value + divisor)


def test_normalization_layer():
    layer = _layers.ImageNormalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    x = np.full((1, 1, 1, 3), 255, np.uint8)
    y = keras.ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(y.ravel(), [0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7], rtol=1e-6)
    assert not layer.trainable_weights and len(layer.weights) == 2
    gray = _layers.ImageNormalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    gray(np.zeros((1, 1, 1, 1)))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(gray.mean), [0.2], rtol=1e-6)
