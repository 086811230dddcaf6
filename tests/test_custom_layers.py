"""The layers and models that saved files name: their keys, and all dtypes."""

from __future__ import annotations

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import kapps
from kapps import _block_skipping, custom_layers
from kapps._layers import act, conv, flat_dense
from kapps._model import model
from kapps._network import Architecture, has_auxiliary_heads
from kapps._registry import _BUILDERS

KEYS = {
    custom_layers: {
        "AdaptiveAveragePooling2D",
        "BitmapDistance",
        "ChannelGather",
        "ChannelPad",
        "ChannelShuffle",
        "ChannelSlice",
        "DropBlock2D",
        "ImageNormalization",
        "LayerScale",
        "LocalResponseNormalization",
        "MirrorPadding2D",
        "MultiQueryAttention",
        "NearestDoubling2D",
        "StochasticDepth",
        "Subsampling",
        "scaled_tanh",
    },
    _block_skipping: {"BlockSkippingModel", "BuiltModel", "DeepModel"},
}


@pytest.mark.parametrize("module", KEYS, ids=lambda m: m.__name__)
def test_the_keys_of_saved_models_stay(module):
    own = [x for x in vars(module).values() if getattr(x, "__module__", "") == module.__name__]
    found = {keras.saving.get_registered_name(x) for x in own if callable(x)}
    assert {x for x in found if x.startswith("kapps>")} == {f"kapps>{x}" for x in KEYS[module]}


def test_files_of_kapps_0_1_name_modules_that_have_moved():
    config = {
        "module": "kapps._custom_layers",
        "class_name": "ChannelShuffle",
        "config": {"name": "shuffle", "trainable": True, "dtype": "float32", "groups": 2},
        "registered_name": "kapps>ChannelShuffle",
    }
    layer = keras.saving.deserialize_keras_object(config)
    assert isinstance(layer, custom_layers.ChannelShuffle) and layer.groups == 2


class SelfAttention(custom_layers.MultiQueryAttention):
    """Queries, keys and values of one map, whose products are beyond float16."""

    def call(self, x):
        return super().call([x, x, x])

    def compute_output_shape(self, input_shape):
        return input_shape


class HalfDoubled(custom_layers.NearestDoubling2D):
    """Every other pixel of a map, twice."""

    def build(self, input_shape):
        pass

    def call(self, x):
        return super().call([x[:, 1::2, 1::2], x])

    def compute_output_shape(self, input_shape):
        return input_shape


LAYERS = {
    "attention": (lambda **k: SelfAttention(1, **k), (2, 3, 8)),
    "normalization": (lambda **k: custom_layers.ImageNormalization(0.48, 0.004, **k), (8, 8, 3)),
    "response": (lambda **k: custom_layers.LocalResponseNormalization(**k), (2, 2, 8)),
    "shuffle": (lambda **k: custom_layers.ChannelShuffle(2, **k), (2, 2, 8)),
    "slice": (lambda **k: custom_layers.ChannelSlice(1, 3, **k), (2, 2, 8)),
    "gather": (lambda **k: custom_layers.ChannelGather((3, 3, 1), **k), (2, 2, 8)),
    "pad": (lambda **k: custom_layers.ChannelPad(9, **k), (2, 2, 8)),
    "scale": (lambda **k: custom_layers.LayerScale(0.3, **k), (2, 2, 8)),
    "mirror": (lambda **k: custom_layers.MirrorPadding2D(1, **k), (4, 4, 2)),
    "doubling": (lambda **k: HalfDoubled(**k), (5, 4, 2)),
    "adaptive": (lambda **k: custom_layers.AdaptiveAveragePooling2D((3, 2), **k), (7, 7, 2)),
    "subsampling": (lambda **k: custom_layers.Subsampling(**k), (4, 4, 2)),
    "distance": (lambda **k: custom_layers.BitmapDistance(10, **k), (84,)),
    "depth": (lambda **k: custom_layers.StochasticDepth(0.5, seed=1, **k), (2, 2, 8)),
    "blocks": (lambda **k: custom_layers.DropBlock2D(0.5, 2, seed=1, **k), (8, 8, 2)),
}
DTYPES = ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"]


@pytest.mark.parametrize("policy", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_every_dtype_gives_what_float32_gives(name, policy):
    """Of numbers whose squares are beyond float16, to the digits that the dtype has."""
    make, shape = LAYERS[name]
    most = 2 if name == "distance" else 255
    x = np.random.default_rng(0).integers(0, most + 1, (3, *shape)).astype("float32")
    exact, layer = make(dtype="float32"), make(dtype=policy)
    for own in (exact, layer):
        own.build(x.shape)
    layer.set_weights(exact.get_weights())
    keywords = {"training": True} if name in ("depth", "blocks") else {}
    expected = keras.ops.convert_to_numpy(exact(x, **keywords))
    output = layer(x, **keywords)
    dtype = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(output.dtype) == dtype
    actual = keras.ops.convert_to_numpy(keras.ops.cast(output, "float64"))
    # Of mixed policies the weights are float32, of others of the dtype; a mean of 49 pixels, and
    # its rounding, comes in two steps.
    digits = max(float(ml_dtypes.finfo(dtype).eps), 1e-6)
    np.testing.assert_allclose(actual, expected, atol=4 * digits * np.abs(expected).max())


def doubled(x, height, width):
    """By the formula of PyTorch's `interpolate(mode="nearest")`."""
    rows, columns = (
        np.arange(m) * n // m for n, m in zip(x.shape[1:3], (height, width), strict=True)
    )
    return x[:, rows][:, :, columns]


def test_doubling_takes_the_nearest_neighbour_whatever_the_size(tmp_path):
    """Of sides of 1 to 12 pixels, to even and to odd ones, which are known to the graph or not."""
    gate, image = keras.Input((None, None, 2)), keras.Input((None, None, 1))
    layer = custom_layers.NearestDoubling2D(name="doubling")
    keras.Model([gate, image], layer([gate, image])).save(tmp_path / "net.keras")
    net = keras.saving.load_model(tmp_path / "net.keras")
    assert net.output_shape == (None, None, None, 2)
    signature = [tf.TensorSpec((None, None, None, channels)) for channels in (2, 1)]
    of_any_size = tf.function(lambda gate, image: net([gate, image]), signature)
    sizes = [(n, m) for n in range(1, 13) for m in (2 * n, 2 * n + 1)]
    for (rows, height), (columns, width) in zip(sizes, sizes[::-1], strict=True):
        x = np.random.default_rng(0).standard_normal((2, rows, columns, 2)).astype("float32")
        like = np.zeros((2, height, width, 1), "float32")
        expected = doubled(x, height, width)
        np.testing.assert_array_equal(layer([x, like]), expected)
        np.testing.assert_array_equal(of_any_size(x, like), expected)


@pytest.mark.parametrize("height", [5, 8])
def test_doubling_refuses_what_is_no_double(height):
    with pytest.raises(ValueError, match=rf"'up' doubles .*: \(3, 4\) cannot become \({height}, 8"):
        custom_layers.NearestDoubling2D(name="up")(
            [np.zeros((1, 3, 4, 2)), np.zeros((1, height, 8, 2))]
        )


@pytest.mark.parametrize("floatx", ["float16", "bfloat16", "float64"])
def test_networks_of_any_floatx(floatx):
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    try:
        net = kapps.LeNet5Original(classes=4)
        assert {v.dtype for v in net.trainable_variables} == {floatx}
        scores = keras.ops.cast(net(np.full((1, 32, 32, 1), 255, np.uint8)), "float32")
        assert np.isfinite(keras.ops.convert_to_numpy(scores)).all()
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


@pytest.fixture
def two_heads():
    @model(size=16, min_size=4)
    def TwoHeads(aux: bool = False) -> Architecture:
        """A convolution, and an auxiliary head."""

        def head(x, net):
            main = net.classifier(keras.layers.Flatten(name="flatten")(x), "fc")
            if not aux:
                return main
            y = keras.layers.Flatten(name="aux_flatten")(flat_dense(x, 4, "aux.conv"))
            return [main, net.classifier(y, "aux.fc")]

        features = lambda x, net: act(conv(x, 4, 3, "conv1", stride=2), "relu", "act1")  # noqa: E731
        return Architecture(features, head, auxiliary=("aux.",))

    yield TwoHeads
    del _BUILDERS["TwoHeads"]


def test_what_a_model_knows_is_saved(two_heads, tmp_path):
    net = two_heads(aux=True, classes=3)
    net.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    assert type(loaded) is type(net) and loaded.features_layer == "act1"
    assert has_auxiliary_heads(net) and has_auxiliary_heads(loaded)
    assert loaded.checkpoint_auxiliary == ("aux.",) and not loaded.checkpoint_headless
    assert not has_auxiliary_heads(two_heads(classes=3))
    assert not has_auxiliary_heads(keras.Model(net.inputs, net.outputs))  # of anyone's making


def test_two_networks_on_one_input(two_heads, tmp_path):
    """The names of the second have a prefix; its weights are those of its checkpoint still."""
    image = keras.Input((32, 32, 3), name="image")
    nets = [two_heads(False, None, image) for _ in range(3)]
    nets.append(kapps.MobileNet(False, None, image, pooling="avg", alpha=0.25, name="mobile"))
    names = [[layer.name for layer in net.layers[1:4]] for net in nets]
    assert names[0] == ["normalization", "conv1_pad", "conv1"]
    assert [x[2] for x in names] == [
        "conv1",
        "TwoHeads_conv1",
        "TwoHeads_1_conv1",
        "mobile_conv_stem",
    ]
    both = keras.Model(image, [net.output for net in nets])
    assert len({v.path for v in both.variables}) == len(both.variables)
    kapps.save_weights(two_heads(False), tmp_path / "w.safetensors")
    for net in nets[:3]:
        kapps.load_weights(net, tmp_path / "w.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    first, second, third, _ = both(pixels)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)
    both.save(tmp_path / "both.keras")
    loaded = keras.saving.load_model(tmp_path / "both.keras")
    np.testing.assert_array_equal(loaded(pixels)[3], both(pixels)[3])
