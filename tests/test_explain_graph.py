"""Explaining any Keras model: its graph, its logits, and what users hand in by mistake."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kapps
from kapps import explain
from kapps._errors import InputError
from kapps.explain._classifier import Classifier

SHAPE = (12, 12, 3)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(0, 1, (2, *SHAPE)).astype("float32")


def body(name="body"):
    image = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, activation="relu", name="conv1")(image)
    x = layers.Conv2D(6, 3, activation="relu", name="conv2")(x)
    return keras.Model(image, x, name=name)


def flat(end=None):
    image = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, activation="relu", name="conv1")(image)
    x = layers.Conv2D(6, 3, activation="relu", name="conv2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(5, name="classes")(x)
    return keras.Model(image, x if end is None else end(x), name="flat")


def same_weights(model, other):
    model.set_weights(other.get_weights())
    return model


@pytest.fixture(scope="module")
def plain():
    """The flat net that ends in logits."""
    return flat()


@pytest.fixture(scope="module")
def expected(plain, images):
    return explain.grad_cam(plain, images, [1, 3])


def sequential(end=()):
    top = [layers.GlobalAveragePooling2D(name="pool"), layers.Dense(5, name="classes"), *end]
    return keras.Sequential([keras.Input(SHAPE), body(), *top], name="nested")


def functional_around():
    image = keras.Input(SHAPE)
    x = layers.GlobalAveragePooling2D()(body()(image))
    return keras.Model(image, layers.Dense(5, activation="softmax")(x))


def softmax_inside():
    image = keras.Input(SHAPE)
    return keras.Model(image, layers.Dropout(0.5)(flat(layers.Softmax())(image)))


def twice_nested():
    middle = keras.Sequential([keras.Input(SHAPE), body(), layers.GlobalAveragePooling2D()])
    return keras.Sequential([keras.Input(SHAPE), middle, layers.Dense(5, activation="softmax")])


def dense_with(activation):
    def build():
        model = flat()
        return keras.Model(
            model.inputs,
            layers.Dense(5, activation=activation)(model.get_layer("pool").output),
        )

    return build


FORMS = {
    "softmax of the dense layer": dense_with("softmax"),
    "softmax function": dense_with(keras.activations.softmax),
    "sigmoid of the dense layer": dense_with("sigmoid"),
    "log softmax of the dense layer": dense_with("log_softmax"),
    "Softmax": lambda: flat(layers.Softmax()),
    "Activation": lambda: flat(layers.Activation("softmax")),
    "ops.softmax": lambda: flat(ops.softmax),
    "ops.nn.log_softmax": lambda: flat(ops.nn.log_softmax),
    "ops.sigmoid": lambda: flat(ops.sigmoid),
    "keras.activations.softmax": lambda: flat(keras.activations.softmax),
    "linear, then softmax": lambda: flat(
        lambda x: layers.Softmax()(layers.Activation("linear")(layers.Dropout(0.2)(x)))
    ),
    "softmax, then float32": lambda: flat(
        lambda x: layers.Activation("linear", dtype="float32")(layers.Softmax()(x))
    ),
    "nested": sequential,
    "nested, Softmax": lambda: sequential([layers.Softmax()]),
    "functional around": functional_around,
    "softmax inside": softmax_inside,
    "twice nested": twice_nested,
}


@pytest.mark.few
@pytest.mark.parametrize("form", FORMS)
def test_the_logit_whatever_the_model_ends_in(form, plain, expected, images):
    model = same_weights(FORMS[form](), plain)
    np.testing.assert_allclose(explain.grad_cam(model, images, [1, 3]), expected, rtol=1e-4)
    logits = Classifier(model, "test").predict(images)
    np.testing.assert_allclose(logits, plain.predict(images, verbose=0), rtol=1e-4, atol=1e-5)


@pytest.mark.few
def test_a_saturated_softmax_is_no_black_map(plain, images):
    """tf-explain #54: the gradient of a probability of 1 is 0."""
    model = same_weights(dense_with("softmax")(), plain)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([1e4 * kernel, bias])
    assert model.predict(images, verbose=0).max() == 1
    assert explain.grad_cam(model, images).max(axis=(1, 2)).min() > 0
    assert explain.saliency(model, images).max() > 0


@pytest.mark.few
@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_one_unit_is_two_classes(activation, images):
    image = keras.Input(SHAPE)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(image))
    one = keras.Model(image, layers.Dense(1, activation=activation)(x))
    two = keras.Model(image, layers.Dense(2)(x))
    kernel, _ = one.layers[-1].get_weights()
    two.layers[-1].set_weights([np.concatenate([-kernel, kernel], -1), np.zeros(2)])
    for label in (0, 1):
        for method in (explain.cam, explain.saliency, explain.occlusion):
            found = method(one, images, label)
            np.testing.assert_allclose(found, method(two, images, label), rtol=1e-3, atol=1e-6)
    signed = explain.cam(one, images, 1)
    np.testing.assert_allclose(explain.cam(one, images, 0), -signed, rtol=1e-5)
    logit = Classifier(one, "test").predict(images)
    assert logit.shape == (2, 2) and not logit[:, 0].any()
    with pytest.raises(InputError, match="classes has 2, and .* knows the classes 0 to 1"):
        explain.cam(one, images, 2)


@pytest.mark.few
def test_a_nested_model_called_twice(images):
    """Its layers are named once and called twice; a name means the last call."""
    shared = keras.Sequential(
        [keras.Input((12, 12, 3)), layers.Conv2D(3, 3, padding="same", name="conv")], name="shared"
    )
    image = keras.Input(SHAPE)
    x = shared(layers.ReLU()(shared(image)))
    model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    net = Classifier(model, "test")
    assert [call.name for call in net.calls].count("shared/conv") == 2
    logits = net.predict(images)
    np.testing.assert_allclose(logits, model.predict(images, verbose=0), rtol=1e-4, atol=1e-6)
    by_name = explain.cam(model, images, 1)
    np.testing.assert_allclose(by_name.mean(axis=(1, 2)), logits[:, 1], rtol=1e-3, atol=1e-5)
    last = [call for call in net.calls if call.name == "shared/conv"][-1].outputs[0]
    assert net.layer("shared/conv") is last
    assert net.layer("conv") is last


@pytest.mark.few
def test_two_inputs_of_a_layer_swapped_are_told_apart(images):
    image = keras.Input(SHAPE)
    a = layers.Conv2D(2, 3, name="a")(image)
    b = layers.Conv2D(2, 3, name="b")(image)
    x = ops.concatenate([ops.subtract(b, a), a * 2.0 - 1.0], axis=-1)
    model = keras.Model(image, layers.Dense(3, name="c")(layers.GlobalAveragePooling2D()(x)))
    net = Classifier(model, "test")
    found = net.predict(images)
    np.testing.assert_allclose(found, model.predict(images, verbose=0), rtol=1e-4, atol=1e-6)
    kernel = model.get_layer("c").get_weights()[0][:, 1]
    (batch,) = next(net.batches(images))
    _, gradient, _ = net.gradients(batch, np.array([1, 1]), net.map("a"))
    wanted = np.broadcast_to((2 * kernel[2:] - kernel[:2]) / 100, (2, 10, 10, 2))
    np.testing.assert_allclose(ops.convert_to_numpy(gradient), wanted, rtol=1e-4)


@pytest.mark.few
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, plain, expected, images):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = same_weights(flat(layers.Activation("softmax", dtype="float32")), plain)
    finally:
        keras.config.set_dtype_policy(before)
    found = explain.grad_cam(model, images, [1, 3])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.05 * expected.max())
    for method in (explain.score_cam, explain.integrated_gradients):
        assert method(model, images, 1, baseline=0).dtype == np.float32
    for method in (explain.guided_backpropagation, explain.smooth_grad, explain.occlusion):
        maps = method(model, images, 1)
        assert maps.dtype == np.float32 and np.isfinite(maps).all() and maps.any()


def test_heads_for_training_are_left_out():
    """GoogLeNet's auxiliary heads: the main output is explained, they are not even computed."""
    model = kapps.GoogLeNet(input_shape=(64, 64, 3), classes=7, aux=True)
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3))
    main = ops.convert_to_numpy(model(images)[0])
    net = Classifier(model, "test")
    logits = net.predict(images.astype("float32"))
    exponents = np.exp(logits - logits.max())
    np.testing.assert_allclose(exponents / exponents.sum(), main, rtol=1e-4)
    assert not any("aux" in call.name for call in net.calls)
    assert explain.grad_cam(model, images, 3).shape == (1, 2, 2)
    assert explain.cam(model, images, 3).shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("name", "made_by"),
    [
        ("layer3.1", "layer3_1_act2"),
        ("layer3_1", "layer3_1_act2"),
        ("layer3", "layer3_1_act2"),
        ("layer3.1.conv1", "layer3_1_conv1"),
        ("conv1", "conv1"),
    ],
)
def test_names_of_layers_and_blocks(name, made_by, resnet):
    net = Classifier(resnet, "test")
    assert net.name_of(net.map(name)) == made_by


def test_a_wrong_name_proposes_the_nearest(plain, images):
    with pytest.raises(InputError, match="unknown layer of flat 'conv3'; did you mean conv[12] or"):
        explain.grad_cam(plain, images, layer="conv3")
    nested = sequential()
    with pytest.raises(InputError, match="body/conv2"):
        explain.grad_cam(nested, images, layer="bodi/conv2")
    with pytest.raises(InputError, match="a layer is given by its name, not as"):
        explain.grad_cam(plain, images, layer=plain.layers[1])
    with pytest.raises(InputError, match=r"pool gives \(None, 6\), no map .* is conv2"):
        explain.grad_cam(plain, images, layer="pool")
    for name in ("body/conv1", "conv1"):
        assert explain.grad_cam(nested, images, layer=name).shape == (2, 10, 10)


def test_a_name_in_two_nested_models_needs_the_models(images):
    image = keras.Input(SHAPE)
    x = layers.Concatenate()([body("left")(image), body("right")(image)])
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    with pytest.raises(InputError, match="left/conv2"):
        explain.grad_cam(model, images, layer="conv2")
    net = Classifier(model, "test")
    assert net.name_of(net.map("right/conv2")) == "right/conv2"


def test_the_map_that_the_head_takes():
    shape = (32, 32, 3)
    inner = kapps.CifarResNet(include_top=False, input_shape=shape)
    top = [layers.GlobalAveragePooling2D(), layers.Dense(2)]
    nested = keras.Sequential([keras.Input(shape), layers.RandomFlip(), inner, *top])
    found = Classifier(nested, "test")
    flat_net = Classifier(kapps.CifarResNet(input_shape=shape), "test")
    own = flat_net.name_of(flat_net.features())
    assert found.name_of(found.features()) == f"{inner.name}/{own}"


@pytest.mark.few
def test_nothing_of_the_model_changes(images):
    model = sequential([layers.Softmax()])
    model.compile("sgd", "sparse_categorical_crossentropy")
    nodes = {layer.name: len(layer._inbound_nodes) for layer in model.layers}
    activations = [layer.activation for layer in model.layers if hasattr(layer, "activation")]
    before, config = model.get_weights(), str(model.get_config())
    for method in (explain.grad_cam, explain.guided_backpropagation, explain.cam):
        method(model, images)
    explain.integrated_gradients(model, images, baseline=0, steps=3)
    assert {layer.name: len(layer._inbound_nodes) for layer in model.layers} == nodes
    assert [x.activation for x in model.layers if hasattr(x, "activation")] == activations
    assert str(model.get_config()) == config
    for weight, now in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(weight, now)
    model.fit(images, np.array([0, 1]), verbose=0)


@pytest.mark.few
def test_inference_whatever_the_learning_phase(images):
    """Dropout and batch norm: the statistics stay, and two calls agree."""
    image = keras.Input(SHAPE)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(image))
    x = layers.GlobalAveragePooling2D()(layers.Dropout(0.5)(layers.ReLU()(x)))
    model = keras.Model(image, layers.Dense(3)(x))
    before = model.get_weights()
    first = explain.saliency(model, images, 1)
    assert np.array_equal(first, explain.saliency(model, images, 1))
    assert all(map(np.array_equal, before, model.get_weights()))


# --- What is refused ------------------------------------------------------------------------------


def test_a_subclassed_model():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(ops.mean(x, axis=(1, 2)))

    class Changed(keras.Model):
        """Functional, with code of its own."""

        def call(self, x):
            return 2 * super().call(x)

    image = keras.Input(SHAPE)
    changed = Changed(image, layers.Dense(3)(layers.Flatten()(image)))
    unbuilt = keras.Sequential([layers.Conv2D(3, 3), layers.Flatten()])
    for model in (Own(), changed, unbuilt, lambda x: x, None):
        with pytest.raises(InputError, match="takes a functional or a built sequential Keras"):
            explain.grad_cam(model, np.ones((1, *SHAPE)))


def test_models_that_are_no_classifiers_of_one_image():
    image, other = keras.Input(SHAPE), keras.Input(SHAPE)
    two = keras.Model([image, other], layers.Dense(3)(layers.Flatten()(image + other)))
    vector = keras.Input((8,))
    cases = [
        (two, "has 2 inputs; it takes a model of one image"),
        (keras.Model(vector, layers.Dense(3)(vector)), "has to take images"),
        (body(), "has to give .batch, classes.: a classifier"),
    ]
    for model, message in cases:
        with pytest.raises(InputError, match=message):
            explain.saliency(model, np.ones((1, *SHAPE)))


@keras.saving.register_keras_serializable("test_explain_graph")
class HiddenSoftmax(layers.Layer):
    def call(self, x):
        return ops.softmax(x)


@pytest.mark.parametrize(
    "method",
    [explain.grad_cam, explain.saliency, explain.smooth_grad, explain.occlusion],
    ids=lambda method: method.__name__,
)
@pytest.mark.parametrize("classes", [None, 1])
def test_a_softmax_in_a_layer_of_its_own(method, classes, images):
    with pytest.raises(InputError, match="gives probabilities, and its softmax is hidden"):
        method(flat(HiddenSoftmax()), images, classes)


def test_weights_that_are_not_finite(images):
    model = flat()
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    for classes in (None, 1):
        with pytest.raises(InputError, match="gives numbers that are not finite"):
            explain.grad_cam(model, images, classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x / 255, "they lie in 0..1: multiply them by 255"),
        (lambda x: x / 127.5 - 1, "as if normalized already: give the pixels as they are"),
        (lambda x: (x / 255 - 0.45) / 0.22, "as if normalized already"),
        (lambda x: x * 255, "give the pixels as they are"),
        (lambda x: x[0], r"not \(32, 32, 3\); one image is images\[None\]"),
        (lambda x: x[:, :16], r"takes images \(N, 32, 32, 3\), not \(2, 16, 32, 3\)"),
        (lambda x: x[..., :1], "takes images"),
        (lambda x: x.transpose(0, 3, 1, 2), "takes images"),
        (lambda x: x[:0], "takes images"),
        (lambda x: np.where(x > 100, np.nan, x), "numbers that are not finite"),
        (lambda x: x.astype(str), "the images must be real numbers, not <U32"),
        (lambda x: x.astype(complex), "the images must be real numbers"),
        (lambda x: "cat.jpg", "takes images"),
        (lambda x: [x[0], x[1, :16]], "the images are no array, for they differ in shape"),
    ],
)
def test_images_that_it_does_not_take(change, message, resnet):
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    with pytest.raises(InputError, match=message) as found:
        explain.grad_cam(resnet, change(images))
    assert str(found.value).startswith("grad_cam: ")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32, 3)),  # black
        np.ones((32, 32, 3), "uint8"),  # nearly
        np.full((32, 32, 3), 255, "uint8"),
        np.random.default_rng(0).normal(128, 50, (32, 32, 3)),  # with noise
        np.random.default_rng(0).integers(0, 60, (32, 32, 3)),  # at night
    ],
)
def test_images_that_it_takes(image, resnet):
    assert Classifier(resnet, "test").images(image[None]).dtype == np.float32


@pytest.fixture(scope="module")
def resnet():
    return kapps.ResNet18(input_shape=(32, 32, 3), classes=3)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, 5], "classes has 5, and flat knows the classes 0 to 4"),
        (-1, "classes has -1"),
        ([0.0, 1.0], "classes must be whole numbers, one for each of the 2 images"),
        ([0], "one for each of the 2 images"),
        ([[0, 1]], "one for each of the 2 images"),
        (["cat", "dog"], "whole numbers"),
        ([True, False], "whole numbers"),
        ([[0], [1, 2]], "classes are no array"),
    ],
)
def test_labels_that_it_does_not_know(classes, message, plain, images):
    for method in (explain.grad_cam, explain.score_cam, explain.smooth_grad):
        with pytest.raises(InputError, match=message):
            method(plain, images, classes, **{"baseline": 0} if method is explain.score_cam else {})


@pytest.mark.few
def test_tensors_of_the_backend_are_taken(plain, expected, images):
    given = ops.convert_to_tensor(images), ops.convert_to_tensor([1, 3])
    np.testing.assert_allclose(explain.grad_cam(plain, *given), expected, rtol=1e-5)
