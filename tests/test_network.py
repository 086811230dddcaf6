"""A network as the flags of a program describe it, and as a run remembers it."""

from __future__ import annotations

import json

import keras
import pytest

import kapps
from kapps.tools.network import build_network, network_arguments

SHAPE = (32, 32, 3)


def test_a_run_remembers_the_arguments_as_json():
    """The same from either way of giving them, in one order, and only those that were given."""
    found = network_arguments(
        kapps.ResNet,
        "blocks=(1,2,1,1),bottleneck=False",
        {"drop_path_rate": 0.2, "dropout_rate": None, "drop_path_schedule": "huang"},
    )
    expected = {
        "blocks": [1, 2, 1, 1],
        "bottleneck": False,
        "drop_path_rate": 0.2,
        "drop_path_schedule": "huang",
    }
    assert found == expected and list(found) == sorted(found)
    assert json.loads(json.dumps(found)) == found
    assert network_arguments(kapps.NiN, None, {"dropout_rate": None}) == {}
    flag, text = {"dropout_rate": 0.3}, "dropout_rate=0.3"
    assert network_arguments(kapps.NiN, None, flag) == network_arguments(kapps.NiN, text, {})
    # None is a value where it was said.
    assert network_arguments(kapps.NiN, "drop_block_stages=None", {}) == {"drop_block_stages": None}


def test_the_same_network_is_built_of_what_a_run_remembers():
    text = "blocks=(1,2,1,1),bottleneck=False"
    kept = json.loads(json.dumps(network_arguments(kapps.ResNet, text, {"drop_path_rate": 0.2})))
    built = build_network(kapps.ResNet, kept, input_shape=SHAPE, classes=3)
    same = build_network(kapps.ResNet, f"{text},drop_path_rate=0.2", input_shape=SHAPE, classes=3)
    assert built.get_config() == same.get_config()
    assert "layer2_1_drop_path" in [layer.name for layer in built.layers]


def test_lists_of_json_become_tuples_again():
    """As the defaults are: what was published for these is not said to be for others."""

    def built(blocks=(3, 4), stages=()):
        return blocks, stages

    assert build_network(built, {"blocks": [3, 4], "stages": [[1, 2], 3]}) == (
        (3, 4),
        ((1, 2), 3),
    )


def test_the_library_may_want_logits():
    """None is a value here, and not the builder's default."""
    kept = network_arguments(kapps.LeNet5, "dropout_rate=0.5", {})
    net = build_network(kapps.LeNet5, kept | {"classifier_activation": None})
    last = net.layers[-1]
    assert last.activation is keras.activations.linear
    plain = build_network(kapps.LeNet5, kept).layers[-1]
    assert plain.activation is keras.activations.softmax


@pytest.mark.parametrize(
    ("text", "shared", "message"),
    [
        ("dropout_rate=0.5", {"dropout_rate": 0.2}, "=0.5 and --dropout_rate=0.2: give one of the"),
        ("classifier_activation=None", {}, "classifier_activation=... is not for training: .*logi"),
        ("include_top=False", {}, "include_top=... is not for training: without the classifier"),
        ("pooling=avg", {}, "pooling=... is not for training: .* place of the classifier"),
        ("drop_path_rates=0.1", {}, "unknown argument of LeNet5 .* did you mean drop_path_rate"),
        ("classes=3", {}, "unknown argument of LeNet5 'classes'"),
        ("dropout_rate=0.5,dropout_rate=0.1", {}, "each name once"),
        ("name={1: 2}", {}, r"name={1: 2} is no number, text, True, False, None or tuple"),
        ("dropout_rate=1e999", {}, "dropout_rate=inf is no number"),
        (None, {"depth": 3}, "unknown argument of LeNet5 'depth'"),
    ],
)
def test_what_a_run_cannot_have_is_refused(text, shared, message):
    with pytest.raises(kapps.InputError, match=message):
        network_arguments(kapps.LeNet5, text, shared)


def test_a_damaged_memory_is_refused():
    with pytest.raises(kapps.InputError, match="unknown argument of LeNet5 'widht'"):
        build_network(kapps.LeNet5, {"widht": 3})
    with pytest.raises(kapps.InputError, match="unknown argument of LeNet5 'weights'"):
        build_network(kapps.LeNet5, {"weights": "imagenet"})
    with pytest.raises(kapps.InputError, match="dropout_rate must be at least 0 and below 1"):
        build_network(kapps.LeNet5, {"dropout_rate": 2})
