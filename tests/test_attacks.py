"""The attacks: their budgets, what they do to a class, and foolbox's images."""

from __future__ import annotations

import attack_goldens as goldens
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import kapps
from kapps._errors import InputError
from kapps.explain import apply_patch, fgsm, patch, penalized, pgd, proxy, transfer, universal


def colours(scale=1 / 255, end="softmax", pooled=True):
    """A net that tells which colour there is most of; its weights are set by hand."""
    units = 1 if end == "sigmoid" else 3
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Rescaling(scale),
            layers.Conv2D(3, 1, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(units, activation=end),
        ]
    )
    kernel = np.eye(3) if units == 3 else np.array([[-1.0], [1.0], [0.0]])
    model.layers[1].set_weights([np.eye(3).reshape(1, 1, 3, 3), np.full(3, 0.01)])
    model.layers[3].set_weights([20 * kernel, np.zeros(units)])
    return model


def pictures(count=6, dtype="float32"):
    """Noise around gray, with 10 gray levels more of one colour, and which one."""
    labels = np.arange(count) % 3
    images = np.random.default_rng(0).integers(60, 180, (count, 12, 12, 3)).astype("float64")
    images += 10 * np.eye(3)[labels][:, None, None]
    return images.astype(dtype), labels


def predicted(model, images):
    return model.predict(images.astype("float32"), verbose=0).argmax(-1)


@pytest.mark.few
def test_fgsm_moves_each_number_against_the_true_class():
    images, labels = pictures()
    attacked = fgsm(colours(), images, labels, eps=8)
    towards = np.where(np.eye(3)[labels][:, None, None] > 0, -8, 8)
    np.testing.assert_array_equal(attacked - images, np.broadcast_to(towards, images.shape))
    assert (predicted(colours(), attacked) != labels).all()


@pytest.mark.few
@pytest.mark.parametrize("norm, eps, step", [("linf", 8, 2), ("l2", 160, 40)])
def test_pgd_takes_the_class_and_gives_the_wanted_one(norm, eps, step):
    model, (images, labels) = colours(), pictures()
    options = {"eps": eps, "step": step, "iterations": 8, "norm": norm}
    assert (predicted(model, images) == labels).all()
    assert (predicted(model, pgd(model, images, labels, **options)) != labels).all()
    wanted = (labels + 1) % 3
    attacked = pgd(model, images, wanted, targeted=True, random_start=True, **options)
    assert (predicted(model, attacked) == wanted).all()


@settings(max_examples=20)
@given(
    eps=st.floats(0, 300),
    step=st.floats(0.01, 300),
    norm=st.sampled_from(["linf", "l2"]),
    dtype=st.sampled_from(["uint8", "float32", "float64"]),
    is_random=st.booleans(),
    targeted=st.booleans(),
)
def test_budget_range_and_dtype_are_kept(eps, step, norm, dtype, is_random, targeted):
    images, labels = pictures(3, dtype)
    images[0, :4], images[1, :4] = 0, 255  # where the range cuts the step
    if dtype == "uint8" and 0 < eps < 1:
        eps = 0.0
    attacked = pgd(
        _KEPT, images, labels, eps=eps, step=step, iterations=1, norm=norm,
        random_start=is_random, targeted=targeted,
    )  # fmt: skip
    assert attacked.dtype == images.dtype
    change = attacked.astype("float64") - images
    size = np.abs(change).max() if norm == "linf" else np.sqrt((change**2).sum((1, 2, 3))).max()
    assert size <= eps + 1e-4  # float32: a step of it at 255 is 1.5e-5
    assert attacked.min() >= 0 and attacked.max() <= 255


_KEPT = colours()


@pytest.mark.few
def test_what_a_model_ends_in_does_not_matter():
    images, labels = pictures()
    options = {"eps": 8, "step": 3, "iterations": 3, "norm": "l2"}
    soft, plain = (pgd(colours(end=end), images, labels, **options) for end in ("softmax", None))
    np.testing.assert_array_equal(soft, plain)
    one = colours(end="sigmoid")
    raised = fgsm(one, images, np.zeros(6, int), eps=4) - images
    np.testing.assert_array_equal(raised[..., 0], -4)
    np.testing.assert_array_equal(raised[..., 1], 4)


def test_budgets_are_gray_levels_whatever_the_range():
    images, labels = pictures()
    options = {"eps": 8, "step": 3, "iterations": 3, "random_start": True}
    levels = pgd(colours(), images, labels, **options)
    shares = pgd(colours(1.0), images / 255, labels, bounds=(0, 1), **options)
    np.testing.assert_allclose(shares * 255, levels, atol=1e-3)


def test_a_random_start_is_of_the_seed_and_the_image(monkeypatch):
    images, labels = pictures()
    options = {"eps": 8, "step": 1, "iterations": 2, "norm": "l2", "random_start": True}
    whole = pgd(colours(), images, labels, **options)
    monkeypatch.setattr("kapps.explain._classifier.BATCH", 2)
    np.testing.assert_allclose(pgd(colours(), images, labels, **options), whole, atol=1e-3)
    other = pgd(colours(), images, labels, seed=1, **options)
    assert np.abs(other - whole).max() > 0.1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_are_uniform_in_the_budget(norm):
    from keras import ops

    from kapps.explain import _perturbation

    images = np.zeros((4000, 1, 1, 2), "float32")
    noise = np.random.default_rng(0).standard_normal(_perturbation.noise_shape(images.shape))
    moved = _perturbation.start(images, 2.0, norm, ops.convert_to_tensor(noise.astype("float32")))
    moved = ops.convert_to_numpy(moved)
    sizes = np.abs(moved).max(-1) if norm == "linf" else np.linalg.norm(moved, axis=-1)
    # Of a square as of a disc, a quarter of the area is within half the size.
    assert sizes.max() <= 2 + 1e-5
    assert abs((sizes < 1).mean() - 0.25) < 0.03


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"eps": -1}, "eps must be a number of gray levels"),
        ({"eps": float("nan")}, "eps must be a number"),
        ({"step": 0}, "step must be .* above 0"),
        ({"iterations": 0}, "iterations must be a whole number above 0"),
        ({"labels": [3] * 6}, "labels has 3"),
        ({"labels": [0]}, "labels must be whole numbers"),
        ({"norm": "linfinity"}, "unknown norm for pgd 'linfinity'; did you mean linf"),
        ({"images": pictures()[0] + 100}, "beyond the range 0..255"),
        ({"images": pictures()[0] / 255}, "multiply them by 255"),
        ({"images": pictures(dtype="uint8")[0], "eps": 0.5}, "whole numbers"),
        ({"bounds": (1, 0)}, "bounds must be"),
    ],
)
def test_bad_input(changed, message):
    images, labels = pictures()
    good = {"images": images, "labels": labels, "eps": 4, "step": 1, "iterations": 2}
    with pytest.raises(InputError, match=message):
        pgd(colours(), **{**good, **changed})


def test_unknown_range_asks_for_bounds():
    images, labels = pictures()
    with pytest.raises(InputError, match="bounds="):
        fgsm(colours(1.0), images / 255, labels, eps=4)


@pytest.mark.few
def test_a_gradient_of_zero_is_an_error():
    images, labels = pictures()
    model = colours()
    model.layers[1].set_weights([np.eye(3).reshape(1, 1, 3, 3), np.full(3, -5.0)])  # dead
    with pytest.raises(InputError, match="zero everywhere for 6 of 6 images.*distillation"):
        fgsm(model, images, labels, eps=4)
    hard = colours()
    hard.layers[3].set_weights([np.eye(3) * 1e5, np.zeros(3)])  # a softmax that is exactly 1
    with pytest.raises(InputError, match="zero everywhere"):
        pgd(hard, images, labels, eps=4, step=1, iterations=2)
    assert pgd(hard, images, labels, eps=4, step=1, iterations=2, targeted=True).shape  # is there


# --- Against foolbox ---------------------------------------------------------------------------


def of_golden(model, photographs, name, count):
    """What an attack changes of the first photographs, and where it succeeds."""
    images, labels = photographs
    images, labels = images[:count].astype(model.input.dtype), labels[:count]
    options = dict(goldens.ATTACKS[name])
    if options["targeted"]:
        labels = (labels + goldens.WANTED) % 1000
    attacked = pgd(model, images, labels, **options)
    found = model.predict(attacked, verbose=0).argmax(-1)
    return attacked - images, found == labels if options["targeted"] else found != labels


@pytest.fixture
def double_lite0(lite0):
    """Lite0 in double precision: in single, rounding decides the sign of what is almost zero, and
    in 20 steps half of the pixels of two computations of the same come apart."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("batch norm of Keras has double precision on TensorFlow alone")
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    keras.config.set_dtype_policy("float64")
    keras.config.set_floatx("float64")  # of the input
    try:
        model = kapps.EfficientNetLite0()
        model.set_weights(lite0.get_weights())
        yield model
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_floatx(floatx)


@pytest.mark.few
def test_fgsm_makes_the_same_images_as_foolbox(lite0, photographs):
    stored = np.load(goldens.FILE)
    change, success = of_golden(lite0, photographs, "fgsm", goldens.KEPT)
    assert (np.abs(change - stored["fgsm-change"]) <= 1).mean() > 0.999
    np.testing.assert_array_equal(success, stored["fgsm-success"][: goldens.KEPT])


@pytest.mark.parametrize("name", ["linf", "linf-targeted"])
def test_pgd_makes_the_same_images_as_foolbox(double_lite0, photographs, name):
    stored = np.load(goldens.FILE)
    change, success = of_golden(double_lite0, photographs, name, goldens.KEPT)
    assert (np.abs(change - stored[f"{name}-change"]) <= 1).mean() > 0.999
    np.testing.assert_array_equal(success, stored[f"{name}-success"][: goldens.KEPT])


def test_pgd_makes_the_same_images_as_foolbox_by_the_euclidean_norm(double_lite0, photographs):
    stored = np.load(goldens.FILE)
    change, success = of_golden(double_lite0, photographs, "l2", goldens.KEPT)
    theirs = stored["l2-change"] * goldens.L2_UNIT
    assert np.abs(theirs).max() > 1
    found = change[:, : goldens.EDGE, : goldens.EDGE]
    np.testing.assert_allclose(found, theirs, atol=goldens.L2_UNIT)
    np.testing.assert_array_equal(success, stored["l2-success"][: goldens.KEPT])


@pytest.mark.nightly
@pytest.mark.parametrize("name", goldens.ATTACKS)
def test_the_same_success_as_foolbox(double_lite0, photographs, name):
    _, success = of_golden(double_lite0, photographs, name, 20)
    assert abs(success.mean() - np.load(goldens.FILE)[f"{name}-success"].mean()) <= 0.02


def test_pgd_takes_the_class_of_photographs(lite0, photographs):
    """Eps 4 of 255, 20 steps of 1: of all 20 pictures none is left (a nightly test)."""
    images, labels = photographs
    change, success = of_golden(lite0, photographs, "linf", 4)
    assert (lite0.predict(images[:4], verbose=0).argmax(-1) == labels[:4]).any()
    assert success.all() and np.abs(change).max() <= 4


# --- The others --------------------------------------------------------------------------------


@pytest.mark.few
def test_penalized_finds_the_least_noise():
    """Of this net it is known: to lose the class by 10 levels takes 5 of each of two colours."""
    images, labels = pictures()
    model = colours()
    for wanted, targeted in ((labels, False), ((labels + 1) % 3, True)):
        attacked = penalized(
            model, images, wanted, iterations=60, step=0.25, searches=5, targeted=targeted
        )
        means = images.mean((1, 2))
        own = means[np.arange(6), labels]
        other = np.sort(means, axis=1)[:, -2] if not targeted else means[np.arange(6), wanted]
        least = (own - other) / 2 * np.sqrt(2 * 144)
        norms = np.sqrt(((attacked - images) ** 2).sum((1, 2, 3)))
        found = predicted(model, attacked)
        assert (found == wanted).all() if targeted else (found != wanted).all()
        assert (norms >= 0.999 * least).all()
        assert (norms <= 1.15 * least).all()


def test_penalized_holds_for_whole_numbers_and_leaves_what_it_cannot_move():
    images, labels = pictures(3, "uint8")
    attacked = penalized(colours(), images, labels, iterations=30, searches=4)
    assert attacked.dtype == np.uint8
    assert (predicted(colours(), attacked) != labels).all()
    weak = penalized(colours(), images, labels, iterations=2, searches=1, step=0.01)
    np.testing.assert_array_equal(weak, images)


@pytest.mark.few
def test_universal_is_one_perturbation_in_the_budget():
    images, labels = pictures(12)
    model = colours()
    found = universal(model, images, 2, eps=16, step=4, epochs=6, targeted=True)
    assert found.rate == 1.0
    assert (predicted(model, found.apply(images)) == 2).all()
    assert np.abs(found.perturbation).max() <= 16 and found.perturbation.shape == (12, 12, 3)
    reds = images[labels == 0]
    away = universal(model, reds, 0, eps=300, step=100, epochs=6, norm="l2")
    assert away.rate == 1.0
    assert np.linalg.norm(away.perturbation) <= 300 + 1e-2


@pytest.mark.few
def test_patch_gives_its_class_wherever_it_lies():
    images, _ = pictures(6)
    model = colours()
    found = patch(model, images, 1, size=6, iterations=30, step=16, scales=(0.8, 1.2), rotation=20)
    assert found.rate == 1.0 and found.pixels.shape == (6, 6, 3)
    assert found.pixels[..., 1].mean() > 200 > 60 > found.pixels[..., 0].mean()
    assert (predicted(model, apply_patch(images, found, seed=5)) == 1).all()


def test_apply_patch_lies_where_it_is_told():
    images = pictures(2, "uint8")[0]
    square = np.arange(48.0).reshape(4, 4, 3)
    drawn = apply_patch(images, square, places=[(0, 0), (5, 8)])
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[0, :4, :4], square)
    np.testing.assert_array_equal(drawn[1, 5:9, 8:], square)
    np.testing.assert_array_equal(drawn[0, 4:], images[0, 4:])
    turned = apply_patch(images[:1], square, places=[(2, 2)], rotation=180, seed=1)
    assert not np.array_equal(turned[0, 2:6, 2:6], square)
    with pytest.raises(InputError, match="larger than the images"):
        apply_patch(images, square, scales=(1, 4))
    with pytest.raises(InputError, match="places must be"):
        apply_patch(images, square, places=[(0, 0)])


@pytest.mark.few
def test_a_proxy_learns_the_answers_and_its_attacks_transfer():
    victim = colours()
    images, labels = pictures(30)
    answer = lambda batch: victim.predict(batch, verbose=0)  # noqa: E731
    net = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Rescaling(1 / 20, offset=-6),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    net.layers[-1].set_weights([np.eye(3)[::-1], np.zeros(3)])  # wrong at first
    agreement = proxy(
        net, answer, images, epochs=12, batch_size=8, learning_rate=0.3, rounds=1, bounds=(0, 255)
    )
    assert agreement >= 0.9
    found = transfer(net, answer, images, labels, eps=8, step=2, iterations=6, bounds=(0, 255))
    assert found.images >= 27 and (found.eps, found.step, found.iterations) == (8, 2, 6)
    assert found.rate >= 0.9 and found.proxy_rate >= 0.9 and found.noise_rate <= 0.1
    with pytest.raises(InputError, match="no probabilities"):
        proxy(net, lambda batch: answer(batch) * 9, images, epochs=1, bounds=(0, 255))
    with pytest.raises(InputError, match=r"gives \(30, 2\), not \(30, 3\)"):
        proxy(net, lambda batch: answer(batch)[:, :2], images, epochs=1, bounds=(0, 255))
    wrong = (predicted(victim, images) + 1) % 3
    with pytest.raises(InputError, match="none of the images right"):
        transfer(net, answer, images, wrong, eps=8, step=2, iterations=6, bounds=(0, 255))
