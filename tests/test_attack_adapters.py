"""foolbox and the adversarial-robustness-toolbox on a model, and on a .tflite file."""

from __future__ import annotations

import gc
import sys

import keras
import numpy as np
import pytest
from keras import ops
from test_attacks import colours, pictures, predicted

from kapps._errors import InputError
from kapps.explain import art_blackbox, art_classifier, foolbox_model, pgd

pytestmark = [
    # What ART would like to have besides.
    pytest.mark.filterwarnings("ignore:PyTorch not found:UserWarning"),
    # foolbox imports from where SciPy once had it.
    pytest.mark.filterwarnings("ignore:Please import .* from the `scipy:DeprecationWarning"),
]


def evasion():
    return pytest.importorskip("art.attacks.evasion")


@pytest.mark.few
@pytest.mark.parametrize("norm, eps, step", [("linf", 6, 2), ("l2", 100, 30)])
def test_foolbox_makes_the_images_that_pgd_makes(norm, eps, step):
    import foolbox

    model, (images, labels) = colours(), pictures()
    kinds = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
    attack = kinds[norm](abs_stepsize=step, steps=4, random_start=False)
    tensors = map(ops.convert_to_tensor, (images, labels))
    _, theirs, success = attack(foolbox_model(model), *tensors, epsilons=eps)
    ours = pgd(model, images, labels, eps=eps, step=step, iterations=4, norm=norm)
    np.testing.assert_allclose(ours, ops.convert_to_numpy(theirs), atol=1e-3)
    np.testing.assert_array_equal(predicted(model, ours) != labels, ops.convert_to_numpy(success))


@pytest.mark.few
def test_other_attacks_of_foolbox_run():
    import foolbox

    model, (images, labels) = colours(), pictures()
    wrapped = foolbox_model(model)
    tensors = tuple(map(ops.convert_to_tensor, (images, labels)))
    assert wrapped.bounds == (0, 255)
    assert foolbox.accuracy(wrapped, *tensors) == 1
    fast = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    assert ops.convert_to_numpy(fast(wrapped, *tensors, epsilons=8)[2]).all()
    least = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=3, steps=20, stepsize=0.05, initial_const=100
    )
    assert ops.convert_to_numpy(least(wrapped, *tensors, epsilons=None)[2]).all()


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="ART has no gradients of JAX")
def test_attacks_of_art_run():
    attacks, (images, labels) = evasion(), pictures(3)
    classifier = art_classifier(colours())
    assert (classifier.predict(images).argmax(-1) == labels).all()
    auto = attacks.AutoProjectedGradientDescent(
        classifier, eps=8, eps_step=2, max_iter=4, nb_random_init=1, verbose=False,
        loss_type="difference_logits_ratio",
    )  # fmt: skip
    attacked = auto.generate(images, labels)
    assert np.abs(attacked - images).max() <= 8 + 1e-4
    assert (classifier.predict(attacked).argmax(-1) != labels).all()


def test_art_asks_a_model():
    attacks, (images, labels) = evasion(), pictures(3)
    classifier = art_classifier(colours())
    square = attacks.SquareAttack(classifier, eps=16, max_iter=50, verbose=False)
    assert np.abs(square.generate(images, labels) - images).max() <= 16 + 1e-4
    hop = attacks.HopSkipJump(classifier, max_iter=1, max_eval=20, init_eval=4, verbose=False)
    assert (classifier.predict(hop.generate(images)).argmax(-1) != labels).all()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    from kapps.tflite import convert

    if keras.backend.backend() != "tensorflow":
        pytest.skip("conversion takes TensorFlow")
    images, _ = pictures(12, "uint8")
    path = tmp_path_factory.mktemp("attacked") / "colours.tflite"
    convert(colours(), path, quantization="float32", verification=images)
    return path


def test_art_asks_a_file(file):
    attacks, (images, labels) = evasion(), pictures(3)
    classifier = art_blackbox(file)
    assert classifier.input_shape == (12, 12, 3) and classifier.nb_classes == 3
    answers = classifier.predict(images)
    np.testing.assert_allclose(answers, colours().predict(images, verbose=0), atol=1e-3)
    square = attacks.SquareAttack(classifier, eps=16, max_iter=20, verbose=False)
    assert np.abs(square.generate(images, labels) - images).max() <= 16 + 1e-4
    hop = attacks.HopSkipJump(classifier, max_iter=1, max_eval=10, init_eval=4, verbose=False)
    assert hop.generate(images[:1]).shape == (1, 12, 12, 3)


def test_the_process_of_a_file_ends_with_its_classifier(file, monkeypatch):
    from kapps.tflite import child

    started, popen = [], child.subprocess.Popen

    def seen(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(child.subprocess, "Popen", seen)
    classifier = art_blackbox(file)
    assert started[-1].poll() is None
    del classifier
    gc.collect()
    assert started[-1].poll() is not None


def test_a_damaged_file_is_an_error(file, tmp_path):
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(file.read_bytes()[:600])
    with pytest.raises(InputError, match="damaged.tflite"):
        art_blackbox(damaged)
    with pytest.raises(InputError, match="no such file|missing"):
        art_blackbox(tmp_path / "missing.tflite")


@pytest.mark.parametrize(
    "adapter, package", [(foolbox_model, "foolbox"), (art_classifier, "art.estimators")]
)
def test_a_package_that_is_missing_is_named(adapter, package, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'kapps\[attack\]'"):
        adapter(colours())


def test_an_image_of_any_size_is_refused_by_art():
    model = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    with pytest.raises(InputError, match="images of any size"):
        art_classifier(model)
