"""Class visualization, DeepDream and inversion."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kapps
from kapps import explain
from kapps._errors import InputError
from kapps.explain._ascent import Descent, total_variation
from kapps.explain._classifier import Classifier
from kapps.explain._resize import resized
from kapps.explain._spectrum import Spectrum


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, (N, 16, 16, 1), 0..255."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.kron(found.images, np.ones((2, 2)))[..., None] * (255 / 16)
    return images.astype("float32"), found.target


def small_net() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, padding="same", activation="relu", name="first"),
            layers.Conv2D(24, 3, 2, padding="same", activation="relu", name="second"),
            layers.Conv2D(32, 3, 2, padding="same", activation="relu", name="third"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", name="classes"),
        ]
    )


@pytest.fixture(scope="module")
def untrained():
    """A small network, and images."""
    keras.utils.set_random_seed(0)
    images = resized(np.random.default_rng(0).uniform(0, 255, (4, 5, 5, 1)), 16, 16)
    return small_net(), images.astype("float32")


@pytest.fixture(scope="module")
def trained():
    """A small network that has learned the digits, and they."""
    keras.utils.set_random_seed(0)
    images, labels = digits()
    model = small_net()
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(images, labels, 128, epochs=3, verbose=0)
    return model, images, labels


def logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return Classifier(model, "test").predict(images)


class Plain(Spectrum):
    """Pictures by their pixels."""

    def __init__(self):
        super().__init__(16, 16, 1)

    def pixels(self, variables):
        return variables


# --- The machinery -------------------------------------------------------------------------------


@pytest.mark.few
def test_adam_moves_each_pixel_by_the_rate_along_a_constant_gradient(untrained):
    net = Classifier(untrained[0], "test")
    slope = np.where(np.arange(256).reshape(1, 16, 16, 1) % 2, 3.0, -0.01).astype("float32")
    found, losses = Descent(steps=4, rate=0.02).run(
        net,
        lambda images, slope: ops.sum(images * slope, axis=(1, 2, 3)),
        np.full((1, 16, 16, 1), 0.5),
        form=Plain(),
        bounds=(0, 10),
        rng=np.random.default_rng(0),
        constants=[ops.convert_to_tensor(slope)],
    )
    rates = 0.02 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    np.testing.assert_allclose(found, 0.5 - np.sign(slope) * rates.sum(), rtol=1e-4)
    before = 0.5 - np.sign(slope) * rates[:3].sum()
    assert losses[0] == pytest.approx((10 * before * slope).sum(), rel=1e-3)


@pytest.mark.few
def test_amplitudes_are_waves():
    form = Spectrum(12, 20, 3)
    none = np.zeros((1, 12, 20, 3), "float32")
    flat = ops.convert_to_numpy(form.pixels(ops.convert_to_tensor(none)))
    np.testing.assert_allclose(flat, 0.5)
    one = none.copy()
    one[0, 3, 0, 0] = 1
    pixels = ops.convert_to_numpy(form.pixels(ops.convert_to_tensor(one)))[0]
    light = np.log(pixels / (1 - pixels))
    wave = np.cos(np.pi / 12 * 3 * (np.arange(12) + 0.5))
    np.testing.assert_allclose(
        light / light[0, 0, 0], (wave / wave[0])[:, None, None] + 0 * light, atol=1e-4
    )


def test_blur_is_that_of_a_gaussian():
    deviation, side = 1.5, 64
    form = Spectrum(side, side, 1, blur=deviation)
    amplitudes = np.random.default_rng(0).standard_normal((1, side, side, 1)).astype("float32")
    amplitudes[:, 12:, :] = amplitudes[:, :, 12:] = 0  # a sampled Gaussian is exact for long waves

    def light(values):
        pixels = ops.convert_to_numpy(form.pixels(ops.convert_to_tensor(values))).astype("float64")
        return np.log(pixels / (1 - pixels))[0, ..., 0]

    amplitudes /= 2 * np.abs(light(amplitudes)).max()
    away = np.subtract.outer(np.arange(side), np.arange(-side, 2 * side))
    gaussian = np.exp(-((away / deviation) ** 2) / 2)
    gaussian /= gaussian.sum(1, keepdims=True)
    mirrored = np.pad(light(amplitudes), side, mode="symmetric")
    expected = gaussian @ mirrored @ gaussian.T
    blurred = ops.convert_to_numpy(form.kept(ops.convert_to_tensor(amplitudes), 0))
    np.testing.assert_allclose(light(blurred), expected, atol=1e-3)
    np.testing.assert_array_equal(form.kept(amplitudes, 1), amplitudes)  # none at the end


def test_variation_is_the_mean_square_of_the_steps():
    ramp = np.broadcast_to(np.arange(5.0)[None, :, None, None], (1, 5, 4, 3))
    assert float(total_variation(ops.convert_to_tensor(ramp))[0]) == pytest.approx(1)


def test_resizing_keeps_what_is_flat_and_averages_what_shrinks():
    pictures = np.random.default_rng(0).uniform(0, 1, (2, 12, 18, 3)).astype("float32")
    np.testing.assert_allclose(resized(np.full((1, 5, 7, 1), 3.0), 9, 4), 3, rtol=1e-6)
    np.testing.assert_allclose(resized(pictures, 12, 18), pictures, rtol=1e-6)
    assert resized(pictures, 3, 3).std() < pictures.std() / 2


# --- On every backend ----------------------------------------------------------------------------


@pytest.mark.few
def test_each_method_gets_nearer_to_what_it_is_after(untrained):
    model, images = untrained
    plain = {"l2": 0, "total_variation": 0}  # its logits are small
    made = explain.class_visualization(model, [2, 7], steps=30, jitter=1, blur=0.3, **plain)
    assert (np.diag(logits(model, made)[:, [2, 7]]) > logits(model, images).max(0)[[2, 7]]).all()
    dreamt = explain.deep_dream(model, images, "third", octaves=2, steps=5, jitter=1)
    means = [explain.activations(model, some, "third").mean() for some in (images, dreamt)]
    assert means[1] > means[0]
    found = explain.invert(model, images, "first", steps=40)
    assert found.losses.max() < 0.05
    assert explain.psnr(found.best, images).min() > 15


# --- Class visualization -------------------------------------------------------------------------


def test_the_picture_of_a_class_excites_it_more_than_any_image(trained):
    model, images, _ = trained
    # Penalties are by the pixel and weigh more where an image has few.
    made = explain.class_visualization(
        model, np.arange(10), steps=40, l2=0.1, total_variation=1, jitter=0
    )
    assert made.shape == (10, 16, 16, 1) and made.dtype == np.float32
    assert made.min() >= 0 and made.max() <= 255
    found = logits(model, made)
    assert (found.argmax(-1) == np.arange(10)).all()
    assert (np.diag(found) > logits(model, images).max(0)).all()


def test_a_picture_depends_on_its_class_and_seed_alone(trained):
    model, *_ = trained
    some = {"steps": 8, "jitter": 2}
    both = explain.class_visualization(model, [4, 7], **some)
    np.testing.assert_allclose(explain.class_visualization(model, 7, **some), both[1:], atol=0.1)
    np.testing.assert_array_equal(explain.class_visualization(model, [4, 7], **some), both)
    other = explain.class_visualization(model, [4, 7], seed=1, **some)
    assert np.abs(other - both).mean() > 1


def test_penalties_do_what_they_say(trained):
    model, *_ = trained
    plain = {"steps": 30, "jitter": 0, "l2": 0, "total_variation": 0}

    def measured(**more):
        made = explain.class_visualization(model, 3, **{**plain, **more})
        return np.square(made - 127.5).mean(), np.square(np.diff(made, axis=1)).mean()

    size, roughness = measured()
    assert measured(l2=100)[0] < size / 2
    assert measured(total_variation=1000)[1] < roughness / 2
    assert measured(blur=0.5)[1] < roughness / 1.5


def nested_with_one_unit() -> keras.Model:
    inner = keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(4, 3, activation="relu")])
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            inner,
            layers.GlobalAveragePooling2D(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


def test_one_unit_stands_for_two_classes():
    model = nested_with_one_unit()
    made = explain.class_visualization(model, [0, 1], steps=20, bounds=(-1, 1), jitter=0)
    assert made.min() >= -1 and made.max() <= 1 and made.min() < 0
    no, yes = model.predict(made, verbose=0)[:, 0]
    assert no < yes


def test_a_model_of_any_size_is_asked_for_one():
    inputs = keras.Input((None, None, 3))
    maps = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(maps)))
    with pytest.raises(InputError, match="any size; give one"):
        explain.class_visualization(model, 0)
    made = explain.class_visualization(model, 0, size=(10, 14), steps=2, jitter=1)
    assert made.shape == (1, 10, 14, 3)


@pytest.mark.parametrize(
    ("classes", "more", "message"),
    [
        (10, {}, "has 10, .* the classes 0 to 9"),
        ([1, -1], {}, "has -1"),
        (1.5, {}, "whole numbers"),
        ([], {}, "classes"),
        (1, {"size": (8, 8)}, r"the height and width of .*, \(16, 16\), not \(8, 8\)"),
        (1, {"size": 16}, "the height and width"),
        (1, {"steps": 0}, "steps must be a whole number above 0"),
        (1, {"rate": -1}, "rate must be a number, 0 or more"),
        (1, {"blur": float("nan")}, "blur must be a number"),
        (1, {"jitter": 0.5}, "jitter must be a whole number"),
        (1, {"seed": -1}, "seed must be a whole number"),
        (1, {"bounds": (255, 0)}, "bounds must be"),
    ],
)
def test_a_picture_of_no_class(trained, classes, more, message):
    with pytest.raises(InputError, match=message):
        explain.class_visualization(trained[0], classes, **more)


# --- DeepDream -----------------------------------------------------------------------------------


def test_a_dream_raises_what_the_layer_or_the_channel_sees(trained):
    model, images, _ = trained
    some = images[:4]
    before = explain.activations(model, some, "third")
    dreamt = explain.deep_dream(model, some, "third", octaves=2, jitter=1)
    after = explain.activations(model, dreamt, "third")
    assert dreamt.shape == some.shape and dreamt.dtype == np.float32
    assert dreamt.min() >= 0 and dreamt.max() <= 255
    assert (after.mean((1, 2, 3)) > 1.1 * before.mean((1, 2, 3))).all()
    one = explain.activations(
        model, explain.deep_dream(model, some, "third", 5, octaves=2, jitter=1)
    )
    assert (one[..., 5].mean((1, 2)) > before[..., 5].mean((1, 2))).all()
    gain = (one / before.mean()).mean((0, 1, 2)) - (before / before.mean()).mean((0, 1, 2))
    assert gain.argmax() == 5


def test_a_dream_of_a_kapps_model_of_fixed_size():
    model = kapps.MobileNetV2_035(input_shape=(64, 64, 3))
    images = np.random.default_rng(0).uniform(100, 150, (1, 64, 64, 3))
    options = {"octaves": 2, "steps": 2, "jitter": 4}
    dreamt = explain.deep_dream(model, images, "blocks.1.0", **options)

    def strength(pictures):
        return np.square(explain.activations(model, pictures, "blocks.1.0")).mean()

    assert strength(dreamt) > 1.02 * strength(images)
    again = explain.deep_dream(model, images, "blocks.1.0", **options)
    np.testing.assert_array_equal(dreamt, again)


def shapes_in_the_layers() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Rescaling(1 / 255),
            layers.Reshape((16, 8, 6)),
            layers.Conv2D(4, 3, name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )


@pytest.mark.few
def test_layers_of_one_size_say_to_take_one_octave():
    images = np.full((1, 16, 16, 3), 100.0)
    with pytest.raises(InputError, match="do not take .* pixels.*fewer octaves"):
        explain.deep_dream(shapes_in_the_layers(), images, "conv")
    explain.deep_dream(shapes_in_the_layers(), images, "conv", octaves=1, steps=1)


@pytest.mark.parametrize(
    ("layer", "more", "message"),
    [
        ("fourth", {}, "unknown layer"),
        ("classes", {}, "no map"),
        ("third", {"channel": 32}, "third has the channels 0 to 31, not 32"),
        ("third", {"octaves": 0}, "octaves must be a whole number above 0"),
        ("third", {"octave_scale": 1}, "octave_scale must be above 1"),
        ("third", {"octave_scale": "2"}, "octave_scale must be a number"),
        ("third", {"rate": None}, "rate must be a number"),
    ],
)
def test_a_dream_of_nothing(trained, layer, more, message):
    model, images, _ = trained
    with pytest.raises(InputError, match=message):
        explain.deep_dream(model, images[:1], layer, **more)


def test_pictures_of_another_shape(trained):
    model, *_ = trained
    for function in (explain.deep_dream, explain.invert):
        with pytest.raises(InputError, match=r"takes images \(N, 16, 16, 1\), not \(1, 8, 8, 1\)"):
            function(model, np.zeros((1, 8, 8, 1)), "third")


# --- Inversion -----------------------------------------------------------------------------------


def test_what_is_found_falls_with_depth(trained):
    model, images, _ = trained
    some = images[[3, 20]]
    ratios = []
    for layer in ("first", "second", "third", "classes"):
        found = explain.invert(model, some, layer, steps=100)
        assert found.images.shape == (1, 2, 16, 16, 1) and found.images.dtype == np.float32
        assert found.losses.shape == (1, 2) and found.losses.max() < 0.1
        assert found.images.min() >= 0 and found.images.max() <= 255
        ratios.append(explain.psnr(found.best, some).mean())
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 20 and ratios[0] > ratios[-1] + 6


def test_starts_differ_and_the_best_is_that_of_the_lowest_loss(trained):
    model, images, _ = trained
    found = explain.invert(model, images[:2], "third", starts=3, steps=10)
    assert found.images.shape == (3, 2, 16, 16, 1)
    assert len(set(found.losses[:, 0].tolist())) == 3
    for image in range(2):
        best = found.losses[:, image].argmin()
        np.testing.assert_array_equal(found.best[image], found.images[best, image])
    again = explain.invert(model, images[:2], "third", starts=3, steps=10)
    np.testing.assert_array_equal(found.images, again.images)
    alone = explain.invert(model, images[1:2], "third", starts=1, steps=10)
    np.testing.assert_allclose(alone.images[0, 0], found.images[0, 1], atol=0.5)


def test_the_loss_is_the_distance_by_the_norm(trained):
    model, images, _ = trained
    found = explain.invert(model, images[:1], "second", steps=30)
    wanted = explain.activations(model, images[:1], "second")
    made = explain.activations(model, found.best, "second")
    distance = np.square(made - wanted).sum() / np.square(wanted).sum()
    assert found.losses[0, 0] == pytest.approx(distance, rel=0.2)  # of before the last step


def test_a_row_by_depth(trained):
    model, images, _ = trained
    row = explain.reconstructions(model, images[5], ["first", "classes"], steps=20)
    assert row.shape == (2, 16, 16, 1)
    near, far = explain.psnr(row, images[5])
    assert near > far
    np.testing.assert_array_equal(
        row[1], explain.invert(model, images[5:6], "classes", steps=20).best[0]
    )


def test_a_map_of_zeros_says_nothing():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(2, 3, activation="relu", use_bias=False, name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    images = np.zeros((2, 8, 8, 3))
    images[0] = np.random.default_rng(0).uniform(0, 255, (8, 8, 3))
    with pytest.raises(InputError, match="conv gives for image 1 is zero"):
        explain.invert(model, images, "conv")


@pytest.mark.parametrize(
    ("layer", "more", "message"),
    [
        ("thrid", {}, "did you mean third"),
        ("third", {"starts": 0}, "starts must be a whole number above 0"),
        ("third", {"total_variation": -1}, "total_variation must be a number"),
        ("third", {"norm": "l2"}, "norm must be a number"),
    ],
)
def test_an_inversion_of_nothing(trained, layer, more, message):
    model, images, _ = trained
    with pytest.raises(InputError, match=message):
        explain.invert(model, images[:1], layer, **more)


@pytest.mark.parametrize(
    ("image", "names", "message"),
    [
        (np.zeros((16, 16, 1)), "third", "a list of names"),
        (np.zeros((16, 16, 1)), [], "a list of names"),
        (np.zeros((1, 16, 16, 1)), ["third"], "one image"),
        (np.zeros((16, 16, 1)), ["first", "fourth"], "unknown layer"),
    ],
)
def test_a_row_of_nothing(trained, image, names, message):
    with pytest.raises(InputError, match=message):
        explain.reconstructions(trained[0], image, names)


def test_psnr_in_decibels():
    black = np.zeros((2, 4, 4, 3))
    ratios = explain.psnr(black + np.reshape([25.5, 0], (2, 1, 1, 1)), black)
    assert ratios.dtype == np.float32 and ratios.tolist() == [20, np.inf]
    assert explain.psnr(black[0] + 0.1, black[0], peak=1) == pytest.approx(20)
    for other in (np.zeros((2, 5, 4, 3)), np.zeros(3)):
        with pytest.raises(InputError, match="psnr"):
            explain.psnr(black if other.ndim > 1 else other, other)


# --- On a real network ---------------------------------------------------------------------------

_SIDE = 96


@pytest.fixture(scope="module")
def small_lite0(lite0):
    """The real network for small pictures."""
    model = kapps.EfficientNetLite0(input_shape=(_SIDE, _SIDE, 3))
    model.set_weights(lite0.get_weights())
    return model


def test_of_a_real_photograph_less_is_left_by_depth(small_lite0, photographs):
    image = resized(photographs[0][:1], _SIDE, _SIDE)
    ratios = [
        explain.psnr(explain.invert(small_lite0, image, layer, steps=60).best, image)[0]
        for layer in ("bn1", "blocks.1", "bn2")
    ]
    assert ratios[0] > ratios[1] + 1 and ratios[1] > ratios[2] + 1


def test_a_real_network_s_picture_of_a_zebra(small_lite0, photographs):
    zebra = 340
    made = explain.class_visualization(small_lite0, zebra, steps=32, total_variation=30)
    found = logits(small_lite0, made)[0]
    assert found.argmax() == zebra
    small = resized(photographs[0], _SIDE, _SIDE)
    assert found[zebra] > 2 * logits(small_lite0, small)[:, zebra].max()
