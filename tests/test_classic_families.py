"""What is particular to LeNet, AlexNet, NiN, VGG and the Inception networks."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

from kapps import InputError
from kapps import weights as kapps_weights
from kapps.alexnet import AlexNetOriginal
from kapps.custom_layers import AdaptiveAveragePooling2D
from kapps.googlenet import GoogLeNet, GoogLeNetOriginal, SEGoogLeNet
from kapps.inception_v3 import InceptionV3
from kapps.lenet import LeNet5Original, Subsampling, digit_bitmaps, scaled_tanh
from kapps.nin import NiN
from kapps.vgg import VGG11

pytestmark = pytest.mark.slow


def numpy(x) -> np.ndarray:
    return keras.ops.convert_to_numpy(x)


def size(weights) -> int:
    return sum(int(np.prod(w.shape)) for w in weights)


def between(model: keras.Model, first: str, last: str) -> keras.Model:
    """From the input of one layer to the output of another."""
    return keras.Model(model.get_layer(first).input, model.get_layer(last).output)


# --- LeNet-5 -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenet() -> keras.Model:
    return LeNet5Original(classifier_activation=None)


def test_lenet_has_the_parameters_and_connections_of_the_paper(lenet):
    # Section II.B. A unit's connections are its weights, shared or not, and its bias.
    published = {
        "c1": (156, 122_304),
        "s2": (12, 5_880),
        "c3": (1_516, 151_600),
        "s4": (32, 2_000),
        "c5": (48_120, 48_120),
        "f6": (10_164, 10_164),
        "output": (0, 840),
    }
    counted = dict.fromkeys(published, (0, 0))
    for layer in lenet.layers:
        part = layer.name.partition("_")[0]
        if not (layer.trainable_weights or part == "output"):
            continue
        units = int(np.prod(layer.output.shape[1:]))
        if part in ("s2", "s4"):
            per_unit = 2 * 2 + 1
        elif part == "output":
            per_unit = layer.input.shape[-1]
        else:
            per_unit = int(np.prod(layer.kernel.shape[:-1])) + 1
        parameters, connections = counted[part]
        counted[part] = (
            parameters + size(layer.trainable_weights),
            connections + units * per_unit,
        )
    assert counted == published
    assert size(lenet.trainable_weights) == 60_000
    assert sum(connections for _, connections in counted.values()) == 340_908


def test_c3_sees_what_table_1_says(lenet):
    # A row is a map of S2, a column one of C3, as the paper prints it.
    table = [
        "X...XXX..XXXX.XX",
        "XX...XXX..XXXX.X",
        "XXX...XXX..X.XXX",
        ".XXX..XXXX..X.XX",
        "..XXX..XXXX.XX.X",
        "...XXX..XXXX.XXX",
    ]
    c3 = between(lenet, "c3_0_inputs", "c3")
    x = np.random.default_rng(0).standard_normal((1, 14, 14, 6)).astype(np.float32)
    y = numpy(c3(x))
    for i, row in enumerate(table):
        changed = x.copy()
        changed[..., i] += 1
        moved = np.abs(numpy(c3(changed)) - y).max((0, 1, 2)) > 0
        assert "".join(".X"[int(m)] for m in moved) == row


def test_subsampling_sums_four_pixels_of_a_channel():
    layer = Subsampling()
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 3)).astype(np.float32)
    layer.build(x.shape)
    layer.coefficient.assign([1.0, -2.0, 0.5])
    layer.bias.assign([0.0, 0.1, 7.0])
    expected = np.zeros((2, 3, 2, 3))
    for i, j in np.ndindex(3, 2):
        window = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        expected[:, i, j] = window.sum((1, 2)) * [1, -2, 0.5] + [0, 0.1, 7]
    np.testing.assert_allclose(numpy(layer(x)), expected, rtol=1e-5, atol=1e-5)  # float32
    assert layer.compute_output_shape((None, 6, 5, 3)) == (None, 3, 2, 3)


def test_lenet_squashes_as_the_paper():
    """f(1) = 1, f(-1) = -1, and the slope at 0 is A S (appendix A); A is given to five digits."""
    y = numpy(scaled_tanh(keras.ops.convert_to_tensor([-1.0, 1.0, -100.0, 1e-3])))
    np.testing.assert_allclose(y, [-1, 1, -1.7159, 1.7159 * 2 / 3 * 1e-3], rtol=5e-5)


def test_lenet_scales_ink_as_the_paper(lenet):
    for value, level in ((0, -0.1), (255, 1.175)):
        y = numpy(lenet.get_layer("normalization")(np.full((1, 32, 32, 1), value, np.uint8)))
        np.testing.assert_allclose(y, level, atol=1e-6)  # float32


def test_bitmaps_are_the_logits_targets(lenet):
    bitmaps = digit_bitmaps()
    assert bitmaps.shape == (10, 7 * 12) and set(bitmaps.ravel()) == {-1, 1}
    distances = [int((a != b).sum()) for a, b in itertools.combinations(bitmaps, 2)]
    assert min(distances) >= 4  # no two digits are drawn alike
    output = lenet.get_layer("output")
    logits = numpy(output(bitmaps))
    # Of entries 1 and -1, a square of 4 for each that differs.
    np.testing.assert_array_equal(logits, -4 * (bitmaps[:, None] != bitmaps).sum(-1))
    # The top of a 7 is a line, that of a 1 is not.
    assert bitmaps.reshape(10, 12, 7)[7, 1].sum() == 7 > bitmaps.reshape(10, 12, 7)[1, 1].sum()


def test_lenet_with_other_classes(lenet, tmp_path):
    fewer = LeNet5Original(classes=4, classifier_activation=None)
    fewer.set_weights(lenet.get_weights())  # the output has none to fit
    x = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    np.testing.assert_allclose(numpy(fewer(x)), numpy(lenet(x))[:, :4], rtol=1e-5)
    with pytest.raises(InputError, match="classes=11.*at most 10 classes, or LeNet5"):
        LeNet5Original(classes=11)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".safetensors"])
def test_lenets_own_layers_are_saved(lenet, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    if suffix == ".keras":
        lenet.save(path)
        loaded = keras.saving.load_model(path)
    else:
        kapps_weights.save_weights(lenet, path)
        loaded = LeNet5Original(classifier_activation=None, weights=path)
    x = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(lenet(x)))


@pytest.mark.nightly
def test_lenet_learns():
    """Gradients pass the saturating units, the table and the distances: a batch is learned."""
    keras.utils.set_random_seed(0)
    model = LeNet5Original()
    before = [numpy(v).copy() for v in model.trainable_variables]
    x = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), np.uint8)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", jit_compile=False)
    losses = model.fit(x, np.arange(8), batch_size=8, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < 0.1 * losses[0]
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert not np.array_equal(numpy(variable), old), variable.path


# --- AlexNet -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alexnet() -> keras.Model:
    return AlexNetOriginal(input_shape=(67, 67, 3), classes=10)


@pytest.mark.parametrize(
    ("first", "last", "crosses"), [("conv2", "conv2", False), ("conv3", "conv3", True)]
)
def test_alexnets_towers_meet_where_the_paper_says(alexnet, first, last, crosses):
    """Figure 2: half of the maps of a convolution see one half of those before, but for the 3rd."""
    part = between(alexnet, first, last)
    x = np.random.default_rng(0).standard_normal((1, *part.input_shape[1:])).astype(np.float32)
    other = x.copy()
    half = x.shape[-1] // 2
    other[..., :half] += 1
    moved = np.abs(numpy(part(other)) - numpy(part(x))).max((0, 1, 2)) > 0
    assert moved[: len(moved) // 2].all()
    assert moved[len(moved) // 2 :].all() if crosses else not moved[len(moved) // 2 :].any()


def test_alexnet_starts_as_the_paper(alexnet):
    """Section 5: deviation 0.01; biases 1 in convolutions 2, 4, 5 and the hidden layers, else 0."""
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        layer = alexnet.get_layer(name)
        np.testing.assert_array_equal(numpy(layer.bias), float(name in ones))
        # The least kernel has 34,848 numbers: their deviation is known to about 0.4 %.
        assert abs(numpy(layer.kernel).std() / 0.01 - 1) < 0.03


def test_alexnet_normalizes_before_it_pools(alexnet):
    names = [layer.name for layer in alexnet.layers]
    for i in (1, 2):
        order = [names.index(f"{kind}{i}") for kind in ("conv", "relu", "norm", "pool")]
        assert order == sorted(order)
    assert "norm3" not in names


# --- NiN, VGG ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [4, 5, 30, 31, 32, 33, 34, 35])
def test_nin_pools_to_the_edge(side):
    """3x3 at stride 2 with the last window over the edge, twice: every pixel is seen."""
    expected = side
    for _ in range(2):
        expected = -(-(expected - 3) // 2) + 1
    model = NiN(include_top=False, input_shape=(side, side, 3))
    assert model.output_shape == (None, expected, expected, 192)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (8, 3), (5, 7), (7, 7)])
def test_vgg_enlarges_small_maps_as_adaptive_pooling(height, width):
    x = np.random.default_rng(0).standard_normal((2, height, width, 3)).astype(np.float32)

    def windows(side: int) -> list[slice]:
        n = max(side, 7)
        return [slice(i * side // n, -(-(i + 1) * side // n)) for i in range(n)]

    expected = [
        [x[:, rows, columns].mean((1, 2)) for columns in windows(width)] for rows in windows(height)
    ]
    layer = AdaptiveAveragePooling2D((max(height, 7), max(width, 7)))
    y = numpy(layer(x))
    assert y.shape == layer.compute_output_shape(x.shape)
    np.testing.assert_allclose(y, np.array(expected).transpose(2, 0, 1, 3), atol=1e-5)  # float32


def test_vgg_with_a_classifier_needs_a_size():
    with pytest.raises(InputError, match="give input_shape"):
        VGG11(input_shape=(None, None, 3))


# --- Inception -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "parameters", "outputs"),
    [
        (GoogLeNet, 13_004_888, ["fc", "aux1_fc2", "aux2_fc2"]),
        (GoogLeNetOriginal, 13_378_280, ["fc", "aux1_fc2", "aux2_fc2"]),
        (InceptionV3, 27_161_264, ["fc", "AuxLogits_fc"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_auxiliary_classifiers(builder, parameters, outputs, tmp_path):
    """They come behind the main output, and are skipped in a file where they are not built."""
    model = builder(aux=True)
    assert size(model.trainable_weights) == parameters
    assert model.output_shape == [(None, 1000)] * len(outputs)
    assert [tensor._keras_history.operation.name for tensor in model.outputs] == outputs
    kapps_weights.save_weights(model, tmp_path / "aux.safetensors")
    plain = builder(weights=tmp_path / "aux.safetensors")
    for layer in plain.layers:
        for one, other in zip(layer.weights, model.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(numpy(one), numpy(other))


def test_auxiliary_classifiers_see_the_modules_that_the_paper_says():
    """The first sees module 4a, the second 4d: of the later modules neither depends."""
    model = GoogLeNet(aux=True, input_shape=(15, 15, 3), classes=3)
    x = np.random.default_rng(0).integers(0, 256, (1, 15, 15, 3), np.uint8)
    depends = {}
    for name in ("4a", "4b", "4d", "4e"):
        before = [numpy(y) for y in model(x, training=False)]
        bias = model.get_layer(f"inception{name}_branch1_bn").beta
        bias.assign(bias + 1)
        after = [numpy(y) for y in model(x, training=False)]
        depends[name] = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert depends == {
        "4a": [True, True, True],
        "4b": [True, False, True],
        "4d": [True, False, True],
        "4e": [True, False, False],
    }


@pytest.mark.parametrize(
    ("builder", "side"),
    [(GoogLeNetOriginal, 79), (InceptionV3, 299)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_auxiliary_classifiers_need_room(builder, side):
    """The sizes that the messages name are the smallest that do."""
    builder(aux=True, input_shape=(side, side, 3))
    with pytest.raises(InputError, match=rf"{side} pixels.*aux=False"):
        builder(aux=True, input_shape=(side, side - 1, 3))


def test_auxiliary_classifiers_drop_at_their_own_rate():
    model = GoogLeNet(aux=True, dropout_rate=0, input_shape=(32, 32, 3))
    rates = {x.name: x.rate for x in model.layers if isinstance(x, keras.layers.Dropout)}
    assert rates == {"aux1_dropout": 0.7, "aux2_dropout": 0.7}


def test_googlenet_original_has_the_papers_layers():
    """5x5 convolutions, and response normalization where its figure 3 has it."""
    model = GoogLeNetOriginal(include_top=False)
    assert model.get_layer("inception3a_branch3_1_conv").kernel_size == (5, 5)
    names = [layer.name for layer in model.layers]
    order = [names.index(n) for n in ("maxpool1", "norm1", "conv2_conv", "norm2", "maxpool2")]
    assert order == sorted(order)
    assert not any(isinstance(x, keras.layers.BatchNormalization) for x in model.layers)


def test_googlenet_original_starts_in_scale():
    """Of images in 0..255, and without batch norm, the logits are about 1, so that it can learn."""
    model = GoogLeNetOriginal(input_shape=(64, 64, 3), classifier_activation=None)
    x = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    assert 0.1 < numpy(model(x)).std() < 3


def test_squeeze_and_excitation_follows_each_module():
    """With every gate open the network is GoogLeNet; there is one gate a module."""
    x = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    # One normalization for both: theirs differ.
    arguments = {"input_shape": (16, 16, 3), "include_preprocessing": False, "classes": 10}
    plain, gated = GoogLeNet(**arguments), SEGoogLeNet(**arguments)
    gates = [layer for layer in gated.layers if layer.name.endswith("_se_fc2")]
    assert len(gates) == 9
    for gate in gates:
        assert gate.kernel.shape[-2] == gate.kernel.shape[-1] // 16
        gate.kernel.assign(np.zeros(gate.kernel.shape))
        gate.bias.assign(np.full(gate.bias.shape, 40.0))  # sigmoid: 1 in float32
    for layer in plain.layers:
        if layer.weights:
            gated.get_layer(layer.name).set_weights(layer.get_weights())
    images = (x / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(numpy(gated(images)), numpy(plain(images)), atol=1e-6)
    gates[0].bias.assign(np.full(gates[0].bias.shape, -1.0))
    assert np.abs(numpy(gated(images)) - numpy(plain(images))).max() > 1e-4
