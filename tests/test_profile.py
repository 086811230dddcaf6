"""kapps.profile: textbook figures, counts from the definitions, and what networks really see."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers
from programs import run_here

import kapps
from kapps._profile import profile
from kapps.custom_layers import MultiQueryAttention, NearestDoubling2D

SUMMARY = "tools.summary"


def chain(shape, *parts):
    """A model of these layers one after the other."""
    x = image = keras.Input(shape)
    for part in parts:
        x = part(x)
    return keras.Model(image, x)


# --- MACs ----------------------------------------------------------------------------------------


def test_a_bottleneck_saves_nine_tenths():
    """Szegedy et al. 2015, the example of many a lecture: 120 million against 12.4."""
    direct = profile(chain((28, 28, 192), layers.Conv2D(32, 5, padding="same")))
    assert direct.macs == 28 * 28 * 32 * 5 * 5 * 192 == 120_422_400
    bottleneck = profile(
        chain((28, 28, 192), layers.Conv2D(16, 1), layers.Conv2D(32, 5, padding="same"))
    )
    assert [layer.macs for layer in bottleneck.layers] == [0, 2_408_448, 10_035_200]
    assert bottleneck.macs == 12_443_648


def test_depthwise_separable_against_full():
    full = profile(chain((6, 6, 3), layers.Conv2D(5, 3)))
    assert full.layers[-1].output_shape == (4, 4, 5)
    assert full.macs == 2160
    parts = profile(chain((6, 6, 3), layers.DepthwiseConv2D(3), layers.Conv2D(5, 1)))
    assert [layer.macs for layer in parts.layers] == [0, 432, 240]
    assert parts.macs == profile(chain((6, 6, 3), layers.SeparableConv2D(5, 3))).macs == 672


@given(filters=st.integers(1, 9), kernel=st.integers(1, 5), channels=st.integers(1, 4))
@hypothesis.settings(max_examples=20)
def test_the_ratio_is_one_over_n_plus_one_over_k_squared(filters, kernel, channels):
    """Howard et al. 2017, section 3.1; exact, in rational numbers."""
    shape = (7, 6, channels)
    full = profile(chain(shape, layers.Conv2D(filters, kernel)))
    separable = profile(chain(shape, layers.SeparableConv2D(filters, kernel)))
    assert Fraction(separable.macs, full.macs) == Fraction(1, filters) + Fraction(1, kernel**2)


@given(
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    group=st.integers(1, 2),
    groups=st.integers(1, 3),
    filters=st.integers(1, 2),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid"]),
)
@hypothesis.settings(max_examples=40)
def test_macs_are_those_of_the_definition(
    height, width, group, groups, filters, kernel, stride, dilation, padding
):
    """Every product that the definition of a grouped, dilated convolution writes down, counted."""
    hypothesis.assume(stride == 1 or dilation == 1)
    reach = [dilation * (k - 1) + 1 for k in kernel]
    if padding == "same":  # as many windows as start on the map
        corners = [(height, width)[axis] for axis in (0, 1)]
    else:  # those that lie inside of the map
        corners = [height - reach[0] + 1, width - reach[1] + 1]
    products = 0
    for _ in range(0, corners[0], stride):
        for _ in range(0, corners[1], stride):
            for _ in range(filters * groups):
                for _ in range(kernel[0] * kernel[1]):
                    for _ in range(group):
                        products += 1
    conv = layers.Conv2D(
        filters * groups,
        kernel,
        strides=stride,
        padding=padding,
        groups=groups,
        dilation_rate=dilation,
    )
    assert profile(chain((height, width, group * groups), conv)).macs == products


def test_a_transposed_convolution_costs_what_its_convolution_does():
    """It is the gradient of one, which multiplies the same numbers in pairs."""
    up = chain((5, 6, 4), layers.Conv2DTranspose(3, (2, 3), strides=(2, 3)))
    back = chain(up.output_shape[1:], layers.Conv2D(4, (2, 3), strides=(2, 3)))
    assert back.output_shape == (None, 5, 6, 4)
    assert profile(up).macs == profile(back).macs == 5 * 6 * 4 * 3 * 6


def test_dense_and_one_dimensional_layers():
    assert profile(chain((10,), layers.Dense(7))).macs == 70
    assert profile(chain((4, 5, 10), layers.Dense(7))).macs == 4 * 5 * 70
    assert profile(chain((9, 2), layers.Conv1D(3, 4))).macs == 6 * 2 * 3 * 4
    assert profile(chain((10,), layers.Dense(7))).receptive_field is None


# Millions of MACs, counted by other libraries on their own implementations.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("EfficientNetLite0", 385.2),
        ("MobileNetV3Small", 56.5),
        ("ShuffleNetV2_x0_5", 40.5),
        ("keras:DenseNet121", 2834.2),
        ("keras:InceptionV3", 5713.2),
        ("keras:MobileNet", 568.7),
        ("keras:MobileNetV2", 300.8),
    ],
)
def test_macs_of_published_networks(name, millions):
    library, _, network = name.rpartition(":")
    if library:
        model = getattr(keras.applications, network)(weights=None)
    else:
        model = kapps.get_builder(network)()
    result = profile(model)
    assert result.macs == pytest.approx(millions * 1e6, abs=0.05e6)  # all the digits published
    assert result.parameters == model.count_params()
    trainable = sum(np.prod(weight.shape) for weight in model.trainable_weights)
    assert result.trainable_parameters == trainable


# --- Receptive field -----------------------------------------------------------------------------


# "Computing Receptive Fields of Convolutional Neural Networks", Araujo et al. 2019, the table of
# https://distill.pub/2019/computing-receptive-fields
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "field", "stride"),
    [
        ("VGG16", 212, 32),
        ("ResNet50", 483, 32),
        ("InceptionV3", 1311, 32),
        ("MobileNet", 315, 32),
        ("ResNet101", 1027, 32),
        ("ResNet152", 1507, 32),
    ],
)
def test_receptive_fields_of_the_literature(name, field, stride):
    model = getattr(keras.applications, name)(weights=None, include_top=False)
    result = profile(model, input_shape=(299, 299, 3))
    assert result.receptive_field == (field, field)
    assert result.layers[-1].stride == (stride, stride)


def test_attention_sees_all_of_the_map():
    """16 positions, each of 2 heads, with 4 keys of 3 channels, and their values of 5."""
    image = keras.Input((8, 8, 3))
    queries = layers.Conv2D(6, 2, strides=2, name="queries")(image)
    keys, values = (layers.Conv2D(n, 4, strides=4)(image) for n in (3, 5))
    attention = MultiQueryAttention(2, name="attention")([queries, keys, values])
    *_, last = profile(keras.Model(image, attention)).layers
    assert last.output_shape == (4, 4, 10) and last.macs == 16 * 2 * 4 * (3 + 5)
    assert last.receptive_field == (8, 8) and last.stride == (2, 2)


def test_receptive_fields_by_hand():
    pool = {"pool_size": 3, "strides": 2}
    alexnet = chain(
        (224, 224, 3),
        layers.Conv2D(2, 11, strides=4),
        layers.MaxPooling2D(**pool),
        layers.Conv2D(2, 5, padding="same"),
        layers.MaxPooling2D(**pool),
        *(layers.Conv2D(2, 3, padding="same") for _ in range(3)),
        layers.MaxPooling2D(**pool),
    )
    fields = [layer.receptive_field[0] for layer in profile(alexnet).layers]
    assert fields == [1, 11, 19, 51, 67, 99, 131, 163, 195]

    lenet = {layer.name: layer for layer in profile(kapps.LeNet5()).layers}
    assert lenet["pool2"].receptive_field == (16, 16) and lenet["pool2"].stride == (4, 4)
    assert lenet["fc1"].receptive_field == lenet["fc3"].receptive_field == (32, 32)
    assert lenet["fc3"].stride is None


def test_operations_without_a_layer():
    x = image = keras.Input((20, 20, 4))
    x = keras.ops.max_pool(layers.Conv2D(4, 3)(x), 2)
    x = keras.ops.relu(x + 3.0) / 6.0
    last = profile(keras.Model(image, x)).layers[-1]
    assert last.receptive_field == (4, 4) and last.stride == (2, 2)


class Blur(layers.Layer):
    """A layer of one's own that says what it reads with Keras's attributes."""

    kernel_size, strides, padding = (3, 5), (2, 1), "valid"

    def call(self, x):
        return keras.ops.average_pool(x, self.kernel_size, self.strides, self.padding)


def test_a_layer_of_ones_own_can_tell_its_window():
    last = profile(chain((20, 20, 4), Blur(), Blur())).layers[-1]
    assert last.receptive_field == (7, 9) and last.stride == (4, 1)


def test_what_mixes_all_positions_sees_the_image():
    shape, image = (24, 32, 4), (24, 32)

    def seen(*parts):
        return profile(chain(shape, layers.Conv2D(4, 3), *parts)).layers[-1].receptive_field

    assert seen(layers.BatchNormalization(), layers.LayerNormalization()) == (3, 3)
    assert seen(layers.GlobalAveragePooling2D(), layers.Dense(3)) == image
    assert seen(layers.Flatten(), layers.Dense(3)) == image
    assert seen(layers.GroupNormalization(2)) == image
    assert seen(layers.LayerNormalization(axis=[1, 2, 3])) == image
    assert seen(layers.Reshape((30, 22, 4))) == image
    assert seen(layers.Reshape((660, 4)), layers.Conv1D(2, 3)) == image
    # A convolution over the whole map is fully connected, and a unit of it one of 1x1.
    assert seen(layers.Conv2D(5, (22, 30)), layers.Flatten(), layers.Dense(2)) == image
    # One that sees less than the image, on a map that just happens to be of one position.
    assert seen(layers.MaxPooling2D(22, strides=99), layers.Flatten()) == (24, 24)


def test_squeeze_and_excitation_sees_the_image():
    x = image = keras.Input((20, 20, 4))
    x = layers.Conv2D(4, 3, strides=2)(x)
    gate = layers.Dense(4)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Conv2D(4, 3)(layers.Multiply()([x, gate]))
    last = profile(keras.Model(image, x)).layers[-1]
    assert last.receptive_field == (20, 20) and last.stride == (2, 2)


SIDE = 64


_KINDS = ["conv", "dilated", "depthwise", "max", "avg", "pad", "crop", "up", "transposed", "add"]


@st.composite
def networks(draw):
    """Layers of all kinds that move or mix positions, with one channel and all weights 1."""
    x = image = keras.Input((SIDE, SIDE, 1))

    def conv(x, **arguments):
        arguments.setdefault("kernel_size", draw(st.tuples(st.integers(1, 4), st.integers(1, 4))))
        return layers.Conv2D(1, kernel_initializer="ones", **arguments)(x)

    for _ in range(draw(st.integers(1, 3))):
        padding = draw(st.sampled_from(["same", "valid"]))
        size, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        kind = draw(st.sampled_from(_KINDS))
        if kind == "conv":
            x = conv(x, strides=stride, padding=padding)
        elif kind == "dilated":
            x = conv(x, dilation_rate=stride, padding=padding)
        elif kind == "depthwise":
            x = layers.DepthwiseConv2D(
                size, strides=stride, padding=padding, depthwise_initializer="ones"
            )(x)
        elif kind == "max":
            x = layers.MaxPooling2D(size, stride, padding=padding)(x)
        elif kind == "avg":
            x = layers.AveragePooling2D(size, stride, padding=padding)(x)
        elif kind == "pad":
            x = layers.ZeroPadding2D(((size, stride), (stride, size)))(x)
        elif kind == "crop":
            x = layers.Cropping2D(((1, stride), (stride, 1)))(x)
        elif kind == "up":
            x = layers.UpSampling2D(
                2, interpolation=draw(st.sampled_from(["nearest", "bilinear"]))
            )(x)
        elif kind == "transposed":  # Keras's backends place the rows of larger kernels differently
            x = layers.Conv2DTranspose(1, 2, strides=2, kernel_initializer="ones")(x)
        else:
            branches = [conv(x, strides=stride, padding="same") for _ in range(2)]
            x = layers.Add()([*branches, layers.AveragePooling2D(1, stride)(x)])
    return keras.Model(image, x)


def seen_along(model, axis):
    """What each unit along an axis of the output sees: its first and its last pixel.

    Found by lighting up the rows (or columns) of a black image one at a time.
    """
    lines = np.eye(SIDE, dtype="float32").reshape((SIDE, SIDE, 1, 1))
    images = np.broadcast_to(lines, (SIDE, SIDE, SIDE, 1))
    if axis == 1:
        images = images.transpose(0, 2, 1, 3)
    output = keras.ops.convert_to_numpy(model(images, training=False))[..., 0]
    lit = output.max(axis=2 - axis) > 0  # (pixel, unit)
    return [(int(np.flatnonzero(u)[0]), int(np.flatnonzero(u)[-1])) for u in lit.T if u.any()]


@pytest.mark.parametrize("kernel", [1, 2])  # which leaves 64 pixels, or 63
def test_a_doubled_map_sees_what_was_pooled(kernel):
    image = keras.Input((SIDE, SIDE, 1))
    x = layers.Conv2D(1, kernel, kernel_initializer="ones")(image)
    doubled = NearestDoubling2D()([layers.AveragePooling2D(2)(x), x])
    model = keras.Model(image, layers.Add()([x, doubled]))
    last = profile(model).layers[-1]
    assert last.stride == (1, 1)
    for axis in (0, 1):
        extents = {high - low + 1 for low, high in seen_along(model, axis)}
        assert max(extents) == last.receptive_field[axis] == 2 * kernel


@pytest.mark.slow
@given(model=networks())
@hypothesis.settings(max_examples=25, suppress_health_check=list(hypothesis.HealthCheck))
def test_receptive_fields_are_what_units_depend_on(model):
    """Against the network itself: which pixels change what comes out."""
    last = profile(model).layers[-1]
    hypothesis.assume(max(last.receptive_field) <= SIDE // 3)  # room for units off the edge
    for axis in (0, 1):
        seen = seen_along(model, axis)
        extents = [high - low + 1 for low, high in seen]
        assert max(extents) == last.receptive_field[axis]
        for i in range(len(seen) - 8):  # three doublings at most: every 8th unit is alike
            if extents[i] == extents[i + 8] == max(extents):  # no edge cuts these off
                assert seen[i + 8][0] - seen[i][0] == 8 * last.stride[axis]


@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_units_of_a_transposed_convolution_differ_in_what_they_see(kernel):
    """Of stride 2: each sees half of the kernel, or the other half."""
    model = chain(
        (SIDE, SIDE, 1),
        layers.Conv2D(1, 3, kernel_initializer="ones"),
        layers.Conv2DTranspose(1, kernel, 2, padding="same", kernel_initializer="ones"),
    )
    last = profile(model).layers[-1]
    assert last.receptive_field[0] == 3 + (kernel + 1) // 2 - 1
    assert last.receptive_field[0] == max(b - a + 1 for a, b in seen_along(model, 0))
    assert last.stride == (0.5, 0.5)


# --- Graphs and memory ---------------------------------------------------------------------------


def test_a_shared_layer_counts_its_weights_once():
    left, right = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    conv = layers.Conv2D(4, 3, name="shared")
    model = keras.Model([left, right], layers.Add()([conv(left), conv(right)]))
    result = profile(model)
    shared = [layer for layer in result.layers if layer.name == "shared"]
    assert [layer.parameters for layer in shared] == [112, 0]
    assert [layer.macs for layer in shared] == [36 * 4 * 27] * 2
    assert result.parameters == model.count_params()


def test_nested_and_sequential_models_are_opened():
    inner = keras.Sequential(
        [keras.Input((None, None, 4)), layers.Conv2D(6, 3, name="a"), layers.ReLU(name="b")],
        name="inner",
    )
    outer = chain((12, 12, 3), layers.Conv2D(4, 3, strides=2), inner, layers.Conv2D(2, 1))
    result = profile(outer)
    assert [layer.name for layer in result.layers][2:4] == ["inner/a", "inner/b"]
    assert result.layers[3].output_shape == (3, 3, 6)
    assert result.layers[3].receptive_field == (7, 7)
    assert result.parameters == outer.count_params()
    assert profile(inner, input_shape=(5, 5, 4)).macs == result.layers[2].macs


def test_several_outputs_and_inputs():
    image, other = keras.Input((16, 16, 3)), keras.Input((5,), name="numbers")
    x = layers.Conv2D(4, 3)(image)
    aux = layers.Dense(2, name="aux")(layers.Flatten()(x))
    x = layers.Conv2D(4, 3, strides=2)(x)
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.Dense(3)(other)])
    result = profile(keras.Model([image, other], [x, aux]))
    by_name = {layer.name: layer for layer in result.layers}
    assert by_name["aux"].macs == 14 * 14 * 4 * 2
    assert by_name["aux"].receptive_field == (16, 16)
    assert by_name["numbers"].receptive_field is None
    assert result.receptive_field == (5, 5)


def test_a_model_of_any_size_takes_input_shape():
    model = kapps.MobileNetV3Small(include_top=False)
    fixed = kapps.MobileNetV3Small(include_top=False, input_shape=(96, 64, 3))
    assert profile(model, input_shape=(96, 64, 3)).layers == profile(fixed).layers


def test_activation_memory():
    """A residual block by hand, float32: 4x4x8 is 512 bytes, 4x4x16 is 1,024."""
    x = image = keras.Input((4, 4, 8))
    y = layers.Conv2D(16, 1)(x)  # alive: image, wide
    y = layers.ReLU()(y)  # image, wide, wide: the most
    y = layers.Conv2D(8, 1)(y)  # image, wide, narrow
    model = keras.Model(image, layers.Add()([x, y]))
    result = profile(model)
    assert [layer.activation_bytes for layer in result.layers] == [512, 1024, 1024, 512, 512]
    assert result.activation_bytes == 3584
    assert result.peak_activation_bytes == 512 + 1024 + 1024

    # An output that is needed no more still has to be handed over.
    both = profile(keras.Model(image, [model.layers[1].output, model.output]))
    assert both.peak_activation_bytes == 512 + 1024 + 1024 + 512


def test_activation_memory_follows_the_dtype():
    half = chain((4, 4, 8), layers.Conv2D(16, 1, dtype="mixed_float16"))
    assert [layer.activation_bytes for layer in profile(half).layers] == [512, 512]


def test_a_frozen_layer_is_not_trainable():
    model = chain((4, 4, 8), layers.Conv2D(16, 1, name="conv"), layers.BatchNormalization())
    model.get_layer("conv").trainable = False
    result = profile(model)
    assert (result.parameters, result.trainable_parameters) == (144 + 64, 32)


class Gram(layers.Layer):
    """Channels times channels: products that no rule knows."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(1, 1), initializer="ones")

    def call(self, x):
        return keras.ops.einsum("bhwc,bhwd->bcd", x, x) * self.scale

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1], input_shape[-1])


class CountedGram(Gram):
    def compute_macs(self, input_shape):
        _, height, width, channels = input_shape
        return height * width * channels**2


def test_a_layer_can_tell_its_own_macs():
    assert profile(chain((4, 5, 3), CountedGram())).macs == 4 * 5 * 9
    anywhere = chain((None, None, 3), CountedGram())
    assert profile(anywhere, input_shape=(4, 5, 3)).macs == 4 * 5 * 9


class Uncallable(keras.Model):
    def call(self, x):
        return x


def any_size(*parts):
    return chain((None, None, 3), layers.Conv2D(4, 3, name="conv"), *parts)


def two_inputs():
    inputs = [keras.Input((None, None, 3)), keras.Input((None, None, 3))]
    return keras.Model(inputs, layers.Add()(inputs))


def multiplied():
    x = keras.Input((4, 4))
    return keras.Model(x, keras.ops.matmul(x, x))


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (any_size, None, "takes inputs of any size.*give input_shape, such as .224, 224, 3"),
        (any_size, (64, None, 3), "give input_shape, such as .64, 224, 3"),
        (any_size, (64, 64, 1), "input_shape .64, 64, 1. does not fit .* built for"),
        (any_size, (64, 64), "does not fit"),
        (any_size, (0, 64, 3), "sizes are at least 1"),
        (any_size, (2, 2, 3), "conv.*input_shape"),
        (lambda: any_size(layers.MaxPooling2D(9, name="pool")), (8, 8, 3), "pool.*input_shape"),
        (lambda: kapps.LeNet5(), (64, 64, 1), "does not fit LeNet5.*build it for the other"),
        (two_inputs, None, "build it with a fixed shape for each input"),
        (two_inputs, (8, 8, 3), "has 2 inputs"),
        (Uncallable, None, "functional or a built sequential.*not Uncallable"),
        (lambda: keras.Sequential([layers.Dense(2)]), None, "built sequential"),
        (lambda: layers.Dense(2), None, "not Dense"),
        (lambda: chain((4, 5, 3), Gram(name="gram")), None, "gram.*Gram sums.*compute_macs"),
        (multiplied, None, "Matmul sums"),
    ],
)
def test_a_mistake_is_named(build, shape, message):
    with pytest.raises(kapps.InputError, match=message):
        profile(build(), shape)


def test_a_dense_layer_of_another_size_is_named():
    """Its weights fit one size only, which Keras does not check on symbols."""
    image = keras.Input((8, 8, 3))
    dense = layers.Dense(2, name="dense")
    keras.Model(image, dense(layers.Flatten()(image)))
    fully = keras.Model(x := keras.Input((None, 3)), layers.ReLU()(x))
    assert profile(fully, (5, 3)).macs == 0
    dense_on_any = chain((None, None, 3), layers.Resizing(8, 8), layers.Flatten(), dense)
    assert profile(dense_on_any, (20, 30, 3)).macs == 8 * 8 * 3 * 2


def test_channels_first_is_named():
    model = chain((3, 8, 8), layers.ZeroPadding2D(1, data_format="channels_first"))
    with pytest.raises(kapps.InputError, match="channels_first.*channels_last models only"):
        profile(model)


# --- The table and the binary --------------------------------------------------------------------


def test_the_table():
    text = str(profile(kapps.LeNet5()))
    rows = text.splitlines()
    assert " ".join(rows[0].split()) == "layer type output parameters MACs KiB field stride"
    conv = next(row for row in rows if row.startswith("conv2 "))
    assert " ".join(conv.split()) == "conv2 Conv2D 10x10x16 2,416 240,000 6.2 14x14 2x2"
    assert "MACs             416,520" in rows
    assert "parameters       61,708, trainable 61,706" in rows


def test_summary_prints_the_table(tmp_path, capsys):
    done = run_here(SUMMARY, f"--model=LeNet5 --json={tmp_path}/lenet.json", capsys)
    result = profile(kapps.LeNet5())
    assert not done.code and done.stdout == f"{result}\n"
    figures = json.loads((tmp_path / "lenet.json").read_text())
    assert figures["macs"] == sum(layer["macs"] for layer in figures["layers"]) == 416_520
    assert figures["layers"][2]["receptive_field"] == [5, 5]


def test_summary_of_what_the_flags_ask_for(capsys):
    done = run_here(
        SUMMARY,
        "--model=LeNet5 --input_size=40x32 --classes=36 --nolayers "
        "--arguments=dropout_rate=0.5,classifier_activation=None,name=mine",
        capsys,
    )
    mine = kapps.LeNet5(input_shape=(40, 32, 1), classes=36, dropout_rate=0.5, name="mine")
    assert done.stdout == profile(mine).totals() + "\n"
    done = run_here(
        SUMMARY, "--model=MobileNetV3Small --nolayers --arguments=include_top=False", capsys
    )
    assert "MACs             54,896,576" in done.stdout


def test_summary_lists_the_models(capsys):
    assert run_here(SUMMARY, "--list", capsys).stdout.split() == kapps.list_models()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "give either --model or --list"),
        ("--model=LeNet5 --list", "give either --model or --list"),
        ("--model=LeNet", "unknown model 'LeNet'; did you mean LeNet5"),
        ("--model=LeNet5 --input_size=large", "--input_size=large: give pixels"),
        ("--model=LeNet5 --input_size=8", "too small; the smallest is 16x16"),
        ("--model=LeNet5 --classes=0", "flag --classes=0"),
        ("--model=LeNet5 --arguments=dropout=0.5", "did you mean dropout_rate"),
        ("--model=LeNet5 --arguments=zz=1", "known: classifier_activation, "),
        ("--model=LeNet5 --arguments=classes=5", "unknown argument of LeNet5 'classes'"),
        ("--model=LeNet5 --arguments=7", "give NAME=VALUE,NAME=VALUE"),
        ("--model=LeNet5 --arguments=pooling=[", "LeNet5 has include_top, pooling, "),
        ("--model=LeNet5 --arguments=pooling=open(1)", "give NAME=VALUE,NAME=VALUE"),
        ("--model=LeNet5 --arguments=**name", "give NAME=VALUE,NAME=VALUE"),
        ("--model=LeNet5 --arguments=dropout_rate=high", "dropout_rate must be at least 0 and"),
        ("--model=ShuffleNetV2 --arguments=scale=[]", "scale must be one of 0.5, 1.0, 1.5, 2.0"),
        ("--model=WideResNet --arguments=block=[]", "WideResNet does not take --arguments="),
        ("--model=LeNet5 --arguments=pooling=mean", "unknown pooling 'mean'"),
    ],
)
def test_a_wrong_flag_gets_one_line(flags, message, capsys):
    done = run_here(SUMMARY, flags, capsys)
    assert done.code == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("kapps-summary: error: ") and message in done.stderr


@pytest.mark.slow
def test_summary_ends_quietly_when_its_reader_leaves():
    command = [sys.executable, "-m", "kapps.tools.summary", "--model=LeNet5"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()  # TensorFlow may speak there as well
        assert "Traceback" not in errors and "BrokenPipe" not in errors, errors
        assert process.wait(timeout=120) == 0
