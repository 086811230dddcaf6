"""What the model table does not say of the residual families: paths, orders, types, depths."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest

from kapps import InputError
from kapps.cifar_resnet import CifarResNet, CifarResNetV2, CifarResNeXt
from kapps.resnet import PlainNet18, ResNet, ResNet18
from kapps.resnet_v2 import ResNetV2
from kapps.wide_resnet import WideResNet

pytestmark = pytest.mark.slow

SMALL = {"input_shape": (8, 8, 3), "classifier_activation": None}


def parameters(model: keras.Model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def logits(model: keras.Model) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    return keras.ops.convert_to_numpy(model(images, training=False))


def copy_by_name(source: keras.Model, target: keras.Model) -> None:
    """Gives the layers of `target` the weights of those of `source` that have their names."""
    weights = {layer.name: layer.get_weights() for layer in source.layers}
    for layer in target.layers:
        if layer.name in weights:
            layer.set_weights(weights[layer.name])


@pytest.mark.parametrize(
    ("build", "arguments", "expected"),
    [
        # He et al. 2015, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million.
        (CifarResNet, {"depth": 20}, 269_722),
        (CifarResNet, {"depth": 32}, 464_154),
        (CifarResNet, {"depth": 44}, 658_586),
        (CifarResNet, {"depth": 56}, 853_018),
        (CifarResNet, {"depth": 110}, 1_727_962),
        # Zagoruyko and Komodakis 2016, table 2: 1.4, 1.2, 1.3, 1.3, 1.5 and 1.1 million.
        (WideResNet, {"depth": 40, "width": 2, "block": "B(1,3,1)"}, 1_429_082),
        (WideResNet, {"depth": 40, "width": 2, "block": "B(3,1)"}, 1_211_354),
        (WideResNet, {"depth": 40, "width": 2, "block": "B(1,3)"}, 1_297_370),
        (WideResNet, {"depth": 40, "width": 2, "block": "B(3,1,1)"}, 1_343_066),
        (WideResNet, {"depth": 28, "width": 2, "block": "B(3,3)"}, 1_467_610),
        (WideResNet, {"depth": 22, "width": 2, "block": "B(3,1,3)"}, 1_145_498),
        # Table 4: 17.2 million.
        (WideResNet, {"depth": 22, "width": 8}, 17_158_106),
    ],
)
def test_parameters_are_the_papers(build, arguments, expected):
    assert parameters(build(**arguments)) == expected


def test_families_make_their_members():
    assert parameters(ResNet(blocks=(2, 2, 2, 2), bottleneck=False)) == parameters(ResNet18())
    # ResNeXt-50 (32x4d), and a V2 of the second published depth.
    assert parameters(ResNet(cardinality=32, width=4)) == 25_028_904
    assert parameters(ResNetV2(blocks=(2, 2, 2, 2), bottleneck=False)) == 11_687_720


def test_plain_networks_have_no_shortcut():
    for plain in (PlainNet18(), CifarResNet(residual=False)):
        assert not any(isinstance(layer, keras.layers.Add) for layer in plain.layers)
        assert not any("downsample" in layer.name for layer in plain.layers)


def test_a_shortcut_without_weights_takes_every_second_pixel_and_adds_zeros():
    model = CifarResNet(depth=8, **SMALL)
    ends = [model.get_layer(name).output for name in ("layer1_0_act2", "layer2_0_shortcut_widen")]
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    x, shortcut = (keras.ops.convert_to_numpy(y) for y in keras.Model(model.input, ends)(images))
    np.testing.assert_array_equal(shortcut[..., :16], x[:, ::2, ::2])
    assert shortcut.shape == (2, 4, 4, 32)
    assert not shortcut[..., 16:].any()
    assert x.any()


@pytest.mark.parametrize(
    ("order", "block"),
    [
        ("original", "conv1 bn1 act1 conv2 bn2 add act2"),
        ("bn_after_addition", "conv1 bn1 act1 conv2 add bn2 act2"),
        ("relu_before_addition", "conv1 bn1 act1 conv2 bn2 act2 add"),
        ("relu_preactivation", "act1 conv1 bn1 act2 conv2 bn2 add"),
        ("full_preactivation", "bn1 act1 conv1 bn2 act2 conv2 add"),
    ],
)
def test_activation_orders(order, block):
    """He et al. 2016, figure 4; first and last block as section 4.1 has them."""
    model = CifarResNet(depth=14, order=order)
    names = [layer.name for layer in model.layers]
    position = {name: i for i, name in enumerate(names)}
    chain = [name for name in names if name.startswith("layer1_1_")]
    assert [name.removeprefix("layer1_1_") for name in chain] == block.split()
    first = [name.removeprefix("layer1_0_") for name in names if name.startswith("layer1_0_")]
    assert first == block.split()[block.split().index("conv1") :]
    ending = [name for name in names[position["layer3_1_add"] + 1 :] if "layer" not in name]
    expected = {"relu_preactivation": ["act2"], "full_preactivation": ["bn2", "act2"]}
    assert ending == [*expected.get(order, []), "global_pool", "fc"]


def test_closed_and_open_gates_leave_one_path():
    """A shortcut of weight 1 is the residual network, and of weight 0 the plain one."""
    residual, plain = CifarResNet(depth=14, **SMALL), CifarResNet(depth=14, residual=False, **SMALL)
    copy_by_name(residual, plain)
    for shortcut, bias, expected in (
        ("shortcut_gating", -200.0, residual),
        ("shortcut_gating", 200.0, plain),
        ("exclusive_gating", 200.0, plain),
    ):
        gated = CifarResNet(depth=14, shortcut=shortcut, gate_bias=bias, **SMALL)
        copy_by_name(residual, gated)
        np.testing.assert_allclose(logits(gated), logits(expected), rtol=1e-4, atol=1e-4)
    assert np.abs(logits(residual) - logits(plain)).max() > 0.01
    gate = CifarResNet(depth=8, shortcut="exclusive_gating").get_layer("layer2_0_gate")
    assert np.all(keras.ops.convert_to_numpy(gate.bias) == -6)


def test_scaled_shortcuts():
    """Where both paths are halved, one batch norm of twice the scale undoes it in the branch."""
    once, both = (
        CifarResNet(depth=8, shortcut=s, **SMALL) for s in ("shortcut_scaling", "scaling")
    )
    copy_by_name(once, both)
    for layer in both.layers:
        if layer.name.startswith("layer") and layer.name.endswith("bn2"):
            layer.gamma.assign(2 * layer.gamma)
            layer.beta.assign(2 * layer.beta)
    np.testing.assert_allclose(logits(both), logits(once), rtol=1e-4, atol=1e-4)


def test_dropout_lies_on_the_path_that_was_asked_for():
    shortcut = CifarResNet(depth=8, shortcut="dropout")
    found = {x.name: x.rate for x in shortcut.layers if isinstance(x, keras.layers.Dropout)}
    assert found == {f"layer{i}_0_shortcut_dropout": 0.5 for i in (1, 2, 3)}
    # Zagoruyko and Komodakis 2016, figure 1d: between the convolutions, behind the ReLU.
    wide = WideResNet(depth=10, width=1, block="B(3,1,3)", dropout=0.3)
    dropouts = [layer for layer in wide.layers if isinstance(layer, keras.layers.Dropout)]
    assert [x.name.split("_", 2)[2] for x in dropouts] == ["blocks_0_drop1", "blocks_0_drop2"] * 3
    assert {layer.rate for layer in dropouts} == {0.3}
    before = dropouts[0].input._keras_history.operation
    assert before.name == "stages_0_blocks_0_norm2_act"


def test_a_convolution_in_every_shortcut_or_where_the_shape_changes():
    def kernels(shortcut: str) -> list[str]:
        names = [layer.name for layer in CifarResNet(depth=14, shortcut=shortcut).layers]
        return [name for name in names if name.endswith("downsample_0")]

    assert kernels("identity") == []
    assert kernels("projection") == ["layer2_0_downsample_0", "layer3_0_downsample_0"]
    assert len(kernels("conv")) == 6


def test_v2_without_bottleneck_is_the_full_preactivation():
    a, b = (
        CifarResNetV2(depth=14, bottleneck=False),
        CifarResNet(depth=14, order="full_preactivation"),
    )
    assert [layer.name for layer in a.layers] == [layer.name for layer in b.layers]


@pytest.mark.nightly
def test_a_thousand_layers_build():
    """More layers in a row than Python allows nested calls."""
    limit = sys.getrecursionlimit()
    try:
        assert len(CifarResNet(depth=326).layers) > 1100
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (CifarResNet, {"depth": 21}, r"6n \+ 2, such as 20 or 26, not 21"),
        (CifarResNet, {"depth": 2}, r"6n \+ 2, such as 8 or 14, not 2"),
        (CifarResNet, {"depth": 20.0}, "depth must be a whole number above 0, not 20.0"),
        (CifarResNet, {"shortcut": "gating"}, "unknown shortcut of CifarResNet 'gating'"),
        (CifarResNet, {"order": "full"}, "unknown order of CifarResNet 'full'"),
        (CifarResNet, {"residual": False, "shortcut": "conv"}, "residual=False"),
        (CifarResNetV2, {"depth": 165}, r"9n \+ 2, such as 164 or 173, not 165"),
        (CifarResNetV2, {"depth": 164 + 9, "bottleneck": False}, r"6n \+ 2"),
        (CifarResNeXt, {"depth": 30}, r"9n \+ 2, such as 29 or 38"),
        (CifarResNeXt, {"cardinality": 0}, "cardinality must be a whole number above 0, not 0"),
        (WideResNet, {"depth": 29}, r"6n \+ 4, such as 28 or 34, not 29"),
        (WideResNet, {"width": 1.5}, "width must be a whole number above 0, not 1.5"),
        (WideResNet, {"block": "B(3)"}, r"unknown block of WideResNet 'B\(3\)'"),
        (WideResNet, {"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        (ResNet, {"blocks": (3, 4, 6)}, r"blocks must be four whole numbers.*not \(3, 4, 6\)"),
        (ResNet, {"blocks": (3, 4, 6, 0)}, r"blocks\[3\] must be a whole number above 0, not 0"),
        (ResNet, {"bottleneck": False, "cardinality": 32}, "leave them at 1 and 64"),
        (ResNetV2, {"blocks": 50}, "blocks must be four whole numbers.*not 50"),
    ],
)
def test_a_wrong_parameter_is_named(build, arguments, message):
    with pytest.raises(InputError, match=message):
        build(**arguments)
