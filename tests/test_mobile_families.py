"""DenseNet, PyramidNet and the nets for phones: what the model table does not show."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

from kapps import InputError
from kapps._profile import profile
from kapps.densenet import CifarDenseNet, DenseNet, DenseNet121
from kapps.ghostnet_v2 import GhostNetV2, GhostNetV2_130
from kapps.mobilenet import MobileNet, MobileNet_125
from kapps.mobilenet_v2 import MobileNetV2, MobileNetV2_035, MobileNetV2_140
from kapps.mobilenet_v3 import (
    MobileNetV3Large,
    MobileNetV3Large_075,
    MobileNetV3Small,
    MobileNetV3Small_050,
)
from kapps.pyramidnet import PyramidNet
from kapps.shufflenet import ShuffleNet
from kapps.shufflenet_v2 import ShuffleNetV2, ShuffleNetV2_x0_5

pytestmark = pytest.mark.slow


def parameters(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def layer_shapes(model: keras.Model) -> dict[str, list[tuple[int, ...]]]:
    return {layer.name: [tuple(w.shape) for w in layer.weights] for layer in model.layers}


def outputs(model: keras.Model, image: np.ndarray, *names: str) -> list[np.ndarray]:
    """What the layers of these names give for the image."""
    taps = keras.Model(model.input, [model.get_layer(name).output for name in names])
    return [ops.convert_to_numpy(y) for y in taps(image, training=False)]


def noise(side: int, channels: int = 3) -> np.ndarray:
    shape = (1, side, side, channels)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("builder", "arguments", "message"),
    [
        (DenseNet, {"blocks": (6, 12, 24)}, "blocks must be four"),
        (DenseNet, {"blocks": (6, 12, 24, 0)}, "blocks must be four"),
        (DenseNet, {"blocks": 121}, "blocks must be four"),
        (DenseNet, {"growth": 0}, "growth must be a whole number above 0, not 0"),
        (DenseNet, {"compression": 1.5}, "compression must be above 0 and at most 1, not 1.5"),
        (CifarDenseNet, {"depth": 41}, "4 . 3 n .* without bottleneck, not 41"),
        (CifarDenseNet, {"depth": 43, "bottleneck": True}, "4 . 6 n .* with bottleneck, not 43"),
        (CifarDenseNet, {"depth": 4}, "depth must be"),
        (PyramidNet, {"depth": 111}, "2 . 6 n .* without bottleneck, not 111"),
        (PyramidNet, {"depth": 112, "bottleneck": True}, "2 . 9 n .* with bottleneck, not 112"),
        (PyramidNet, {"alpha": 0}, "alpha must be a whole number above 0, not 0"),
        (PyramidNet, {"alpha": 2.5}, "alpha must be a whole number above 0, not 2.5"),
        (GhostNetV2, {"alpha": 0}, "GhostNetV2: alpha must be a number above 0"),
        (MobileNet, {"alpha": 0}, "MobileNet: alpha must be a number above 0"),
        (MobileNetV2, {"alpha": -1.0}, "MobileNetV2: alpha .* not -1.0"),
        (MobileNetV3Small, {"alpha": "0.5"}, "MobileNetV3Small: alpha .* not '0.5'"),
        (MobileNetV3Large, {"alpha": float("nan")}, "MobileNetV3Large: alpha .* not nan"),
        (ShuffleNet, {"groups": 5}, "groups must be one of 1, 2, 3, 4, 8, not 5"),
        (ShuffleNet, {"scale": 0.75}, "scale must be one of 0.25, .* 2.0, not 0.75"),
        (ShuffleNetV2, {"scale": 1.25}, "scale must be one of 0.5, .* 2.0, not 1.25"),
    ],
)
def test_own_parameters_are_checked(builder, arguments, message):
    with pytest.raises(InputError, match=message):
        builder(**arguments)


@pytest.mark.parametrize(
    ("family", "arguments", "variant"),
    [
        (DenseNet, {}, DenseNet121),
        (GhostNetV2, {"alpha": 1.3}, GhostNetV2_130),
        (MobileNet, {"alpha": 1.25}, MobileNet_125),
        (MobileNetV2, {"alpha": 0.35}, MobileNetV2_035),
        (MobileNetV2, {"alpha": 1.4}, MobileNetV2_140),
        (MobileNetV3Small, {"alpha": 0.5}, MobileNetV3Small_050),
        (MobileNetV3Large, {"alpha": 0.75}, MobileNetV3Large_075),
        (ShuffleNetV2, {"scale": 0.5}, ShuffleNetV2_x0_5),
    ],
)
def test_a_variant_is_a_row_of_its_family(family, arguments, variant):
    assert layer_shapes(family(**arguments)) == layer_shapes(variant())


# Table 2 of Huang et al. 2017: 1.0 and 0.8 million.
@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 1_019_722),
        ({"depth": 100, "bottleneck": True, "compression": 0.5}, 769_162),
    ],
)
def test_cifar_densenets_have_the_papers_size(arguments, count):
    assert parameters(CifarDenseNet(**arguments)) == count


def test_a_dense_layer_puts_its_channels_behind_the_input():
    model = CifarDenseNet(depth=10, growth=5)
    before, after = outputs(
        model,
        noise(32),
        "features_denseblock1_denselayer1_concat",
        "features_denseblock1_denselayer2_concat",
    )
    assert after.shape[-1] == before.shape[-1] + 5
    np.testing.assert_array_equal(after[..., :-5], before)


def test_cifar_densenet_drops_behind_every_convolution_but_the_first():
    model = CifarDenseNet(depth=16, bottleneck=True, compression=0.5, dropout_rate=0.2)
    dropped = [layer for layer in model.layers if isinstance(layer, layers.Dropout)]
    fed = {layer.input._keras_history.operation.name for layer in dropped}
    convolutions = {layer.name for layer in model.layers if isinstance(layer, layers.Conv2D)}
    assert fed == convolutions - {"features_conv0"}
    assert {layer.rate for layer in dropped} == {0.2}


def test_densenet_drops_before_the_classifier_only():
    model = DenseNet(blocks=(1, 1, 1, 1), dropout_rate=0.2)
    assert [layer.name for layer in model.layers if isinstance(layer, layers.Dropout)] == [
        "dropout"
    ]


def test_densenet_takes_29_pixels_and_not_28():
    small = DenseNet(blocks=(1, 1, 1, 1), include_top=False, input_shape=(29, 29, 3))
    assert small.output_shape[1:3] == (1, 1)
    with pytest.raises(InputError, match="smallest is 29x29"):
        DenseNet(input_shape=(28, 28, 3))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_pyramidnet_widens_in_equal_steps(bottleneck):
    """110 layers and alpha 48: less than a channel a block, which must not be lost to rounding."""
    depth, ratio = (110, 1) if not bottleneck else (164, 4)
    model = PyramidNet(depth=depth, bottleneck=bottleneck)
    widths = [layer.output.shape[-1] for layer in model.layers if isinstance(layer, layers.Add)]
    assert len(widths) == 54
    exact = 16 + 48 * np.arange(1, 55) / 54
    assert np.abs(np.array(widths) / ratio - exact).max() <= 0.5
    assert widths[-1] == 64 * ratio


def test_pyramidnets_shortcuts_are_free_and_keep_what_they_can():
    """Without its residual branches the network is its first convolution, pooled and padded."""
    model = PyramidNet(depth=14, alpha=24, include_preprocessing=False, input_shape=(9, 9, 3))
    for layer in model.layers:
        if layer.name.startswith("layer") and layer.name.endswith("bn3"):
            layer.gamma.assign(np.zeros(layer.gamma.shape, np.float32))
    stem, result = outputs(model, noise(9), "bn1", "layer3_1_add")
    for _ in range(2):  # the mean at the lower and right edges is of the pixels that exist
        corners = range(0, stem.shape[1], 2)
        rows = [[stem[:, i : i + 2, j : j + 2].mean((1, 2)) for j in corners] for i in corners]
        stem = np.stack([np.stack(row, axis=1) for row in rows], axis=1)
    assert result.shape == (1, 3, 3, 40)
    np.testing.assert_allclose(result[..., :16], stem, atol=1e-6)  # float32 sums of 4
    assert np.abs(stem).max() > 0.01
    np.testing.assert_array_equal(result[..., 16:], 0)


# Million parameters and MACs as printed in tables 6 and 7 of Howard et al. 2017.
@pytest.mark.parametrize(
    ("alpha", "millions", "macs"), [(0.75, 2.6, 325), (0.5, 1.3, 149), (0.25, 0.5, 41)]
)
def test_narrow_mobilenets_have_the_papers_size(alpha, millions, macs):
    model = MobileNet(alpha=alpha)
    assert round(parameters(model) / 1e6, 1) == millions
    assert profile(model).macs / 1e6 == pytest.approx(macs, abs=1)


@pytest.mark.parametrize(
    ("builder", "alpha", "stem", "head"),
    [
        (MobileNetV2, 0.35, 16, 1280),  # 11.2 would be rounded to 8, which is 10 % too few
        (MobileNetV2, 1.4, 48, 1792),
        (MobileNetV3Small, 0.5, 16, 1024),
        (MobileNetV3Small, 2.0, 32, 1024),
        (MobileNetV3Large, 0.75, 16, 1280),
        (GhostNetV2, 1.3, 20, 1280),  # 20.8, of which a multiple of 8 would be 24
    ],
)
def test_stem_and_head_scale_as_the_reference_has_it(builder, alpha, stem, head):
    model = builder(alpha=alpha)
    assert model.get_layer("conv_stem").filters == stem
    assert model.get_layer("conv_head").filters == head


# Table 1 of Zhang et al. 2018: million MACs by groups, and output channels of stage 2; the scaled
# ones from its table 2. A printed 13 is of 13.3: 2.3 %.
@pytest.mark.parametrize(
    ("groups", "scale", "macs", "channels", "tolerance"),
    [
        (1, 1.0, 143, 144, 0.02),
        (2, 1.0, 140, 200, 0.02),
        (3, 1.0, 137, 240, 0.02),
        (4, 1.0, 133, 272, 0.02),
        (8, 1.0, 137, 384, 0.02),
        (3, 0.5, 38, 120, 0.02),
        (3, 0.25, 13, 60, 0.5 / 13),
        (3, 2.0, 524, 480, 0.02),
    ],
)
def test_shufflenets_cost_what_the_paper_says(groups, scale, macs, channels, tolerance):
    model = ShuffleNet(groups=groups, scale=scale)
    assert profile(model).macs / 1e6 == pytest.approx(macs, rel=tolerance)
    for stage, factor in ((2, 1), (3, 2), (4, 4)):
        assert model.get_layer(f"stage{stage}_0_concat").output.shape[-1] == channels * factor


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("scale", [0.25, 0.5, 1.5])
def test_every_scale_divides_into_its_groups(groups, scale):
    model = ShuffleNet(groups=groups, scale=scale, include_top=False)
    convolutions = [
        layer
        for layer in model.layers
        if layer.name.startswith("stage") and layer.name.endswith(("conv1", "conv3"))
    ]
    assert [c.name for c in convolutions if c.groups != groups] == ["stage2_0_conv1"]
    assert len(convolutions) == 2 * 16


@pytest.mark.parametrize("groups", [1, 3])
def test_the_shuffle_lets_groups_see_each_other(groups):
    """One channel of a unit's input reaches every group of its output, through the shuffle."""
    model = ShuffleNet(groups=groups)
    image = keras.Input((4, 4, 240 if groups == 3 else 144))
    x = image
    for name in ("conv1", "bn1", "relu1", "shuffle", "conv2", "bn2", "conv3"):
        if name != "shuffle" or groups > 1:
            x = model.get_layer(f"stage2_1_{name}")(x)
    branch = keras.Model(image, x)
    zero = np.zeros((1, 4, 4, image.shape[-1]), np.float32)
    one = zero.copy()
    one[..., 0] = 100.0
    change = np.abs(ops.convert_to_numpy(branch(one) - branch(zero))).max((0, 1, 2))
    assert np.all(change.reshape(groups, -1).max(1) > 0)


def test_shufflenet_widens_by_its_pooled_shortcut():
    model = ShuffleNet()
    shortcut, unit = outputs(model, noise(224), "stage3_0_avgpool", "stage3_0_relu3")
    np.testing.assert_array_equal(unit[..., :240], shortcut)  # not negative: behind a ReLU
    assert unit.shape == (1, 14, 14, 480)
