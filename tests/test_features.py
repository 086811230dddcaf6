"""kapps.features: the pyramid of a network, and where its head begins."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kapps
from kapps._features import features_end

# A row a family: builder, arguments, side of the input, and channels by stride. They are those of
# the published networks at that width: the ends of stages, or the expansion that leaves a stage.
ROWS = [
    ("AlexNet", {}, 96, {4: 64, 8: 192, 16: 256, 32: 256}),
    ("CifarResNet", {"depth": 8}, 16, {1: 16, 2: 32, 4: 64}),
    ("DenseNet", {"blocks": (1, 1, 1, 1), "growth": 8}, 64, {2: 16, 4: 12, 8: 10, 16: 9, 32: 17}),
    ("EfficientNet", {"width": 0.25, "depth": 0.2}, 64, {2: 48, 4: 48, 8: 96, 16: 192, 32: 320}),
    ("EfficientNetV2", {"width": 0.25, "depth": 0.2}, 64, {2: 8, 4: 8, 8: 64, 16: 192, 32: 320}),
    ("GhostNetV2", {"alpha": 0.25}, 64, {2: 4, 4: 8, 8: 12, 16: 28, 32: 240}),
    ("GoogLeNet", {}, 64, {2: 64, 4: 192, 8: 480, 16: 832, 32: 1024}),
    ("InceptionV3", {}, 96, {2: 64, 4: 192, 8: 288, 16: 768, 32: 2048}),
    ("LeNet5", {}, 32, {1: 6, 2: 16, 4: 16}),
    ("MobileNet", {"alpha": 0.25}, 64, {2: 16, 4: 32, 8: 64, 16: 128, 32: 256}),
    ("MobileNetV2", {"alpha": 0.35}, 64, {2: 48, 4: 48, 8: 96, 16: 192, 32: 1280}),
    ("MobileNetV3Small", {"alpha": 0.5}, 64, {2: 16, 4: 40, 8: 64, 16: 144, 32: 288}),
    ("MobileNetV4ConvSmall_050", {}, 64, {2: 32, 4: 16, 8: 96, 16: 288, 32: 480}),
    ("MobileNetV4HybridMedium", {}, 64, {2: 32, 4: 192, 8: 480, 16: 960, 32: 960}),
    ("MobileOneS1", {}, 64, {2: 64, 4: 96, 8: 192, 16: 512, 32: 1280}),
    ("NiN", {}, 32, {1: 96, 2: 192, 4: 192}),
    ("PyramidNet", {"depth": 20}, 16, {1: 32, 2: 48, 4: 64}),
    ("ResNet18", {}, 64, {2: 64, 4: 64, 8: 128, 16: 256, 32: 512}),
    ("ResNet18V2", {}, 64, {2: 64, 4: 64, 8: 128, 16: 256, 32: 512}),
    ("SEResNet18", {}, 64, {2: 64, 4: 64, 8: 128, 16: 256, 32: 512}),
    ("ShuffleNet", {"scale": 0.25}, 64, {2: 12, 4: 12, 8: 60, 16: 120, 32: 240}),
    ("ShuffleNetV2_x0_5", {}, 64, {2: 24, 4: 24, 8: 48, 16: 96, 32: 1024}),
    ("VGG11_BN", {}, 64, {1: 64, 2: 128, 4: 256, 8: 512, 16: 512, 32: 512}),
    ("WideResNet", {"depth": 10, "width": 1}, 16, {1: 16, 2: 32, 4: 64}),
]


def images(model: keras.Model) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, *model.input_shape[1:]), np.uint8)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_pyramid_of_each_family(row):
    name, arguments, side, channels = row
    builder = kapps.get_builder(name)
    net = builder(False, None, None, (side, side, builder.input_shape[2]), **arguments)
    pyramid = kapps.features(net, tuple(channels))
    assert [output.shape[-1] for output in pyramid.outputs] == list(channels.values())
    assert {id(layer) for layer in pyramid.layers} <= {id(layer) for layer in net.layers}
    assert pyramid.outputs[-1] is net.output
    if name not in ("AlexNet", "InceptionV3", "LeNet5"):  # which leave out the edges
        assert [x.shape[1] for x in pyramid.outputs] == [-(-side // s) for s in channels]
    with pytest.raises(kapps.InputError, match=f"no feature map at stride 64; .* {max(channels)}"):
        kapps.features(net, (64,))


def test_the_maps_are_those_of_the_model_and_the_weights_too():
    net = kapps.NiN(classes=3)  # whose head is a convolution of a map
    pyramid = kapps.features(net, (4, 1))
    assert pyramid.get_layer("conv1") is net.get_layer("conv1")
    deep, shallow = pyramid(images(net))
    expected = keras.Model(net.input, [net.get_layer(n).output for n in ("relu_cccp5", "cccp6")])
    np.testing.assert_array_equal(deep, expected(images(net))[0])
    assert shallow.shape == (1, 32, 32, 96)


def test_inputs_of_any_size():
    net = kapps.MobileNet(alpha=0.25, input_shape=(None, None, 3), include_top=False)
    pyramid = kapps.features(net)
    for side in (64, 96):
        maps = pyramid(np.zeros((1, side, side, 3)))
        assert [x.shape[1] for x in maps] == [side // 4, side // 8, side // 16, side // 32]


def test_where_the_features_end_is_saved(tmp_path):
    for i, net in enumerate(
        (kapps.NiN(), kapps.CifarResNet(False, None, None, (32, 32, 3), depth=8))
    ):
        net.save(tmp_path / f"{i}.keras")
        loaded = keras.saving.load_model(tmp_path / f"{i}.keras")
        end = features_end(loaded)
        assert end._keras_history.operation.name == net.features_layer == loaded.features_layer
        ours, theirs = kapps.features(net, (1, 4)), kapps.features(loaded, (1, 4))
        np.testing.assert_array_equal(ours(images(net))[1], theirs(images(net))[1])


def flat(head) -> keras.Model:
    """A network from elsewhere, with a residual block at stride 2."""
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="stem")(image)
    y = layers.Conv2D(8, 3, padding="same", name="branch")(x)
    x = layers.Activation("relu", name="sum")(layers.Add()([x, y]))
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = layers.Conv2D(16, 3, strides=2, name="last")(x)
    x = layers.Activation("relu", name="end")(x)
    return keras.Model(image, head(x))


@pytest.mark.parametrize(
    "head",
    [
        lambda x: layers.Dense(5)(layers.GlobalAveragePooling2D()(x)),
        lambda x: layers.Dense(5)(layers.Flatten()(x)),
        lambda x: layers.GlobalAveragePooling2D()(layers.Conv2D(5, 1)(x)),
        lambda x: layers.Flatten()(layers.Conv2D(5, 8)(x)),
        lambda x: x,
        lambda x: layers.GlobalAveragePooling2D()(x),
    ],
    ids=["pooled", "flat", "map of classes", "window", "none", "none, pooled"],
)
def test_a_model_from_elsewhere(head):
    net = flat(head)
    pyramid = kapps.features(net, (2, 4))
    assert [x._keras_history.operation.name for x in pyramid.outputs] == ["sum", "end"]


def test_a_sequential_model():
    net = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, 2), layers.Flatten()])
    assert kapps.features(net, [2]).output_shape == (None, 3, 3, 4)


PAIR = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]


@pytest.mark.parametrize(
    ("model", "strides", "message"),
    [
        (flat(lambda x: x), (2, 3), "no feature map at stride 3; there are: 2, 4$"),
        (flat(lambda x: x), 4, "strides must be whole numbers, such as .*, not 4"),
        (flat(lambda x: x), (), "strides must be whole numbers"),
        (flat(lambda x: x), (True,), "strides must be whole numbers"),
        ("ResNet50", (4,), "kapps.features takes a functional"),
        (keras.Sequential([keras.Input((4,)), layers.Dense(2)]), (4,), "makes no feature map"),
        (keras.Model(PAIR, layers.Add()(PAIR)), (4,), "has 2 inputs; it takes one image"),
    ],
)
def test_what_is_refused(model, strides, message):
    with pytest.raises(kapps.InputError, match=message):
        kapps.features(model, strides)
