"""Auxiliary classifiers: what their losses weigh, the network without them, early exits."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kapps
from kapps._block_skipping import BlockSkippingModel
from kapps._layers import act, conv, flat_dense
from kapps._model import model
from kapps._network import Architecture
from kapps._registry import _BUILDERS

SHAPE = (8, 8, 3)


@pytest.fixture(scope="module")
def three_exits():
    """A builder whose heads lie at depths 2 and 1, in this order of outputs, and one at the end."""

    @model(size=8, min_size=8, classes=5, mean=(0.5,), std=(0.5,))
    def ThreeExits(aux: bool = True) -> Architecture:
        """Two convolutions that halve the map, and a residual block."""
        taps = []

        def features(x, net):
            for i in (1, 2):
                x = act(conv(x, 4, 3, f"conv{i}", stride=2), "relu", f"act{i}")
                taps.append(x)
            for _ in net.blocks((1,)):
                x = net.add(conv(x, 4, 1, "conv3"), x, "block")
            return x

        def side(x, net, path):
            x = flat_dense(x, 6, f"{path}.fc1")
            return net.classifier(layers.Flatten(name=f"{path}_flatten")(x), f"{path}.fc2")

        def head(x, net):
            main = net.classifier(layers.Flatten(name="flatten")(x), "fc")
            if not aux:
                return main
            return [main, side(taps[1], net, "late"), side(taps[0], net, "early")]

        return Architecture(features, head, auxiliary=("late.", "early."), auxiliary_weight=0.25)

    yield ThreeExits
    del _BUILDERS["ThreeExits"]


@pytest.fixture(scope="module")
def googlenet():
    return kapps.GoogLeNet(aux=True, classes=3, input_shape=(32, 32, 3))


@pytest.fixture(scope="module")
def inception():
    return kapps.InceptionV3(aux=True, classes=3, input_shape=(None, None, 3))


def pixels(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *SHAPE), np.uint8)


def numpy(x) -> np.ndarray:
    return keras.ops.convert_to_numpy(x)


# MACs by hand. Trunk: 3x3x3 to 4x4x4 is 27 * 64 = 1728; 3x3x4 to 2x2x4 is 36 * 16 = 576;
# 1x1x4 on 2x2x4 is 4 * 16 = 64; the classifier 16 * 5 = 80.
FIRST, SECOND, BLOCK, MAIN = 1728, 576, 64, 80
# Heads: over 4x4x4, and 2x2x4, to 6, to 5.
EARLY, LATE = 64 * 6 + 6 * 5, 16 * 6 + 6 * 5


def test_exits_come_in_the_order_of_depth_and_cost_the_way_to_them(three_exits):
    net = three_exits()
    exits = kapps.early_exits(net)
    assert [(x.output, x.name) for x in exits] == [(2, "early_fc2"), (1, "late_fc2"), (0, "fc")]
    first = FIRST + EARLY
    second = first + SECOND + LATE
    assert [x.macs for x in exits] == [first, second, second + BLOCK + MAIN]


def test_exits_of_a_size_that_is_given(inception):
    first, last = kapps.early_exits(inception, (299, 299, 3))
    assert (first.name, last.name) == ("AuxLogits_fc", "fc")
    assert first.macs < last.macs == kapps.profile(inception, (299, 299, 3)).macs
    with pytest.raises(kapps.InputError, match="give input_shape"):
        kapps.early_exits(inception)


def test_the_main_exit_of_googlenet_costs_all_of_it(googlenet):
    exits = kapps.early_exits(googlenet)
    assert [x.name for x in exits] == ["aux1_fc2", "aux2_fc2", "fc"]
    macs = [x.macs for x in exits]
    whole = kapps.profile(googlenet)
    assert macs == sorted(macs) and macs[-1] == whole.macs
    heads = sum(x.macs for x in whole.layers if x.name.startswith("aux"))
    assert kapps.profile(kapps.without_auxiliary_heads(googlenet)).macs == whole.macs - heads


def test_a_network_without_heads_has_no_exits(three_exits):
    with pytest.raises(kapps.InputError, match="ThreeExits has no auxiliary .* with aux=True"):
        kapps.early_exits(three_exits(aux=False))


def test_an_image_leaves_where_a_class_is_likely_enough():
    exits = [
        [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.5, 0.5]],
        [[0.1, 0.9], [0.9, 0.1], [0.7, 0.3], [0.4, 0.6]],
        [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.55, 0.45]],
    ]
    for confidence, predicted, taken in (
        (0.9, [0, 0, 1, 0], [0, 1, 2, 2]),  # what is as likely as that leaves
        (0.7, [0, 1, 0, 0], [0, 0, 1, 2]),
        (0, [0, 1, 1, 0], [0, 0, 0, 0]),
        (1, [1, 0, 1, 0], [2, 2, 2, 2]),
    ):
        answer, place = kapps.early_exit([np.array(x) for x in exits], confidence)
        assert (answer.tolist(), place.tolist()) == (predicted, taken), confidence
    answer, place = kapps.early_exit([np.zeros((0, 2))] * 2, 0.5)
    assert answer.shape == place.shape == (0,)


@pytest.mark.parametrize(
    ("probabilities", "confidence", "message"),
    [
        ([np.zeros((2, 3))], 1.1, "confidence must be 0 to 1, not 1.1"),
        ([np.zeros((2, 3))], True, "confidence must be 0 to 1, not True"),
        ([], 0.5, r"all \(images, classes\), not none"),
        ([np.zeros((2, 3)), np.zeros((3, 3))], 0.5, r"not \(2, 3\), \(3, 3\)"),
        ([np.zeros(3)], 0.5, r"not \(3,\)"),
        ([np.array([[3.0, -1.0]])], 0.5, "classifier_activation='softmax'"),
        ([np.array([[0.5, 1.5]])], 0.5, "classifier_activation='softmax'"),
        ([np.array([[0.5, np.nan]])], 0.5, "classifier_activation='softmax'"),
    ],
)
def test_what_is_no_probability_is_refused(probabilities, confidence, message):
    with pytest.raises(kapps.InputError, match=message):
        kapps.early_exit(probabilities, confidence)


def test_all_outputs_are_probabilities_or_logits(googlenet, three_exits):
    for name in googlenet.output_names:
        assert googlenet.get_layer(name).activation is keras.activations.softmax
    for activation in ("softmax", None):
        for output in three_exits(classifier_activation=activation)(pixels()):
            is_softmax = np.allclose(numpy(output).sum(-1), 1, atol=1e-5)  # float32
            assert is_softmax == (activation == "softmax")


def test_the_weights_of_the_losses_are_those_of_the_papers(googlenet, inception):
    assert googlenet.auxiliary_weights == (0.3, 0.3)
    assert inception.auxiliary_weights == (0.4,)
    original = kapps.GoogLeNetOriginal(aux=True, classes=3, input_shape=(79, 79, 3))
    assert original.auxiliary_weights == (0.3, 0.3)
    assert kapps.LeNet5().auxiliary_weights == ()


def test_a_network_without_heads_has_no_such_weights(three_exits):
    assert three_exits(aux=False).auxiliary_weights == ()
    assert three_exits(include_top=False).auxiliary_weights == ()


def test_the_weights_of_the_losses_are_saved(three_exits, tmp_path):
    net = three_exits()
    net.save(tmp_path / "net.keras")
    assert keras.saving.load_model(tmp_path / "net.keras").auxiliary_weights == (0.25, 0.25)
    config = net.get_config()
    del config["built"]["auxiliary_weights"]  # as files of before have it
    assert type(net).from_config(config).auxiliary_weights == ()


def test_without_heads_the_network_is_the_same(three_exits, tmp_path):
    net = three_exits(drop_path_rate=0.5, drop_path_mode="batch")
    kapps.save_weights(net, tmp_path / "w.safetensors")
    kapps.load_weights(net, tmp_path / "w.safetensors")
    main = kapps.without_auxiliary_heads(net)
    assert type(main) is type(net) is BlockSkippingModel and main.name == net.name
    np.testing.assert_array_equal(numpy(main(pixels())), numpy(net(pixels())[0]))
    assert {x.name for x in net.layers} - {x.name for x in main.layers} == {
        f"{path}_{layer}" for path in ("early", "late") for layer in ("fc1", "flatten", "fc2")
    }
    for layer in main.layers:  # no copies: what is trained in one is trained in the other
        assert layer is net.get_layer(layer.name)
    assert main.auxiliary_weights == ()
    for fact in ("kapps_builder", "features_layer", "checkpoint_auxiliary", "checkpoint_before"):
        assert getattr(main, fact) == getattr(net, fact)
    kapps.load_weights(main, tmp_path / "w.safetensors")  # and no word of the heads in the file
    assert kapps.without_auxiliary_heads(main) is main
    foreign = keras.Model(net.inputs, net.outputs)
    assert kapps.without_auxiliary_heads(foreign) is foreign
