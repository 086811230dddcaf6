"""What attacks leave of the accuracy of .tflite files, and of the models that they came from."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import run_here

import kapps
from kapps import InputError
from kapps.explain import pgd
from kapps.tflite import Attack, Runner, convert, measure_robustness, square
from kapps.tflite.accuracy import opened
from kapps.tflite.attack_run import _left
from kapps.tflite.robustness import parse
from kapps.tools import data, runs
from kapps.tools.json_files import write_json
from kapps.tools.recipes import get_recipe

pytest_plugins = ["tflite_fixtures"]


@pytest.fixture(scope="module")
def files(net, digits, tmp_path_factory):
    """The small network in float32 and in int8."""
    folder = tmp_path_factory.mktemp("robustness")
    return [
        convert(
            net,
            folder / f"net_{quantization}.tflite",
            quantization=quantization,
            calibration=digits[0][0][:100],
            verification=digits[1][0][:50],
            labels=[str(i) for i in range(10)],
        ).path
        for quantization in ("float32", "int8")
    ]


@pytest.fixture(scope="module")
def held_out(digits):
    """60 images and their classes."""
    return digits[1][0][:60], digits[1][1][:60]


def _right(path, images, labels):
    return Runner(path).predict(images).argmax(axis=1) == labels


def _of(model, images, labels, attack):
    """A Keras model's, by its own gradients."""
    (found,) = measure_robustness([model], images, labels, attack)
    return found


def test_the_same_images_go_through_all_files(files, net, held_out):
    images, labels = held_out
    attack = Attack((12,), iterations=3, step=6.0, restarts=2, seed=7)
    found = measure_robustness([*files, net], images, labels, attack)
    made = [
        pgd(net, images, labels, eps=12, step=6.0, iterations=3, random_start=True, seed=seed)
        for seed in (7, 8)
    ]
    assert all(each.dtype == np.uint8 for each in made)
    assert max(np.abs(each.astype(int) - images).max() for each in made) == 12
    for path, robustness in zip(files, found[:2], strict=True):
        right = _right(path, images, labels)
        assert robustness.clean == right.mean() > 0.9
        for each in made:
            right &= _right(path, each, labels)
        (level,) = robustness.levels
        assert (level.eps, level.step, level.top1) == (12, 6.0, right.mean())
        assert 0.05 < level.top1 < 0.9  # so that it can differ
    assert found[2] == found[0]  # rounding aside, the model is its float32 file
    assert len({each.settings for each in found}) == 1
    assert (found[0].source, found[0].start) == ("small_net", "random")


def test_a_model_is_attacked_by_its_own_gradients(net, held_out):
    attack = Attack((40, 8), random_start=False, iterations=5)
    found = _of(net, *held_out, attack)
    assert [(each.eps, each.step) for each in found.levels] == [(8, 4.0), (40, 20.0)]
    assert found.clean > 0.9 > found.levels[0].top1 > found.levels[1].top1
    assert found.source_sha256 == kapps.tflite.weights_sha256(net)[0]
    assert found.attack == (
        "PGD, Linf, 5 iterations, start at the image, 1 restart, seed 0, gradients of small_net "
        f"({found.source_sha256[:8]}), 60 images"
    )
    assert f"; eps 8, step 4 {found.levels[0].top1:.4f}; eps 40" in found.line


def test_what_is_wrong_stays_wrong(net, held_out):
    """Of an image that is wrong as it is an attack could make one that is right."""
    images, labels = held_out
    wrong = (labels + 1) % 10
    found = _of(net, images, wrong, Attack((60,), iterations=5))
    assert found.levels[0].top1 <= found.clean < 0.1


def test_an_image_has_to_resist_every_restart():
    """The first is wrong as it is, and two fall, each to a restart of its own."""
    images, labels = np.zeros((4, 1, 1, 3), "uint8"), np.zeros(4, int)
    wrong = {0: [0], 1: [1, 0], 2: [2]}  # as they are, and after each restart

    def make(eps, restart):
        return np.full_like(images, restart + 1)

    def scores(batch):
        return np.eye(2)[np.isin(range(4), wrong[batch.max()]).astype(int)]

    attack = Attack((8,), restarts=2)
    (found,) = _left([scores], images, labels, attack, make, ("net", "0" * 64), lambda count: None)
    assert found.clean == 0.75
    assert found.levels[0].top1 == 0.25


def test_square_asks_the_file_alone(files, held_out, monkeypatch):
    pytest.importorskip("art")
    images, labels = held_out[0][:20], held_out[1][:20]
    asked = []

    class Watched:
        def __init__(self, path):
            self.opened = opened(path)

        def __enter__(self):
            scores = self.opened.__enter__()

            def watched(batch):
                asked.append(batch)
                return scores(batch)

            return watched

        def __exit__(self, *error):
            return self.opened.__exit__(*error)

    monkeypatch.setattr("kapps.tflite.accuracy.opened", Watched)
    attack = Attack((40,), "square", iterations=15)
    state = np.random.get_state()[1].copy()
    (found,) = measure_robustness(files[1:], images, labels, attack)
    assert (np.random.get_state()[1] == state).all()
    assert found.levels[0].top1 < found.clean
    assert found.source_sha256 == hashlib.sha256(files[1].read_bytes()).hexdigest()
    assert (found.start, found.levels[0].step) == ("stripes", None)
    # The attack itself asks once for each image, its stripes and each square; then two count.
    assert sum(map(len, asked)) <= (2 + 15) * 20 + 2 * 20
    originals = images.astype(int)
    whole = [batch for batch in asked if len(batch) == 20]
    assert all(batch.dtype == np.uint8 for batch in asked)
    assert max(np.abs(batch - originals).max() for batch in whole) == 40


def test_square_is_the_same_again(net, held_out):
    pytest.importorskip("art")
    images, labels = held_out[0][:20], held_out[1][:20]

    def found(seed):
        attack = Attack((30,), "square", iterations=10, restarts=2, seed=seed)
        return _of(net, images, labels, attack)

    assert found(1) == found(1)
    assert found(1).settings != found(2).settings
    assert found(1).attack.startswith("Square, Linf, 10 iterations of one query, start of stripes")


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), max_size=8))
def test_what_was_answered_is_not_asked_again(batches):
    asked = []

    def scores(images):
        asked.extend(images.ravel().tolist())
        return images.reshape(len(images), 1) * 10.0

    answer = square._asked_once(scores)
    for i, batch in enumerate(batches):
        del asked[:]
        images = np.array(batch, np.uint8).reshape(-1, 1, 1, 1)
        assert answer(images).ravel().tolist() == [10.0 * each for each in batch]
        assert not {*asked} & {each for before in batches[max(i - 3, 0) : i] for each in before}


def test_without_the_toolbox(net, held_out, monkeypatch):
    monkeypatch.setitem(sys.modules, "art.attacks.evasion", None)
    with pytest.raises(InputError, match=r"Square needs .* not installed .* 'kapps\[attack\]'"):
        _of(net, *held_out, Attack((4,), "square"))


def test_the_default_step_crosses_the_budget():
    attack = Attack((8, 4, 8))
    assert attack.eps == (4, 8)
    assert (attack.step_at(4), attack.step_at(8)) == (0.5, 1.0)
    assert Attack((8,), "square").iterations == 300


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eps": (0,)}, "whole gray levels, 1 to 255, because .* bytes, not 0"),
        ({"eps": (4, -1)}, "not 4, -1"),
        ({"eps": (1.5,)}, r"not 1\.5"),
        ({"eps": ()}, "not nothing"),
        ({"eps": (256,)}, "not 256"),
        ({"eps": tuple(range(1, 22))}, "21 eps are more than 20"),
        ({"method": "autoattack"}, "unknown attack 'autoattack'; known: pgd, square"),
        ({"step": 0}, "step must be gray levels"),
        ({"step": float("nan")}, "step must be gray levels"),
        ({"iterations": 0}, "iterations must be a whole number, 1 or more, not 0"),
        ({"restarts": True}, "restarts must be a whole number"),
        ({"seed": -1}, "seed must be a whole number, 0 or more"),
        ({"method": "square", "step": 1.0}, "belong to PGD"),
        ({"method": "square", "random_start": False}, "belong to PGD"),
        ({"restarts": 2, "random_start": False}, "do the same again"),
    ],
)
def test_no_such_attack(given, message):
    with pytest.raises(InputError, match=message):
        Attack(**({"eps": (4,)} | given))


def test_what_does_not_fit(files, net, held_out):
    images, labels = held_out
    attack = Attack((4,))

    def refused(message, *arguments, **options):
        with pytest.raises(InputError, match=message):
            measure_robustness(files[:1], *arguments, attack, **options)

    refused("expected images as bytes, uint8", images.astype("float32"), labels, model=net)
    refused("a class number for each of the 60 images", images, labels[:-1], model=net)
    refused("tflite takes images of 16x16x3, and these", images[:, :8], labels, model=net)
    refused("10 classes apart, and there is an image of class 10", images, labels + 1, model=net)
    for size, classes, message in (
        (32, 10, "LeNet5 takes images of 32x32x3, and these are of 16x16x3"),
        (16, 3, "LeNet5 tells 3 classes apart"),
    ):
        other = kapps.LeNet5(input_shape=(size, size, 3), classes=classes)
        with pytest.raises(InputError, match=message):
            _of(other, images, labels, attack)
    with pytest.raises(
        InputError, match=r"net_float32\.tflite has no gradients, which PGD follows"
    ):
        measure_robustness(files, images, labels, attack)
    with pytest.raises(InputError, match=r"no such file: absent\.tflite"):
        measure_robustness(["absent.tflite"], images, labels, attack, model=net)


def test_figures_come_back(net, held_out):
    found = _of(net, *held_out, Attack((4, 8), iterations=1))
    values = json.loads(json.dumps(asdict(found)))
    assert parse(values, "r.json") == found
    assert parse(None, "r.json") is None
    for field, value in [("method", ""), ("iterations", 0), ("clean", 2), ("levels", 3)]:
        with pytest.raises(InputError, match=rf"r\.json\.{field}: expected"):
            parse(values | {field: value}, "r.json")
    with pytest.raises(InputError, match="expected each eps and step once"):
        parse(values | {"levels": values["levels"][:1] * 2}, "r.json")
    with pytest.raises(InputError, match="expected each eps and step once"):
        parse(values | {"levels": []}, "r.json")
    extra = values["levels"][0] | {"x": 1}
    with pytest.raises(InputError, match=r"r\.json\.levels\.0\.x: unknown"):
        parse(values | {"levels": [extra]}, "r.json")


# The program.


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A run's folder as training leaves it; the weights are random."""
    folder = tmp_path_factory.mktemp("lenet")
    config = runs.TrainConfig("LeNet5", "digits", str(folder), recipe=get_recipe("digits"))
    model = kapps.LeNet5(input_shape=(16, 16, 3), classes=10)
    transform = {"size": 16, "crop": 1.0, "interpolation": "bilinear"}
    settings = runs.settings_of(config, config.resolved(), data.load("digits"))
    write_json(folder / "config.json", settings | {"evaluation": transform})
    kapps.save_weights(model, folder / "weights.safetensors")
    return folder


ATTACK = "--attack_eps=8,16 --attack_iterations=2 --attack_images=30"


def test_a_run_and_a_file(workdir, files, tmp_path, capsys):
    found = []
    for flags in (
        f"--workdir={workdir}",
        f"--tflite={files[0]} --attack_model={workdir} --dataset=digits",
    ):
        flags += f" {ATTACK} --json={tmp_path}/r.json"
        answer = run_here("tflite.programs.evaluate", flags, capsys)
        assert not answer.code, answer.stderr
        found.append(json.loads((tmp_path / "r.json").read_text()))
        robustness = parse(found[-1]["robustness"], "r.json")
        assert answer.stdout.splitlines()[1] == f"  {robustness.line}"
        assert found[-1]["images"] == 240  # the whole split
        assert (robustness.images, robustness.iterations) == (30, 2)
        assert [each.step for each in robustness.levels] == [10.0, 20.0]
        weights = (workdir / "weights.safetensors").read_bytes()
        assert robustness.source_sha256 == hashlib.sha256(weights).hexdigest()
    run, file = (each["robustness"] for each in found)
    assert file["clean"] > run["clean"]  # it is trained
    assert file["clean"] == pytest.approx(found[1]["top1"], abs=0.25)  # of images of all classes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--attack_step=1", "--attack_step belongs to --attack_eps"),
        ("--attack=square", "--attack belongs to --attack_eps"),
        ("--attack_eps=-1", "whole gray levels, 1 to 255"),
        ("--attack_eps=1.5,x", "--attack_eps: expected whole gray levels"),
        ("--attack_eps=", "1 to 255, because the attacked images are bytes, not nothing"),
        ("--attack_eps=4 --exit_confidence=0.5", "do not go together"),
        ("--attack_eps=4 --attack_model=RUN", "--attack_model belongs to --tflite"),
        ("--attack_eps=4 --attack_start=image --attack_restarts=2", "do the same again"),
        ("--tflite=NET --attack_eps=4", "give --attack_model=RUN"),
        ("--tflite=NET --attack=square --attack_model=RUN --attack_eps=4", "needs no gradients"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, workdir, files, capsys):
    flags = flags.replace("RUN", str(workdir)).replace("NET", str(files[0]))
    flags += " --dataset=digits" if "tflite" in flags else f" --workdir={workdir}"
    answer = run_here("tflite.programs.evaluate", flags, capsys)
    assert (answer.code, answer.stdout) == (2, "")
    assert message in answer.stderr and answer.stderr.count("\n") == 1


def test_a_run_of_another_size(workdir, files, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    settings = json.loads((workdir / "config.json").read_text())
    settings["evaluation"]["size"] = 24
    write_json(other / "config.json", settings)
    kapps.save_weights(
        kapps.LeNet5(input_shape=(24, 24, 3), classes=10), other / "weights.safetensors"
    )
    flags = f"--tflite={files[0]} --dataset=digits --attack_eps=4 --attack_model={other}"
    answer = run_here("tflite.programs.evaluate", flags, capsys)
    assert answer.code == 2
    assert "takes images of 24 pixels, and" in answer.stderr
