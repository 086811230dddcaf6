"""Augmentation on the host, against torchvision and timm (goldens of make_augment_goldens.py).

A test of what is random draws some thousand times and asks for the probability of what it found, if
the distribution were the right one. Below FALSE_ALARM it fails. There are some 300 such questions,
and a night draws anew: one of them fails for nothing in about 3,000 nights.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from kapps import InputError
from kapps.tools import augment, augment_policies

FALSE_ALARM = 1e-6
GOLDENS = Path(__file__).parent / "goldens"
TORCHVISION = dict(np.load(GOLDENS / "augment.npz"))
TIMM = dict(np.load(GOLDENS / "augment_timm.npz"))
FILL = (124, 116, 104)  # as in make_augment_goldens.py
SIZE = (224, 160)
RESAMPLES = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SPACES = {
    "rand": augment_policies._STANDARD,
    "auto": augment_policies._AUTO,
    "wide": augment_policies._WIDE,
    "increasing": augment_policies._INCREASING,
}

sides = st.integers(1, 300)
seeds = st.integers(0, 2**32 - 1)


def ours(name: str) -> str:
    """Our name of a peer's operation: ShearX is shear_x, and ColorIncreasing color."""
    name = name.removesuffix("Increasing").removesuffix("Rel").replace("AutoC", "Autoc")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def photo() -> Image.Image:
    return Image.fromarray(TORCHVISION["image"])


def keys(goldens: dict[str, np.ndarray], kind: str) -> list[str]:
    return [key for key in goldens if key.startswith(f"{kind} ")]


def assert_share(hits: int, draws: int, probability: float) -> None:
    """Hits are binomial."""
    assert stats.binomtest(int(hits), draws, probability).pvalue > FALSE_ALARM, (hits, draws)


def assert_uniform(sample, low: float, high: float) -> None:
    """By Kolmogorov and Smirnov."""
    found = stats.kstest(np.asarray(sample), "uniform", (low, high - low))
    assert found.pvalue > FALSE_ALARM, found


def assert_even(counts: Counter, kinds: int) -> None:
    """All kinds are equally probable, by a chi-squared test."""
    assert len(counts) == kinds
    assert stats.chisquare(list(counts.values())).pvalue > FALSE_ALARM, counts


def assert_same_image(actual: Image.Image, expected: np.ndarray) -> None:
    """Both are Pillow's, and on average less than a twentieth of a gray level apart.

    Measured with Pillow 11.0 and 13.0: 0, in all 111 cases. Another Pillow may round single pixels
    the other way; a pixel of shift moves this image by 29 levels, a bit of posterization by 0.49.
    """
    apart = np.abs(np.asarray(actual).astype(int) - expected)
    assert apart.mean() <= 0.05, apart.mean()


@pytest.mark.parametrize("key", keys(TORCHVISION, "apply"))
def test_operations_are_those_of_torchvision(key):
    _, name, magnitude = key.split()
    changed = augment.apply(ours(name), photo(), float(magnitude), FILL)
    assert_same_image(changed, TORCHVISION[key])


@pytest.mark.parametrize("key", keys(TIMM, "apply"))
def test_operations_are_those_of_timm_at_level_7(key):
    _, name, sign, word = key.split()
    argument = TIMM[f"level {name} {sign}"][14]  # levels by halves
    if name.startswith(("Color", "Contrast", "Brightness", "Sharpness")):
        argument -= 1
    elif name == "TranslateXRel":  # of the width; timm's positive numbers go to the left
        argument *= -photo().width
    elif name == "TranslateYRel":
        argument *= -photo().height
    changed = augment.apply(ours(name), photo(), argument, FILL, RESAMPLES[word])
    assert_same_image(changed, TIMM[key])


def test_every_operation_has_a_golden():
    tested = {ours(key.split()[1]) for key in keys(TORCHVISION, "apply") + keys(TIMM, "apply")}
    assert tested == set(augment.OPERATIONS)


def test_posterizing_to_no_bit_is_black():
    """timm at level 10; Pillow's own function refuses it since version 13."""
    assert not np.asarray(augment.apply("posterize", photo(), 0)).any()


def test_unknown_names_are_named(seed):
    random = np.random.default_rng(seed)
    with pytest.raises(InputError, match="unknown operation 'sheer_x'; did you mean shear_x"):
        augment.apply("sheer_x", photo())
    with pytest.raises(InputError, match="unknown policy 'cifar'; did you mean cifar10"):
        augment.auto_augment(photo(), random, "cifar")
    with pytest.raises(InputError, match="magnitude must lie in 0..10 with increasing=True, not 1"):
        augment.rand_augment(photo(), random, magnitude=11, increasing=True)


@pytest.mark.parametrize("key", keys(TORCHVISION, "level"))
def test_levels_are_those_of_torchvision(key):
    _, kind, name, signed = key.split()
    space, name = SPACES[kind], ours(name)
    assert space.operations[name][2] == (signed == "True")
    expected = np.broadcast_to(TORCHVISION[key], space.highest + 1)
    random = np.random.default_rng(0)
    found = [space.step(random, name, level, SIZE).magnitude for level in range(space.highest + 1)]
    # torchvision computes in single precision
    np.testing.assert_allclose(np.abs(found), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["rand", "wide"])
def test_no_operation_more_than_torchvision(kind):
    known = {ours(key.split()[2]) for key in keys(TORCHVISION, f"level {kind}")}
    assert set(SPACES[kind].operations) == known


@pytest.mark.parametrize("key", keys(TIMM, "level"))
def test_levels_are_those_of_timm(key):
    _, name, sign = key.split()
    expected, space = TIMM[key], SPACES["increasing"]
    name, sign = ours(name), int(sign)
    if name in ("color", "contrast", "brightness", "sharpness"):
        expected = expected - 1
    elif name.startswith("translate"):
        expected = expected * SIZE[name == "translate_y"]
    random, found = np.random.default_rng(0), []
    for level in np.arange(0, 10.5, 0.5):
        magnitude = space.step(random, name, level, SIZE).magnitude
        # Values are whole: what is below 243.2 is below 244, and 5.5 more are 5 more.
        magnitude = {"solarize": np.ceil, "solarize_add": np.floor}.get(name, abs)(magnitude)
        found.append(magnitude * (sign if space.operations[name][2] else 1))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_no_operation_more_than_timm():
    known = {ours(key.split()[1]) for key in keys(TIMM, "level")}
    assert set(SPACES["increasing"].operations) == known | {"autocontrast", "equalize", "invert"}


@pytest.mark.parametrize("policy", augment_policies.POLICIES)
def test_policies_are_those_of_torchvision(policy):
    def plain(row):
        """What takes no magnitude has one in the paper, and None in torchvision."""
        for name, probability, level in (row[:3], row[3:]):
            needless = ours(name) in ("autocontrast", "equalize", "invert")
            yield ours(name), float(probability), None if needless else int(level)

    expected = [list(plain(row)) for row in TORCHVISION[f"policy {policy}"]]
    assert [list(plain(row)) for row in augment_policies._POLICIES[policy]] == expected


def directions(steps) -> dict[str, Counter]:
    """How often an operation has each sign, by operation."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for step in steps:
        counts[step.operation][np.sign(step.magnitude)] += 1
    return counts


@pytest.mark.parametrize("increasing", [False, True])
def test_rand_augment_draws_each_operation_alike_and_both_directions(increasing, seed):
    random = np.random.default_rng(seed)
    space, draws = SPACES["increasing" if increasing else "rand"], 3000
    steps = [
        step
        for _ in range(draws)
        for step in augment_policies.rand_augment_steps(random, SIZE, 2, 7, increasing=increasing)
    ]
    assert len(steps) == 2 * draws
    assert_even(Counter(step.operation for step in steps), len(space.operations))
    for name, signs in directions(steps).items():
        if space.operations[name][2]:
            assert_share(signs[1], signs.total(), 0.5)
    if not increasing:
        assert {step.resample for step in steps} == {Image.Resampling.NEAREST}
    else:
        resamples = Counter(step.resample for step in steps)
        assert set(resamples) == set(RESAMPLES.values())
        assert_share(resamples[Image.Resampling.BICUBIC], len(steps), 0.5)


def test_rand_augment_applies_operations_with_their_probability_and_spread(seed):
    """rand-m7-mstd0.5-inc1 of timm."""
    random, draws = np.random.default_rng(seed), 5000
    drawn = [
        augment_policies.rand_augment_steps(random, SIZE, 2, 7, 0.5, 0.5, increasing=True)
        for _ in range(draws)
    ]
    counts = Counter(map(len, drawn))
    for number, probability in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert_share(counts[number], draws, probability)
    of_level = {"rotate": 3, "shear_x": 0.03, "shear_y": 0.03, "color": 0.09, "contrast": 0.09}
    levels = [
        abs(step.magnitude) / of_level[step.operation]
        for steps in drawn
        for step in steps
        if step.operation in of_level
    ]
    assert stats.kstest(levels, "norm", (7, 0.5)).pvalue > FALSE_ALARM


def test_rand_augment_cuts_magnitudes_to_their_range(seed):
    random = np.random.default_rng(seed)
    steps = [
        step
        for _ in range(500)
        for step in augment_policies.rand_augment_steps(random, SIZE, 2, 9.5, 1, increasing=True)
    ]
    turned = [abs(step.magnitude) for step in steps if step.operation == "rotate"]
    assert max(turned) == 30 and min(turned) < 30


def test_trivial_augment_draws_each_operation_and_level_alike(seed):
    random, draws = np.random.default_rng(seed), 15000
    steps = [augment_policies.trivial_augment_wide_step(random, SIZE) for _ in range(draws)]
    assert_even(Counter(step.operation for step in steps), 14)
    turned = [step for step in steps if step.operation == "rotate"]
    assert_even(Counter(round(abs(step.magnitude) / 4.5) for step in turned), 31)
    signs = directions(turned)["rotate"]
    assert_share(signs[1], signs[1] + signs[-1], 0.5)


@pytest.mark.parametrize("policy", augment_policies.POLICIES)
def test_auto_augment_draws_pairs_alike_and_operations_with_their_probability(
    policy, seed, monkeypatch
):
    """The 25 pairs get operations of their own, so that one can tell which was drawn."""
    rows = augment_policies._POLICIES[policy]
    marked = tuple((f"{i}a", row[1], 0, f"{i}b", row[4], 0) for i, row in enumerate(rows))
    monkeypatch.setitem(augment_policies._POLICIES, policy, marked)
    drawn = []
    monkeypatch.setattr(
        augment_policies._Space, "step", lambda self, random, name, *rest: drawn.append(name)
    )
    random, draws = np.random.default_rng(seed), 25 * 200
    for _ in range(draws):
        augment_policies.auto_augment_steps(random, SIZE, policy)
    counts = Counter(drawn)
    for i, row in enumerate(rows):
        assert_share(counts[f"{i}a"], draws, row[1] / 25)
        assert_share(counts[f"{i}b"], draws, row[4] / 25)


def test_auto_augment_goes_both_ways(seed):
    random = np.random.default_rng(seed)
    steps = [
        step
        for _ in range(3000)
        for step in augment_policies.auto_augment_steps(random, SIZE, "imagenet")
    ]
    signs = directions(steps)["rotate"]
    assert_share(signs[1], signs.total(), 0.5)
    turned = {round(abs(step.magnitude), 6) for step in steps if step.operation == "rotate"}
    assert turned == {10.0, 26.666667, 30.0}  # levels 3, 8 and 9 of 9


POLICY_FUNCTIONS = {
    "auto": (
        lambda image, random: augment.auto_augment(image, random, "svhn", FILL),
        lambda random, size: augment_policies.auto_augment_steps(random, size, "svhn"),
    ),
    "rand": (
        lambda image, random: augment.rand_augment(image, random, 3, 20.0, fill=FILL),
        lambda random, size: augment_policies.rand_augment_steps(random, size, 3, 20.0),
    ),
    "increasing": (
        lambda image, random: augment.rand_augment(image, random, 2, 7, 0.5, 0.9, True, FILL),
        lambda random, size: augment_policies.rand_augment_steps(
            random, size, 2, 7, 0.5, 0.9, True
        ),
    ),
    "trivial": (
        lambda image, random: augment.trivial_augment_wide(image, random, FILL),
        lambda random, size: [augment_policies.trivial_augment_wide_step(random, size)],
    ),
}


@pytest.mark.parametrize("name", POLICY_FUNCTIONS)
def test_all_steps_are_applied_in_their_order(name):
    function, steps = POLICY_FUNCTIONS[name]
    for seed in range(30):
        expected = photo()
        for step in steps(np.random.default_rng(seed), expected.size):
            expected = augment.apply(step.operation, expected, step.magnitude, FILL, step.resample)
        found = function(photo(), np.random.default_rng(seed))
        assert found.tobytes() == expected.tobytes()


CHANGES = {
    **{name: functions[0] for name, functions in POLICY_FUNCTIONS.items()},
    "jitter": lambda image, random: augment.color_jitter(image, random, 0.4, 0.4, 0.4, 0.1),
    "lighting": lambda image, random: augment.lighting(image, random),
    "flip": lambda image, random: augment.flip(image, random),
    "shift": lambda image, random: augment.pad_shift(image, random, fill=FILL),
}


@pytest.mark.parametrize("name", CHANGES)
@given(width=sides, height=sides, seed=seeds)
def test_images_of_any_size_keep_it_and_depend_on_the_generator_alone(name, width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels)
    first, second = (CHANGES[name](image, np.random.default_rng(seed)) for _ in range(2))
    assert first.size == (width, height) and first.mode == "RGB"
    assert first.tobytes() == second.tobytes()
    assert np.array_equal(np.asarray(image), pixels)


@given(width=sides, height=sides, seed=seeds, area=st.floats(0.01, 1), ratio=st.floats(0.1, 1))
def test_a_crop_lies_within_the_image(width, height, seed, area, ratio):
    random = np.random.default_rng(seed)
    left, top, w, h = augment.crop_box(random, width, height, (area, 1), (ratio, 1 / ratio))
    assert 0 <= left < left + w <= width and 0 <= top < top + h <= height
    assert all(type(x) is int for x in (left, top, w, h))


def test_crops_are_uniform_in_area_and_in_the_logarithm_of_the_aspect(seed):
    """In an image so large that all fit and rounding to pixels moves neither by a thousandth."""
    random, (width, height), draws = np.random.default_rng(seed), (4000, 3000), 4000
    boxes = [augment.crop_box(random, width, height, (0.08, 0.5)) for _ in range(draws)]
    left, top, w, h = np.array(boxes, float).T
    assert_uniform(w * h / (width * height), 0.08, 0.5)
    assert_uniform(np.log(w / h), np.log(3 / 4), np.log(4 / 3))
    assert_uniform(left / (width - w), 0, 1)
    assert_uniform(top / (height - h), 0, 1)


@pytest.mark.parametrize("key", keys(TORCHVISION, "crop"))
def test_crops_are_those_of_torchvision(key, seed):
    """One of the sizes is a strip, of which most attempts do not fit."""
    _, width, height = key.split()
    random = np.random.default_rng(seed)
    boxes = np.array([augment.crop_box(random, int(width), int(height)) for _ in range(6000)])
    for i in range(4):
        assert stats.ks_2samp(boxes[:, i], TORCHVISION[key][:, i]).pvalue > FALSE_ALARM
    area = [b[:, 2].astype(int) * b[:, 3] for b in (boxes, TORCHVISION[key])]
    assert stats.ks_2samp(*area).pvalue > FALSE_ALARM


def test_a_strip_gives_its_central_part_of_the_nearest_aspect():
    random = np.random.default_rng(0)
    assert augment.crop_box(random, 90, 3, (1, 1)) == (43, 0, 4, 3)
    assert augment.crop_box(random, 3, 90, (1, 1)) == (0, 43, 3, 4)
    assert augment.crop_box(random, 1, 1) == (0, 0, 1, 1)


@given(width=sides, height=sides, seed=seeds, size=st.integers(1, 64), more=st.integers(0, 64))
def test_scale_jitter_boxes_lie_within_the_image(width, height, seed, size, more):
    """By Pillow's own check."""
    random = np.random.default_rng(seed)
    left, top, w, h = augment.scale_jitter_box(random, width, height, size, size, size + more)
    image = Image.new("L", (width, height))
    assert image.resize((size, size), box=(left, top, left + w, top + h)).size == (size, size)


def test_scale_jitter_draws_every_scale_and_place_alike(seed):
    random, (width, height), draws = np.random.default_rng(seed), (200, 100), 6000
    boxes = [augment.scale_jitter_box(random, width, height, 32, 32, 63) for _ in range(draws)]
    _, _, w, h = np.array(boxes).T
    assert_even(Counter((32 * height / h).round().astype(int).tolist()), 32)
    np.testing.assert_allclose(w, h)  # this image keeps its aspect at every scale
    boxes = [augment.scale_jitter_box(random, width, height, 32, 63, 63) for _ in range(draws)]
    left, top, _, _ = (np.array(boxes) * 0.63).round(6).T
    assert_even(Counter(top.tolist()), 63 - 32 + 1)
    assert_even(Counter(left.tolist()), 126 - 32 + 1)


def test_scale_jitter_equals_resizing_and_then_cropping():
    """Inside, where the antialiasing of the one does not end at the crop's edge."""
    y, x = np.mgrid[:90, :120]
    image = Image.fromarray((x + y).astype(np.uint8))
    left, top, w, h = augment.scale_jitter_box(np.random.default_rng(0), 120, 90, 32, 60, 60)
    at_once = image.resize((32, 32), Image.Resampling.BILINEAR, (left, top, left + w, top + h))
    x, y = round(left * 80 / 120), round(top * 60 / 90)
    resized = image.resize((80, 60), Image.Resampling.BILINEAR)
    in_two = resized.crop((x, y, x + 32, y + 32))
    apart = np.abs(np.asarray(at_once).astype(int) - np.asarray(in_two))[2:-2, 2:-2]
    assert apart.max() <= 1  # a rounding


def test_scale_jitter_names_a_square_that_does_not_fit():
    with pytest.raises(InputError, match="drawn from 200..256, and must hold a square of 224"):
        augment.scale_jitter_box(np.random.default_rng(0), 640, 480, 224, 200, 256)


def test_half_of_the_images_are_mirrored(seed):
    random, image = np.random.default_rng(seed), photo()
    mirrored = TORCHVISION["image"][:, ::-1].tobytes()
    found = Counter(augment.flip(image, random).tobytes() == mirrored for _ in range(2000))
    assert_share(found[True], 2000, 0.5)
    assert augment.flip(image, random, 1).tobytes() == mirrored


def test_a_shift_is_a_window_of_the_padded_image(seed):
    pixels, pad = TORCHVISION["image"], 4
    height, width = pixels.shape[:2]
    padded = np.full((height + 2 * pad, width + 2 * pad, 3), FILL, np.uint8)
    padded[pad:-pad, pad:-pad] = pixels
    windows = {
        padded[y : y + height, x : x + width].tobytes(): (x, y)
        for x in range(2 * pad + 1)
        for y in range(2 * pad + 1)
    }
    random = np.random.default_rng(seed)
    shifted = [augment.pad_shift(photo(), random, pad, FILL).tobytes() for _ in range(4000)]
    assert_even(Counter(windows[each] for each in shifted), 81)


def test_color_jitter_draws_uniform_factors_in_any_order(seed):
    random = np.random.default_rng(seed)
    drawn = [augment.color_jitter_steps(random, 0.4, 0.3, 1.5, 0.1) for _ in range(3000)]
    assert_even(Counter(tuple(step.operation for step in steps) for steps in drawn), 24)
    ranges = {
        "brightness": (-0.4, 0.4),
        "contrast": (-0.3, 0.3),
        "color": (-1, 1.5),  # a factor is not below 0
        "hue": (-0.1, 0.1),
    }
    for name, (low, high) in ranges.items():
        found = [step.magnitude for steps in drawn for step in steps if step.operation == name]
        assert_uniform(found, low, high)
    assert augment.color_jitter_steps(random, 0, 0, 0) == []


def test_lighting_has_the_covariance_of_imagenets_colors(seed):
    """The sum of its eigenvalues' squares, in 0..255, and their directions (Krizhevsky et al.)."""
    random = np.random.default_rng(seed)
    shifts = np.array([augment.lighting_shift(random, 0.1) for _ in range(5000)])
    directions = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    along = shifts @ directions  # the directions are orthonormal to four digits
    for values, eigenvalue in zip(along.T, (0.2175, 0.0188, 0.0045), strict=True):
        found = stats.kstest(values, "norm", (0, 255 * 0.1 * eigenvalue))
        assert found.pvalue > FALSE_ALARM, found


def test_lighting_adds_one_color_to_all_pixels():
    shift = augment.lighting_shift(np.random.default_rng(3), 0.5)
    assert abs(shift).max() > 5
    changed = np.asarray(augment.lighting(photo(), np.random.default_rng(3), 0.5))
    expected = (TORCHVISION["image"] + shift).round().clip(0, 255)
    np.testing.assert_array_equal(changed, expected)


MEAN, STD = (124.0, 116.0, 104.0), (58.0, 57.0, 57.5)


def gray(height: int, width: int) -> np.ndarray:
    array = np.full((height, width, 3), 255, np.uint8)
    array.flags.writeable = False  # as numpy.asarray of a PIL image
    return array


def test_a_share_of_the_images_is_erased(seed):
    random, array = np.random.default_rng(seed), gray(32, 32)
    found = [
        augment.random_erasing(array, random, 0.25, mean=MEAN, std=STD) is not array
        for _ in range(4000)
    ]
    assert_share(sum(found), len(found), 0.25)


def test_the_erased_part_has_a_uniform_area_and_log_uniform_aspect(seed):
    """In an image so large that all fit and rounding moves neither by a thousandth."""
    random, (width, height) = np.random.default_rng(seed), (4000, 4000)
    boxes = [
        augment.erasing_box(random, width, height, (0.02, 0.25), (0.4, 2.0)) for _ in range(4000)
    ]
    left, top, w, h = np.array(boxes, float).T
    assert_uniform(w * h / (width * height), 0.02, 0.25)
    assert_uniform(np.log(h / w), np.log(0.4), np.log(2.0))
    assert_uniform(left / (width - w), 0, 1)
    assert_uniform(top / (height - h), 0, 1)


@pytest.mark.parametrize("key", keys(TIMM, "erase"))
def test_erased_parts_are_those_of_timm(key, seed):
    _, width, height = key.split()
    random = np.random.default_rng(seed)
    boxes = [
        augment.erasing_box(random, int(width), int(height), aspect=(0.3, 1 / 0.3))
        for _ in range(6000)
    ]
    found = np.array([box for box in boxes if box])
    for i in range(4):
        assert stats.ks_2samp(found[:, i], TIMM[key][:, i]).pvalue > FALSE_ALARM


@given(width=sides, height=sides, seed=seeds)
def test_erasing_any_size_changes_one_rectangle(width, height, seed):
    array = gray(height, width)
    erased = augment.random_erasing(
        array, np.random.default_rng(seed), 1, fill="constant", mean=MEAN, std=STD
    )
    assert (array == 255).all() and erased.dtype == np.uint8
    rows, columns = np.nonzero((erased != 255).any(-1))
    if len(rows):
        inside = erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (inside == np.array(MEAN)).all()
        assert inside.shape[0] < height and inside.shape[1] < width


def test_erasing_fills_with_noise_of_the_data_set(seed):
    erased = augment.random_erasing(
        gray(200, 200), np.random.default_rng(seed), 1, (0.3, 0.33), (0.9, 1.1), mean=MEAN, std=STD
    )
    rows, columns = np.nonzero((erased != 255).all(-1))
    noise = erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        found = noise[..., channel].ravel()
        # What lies outside of 0..255 is cut, so single quantiles tell rather than moments.
        for quantile in (-1, 0, 1):
            below = (found < round(mean + quantile * std)).sum()
            limit = stats.norm.cdf(round(mean + quantile * std) - 0.5, mean, std)
            assert_share(below, found.size, limit)


def test_erasing_names_an_unknown_fill():
    with pytest.raises(InputError, match="unknown fill of random_erasing 'pixels'; did you mean"):
        augment.random_erasing(
            gray(8, 8), np.random.default_rng(0), fill="pixels", mean=MEAN, std=STD
        )


@given(width=sides, height=sides, seed=seeds, size=st.integers(1, 64))
def test_cutout_covers_the_part_of_its_square_that_lies_within(width, height, seed, size):
    box = augment.cutout_box(np.random.default_rng(seed), width, height, size)
    left, top, w, h = box
    assert 0 <= left < left + w <= width and 0 <= top < top + h <= height
    assert w <= size and h <= size
    covered = augment.cutout(gray(height, width), np.random.default_rng(seed), size, FILL)
    assert (covered[top : top + h, left : left + w] == FILL).all()
    assert (covered == 255).all(-1).sum() == width * height - w * h


def test_cutout_centers_on_every_pixel_alike(seed):
    """Of 32 x 32 pixels, 17 centres each way have a square of 16 wholly within the image."""
    random, draws = np.random.default_rng(seed), 8000
    left, top, w, h = np.array([augment.cutout_box(random, 32, 32, 16) for _ in range(draws)]).T
    assert_share((w == 16).sum(), draws, 17 / 32)
    assert_share(((w == 16) & (h == 16)).sum(), draws, (17 / 32) ** 2)
    # 8 pixels lie before the centre and 7 after it: 8 remain at the left edge, and 9 at the right.
    for start, extent in ((left, w), (top, h)):
        assert_share(((extent == 8) & (start == 0)).sum(), draws, 1 / 32)
    assert w.min() == h.min() == 8
