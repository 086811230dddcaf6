"""From a trained network to verified files: what is in them, and that they do what it does."""

from __future__ import annotations

import os
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers
from nights import at_night
from tflite_net import LABELS, small_net, smooth_images

import kapps
from kapps import InputError, _layers, custom_layers
from kapps._block_skipping import any_depth
from kapps.tflite import QUANTIZATIONS, ConversionError, Runner, convert, read_metadata
from kapps.tflite import conversion as conversion_module
from kapps.tflite.classifier import as_classifier
from kapps.tflite.converter import quiet
from kapps.tflite.images import check_pixels, weaknesses
from kapps.tflite.metadata import check_labels
from kapps.tflite.verification import LIMITS, _rounding, compare, predict

pytest_plugins = ["tflite_fixtures"]


def _builtin_operations(path):
    """The names of the file's operations, as in the schema's BuiltinOperator."""
    model = schema.Model.GetRootAs(Path(path).read_bytes(), 0)
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    return {names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes}


def _tensors(path):
    graph = schema.Model.GetRootAs(Path(path).read_bytes(), 0).Subgraphs(0)
    return [graph.Tensors(i) for i in range(graph.TensorsLength())]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_file_is_as_accurate_as_the_model(quantization, net, digits, conversions):
    images, labels = digits[1]
    float_top1 = (predict(net, images).argmax(axis=1) == labels).mean()
    assert float_top1 > 0.9  # else the comparison says nothing
    outputs = Runner(conversions[quantization].path).predict(images)
    assert (outputs.argmax(axis=1) == labels).mean() >= float_top1 - 0.01
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=0.02)  # probabilities


@pytest.mark.slow
def test_a_thousand_layers_in_a_row(tmp_path):
    """More than Python allows nested calls, by which Keras walks a new graph."""
    x = image = keras.Input((8, 8, 3))
    for _ in range(1100):
        x = layers.ReLU()(x)
    x = layers.Dense(5, activation="softmax")(layers.Flatten()(x))
    with any_depth():
        model = keras.Model(image, x)
    done = convert(model, tmp_path / "net.tflite", verification=smooth_images(8, 8))
    assert done.verification.agreement == 1


@pytest.mark.filterwarnings("ignore:weak check")  # it is as untrained as a network can be
def test_weights_that_no_integer_can_hold(tmp_path):
    """LiteRT 2.3.0 ends the process that loads such a file."""
    x = image = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, activation="relu", name="stem")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(10, activation="softmax", name="scores")(x))
    for name, factor in (("stem", 1e10), ("scores", 1e-12)):
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel * factor)
    images = smooth_images(8, 16)
    path = tmp_path / "net.tflite"
    with pytest.raises(InputError, match=r"int8 has no form of FULLY_CONNECTED in layer 'scores'"):
        convert(model, path, quantization="int8", calibration=images)
    assert not path.exists()
    convert(model, path, quantization="float32", calibration=images)


@pytest.mark.filterwarnings("ignore:weak check")
def test_a_layer_that_gives_zeros_alone(tmp_path):
    """Training leaves such ones behind, in squeeze-and-excitation above all; others go on."""
    x = image = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, activation="relu", name="stem")(x)
    dead = {"bias_initializer": keras.initializers.Constant(-1e4), "activation": "relu"}
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(4, 1, **dead, name="reduce")(y)
    y = layers.Conv2D(16, 1, activation="sigmoid", bias_initializer="normal", name="expand")(y)
    x = layers.GlobalAveragePooling2D()(layers.Multiply()([x, y]))
    model = keras.Model(image, layers.Dense(10, activation="softmax", name="scores")(x))
    images = smooth_images(32, 16)
    done = convert(model, tmp_path / "net.tflite", quantization="int8", calibration=images)
    assert done.float_operations == ()
    assert done.verification.agreement > 0.9
    assert done.verification.max_error < 0.05
    with pytest.raises(
        InputError, match=r"int16x8 has no form of CONV_2D in layer 'reduce'.*zeros"
    ):
        convert(model, tmp_path / "net.tflite", quantization="int16x8", calibration=images)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_static_and_built_in(quantization, conversions):
    path = conversions[quantization].path
    operations = _builtin_operations(path)
    assert "SOFTMAX" in operations
    assert not operations & {"CUSTOM", "SHAPE", "STRIDED_SLICE", "PACK"}
    for tensor in _tensors(path):
        assert tensor.ShapeSignatureIsNone() or -1 not in tensor.ShapeSignatureAsNumpy()
    assert Runner(path).input_shape == (1, 16, 16, 3)


def test_sizes_and_figures_are_of_the_file(conversions):
    sizes = {q: c.size_bytes for q, c in conversions.items()}
    for conversion in conversions.values():
        assert conversion.size_bytes == conversion.path.stat().st_size
        assert conversion.verification.images == 360
    assert sizes["int8"] < sizes["float32"]
    assert sizes["float16"] < sizes["float32"]
    assert conversions["float32"].verification.max_error < 1e-5


def test_int8_is_integer_throughout(conversions):
    types = {tensor.Type() for tensor in _tensors(conversions["int8"].path)}
    assert schema.TensorType.FLOAT32 not in types


def test_int8_takes_the_bytes_of_the_image(net, digits, tmp_path):
    # Calibrated on images that use a part of the range only: the input covers 0..255 all the same.
    pale = digits[0][0][:50] // 4 + 100
    assert pale.min() > 0
    assert pale.max() < 255
    for io, zero_point in (("uint8", 0), ("int8", -128)):
        result = convert(
            net, tmp_path / f"{io}.tflite", quantization="int8", calibration=pale, io=io
        )
        runner = Runner(result.path)
        assert runner.input_dtype == io
        assert runner.input_quantization == (1.0, zero_point)


def test_int8_with_float_input_and_output(net, digits, tmp_path):
    result = convert(
        net,
        tmp_path / "net.tflite",
        quantization="int8",
        calibration=digits[0][0][:100].astype("float32"),
        verification=digits[1][0],
        io="float32",
    )
    runner = Runner(result.path)
    assert runner.input_dtype == "float32"
    assert runner.predict(digits[1][0][:1]).dtype == "float32"


@pytest.mark.slow
def test_int16x8(net, digits, tmp_path):
    """Activations of 16 bits, and no HARD_SWISH, which has no such form; nearly exact."""
    images, labels = digits[1][0][:100], digits[1][1][:100]
    for io in ("float32", "int16"):
        result = convert(
            net,
            tmp_path / f"{io}.tflite",
            quantization="int16x8",
            calibration=digits[0][0][:50],
            verification=images,
            io=io,
        )
        assert result.io == io
        assert result.float_operations == ()
        assert result.verification.drift < 0.01
        assert Runner(result.path).input_dtype == io
    types = {tensor.Type() for tensor in _tensors(result.path)}
    assert {schema.TensorType.INT16, schema.TensorType.INT8} <= types
    assert schema.TensorType.FLOAT32 not in types
    assert "HARD_SWISH" not in _builtin_operations(result.path)
    assert "HARD_SWISH" not in _builtin_operations(tmp_path / "float32.tflite")
    assert (Runner(result.path).predict(images).argmax(axis=1) == labels).mean() > 0.9


def test_the_model_is_left_as_it_was(net, conversions):
    assert net.input_shape == (None, 16, 16, 3)
    assert net.get_layer("act1").output is not None  # raises once a layer is called twice


# One of each kind that is made for phones; they take 32 pixels. The demonstration converts the
# others in each run of CI.
PHONE = (
    *("LeNet5", "MobileNetV4ConvSmall"),
    *at_night("EfficientNetLite0", "MobileNetV3Small", "ShuffleNetV2_x0_5"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", PHONE)
def test_phone_models_convert(name, digits, tmp_path, mediapipe_agrees):
    keras.utils.set_random_seed(0)
    model = getattr(kapps, name)(input_shape=(32, 32, 3), classes=10)
    images = digits[1][0][:16].repeat(2, axis=1).repeat(2, axis=2)
    for quantization in ("float32", "int8"):
        path = tmp_path / f"{quantization}.tflite"
        result = convert(model, path, quantization=quantization, calibration=images)
        operations = _builtin_operations(result.path)
        assert not operations & {"CUSTOM", "SHAPE", "STRIDED_SLICE", "PACK", "BROADCAST_TO"} - {
            "STRIDED_SLICE" if name.startswith("ShuffleNetV2") else ""  # its channel split
        }
        if quantization == "float32":
            assert result.verification.max_error < 1e-5
        if quantization == "float32" or name == "MobileNetV4ConvSmall":
            assert Runner(result.path).delegate_pieces == 1
    files = [tmp_path / f"{quantization}.tflite" for quantization in ("float32", "int8")]
    mediapipe_agrees(files, images[:4])


# MediaPipe: the code that runs in Android apps.


def test_mediapipe_classifies_as_the_interpreter_does(conversions, digits, mediapipe_agrees):
    images, truth = digits[1][0][:12], digits[1][1][:12]
    files = [conversions[quantization].path for quantization in ("float32", "int8")]
    for scores in mediapipe_agrees(files, images).values():
        assert (scores.argmax(axis=1) == truth).mean() > 0.8


# Labels and metadata.


def test_metadata_reads_back(conversions):
    for conversion in conversions.values():
        metadata = read_metadata(conversion.path)
        assert metadata.name == "small_net"
        assert metadata.labels == LABELS
        assert metadata.description == "Handwritten digits."
        assert metadata.author == "kapps"
        assert metadata.licence == "Apache-2.0"
        assert metadata.version == f"kapps {kapps.__version__}"
        assert (metadata.mean, metadata.std) == ((0.0,), (1.0,))


def test_default_labels_are_the_indices(net, digits, tmp_path):
    result = convert(net, tmp_path / "net.tflite", verification=digits[1][0][:8])
    assert read_metadata(result.path).labels == tuple("0123456789")


# Verification.


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, np.nan])
def test_a_file_that_does_not_do_what_the_model_does_never_gets_its_name(
    factor, net, digits, tmp_path, monkeypatch
):
    path = tmp_path / "net.tflite"
    images = digits[1][0]
    good = convert(net, path, verification=images).path.read_bytes()

    write = conversion_module.write_with_metadata

    def corrupted(file, content, metadata):
        """Writes the file with another kernel in the stem."""
        kernel = net.get_layer("stem").get_weights()[0].transpose(3, 0, 1, 2)
        # In the file the batch norm is folded into it, so look for it by its size.
        for tensor, buffer in _buffers(content):
            if tensor.ShapeAsNumpy().tolist() == list(kernel.shape):
                buffer *= factor
                return write(file, bytes(buffer.base_content), metadata)
        raise AssertionError("no stem in the file")

    monkeypatch.setattr(conversion_module, "write_with_metadata", corrupted)
    with pytest.raises(ConversionError, match="does not do what the model does") as raised:
        convert(net, path, verification=images)
    assert not raised.value.verification.drift <= LIMITS["float32"].drift
    assert raised.value.comparison.parts_at.layer == "stem"
    assert "They part at layer 'stem'" in str(raised.value)
    assert str(path) in str(raised.value)
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]


class _Buffer(np.ndarray):
    base_content: bytearray


def _buffers(content):
    """The float32 tensors of a file with a writable view of each one's data."""
    content = bytearray(content)
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        buffer = model.Buffers(tensor.Buffer())
        if tensor.Type() == schema.TensorType.FLOAT32 and buffer.DataLength():
            start = buffer._tab.Vector(buffer._tab.Offset(4))
            view = np.frombuffer(content, "float32", buffer.DataLength() // 4, start).view(_Buffer)
            view.base_content = content
            yield tensor, view


def test_labels_of_a_dict_are_in_the_order_of_their_indices():
    assert check_labels({"dog": 1, "ant": np.int64(2), "cat": 0}, 3) == ("cat", "dog", "ant")


def test_figures_of_a_comparison():
    expected = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])
    actual = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    figures = compare(expected, actual)
    assert (figures.images, figures.agreement) == (2, 0.5)
    assert figures.regret == pytest.approx(0.05)  # (0.5 - 0.4) / 2
    assert figures.max_error == pytest.approx(0.3)
    assert figures.drift == pytest.approx(0.15)


def test_what_eight_bits_cannot_tell_apart_is_no_error():
    expected = np.array([[0.5002, 0.4998]])
    actual = np.array([[0.5, 0.5]])[:, ::-1]
    figures = compare(expected, actual, step=1 / 256)
    assert (figures.agreement, figures.regret, figures.drift) == (1, 0, 0)


def test_a_model_of_not_a_number_does_not_pass(digits, tmp_path):
    broken = small_net()
    broken.get_layer("head").set_weights([np.full((32, 10), np.nan), np.zeros(10)])
    with pytest.raises(InputError, match="returns no probabilities"):
        convert(broken, tmp_path / "net.tflite", verification=digits[1][0][:8])
    assert not list(tmp_path.iterdir())


# Bad input.


class _Bessel(layers.Layer):
    def call(self, x):
        import tensorflow as tf

        return tf.math.bessel_i0(x / 255)


def test_an_operation_that_is_not_built_in_names_the_layer(digits, tmp_path):
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.GlobalAveragePooling2D()(_Bessel(name="block_2_odd")(x))
    model = keras.Model(image, layers.Dense(10, "softmax")(x))
    with pytest.raises(InputError, match=r"no built-in operation for BesselI0.*'block_2_odd'"):
        convert(model, tmp_path / "net.tflite", verification=digits[1][0][:8])
    assert not list(tmp_path.iterdir())


class _Sine(layers.Layer):
    def call(self, x):
        import tensorflow as tf

        return tf.math.sin(x)


@pytest.fixture
def sine_net():
    image = keras.Input((16, 16, 3))
    x = _Sine(name="block_1_sine")(layers.Conv2D(4, 3, name="conv")(image))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, "softmax")(x))


def test_an_operation_without_int8_form_stays_float_and_is_named(sine_net, digits, tmp_path):
    images = digits[1][0][:8]
    result = convert(
        sine_net, tmp_path / "net.tflite", quantization="int8", calibration=images, io="uint8"
    )
    assert result.float_operations == ("SIN in layer 'block_1_sine'",)


def test_attention_and_gelu_leave_an_int8_file_in_one_piece(digits, tmp_path):
    """XNNPACK takes them in float only; the softmax at the end, in integers, cuts nothing."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = custom_layers.ImageNormalization(0.5, 0.5, name="normalization")(image)
    x = shortcut = _layers.act(_layers.conv(x, 8, 3, "stem", stride=2), "gelu", "act")
    maps = [_layers.conv(x, n, 1, name) for name, n in (("query", 8), ("key", 4), ("value", 4))]
    x = custom_layers.MultiQueryAttention(2, name="attention")(maps)
    x = custom_layers.LayerScale(0.5, name="scale")(_layers.conv(x, 8, 1, "output"))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")([x, shortcut]))
    model = keras.Model(image, _layers.dense(10 * x, 10, "head", "softmax"), name="attentive")
    images = digits[1][0][:32]
    result = convert(model, tmp_path / "net.tflite", quantization="int8", calibration=images)
    assert result.float_operations == (
        "GELU in layer 'act'",
        "BATCH_MATMUL in layer 'attention'",
        "SOFTMAX in layer 'attention'",
        "BATCH_MATMUL in layer 'attention'",
    )
    runner = Runner(result.path)
    assert runner.delegate_pieces == 1 and runner.input_dtype == np.uint8
    np.testing.assert_allclose(runner.predict(images), predict(model, images), atol=0.05)


def test_an_operation_without_int16_form_names_the_layer(sine_net, digits, tmp_path):
    with pytest.raises(InputError, match="no int16x8 form of SIN in layer 'block_1_sine'"):
        convert(
            sine_net,
            tmp_path / "net.tflite",
            quantization="int16x8",
            calibration=digits[1][0][:8],
        )
    assert not list(tmp_path.iterdir())


def test_logits_are_refused(digits, tmp_path):
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, layers.Dense(10)(layers.Flatten()(image)))
    with pytest.raises(InputError, match='classifier_activation="softmax"'):
        convert(model, tmp_path / "net.tflite", verification=digits[1][0][:8])
    assert not list(tmp_path.iterdir())


def _images(**changes):
    fields = {"shape": (4, 16, 16, 3), "dtype": "uint8", "high": 255} | changes
    values = np.random.default_rng(0).random(fields["shape"]) * fields["high"]
    return values.astype(fields["dtype"])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (_images(shape=(4, 16, 16, 1)), r"shape \(4, 16, 16, 1\); expected shape \(n, 16, 16, 3\)"),
        (_images(shape=(4, 32, 32, 3)), r"shape \(4, 32, 32, 3\)"),
        (_images(shape=(16, 16, 3)), r"shape \(16, 16, 3\)"),
        (_images(shape=(0, 16, 16, 3)), "no calibration images"),
        (_images(shape=(4, 3, 16, 16)), r"channels first; .*images.transpose\(0, 2, 3, 1\)"),
        (_images(dtype="float32", high=1.0), "as if normalized already"),
        (_images(dtype="float32", high=2.0) - 1, "as if normalized already"),
        (_images(dtype="float32", high=255 * 200), "as if scaled twice"),
        (_images(dtype="float32", high=1.0) - 0.5, "from -0.* to 0.*0..255"),
        (_images(dtype="float32", high=300), "0..255"),
        (_images(dtype="float32") + np.nan, "from nan to nan"),
        (_images(dtype="int64"), "int64"),
    ],
)
def test_bad_calibration_images(net, tmp_path, images, message):
    with pytest.raises(InputError, match=message):
        convert(net, tmp_path / "net.tflite", quantization="int8", calibration=images)


def _scenes(count):
    """Sky over ground with a disc, 32 px: images in which red and blue are not alike."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    images = []
    for _ in range(count):
        sky, ground, disc = random.normal(
            [(120, 170, 230), (90, 130, 60), (200, 120, 80)], 25, (3, 3)
        )
        image = np.where((y < random.integers(8, 24))[..., None], sky, ground)
        center = random.integers(8, 24, 2)
        image[np.hypot(y - center[0], x - center[1]) < random.integers(4, 9)] = disc
        images.append(image + random.normal(0, 10, image.shape))
    return np.clip(images, 0, 255).astype("uint8")


@pytest.fixture(scope="module")
def scene_net():
    """A network whose batch norms have seen scenes, as training leaves them."""
    keras.utils.set_random_seed(0)
    model = kapps.ShuffleNetV2_x0_5(input_shape=(32, 32, 3), classes=10)
    seen = _scenes(128).astype("float32")
    for _ in range(30):  # they keep 0.9 of the old ones at each step
        model(seen, training=True)
    return model


# Measured with MobileNetV3Small, ShuffleNetV2_x0_5 and a network of four convolutions, trained at
# 32 px on crops of two photographs, on scenes like these, and on shapes of any color, and with
# MobileNet and EfficientNetLite0, trained on digits; 50 random draws each of 16, 32 and 64 images.
# Good images, also of another data set than the network's: 0 of 3,450 draws refused (of 16 images
# one came to a ratio of 4.5, but not near enough), and 0 of 104 draws from a single class.
# Mistakes, of 50 draws of 64 images: BGR found in 43, 46 and 49 for photographs, 50 for scenes, 0
# for any color and for gray, where it changes no statistics; 0..16 in 50, inverted in 50 (0 for any
# color). Of draws of 16 images: BGR in 11 to 50, 0..16 in 40 to 50, inverted in 32 to 50.
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda x: x[..., ::-1], r"channel order BGR.*pass images\[..., ::-1\]"),
        (lambda x: x / 16, r"scaled to 0..15.*multiply them by 255 / 15"),
        (lambda x: 255 - x, "inverted.*255 - images"),
    ],
)
def test_a_mistake_in_the_pixels_is_found(mistake, message, scene_net, tmp_path):
    images = mistake(_scenes(32))
    with pytest.raises(InputError, match=f"calibration images are not such.*{message}"):
        convert(scene_net, tmp_path / "net.tflite", quantization="int8", calibration=images)
    with pytest.raises(InputError, match=f"verification images are not such.*{message}"):
        convert(scene_net, tmp_path / "net.tflite", verification=images)
    assert not list(tmp_path.iterdir())


def test_good_images_pass(scene_net, digits):
    scenes = _scenes(32)
    gray = np.repeat(scenes.mean(axis=-1, keepdims=True), 3, axis=-1)
    noise = _images(shape=(32, 32, 32, 3))
    fewer = scenes[:8, ..., ::-1]  # too few to say
    for images in (scenes, gray, gray[..., ::-1], noise, scenes // 2, fewer):
        check_pixels(scene_net, images, "calibration")
    random = kapps.ShuffleNetV2_x0_5(input_shape=(32, 32, 3), classes=10)
    without_batch_norm = kapps.LeNet5(input_shape=(32, 32, 3), classes=10)
    for model in (random, without_batch_norm):
        for images in (scenes, scenes[..., ::-1], noise):
            check_pixels(model, images, "calibration")


def _seen(images):
    """A network of two batch norms whose statistics are those of these images."""
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            *[layers.Conv2D(8, 3, use_bias=False), layers.BatchNormalization(), layers.ReLU()],
            *[layers.Conv2D(8, 3, use_bias=False), layers.BatchNormalization(), layers.ReLU()],
            *[layers.GlobalAveragePooling2D(), layers.Dense(5, activation="softmax")],
        ],
        name="foreign",
    )
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    for _ in range(3):  # the second norm needs the first one's statistics
        model(images.astype("float32"), training=True)
    return model


_SCALES = {
    "x / 255": (lambda x: x / 255.0, {"mean": 0, "std": 255}),
    "x / 127.5 - 1": (lambda x: x / 127.5 - 1, {"mean": 127.5, "std": 127.5}),
    "normalized by ImageNet's mean and std": (
        lambda x: (x / 255.0 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225),
        {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
    ),
}


@pytest.mark.parametrize("how", _SCALES)
def test_a_model_trained_on_scaled_images_is_told_from_its_statistics(how):
    scale, remedy = _SCALES[how]
    scenes = _scenes(48)
    model = _seen(scale(scenes))
    with pytest.raises(InputError, match=f"would be if they were {re.escape(how)}") as raised:
        check_pixels(model, scenes, "calibration")
    assert f"mean={remedy['mean']}, std={remedy['std']}" in str(raised.value)
    check_pixels(as_classifier(model, **remedy), scenes, "calibration", normalized=True)
    check_pixels(_seen(scenes), scenes, "calibration")


def test_a_file_with_mean_and_std_takes_the_pixels_of_the_camera(tmp_path, mediapipe_agrees):
    scenes = _scenes(48)
    model = _seen(scenes / 127.5 - 1)
    with pytest.raises(InputError, match=r"go from -1 to .*as if normalized.*std=255"):
        convert(model, tmp_path / "net.tflite", verification=scenes / 127.5 - 1)
    expected = predict(model, scenes / 127.5 - 1)
    files = []
    for quantization, atol in (("float32", 1e-5), ("int8", 0.05)):
        files.append(tmp_path / f"{quantization}.tflite")
        convert(
            model, files[-1], quantization=quantization, calibration=scenes, mean=127.5, std=127.5
        )
        runner = Runner(files[-1])
        np.testing.assert_allclose(runner.predict(scenes), expected, atol=atol)
        assert (runner.metadata.mean, runner.metadata.std) == ((0.0,), (1.0,))
    assert Runner(files[1]).input_quantization == (1.0, 0)  # bytes as they are
    mediapipe_agrees(files, scenes[:4])


# What a check is worth.


def _probabilities(*rows):
    return np.array(rows, "float32")


@pytest.mark.parametrize(
    ("images", "expected", "message"),
    [
        (_scenes(15), _probabilities((1, 0), (0, 1)), "only 15 verification images"),
        (_images(shape=(20, 32, 32, 3)), _probabilities((1, 0), (0, 1)), "look like noise"),
        (_scenes(20), _probabilities((0.5, 0.5), (0.501, 0.499)), "nearly the same probabilities"),
    ],
)
def test_a_check_that_says_little_is_called_so(images, expected, message, scene_net):
    (found,) = weaknesses(scene_net, {"verification": images}, expected)
    assert message in found


def test_certainty_without_anything_that_tells_the_range():
    sure = _probabilities((1, 0), (0, 1), (1, 0))
    image = keras.Input((32, 32, 3))
    plain = keras.Model(image, layers.Dense(2, "softmax")(layers.Flatten()(image)))
    scaled = keras.Model(image, plain(layers.Rescaling(1 / 255)(image)))
    (found,) = weaknesses(plain, {"verification": _scenes(16)}, sure)
    assert "sure beyond all doubt" in found
    assert not weaknesses(scaled, {"verification": _scenes(16)}, sure)
    assert not weaknesses(plain, {"verification": _scenes(16)}, _probabilities((0.9, 0.1), (0, 1)))


def test_real_images_and_a_trained_network_are_beyond_doubt(net, digits, scene_net):
    for images in (digits[0][0], digits[1][0]):
        assert not weaknesses(net, {"verification": images}, predict(net, images[:100]))
    varied = _probabilities((1, 0), (0, 1))
    for images in (_scenes(16), np.repeat(_scenes(16).mean(-1, keepdims=True), 3, axis=-1)):
        assert not weaknesses(scene_net, {"verification": images}, varied)


def test_a_weak_check_is_a_warning_of_whoever_converts(net, digits, tmp_path):
    with pytest.warns(UserWarning, match="weak check: only 8 verification images") as found:
        convert(net, tmp_path / "net.tflite", verification=digits[1][0][:8])
    assert [Path(warning.filename) for warning in found] == [Path(__file__)]


def test_a_network_is_not_held_to_less_than_its_own_rounding(digits):
    """Of logits in the thousands float32 does not tell the probabilities to four digits."""
    image = keras.Input((16, 16, 3))
    dense = layers.Dense(2, "softmax")
    model = keras.Model(image, dense(layers.Flatten()(image)))
    kernel = np.random.default_rng(0).normal(0, 1e3, (768, 2))
    dense.set_weights([kernel, np.zeros(2)])
    images = digits[1][0][:4].astype("float32")
    logits = images.reshape(4, -1).astype(float) @ kernel
    undecided = np.array([0, logits[0, 0] - logits[0, 1]])  # about the first image
    dense.set_weights([kernel, undecided])
    expected = predict(model, images)
    assert _rounding(model, images, expected).drift > LIMITS["float32"].drift
    steady = small_net()
    assert _rounding(steady, images, predict(steady, images)).drift < LIMITS["float32"].drift / 10


# What TensorFlow prints.


@pytest.mark.parametrize(("level", "printed"), [("0", True), ("2", False), (None, False)])
def test_what_the_converter_prints_stays_out_unless_asked_for(level, printed, monkeypatch, capfd):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    if level is not None:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    with quiet():
        os.write(2, b"loc(fused[...")
    os.write(2, b"and after")
    assert capfd.readouterr().err == ("loc(fused[..." if printed else "") + "and after"


def test_gray_images_pass_with_a_network_trained_on_them(net, digits):
    for images in (digits[0][0][:64], digits[0][0][:64, ..., ::-1], digits[1][0]):
        check_pixels(net, images, "calibration")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization": "int7"}, "unknown quantization 'int7'; did you mean int8"),
        ({"quantization": "int8"}, "int8 needs calibration images"),
        ({}, "real images, as `verification`"),
        ({"verification": _images(), "io": "uint8"}, "float32 files take float32, not 'uint8'"),
        (
            {"quantization": "int8", "calibration": _images(), "io": "int16"},
            "take uint8 or int8 or float32",
        ),
        ({"verification": _images(), "labels": ["a", "b"]}, "2 labels for a model of 10 classes"),
        ({"verification": _images(), "labels": ["a\nb"] * 10}, "label 0"),
        ({"verification": _images(), "labels": "abcdefghij"}, "a list of strings"),
        ({"verification": _images(), "labels": set("abcdefghij")}, "a set has no order"),
        ({"verification": _images(), "labels": {"a": 0, "b": 2}}, "from 0 on and without gaps"),
    ],
)
def test_bad_arguments(net, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        convert(net, tmp_path / "net.tflite", **arguments)


def test_another_backend(net, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(InputError, match="KERAS_BACKEND=tensorflow"):
        convert(net, tmp_path / "net.tflite", verification=_images())


def test_a_folder_that_cannot_be_made(net, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        convert(net, tmp_path / "file" / "net.tflite", verification=_images())


def test_a_model_of_no_fixed_size(tmp_path):
    image = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    model = keras.Model(image, layers.Dense(10, "softmax")(x))
    with pytest.raises(InputError, match="input_shape="):
        convert(model, tmp_path / "net.tflite", verification=_images())


def test_a_model_that_is_no_classifier(tmp_path):
    image = keras.Input((16, 16, 3))
    model = keras.Model(image, layers.Conv2D(4, 3)(image), name="odd")
    with pytest.raises(InputError, match="'odd' is no image classifier"):
        convert(model, tmp_path / "net.tflite", verification=_images())


def test_running_a_file_on_other_images(conversions):
    with pytest.raises(InputError, match=r"\(n, 16, 16, 3\), got \(4, 32, 32, 3\)"):
        Runner(conversions["float32"].path).predict(_images(shape=(4, 32, 32, 3)))


def test_running_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Runner(tmp_path / "none.tflite")
    (tmp_path / "text.tflite").write_text("hello")
    with pytest.raises(InputError, match=r"text\.tflite is no \.tflite file"):
        Runner(tmp_path / "text.tflite")
