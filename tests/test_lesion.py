"""kapps.lesion: a network without one of its blocks, and what it then loses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kapps
from kapps.explain import lesions

few = pytest.mark.few


def images(model: keras.Model, count: int = 2) -> np.ndarray:
    shape = [side or 32 for side in model.input_shape[1:]]
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype("float32")


def answers(model: keras.Model) -> np.ndarray:
    return ops.convert_to_numpy(model(images(model), training=False))


def resnet(**arguments) -> keras.Model:
    return kapps.CifarResNet(depth=8, input_shape=(16, 16, 3), **arguments)


def foreign() -> keras.Model:
    """A sum by a layer, one by a plus sign, and a convolution with no path around it."""
    x = image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(layers.Rescaling(1 / 255)(x))
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv_a")(x)
    x = layers.Add(name="first_add")([x, y])  # the shortcut comes first
    x = layers.Conv2D(4, 3, padding="same", name="trunk")(x)
    x = layers.BatchNormalization(name="trunk_bn")(x)
    x = layers.ReLU(name="trunk_relu")(x)
    x = layers.Conv2D(4, 1, name="conv_b")(x) + x
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(3, "softmax", name="fc")(x), name="foreign")


@few
def test_a_residual_block_without_its_branch_is_its_shortcut():
    net = resnet()
    without = kapps.lesion(net, "layer2.0")
    for name in ("layer2_0_conv1", "layer2_0_bn2", "layer2_0_add"):
        assert name not in [layer.name for layer in without.layers]
    assert all(layer is net.get_layer(layer.name) for layer in without.layers)
    # What is added is zero where the last batch norm is: the same network, by other means.
    last = net.get_layer("layer2_0_bn2")
    intact, found = answers(net), answers(without)
    assert np.abs(intact - found).max() > 1e-3
    last.gamma.assign(np.zeros(last.gamma.shape))
    np.testing.assert_allclose(found, answers(net), atol=1e-6)


def test_weights_are_shared_and_the_model_stays_as_it_was():
    net = resnet()
    before = answers(net)
    without = kapps.lesion(net, "layer1.0")
    np.testing.assert_array_equal(before, answers(net))
    without.get_layer("fc").kernel.assign(np.zeros((64, 10)))
    np.testing.assert_allclose(answers(net), 0.1, atol=1e-6)


def test_a_model_of_its_own_can_be_saved_and_cut_again(tmp_path):
    without = kapps.lesion(resnet(drop_path_rate=0.5, drop_path_mode="batch"), "layer1.0")
    assert type(without).__name__ == "BlockSkippingModel"
    assert without.kapps_builder == "CifarResNet"
    without.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    np.testing.assert_allclose(answers(loaded), answers(without), atol=1e-6)
    assert kapps.removable_blocks(loaded) == ("layer2.0", "layer3.0")
    assert kapps.removable_blocks(kapps.lesion(loaded, "layer2.0")) == ("layer3.0",)


def test_plain_blocks_and_convolutions_of_a_loaded_model(tmp_path):
    net = kapps.CifarResNet(depth=14, residual=False, input_shape=(16, 16, 3))
    assert kapps.removable_blocks(net) == ("layer1.0", "layer1.1", "layer2.1", "layer3.1")
    without = kapps.lesion(net, "layer2.1")
    assert len(without.layers) == len(net.layers) - 6
    x = keras.Model(net.input, net.get_layer("layer2_0_act2").output)(images(net))
    names = [layer.name for layer in net.layers]
    for layer in net.layers[names.index("layer2_1_act2") + 1 :]:
        x = layer(x)
    np.testing.assert_allclose(answers(without), ops.convert_to_numpy(x), atol=1e-6)
    assert len(kapps.lesion(net, "layer2.0.conv2").layers) == len(net.layers) - 3
    assert len(kapps.lesion(net, "layer1").layers) == len(net.layers) - 12
    net.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    assert kapps.removable_blocks(loaded) == kapps.removable_blocks(net)


@few
def test_a_dense_layer_leaves_zeros():
    net = kapps.CifarDenseNet(depth=10, growth=4, input_shape=(8, 8, 3))
    name = "features.denseblock2.denselayer1"
    found = answers(kapps.lesion(net, name))
    last = [
        layer
        for layer in net.layers
        if layer.name.startswith("features_denseblock2_denselayer1_conv")
    ][-1]
    last.kernel.assign(np.zeros(last.kernel.shape))
    np.testing.assert_allclose(found, answers(net), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        ("ResNet18V2", {}, 8),
        ("MobileNetV2", {"alpha": 0.35}, 10),
        ("ShuffleNetV2_x0_5", {}, 13),
        ("PyramidNet", {"depth": 20}, 9),
        ("NiN", {}, 4),
        ("MobileNet", {"alpha": 0.25}, 8),
    ],
)
def test_families(name, arguments, count):
    """Residual blocks with the same shape, and the downsampling ones where they have a shortcut."""
    net = kapps.get_builder(name)(input_shape=(32, 32, 3), **arguments)
    blocks = kapps.removable_blocks(net)
    assert len(blocks) == count, blocks
    without = kapps.lesion(net, blocks[-1])
    assert without.output_shape == net.output_shape
    assert without.count_params() < net.count_params()


def test_any_size_and_several_outputs():
    net = kapps.CifarResNet(depth=8, residual=False, input_shape=(None, None, 3))
    assert kapps.removable_blocks(net) == ("layer1.0",)
    assert kapps.lesion(net, "layer1.0").input_shape == (None, None, None, 3)
    image = keras.Input((8, 8, 3))
    first = layers.Conv2D(3, 3, padding="same", name="first")(image)
    second = layers.Conv2D(3, 3, padding="same", name="second")(first)
    heads = [layers.Flatten()(x) for x in (second, first)]
    without = kapps.lesion(keras.Model(image, heads), "second")
    assert len(without.outputs) == 2
    main, side = without(images(without))
    np.testing.assert_array_equal(ops.convert_to_numpy(main), ops.convert_to_numpy(side))


@few
def test_models_from_elsewhere():
    net = foreign()
    names = kapps.removable_blocks(net)
    assert names[:2] == ("first", "trunk") and len(names) == 3
    assert (
        kapps.lesion(net, "first").count_params() == kapps.lesion(net, "first_add").count_params()
    )
    assert "conv_a" not in [layer.name for layer in kapps.lesion(net, "first_add").layers]
    left = {layer.name for layer in kapps.lesion(net, "trunk").layers}
    assert not left & {"trunk", "trunk_bn", "trunk_relu"}
    assert "conv_b" not in [layer.name for layer in kapps.lesion(net, names[2]).layers]
    sequential = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(3, 3, padding="same", name="same"), layers.Flatten()]
    )
    assert kapps.removable_blocks(sequential) == ("same",)
    assert [type(x) for x in kapps.lesion(sequential, "same").layers][-1] is layers.Flatten


def test_what_cannot_be_removed():
    net = resnet(residual=False)
    with pytest.raises(kapps.InputError, match=r"layer2\.0 .* these can: layer2\.0\.conv2, layer1"):
        kapps.lesion(net, "layer2.0")
    with pytest.raises(kapps.InputError, match="unknown block .* did you mean layer1.0"):
        kapps.lesion(net, "layer1.00")
    with pytest.raises(kapps.InputError, match="unknown block"):
        kapps.lesion(net, 3)
    with pytest.raises(kapps.InputError, match="fc of CifarResNet cannot be removed"):
        kapps.lesion(net, "fc")
    with pytest.raises(kapps.InputError, match="lesion takes a functional .* not str"):
        kapps.lesion("net", "layer1.0")


def test_which_summand_is_the_shortcut():
    """Where both have as many convolutions nobody can tell."""
    image = keras.Input((8, 8, 3))
    one, other = (layers.Conv2D(3, 3, padding="same", name=name)(image) for name in "ab")
    head = layers.Dense(2)(layers.Flatten()(layers.Add(name="both")([one, other])))
    with pytest.raises(kapps.InputError, match="both of tie cannot be removed.* these can: none"):
        kapps.lesion(keras.Model(image, head, name="tie"), "both")


@few
@pytest.mark.parametrize("build", [resnet, foreign, lambda: resnet(residual=False)])
def test_lesions_measure_the_networks_that_lesion_builds(build):
    """Each goes on in the middle, and gives what the network would from its beginning."""
    net = build()
    pictures, labels = images(net, 40), np.arange(40) % 3
    found = lesions(net, pictures, labels)
    assert [lesion.name for lesion in found] == list(kapps.removable_blocks(net))
    for one in found:
        for model, loss, accuracy in (
            (kapps.lesion(net, one.name), one.loss, one.accuracy),
            (net, one.intact_loss, one.intact_accuracy),
        ):
            p = ops.convert_to_numpy(model(pictures, training=False))
            assert accuracy == np.mean(p.argmax(-1) == labels)
            assert loss == pytest.approx(-np.log(p[np.arange(40), labels]).mean(), rel=1e-3)
        assert one.loss_rise == one.loss - one.intact_loss
        assert one.accuracy_fall == one.intact_accuracy - one.accuracy


def test_lesions_of_a_nested_model():
    inner = resnet()
    image = keras.Input((16, 16, 3))
    net = keras.Model(image, layers.Activation("softmax")(inner(image)))
    found = lesions(net, images(net), [0, 1])
    assert [one.name for one in found] == [f"CifarResNet/layer{i}.0" for i in (1, 2, 3)]
    alone = lesions(inner, images(net), [0, 1], blocks=["layer2.0"])
    assert alone[0].name == "layer2.0"


def test_nothing_to_remove():
    image = keras.Input((8, 8, 3))
    net = keras.Model(image, layers.Dense(2)(layers.Flatten()(image)), name="flat")
    with pytest.raises(kapps.InputError, match="flat has no block that can be removed"):
        lesions(net, images(net), [0, 1])
    with pytest.raises(kapps.InputError, match="labels has 10"):
        lesions(resnet(), images(net).repeat(2, 1).repeat(2, 2), [0, 10])
