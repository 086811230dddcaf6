"""Maps as pictures: even colors, and no picture of one color that looks like an answer."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kapps import InputError
from kapps.explain import pictures

# With a hundredth of the values and more at the end: that is where the colors end.
RISING = np.append(np.linspace(0, 1, 256), np.ones(8)).astype("float32")[None]
SIGNED = np.append(np.linspace(-1, 1, 513), np.ones(8)).astype("float32")[None]


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of sRGB, the way back from what the module computes, by the same standards."""
    share = rgb.astype(float) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = linear @ np.transpose(to_xyz) / [0.95047, 1, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def test_colors_are_as_far_apart_as_the_numbers() -> None:
    """Every eighth of 256 colors is as far from the next, and lighter."""
    colors = lab(pictures.heatmap(RISING)[0, :256])
    steps = np.linalg.norm(colors[8:] - colors[:-8], axis=1)
    assert steps.max() / steps.min() < 1.3
    assert (np.diff(colors[::8, 0]) > 0).all()
    assert colors[0, 0] < 10
    assert colors[-1, 0] > 95


def test_a_signed_map_is_white_at_zero_and_as_dark_on_both_sides() -> None:
    colors = pictures.heatmap(SIGNED)[0, :513]
    light = lab(colors)[:, 0]
    assert light[256] > light.max() - 0.1
    assert np.abs(colors[256].astype(int) - colors[256].mean()).max() < 2
    assert abs(light[0] - light[-1]) < 1
    assert colors[-1][0] > colors[-1][2]  # red for the class
    assert colors[0][0] < colors[0][2]  # blue against it
    assert (np.diff(light[:257:16]) > 0).all()
    assert (np.diff(light[256::16]) < 0).all()


def test_a_method_of_signs_has_its_colors_also_without_any() -> None:
    heat = np.array([[0, 1]], "float32")
    nothing, most = pictures.heatmap(heat, signed=True)[0].astype(int)
    assert nothing.min() > 235
    assert most[0] > most[2]
    assert pictures.heatmap(heat)[0, 0].max() < 64
    np.testing.assert_array_equal(
        pictures.overlay(np.zeros((1, 2, 3)), heat, 1, signed=True)[0], [nothing, most]
    )


@given(
    arrays.arrays("float32", (4, 5), elements=st.floats(0, 1e6, width=32)),
    st.floats(1e-3, 1e3),
)
def test_the_unit_does_not_matter(heat: np.ndarray, factor: float) -> None:
    share = pictures.normalized(heat)
    assert share.min() >= 0
    assert share.max() <= 1
    if (heat > 1e-30).any():
        assert share.max() == 1
        # Percentiles lie between two values, whose rounding the factor changes.
        np.testing.assert_allclose(pictures.normalized(heat * factor), share, atol=1e-3)


def test_one_large_value_does_not_hide_the_rest() -> None:
    heat = np.ones((100, 100), "float32")
    heat[0, 0] = 1e6
    assert pictures.normalized(heat).min() == 1
    few = np.zeros((100, 100), "float32")
    few[3, 4] = 7
    assert pictures.normalized(few)[3, 4] == 1


@pytest.mark.parametrize("size", [(14, 21), (7, 224), (32, 5)])
def test_resizing_is_that_of_pillow(size: tuple[int, int]) -> None:
    """Which reads more than two pixels where it shrinks: only larger sizes are compared."""
    heat = np.random.default_rng(0).random((7, 5), "float32")
    height, width = size
    theirs = Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(pictures.resized(heat, size), np.asarray(theirs), atol=1e-6)


def test_overlay_mixes_a_gray_image_and_the_colors() -> None:
    rng = np.random.default_rng(0)
    image, heat = rng.integers(0, 256, (8, 6, 3), np.uint8), rng.random((4, 3), "float32")
    gray = np.asarray(Image.fromarray(image).convert("L"), int)
    alone = pictures.overlay(image, heat, 0)
    assert np.abs(alone - gray[..., None]).max() <= 1
    np.testing.assert_array_equal(pictures.overlay(image, heat, 1), pictures.heatmap(heat, (8, 6)))
    half = pictures.overlay(image[..., :1], heat, 0.5).astype(int)
    wanted = (image[..., :1] + pictures.heatmap(heat, (8, 6)).astype(int)) / 2
    assert np.abs(half - wanted).max() <= 0.5
    assert half.shape == (8, 6, 3)


@pytest.mark.parametrize(
    ("heat", "message"),
    [
        (np.zeros((3, 4)), "the map is zero everywhere"),
        (np.full((3, 4), np.nan), "not finite"),
        (np.ones((1, 3, 4)), r"a map is \(height, width\), not \(1, 3, 4\)"),
        (np.ones((0, 4)), r"not \(0, 4\)"),
    ],
)
def test_no_picture_of_nothing(heat: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pictures.heatmap(heat)
    with pytest.raises(InputError, match=message):
        pictures.overlay(np.zeros((6, 8, 3)), heat)


def test_what_is_no_image_and_no_share() -> None:
    heat = np.ones((2, 2))
    with pytest.raises(InputError, match=r"overlay: an image is .*, not \(2, 2\)"):
        pictures.overlay(heat, heat)
    with pytest.raises(InputError, match=r"overlay: alpha must be 0 to 1, not 2"):
        pictures.overlay(np.ones((2, 2, 3)), heat, 2)
