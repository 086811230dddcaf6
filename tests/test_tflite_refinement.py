"""int8 files that are brought nearer to the network, and layers that stay in float."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from tflite_net import smooth_images

from kapps import InputError
from kapps.tflite import Runner, compare_layers, convert, inspect, refinement
from kapps.tflite.comparison import layers_in
from kapps.tflite.content import make_content
from kapps.tflite.large.filling import packed
from kapps.tflite.refinement.bias import correct_biases, rounded
from kapps.tflite.refinement.clipping import best_range
from kapps.tflite.refinement.constants import set_constant, weighted
from kapps.tflite.refinement.equalization import equalize
from kapps.tflite.refinement.statistics import BINS, find_channels, find_histograms


def images(count: int = 6) -> np.ndarray:
    return smooth_images(count, 20)


def net() -> keras.Model:
    """What equalization goes through, and what stops it; channels of very different ranges."""
    x = image = keras.Input((20, 20, 3))
    x = skip = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu", name="stem")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = layers.Conv2D(16, 1, name="narrow")(x)
    x = layers.Add(name="add")([x, skip])
    x = layers.Conv2D(32, 1, activation="relu6", name="wide")(x)
    x = layers.Conv2D(24, 3, groups=2, name="grouped")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Conv2D(24, 1, activation="relu", name="last")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    model = keras.Model(image, layers.Dense(7, activation="softmax", name="classes")(x))
    random = np.random.default_rng(0)
    for name in ("stem", "depthwise", "narrow", "grouped", "last"):
        kernel, bias = model.get_layer(name).weights
        size = kernel.shape[-2 if name == "depthwise" else -1]
        factors = 10 ** random.uniform(-1, 1, size)
        kernel.assign(kernel * (factors[:, None] if name == "depthwise" else factors))
        bias.assign(random.normal(size=bias.shape))
    return model


@pytest.fixture(scope="module")
def content() -> bytes:
    return bytes(make_content(net(), "float32", "float32", None).content)


def read(content: bytes):
    return schema.ModelT.InitFromPackedBuf(content, 0)


def given_by(model, layer: str = "") -> np.ndarray:
    """The output of a file of floats for the images, or of a layer in it."""
    interpreter = Interpreter(
        model_content=bytes(packed(model)),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    number = interpreter.get_output_details()[0]["index"]
    if layer:
        (number,) = [
            int(op.outputs[0])
            for op in model.subgraphs[0].operators
            if f"/{layer}" in model.subgraphs[0].tensors[op.outputs[0]].name.decode().split(";")[0]
        ]
    found = []
    for image in images():
        interpreter.set_tensor(
            interpreter.get_input_details()[0]["index"], image[None].astype("float32")
        )
        interpreter.invoke()
        found.append(interpreter.get_tensor(number))
    return np.concatenate(found)


def test_an_equalized_network_computes_the_same(content):
    before, after = read(content), read(content)
    channels = find_channels(before, images())
    found = equalize(after, channels)
    np.testing.assert_allclose(given_by(before), given_by(after), rtol=0, atol=1e-5)
    tensors = before.subgraphs[0].tensors
    changed = {
        tensors[number].name.decode().split(";")[0].split("/")[1].rpartition("_")[0]
        for number in channels
        if not np.array_equal(channels[number].low, found[number].low)
        or not np.array_equal(channels[number].high, found[number].high)
    }
    # All but "wide", which ends in a ReLU6.
    assert changed == {"stem", "depthwise", "narrow", "add", "grouped", "pool", "last", "mean"}
    measured = find_channels(after, images())
    for number, of in found.items():
        np.testing.assert_allclose(of.low, measured[number].low, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(of.mean, measured[number].mean, rtol=1e-3, atol=1e-3)


def test_a_corrected_bias_makes_up_for_the_rounding(content):
    """The mean of a layer's output is that of the real kernel; exactly, where nothing is padded."""
    exact, coarse, corrected = (read(content) for _ in range(3))
    channels = find_channels(exact, images())

    def in_four_steps(layer):
        step = np.abs(layer.kernel).max() / 4
        return np.rint(layer.kernel / step) * step

    correct_biases(
        corrected,
        channels,
        lambda layer: in_four_steps(layer) if "narrow" in layer.output else None,
    )
    for model in (coarse, corrected):
        for layer in weighted(model):
            if "narrow" in layer.output:
                layer.set_kernel(in_four_steps(layer))
    means = [given_by(model, "narrow").mean(axis=(0, 1, 2)) for model in (exact, coarse, corrected)]
    apart = [np.abs(mean - means[0]).max() for mean in means]
    assert apart[1] > 1
    assert apart[2] < 0.05 * apart[1]  # two pixels of an image are not as they were calibrated on
    for before, after in zip(weighted(exact), weighted(corrected), strict=True):
        if "narrow" not in before.output:
            np.testing.assert_array_equal(before.bias, after.bias)


def test_the_rounding_is_that_of_the_quantizer(tmp_path, content, monkeypatch):
    monkeypatch.setattr(refinement, "STEPS", ())
    file = convert(net(), tmp_path / "a.tflite", quantization="int8", calibration=images()).path
    made = read(file.read_bytes())
    model, tensors = net(), made.subgraphs[0].tensors
    by_layer = {
        layers_in(tensors[op.outputs[0]].name.decode(), model)[-1]: op
        for op in made.subgraphs[0].operators
        if len(op.inputs) == 3
    }
    compared = 0
    for layer in weighted(read(content)):
        op = by_layer[layers_in(layer.output, model)[-1]]
        tensor = tensors[op.inputs[1]]
        if tuple(tensor.shape) != layer.kernel.shape:  # the stem, which int8 gives pairs of pixels
            continue
        values = np.asarray(made.buffers[tensor.buffer].data, "uint8").view("int8")
        shape = np.ones(layer.kernel.ndim, int)
        shape[layer.axis] = -1
        values = values.reshape(tensor.shape) * np.reshape(tensor.quantization.scale, shape)
        np.testing.assert_allclose(rounded(layer), values, rtol=1e-5, atol=1e-7)
        compared += 1
    assert compared >= 5


def test_a_constant_of_two_layers_is_changed_in_one(content):
    model = read(content)
    first, second = [op for op in model.subgraphs[0].operators if len(op.inputs) == 3][:2]
    second.inputs = [*second.inputs[:2], first.inputs[2]]
    before = next(layer.bias for layer in weighted(model) if layer.op is first).copy()
    set_constant(model, second, 2, before + 1)
    (after,) = [layer for layer in weighted(model) if layer.op is first]
    np.testing.assert_array_equal(after.bias, before)
    (other,) = [layer for layer in weighted(model) if layer.op is second]
    np.testing.assert_array_equal(other.bias, before + 1)


@settings(max_examples=50, deadline=None)
@given(
    low=st.floats(-100, 0),
    width=st.floats(0.01, 1000),
    seed=st.integers(0, 99),
    power=st.floats(0, 9),
)
def test_a_range_of_the_smallest_error(low, width, seed, power):
    """It never loses more than the smallest and the largest value, which are tried as well."""
    high = low + width
    random = np.random.default_rng(seed)
    places = np.abs(random.normal(0, 0.1, 2000)).clip(0, 1) ** (power + 1)
    counts = np.bincount((places * (BINS - 1)).astype(int), minlength=BINS)
    values = low + (np.arange(BINS) + 0.5) * (width / BINS)

    def error(ends):
        step = (ends[1] - ends[0]) / 255
        kept = np.clip(values, *ends)
        return float(((kept - values) ** 2 + (kept == values) * step**2 / 12) @ counts)

    found = best_range(low, high, counts)
    whole = min(low, 0.0), max(high, 0.0)
    assert whole[0] <= found[0] <= 0 <= found[1] <= whole[1]
    assert error(found) <= error(whole) * (1 + 1e-9)


def test_a_lonely_value_is_cut_off(content):
    model = read(content)
    channels = find_channels(model, images())
    ranges = {number: of.range for number, of in channels.items()}
    histograms = find_histograms(model, ranges, images())
    for number, counts in histograms.items():
        assert counts.sum() == channels[number].count * len(channels[number].low)
    counts = np.zeros(BINS, int)
    counts[: BINS // 20], counts[-1] = 100_000, 1
    assert best_range(0.0, 100.0, counts)[1] < 50
    counts[-1] = 10_000_000
    assert best_range(0.0, 100.0, counts)[1] > 99


def test_steps_are_kept_where_they_are_of_use(content):
    """Of a quantizer that only rounds, in which any change of the biases does harm."""

    def quantize(with_ranges):
        return with_ranges

    assert refinement.refined(content, images(), quantize).steps == ()


def test_real_int8(lite0, photographs, tmp_path, monkeypatch):
    """Ten photographs by a file that was calibrated on the ten others."""
    pixels, _ = photographs
    drift = {}
    for steps in ((), refinement.STEPS):
        monkeypatch.setattr(refinement, "STEPS", steps)
        made = convert(
            lite0,
            tmp_path / "a.tflite",
            quantization="int8",
            calibration=pixels[::2],
            verification=pixels[1::2],
        )
        drift[steps] = made.verification.drift
    assert "bias correction" in made.refinements
    assert made.verification.agreement >= 0.9
    assert drift[refinement.STEPS] <= min(0.03, 0.9 * drift[()]), drift
    assert Runner(made.path).delegate_pieces == 1


def uneven() -> keras.Model:
    """One channel of "first" takes the whole range of 8 bits, and is of no use after it."""
    x = image = keras.Input((20, 20, 3))
    x = layers.Conv2D(16, 3, strides=2, activation="swish", name="first")(x)
    x = layers.Conv2D(16, 3, activation="relu6", name="second")(x)
    x = layers.Conv2D(16, 3, activation="relu6", name="third")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(7, activation="softmax", name="classes")(x))
    first, second = (model.get_layer(name).kernel for name in ("first", "second"))
    first.assign(0.05 * first * np.where(np.arange(16) == 3, 3000.0, 1.0))
    second.assign(8 * second * (np.arange(16) != 3)[:, None])
    kernel, bias = model.get_layer("classes").weights
    logits = keras.Model(model.input, model.layers[-2].output).predict(images(40), verbose=0)
    logits = logits @ kernel.numpy()
    kernel.assign(kernel * 3 / logits.std(axis=0))  # so that images are of all classes
    bias.assign(-3 * logits.mean(axis=0) / logits.std(axis=0))
    return model


def test_layers_that_lose_most_stay_in_float(tmp_path):
    model, pixels = uneven(), images(40)
    made = convert(
        model,
        tmp_path / "mixed.tflite",
        quantization="mixed",
        calibration=pixels,
        target_loss=0.1,
    )
    trade = made.trade
    assert trade.layers == 4
    assert trade.points[0].in_float == () and trade.points[0].loss > 0.1
    assert trade.chosen.loss <= 0.1 and trade.chosen in trade.points
    assert {"first", "second"} & set(trade.chosen.in_float) and len(trade.chosen.in_float) <= 2
    assert trade.chosen.drift < trade.points[0].drift / 2
    assert made.verification.agreement >= 0.9
    in_float = " ".join(made.float_operations)
    for layer in trade.chosen.in_float:
        assert f"'{layer}'" in in_float
    assert "third" not in in_float
    assert inspect(made.path).variant == "mixed"
    assert trade.table().count("chosen") == 1
    assert compare_layers(model, made.path, pixels[:4]).quantization == "mixed"


def test_a_target_that_no_file_reaches(tmp_path, monkeypatch):
    """The sums between layers are integers even where all layers are in float."""
    monkeypatch.setattr("kapps.tflite.mixed._doubling", lambda most: iter([0]))
    with pytest.raises(
        InputError,
        match=r"no file loses at most 0 of 40 calibration images; the best loses 0\.\d+, drift "
        r"[\d.]+, with 0 of 4 layers in float; use float16, or a larger target_loss",
    ):
        convert(
            uneven(),
            tmp_path / "mixed.tflite",
            quantization="mixed",
            calibration=images(40),
            target_loss=0.0,
        )
    assert not (tmp_path / "mixed.tflite").exists()


@pytest.mark.parametrize(
    ("quantization", "target", "message"),
    [
        ("mixed", None, "mixed needs target_loss: the share of the calibration images"),
        ("mixed", 1.5, "target_loss: expected a share, 0 or more and below 1, got 1.5"),
        ("int8", 0.1, "target_loss is for mixed files, not for int8"),
    ],
)
def test_a_target_has_to_fit(quantization, target, message, tmp_path):
    with pytest.raises(InputError, match=message):
        convert(
            net(),
            tmp_path / "a.tflite",
            quantization=quantization,
            calibration=images(),
            target_loss=target,
        )
