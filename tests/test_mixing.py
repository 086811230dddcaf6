"""Mixup, CutMix and manifold mixup: what is drawn, and what the compiled step makes of it.

For FALSE_ALARM see test_augment.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from scipy import stats

from kapps.tools import mixing
from kapps.tools.mixing import Mix

FALSE_ALARM = 1e-6

sides = st.integers(1, 300)
alphas = st.sampled_from((0.0, 0.1, 0.2, 0.8, 1.0, 4.0))
seeds = st.integers(0, 2**32 - 1)


def assert_distribution(sample, distribution, *arguments) -> None:
    found = stats.kstest(np.asarray(sample), distribution, arguments)
    assert found.pvalue > FALSE_ALARM, found


def assert_share(hits: int, draws: int, probability: float) -> None:
    assert stats.binomtest(int(hits), draws, probability).pvalue > FALSE_ALARM, (hits, draws)


def batch(n: int = 4, height: int = 6, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).uniform(0, 255, (n, height, width, 3)).astype(np.float32)
    return images, np.eye(n, dtype=np.float32)


def mixed(mix: Mix, images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tuple(map(ops.convert_to_numpy, mixing.apply(images, targets, mix.vector())))


def swapped(x: np.ndarray) -> np.ndarray:
    """Each row's neighbour, written out."""
    return np.stack([x[i + 1 if i % 2 == 0 else i - 1] for i in range(len(x))])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_share_of_mixup_is_beta(alpha, seed):
    random = np.random.default_rng(seed)
    drawn = [mixing.draw(random, (32, 32), alpha, 0) for _ in range(4000)]
    assert_distribution([mix.share for mix in drawn], "beta", alpha, alpha)
    assert {(mix.top, mix.left, mix.bottom, mix.right) for mix in drawn} == {(0, 0, 0, 0)}


def test_the_box_of_cutmix_has_a_uniform_area(seed):
    """Before it is cut to the image: the boxes that lie within show all of it.

    A box of share a of the area fits with a probability of (1 - sqrt(a))^2, so that the sides s of
    those that fit have a density of 12 s (1 - s)^2: Beta(2, 3). The image is so large that rounding
    moves a side by less than a thousandth.
    """
    random, (height, width) = np.random.default_rng(seed), (2000, 3000)
    drawn = [mixing.draw(random, (height, width), 0, 1.0) for _ in range(20000)]
    within = [
        mix
        for mix in drawn
        if mix.top > 0 and mix.left > 0 and mix.bottom < height and mix.right < width
    ]
    assert_share(len(within), len(drawn), 1 / 6)
    assert_distribution([(mix.bottom - mix.top) / height for mix in within], "beta", 2, 3)
    for mix in within:  # it has the image's aspect, but for the rounding of its edges
        sides = (mix.bottom - mix.top) / height, (mix.right - mix.left) / width
        assert abs(sides[0] - sides[1]) <= 1 / height + 1 / width


def test_the_share_of_cutmix_is_beta_before_the_box_is_cut(seed, monkeypatch):
    shares = []
    monkeypatch.setattr(mixing, "_cutmix", lambda random, size, share: shares.append(share))
    random = np.random.default_rng(seed)
    for _ in range(4000):
        mixing.draw(random, (32, 32), 0, 0.5)
    assert_distribution(shares, "beta", 0.5, 0.5)


def test_the_box_of_cutmix_is_centered_anywhere(seed):
    """A small box, cut at the image's edge: the middle of the others is uniform."""
    random, (height, width) = np.random.default_rng(seed), (2000, 3000)
    boxes = [mixing._cutmix(random, (height, width), 1 - 1e-4) for _ in range(4000)]
    assert_distribution([(mix.top + mix.bottom) / 2 / height for mix in boxes], "uniform")
    assert_distribution([(mix.left + mix.right) / 2 / width for mix in boxes], "uniform")


@given(height=sides, width=sides, mixup=alphas, cutmix=alphas, seed=seeds)
def test_a_mix_lies_within_the_image_and_the_label_follows_the_pixels(
    height, width, mixup, cutmix, seed
):
    mix = mixing.draw(np.random.default_rng(seed), (height, width), mixup, cutmix)
    assert 0 <= mix.share <= 1
    assert 0 <= mix.top <= mix.bottom <= height and 0 <= mix.left <= mix.right <= width
    if mix.vector()[0] == 1 and (mixup == 0 or mix.bottom):
        area = (mix.bottom - mix.top) * (mix.right - mix.left)
        assert mix.share == pytest.approx(1 - area / (height * width))


def test_one_of_both_is_drawn_with_its_probability(seed):
    random, draws = np.random.default_rng(seed), 4000
    drawn = [mixing.draw(random, (100, 100), 0.2, 1.0, 0.6, 0.3) for _ in range(draws)]
    boxes = sum(mix.bottom > 0 for mix in drawn)
    unmixed = sum(mix == Mix() for mix in drawn)
    # of 100 x 100 pixels a box of less than half a pixel's side comes once in 40,000 times
    assert_share(boxes, draws, 0.6 * 0.3)
    assert_share(unmixed, draws, 0.4)
    assert mixing.draw(random, (100, 100), 0, 0) == Mix()


def test_the_share_and_the_place_of_manifold_mixup(seed):
    """Beta at places that are equally probable, of the share of the batches that is asked for."""
    random, draws = np.random.default_rng(seed), 4000
    drawn = [mixing.draw_manifold(random, 2.0, 3, 0.8) for _ in range(draws)]
    chosen = [mix for mix in drawn if mix != Mix()]
    assert_share(len(chosen), draws, 0.8)
    assert_distribution([mix.share for mix in chosen], "beta", 2.0, 2.0)
    for place in range(3):
        assert_share(sum(mix.place == place for mix in chosen), len(chosen), 1 / 3)


def test_a_mix_within_the_network_leaves_the_images():
    images, targets = batch()
    actual, labels = mixed(Mix(0.75, place=2), images, targets)
    np.testing.assert_array_equal(actual, images)
    np.testing.assert_array_equal(labels, 0.75 * targets + 0.25 * swapped(targets))
    vector = Mix(0.75, place=2).vector()
    assert [float(mixing.share_at(vector, place)) for place in (1, 2, 3)] == [1.0, 0.75, 1.0]


def test_no_mix_changes_nothing():
    images, targets = batch()
    for actual, expected in zip(mixed(Mix(), images, targets), (images, targets), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_mixup_mixes_neighbours():
    images, targets = batch()
    actual, labels = mixed(Mix(0.75), images, targets)
    np.testing.assert_allclose(actual, 0.75 * images + 0.25 * swapped(images), rtol=1e-6)
    np.testing.assert_array_equal(labels, 0.75 * targets + 0.25 * swapped(targets))


def test_cutmix_pastes_the_neighbours_box():
    images, targets = batch()
    expected = images.copy()
    expected[:, 1:3, 4:7] = swapped(images)[:, 1:3, 4:7]
    share = 1 - 2 * 3 / 48
    actual, labels = mixed(Mix(share, 1, 4, 3, 7), images, targets)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_allclose(labels, share * targets + (1 - share) * swapped(targets), rtol=1e-6)


def test_even_parts_of_a_batch_are_mixed_as_the_whole():
    """However many workers share it."""
    images, targets = batch(8)
    for mix in (Mix(0.3), Mix(0.5, 0, 0, 6, 4)):
        whole, _ = mixed(mix, images, targets)
        parts = [mixed(mix, images[i : i + 4], targets[i : i + 4])[0] for i in (0, 4)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_step_is_compiled_once_and_keeps_types_and_shapes():
    import tensorflow as tf

    traces = []

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 6, 8, 3), "float16"),
            tf.TensorSpec((None, 4), "float32"),
            tf.TensorSpec((7,), "float32"),
        ]
    )
    def step(images, targets, vector):
        traces.append(vector)
        return mixing.apply(images, targets, vector)

    images, targets = batch()
    images = images.astype(np.float16)
    for mix in (Mix(), Mix(0.25), Mix(0.5, 0, 0, 6, 4)):
        actual, labels = step(images, targets, mix.vector())
        expected, wanted = mixed(mix, images, targets)
        assert actual.dtype == "float16" and labels.dtype == "float32"
        np.testing.assert_array_equal(actual, expected)
        np.testing.assert_array_equal(labels, wanted)
    assert len(traces) == 1


@pytest.mark.parametrize("shape", [(4, 5), (6, 3, 2, 2)])
def test_features_are_mixed_by_the_same_rule(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    actual = ops.convert_to_numpy(mixing.mix_features(ops.convert_to_tensor(x), 0.25))
    np.testing.assert_allclose(actual, 0.25 * x + 0.75 * swapped(x), rtol=1e-5, atol=1e-6)
