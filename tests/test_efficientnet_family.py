"""The EfficientNets beyond the model table: scaling, budgets, the fused block, what Lite fixes."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kapps import efficientnet, efficientnet_v2
from kapps._errors import InputError
from kapps._profile import profile
from kapps._scaling import Scaling, _macs, compound_scaling, scaling_for_macs

pytestmark = pytest.mark.slow

SHAPE = (32, 32, 3)

# The authors' coefficients, and the million MACs of timm's networks of that name and size.
PUBLISHED = [
    (Scaling(1.0, 1.0, 224), 385.8),
    (Scaling(1.0, 1.1, 240), 686.8),
    (Scaling(1.1, 1.2, 260), 993.6),
    (Scaling(1.2, 1.4, 300), 1827.1),
    (Scaling(1.4, 1.8, 380), 4393.8),
    (Scaling(1.6, 2.2, 456), 10266.4),
    (Scaling(1.8, 2.6, 528), 19067.6),
    (Scaling(2.0, 3.1, 600), 37745.9),
]


@pytest.mark.parametrize(("scaling", "millions"), PUBLISHED)
def test_arithmetic_macs_of_the_published_networks(scaling, millions):
    assert _macs(scaling) == pytest.approx(millions * 1e6, abs=0.05e6)  # as far as is printed


@pytest.mark.parametrize(
    "scaling", [Scaling(1.0, 1.0, 224), Scaling(0.3, 0.2, 33), Scaling(1.27, 0.7, 97)]
)
def test_arithmetic_macs_are_those_of_the_graph(scaling):
    network = efficientnet.EfficientNet(**scaling._asdict())
    assert network.input_shape == (None, scaling.resolution, scaling.resolution, 3)
    assert profile(network).macs == _macs(scaling)


def test_compound_scaling_is_the_equation():
    assert compound_scaling(0) == (1, 1, 224)
    assert compound_scaling(1) == pytest.approx((1.1, 1.2, 258))
    assert compound_scaling(-2) == pytest.approx((1 / 1.21, 1 / 1.44, 169))
    width, depth, resolution = compound_scaling(6.5)
    assert width == pytest.approx(math.exp(6.5 * math.log(1.1)))
    assert depth == pytest.approx(math.exp(6.5 * math.log(1.2)))
    assert resolution == round(224 * math.exp(6.5 * math.log(1.15)))
    for scaling, phi in ((PUBLISHED[1], 0.5), (PUBLISHED[2], 1), (PUBLISHED[7], 7)):
        width, _, resolution = compound_scaling(phi)  # the published ones, rounded by hand
        assert width == pytest.approx(scaling[0].width, rel=0.05)
        assert resolution == pytest.approx(scaling[0].resolution, rel=0.01)


@given(st.floats(-13, 30), st.floats(-13, 30))
def test_macs_grow_with_phi(one, other):
    small, large = sorted((one, other))
    assert _macs(compound_scaling(small)) <= _macs(compound_scaling(large))


@settings(deadline=None, max_examples=50)
@given(st.floats(6.5, 11))
def test_scaling_for_macs_takes_the_budget(exponent):
    budget = 10**exponent
    found = scaling_for_macs(budget)
    assert _macs(found) <= budget
    # One more step of phi, 0.01, of any factor would cost more than the budget. The factors are
    # taken a billionth beyond the step, which its rounding cannot reach.
    step = {"width": 1.1**0.01, "depth": 1.2**0.01}
    for name, factor in step.items():
        larger = found._replace(**{name: getattr(found, name) * factor * (1 + 1e-9)})
        assert _macs(larger) > budget, name
    pixels = math.ceil((found.resolution + 0.5) * 1.15**0.01)  # the step from anywhere in a pixel
    assert _macs(found._replace(resolution=pixels)) > budget
    # What is left is less than the cheapest step: for small networks, 97 pixels in place of 96 and
    # with them a fourth row of the last maps, a fifth of the budget.
    assert _macs(found) > 0.75 * budget


def test_scaling_for_macs_at_its_bounds():
    least = _macs(compound_scaling(-13))
    assert _macs(scaling_for_macs(least)) == least
    with pytest.raises(InputError, match=f"from {least:,} to"):
        scaling_for_macs(least - 1)
    most = _macs(compound_scaling(30))
    assert scaling_for_macs(most) == compound_scaling(30)
    for macs in (most * 1.001, math.inf, math.nan, "600e6", None):
        with pytest.raises(InputError, match="scaling_for_macs: macs must be"):
            scaling_for_macs(macs)


def test_the_network_of_a_budget_stays_within_it():
    network = efficientnet.EfficientNet(**scaling_for_macs(60e6)._asdict())
    assert 0.9 * 60e6 < profile(network).macs <= 60e6
    assert network.output_shape == (None, 1000)


@pytest.mark.parametrize("phi", [-13.01, 30.5, math.nan, math.inf, "1", None])
def test_compound_scaling_refuses(phi):
    with pytest.raises(InputError, match="compound_scaling: phi must be a number from -13 to 30"):
        compound_scaling(phi)


@pytest.mark.parametrize(
    "build",
    [efficientnet.EfficientNet, efficientnet.EfficientNetLite, efficientnet_v2.EfficientNetV2],
)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 0),
        ("width", -1.0),
        ("width", "1"),
        ("depth", 0.0),
        ("depth", math.inf),
        ("depth", math.nan),
        ("depth", True),
        ("resolution", 31),
        ("resolution", 224.0),
        ("resolution", None),
    ],
)
def test_families_refuse(build, name, value):
    with pytest.raises(InputError, match=f"{build.__name__}: {name} must be .*{value!r}"):
        build(**{name: value})


def names(network):
    return {layer.name for layer in network.layers}


def test_families_take_numpy_numbers_and_a_resolution():
    network = efficientnet.EfficientNetLite(
        width=np.float32(0.5), depth=np.float64(1.1), resolution=np.int64(40), classes=7
    )
    assert network.input_shape == (None, 40, 40, 3)
    assert network.output_shape == (None, 7)


def test_what_scales():
    scaled = {"width": 1.5, "depth": 1.1, "input_shape": SHAPE}
    b = efficientnet.EfficientNet(**scaled)
    lite = efficientnet.EfficientNetLite(**scaled)
    # Depth: rounded up; Lite fixes the first and the last stage.
    assert {"blocks_0_1_conv_dw", "blocks_2_2_conv_dw", "blocks_6_1_conv_dw"} < names(b)
    assert not {"blocks_0_2_conv_dw", "blocks_2_3_conv_dw", "blocks_6_2_conv_dw"} & names(b)
    assert "blocks_2_2_conv_dw" in names(lite)
    assert not {"blocks_0_1_conv_dw", "blocks_6_1_conv_dw"} & names(lite)
    # Width: to a multiple of 8; Lite fixes stem and head.
    for path, of_b, of_lite in (
        ("conv_stem", 48, 32),
        ("blocks_0_0_conv_pw", 24, 24),
        ("blocks_1_0_conv_pwl", 40, 40),  # 36, nearest up
        ("conv_head", 1920, 1280),
    ):
        assert b.get_layer(path).filters == of_b
        assert lite.get_layer(path).filters == of_lite
    # Squeeze-and-excitation: a quarter of the block's input.
    assert b.get_layer("blocks_3_0_se_conv_reduce").filters == 64 // 4
    assert not any("se_conv" in name for name in names(lite))


def test_v2_rounds_without_the_limit_of_v1():
    # 16 * 1.2 = 19.2 is 16 to the nearest multiple of 8; V1's rule makes it 24, for it loses 17 %.
    shallow = {"width": 1.2, "depth": 0.1, "input_shape": SHAPE}
    v2 = efficientnet_v2.EfficientNetV2(**shallow)
    assert v2.get_layer("blocks_0_0_conv").filters == 16
    b = efficientnet.EfficientNet(**shallow)
    assert b.get_layer("blocks_0_0_conv_pw").filters == 24


def test_v2_fuses_its_first_three_stages():
    network = efficientnet_v2.EfficientNetV2(width=2.0, depth=0.3, input_shape=SHAPE)
    for i in range(6):
        kinds = {type(x).__name__ for x in network.layers if x.name.startswith(f"blocks_{i}_")}
        assert ("DepthwiseConv2D" in kinds) == (i > 2)
        assert ("Multiply" in kinds) == (i > 2)  # squeeze-and-excitation
    # Without expansion the fused block is one convolution.
    assert {"blocks_0_0_conv", "blocks_0_0_bn1"} < names(network)
    assert not {"blocks_0_0_conv_pwl", "blocks_0_0_bn2"} & names(network)
    assert network.get_layer("blocks_1_0_conv_exp").strides == (2, 2)


@pytest.mark.parametrize(
    ("build", "total", "last"),
    # blocks in all, and the last that has a shortcut with the number of blocks before it
    [
        (efficientnet.EfficientNet, 16, ("blocks_5_3", 14)),
        (efficientnet_v2.EfficientNetV2, 21, ("blocks_5_7", 20)),
    ],
)
def test_stochastic_depth_counts_all_blocks(build, total, last):
    network = build(drop_path_rate=0.8, drop_block_rate=0.1, input_shape=SHAPE)
    for block, before in (("blocks_1_1", 2), last):
        assert network.get_layer(f"{block}_drop_path").rate == pytest.approx(0.8 * before / total)
    # DropBlock acts in the last two stages, on the blocks that have a shortcut.
    stages = {int(x.name.split("_")[1]) for x in network.layers if x.name.endswith("_drop_block")}
    assert stages == ({5} if build is efficientnet.EfficientNet else {4, 5})


@pytest.mark.parametrize(
    "build",
    [efficientnet.EfficientNet, efficientnet.EfficientNetLite, efficientnet_v2.EfficientNetV2],
)
def test_any_size_without_classifier_and_any_channels(build):
    network = build(include_top=False, input_shape=(None, None, 4), width=0.25, depth=0.3)
    maps = network(np.zeros((1, 65, 96, 4), np.uint8))
    assert tuple(maps.shape[:3]) == (1, 3, 3)
    assert keras.ops.convert_to_numpy(maps).dtype == np.float32
