"""The passes of the export pipeline: exact, and the model that went in stays as it was."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from tflite_net import gated_net, phone_nets, small_net

import kapps
from kapps import InputError, _layers, shufflenet_v2
from kapps.custom_layers import ChannelShuffle, ImageNormalization
from kapps.tflite.content import make_content
from kapps.tflite.interpreter import Runner
from kapps.tflite.passes import (
    PASSES,
    average_pool_as_conv,
    fold_batch_norm,
    fold_normalization,
    fuse_activations,
    merge_branches,
    rebuild,
    relu6_gates,
    relu6_hard_swish,
    remove_auxiliary_heads,
    remove_channel_shuffle,
    remove_training_layers,
    rgb_input,
    run_passes,
    static_batch,
)
from kapps.tflite.passes.graph import sharing_weights

pytest_plugins = ["tflite_fixtures"]


def _weights(model):
    return [(layer.name, weight) for layer in model.layers for weight in layer.get_weights()]


def _outputs(model, images):
    """One image at a time, since a batch may be of one."""
    values = [model(image[None].astype("float32"), training=False) for image in images]
    return np.concatenate(values)


def _randomized(model, seed=0):
    """The model with biases and batch norms as after training, and not 0 and 1."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        weights = layer.get_weights()
        if isinstance(layer, layers.BatchNormalization):
            variance = random.uniform(0.5, 1.5, weights[-1].shape)
            weights = [random.normal(0.2, 0.5, w.shape) for w in weights[:-1]] + [variance]
        elif getattr(layer, "use_bias", False):
            weights[-1] = random.normal(0, 0.5, weights[-1].shape)
        layer.set_weights(weights)
    return model


def _images(model, count=2, seed=1):
    return np.random.default_rng(seed).uniform(0, 255, (count, *model.input_shape[1:]))


def _check_exact(export_pass, model, images=None):
    """The model after the pass: it gives the same, the old one is untouched, and it is final.

    What differs is the rounding of float32, which is relative to the largest values.
    """
    images = _images(model) if images is None else images
    before, weights = _outputs(model, images), _weights(model)
    inbound = [len(layer._inbound_nodes) for layer in model.layers]
    result = export_pass(model)
    atol = 1e-5 * max(1e-3, float(np.abs(before).max()))
    np.testing.assert_allclose(_outputs(result, images), before, rtol=0, atol=atol)
    np.testing.assert_array_equal(_outputs(model, images), before)
    assert [len(layer._inbound_nodes) for layer in model.layers] == inbound
    for (name, weight), (old_name, old_weight) in zip(_weights(model), weights, strict=True):
        assert name == old_name
        np.testing.assert_array_equal(weight, old_weight)
    if result is not model:
        assert not set(map(id, model.layers)) & set(map(id, result.layers))
    again = export_pass(result)
    assert _kinds(again) == _kinds(result)
    np.testing.assert_array_equal(_outputs(again, images), _outputs(result, images))
    return result


def _kinds(model):
    return [(layer.name, type(layer).__name__) for layer in model.layers]


def _names(model):
    return [layer.name for layer in model.layers]


def _has(model, kind):
    return any(isinstance(layer, kind) for layer in model.layers)


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.name)
def test_exact_and_leaves_its_input_alone(step, net, digits):
    _check_exact(step.run, net, digits[1][0][:4])


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_all_passes_together(quantization, net, digits):
    images = digits[1][0][:4]
    result = _check_exact(lambda m: run_passes(m, quantization=quantization), net, images)
    assert result.input_shape == (1, 16, 16, 3)
    assert not _has(result, layers.BatchNormalization)
    swish = [getattr(layer, "activation", None) for layer in result.layers]
    assert (keras.activations.hard_silu in swish) == (quantization == "float32")
    assert keras.activations.hard_sigmoid not in swish


# Each with something of its own: hard-swish and gates; a shuffle that crosses groups; one that a
# pass removes; ReLU6 throughout. The others are made of the same.
@pytest.mark.slow
@pytest.mark.parametrize("name", phone_nets("MobileNetV3Small", "ShuffleNet", "ShuffleNetV2_x0_5"))
def test_every_pass_is_exact_on_the_nets(name):
    keras.utils.set_random_seed(0)
    builder = getattr(kapps, name)
    model = builder(input_shape=(48, 48, 3), classes=10, classifier_activation=None)
    _randomized(model)
    images = _images(model)
    expected = _outputs(model, images)
    after = {}
    for step in PASSES:
        after[step.name] = model = step.run(model)

    def error(found):
        return np.abs(_outputs(found, images) - expected).max() / expected.std()

    # 1e-4: float32's rounding in up to 80 layers. Which pass it was is only asked if one was.
    assert error(model) < 1e-4, {name: error(found) for name, found in after.items()}
    assert not _has(model, (layers.BatchNormalization, ImageNormalization, layers.Dropout))
    if name == "ShuffleNetV2_x0_5":
        assert not _has(model, ChannelShuffle)
    activations = [getattr(layer, "activation", None) for layer in model.layers]
    assert not {keras.activations.hard_silu, keras.activations.hard_sigmoid} & set(activations)


@pytest.mark.parametrize("quantization", ["float32", "int8"])
@pytest.mark.parametrize("net", [small_net, gated_net])
def test_the_delegate_takes_the_file_in_one_piece(net, quantization, digits, tmp_path):
    model, images = _randomized(net()), digits[0][0][:8]
    made = make_content(
        run_passes(model, quantization=quantization),
        quantization,
        "uint8" if quantization == "int8" else "float32",
        images,
    )
    (tmp_path / "net.tflite").write_bytes(made.content)
    runner = Runner(tmp_path / "net.tflite")
    assert runner.delegate_pieces == 1
    if quantization == "float32":
        np.testing.assert_allclose(runner.predict(images), _outputs(model, images), atol=1e-5)


# Branches.


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    depthwise=st.booleans(),
    sizes=st.lists(st.sampled_from([1, 3, 5]), min_size=1, max_size=3),
    stride=st.integers(1, 2),
    identity=st.booleans(),
    folded=st.booleans(),
    side=st.integers(5, 8),
)
def test_branches_become_one_convolution(depthwise, sizes, stride, identity, folded, side):
    """The sum of a sum, as of a block with a shortcut, each branch with its batch norm."""
    image = keras.Input((side, side, 4))
    parts = []
    for i, size in enumerate(sizes):
        if depthwise:
            part = _layers.depthwise(image, size, f"conv{i}", stride=stride)
        else:
            part = _layers.conv(image, 4, size, f"conv{i}", stride=stride)
        parts.append(_layers.bn(part, f"bn{i}"))
    x = parts[0] if len(parts) == 1 else layers.Add(name="branches")(parts)
    if identity and stride == 1:
        x = layers.Add(name="add")([x, _layers.bn(image, "identity")])
    x = layers.Dense(3, name="end")(layers.Flatten()(layers.ReLU(name="relu")(x)))
    model = _check_exact(
        (lambda m: merge_branches(fold_batch_norm(m)))
        if folded
        else (lambda m: fold_batch_norm(merge_branches(m))),
        _randomized(keras.Model(image, x)),
    )
    kinds = [type(layer) for layer in model.layers if layer.weights]
    assert kinds == [layers.DepthwiseConv2D if depthwise else layers.Conv2D, layers.Dense]
    assert not _has(model, layers.Add)


def _two_maps(x):
    y = layers.Conv2D(4, 3, padding="same")(layers.ReLU()(x))
    return layers.Add()([layers.Conv2D(4, 3, padding="same")(x), y])


def _other_centres(x):
    return layers.Add()([layers.Conv2D(4, 2, padding="same")(x), layers.Conv2D(4, 1)(x)])


def _a_branch_is_read_elsewhere(x):
    y = layers.Conv2D(4, 1)(x)
    return layers.Concatenate()([layers.Add()([y, layers.Conv2D(4, 1)(x)]), y])


def _active_branch(x):
    return layers.Add()([layers.Conv2D(4, 1, activation="relu")(x), layers.Conv2D(4, 1)(x)])


def _twice(x):
    shared = layers.Conv2D(4, 1)
    return layers.Add()([shared(x), shared(layers.ReLU()(x))])


def _shortcut(x):
    return layers.Add()([layers.Conv2D(4, 3, padding="same")(x), x])


@pytest.mark.parametrize(
    "build",
    [_two_maps, _other_centres, _a_branch_is_read_elsewhere, _active_branch, _twice, _shortcut],
)
def test_other_sums_stay(build):
    image = keras.Input((6, 6, 4))
    model = _randomized(keras.Model(image, build(image)))
    assert merge_branches(model) is model


# Image normalization.

_floats = st.floats(0.0625, 0.9375, width=32)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid", "zeros"]),
    constants=st.lists(st.tuples(_floats, _floats), min_size=4, max_size=4),
    uniform=st.booleans(),
)
def test_normalization_is_exact_at_the_borders_too(
    channels, size, kernel, stride, padding, constants, uniform
):
    mean, std = zip(*[constants[0] if uniform else c for c in constants[:channels]], strict=True)
    image = keras.Input((*size, channels))
    x = ImageNormalization(mean, std, name="normalization")(image)
    if padding == "zeros":
        x = layers.ZeroPadding2D(((1, 2), (0, 1)))(x)
    x = layers.Conv2D(
        4, kernel, stride, padding="same" if padding == "same" else "valid", name="stem"
    )(x)
    model = _check_exact(fold_normalization, _randomized(keras.Model(image, x)))
    assert _names(model).count("normalization") == 1
    folded = model.get_layer("normalization")
    assert folded.std == (1,) * channels
    np.testing.assert_allclose(folded.mean, 255 * np.array(mean, "float32"), rtol=1e-6)


def _depthwise(x):
    return layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x)


def _two_users(x):
    return layers.Concatenate()([layers.Conv2D(2, 3)(x), layers.Conv2D(3, 3)(x)])


@pytest.mark.parametrize(
    ("after", "std_stays"),
    [
        (_depthwise, False),
        (layers.Dense(3), False),
        (layers.MaxPooling2D(2), True),
        (layers.Conv2D(6, 3, groups=3), True),
        (_two_users, True),
        (layers.Flatten(), True),
    ],
)
def test_normalization_before_something_else(after, std_stays):
    image = keras.Input((8, 6, 3))
    x = ImageNormalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), name="norm")(image)
    model = _check_exact(fold_normalization, keras.Model(image, after(x)))
    assert (model.get_layer("norm").std != (1, 1, 1)) == std_stays


def test_normalization_of_images_of_any_width_is_left_alone():
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(2, 3)(ImageNormalization(0.5, 0.5)(image))
    model = keras.Model(image, x)
    assert fold_normalization(model) is model


def test_normalization_that_was_trained_elsewhere_is_taken_from_its_weights():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(2, 3)(ImageNormalization(0.5, 0.5, name="norm")(image))
    model = keras.Model(image, x)
    model.get_layer("norm").set_weights([np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])])
    result = _check_exact(fold_normalization, model)
    np.testing.assert_allclose(result.get_layer("norm").mean, (25.5, 51, 76.5), rtol=1e-6)


# Batch norm and activations.


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Conv2D(6, 3, groups=3, use_bias=False, name="conv"),
        lambda: layers.Conv2D(4, 3, padding="same", name="conv"),
        lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="conv"),
        lambda: layers.Dense(5, name="conv"),
    ],
    ids=["grouped", "conv", "depthwise", "dense"],
)
def test_batch_norm_goes_into_the_layer_before(layer, scale, center):
    image = keras.Input((7, 7, 3))
    x = layers.BatchNormalization(center=center, scale=scale, epsilon=0.1)(layer()(image))
    model = _check_exact(fold_batch_norm, _randomized(keras.Model(image, layers.ReLU()(x))))
    assert [type(layer).__name__ for layer in model.layers][2:] == ["ReLU"]
    assert "conv" in _names(model)


def test_batch_norm_is_left_alone_where_it_does_not_fold():
    image = keras.Input((7, 7, 3))
    shared = layers.Conv2D(3, 3, padding="same")
    conv = layers.Conv2D(3, 3, padding="same")(image)  # of two users
    x = layers.Add()([layers.BatchNormalization()(conv), conv])
    x = layers.BatchNormalization()(shared(shared(x)))  # called twice
    x = layers.BatchNormalization()(layers.Conv2D(3, 3, activation="relu")(x))  # not linear
    x = layers.BatchNormalization()(layers.ReLU()(x))  # after no convolution
    x = layers.BatchNormalization(axis=1)(layers.Conv2D(3, 1)(x))  # of another axis
    x = layers.BatchNormalization()(layers.Conv2D(3, 1)(x), training=True)  # of the batch
    model = keras.Model(image, x)
    assert fold_batch_norm(model) is model


@pytest.mark.parametrize("relu", [layers.ReLU, lambda **k: layers.Activation("relu", **k)])
def test_activations_fuse_into_what_keeps_its_name(relu):
    image = keras.Input((7, 7, 3))
    x = relu(name="a1")(layers.Conv2D(4, 3, name="conv")(image))
    x = layers.Activation("relu6", name="a2")(layers.DepthwiseConv2D(3, name="dw")(x))
    x = layers.ReLU(6.0, name="a3")(layers.Dense(4, name="dense")(x))
    model = _check_exact(fuse_activations, _randomized(keras.Model(image, x)))
    assert _names(model)[1:] == ["conv", "dw", "dense"]
    assert [layer.activation.__name__ for layer in model.layers[1:]] == ["relu", "relu6", "relu6"]


def test_activations_are_left_alone_where_they_do_not_fuse():
    image = keras.Input((7, 7, 3))
    conv = layers.Conv2D(4, 3)(image)  # of two users
    x = layers.Add()([layers.ReLU()(conv), conv])
    x = layers.ReLU(max_value=3.0)(layers.Conv2D(4, 1)(x))
    x = layers.ReLU(negative_slope=0.1)(layers.Conv2D(4, 1)(x))
    x = layers.Activation("tanh")(layers.Conv2D(4, 1)(x))
    x = layers.ReLU()(layers.Conv2D(4, 1, activation="sigmoid")(x))
    x = layers.ReLU()(layers.Concatenate()([x - 1, layers.Conv2D(4, 1)(x)]))
    model = keras.Model(image, x)
    assert fuse_activations(model) is model


def test_relu_of_a_concatenation_goes_to_what_is_concatenated():
    image = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(4, 3, padding="same")(image))
    pooled = layers.AveragePooling2D(2)(x)  # not negative: needs none
    conv = layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(x)
    x = layers.ReLU(name="last")(layers.Concatenate()([pooled, conv]))
    model = _check_exact(fuse_activations, _randomized(keras.Model(image, x)))
    assert not _has(model, layers.ReLU)
    assert model.get_layer("conv").activation is keras.activations.relu


# Gates and hard-swish.


def _gated(after):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="conv")(image)
    x = _layers.se(x, 4, "se", gate="hard_sigmoid")
    return _randomized(keras.Model(image, after(x)))


@pytest.mark.parametrize(
    "after",
    [
        layers.Conv2D(4, 1),
        layers.DepthwiseConv2D(3, padding="same"),
        lambda x: layers.Dense(5)(layers.Flatten()(layers.MaxPooling2D(2)(x))),
        lambda x: layers.Conv2D(2, 1)(layers.Add()([x, layers.Conv2D(8, 1)(x + 1)])),
        lambda x: layers.Add()([layers.Conv2D(2, 1)(x), layers.Conv2D(2, 1)(x)]),
    ],
    ids=["conv", "depthwise", "pool-flatten-dense", "sum", "two-users"],
)
def test_gates_become_relu6(after, request):
    model = _gated(after)
    result = _check_exact(relu6_gates, model)
    if request.node.callspec.id == "sum":  # whose other summand is made of the gated map itself
        assert result is model
        return
    assert "se_gate" not in _names(result)
    assert result.get_layer("se_conv_expand").activation is keras.activations.relu6


@pytest.mark.parametrize(
    "after",
    [
        lambda x: x,
        layers.Activation("relu6"),
        lambda x: layers.Conv2D(2, 1)(layers.Multiply()([x, x])),
        lambda x: layers.Conv2D(2, 1)(layers.BatchNormalization()(x)),
        lambda x: layers.Concatenate()([layers.Conv2D(2, 1)(x), x]),
    ],
    ids=["output", "relu6", "square", "batch-norm", "concatenation"],
)
@pytest.mark.parametrize("export_pass", [relu6_gates, relu6_hard_swish])
def test_gates_are_left_alone_where_the_factor_finds_no_kernel(export_pass, after):
    image = keras.Input((8, 8, 3))
    x = _layers.act(layers.Conv2D(8, 3)(image), "hard_silu", "swish")
    if export_pass is relu6_gates:
        x = _layers.se(x, 4, "se", gate="hard_sigmoid")
    model = keras.Model(image, after(x))
    assert export_pass(model) is model


def test_hard_swish_goes_through_gates_and_sums():
    image = keras.Input((8, 8, 3))
    x = _layers.act(layers.Conv2D(8, 3, name="conv")(image), "hard_silu", "act1")
    y = layers.Conv2D(8, 3, padding="same", name="other")(x)
    x = layers.Add()([x, y])  # x is six times as large, so `other` has to be, too
    x = _layers.act(layers.DepthwiseConv2D(3)(x), "hard_silu", "act2")
    x = _layers.se(x, 4, "se", gate="hard_sigmoid")
    x = layers.Dense(5)(layers.GlobalAveragePooling2D()(layers.Conv2D(6, 1)(x)))
    model = _randomized(keras.Model(image, x))
    result = _check_exact(lambda m: relu6_hard_swish(relu6_gates(m)), model)
    acts = [name for name in _names(result) if name.startswith("act")]
    assert sorted(acts) == ["act1", "act1_gate", "act2", "act2_gate"]
    assert not any(
        getattr(layer, "activation", None) is keras.activations.hard_silu for layer in result.layers
    )


# Pooling.


def test_average_pooling_becomes_a_convolution():
    image = keras.Input((9, 9, 3))
    x = layers.AveragePooling2D(3, 2, name="pool")(layers.ZeroPadding2D(1)(image))
    model = _check_exact(average_pool_as_conv, keras.Model(image, x))
    assert isinstance(model.get_layer("pool"), layers.DepthwiseConv2D)


@pytest.mark.parametrize(
    "pool", [layers.AveragePooling2D(3, 2, padding="same"), layers.AveragePooling2D(2, (1, 2))]
)
def test_average_pooling_is_left_alone_where_windows_differ(pool):
    image = keras.Input((9, 9, 3))
    model = keras.Model(image, pool(image))
    assert average_pool_as_conv(model) is model


# Channel shuffles.


def _stages(units, filters):
    """Stages of ShuffleNetV2 with these units and filters, and a last convolution."""
    x = image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(image)
    for stage, (repeats, channels) in enumerate(zip(units, filters, strict=True)):
        for i in range(repeats):
            x = shufflenet_v2._unit(x, channels, 2 if i == 0 else 1, f"stage{stage}.{i}")
    x = layers.Conv2D(5, 1, name="last")(x)
    return _randomized(keras.Model(image, x))


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(2, 7).map(lambda n: 4 * n)),
        min_size=1,
        max_size=2,
    )
)
def test_channel_shuffles_are_removed(stages):
    model = _check_exact(remove_channel_shuffle, _stages(*zip(*stages, strict=True)))
    assert not _has(model, ChannelShuffle)
    joined = [layer for layer in model.layers if isinstance(layer, layers.Concatenate)]
    assert all(len(layer.input) <= 4 for layer in joined)


def test_channel_shuffles_are_removed_from_folded_units_too():
    model = fuse_activations(fold_batch_norm(_stages((4,), (16,))))
    result = _check_exact(remove_channel_shuffle, model)
    assert not _has(result, ChannelShuffle)
    # A unit copies the half that it convolves, from what has been made, and nothing else.
    assert len(result.layers) < len(model.layers) + 10


@pytest.mark.parametrize(
    "after",
    [
        lambda x: x,
        layers.Conv2D(8, 3, groups=2),
        layers.Flatten(),
        lambda x: layers.Add()([x, layers.Conv2D(8, 1)(x)]),
        layers.Softmax(),
        lambda x: layers.Conv2D(4, 1)(layers.Activation("softmax")(x)),
        lambda x: layers.Conv2D(4, 1)(layers.DepthwiseConv2D(3, depth_multiplier=2)(x)),
    ],
    ids=["output", "grouped", "flatten", "sum", "softmax-layer", "softmax", "multiplier"],
)
def test_channel_shuffles_are_left_alone_where_the_order_matters(after):
    image = keras.Input((8, 8, 3))
    x = ChannelShuffle(2, name="shuffle")(layers.Conv2D(8, 3)(image))
    model = keras.Model(image, after(x))
    assert remove_channel_shuffle(model) is model


def test_a_shuffle_of_what_cannot_be_ordered_goes_into_the_kernel_that_follows():
    image = keras.Input((8, 8, 4))
    x = ChannelShuffle(2, name="shuffle")(image)
    model = keras.Model(image, layers.Conv2D(4, 1, name="conv")(x))
    result = _check_exact(remove_channel_shuffle, model)
    assert _names(result)[1:] == ["conv"]


def test_concatenations_without_a_shuffle_are_left_alone():
    image = keras.Input((8, 8, 4))
    x = layers.Concatenate()([layers.Conv2D(4, 1)(image), layers.Conv2D(4, 1)(image)])
    model = keras.Model(image, layers.Conv2D(4, 1)(x))
    assert remove_channel_shuffle(model) is model


# Heads.


def test_auxiliary_heads_go():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(image)
    heads = [layers.Dense(3, name=name)(layers.Flatten()(x)) for name in ("main", "aux1", "aux2")]
    model = keras.Model(image, heads)
    assert remove_auxiliary_heads(model) is model  # whose outputs all count
    model.checkpoint_auxiliary = ("aux1.", "aux2.")
    result = remove_auxiliary_heads(model)
    image = _images(model)
    np.testing.assert_array_equal(result(image), model(image)[0])
    assert not {"aux1", "aux2"} & set(_names(result))


@pytest.mark.slow
def test_googlenet_loses_its_auxiliary_heads():
    model = kapps.GoogLeNet(aux=True, classes=10, input_shape=(64, 64, 3))
    head = model.get_layer("fc").kernel
    head.assign(head / 10)  # logits of ordinary size: those of random weights magnify all rounding
    image = _images(model, 1)
    expected = model(image)[0]
    # The same layers, exactly; and after all passes.
    np.testing.assert_allclose(remove_auxiliary_heads(model)(image), expected, rtol=1e-6)
    result = run_passes(model)
    assert result.output_shape == (1, 10)
    assert not any(name.startswith("aux") for name in _names(result))
    np.testing.assert_allclose(result(image), expected, atol=1e-5)


# Nested models, training layers, batch.


def test_weights_are_shared_where_asked_and_copied_elsewhere(net):
    with sharing_weights():
        shared = rebuild(net)
    copy = rebuild(net)
    for theirs, same, other in zip(net.weights, shared.weights, copy.weights, strict=True):
        assert same.value is theirs.value
        assert other.value is not theirs.value
        np.testing.assert_array_equal(other, theirs)


def test_initializers_of_a_copy_are_those_of_the_layer():
    image = keras.Input((4,))
    dense = layers.Dense(3, kernel_initializer="ones", bias_initializer="he_normal")
    copy = rebuild(keras.Model(image, dense(image))).layers[-1]
    assert copy.get_config() == dense.get_config()
    assert isinstance(copy.kernel_initializer, keras.initializers.Ones)


# All that Keras has by these names, so that a new one is not forgotten.
_AUGMENTING = [
    name
    for name in dir(layers)
    if name.startswith(("Random", "RandAug", "AugMix", "CutMix", "MixUp"))
    and name != "RandomCrop"  # which crops the center in inference
]
_ARGUMENTS = {
    "RandomBrightness": [0.5],
    "RandomColorDegeneration": [0.5],
    "RandomContrast": [0.5],
    "RandomFlip": [],
    "RandomHue": [0.5],
    "RandomPosterization": [4],
    "RandomRotation": [0.5],
    "RandomSaturation": [0.5],
    "RandomSharpness": [0.5],
    "RandomTranslation": [0.5, 0.5],
    "RandomZoom": [0.5],
}


@pytest.mark.parametrize("name", _AUGMENTING)
def test_layers_that_augment_are_removed_since_they_do_nothing_in_inference(name):
    layer = getattr(layers, name)(*_ARGUMENTS.get(name, []))
    image = keras.Input((8, 8, 3))
    result = remove_training_layers(keras.Model(image, layer(image)))
    assert len(result.layers) == 1
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(layer(images, training=False), images)


def test_passes_reach_into_nested_models():
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()],
        name="inner",
    )
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Flatten()(_randomized(inner)(image)))
    result = _check_exact(run_passes, model)
    assert not _has(result.get_layer("inner"), layers.BatchNormalization)


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


def test_a_compiled_models_loss_is_not_copied():
    model = small_net()
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert model.compiled
    assert not rebuild(model).compiled


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
