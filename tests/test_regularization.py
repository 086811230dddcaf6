"""What is dropped in training: stochastic depth, DropBlock, spatial dropout."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers, ops

import kapps
from kapps import custom_layers
from kapps._block_skipping import BlockSkippingModel
from kapps._network import Net, Regularization

SHAPE = (32, 32, 3)


def numpy(x) -> np.ndarray:
    return ops.convert_to_numpy(x)


def images(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *SHAPE), np.uint8)


def residual_net(rate: float, mode: str = "batch") -> keras.Model:
    """Two residual blocks: one that normalizes, and one with two summands within the branch."""
    net = Net(Regularization(drop_path_rate=rate, drop_path_mode=mode), 3, None)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(image)
    y = layers.Conv2D(4, 3, padding="same", name="conv1")(x)
    y = layers.BatchNormalization(name="bn1")(y)
    x = net.add(y, x, "block1")
    x = layers.ReLU(name="relu")(x)
    a = layers.Conv2D(4, 3, padding="same", name="conv2a")(x)
    b = layers.Dropout(0.5, seed=1, name="inner_dropout")(layers.Conv2D(4, 1, name="conv2b")(x))
    y = layers.BatchNormalization(name="bn2")(layers.Add(name="inner_add")([a, b]))
    x = net.add(y, layers.Conv2D(4, 1, name="shortcut")(x), "block2")
    form = BlockSkippingModel if mode == "batch" else keras.Model
    return form(image, layers.GlobalAveragePooling2D()(x))


def drawn(monkeypatch, *survives: bool) -> None:
    """The next draws of stochastic depth, in the order of the blocks."""
    draws = iter(survives)
    monkeypatch.setattr(
        custom_layers.StochasticDepth, "survives", lambda self, shape: ops.full(shape, next(draws))
    )


def rates_of(net: keras.Model, kind: type, suffix: str) -> dict[str, float]:
    """By the path of the block."""
    found = [x for x in net.layers if isinstance(x, kind) and x.name.endswith(suffix)]
    return {x.name.removesuffix(suffix): x.rate for x in found}


def path_rates(net: keras.Model) -> dict[str, float]:
    return rates_of(net, custom_layers.StochasticDepth, "_drop_path")


# Of timm 1.0.31 at drop_path_rate=0.2, rounded: `drop_prob` of the DropPath in each block that has
# a shortcut; in the first one it has no DropPath, or none that drops.
_TIMM = {
    "ResNet18": """
        layer1_1 0.028571  layer2_0 0.057143  layer2_1 0.085714  layer3_0 0.114286
        layer3_1 0.142857  layer4_0 0.171429  layer4_1 0.2""",
    "ResNeXt50": """
        layer1_1 0.013333  layer1_2 0.026667  layer2_0 0.04      layer2_1 0.053333
        layer2_2 0.066667  layer2_3 0.08      layer3_0 0.093333  layer3_1 0.106667
        layer3_2 0.12      layer3_3 0.133333  layer3_4 0.146667  layer3_5 0.16
        layer4_0 0.173333  layer4_1 0.186667  layer4_2 0.2""",
    "ResNet50V2": """
        stages_0_blocks_1 0.013333  stages_0_blocks_2 0.026667  stages_1_blocks_0 0.04
        stages_1_blocks_1 0.053333  stages_1_blocks_2 0.066667  stages_1_blocks_3 0.08
        stages_2_blocks_0 0.093333  stages_2_blocks_1 0.106667  stages_2_blocks_2 0.12
        stages_2_blocks_3 0.133333  stages_2_blocks_4 0.146667  stages_2_blocks_5 0.16
        stages_3_blocks_0 0.173333  stages_3_blocks_1 0.186667  stages_3_blocks_2 0.2""",
    "EfficientNetB0": """
        blocks_1_1 0.025   blocks_2_1 0.05   blocks_3_1 0.075   blocks_3_2 0.0875
        blocks_4_1 0.1125  blocks_4_2 0.125  blocks_5_1 0.15    blocks_5_2 0.1625
        blocks_5_3 0.175""",
    "EfficientNetV2B0": """
        blocks_1_1 0.019048  blocks_2_1 0.038095  blocks_3_1 0.057143  blocks_3_2 0.066667
        blocks_4_1 0.085714  blocks_4_2 0.095238  blocks_4_3 0.104762  blocks_4_4 0.114286
        blocks_5_1 0.133333  blocks_5_2 0.142857  blocks_5_3 0.152381  blocks_5_4 0.161905
        blocks_5_5 0.171429  blocks_5_6 0.180952  blocks_5_7 0.190476""",
    "MobileNetV2": """
        blocks_1_1 0.023529  blocks_2_1 0.047059  blocks_2_2 0.058824  blocks_3_1 0.082353
        blocks_3_2 0.094118  blocks_3_3 0.105882  blocks_4_1 0.129412  blocks_4_2 0.141176
        blocks_5_1 0.164706  blocks_5_2 0.176471""",
    "MobileNetV3Large": """
        blocks_1_1 0.025  blocks_2_1 0.05    blocks_2_2 0.0625  blocks_3_1 0.0875
        blocks_3_2 0.1    blocks_3_3 0.1125  blocks_4_1 0.1375  blocks_5_1 0.1625
        blocks_5_2 0.175""",
    "MobileOneS1": """
        stages_0_2 0.009756   stages_0_3 0.014634   stages_1_2 0.029268   stages_1_3 0.034146
        stages_1_4 0.039024   stages_1_5 0.043902   stages_1_6 0.048780   stages_1_7 0.053659
        stages_1_8 0.058537   stages_1_9 0.063415   stages_1_10 0.068293  stages_1_11 0.073171
        stages_1_12 0.078049  stages_1_13 0.082927  stages_1_14 0.087805  stages_1_15 0.092683
        stages_2_2 0.107317   stages_2_3 0.112195   stages_2_4 0.117073   stages_2_5 0.121951
        stages_2_6 0.126829   stages_2_7 0.131707   stages_2_8 0.136585   stages_2_9 0.141463
        stages_2_10 0.146341  stages_2_11 0.151220  stages_2_12 0.156098  stages_2_13 0.160976
        stages_2_14 0.165854  stages_2_15 0.170732  stages_2_16 0.175610  stages_2_17 0.180488
        stages_2_18 0.185366  stages_2_19 0.190244""",
    "MobileNetV4HybridMedium": """
        blocks_1_1 0.0125    blocks_2_1 0.025     blocks_2_2 0.03125   blocks_2_3 0.0375
        blocks_2_4 0.04375   blocks_2_5 0.05      blocks_2_6 0.05625   blocks_2_7 0.0625
        blocks_2_8 0.06875   blocks_2_9 0.075     blocks_2_10 0.08125  blocks_2_11 0.0875
        blocks_3_1 0.1       blocks_3_2 0.10625   blocks_3_3 0.1125    blocks_3_4 0.11875
        blocks_3_5 0.125     blocks_3_6 0.13125   blocks_3_7 0.1375    blocks_3_8 0.14375
        blocks_3_9 0.15      blocks_3_10 0.15625  blocks_3_11 0.1625   blocks_3_12 0.16875
        blocks_3_13 0.175    blocks_3_14 0.18125  blocks_3_15 0.1875""",
}


@pytest.mark.parametrize("name", _TIMM)
def test_stochastic_depth_is_timms(name):
    net = getattr(kapps, name)(
        include_top=False, drop_path_rate=0.2, input_shape=SHAPE, drop_path_mode="row"
    )
    words = _TIMM[name].split()
    expected = dict(zip(words[::2], map(float, words[1::2]), strict=True))
    found = path_rates(net)
    # The table has six decimals.
    assert found.keys() == expected.keys() and found == pytest.approx(expected, abs=5.1e-7)


# By hand, of ResNet-14 for CIFAR: six blocks.
@pytest.mark.parametrize(
    ("schedule", "sixths"),
    [
        ("linear", [1, 2, 3, 4, 5, 6]),  # what the paper has for this network
        ("huang", [1, 2, 3, 4, 5, 6]),
        ("efficientnet", [1, 2, 3, 4, 5]),  # the first block is never dropped
        ("linspace", [1.2, 2.4, 3.6, 4.8, 6]),
        ("constant", [6] * 6),
    ],
)
def test_stochastic_depth_has_the_rates_that_the_schedule_says(schedule, sixths):
    net = kapps.CifarResNet(depth=14, drop_path_rate=0.6, drop_path_schedule=schedule)
    names = ["layer1_0", "layer1_1", "layer2_0", "layer2_1", "layer3_0", "layer3_1"]
    expected = dict(zip(names[-len(sixths) :], (0.1 * x for x in sixths), strict=True))
    found = path_rates(net)
    assert found.keys() == expected.keys() and found == pytest.approx(expected, rel=1e-12)


def test_one_block_has_what_timm_gives_it():
    """torch.linspace(0, rate, 1) is 0."""
    net = Net(Regularization(drop_path_rate=0.2, drop_path_schedule="linspace"), 3, None)
    assert list(net.blocks((1,))) == [(0, 0)]
    x = keras.Input((4, 4, 3))
    assert isinstance(net.add(x, x, "block")._keras_history.operation, layers.Add)


def test_stochastic_depth_adds_no_weights():
    net = kapps.EfficientNetLite0(drop_path_rate=0.2, input_shape=SHAPE)
    assert not isinstance(net, BlockSkippingModel)
    plain = kapps.EfficientNetLite0(input_shape=SHAPE)
    assert [w.path for w in plain.weights] == [w.path for w in net.weights]


def test_rows_are_dropped_whole_and_the_mean_stays():
    layer = custom_layers.StochasticDepth(0.25, seed=0)
    x = np.ones((4000, 2, 2, 1), np.float32)
    np.testing.assert_array_equal(numpy(layer(x)), x)
    y = numpy(layer(x, training=True))
    assert set(np.unique(y.round(5))) == {0.0, np.float32(1 / 0.75).round(5)}
    assert (y == y[:, :1, :1, :1]).all()
    # 4,000 draws at p = 0.25: one standard deviation of the mean is 0.009
    assert abs(y.mean() - 1) < 0.04


def test_a_batch_is_dropped_whole_and_the_mean_stays():
    layer = custom_layers.StochasticDepth(0.25, "batch", seed=0)
    x = np.ones((3, 2, 2, 1), np.float32)
    y = np.stack([numpy(layer(x, training=True)) for _ in range(1000)])
    assert (y == y[:, :1, :1, :1, :1]).all()
    assert abs(y.mean() - 1) < 0.08


@pytest.mark.parametrize("survive", [(True, True), (True, False), (False, True), (False, False)])
def test_skipping_equals_masking(survive, monkeypatch):
    """Outputs and every variable after a training step, against the graph that computes it all."""
    skipping, masking = residual_net(0.3), residual_net(0.3, "row")
    masking.set_weights(skipping.get_weights())
    for model in (skipping, masking):  # a seeded dropout draws alike
        model.get_layer("inner_dropout").seed_generator.state.assign([1, 2])
    before = {v.path: numpy(v).copy() for v in skipping.variables}
    x = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
    drawn(monkeypatch, *survive)
    actual = numpy(skipping(x, training=True))
    drawn(monkeypatch, *survive)
    expected = numpy(masking(x, training=True))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    # The statistics of a block that ran are those of the other model; the others are untouched.
    for name, ran in zip(("bn1", "bn2"), survive, strict=True):
        ours, theirs = skipping.get_layer(name), masking.get_layer(name)
        assert np.allclose(numpy(ours.moving_mean), numpy(theirs.moving_mean), atol=1e-6) == ran
        if not ran:
            np.testing.assert_array_equal(numpy(ours.moving_mean), before[ours.moving_mean.path])


def test_a_dropped_block_is_not_computed(monkeypatch):
    ran = []
    call = layers.Conv2D.call
    monkeypatch.setattr(
        layers.Conv2D, "call", lambda self, x: (ran.append(self.name), call(self, x))[1]
    )
    model = residual_net(0.3)
    x = np.zeros((2, 8, 8, 3), np.float32)
    if keras.backend.backend() == "tensorflow":
        # In a graph, the convolutions of a branch lie within the branch of a condition.
        import tensorflow as tf

        graph = tf.function(lambda x: model(x, training=True)).get_concrete_function(x).graph
        assert sum(op.type == "Conv2D" for op in graph.get_operations()) == 2
        assert sum(op.type in ("If", "StatelessIf") for op in graph.get_operations()) == 2
    if keras.backend.backend() == "jax":  # likewise: it traces both sides, and runs one
        import jax

        variables = [
            [v.value for v in group]
            for group in (model.trainable_variables, model.non_trainable_variables)
        ]
        forward = functools.partial(model.stateless_call, *variables, training=True)
        steps = [step.primitive.name for step in jax.make_jaxpr(forward)(x).eqns]
        assert steps.count("conv_general_dilated") == 2 and steps.count("cond") == 2
        return
    ran.clear()
    drawn(monkeypatch, False, True)
    model(x, training=True)
    assert sorted(ran) == ["conv2a", "conv2b", "shortcut", "stem"]
    ran.clear()
    model(x)
    assert len(ran) == 5


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras has it there only")
def test_synchronized_statistics_are_computed_all_the_same(monkeypatch):
    model = residual_net(0.3)
    model.get_layer("bn1").synchronized = True
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    before = numpy(model.get_layer("bn1").moving_mean).copy()
    drawn(monkeypatch, False, False)
    dropped = numpy(model(x, training=True))
    assert not np.array_equal(numpy(model.get_layer("bn1").moving_mean), before)
    drawn(monkeypatch, False, False)
    model.get_layer("bn1").synchronized = False
    np.testing.assert_allclose(dropped, numpy(model(x, training=True)), atol=1e-6)


@pytest.mark.slow
def test_whole_batch_training_reaches_every_weight():
    """With a probability so small that nothing is dropped, and with one that drops something."""
    for rate in (1e-6, 0.5):
        model = kapps.CifarResNet(
            depth=14,
            input_shape=SHAPE,
            classes=3,
            drop_path_rate=rate,
            drop_path_mode="batch",
            drop_path_schedule="constant",
        )
        assert isinstance(model, BlockSkippingModel)
        before = [numpy(v).copy() for v in model.trainable_variables]
        model.compile(
            keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", jit_compile=False
        )
        history = model.fit(images(), np.array([0, 1, 2, 0]), batch_size=2, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
        changed = [
            not np.array_equal(numpy(v), old)
            for v, old in zip(model.trainable_variables, before, strict=True)
        ]
        assert all(changed) if rate < 0.1 else any(changed)


@pytest.mark.slow
def test_a_skipping_model_is_saved_and_loaded(tmp_path):
    model = kapps.EfficientNetLite0(input_shape=SHAPE, drop_path_rate=0.2, drop_path_mode="batch")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, BlockSkippingModel)
    np.testing.assert_array_equal(numpy(loaded(images())), numpy(model(images())))
    plain = kapps.EfficientNetLite0(input_shape=SHAPE)
    plain.set_weights(model.get_weights())
    np.testing.assert_array_equal(numpy(plain(images())), numpy(model(images())))


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels=st.integers(1, 3),
    block=st.integers(1, 7),
    rate=st.floats(0.05, 0.6),
    seed=st.integers(0, 1000),
)
def test_drop_block(height, width, channels, block, rate, seed):
    layer = custom_layers.DropBlock2D(rate, block, seed=seed)
    x = np.ones((3, height, width, channels), np.float32)
    np.testing.assert_array_equal(numpy(layer(x)), x)
    y = numpy(layer(x, training=True))
    assert (y == y[..., :1]).all(), "one mask over all channels"
    dropped = y[..., 0] == 0
    if not dropped.all():
        np.testing.assert_allclose(y.mean(), 1, rtol=1e-5)  # rescaled by what survived
    # Every dropped pixel lies in a square of dropped ones, which lies inside of the map.
    side = min(block, height, width)
    for mask in dropped:
        explained = np.zeros_like(mask)
        for i in range(height - side + 1):
            for j in range(width - side + 1):
                square = slice(i, i + side), slice(j, j + side)
                if mask[square].all():
                    explained[square] = True
        np.testing.assert_array_equal(explained, mask)


def test_drop_block_drops_about_its_rate():
    x = np.ones((400, 28, 28, 1), np.float32)
    for rate, block in ((0.1, 7), (0.1, 1), (0.25, 5)):
        y = numpy(custom_layers.DropBlock2D(rate, block, seed=1)(x, training=True))
        share = (y == 0).mean()
        # The regions overlap, so that a little less is dropped (Ghiasi et al. 2018, section 3).
        assert 0.85 * rate < share < 1.02 * rate


def test_drop_block_follows_its_schedule():
    layer = custom_layers.DropBlock2D(0.4, 3, schedule_steps=4, seed=0)
    x = np.ones((200, 14, 14, 1), np.float32)
    shares = [(numpy(layer(x, training=True)) == 0).mean() for _ in range(6)]
    assert shares[0] == 0
    np.testing.assert_allclose(shares[1:], [0.1, 0.19, 0.27, 0.34, 0.34], atol=0.03)
    layer(x)  # inference does not count
    assert int(numpy(layer.step)) == 6


def test_drop_block_acts_in_the_last_two_stages():
    net = kapps.EfficientNetLite0(drop_block_rate=0.1, drop_block_size=5, input_shape=SHAPE)
    found = [x for x in net.layers if isinstance(x, custom_layers.DropBlock2D)]
    assert found and all((x.rate, x.block_size, x.schedule_steps) == (0.1, 5, 0) for x in found)
    names = {x.name for x in found}
    assert "blocks_5_1_drop_block" in names and "blocks_5_1_drop_block_shortcut" in names
    assert not any(name.startswith(("blocks_1", "blocks_2", "blocks_3")) for name in names)
    assert len({x.seed_generator for x in found}) == len(found)


# By hand, of ResNet-14 for CIFAR: three stages of two blocks; sixths of the rate.
@pytest.mark.parametrize(
    ("stages", "schedule", "sixths"),
    [
        (2, "constant", [6, 6, 6, 6]),
        (1, "constant", [6, 6]),
        (None, "constant", [6] * 6),
        (9, "constant", [6] * 6),  # more than there are
        (2, "linear", [3, 4, 5, 6]),
        (None, "linear", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_drop_block_acts_where_the_caller_wants(stages, schedule, sixths):
    net = kapps.CifarResNet(
        depth=14, drop_block_rate=0.3, drop_block_stages=stages, drop_block_schedule=schedule
    )
    names = ["layer1_0", "layer1_1", "layer2_0", "layer2_1", "layer3_0", "layer3_1"]
    expected = dict(zip(names[-len(sixths) :], (0.05 * x for x in sixths), strict=True))
    for suffix in ("_drop_block", "_drop_block_shortcut"):
        found = rates_of(net, custom_layers.DropBlock2D, suffix)
        assert found.keys() == expected.keys() and found == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_drop_block_with_a_schedule_trains_and_loads(tmp_path):
    arguments = {"input_shape": SHAPE, "classes": 3}
    net = kapps.EfficientNetLite0(drop_block_rate=0.2, drop_block_steps=100, **arguments)
    net.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    net.fit(images(), np.array([0, 1, 2, 0]), verbose=0)
    kapps.save_weights(net, tmp_path / "w.safetensors")
    plain = kapps.EfficientNetLite0(weights=tmp_path / "w.safetensors", **arguments)
    np.testing.assert_allclose(numpy(plain(images())), numpy(net(images())), atol=1e-6)
