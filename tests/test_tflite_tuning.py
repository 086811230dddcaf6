"""Tuning: the tf_keras copy is exact, what is tuned stays so, and the int8 file does the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from tflite_net import gated_net, phone_nets, small_net

import kapps
from kapps import InputError, _layers, custom_layers, mobilenet_v4, mobileone
from kapps._network import Net, Regularization
from kapps.tflite import Runner, file_facts
from kapps.tflite.comparison import LIMITS, compare_layers
from kapps.tflite.interpreter import operations
from kapps.tflite.tuning.tf_keras_copy import copy_weights, prepared, rebuild

pytest_plugins = ["tflite_fixtures"]

tf_keras = pytest.importorskip("tf_keras")
tuning = pytest.importorskip("kapps.tflite.tuning")
weights_of = pytest.importorskip("kapps.tflite.tuning.quantized_graph").weights_of

pytestmark = pytest.mark.slow


def shake(model):
    """Batch norm that is no identity, so that it can be missed."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            gamma, beta = rng.uniform(0.5, 1.5, gamma.shape), rng.normal(0, 0.3, beta.shape)
            layer.set_weights([gamma, beta, mean, variance])
        if isinstance(layer, custom_layers.LayerScale):  # else too small to be missed
            layer.set_weights([rng.normal(0, 0.3, layer.gamma.shape)])
    return model


def built(name):
    return shake(kapps.get_builder(name)(input_shape=(32, 32, 3), classes=10))


def mixed_net(means=(0.4, 0.5, 0.6)):
    """What small_net lacks: concatenation of unequal branches, slice, pad, grouped convolution."""
    x = image = keras.Input((16, 16, 3))
    x = custom_layers.ImageNormalization(means, (0.2, 0.25, 0.3), name="normalization")(x)
    x = _layers.act(_layers.bn(_layers.conv(x, 8, 3, "stem", stride=2), "bn1"), "relu", "act1")
    left = custom_layers.ChannelSlice(0, 2, name="left")(x)
    right = custom_layers.ChannelSlice(2, 8, name="right")(x)
    right = _layers.act(_layers.bn(_layers.conv(right, 10, 1, "pw", groups=2), "bn2"), "silu", "s")
    x = layers.Concatenate(name="concat")([left, right])  # 2 and 10 channels, and other ranges
    x = _layers.max_pool(_layers.act(x, "relu", "act2"), 2, 2, "pool")
    shortcut = custom_layers.ChannelPad(16, name="pad")(_layers.avg_pool(x, 1, 1, "avg"))
    x = _layers.bn(_layers.conv(x, 16, 3, "wide", bias=True), "bn3")
    x = _layers.act(layers.Add(name="add")([x, shortcut]), "relu", "act3")
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    return shake(keras.Model(image, _layers.dense(x, 10, "head", "softmax"), name="mixed_net"))


def hybrid_net():
    """Blocks of MobileOne, with branches, and of MobileNetV4's hybrids, with attention."""
    net = Net(Regularization(drop_path_rate=0.1), 10, "softmax")
    x = image = keras.Input((16, 16, 3))
    x = custom_layers.ImageNormalization(0.4, 0.3, name="normalization")(x)
    x = mobileone._block(x, net, "stem", kernel=3, stride=2, filters=8)
    x = mobileone._block(x, net, "dw", kernel=3, branches=2)
    x = mobileone._block(x, net, "pw", kernel=1, filters=8, branches=2)
    x = mobilenet_v4._bottleneck(
        x, net, "ib", row=(3, 0, 2), stride=1, filters=8, activation="gelu", scaled=True
    )
    x = mobilenet_v4._attention(x, net, "attention", heads=(2, 4, 2))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = shake(keras.Model(image, net.classifier(x, "head"), name="hybrid_net"))
    head = model.layers[-1]  # sums of random branches are large
    head.set_weights([0.1 * weight for weight in head.get_weights()])
    for name in ("ib_dw_start_bn", "attention_norm", "ib_layer_scale"):  # as weight decay leaves it
        gamma, *others = model.get_layer(name).get_weights()
        model.get_layer(name).set_weights([np.where(gamma == gamma[0], 0, gamma), *others])
    return model


def random_images(count, size=16):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype="uint8")


def steps(tuned, images, labels=None, count=20, rate=1e-3):
    """Some steps of training, by tf_keras's own loop; a few are not worth a graph."""
    labels = np.arange(len(images)) % 10 if labels is None else labels
    optimizer = tf_keras.optimizers.Adam(rate)
    tuned.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=count <= 12)
    tuned.fit(images.astype("float32"), labels, batch_size=32, epochs=1, steps_per_epoch=count)
    return tuned


class File:
    """A .tflite file in this process: ours, so it may."""

    def __init__(self, content):
        self.interpreter = Interpreter(model_content=content)
        self.interpreter.allocate_tensors()
        self.image = self.interpreter.get_input_details()[0]
        self.output = self.interpreter.get_output_details()[0]

    def predict(self, images):
        outputs = []
        for image in images:
            self.interpreter.set_tensor(self.image["index"], image[None].astype("uint8"))
            self.interpreter.invoke()
            outputs.append(self.interpreter.get_tensor(self.output["index"])[0].astype("float32"))
        scale, zero_point = self.output["quantization"]
        return (np.array(outputs) - zero_point) * scale

    def float_tensors(self):
        details = self.interpreter.get_tensor_details()
        return [tensor["name"] for tensor in details if tensor["dtype"] == np.float32]


def kernels_of(model):
    return {layer.name: layer.get_weights()[0] for layer in tuning._prunable(model)}


def assert_does_as(content, tuned, images, drift=0.03, in_float=False):
    """The file computes in integers, and gives what the model gives that emulates it."""
    file = File(content)
    assert in_float or not file.float_tensors()
    assert file.image["dtype"] == np.uint8 and file.image["quantization"] == (1.0, 0)
    expected, actual = tuned(images.astype("float32")).numpy(), file.predict(images)
    moved = np.abs(expected - actual).sum(axis=1).mean() / 2
    assert moved < drift, moved


@pytest.mark.parametrize("net", [small_net, mixed_net, gated_net, hybrid_net])
def test_the_copy_in_tf_keras_is_exact(net):
    model = shake(net())
    images = random_images(8).astype("float32")
    expected = prepared(model)(images, training=False)
    np.testing.assert_array_equal(rebuild(model)(images), expected)
    np.testing.assert_allclose(expected, model(images, training=False), atol=1e-6)


# These have all that the others have: squeeze and excitation, hard-swish, SiLU, grouped
# convolutions, both shuffles, slices, pooled shortcuts.
@pytest.mark.parametrize("name", phone_nets("MobileNetV3Small", "ShuffleNet", "ShuffleNetV2_x0_5"))
def test_the_copy_in_tf_keras_is_exact_for_the_nets(name):
    model = built(name)
    images = random_images(2, 32).astype("float32")
    copy, ordered = rebuild(model), prepared(model)
    np.testing.assert_array_equal(copy(images), ordered(images, training=False))
    values = {layer.name: layer.get_weights() for layer in copy.layers if layer.weights}
    back = copy_weights({name: [2 * w for w in each] for name, each in values.items()}, model)
    for layer in model.layers:
        same = back.get_layer(layer.name).get_weights()
        for old, new in zip(layer.get_weights(), same, strict=True):
            np.testing.assert_array_equal(new, 2 * old)


def nested_net():
    """Two models on one image, whose layers have the same names, in a model."""
    image = keras.Input((16, 16, 3))
    branches = []
    for side in ("left", "right"):
        x = inner = keras.Input((16, 16, 3))
        x = _layers.act(_layers.bn(_layers.conv(x, 8, 3, "stem", stride=2), "bn"), "relu", "act")
        branches.append(keras.Model(inner, x, name=side)(image))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")(branches))
    model = keras.Model(image, _layers.dense(x, 10, "head", "softmax"), name="nested_net")
    for branch in (model.get_layer("left"), model.get_layer("right")):
        shake(branch)
    return model


def test_nested_models_are_tuned_and_stay_nested():
    model, images = nested_net(), random_images(96)
    expected = model(images.astype("float32"), training=False)
    np.testing.assert_array_equal(rebuild(model)(images.astype("float32")), expected)

    tuned = steps(tuning.quantize_aware(model), images, count=3, rate=0.01)
    assert_does_as(tuning.tflite_bytes(tuned), tuned, images[:32])
    restored = tuning.restore(tuned, model)
    assert [layer.name for layer in restored.layers] == [layer.name for layer in model.layers]
    for side in ("left", "right"):
        stem = restored.get_layer(side).get_layer("stem").get_weights()[0]
        assert not np.array_equal(stem, model.get_layer(side).get_layer("stem").get_weights()[0])
        np.testing.assert_array_equal(stem, weights_of(tuned)[f"{side}_stem"][0])

    stem = model.get_layer("right").get_layer("stem")  # the left one is the first: never pruned
    assert tuning.sparsity(model) == 0
    stem.set_weights([np.zeros_like(weight) for weight in stem.get_weights()])
    assert tuning.sparsity(model) == stem.count_params() / (stem.count_params() + 8 * 10)


@pytest.fixture(scope="module")
def quantized(net, digits):
    """The small network, fine-tuned with int8 emulated, at a hundredth of its rate."""
    (images, labels), _ = digits
    return steps(tuning.quantize_aware(net), images, labels, count=44, rate=1e-4)


@pytest.fixture(scope="module")
def mixed():
    """The mixed network, and the same after a few steps with int8 emulated."""
    model = mixed_net()
    return model, steps(tuning.quantize_aware(model), random_images(96), count=3)


@pytest.mark.parametrize("net", [small_net, mixed_net, gated_net, hybrid_net])
def test_before_training_it_computes_as_the_model(net):
    model = shake(net())
    images = random_images(8)
    tuned = tuning.quantize_aware(model)
    expected = model(images.astype("float32"), training=False)
    # Fixed ranges are quantized from the start: the image, gates and probabilities (1/256).
    np.testing.assert_allclose(tuned(images.astype("float32")), expected, atol=0.02)
    with pytest.raises(InputError, match="has not been trained since"):
        tuning.tflite_bytes(tuned)


def test_the_file_does_what_the_tuned_model_does(quantized, net, digits):
    images, labels = digits[1]
    content = tuning.tflite_bytes(quantized)
    assert_does_as(content, quantized, images)
    before = (net(images.astype("float32")).numpy().argmax(axis=1) == labels).mean()
    after = (File(content).predict(images).argmax(axis=1) == labels).mean()
    assert after >= before - 0.01


def test_unequal_branches_keep_their_order(mixed):
    """https://github.com/tensorflow/model-optimization/issues/1061"""
    _, tuned = mixed
    assert_does_as(tuning.tflite_bytes(tuned), tuned, random_images(32))


def test_means_and_enlarged_gates_are_one_piece_of_integers(tmp_path):
    model, images = shake(gated_net()), random_images(96)
    tuned = steps(tuning.quantize_aware(model), images, count=3)
    content = tuning.tflite_bytes(tuned)
    assert_does_as(content, tuned, images[:32], drift=0.015)  # 0.007; images are 0.09 apart
    (tmp_path / "net.tflite").write_bytes(content)
    assert Runner(tmp_path / "net.tflite").delegate_pieces == 1
    restored = tuning.restore(tuned, model)
    assert not np.array_equal(restored.get_layer("stem").kernel, model.get_layer("stem").kernel)
    comparison = compare_layers(restored, tmp_path / "net.tflite", images[:4])
    assert comparison.parts_at is None, comparison.table()


@pytest.fixture(scope="module")
def hybrid():
    """The network of branches and attention, and the same after some steps with int8 emulated."""
    model = hybrid_net()
    tuned = tuning.quantize_aware(model)
    for layer in tuned.layers:  # so few steps would not tell what it is to know of the batches
        layer.trainable = not isinstance(layer, tf_keras.layers.BatchNormalization)
    return model, steps(tuned, random_images(64), count=2, rate=0.01)


def test_attention_and_gelu_stay_in_float(hybrid, tmp_path):
    model, tuned = hybrid
    content = tuning.tflite_bytes(tuned)
    assert_does_as(content, tuned, random_images(32), in_float=True)
    graph = file_facts.read_graph(content)
    kept = [op.name for op in file_facts.float_operations(graph)]
    assert sorted(kept) == ["BATCH_MATMUL", "BATCH_MATMUL", "GELU", "SOFTMAX"]
    assert [op.name for op in file_facts.better_in_float(graph)] == kept
    assert file_facts.variant(graph) == "int8-qat"
    kinds = [op.name for op in graph.operations]  # three blocks of branches are three convolutions
    assert "MUL" not in kinds and kinds.count("ADD") == 2
    path = tmp_path / "tuned.tflite"
    path.write_bytes(content)
    assert Runner(path).delegate_pieces == 1
    comparison = compare_layers(tuning.restore(tuned, model), path, random_images(2))
    assert comparison.parts_at is None, comparison.table()
    found = {error.layer for error in comparison.layers}
    assert found >= {"ib_pw_exp_act", "ib_layer_scale", "attention_norm", "attention_layer_scale"}
    assert found >= {"attention_attn_query_proj", "attention_attn"}  # whose scale is another there


def test_branches_are_restored_as_one(hybrid):
    model, tuned = hybrid
    restored, values = tuning.restore(tuned, model), weights_of(tuned)
    images = random_images(32).astype("float32")
    drift = np.abs(restored(images).numpy() - tuned(images).numpy()).sum(axis=1).mean() / 2
    assert drift < 0.05
    before, again = prepared(model), prepared(restored)
    for name in ("stem_conv_kxk_0_conv", "dw_conv_kxk_0_conv", "pw_conv_kxk_0_conv"):
        kernel, bias = values[name]
        assert not np.allclose(before.get_layer(name).kernel, kernel, atol=1e-4)
        for weight, own in zip(again.get_layer(name).get_weights(), (kernel, bias), strict=True):
            np.testing.assert_allclose(weight, own, rtol=1e-6, atol=1e-7)
    for name in ("attention_layer_scale", "attention_norm", "attention_attn_query_proj"):
        for weight, own in zip(restored.get_layer(name).get_weights(), values[name], strict=True):
            np.testing.assert_array_equal(weight, own)
    kernel, bias = values["pw_conv_kxk_0_conv"]
    kernel[..., :4, :] = 0  # as pruning leaves it
    pruned = prepared(copy_weights({"pw_conv_kxk_0_conv": [kernel, bias]}, model)).get_layer(
        "pw_conv_kxk_0_conv"
    )
    np.testing.assert_array_equal(np.asarray(pruned.kernel) == 0, kernel == 0)


def test_restored_weights_are_those_before_quantization(quantized, net, digits):
    images = digits[1][0].astype("float32")
    before = [weight.copy() for weight in net.get_weights()]
    restored = tuning.restore(quantized, net)
    for weight, old in zip(net.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert [layer.name for layer in restored.layers] == [layer.name for layer in net.layers]
    assert not np.array_equal(restored.get_layer("stem").kernel, net.get_layer("stem").kernel)
    for layer in quantized.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            for weight, own in zip(
                restored.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True
            ):
                np.testing.assert_array_equal(weight, own)
    drift = np.abs(restored(images).numpy() - quantized(images).numpy()).sum(axis=1).mean() / 2
    assert drift < 0.05


def test_pruned_stays_pruned(net, digits):
    (images, labels), _ = digits
    pruned = steps(tuning.prune(net, 0.5), images, labels)
    model = tuning.restore(pruned, net)
    assert tuning.sparsity(net) == 0
    assert tuning.sparsity(pruned) == tuning.sparsity(model) == pytest.approx(0.5, abs=0.02)
    zeros = {name: kernel == 0 for name, kernel in kernels_of(model).items()}
    assert set(zeros) == {"se_conv_reduce", "se_conv_expand", "pw", "last", "head"}
    for name, where in zeros.items():
        assert where.mean() == pytest.approx(0.5, abs=0.02), name
    np.testing.assert_allclose(
        tuning.strip(pruned)(images[:8].astype("float32")),
        model(images[:8].astype("float32"), training=False),
        atol=1e-6,
    )
    for start in (pruned, model):  # as it was tuned, and as it was saved
        tuned = steps(tuning.quantize_aware(start), images, labels, count=5)
        kernels = kernels_of(tuning.restore(tuned, net))
        for name, where in zeros.items():
            np.testing.assert_array_equal(kernels[name] == 0, where)
            assert not np.array_equal(kernels[name], kernels_of(model)[name])  # yet trained
    assert_does_as(tuning.tflite_bytes(tuned), tuned, images[:64])


def test_clustered_stays_clustered_and_pruned(net, digits):
    (images, labels), _ = digits
    clustered = steps(tuning.cluster(net, 8), images, labels, count=5)
    model = tuning.restore(clustered, net)
    for name, kernel in kernels_of(model).items():
        assert len(np.unique(kernel)) <= 8, name

    sparse = tuning.restore(steps(tuning.prune(net, 0.5), images, labels, count=12), net)
    both = tuning.restore(steps(tuning.cluster(sparse, 8), images, labels, count=5), net)
    tuned = steps(tuning.quantize_aware(both), images, labels, count=5)
    final = tuning.restore(tuned, net)
    for name, kernel in kernels_of(final).items():
        assert len(np.unique(kernel)) <= 8, name
        assert not kernel[kernels_of(sparse)[name] == 0].any(), name
        assert not np.array_equal(kernel, kernels_of(both)[name]), name
    assert_does_as(tuning.tflite_bytes(tuned), tuned, images[:64])


def test_convert_takes_a_tuned_model(quantized, digits, tmp_path):
    from kapps.tflite import convert

    path = tmp_path / "tuned.tflite"
    conversion = convert(quantized, path, quantization="int8", verification=digits[1][0])
    assert conversion.verification.regret < 0.01 and path.stat().st_size == conversion.size_bytes
    assert conversion.float_operations == ()


@pytest.mark.parametrize("build", [small_net, mixed_net])
def test_a_tuned_file_layer_by_layer(build, net, quantized, mixed, digits, tmp_path):
    model, tuned = (net, quantized) if build is small_net else mixed
    # Of the kind that the ranges were learned on.
    images = digits[1][0][:4] if build is small_net else random_images(4)
    path = tmp_path / "tuned.tflite"
    path.write_bytes(tuning.tflite_bytes(tuned))
    restored = tuning.restore(tuned, model)
    comparison = compare_layers(restored, path, images)
    assert comparison.parts_at is None, comparison.table()
    found = {error.layer for error in comparison.layers}
    assert found >= {layer.name for layer in model.layers if isinstance(layer, layers.Multiply)}
    assert build is small_net or "act2" in found  # the ReLU of what the file concatenates
    # Of another network one layer is another.
    name = next(x.name for x in reversed(model.layers) if isinstance(x, layers.Conv2D))
    kernel, *bias = restored.get_layer(name).get_weights()
    restored.get_layer(name).set_weights([2 * kernel, *bias])
    blamed = compare_layers(restored, path, images).parts_at
    assert model.layers.index(model.get_layer(blamed.layer)) - model.layers.index(
        model.get_layer(name)
    ) in (0, 1, 2)  # it, or the batch norm or activation that the file joins with it


def test_a_refused_tuned_file_names_a_layer(quantized, digits, tmp_path, monkeypatch):
    from kapps.tflite import ConversionError, convert, verification

    monkeypatch.setitem(verification.LIMITS, "int8", verification.Limit(-1.0, -1.0))
    path = tmp_path / "tuned.tflite"
    with pytest.raises(ConversionError, match=r"the least exact of \d+ is '\w+'") as refused:
        convert(quantized, path, quantization="int8", verification=digits[1][0][:32])
    assert len(refused.value.comparison.layers) >= 5 and not path.exists()


def test_convert_says_what_to_do_with_a_pruned_model(net, digits, tmp_path):
    from kapps.tflite import convert

    with pytest.raises(InputError, match=r"is pruned or clustered: .*restore\(tuned, model\)"):
        convert(tuning.prune(net, 0.5), tmp_path / "net.tflite", verification=digits[1][0])


def test_an_add_whose_relu_changes_nothing_is_quantized():
    image = keras.Input((16, 16, 3))
    x = custom_layers.ImageNormalization(0.4, 0.3, name="normalization")(image)
    x = layers.Add(name="add")(
        [
            _layers.act(
                _layers.bn(_layers.conv(x, 8, 3, name), f"{name}_bn"), "relu", f"{name}_act"
            )
            for name in ("left", "right")
        ]
    )
    x = layers.GlobalAveragePooling2D(name="pool")(_layers.act(x, "relu", "act"))
    model = shake(keras.Model(image, _layers.dense(x, 10, "head", "softmax"), name="net"))
    images = random_images(96)
    tuned = steps(tuning.quantize_aware(model), images, count=3)
    assert_does_as(tuning.tflite_bytes(tuned), tuned, images[:32])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: tuning.prune(net, 1.0), "sparsity must be above 0 and below 1, not 1.0"),
        (lambda net: tuning.cluster(net, 1), "clusters must be 2 to 256, not 1"),
        (lambda net: tuning.quantize_aware(7), "expected a model of Keras 3, got int"),
        (
            lambda net: tuning.prune(keras.Sequential([layers.Dense(3)]), 0.5),
            "is a Sequential without an input size; begin it with keras.Input",
        ),
        (lambda net: tuning.tflite_bytes(rebuild(net)), "is not quantization-aware"),
        (lambda net: tuning.strip(tuning.quantize_aware(_with(layers.ReLU()))), "use restore"),
        (lambda net: tuning.restore(rebuild(mixed_net()), net), "do not fit"),
    ],
)
def test_mistakes_are_named(call, message, net):
    with pytest.raises(InputError, match=message):
        call(net)


def _with(layer):
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(image)
    return keras.Model(image, layers.Flatten()(layer(x)), name="odd")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda x: x + 1.0, r"operation 'add\w*' \(Add\) cannot be tuned: build the model"),
        (layers.UpSampling2D(name="up"), r"layer 'up' \(UpSampling2D\) cannot be tuned"),
        (layers.Activation("selu", name="act"), "'act': activation 'selu' cannot be tuned"),
        (layers.ReLU(max_value=1.0, name="act"), "'act': of ReLU only"),
        (
            lambda x: layers.BatchNormalization(name="alone")(layers.Flatten()(x)),
            "'alone': a batch normalization of vectors that does not directly follow",
        ),
        (
            lambda x: custom_layers.LayerScale(name="scale")(layers.MaxPooling2D()(x)),
            "'scale': a LayerScale that does not directly follow",
        ),
        (layers.Activation("tanh", name="act"), "'act': activation 'tanh' has no int8 form"),
    ],
)
def test_a_layer_that_cannot_be_tuned_is_named(layer, message):
    with pytest.raises(InputError, match=message):
        tuning.quantize_aware(_with(layer))


# Half a minute of CPU each. What ShuffleNet and EfficientNet have besides, grouped convolutions and
# SiLU, is in mixed_net.
@pytest.mark.parametrize("name", phone_nets("MobileNetV3Small"))
def test_the_nets_become_integers(name, tmp_path):
    model = built(name)
    tuned = tuning.quantize_aware(model)
    images = random_images(16, 32)
    for _ in range(3):
        tuned(images.astype("float32"), training=True)
    content = tuning.tflite_bytes(tuned)
    assert_does_as(content, tuned, images, drift=0.1)
    path = tmp_path / "tuned.tflite"
    path.write_bytes(content)
    comparison = compare_layers(tuning.restore(tuned, model), path, images[:1])
    assert len(comparison.layers) > 20
    own = np.array([error.own_error for error in comparison.layers])
    assert (own <= LIMITS["int8"]).mean() > 0.5, comparison.table()  # ranges of three steps only
    if name.startswith("ShuffleNetV2"):
        kinds = {operation["op_name"] for operation in operations(File(content).interpreter)}
        assert "CONV_2D" in kinds and "TRANSPOSE" not in kinds
