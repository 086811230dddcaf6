"""The training loop in one process: what it learns, writes, resumes and refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from tensorflow.core.util import event_pb2

import kapps
from kapps.tools import data, layers, training
from kapps.tools.averages import Average
from kapps.tools.checkpoints import Checkpoints, by_path
from kapps.tools.distribution import make_devices
from kapps.tools.recipes import RECIPES, Recipe, get_recipe
from kapps.tools.runs import TrainConfig, TrainResult, load_run

pytestmark = pytest.mark.slow


def config(workdir: Path, recipe: Recipe, model: str = "TinyNet", **other) -> TrainConfig:
    return TrainConfig(model, "synthetic", str(workdir), recipe=recipe, **other)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_same_weights(one: TrainResult, other: TrainResult) -> None:
    """To the last bit."""
    expected = safetensors.numpy.load_file(other.weights)
    for name, value in safetensors.numpy.load_file(one.weights).items():
        np.testing.assert_array_equal(value, expected.pop(name), err_msg=name)
    assert not expected


def test_digits_with_lenet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real thing, small: all files, the progress, the figures, and the second call."""
    recipe = dataclasses.replace(get_recipe("digits"), epochs=6, image_size=32)
    run = TrainConfig("LeNet5", "digits", str(tmp_path), recipe=recipe)
    result = training.train(run)
    assert result.validation.images == 240 and result.validation.top1 > 0.9
    assert result.validation.top5 > result.validation.top1
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    errors = capsys.readouterr().err
    assert "LeNet5 epoch 6: loss" in errors and "img/s" in errors

    written = json.loads((tmp_path / "result.json").read_text())
    assert written["validation"]["top1"] == result.validation.top1
    assert written["weights"] == "weights.safetensors"
    loaded = load_run(tmp_path)
    assert loaded.class_names == tuple("0123456789") and loaded.image_size == 32
    digits = data.load("digits")
    again = training.evaluate(loaded.model, digits.validation, transform=loaded.transform)
    assert again.top1 == result.validation.top1
    assert again.loss == pytest.approx(result.validation.loss, rel=1e-4)

    before = contents(tmp_path)
    assert training.train(run) == result
    assert "is finished" in capsys.readouterr().err
    assert contents(tmp_path) == before

    for damage in ("", "[]", "{}"):
        (tmp_path / "result.json").write_text(damage)
        with pytest.raises(kapps.InputError, match="result.json is damaged; delete it"):
            training.train(run, progress=False)
    (tmp_path / "result.json").unlink()
    assert training.train(run, progress=False) == result  # from the last checkpoint


def test_scalars_for_tensorboard(tmp_path: Path, tiny) -> None:
    result = training.train(config(tmp_path, tiny.PLAIN), progress=False)
    scalars: dict[str, list[tuple[int, float]]] = {}
    for file in (tmp_path / "tensorboard").iterdir():
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                if value.tag == "train/augmented" or value.tag.startswith("step/"):
                    continue
                assert value.metadata.plugin_data.plugin_name == "scalars"
                number = float(tf.make_ndarray(value.tensor))
                scalars.setdefault(value.tag, []).append((event.step, number))
    assert set(scalars) == {
        "train/loss",
        "train/top1",
        "validation/loss",
        "validation/top1",
        "learning/rate",
        "images/per_second",
    }
    losses = [(row["epoch"], np.float32(row["train_loss"])) for row in result.history]
    assert scalars["train/loss"] == losses


def test_evaluation_counts_as_numpy_does(tiny) -> None:
    keras.utils.set_random_seed(1)
    model = tiny.TinyNet(input_shape=(16, 16, 3), classes=10)
    source = data.load("synthetic").test
    from kapps.tools import pipeline

    whole = kapps.EvalTransform(16, 1.0, "bilinear")
    images, labels = pipeline.images(source, whole)
    probabilities = model.predict(images, verbose=0)
    order = np.argsort(-probabilities, axis=1)
    result = training.evaluate(model, source, transform=whole, batch_size=64)
    assert result.images == 200
    assert result.top1 == pytest.approx(np.mean(order[:, 0] == labels))
    assert result.top5 == pytest.approx(np.mean((order[:, :5] == labels[:, None]).any(1)))
    wanted = -np.log(probabilities[np.arange(200), labels]).mean()
    assert result.loss == pytest.approx(wanted, rel=1e-5)


def test_training_stops_when_validation_says_so(tmp_path: Path, tiny) -> None:
    recipe = dataclasses.replace(tiny.PLAIN, epochs=12, stop_at=0.5, stop_patience=2)
    result = training.train(config(tmp_path, recipe), progress=False)
    good = [row["validation_top1"] >= 0.5 for row in result.history]
    assert good[-2:] == [True, True]
    assert [True, True] not in [good[i : i + 2] for i in range(len(good) - 2)]
    assert result.epochs == len(good) < 12


@pytest.fixture
def policy() -> Iterator[Callable[[str], None]]:
    """Sets Keras's dtype policy for one test."""
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def test_other_dtypes_train_alike(tmp_path: Path, tiny, policy) -> None:
    """25 steps from the same weights; bfloat16 has 8 significant bits, and float64 53."""
    start = tiny.TinyNet(input_shape=(16, 16, 3), classes=10)
    kapps.save_weights(start, tmp_path / "start.safetensors")
    recipe = dataclasses.replace(tiny.PLAIN, epochs=1)

    def trained(name: str) -> dict[str, np.ndarray]:
        policy(name)
        run = config(tmp_path / name, recipe, weights=str(tmp_path / "start.safetensors"))
        result = training.train(run, progress=False)
        policy("float32")
        return safetensors.numpy.load_file(result.weights)

    wanted, begin = trained("float32"), safetensors.numpy.load_file(tmp_path / "start.safetensors")
    moved = max(np.abs(wanted[name] - value).max() for name, value in begin.items())
    for name, share in (("float64", 1e-4), ("mixed_bfloat16", 0.1)):
        apart = {key: np.abs(value - wanted[key]).max() for key, value in trained(name).items()}
        assert max(apart.values()) <= share * moved, (name, apart)


def test_dtypes_that_lose_steps_are_refused_and_evaluate(tmp_path: Path, tiny, policy) -> None:
    whole = data.load("synthetic").validation
    source = data.Subset(whole, np.arange(40))
    model = tiny.TinyNet(input_shape=(16, 16, 3), classes=10)
    transform = kapps.EvalTransform(16, 1.0, "bilinear")
    wanted = training.evaluate(model, source, transform=transform)
    kapps.save_weights(model, tmp_path / "start.safetensors")
    for name in ("float16", "mixed_float16", "bfloat16"):
        policy(name)
        with pytest.raises(kapps.InputError, match=f"the dtype policy {name} .* choose float32, "):
            training.train(config(tmp_path / "run", tiny.PLAIN), progress=False)
        assert not (tmp_path / "run").exists()
        same = tiny.TinyNet(
            weights=tmp_path / "start.safetensors", input_shape=(16, 16, 3), classes=10
        )
        result = training.evaluate(same, source, transform=transform)
        assert result.loss == pytest.approx(wanted.loss, rel=1e-2), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_kernels_decay(tmp_path: Path, tiny, optimizer: str) -> None:
    """At a learning rate of 1e-6 and a decay of 1e5, one step takes 10 % off what decays."""
    recipe = dataclasses.replace(
        tiny.PLAIN,
        optimizer=optimizer,
        learning_rate=1e-6,
        weight_decay=1e5,
        batch_size=1000,
        epochs=1,
        schedule="constant",
        warmup_epochs=0.0,
    )
    training.train(config(tmp_path, recipe), progress=False)
    keras.utils.set_random_seed(0)
    start = tiny.TinyNet(input_shape=(16, 16, 3), classes=10)
    end = load_run(tmp_path).model
    for before, after in zip(start.trainable_variables, end.trainable_variables, strict=True):
        factor = 0.9 if before.path.endswith("kernel") else 1.0
        np.testing.assert_allclose(
            after.numpy(), factor * before.numpy(), atol=2e-5, err_msg=before.path
        )


def test_batch_norm_momentum_and_start_weights(tmp_path: Path, tiny) -> None:
    keras.utils.set_random_seed(5)
    start = tiny.TinyNet(input_shape=(16, 16, 3), classes=10)
    kapps.save_weights(start, tmp_path / "start.safetensors")
    moved = {}
    for momentum in (0.0, 0.9):
        recipe = dataclasses.replace(
            tiny.PLAIN, bn_momentum=momentum, learning_rate=1e-9, batch_size=1000, epochs=1
        )
        run = config(tmp_path / str(momentum), recipe, weights=str(tmp_path / "start.safetensors"))
        training.train(run, progress=False)
        model = load_run(tmp_path / str(momentum)).model
        np.testing.assert_allclose(
            model.get_layer("stem").kernel.numpy(),
            start.get_layer("stem").kernel.numpy(),
            atol=1e-6,
        )
        moved[momentum] = model.get_layer("bn1").moving_mean.numpy()
    assert moved[0.0].any()
    np.testing.assert_allclose(moved[0.9], 0.1 * moved[0.0], rtol=1e-4, atol=1e-7)


def test_dropout_differs_by_step_and_repeats_by_seed(tmp_path: Path, tiny) -> None:
    """Two layers of one shape, or two steps, must not drop the same places."""
    image = keras.Input((50,))
    first = keras.layers.Dropout(0.5, name="a")(image)
    second = keras.layers.Dropout(0.5, name="b")(image)
    model = keras.Model(image, [first, second])
    optimizer = keras.optimizers.SGD(0.1)

    def masks(step: int, seed: int = 0) -> list[bytes]:
        layers.prepare(model, layers.Clock(optimizer), tiny.PLAIN, 100, seed)
        optimizer.iterations.assign(step)
        return [np.asarray(x != 0).tobytes() for x in model(np.ones((4, 50)), training=True)]

    assert masks(0) == masks(0)
    assert len({*masks(0), *masks(1), *masks(0, seed=1)}) == 6


@pytest.fixture
def saved(tmp_path: Path, tiny) -> tuple[Path, object]:
    """A run of three epochs that was stopped after two, and its recipe."""
    recipe = dataclasses.replace(tiny.RANDOM, epochs=3)
    folder = tmp_path / "run"
    original = Checkpoints.save

    def stop_after_two(self: Checkpoints) -> None:
        original(self)
        if self.state.epoch == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            training.train(config(folder, recipe, "TinyDropNet"), progress=False)
    return folder, recipe


def test_resumed_is_uninterrupted(tmp_path: Path, saved) -> None:
    folder, recipe = saved
    resumed = training.train(config(folder, recipe, "TinyDropNet"), progress=False)
    whole = training.train(config(tmp_path / "whole", recipe, "TinyDropNet"), progress=False)
    assert_same_weights(resumed, whole)
    assert resumed.validation == whole.validation


def test_a_run_that_was_ended_in_mid_epoch_goes_on_in_it(tmp_path: Path, tiny) -> None:
    """Between two checkpoints of `checkpoint_every` it repeats the steps; the sums are whole."""
    recipe = dataclasses.replace(tiny.RANDOM, epochs=2)
    original = Checkpoints.save

    def stop(self: Checkpoints) -> None:
        original(self)
        if self.state.step == 35:
            raise KeyboardInterrupt

    run = config(tmp_path / "run", recipe, "TinyDropNet", checkpoint_every=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            training.train(run, progress=False)
    resumed = training.train(run, progress=False)
    whole = training.train(config(tmp_path / "whole", recipe, "TinyDropNet"), progress=False)
    assert_same_weights(resumed, whole)
    for row, expected in zip(resumed.history, whole.history, strict=True):
        assert {**row, "images_per_second": 0} == {**expected, "images_per_second": 0}


def test_the_average_is_evaluated_and_kept(tmp_path: Path, tiny) -> None:
    recipe = dataclasses.replace(tiny.RANDOM, epochs=1)
    result = training.train(config(tmp_path, recipe), progress=False)
    average, last = (
        safetensors.numpy.load_file(tmp_path / f"{name}.safetensors")
        for name in ("weights", "last")
    )
    assert any(not np.array_equal(average[name], value) for name, value in last.items())
    run = load_run(tmp_path)
    source = data.load("synthetic").validation
    found = training.evaluate(run.model, source, transform=run.transform)
    assert found.loss == pytest.approx(result.validation.loss, rel=1e-5)
    best = safetensors.numpy.load_file(tmp_path / "best.safetensors")
    for name, value in best.items():  # of the one epoch
        np.testing.assert_array_equal(value, average[name], err_msg=name)


def test_sizes_and_rates_grow_by_stage(tmp_path: Path, tiny) -> None:
    """Tan and Le 2021, algorithm 1."""
    recipe = dataclasses.replace(
        tiny.PLAIN,
        epochs=3,
        image_size=32,
        eval_size=24,
        dropout_rate=0.3,
        stages=3,
        start=(("image_size", 16.0), ("dropout_rate", 0.1)),
    )
    seen: list[tuple[int, float]] = []
    original = training.Loop._enter

    def noting(self: training.Loop, stage: int) -> None:
        original(self, stage)
        rate = next(x.rate for x in self.model.layers if isinstance(x, keras.layers.Dropout))
        seen.append((self._at_stage.image_size, round(rate, 6)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Loop, "_enter", noting)
        training.train(config(tmp_path, recipe, "TinyDropNet"), progress=False)
    assert list(dict.fromkeys(seen)) == [(16, 0.1), (24, 0.2), (32, 0.3)]
    assert load_run(tmp_path).image_size == 24


def flip(file: Path, position: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1
    file.write_bytes(content)


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


def test_damaged_checkpoints_are_refused_and_nothing_is_lost(tmp_path: Path, saved) -> None:
    """A flipped bit anywhere, cut short, or gone: a clear line; then what that line advises."""
    folder, recipe = saved
    copy = tmp_path / "copy"
    run = config(copy, recipe, "TinyDropNet")
    keras.utils.set_random_seed(0)
    damages = [
        *((".data-00000-of-00001", position) for position in np.linspace(0, 1, 30)),
        *((".index", position) for position in np.linspace(0, 1, 30)),
    ]
    model = kapps.get_builder("TinyDropNet")(input_shape=(16, 16, 3), classes=10)
    schedule = training.make_schedule(recipe, 25)
    optimizer = training.make_recipe_optimizer(recipe, schedule, model.trainable_variables)
    average = Average(model.weights, 0.9)
    variables = {
        "model": by_path(model.variables, model.name),
        "optimizer": by_path(optimizer.variables, optimizer.name),
        "average": by_path(average.variables, average.name),
    }

    def restore() -> None:
        Checkpoints(copy / "checkpoints", make_devices("none"), variables).restore()

    def check(damage) -> None:
        shutil.copytree(folder, copy)
        damage()
        before = contents(copy)
        with pytest.raises(kapps.InputError, match="ckpt-50 is damaged .* delete .*ckpt-50"):
            restore()
        assert contents(copy) == before
        shutil.rmtree(copy)

    shutil.copytree(folder, copy)
    restore()
    shutil.rmtree(copy)
    for suffix, position in damages:
        check(lambda s=suffix, p=position: flip(copy / "checkpoints" / f"ckpt-50{s}", p))
    for suffix in (".data-00000-of-00001", ".index"):
        for share in (0, 0.5, 0.99):
            file = copy / "checkpoints" / f"ckpt-50{suffix}"
            check(lambda f=file, s=share: cut(f, s))
    check((copy / "checkpoints" / "ckpt-50.data-00000-of-00001").unlink)

    shutil.copytree(folder, copy)
    flip(copy / "checkpoints" / "ckpt-50.index", 0.4)
    with pytest.raises(kapps.InputError, match="go on from step 25"):
        training.train(run, progress=False)
    for file in (copy / "checkpoints").glob("ckpt-50.*"):
        file.unlink()
    resumed = training.train(run, progress=False)
    whole = training.train(config(folder, recipe, "TinyDropNet"), progress=False)
    assert_same_weights(resumed, whole)


def test_another_run_in_the_same_folder(tmp_path: Path, saved) -> None:
    folder, recipe = saved
    before = contents(folder)
    with pytest.raises(kapps.InputError, match="seed was 0 and is 7.*learning_rate was"):
        faster = dataclasses.replace(recipe, learning_rate=0.5)
        training.train(config(folder, faster, "TinyDropNet", seed=7))
    with pytest.raises(kapps.InputError, match="model was 'TinyDropNet' and is 'TinyNet'"):
        training.train(config(folder, recipe))
    assert contents(folder) == before


def test_divergence_is_told_and_keeps_what_was_good(tmp_path: Path, tiny) -> None:
    recipe = dataclasses.replace(tiny.PLAIN, learning_rate=1e30, schedule="constant")
    with pytest.raises(kapps.InputError, match="choose a smaller --learning_rate"):
        training.train(config(tmp_path, recipe), progress=False)
    assert not (tmp_path / "weights.safetensors").exists()
    assert not list(tmp_path.rglob("ckpt-*"))


def test_full_disk_while_saving(tmp_path: Path, saved, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, recipe = saved
    before = contents(folder / "checkpoints")

    def full(*arguments, **keywords):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.Checkpoint, "_write", full)
    with pytest.raises(kapps.InputError, match="cannot write a checkpoint .*No space left"):
        training.train(config(folder, recipe, "TinyDropNet"), progress=False)
    assert contents(folder / "checkpoints") == before


def test_folder_that_cannot_be_written(tmp_path: Path, tiny) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(kapps.InputError, match=re.escape(f"cannot write {tmp_path}/file/run")):
        training.train(config(tmp_path / "file" / "run", tiny.PLAIN), progress=False)


def test_too_large_a_batch(tmp_path: Path, tiny) -> None:
    with pytest.raises(kapps.InputError, match="batch of 5000 images is more than the 1000"):
        recipe = dataclasses.replace(tiny.PLAIN, batch_size=5000)
        training.train(config(tmp_path, recipe), progress=False)


def test_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(kapps.InputError, match="holds no finished run"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text('{"mod')
    with pytest.raises(kapps.InputError, match="config.json is damaged"):
        load_run(tmp_path)


def test_strategies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_devices("none").replicas == 1
    with pytest.raises(kapps.InputError, match="did you mean mirrored"):
        make_devices("miror")
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(kapps.InputError, match="TF_CONFIG"):
        make_devices("multi_worker")


def test_image_size_is_the_flags_then_the_recipes_then_the_networks() -> None:
    def size(model: str, recipe: str, image_size: int | None = None) -> int | None:
        chosen = get_recipe(recipe)
        if image_size is not None:
            chosen = dataclasses.replace(chosen, image_size=image_size)
        run = TrainConfig(model, "digits", "run", recipe=chosen)
        return run.resolved().image_size

    assert size("LeNet5", "default", 48) == 48
    assert size("LeNet5", "digits") == 64
    assert size("LeNet5", "default") == 32
    assert size("MobileNetV3Small", "default") == 224


def test_recipes() -> None:
    for name, recipe in RECIPES.items():
        assert f"--recipe={name}" in recipe.command or name == "default"
        local = recipe.local()
        assert local.epochs <= 2 and local.batch_size <= 32 and local.image_size <= 32
    with pytest.raises(kapps.InputError, match="unknown recipe 'digit'; did you mean digits"):
        get_recipe("digit")
    for field, value in (
        ("epochs", 0),
        ("epochs", 2.5),
        ("batch_size", True),
        ("image_size", "64"),
        ("stop_patience", None),
        ("learning_rate", -1.0),
        ("learning_rate", "0.1"),
        ("weight_decay", float("nan")),
        ("warmup_epochs", float("inf")),
        ("crop", 0.0),
        ("flip", None),
        ("crop_area", 2.0),
        ("bn_momentum", True),
        ("stop_at", 99),
    ):
        with pytest.raises(kapps.InputError, match=field):
            dataclasses.replace(RECIPES["digits"], **{field: value})
    numpy = dataclasses.replace(
        RECIPES["digits"], epochs=np.int64(3), learning_rate=np.float32(0.5), image_size=None
    )
    assert json.dumps(dataclasses.asdict(numpy)) and numpy.epochs == 3
    for seed in (-1, 2**32, 1.0, True):
        with pytest.raises(kapps.InputError, match="seed must be a whole number, 0 to"):
            TrainConfig("LeNet5", "digits", "run", seed=seed).resolved()
    with pytest.raises(kapps.InputError, match="did you mean cosine"):
        dataclasses.replace(RECIPES["digits"], schedule="cosin")
