"""Scores of maps: deletion, insertion, the pointing game, and cascading randomization."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from kapps import explain
from kapps._errors import InputError
from kapps.explain import sanity
from kapps.explain._resize import of_maps
from kapps.explain.scores import blurred

few = pytest.mark.few
REGION = np.zeros((16, 16), bool)
REGION[4:8, 4:12] = True


def region_net() -> keras.Model:
    """Class 1's logit is four times the mean of a region, class 0's is one."""
    model = keras.Sequential([layers.Input((16, 16, 1)), layers.Flatten(), layers.Dense(2)])
    kernel = np.zeros((256, 2), "float32")
    kernel[REGION.ravel(), 1] = 4 / REGION.sum()
    model.layers[-1].set_weights([kernel, np.array([1, 0], "float32")])
    return model


def nested_net(activation: str | None, units: int = 3) -> keras.Model:
    """As a user has it: a base within a model, of their own range of images."""
    base = keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Conv2D(6, 3, padding="same", activation="relu", name="second"),
        ],
        name="base",
    )
    image = layers.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(base(image))
    return keras.Model(image, layers.Dense(units, activation=activation, name="head")(x))


@pytest.fixture
def noise(seed):
    return np.random.default_rng(seed)


# --- Deletion and insertion ----------------------------------------------------------------------


@few
def test_a_perfect_map_has_the_best_areas_and_its_inverse_the_worst(noise):
    maps = np.stack([REGION, ~REGION, *noise.random((18, 16, 16))])
    images = np.ones((20, 16, 16, 1), "float32")
    deleted = explain.deletion(region_net(), images, maps, 1, baseline=0)
    inserted = explain.insertion(region_net(), images, maps, 1, baseline=0)
    assert deleted.area[0] < deleted.area[2:].min() and deleted.area[1] > deleted.area[2:].max()
    assert inserted.area[0] > inserted.area[2:].max() and inserted.area[1] < inserted.area[2:].min()
    least, most = 1 / (1 + np.e), 1 / (1 + np.exp(-3))
    np.testing.assert_allclose(deleted.curves[:, [0, -1]], [[most, least]] * 20, rtol=1e-5)
    np.testing.assert_allclose(inserted.curves[:, [0, -1]], [[least, most]] * 20, rtol=1e-5)
    assert deleted.curves.shape == (20, 29) and deleted.fractions.shape == (29,)
    for found in (deleted, inserted):
        assert ((found.area > 0) & (found.area < 1)).all()
    # A step of 7 steps in 8 is the trapezoid's of all of them: 1/8 of the pixels is the region.
    by_hand = explain.deletion(region_net(), images[:1], maps[:1], 1, steps=8, baseline=0)
    assert by_hand.area[0] == pytest.approx(least + (most - least) / 16, rel=1e-5)


def test_the_order_of_the_values_is_all_that_counts(noise):
    model, images = nested_net(None), np.repeat(noise.random((1, 16, 16, 3)), 4, axis=0)
    order = noise.permutation(256).reshape(16, 16).astype("float32")
    maps = np.stack([order, 5 * order - 300, (order / 50) ** 3, np.exp(order / 100)])
    curves = explain.deletion(model, images, maps, 2).curves
    assert np.ptp(curves[0]) > 0
    np.testing.assert_allclose(curves, curves[:1].repeat(4, 0), atol=1e-6)


def test_equal_values_have_no_order_of_their_own():
    """A constant map is a random one: the region's share falls as all pixels' does."""
    images = np.ones((2, 16, 16, 1), "float32")
    for size in (16, 3):  # as they are; resized, where rounding would make an order
        maps = np.full((2, size, size), 0.3, "float32")
        found = explain.deletion(region_net(), images, maps, 1, baseline=0, seed=3)
        share = (np.log(1 / found.curves - 1) * -1 + 1) / 4  # of the region that is left
        np.testing.assert_allclose(share, (1 - found.fractions)[None].repeat(2, 0), atol=0.25)
        again = explain.deletion(region_net(), images, maps, 1, baseline=0, seed=3)
        np.testing.assert_array_equal(found.curves, again.curves)
        other = explain.deletion(region_net(), images, maps, 1, baseline=0, seed=4)
        assert (found.curves != other.curves).any()


@few
def test_softmax_logits_and_one_unit_have_the_same_probability(noise):
    images, maps = noise.random((3, 16, 16, 3)), noise.random((3, 4, 4))
    logits, softmax = nested_net(None), nested_net("softmax")
    softmax.set_weights(logits.get_weights())
    expected = explain.insertion(logits, images, maps)
    found = explain.insertion(softmax, images, maps)
    np.testing.assert_allclose(found.curves, expected.curves, atol=1e-6)
    chosen = np.asarray(softmax.predict(images, verbose=0)).max(-1)
    np.testing.assert_allclose(found.curves[:, -1], chosen, atol=1e-5)

    single = nested_net("sigmoid", 1)
    sure = np.asarray(single.predict(images, verbose=0))[:, 0]
    for label, probability in ((1, sure), (0, 1 - sure)):
        curves = explain.deletion(single, images, maps, label).curves
        np.testing.assert_allclose(curves[:, 0], probability, atol=1e-5)


def test_more_steps_than_a_batch_of_pictures(noise):
    model, images, maps = nested_net(None), noise.random((1, 16, 16, 3)), noise.random((1, 16, 16))
    coarse, fine = (explain.deletion(model, images, maps, 0, steps=n) for n in (16, 64))
    np.testing.assert_allclose(coarse.curves, fine.curves[:, ::4], atol=1e-6)


def test_the_blur_is_a_normalized_gaussian_with_the_border_repeated():
    point = np.zeros((1, 32, 32, 1), "float32")
    point[0, 16, 16] = 1
    found = blurred(point)[0, :, :, 0]
    assert found.sum() == pytest.approx(1, rel=1e-5)
    assert np.flatnonzero(found[16]).tolist() == list(range(11, 22))
    assert found[16, 21] / found[16, 16] == pytest.approx(np.exp(-0.5), rel=1e-5)  # at 5 pixels
    np.testing.assert_allclose(blurred(np.full((1, 8, 8, 3), 7.0)), 7, rtol=1e-12)


def test_baselines(noise):
    images = noise.random((2, 16, 16, 3)).astype("float32") * 255
    model = keras.Sequential([layers.Input((16, 16, 3)), layers.Rescaling(1 / 255)])
    for layer in (layers.Flatten(), layers.Dense(3)):
        model.add(layer)
    maps = noise.random((2, 16, 16))
    for baseline, pictures in {
        "black": np.zeros_like(images),
        "mean": images.mean((1, 2), keepdims=True) + np.zeros_like(images),
        "blur": blurred(images),
        (10, 20, 30): np.zeros_like(images) + np.array([10, 20, 30], "float32"),
    }.items():
        logits = np.asarray(model.predict(pictures, verbose=0))
        wanted = np.exp(logits[:, 1]) / np.exp(logits).sum(-1)
        found = explain.deletion(model, images, maps, 1, steps=2, baseline=baseline)
        np.testing.assert_allclose(found.curves[:, -1], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": np.ones((3, 16, 16))}, r"one for each of the 2 images, not \(3, 16, 16\)"),
        ({"maps": np.ones((2, 16, 16, 1))}, r"maps must be \(N, h, w\)"),
        ({"maps": np.full((2, 4, 4), np.nan)}, "finite real numbers"),
        ({"maps": np.full((2, 4, 4), "a")}, "finite real numbers"),
        ({"steps": 0}, "steps must be a whole number above 0, not 0"),
        ({"steps": 257}, "steps is 257, and an image has 256 pixels"),
        ({"seed": -1}, "seed must be a whole number, 0 or more"),
        ({"baseline": "gray"}, "unknown baseline of deletion 'gray'"),
        ({"baseline": "black"}, r"give it, as in|tells the range"),
        ({"baseline": np.zeros((5, 5))}, r"baseline must be one of mean, black, blur"),
        ({"baseline": np.nan}, r"baseline must be one of mean, black, blur"),
        ({"classes": [0, 3]}, "knows the classes 0 to 2"),
        ({"images": np.ones((16, 16, 3))}, "one image is images"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"images": np.ones((2, 16, 16, 3)), "maps": np.ones((2, 16, 16)), **change}
    with pytest.raises(InputError, match=message):
        explain.deletion(nested_net(None), **arguments)


# --- The pointing game ---------------------------------------------------------------------------


def peaks(*places: tuple[int, int], size: tuple[int, int] = (60, 80)) -> np.ndarray:
    maps = np.zeros((len(places), *size), "float32")
    for map_, place in zip(maps, places, strict=True):
        map_[place] = 1
    return maps


def test_a_hit_may_lie_beside_the_object_by_the_tolerance():
    boxes = [[(20, 30, 25, 40)]] * 4
    maps = peaks((22, 35), (39, 35), (40, 35), (33, 49))  # inside; 15 below; 16; 9 and 10: 13.5
    assert explain.pointing_game(maps, boxes) == 0.75
    assert explain.pointing_game(maps, boxes, tolerance=0) == 0.25
    masks = np.zeros(maps.shape, bool)
    masks[:, 20:25, 30:40] = True
    assert explain.pointing_game(maps, masks) == 0.75
    assert explain.pointing_game(maps, masks, tolerance=13) == 0.25
    several = [[(0, 0, 2, 2), (50, 70, 60, 80)], (0, 0, 1, 1)]  # one box needs no list
    assert explain.pointing_game(peaks((55, 75), (55, 75)), several, tolerance=0) == 0.5


@settings(max_examples=30)
@given(
    st.tuples(st.integers(0, 11), st.integers(0, 8)),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 8)), min_size=1, max_size=5),
    st.floats(0, 20),
)
def test_the_distance_is_the_euclidean_one(place, pixels, tolerance):
    mask = np.zeros((1, 12, 9), bool)
    for pixel in pixels:
        mask[0][pixel] = True
    nearest = min((place[0] - y) ** 2 + (place[1] - x) ** 2 for y, x in pixels)
    hit = explain.pointing_game(peaks(place, size=(12, 9)), mask, tolerance=tolerance)
    assert hit == (nearest <= tolerance**2)


def test_a_constant_map_has_the_chance_of_a_guess():
    boxes = [[(0, 0, 30, 20)]]
    for size in ((60, 80), (3, 4)):
        maps = np.full((1, *size), 0.7, "float32")
        found = explain.pointing_game(maps, boxes, size=(60, 80), tolerance=0)
        assert found == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([[(0, 0, 61, 10)]], "a box of image 0 is .* within an image of 60x80"),
        ([[(0, -1, 10, 10)]], "a box of image 0 is"),
        ([[(5, 5, 5, 10)]], "a box of image 0 is"),
        ([[(1, 2, 3)]], "a box of image 0 is"),
        ([["box"]], "a box of image 0 is"),
        ([[]], "image 0 has no object"),
        (np.zeros((1, 60, 80), bool), "image 0 has no object"),
        (np.ones((60, 80), bool), "there are 1 maps, and objects of 60 images"),
        (np.ones((1, 60, 80, 1), bool), r"masks must be \(N, height, width\)"),
        ([[(0, 0, 9, 9)]] * 2, "there are 1 maps, and objects of 2 images"),
        (None, "objects must be masks"),
    ],
)
def test_objects_that_are_none_are_named(objects, message):
    with pytest.raises(InputError, match=message):
        explain.pointing_game(peaks((1, 1)), objects)


@pytest.mark.parametrize("tolerance", [-1, np.nan, "15"])
def test_a_tolerance_is_some_pixels(tolerance):
    with pytest.raises(InputError, match="tolerance must be pixels"):
        explain.pointing_game(peaks((1, 1)), [[(0, 0, 9, 9)]], tolerance=tolerance)


# --- Cascading randomization ---------------------------------------------------------------------


def edges(model, images, classes):
    """An edge detector: it does not look at the network."""
    return np.abs(np.diff(images.sum(-1), axis=1))


def bits(model: keras.Model) -> list[bytes]:
    return [keras.ops.convert_to_numpy(v).tobytes() for v in model.variables]


def moved(model: keras.Model, noise) -> keras.Model:
    """With weights that no two of are equal, and statistics as if it had been trained."""
    for variable in model.weights:
        variable.assign(0.1 + noise.random(variable.shape))
    return model


@few
def test_layers_are_shuffled_from_the_top_and_statistics_measured(noise):
    model, seen = moved(nested_net(None), noise), []
    images, own = noise.random((4, 16, 16, 3)), model.get_weights()
    norm = model.get_layer("base").get_layer("norm")
    taken = keras.Model(model.get_layer("base").inputs, norm.input)

    def method(model, images, classes):
        seen.append(model.get_weights())
        if len(seen) == 5:
            values = np.asarray(taken.predict(images, verbose=0))
            np.testing.assert_allclose(norm.moving_mean, values.mean((0, 1, 2)), rtol=1e-4)
            np.testing.assert_allclose(norm.moving_variance, values.var((0, 1, 2)), rtol=1e-3)
        return noise.random((len(images), 5, 5))

    before = bits(model)
    found = explain.randomization(model, images, method, steps=10)
    assert found.layers == ("head", "base/second", "base/norm", "base/first")
    assert found.correlations.shape == found.constant.shape == (4, 4)
    assert bits(model) == before
    names = [v.path for v in model.weights]
    changed = [
        {n for n, a, b in zip(names, own, weights, strict=True) if (a != b).any()}
        for weights in seen
    ]
    assert [len(found) for found in changed] == [0, 2, 4, 8, 9]
    assert all(a < b for a, b in itertools.pairwise(changed))
    for weight, redrawn in zip(own, seen[-1], strict=True):
        if weight.ndim > 1:
            np.testing.assert_array_equal(np.sort(weight.ravel()), np.sort(redrawn.ravel()))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@few
def test_every_weight_comes_back_whatever_happens(noise, error, monkeypatch):
    model, calls = moved(nested_net("softmax"), noise), []
    before = bits(model)

    def method(model, images, classes):
        calls.append(bits(model) != before)
        if len(calls) == 4:
            raise error
        return noise.random((len(images), 5, 5))

    with pytest.raises(error):
        explain.randomization(model, noise.random((2, 16, 16, 3)), method)
    assert calls == [False, True, True, True] and bits(model) == before

    assign, tries = sanity._assign, []

    def interrupted(variables, values):
        tries.append(len(variables))
        if len(tries) == 1:
            assign(variables[:2], values[:2])
            raise KeyboardInterrupt
        assign(variables, values)

    monkeypatch.setattr(sanity, "_assign", interrupted)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        explain.randomization(model, noise.random((2, 16, 16, 3)), method)
    assert len(tries) == 2 and bits(model) == before


def test_an_edge_detector_fails_and_maps_of_the_weights_pass(noise):
    model, images = moved(nested_net(None), noise), noise.random((4, 16, 16, 3))
    found = explain.randomization(model, images, edges)
    np.testing.assert_allclose(found.correlations, 1)
    assert not found.passes and found.verdict.startswith("fails")

    def of_weights(model, images, classes):
        draw = np.random.default_rng(list(model.get_layer("head").get_weights()[0].tobytes()))
        return draw.normal(size=(len(images), 16, 16))

    found = explain.randomization(model, images, of_weights, steps=2)
    assert found.layers == ("head", "base/first")
    assert found.passes and found.verdict.startswith("passes")


def test_correlations_are_of_ranks_without_signs(noise):
    model, images = nested_net(None), noise.random((3, 16, 16, 3))
    first = np.array([[[1, 2, 2, 4]], [[1, 2, 3, 4]], [[1, 2, 3, 4]]], "float32")
    second = np.array([[[1, 3, 2, 9]], [[-1, 20, -300, 4e3]], [[9, 8, 7, 6]]], "float32")
    answers = iter([first, *[second] * 4])
    found = explain.randomization(model, images, lambda *_: next(answers))
    tied = np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1]
    np.testing.assert_allclose(found.correlations[0], [tied, 1, -1], atol=1e-12)


def test_an_image_without_a_map_counts_as_uncorrelated_and_is_said(noise):
    model, images, calls = nested_net(None), noise.random((3, 16, 16, 3)), []
    images[1] = 0

    def method(model, images, classes):
        calls.append(len(images))
        if len(calls) > 1 and not images.any(axis=(1, 2, 3)).all():
            raise InputError("no gradient")
        return np.abs(images).sum(-1) + np.arange(16)

    found = explain.randomization(model, images, method)
    assert found.constant.tolist() == [[False, True, False]] * 4
    np.testing.assert_allclose(found.correlations, [[1, 0, 1]] * 4)

    def dead(model, images, classes):
        calls.append(len(images))
        return np.ones((3, 4, 4)) * (noise.random((3, 4, 4)) if len(calls) < 2 else 1)

    calls.clear()
    found = explain.randomization(model, images, dead)
    assert found.constant.all() and not found.passes and found.verdict.startswith("undecided")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("grad_cam", "method must be a function"),
        (lambda model, images, classes: images, r"method must return maps \(N, h, w\)"),
        (lambda model, images, classes: images[:1, ..., 0], "one for each of the 2 images"),
        (lambda model, images, classes: images[..., 0] * 0, "of the trained network is constant"),
    ],
)
def test_a_method_that_is_none_is_named(noise, method, message):
    with pytest.raises(InputError, match=message):
        explain.randomization(nested_net(None), noise.random((2, 16, 16, 3)), method)


def test_a_verdict_needs_steps(noise):
    with pytest.raises(InputError, match="steps must be a whole number, 2 or more, not 1"):
        explain.randomization(nested_net(None), noise.random((2, 16, 16, 3)), edges, steps=1)


def test_a_network_without_weights_has_nothing_to_forget(noise):
    model = keras.Sequential([layers.Input((8, 8, 3)), layers.GlobalAveragePooling2D()])
    with pytest.raises(InputError, match="has weights"):
        explain.randomization(model, noise.random((2, 8, 8, 3)), edges)


# --- Real weights and photographs ----------------------------------------------------------------


def centred(size: int) -> np.ndarray:
    """A Gaussian in the middle, (size, size): where the objects of photographs are."""
    line = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 4)) ** 2)
    return np.outer(line, line)


def test_grad_cam_names_pixels_better_than_chance_and_than_the_middle(lite0, photographs, noise):
    images, labels = photographs
    maps = [
        explain.grad_cam(lite0, images, labels, resize=True),
        of_maps(noise.random((20, 7, 7), "float32"), (224, 224)),
        np.repeat(centred(224)[None], 20, axis=0),
    ]
    # All in one call, which compiles the network once.
    each = (np.tile(images, (3, 1, 1, 1)), np.concatenate(maps), np.tile(labels, 3))
    deleted, inserted = (
        score(lite0, *each, steps=4).area.reshape(3, 20).mean(axis=1)
        for score in (explain.deletion, explain.insertion)
    )
    assert deleted[0] < min(deleted[1:]), deleted
    assert inserted[0] > max(inserted[1:]), inserted


def test_guided_backpropagation_fails_and_the_gradient_and_grad_cam_pass(lite0, photographs):
    images, before = photographs[0][:3], bits(lite0)
    found = {
        method.__name__: explain.randomization(lite0, images, method, steps=3)
        for method in (explain.guided_backpropagation, explain.saliency, explain.grad_cam)
    }
    assert bits(lite0) == before
    verdicts = {name: result.passes for name, result in found.items()}
    assert verdicts == {"guided_backpropagation": False, "saliency": True, "grad_cam": True}
    assert found["guided_backpropagation"].correlations[0].min() > 0.9  # whatever the class
