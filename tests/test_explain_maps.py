"""The maps of kapps.explain: equal to the peers', and what each of them promises."""

from __future__ import annotations

import contextlib
import warnings

import explain_goldens as goldens
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from keras.src.backend.common import dtypes

import kapps
from kapps import explain
from kapps._errors import InputError
from kapps.explain._passes import Passes
from kapps.explain._resize import bilinear

GRADIENT_CAMS = (explain.grad_cam, explain.grad_cam_plus_plus, explain.layer_cam)
CAMS = (*GRADIENT_CAMS, explain.score_cam)
PIXEL_MAPS = (
    explain.saliency,
    explain.smooth_grad,
    explain.integrated_gradients,
    explain.guided_backpropagation,
    explain.occlusion,
)


@pytest.fixture(scope="module")
def net():
    """Two convolutions, ReLU and ReLU6, pooling, five classes; images 12x16 in 0..255."""
    image = keras.Input((12, 16, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="first")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(8, 3, padding="same", name="second")(x)
    x = layers.ReLU(6.0, name="clipped")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(image, layers.Dense(5, activation="softmax", name="classes")(x))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).uniform(0, 255, (3, 12, 16, 3)).astype("float32")


def logits(model, images):
    """By Keras's own model, up to the last layer's function."""
    last = model.layers[-1]
    before = keras.Model(model.inputs, last.input)
    kernel, bias = (ops.convert_to_numpy(weight) for weight in last.weights)
    return before.predict(np.asarray(images), verbose=0) @ kernel + bias


# --- Equal to captum and pytorch-grad-cam ---------------------------------------------------------


@pytest.fixture
def double(monkeypatch):
    """Everything in float64. In float32 rounding switches ReLUs, and so moves single pixels."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    # Batch norm asks this table, and else computes in float32 on JAX and PyTorch.
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    with contextlib.ExitStack() as stack:
        if keras.backend.backend() == "jax":
            import jax

            stack.enter_context(jax.enable_x64(True))
        yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.fixture(scope="module")
def golden_net(lite0):
    """Each net once, in the precision of the test that first asks for it."""
    built = {}

    def net(case):
        key = case.net, case.whole
        if key not in built:
            built[key] = goldens.net(case, lite0)
        return built[key]

    return net


# The first gradient of a large net takes JAX half a minute: there, one case of each method.
FEW = [
    pytest.param(case, id=case.key, marks=[pytest.mark.few] if case.few else [])
    for case in goldens.CASES
]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", FEW)
def test_maps_equal_the_peers(case, golden_net, photographs):
    found = goldens.maps(case, golden_net(case), photographs[0])
    assert found.dtype == np.float32
    assert goldens.apart(case, found) <= 1e-6


@pytest.mark.few
@pytest.mark.parametrize("case", goldens.CASES[:3], ids=lambda case: case.key)
def test_cams_equal_the_peers_in_single_precision(case, lite0, photographs):
    assert goldens.apart(case, goldens.maps(case, lite0, photographs[0])) <= 1e-4


def test_the_goldens_photographs_have_the_same_pixels(photographs):
    assert goldens.same_pixels(photographs[0])


# --- What each promises ---------------------------------------------------------------------------


@pytest.mark.few
def test_cam_and_bias_make_the_logit(net, images):
    bias = ops.convert_to_numpy(net.get_layer("classes").bias)
    maps = explain.cam(net, images, [0, 3, 4])
    assert maps.shape == (3, 6, 8)
    expected = logits(net, images)[range(3), [0, 3, 4]] - bias[[0, 3, 4]]
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), expected, rtol=1e-4, atol=1e-5)


def test_grad_cam_of_such_a_net_is_its_cam(net, images):
    cam = explain.cam(net, images)
    grad_cam = explain.grad_cam(net, images)
    np.testing.assert_allclose(grad_cam, np.maximum(cam, 0) / 48, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("relu", [False, True])
def test_cam_of_a_map_a_class_is_the_map(images, relu):
    image = keras.Input((12, 16, 3))
    x = layers.Conv2D(4, 3, activation="relu")(image)
    x = layers.Conv2D(5, 1, activation="relu" if relu else None, name="map")(x)
    model = keras.Model(image, layers.Softmax()(layers.GlobalAveragePooling2D()(x)))
    wanted = keras.Model(image, model.get_layer("map").output).predict(images / 255, verbose=0)
    chosen = [int(i) for i in wanted.mean(axis=(1, 2)).argmax(-1)]
    found = explain.cam(model, images / 255)
    np.testing.assert_allclose(found, wanted[range(3), ..., chosen], rtol=1e-4, atol=1e-6)


def heads():
    def conv_head(x):
        x = layers.GlobalAveragePooling2D(keepdims=True)(x)
        return layers.Flatten()(layers.Conv2D(5, 1)(x))

    return {
        "ops.mean": lambda x: layers.Dense(5)(ops.mean(x, axis=(1, 2))),
        "window": lambda x: layers.Dense(5)(layers.Flatten()(layers.AveragePooling2D((12, 16))(x))),
        "convolution": conv_head,
    }


@pytest.mark.parametrize("name", heads())
def test_cam_knows_the_forms_of_pooling(name, images):
    image = keras.Input((12, 16, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    model = keras.Model(image, heads()[name](x))
    maps = explain.cam(model, images / 255, 1)
    expected = model.predict(images / 255, verbose=0)[:, 1]  # biases are zero
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        lambda x: layers.Dense(5)(layers.Flatten()(x)),
        lambda x: layers.Dense(5)(layers.GlobalMaxPooling2D()(x)),
        lambda x: layers.Dense(5)(layers.Dense(7)(layers.GlobalAveragePooling2D()(x))),
        lambda x: layers.Dense(5)(layers.ReLU()(layers.GlobalAveragePooling2D()(x))),
        lambda x: layers.Dense(5)(layers.Flatten()(layers.AveragePooling2D(2)(x))),
        lambda x: layers.Dense(5)(ops.mean(x, axis=(2, 3))),
    ],
)
def test_cam_without_global_pooling_says_grad_cam(head, images):
    image = keras.Input((12, 16, 3))
    model = keras.Model(image, head(layers.Conv2D(4, 3, padding="same")(image)))
    with pytest.raises(InputError, match="global average pooling.*use grad_cam"):
        explain.cam(model, images / 255)


def test_kapps_nets_with_and_without_global_pooling():
    images = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3))
    nin = explain.cam(kapps.NiN(input_shape=(32, 32, 3), classes=10), images)
    assert nin.shape == (1, 8, 8)
    with pytest.raises(InputError, match="LeNet5 does not end in global average pooling"):
        explain.cam(kapps.LeNet5(), images[..., :1])
    with pytest.raises(InputError, match="use grad_cam"):  # two layers behind the pooling
        explain.cam(kapps.MobileNetV3Small(input_shape=(32, 32, 3)), images)


def assert_complete(maps, gained):
    """The quadrature's error is a share of what is added up."""
    apart = np.abs(maps.sum(axis=(1, 2)) - gained)
    assert (apart <= 2e-3 * np.abs(maps).sum(axis=(1, 2))).all()


@pytest.mark.few
def test_completeness(net, images):
    """Sundararajan et al. 2017, proposition 1."""
    maps = explain.integrated_gradients(net, images, 1, steps=200)
    gained = (logits(net, images) - logits(net, np.zeros_like(images)))[:, 1]
    assert_complete(maps, gained)


def test_another_baseline(net, images):
    base = np.full((12, 16, 3), 255.0)
    maps = explain.integrated_gradients(net, images, 1, steps=200, baseline=base)
    gained = (logits(net, images) - logits(net, base[None]))[:, 1]
    assert_complete(maps, gained)
    for white in (255, [255, 255, 255], np.broadcast_to(base, images.shape)):
        same = explain.integrated_gradients(net, images, 1, steps=200, baseline=white)
        np.testing.assert_allclose(same, maps, atol=1e-6)


def test_saliency_is_the_slope(net, images):
    """Of a pixel: what the logit gains from a step on it."""
    maps = explain.saliency(net, images[:1], 2)
    y, x = np.unravel_index(maps[0].argmax(), maps[0].shape)
    slopes = []
    for channel in range(3):
        step = np.zeros_like(images[:1])
        step[0, y, x, channel] = 0.05
        moved = logits(net, images[:1] + step) - logits(net, images[:1] - step)
        slopes.append(moved[0, 2] / 0.1)
    assert maps[0, y, x] == pytest.approx(np.abs(slopes).max(), rel=0.02)


@pytest.mark.few
def test_smooth_grad(net, images):
    plain = explain.saliency(net, images, 2)
    none = explain.smooth_grad(net, images, 2, samples=2, noise=0.0)
    np.testing.assert_allclose(none, plain, rtol=1e-4, atol=1e-8)
    smooth = explain.smooth_grad(net, images, 2, samples=40)
    assert np.array_equal(smooth, explain.smooth_grad(net, images, 2, samples=40))
    assert not np.array_equal(smooth, explain.smooth_grad(net, images, 2, samples=40, seed=1))
    # One image's noise does not depend on those that follow.
    alone = explain.smooth_grad(net, images[:1], 2, samples=40)
    np.testing.assert_allclose(alone, smooth[:1], rtol=1e-4, atol=1e-8)


def test_noise_is_a_share_of_the_images_range():
    """Of x^3 the mean gradient tells the noise's variance: 3 (x^2 + variance)."""
    image = keras.Input((4, 4, 1))
    x = layers.Flatten()(image * image * image)
    model = keras.Model(image, layers.Dense(2, use_bias=False, kernel_initializer="ones")(x))
    shown = np.full((1, 4, 4, 1), 1.0)
    shown[0, 0, 0, 0] = 3.0  # a range of 2: noise 0.5 is a standard deviation of 1
    found = explain.smooth_grad(model, shown, 0, samples=4000, noise=0.5)
    assert found[0, 1, 1] == pytest.approx(3 * (1 + 1), rel=0.1)
    assert found[0, 0, 0] == pytest.approx(3 * (9 + 1), rel=0.1)


@pytest.mark.few
@pytest.mark.parametrize("limit", [None, 6.0])
def test_guided_backpropagation_by_hand(limit):
    """Two units of opposite sign: the gradient of one is negative and is dropped."""
    image = keras.Input((1, 3, 1))
    x = layers.ReLU(limit)(image)
    x = layers.Flatten()(x)
    kernel = keras.initializers.Constant(np.array([[1.0], [-2.0], [5.0]]) * [[1, -1]])
    model = keras.Model(image, layers.Dense(2, kernel_initializer=kernel)(x))
    shown = np.array([1.0, 2.0, 7.0]).reshape(1, 1, 3, 1)
    found = explain.guided_backpropagation(model, shown, 0)
    # The third is above 6: clipped, it has no gradient.
    np.testing.assert_allclose(found, [[[1, 0, 5 if limit is None else 0]]])
    plain = explain.saliency(model, shown, 0)
    np.testing.assert_allclose(plain, [[[1, 2, 5 if limit is None else 0]]])


def test_guided_backpropagation_knows_all_forms_of_relu(images):
    def model(*forms):
        image = keras.Input((12, 16, 3))
        x = forms[0](layers.Conv2D(6, 3, name="a"), image)
        x = forms[1](layers.Conv2D(6, 3, name="b"), x)
        return keras.Model(image, layers.Dense(5, name="c")(layers.Flatten()(x)))

    def by_name(layer, x):
        layer.activation = keras.activations.relu
        return layer(x)

    forms = [
        lambda layer, x: layers.ReLU()(layer(x)),
        lambda layer, x: layers.Activation("relu")(layer(x)),
        lambda layer, x: ops.relu(layer(x)),
        by_name,
    ]
    first = model(forms[0], forms[0])
    wanted = explain.guided_backpropagation(first, images / 255, 2)
    assert not np.allclose(wanted, explain.saliency(first, images / 255, 2))
    for form in forms[1:]:
        other = model(form, form)
        other.set_weights(first.get_weights())
        found = explain.guided_backpropagation(other, images / 255, 2)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_guided_backpropagation_needs_a_relu(images):
    image = keras.Input((12, 16, 3))
    x = layers.Conv2D(4, 3, activation="gelu")(image)
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(x)))
    with pytest.raises(InputError, match="has no ReLU.*saliency"):
        explain.guided_backpropagation(model, images / 255)


@pytest.mark.few
def test_occlusion_of_a_sum():
    """The net adds up the image: a window's worth is what it hides."""
    image = keras.Input((6, 8, 1))
    x = layers.Flatten()(image)
    model = keras.Model(image, layers.Dense(2, kernel_initializer="ones")(x))
    shown = np.random.default_rng(0).uniform(0, 1, (2, 6, 8, 1)).astype("float32")
    found = explain.occlusion(model, shown, 0, size=1, stride=1, value=0)
    np.testing.assert_allclose(found, shown[..., 0], atol=1e-5)
    halves = explain.occlusion(model, shown, 0, size=3, stride=3, value=0)
    first = shown[:, :3, :3].sum((1, 2, 3))
    np.testing.assert_allclose(halves[:, :3, :3], first[:, None, None] * np.ones((3, 3)), rtol=1e-5)
    # Windows start at columns 0, 3 and 5: the last one ends with the image.
    last, before = shown[:, :3, 5:].sum((1, 2, 3)), shown[:, :3, 3:6].sum((1, 2, 3))
    np.testing.assert_allclose(halves[:, 0, 7], last, rtol=1e-5)
    np.testing.assert_allclose(halves[:, 0, 5], (last + before) / 2, rtol=1e-5)
    # Hidden by its own mean, the image loses nothing on average.
    mean = explain.occlusion(model, shown, 0, size=1, stride=1)
    np.testing.assert_allclose(mean.sum((1, 2)), 0, atol=1e-4)


def test_score_cam_looks_at_the_channels_that_vary_most(net, images):
    whole = explain.score_cam(net, images, 1, layer="first", channels=6)
    np.testing.assert_allclose(whole, explain.score_cam(net, images, 1, layer="first"), rtol=1e-5)
    one = explain.score_cam(net, images, 1, layer="first", channels=1)
    maps = keras.Model(net.inputs, net.get_layer("first").output).predict(images, verbose=0)
    most = maps.var(axis=(1, 2)).argmax(-1)
    np.testing.assert_allclose(one, maps[range(3), ..., most], rtol=1e-5)
    white = explain.score_cam(net, images, 1, layer="first", baseline=255)
    assert not np.allclose(white, whole)


@pytest.mark.few
@pytest.mark.parametrize("method", [*CAMS, *PIXEL_MAPS], ids=lambda method: method.__name__)
def test_a_batch_is_each_image_alone(method, net, images):
    chosen = net.predict(images, verbose=0).argmax(-1)
    together = method(net, images)
    assert together.dtype == np.float32
    assert together.shape == ((3, 6, 8) if method in CAMS else (3, 12, 16))
    for i in range(3):
        alone = method(net, images[i : i + 1], chosen[i])
        if method is explain.smooth_grad and i:  # another noise
            continue
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-3, atol=1e-3 * alone.max())


@pytest.mark.parametrize("method", [explain.cam, *CAMS], ids=lambda method: method.__name__)
def test_resized_to_the_image(method, net, images):
    small, large = method(net, images, 1), method(net, images, 1, resize=True)
    assert large.shape == (3, 12, 16)
    expected = ops.image.resize(small[..., None], (12, 16), interpolation="bilinear")
    np.testing.assert_allclose(large, ops.convert_to_numpy(expected)[..., 0], atol=1e-5)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_resizing_keeps_what_is_flat_or_rises_evenly(old, new_height, new, corners):
    flat = bilinear(ops.ones((1, old, old, 2)), (new_height, new), corners=corners)
    np.testing.assert_allclose(ops.convert_to_numpy(flat), 1, rtol=1e-5)
    slope = ops.reshape(ops.arange(old, dtype="float32"), (1, 1, old, 1))
    found = ops.convert_to_numpy(bilinear(slope, (1, new), corners=corners))[0, 0, :, 0]
    if corners:
        expected = np.linspace(0, old - 1, new)
    else:
        expected = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30)
def test_passes_are_all_pairs_once_and_of_one_size(images, variants):
    parts = list(Passes(images, variants))
    sizes = {len(numbers) for numbers, _ in parts}
    assert len(sizes) == 1 and max(sizes) <= 32
    pairs = [pair for part in parts for pair in zip(*part, strict=True)]
    assert set(pairs) == {(i, j) for i in range(images) for j in range(variants)}
    assert len(pairs) - images * variants < len(parts)  # what fills up the last one


def test_many_passes_are_compiled_and_the_same(net, images):
    many = explain.occlusion(net, images, 1, size=3, stride=1)  # 420 passes
    alone = explain.occlusion(net, images[:1], 1, size=3, stride=1)
    np.testing.assert_allclose(many[:1], alone, atol=1e-5)
    weights = net.get_weights()
    net.set_weights([2 * weight for weight in weights])
    changed = explain.occlusion(net, images, 1, size=3, stride=1)
    net.set_weights(weights)
    assert np.abs(changed).max() > 2 * np.abs(many).max()


# --- Pictures that would be black -----------------------------------------------------------------


@pytest.fixture(scope="module")
def opposed():
    """Class 0 has positive weights alone, class 1 their negatives, class 2 has none."""
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", kernel_initializer="ones", name="map")(image)
    x = layers.GlobalAveragePooling2D()(x)
    kernel = keras.initializers.Constant(np.outer(np.ones(4), [1, -1, 0]))
    return keras.Model(image, layers.Dense(3, kernel_initializer=kernel)(x))


def warned(method, *arguments, **options):
    """What it returns, and the message of the one warning it gives, in the caller's file."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        result = method(*arguments, **options)
    (warning,) = found
    assert warning.filename == __file__
    return result, str(warning.message)


@pytest.mark.few
@pytest.mark.parametrize("method", GRADIENT_CAMS, ids=lambda method: method.__name__)
def test_a_map_of_zeros_is_a_warning_that_names_it(method, opposed):
    maps, message = warned(method, opposed, np.ones((2, 8, 8, 3)), [0, 1])
    assert message.startswith(f"{method.__name__}: the map of image 1 is zero everywhere for class")
    assert "for class 1: nothing in map speaks for it; explain another class" in message
    assert maps[0].any() and not maps[1].any()


@pytest.mark.few
@pytest.mark.parametrize(
    "method", [explain.cam, *GRADIENT_CAMS, *PIXEL_MAPS[:2]], ids=lambda method: method.__name__
)
def test_no_gradient_at_all_is_an_error(method, opposed):
    with pytest.raises(InputError, match=f"{method.__name__}: the gradient of class 2 is zero"):
        method(opposed, np.ones((2, 8, 8, 3)), [0, 2])


def test_the_baseline_itself_is_a_warning(opposed):
    ones = np.ones((1, 8, 8, 3))
    _, message = warned(explain.integrated_gradients, opposed, ones, 0, baseline=1)
    assert "the map of image 0 is zero" in message and "it is the baseline itself" in message


def test_occlusion_that_changes_nothing_is_a_warning(opposed):
    _, message = warned(explain.occlusion, opposed, np.ones((1, 8, 8, 3)), 0)
    assert "no window changes it" in message


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (explain.smooth_grad, {"samples": 0}, "samples must be a whole number above 0"),
        (explain.smooth_grad, {"noise": -0.1}, "noise must be a share"),
        (explain.smooth_grad, {"noise": float("nan")}, "noise must be a share"),
        (explain.smooth_grad, {"seed": -1}, "seed must be a whole number"),
        (explain.integrated_gradients, {"steps": 2.5}, "steps must be a whole number"),
        (explain.integrated_gradients, {"baseline": [0, 0]}, "baseline must be a number, one a"),
        (explain.integrated_gradients, {"baseline": "black"}, "baseline must be a number"),
        (explain.score_cam, {"baseline": float("inf")}, "baseline must be a number"),
        (explain.score_cam, {"channels": 0}, "channels must be a whole number"),
        (explain.occlusion, {"size": 13}, "size 13 does not fit into images of 12x16 pixels"),
        (explain.occlusion, {"size": 3, "stride": 4}, "leave pixels out at stride 4"),
        (explain.occlusion, {"stride": 0}, "stride must be a whole number"),
        (explain.occlusion, {"value": None, "size": 1.5}, "size must be a whole number"),
        (explain.grad_cam, {"layer": "secnd"}, "did you mean second"),
        (explain.grad_cam, {"layer": "classes"}, "no map .* the last layer that gives one"),
        (explain.layer_cam, {"classes": [0, 1, 5]}, "knows the classes 0 to 4"),
        (explain.saliency, {"classes": [0, 1]}, "one for each of the 3 images"),
    ],
)
def test_bad_arguments(method, arguments, message, net, images):
    with pytest.raises(InputError, match=message) as found:
        method(net, images, **arguments)
    assert str(found.value).startswith((method.__name__, "unknown layer"))


@pytest.mark.parametrize("method", [explain.score_cam, explain.integrated_gradients])
def test_black_has_to_be_known(method, opposed):
    with pytest.raises(InputError, match="which number is black; give it, as in baseline=0"):
        method(opposed, np.ones((1, 8, 8, 3)), 0)
