"""Feature squeezing: the squeezers against SciPy's and sums by hand, the scores, the threshold."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

import kapps
from kapps.explain import feature_squeezing, pgd, squeezing, squeezing_threshold

pytestmark = pytest.mark.few

CLASSES, SIDE = 3, 12


def net(scale: float = 1 / 255, units: int = CLASSES, activation: str = "softmax") -> keras.Model:
    """Of another house: nested, with its own rescaling, and smooth; the same on every backend."""
    image = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Conv2D(6, 3, 2, activation="silu")(keras.layers.Rescaling(scale)(image))
    body = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x), name="body")
    head = keras.layers.Dense(units, activation)
    outer = keras.Input((SIDE, SIDE, 3))
    model = keras.Model(outer, head(body(outer)))
    random = np.random.default_rng(0)
    kernels = [random.normal(size=weight.shape) for weight in model.get_weights()]
    kernels[0] /= np.sqrt(27)  # of its fan-in
    kernels[2] *= 2
    model.set_weights([kernel if kernel.ndim > 1 else 0 * kernel for kernel in kernels])
    return model


def images(count: int = 5, high: float = 255.0) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, high, (count, SIDE, SIDE, 3)).astype("float32")


@given(side=st.integers(2, 5), shape=st.tuples(*(st.integers(5, 9),) * 2), seed=st.integers(0, 99))
def test_the_median_is_that_of_scipy(side: int, shape: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, *shape, 3)).astype("float32")
    wanted = ndimage.median_filter(pixels, (1, side, side, 1), mode="reflect")
    np.testing.assert_array_equal(squeezing._median(pixels, side), wanted)


@given(bits=st.integers(1, 8), low=st.sampled_from([0.0, -1.0]), seed=st.integers(0, 99))
def test_few_bits_are_the_nearest_of_few_numbers(bits: int, low: float, seed: int) -> None:
    pixels = np.random.default_rng(seed).uniform(low, 1, (1, 4, 4, 3)).astype("float32")
    numbers = np.linspace(low, 1, 2**bits)
    nearest = numbers[np.abs(pixels[..., None] - numbers).argmin(-1)]
    np.testing.assert_allclose(squeezing._reduced(pixels, bits, low, 1.0), nearest, atol=1e-6)


def test_gray_levels_survive_eight_bits() -> None:
    pixels = np.arange(256, dtype="float32").reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(squeezing._reduced(pixels, 8, 0.0, 255.0), pixels)
    assert set(squeezing._reduced(pixels, 1, 0.0, 255.0).ravel()) == {0.0, 255.0}


def test_the_score_is_the_largest_distance_of_the_models_own_answers() -> None:
    model, pixels = net(), images()
    clean = model.predict(pixels, verbose=0)
    apart = [
        np.abs(model.predict(squeezed, verbose=0) - clean).sum(-1)
        for squeezed in (
            np.round(pixels / 255 * 7) / 7 * 255,
            ndimage.median_filter(pixels, (1, 3, 3, 1), mode="reflect"),
        )
    ]
    found = feature_squeezing(model, pixels, bits=3, median=3)
    assert found.dtype == np.float32 and found.shape == (5,)
    np.testing.assert_allclose(found, np.max(apart, axis=0), atol=1e-5)
    for options, wanted in (({"median": None}, apart[0]), ({"bits": None}, apart[1])):
        one = feature_squeezing(model, pixels, **{"bits": 3, "median": 3, **options})
        np.testing.assert_allclose(one, wanted, atol=1e-5)
    assert min(apart[0].max(), apart[1].max()) > 1e-3  # neither is nothing


def test_other_ranges_and_a_single_unit() -> None:
    """The same net for 0..1, and one sigmoid in place of two classes."""
    model, pixels = net(), images()
    unit = net(scale=1.0)
    unit.set_weights(model.get_weights())
    ours = feature_squeezing(model, pixels)
    np.testing.assert_allclose(
        feature_squeezing(unit, pixels / 255, bounds=(0, 1)), ours, atol=1e-4
    )
    with pytest.raises(kapps.InputError, match=r"range of its images; give it, as in bounds=\(0"):
        feature_squeezing(unit, pixels / 255)
    single = net(units=1, activation="sigmoid")
    clean, squeezed = (
        single.predict(x, verbose=0)[:, 0]
        for x in (pixels, ndimage.median_filter(pixels, (1, 2, 2, 1), mode="reflect"))
    )
    found = feature_squeezing(single, pixels, bits=None)
    np.testing.assert_allclose(found, 2 * np.abs(clean - squeezed), atol=1e-5)


@pytest.mark.parametrize(("count", "rate", "above"), [(20, 0.05, 1), (9, 0.0, 0), (50, 0.58, 29)])
def test_the_threshold_flags_so_many_clean_images(count: int, rate: float, above: int) -> None:
    model, pixels = net(), images(count)
    threshold = squeezing_threshold(model, pixels, rate=rate, bits=3)
    scores = feature_squeezing(model, pixels, bits=3)
    assert (scores > threshold).sum() == above
    assert threshold in scores.tolist()


def test_what_is_attacked_scores_higher() -> None:
    """Flat images, which squeezing leaves alone; what PGD adds to them is of high frequency."""
    model = net()
    levels = np.random.default_rng(1).uniform(20, 235, (40, 1, 1, 3)).astype("float32")
    clean = np.broadcast_to(levels, (40, SIDE, SIDE, 3)).copy()
    labels = model.predict(clean, verbose=0).argmax(-1)
    attacked = pgd(model, clean, labels, eps=16, step=4, iterations=10)
    threshold = squeezing_threshold(model, clean[:20])
    flagged = [feature_squeezing(model, each) > threshold for each in (clean[20:], attacked[20:])]
    assert flagged[0].mean() <= 0.2 and flagged[1].mean() >= 0.6, flagged


def test_what_cannot_be_squeezed_is_told() -> None:
    model, pixels = net(), images()
    for options, message in (
        ({"bits": 0}, "bits must be a whole number, 1 or more, not 0"),
        ({"bits": 9}, "bits must be 1 to 8, not 9"),
        ({"bits": 2.0}, "bits must be a whole number"),
        ({"median": 1}, "median must be 2 to 12 pixels, not 1"),
        ({"median": 13}, "median must be 2 to 12 pixels, not 13"),
        ({"bits": None, "median": None}, "nothing to squeeze by; give bits or median"),
    ):
        with pytest.raises(kapps.InputError, match=f"feature_squeezing: .*{message}"):
            feature_squeezing(model, pixels, **options)
    for rate in (-0.1, 1.0, "0.05", float("nan")):
        with pytest.raises(kapps.InputError, match="rate must be at least 0 and below 1"):
            squeezing_threshold(model, pixels, rate=rate)
    with pytest.raises(kapps.InputError, match="less than one of 5 images; give at least 20"):
        squeezing_threshold(model, pixels)
    with pytest.raises(kapps.InputError, match="multiply them by 255"):
        feature_squeezing(model, pixels / 255)
