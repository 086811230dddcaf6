"""What the builders share: the decorator, the arguments, the regularizers."""

from __future__ import annotations

import collections.abc
import inspect
import json
import sys

import keras
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from model_table import TABLE

import kapps
from kapps import _layers, custom_layers
from kapps._model import model
from kapps._network import Architecture
from kapps._registry import _BUILDERS


class Sides(collections.abc.Sequence):
    """A sequence of a type of its own."""

    def __init__(self, *sides):
        self.sides = sides

    def __len__(self):
        return len(self.sides)

    def __getitem__(self, i):
        return self.sides[i]


def test_the_table_lists_every_public_model():
    assert sorted({row.name for row in TABLE}) == kapps.list_models()
    assert set(kapps.list_models()) <= set(kapps.__all__)


def test_get_builder_proposes_the_nearest():
    assert kapps.get_builder("LeNet5") is kapps.LeNet5
    with pytest.raises(kapps.InputError, match="did you mean MobileNetV3Small"):
        kapps.get_builder("mobilenet_v3_small")
    with pytest.raises(kapps.InputError, match="known: AlexNet, .* and [0-9]+ more"):
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
        ({"classes": True}, "classes must be a whole number above 0, not True"),
        ({"drop_block_size": True}, "drop_block_size must be a whole number, 1 or more, not True"),
        ({"input_shape": (224.0, 224, 3)}, "input_shape must be .* such as .*, not .224.0"),
        ({"input_shape": (224, 224, True)}, "input_shape must be"),
        ({"dropout_rate": 1.0}, "dropout_rate"),
        ({"drop_path_rate": -0.1}, "drop_path_rate"),
        ({"input_shape": (224, 224)}, "height, width, channels"),
        ({"input_shape": (3, 224, 224)}, "channels last|too small"),
        ({"input_tensor": np.zeros((1, 64, 64, 3))}, "input_tensor must be a Keras tensor"),
        ({"input_shape": 224}, "must be .height, width, channels., such as .*, not 224"),
        ({"classifier_activation": "sofmax"}, "unknown classifier_activation 'sofmax'"),
        ({"name": "a/b"}, "name must be a text without slashes, not 'a/b'"),
        ({"dropout_rate": "0.5"}, "dropout_rate must be at least 0 and below 1, not '0.5'"),
        ({"weights": "lamb_in21k"}, "no published weights 'lamb_in21k'; there are: imagenet, "),
        ({"drop_path_schedule": "cubic"}, "must be linear, huang, .* or constant, not 'cubic'"),
        ({"drop_path_mode": "sample"}, "drop_path_mode must be row or batch"),
        ({"drop_block_rate": 1}, "drop_block_rate"),
        ({"drop_block_size": 0}, "drop_block_size must be a whole number, 1 or more"),
        ({"drop_block_steps": 0.5}, "drop_block_steps must be a whole number, 0 or more"),
        ({"drop_block_stages": 0}, "drop_block_stages must be a whole number above 0, not 0"),
        ({"drop_block_schedule": "step"}, "drop_block_schedule must be constant or linear"),
        ({"weights": "nowhere.safetensors"}, "no weights file nowhere.safetensors"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(kapps.InputError, match=message):
        kapps.MobileNetV3Small(**arguments)


@pytest.mark.parametrize(
    "shape",
    [
        (32, 32, 1),
        [32, 32, 1],
        np.array((32, 32, 1)),
        tuple(np.array((32, 32, 1), np.int64)),
        Sides(32, 32, 1),
    ],
    ids=["tuple", "list", "array", "numbers of NumPy", "a sequence"],
)
def test_shapes_of_whole_numbers(shape):
    """As other libraries have them: a data set's `element_spec` has a TensorShape."""
    net = kapps.LeNet5(input_shape=shape, classes=np.int64(4))
    assert net.input_shape == (None, 32, 32, 1) and net.output_shape == (None, 4)
    assert all(type(side) is int for side in net.input_shape[1:])
    type(net).from_config(json.loads(json.dumps(net.get_config())))


def test_a_tensor_shape():
    tf = pytest.importorskip("tensorflow")
    shape = tf.TensorShape((None, 32, 3))
    net = kapps.MobileNet(include_top=False, alpha=0.25, input_shape=shape)
    assert net.input_shape == (None, None, 32, 3)
    with pytest.raises(kapps.InputError, match="input_shape must be"):
        kapps.LeNet5(input_shape=tf.TensorShape(None))


@pytest.mark.parametrize(
    ("builder", "arguments"),
    [
        ("ShuffleNet", {"groups": True}),
        ("ShuffleNetV2", {"scale": True}),
        ("DenseNet", {"blocks": (True, 1, 1, 1)}),
        ("ResNet", {"blocks": (1, True, 1, 1)}),
        ("CifarDenseNet", {"growth": True}),
        ("EfficientNet", {"width": True}),
    ],
)
def test_true_is_no_number(builder, arguments):
    with pytest.raises(kapps.InputError, match=f"^{builder}: {next(iter(arguments))}.*True"):
        getattr(kapps, builder)(**arguments)


def test_input_tensor_and_shape_must_agree():
    with pytest.raises(kapps.InputError, match="give one of the two"):
        kapps.MobileNetV3Small(input_tensor=keras.Input((64, 64, 3)), input_shape=(96, 96, 3))


def test_layers_of_input_tensor_have_names_of_their_own():
    x = keras.layers.Normalization(mean=0.0, variance=1.0)(keras.Input((64, 64, 3)))
    with pytest.raises(
        kapps.InputError, match='MobileNetV3Small: The name "normalization" .* other names'
    ):
        kapps.MobileNetV3Small(input_tensor=x)


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


@pytest.mark.parametrize("rate", ["drop_path_rate", "drop_block_rate"])
def test_no_residual_blocks_nothing_to_drop(rate):
    with pytest.raises(kapps.InputError, match=f"LeNet5: {rate}=0.2, but .* no residual blocks"):
        kapps.LeNet5(**{rate: 0.2})


def test_no_published_weights():
    with pytest.raises(
        kapps.InputError, match="no weights are published for LeNet5.*path of a file"
    ):
        kapps.LeNet5(weights="imagenet")


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


def test_spatial_dropout_drops_whole_channels_of_maps_alone():
    net = kapps.NiN(spatial_dropout=True)
    on_maps = [x for x in net.layers if isinstance(x, keras.layers.SpatialDropout2D)]
    assert len(on_maps) == 2 and all(x.rate == 0.5 for x in on_maps)
    net = kapps.MobileNetV3Small(input_shape=(32, 32, 3), spatial_dropout=True)
    assert type(net.get_layer("dropout")) is keras.layers.Dropout


@pytest.mark.slow
def test_a_network_of_a_thousand_layers_is_built():
    """Deeper than Python's limit of nested calls, which stays what it was."""
    limit = sys.getrecursionlimit()
    try:

        @model(size=8, min_size=1)
        def Deep() -> Architecture:
            """A chain."""

            def features(x, net):
                for i in range(1500):
                    x = _layers.act(x, "relu", f"act{i}")
                return x

            return Architecture(features)

        deep = Deep(include_top=False)
        assert len(deep.layers) > 1500 and sys.getrecursionlimit() == limit
        again = Deep(include_top=False).__class__.from_config(deep.get_config())
        assert len(again.layers) == len(deep.layers) and sys.getrecursionlimit() == limit
    finally:
        _BUILDERS.pop("Deep", None)


def test_dropout_has_no_layer_at_rate_0():
    assert "dropout" in [x.name for x in kapps.MobileNetV3Small().layers]
    assert "dropout" not in [x.name for x in kapps.MobileNetV3Small(dropout_rate=0).layers]


@given(groups=st.integers(1, 6), per_group=st.integers(1, 6), size=st.integers(1, 4))
def test_shuffle_interleaves_and_is_undone_by_its_twin(groups, per_group, size):
    channels = groups * per_group
    x = np.arange(2 * size * size * channels, dtype=np.float32).reshape(2, size, size, channels)
    y = keras.ops.convert_to_numpy(custom_layers.ChannelShuffle(groups)(x))
    for g in range(groups):  # group g's k-th channel comes to place k * groups + g
        np.testing.assert_array_equal(
            y[..., g::groups], x[..., g * per_group : (g + 1) * per_group]
        )
    back = keras.ops.convert_to_numpy(custom_layers.ChannelShuffle(per_group)(y))
    np.testing.assert_array_equal(back, x)


@given(value=st.floats(1, 4096), divisor=st.sampled_from([4, 8, 16]))
@example(value=19.0, divisor=8)  # the nearest multiple, 16, is too little
def test_make_divisible(value, divisor):
    rounded = _layers.make_divisible(value, divisor)
    assert rounded % divisor == 0 and rounded >= 0.9 * value
    assert rounded <= max(divisor, value + divisor)


def test_normalization_layer():
    layer = custom_layers.ImageNormalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    x = np.full((1, 1, 1, 3), 255, np.uint8)
    y = keras.ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(y.ravel(), [0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7], rtol=1e-6)
    assert not layer.trainable_weights and len(layer.weights) == 2
    gray = custom_layers.ImageNormalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    gray(np.zeros((1, 1, 1, 1)))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(gray.mean), [0.2], rtol=1e-6)
