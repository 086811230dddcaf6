"""Transfer learning: two known failures do not happen, nothing is computed twice or lost."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from programs import run_here

import kapps
from kapps._registry import _BUILDERS
from kapps.tools import data, frozen, layers, linear_head, optimizers, pipeline, runs, training
from kapps.tools import transfer as library
from kapps.tools.checkpoints import Checkpoints
from kapps.tools.cutting import cut_network
from kapps.tools.linear_head import Features
from kapps.tools.network import build_network
from kapps.tools.preemption import Request, Stopped
from kapps.tools.recipe import Recipe
from kapps.tools.transfer import finetune
from kapps.tools.transfer_config import TransferConfig

pytestmark = pytest.mark.slow


def gratings(count: int, seed: int) -> data.ArraySource:
    """Like those of the data set synthetic, at the angles between theirs."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    labels = np.arange(count) % 10
    images = []
    for angle in np.pi * (labels + 0.5) / 10:
        phase = 2 * np.pi * random.random()
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 0.8 + phase)
        images.append(127.5 + 80 * wave[..., None] + random.normal(0, 25, (32, 32, 3)))
    return data.ArraySource(np.clip(images, 0, 255).astype(np.uint8), labels)


def few() -> data.Dataset:
    names = tuple(f"{18 * k + 9} degrees" for k in range(10))
    return data.Dataset("few", names, gratings(100, 1), gratings(200, 2), gratings(10, 3))


@dataclasses.dataclass(frozen=True)
class Start:
    """A network that knows gratings, for classes that it does not know."""

    folder: Path
    recipe: Recipe

    def config(self, workdir: Path, **own) -> TransferConfig:
        recipe = dataclasses.replace(self.recipe, **own.pop("recipe", {}))
        own = {"weights": str(self.folder / "weights.safetensors"), **own}
        return TransferConfig("TinyNet", "few", str(workdir), recipe=recipe, **own)

    def pretrained(self, classes: int = 10) -> keras.Model:
        return build_network(
            kapps.get_builder("TinyNet"),
            {"classifier_activation": None},
            weights=str(self.folder / "weights.safetensors"),
            input_shape=(16, 16, 3),
            classes=classes,
        )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    kapps.list_models()  # loads the families, which register themselves for good
    import tiny

    with pytest.MonkeyPatch.context() as patch:
        for builder in (tiny.TinyNet, tiny.TinyDropNet):
            patch.setitem(_BUILDERS, builder.__name__, builder)
        patch.setitem(data._BUILT_IN, "few", few)
        folder = tmp_path_factory.mktemp("start") / "run"
        recipe = dataclasses.replace(tiny.PLAIN, epochs=6)
        config = runs.TrainConfig("TinyNet", "synthetic", str(folder), recipe=recipe)
        assert training.train(config, progress=False).validation.top1 > 0.95
        yield Start(folder, dataclasses.replace(tiny.PLAIN, epochs=3, batch_size=20))


@pytest.fixture(scope="module")
def tuned(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, runs.TrainResult]:
    folder = tmp_path_factory.mktemp("tuned") / "run"
    return folder, finetune(start.config(folder, keep_features=True), progress=False)


def images() -> np.ndarray:
    return pipeline.images(few().train, kapps.EvalTransform(16, 0.875, "bilinear"))[0]


def cached(folder: Path, title: str) -> np.ndarray:
    (path,) = (p for p in (folder / "features").glob(f"{title}-*.npy") if "labels" not in p.name)
    return np.load(path)


def test_a_frozen_network_evaluates_exactly_as_it_was_fitted(tuned) -> None:
    """The first failure: batch norm that is frozen, and takes the batch's statistics all the same.

    Logits of a head on cached features are those of the whole model; with batch norm in training
    mode they are not.
    """
    folder, _ = tuned
    model = build_network(
        kapps.get_builder("TinyNet"),
        {"classifier_activation": None},
        weights=str(folder / "head.safetensors"),
        input_shape=(16, 16, 3),
        classes=10,
    )
    head = frozen.classifier(model)
    fitted = cached(folder, "train") @ np.asarray(head.kernel) + np.asarray(head.bias)
    whole = np.asarray(model(images(), training=False))
    spread = whole.std()
    # float32 sums of 16 products, in another order
    np.testing.assert_allclose(fitted, whole, atol=1e-4 * spread)
    apart = np.abs(np.asarray(model(images(), training=True)) - whole)
    assert apart.max() > 0.1 * spread  # a thousand times the tolerance


def test_with_frozen_statistics_training_computes_what_inference_does(start, tuned) -> None:
    """And the statistics stay, while scale and shift learn."""
    model = start.pretrained()
    wanted = np.asarray(model(images(), training=False))
    trainable = {v.path for v in model.trainable_variables}
    layers.freeze_statistics(model)
    np.testing.assert_array_equal(np.asarray(model(images(), training=True)), wanted)
    assert {v.path for v in model.trainable_variables} == trainable
    assert len(optimizers.unit_axes(model)) == len(trainable)

    folder, _ = tuned
    before, after = start.pretrained(), runs.load_run(folder).model
    for name in ("bn1", "bn2", "bn3"):
        was, now = before.get_layer(name), after.get_layer(name)
        for kept in ("moving_mean", "moving_variance"):
            np.testing.assert_array_equal(getattr(was, kept).numpy(), getattr(now, kept).numpy())
        for learned in ("gamma", "beta"):
            assert (getattr(was, learned).numpy() != getattr(now, learned).numpy()).any()


def test_all_at_once_with_a_random_head_destroys_what_the_network_knew(
    start: Start, tmp_path: Path
) -> None:
    """The second failure, at a rate of 0.5: from the same weights, in as many epochs.

    What is left of the old knowledge the old classifier tells, on the new features of the old
    images. Measured for seeds 0 to 4: all at once 0.23 to 0.57 of the new images are right, and
    0.11 to 0.50 of the old ones; head first all of both.
    """
    recipe = {"learning_rate": 0.5}
    first = finetune(start.config(tmp_path / "first", recipe=recipe), progress=False)
    config = start.config(tmp_path / "once", recipe=recipe)
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(runs.TrainConfig)}
    once = training.train(runs.TrainConfig(**fields), progress=False)
    assert once.epochs == first.epochs == 3
    assert first.validation.top1 > once.validation.top1 + 0.2

    def old(folder: Path) -> float:
        known, model = runs.load_run(start.folder), runs.load_run(folder).model
        model.get_layer("classifier").set_weights(known.model.get_layer("classifier").get_weights())
        images = data.load("synthetic").validation
        return training.evaluate(model, images, transform=known.transform).top1

    assert old(tmp_path / "first") > old(tmp_path / "once") + 0.2


def test_a_run_is_one_like_any_other(start: Start, tuned, tmp_path: Path) -> None:
    folder, result = tuned
    run = runs.load_run(folder)
    assert run.class_names == few().class_names
    again = training.evaluate(run.model, few().validation, transform=run.transform)
    assert again.top1 == result.validation.top1 > 0.95 and result.epochs == 3
    assert again.loss == pytest.approx(result.validation.loss, rel=1e-4)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("phase") for line in lines if line["kind"] == "epoch"] == ["head"] + [None] * 3
    first = next(line for line in lines if line["kind"] == "epoch" and "phase" not in line)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["learning_rate"] == 0.05 and 0 < first["learning_rate"] <= 0.005

    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != "lock"}
    config = start.config(folder, keep_features=True)
    assert finetune(config, progress=False) == result
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != "lock"} == before
    with pytest.raises(kapps.InputError, match=r"all_rate was 0.1 and is 0.2\. Choose another"):
        finetune(dataclasses.replace(config, all_rate=0.2), progress=False)


def test_resumed_is_uninterrupted(start: Start, tuned, tmp_path: Path, monkeypatch) -> None:
    """Ended after the head, and again in the phase all; the head is fitted once."""
    config = start.config(tmp_path)
    original, fitted = Checkpoints.save, []
    fit = linear_head.fit
    monkeypatch.setattr(linear_head, "fit", lambda *a, **k: fitted.append(1) or fit(*a, **k))
    for ended in (lambda state: True, lambda state: state.epoch == 2):

        def save(self: Checkpoints, ended=ended) -> None:
            original(self)
            if ended(self.state):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", save)
            with pytest.raises(KeyboardInterrupt):
                finetune(config, progress=False)
    assert finetune(config, progress=False).validation == tuned[1].validation
    weights = (tmp_path / "weights.safetensors").read_bytes()
    assert weights == (tuned[0] / "weights.safetensors").read_bytes()
    assert fitted == [1] and not (tmp_path / "features").exists()


# --- Features


def cache(start: Start, folder: Path, **about) -> frozen.FeatureCache:
    return frozen.FeatureCache(folder, frozen.frozen_part(start.pretrained()), about)


PIXELS = pipeline.EvaluationPixels(kapps.EvalTransform(16, 0.875, "bilinear"))


def test_features_are_computed_once_and_anew_where_anything_differs(
    start: Start, tmp_path: Path, monkeypatch
) -> None:
    computed = []
    original = frozen.FeatureCache._compute
    monkeypatch.setattr(
        frozen.FeatureCache, "_compute", lambda *a: computed.append(1) or original(*a)
    )
    source, chosen = few().train, np.arange(100)

    def count(cache: frozen.FeatureCache, source=source, pixels=PIXELS, chosen=chosen) -> int:
        computed.clear()
        found = cache.features("train", source, [(pixels, 0)], chosen)
        assert found.values.shape == (len(chosen), 16)
        np.testing.assert_array_equal(found.labels, np.asarray(source.labels)[chosen])
        return len(computed)

    ours = cache(start, tmp_path)
    assert [count(ours), count(ours), count(cache(start, tmp_path))] == [1, 0, 0]
    brighter = data.ArraySource(np.clip(source.images, 1, 255), source.labels)
    smaller = pipeline.EvaluationPixels(kapps.EvalTransform(16, 0.8, "bilinear"))
    assert count(ours, brighter) == count(ours, pixels=smaller) == 1
    assert count(ours, chosen=np.arange(50)) == count(cache(start, tmp_path, model="B")) == 1
    trained = cache(start, tmp_path)
    bias = trained.model.get_layer("bn1").beta
    bias.assign(bias + 1)
    assert count(trained) == 1 and count(ours) == 0

    path = Path(ours.features("train", source, [(PIXELS, 0)], chosen).values.filename)
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", np.lib.format.magic(1, 0)):
        path.write_bytes(damage)
        assert count(ours) == 1 and path.read_bytes() == whole
    path.with_name(path.name.replace(".npy", ".labels.npy")).unlink()
    assert count(ours) == 1


def test_what_ends_early_leaves_no_features(start: Start, tmp_path: Path) -> None:
    images = few().train.images

    class Source:
        labels = few().train.labels

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            if index == 70 and len(read) > 70:
                raise data.BadImage("picture 70 cannot be read", "70")
            read.append(index)
            return images[index], int(self.labels[index])

    read: list[int] = []
    ours = cache(start, tmp_path)
    with pytest.raises(kapps.InputError, match="picture 70"):
        ours.features("train", Source(), [(PIXELS, 0)], np.arange(100))
    assert not list(tmp_path.iterdir())

    skipping = dataclasses.replace(ours, bad=pipeline.BadImages(True, 0.1))
    found = skipping.features("train", Source(), [(PIXELS, 0)], np.arange(100))
    assert list(np.flatnonzero(found.labels == pipeline.PADDING)) == [70]


def test_features_go_on_where_they_were_asked_to_end(
    start: Start, tmp_path: Path, monkeypatch
) -> None:
    """In each pass once, to the bit what they would have been; what is done is not read again."""
    monkeypatch.setattr(frozen, "_BATCH", 32)
    compiled, asked, read = frozen._compiled, Request(), []

    @dataclasses.dataclass(frozen=True)
    class Noisy:
        size = 16

        def __call__(self, picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
            read.append(1)
            return PIXELS(picture, random) // 2 + random.integers(0, 128, dtype=np.uint8)

    def features(folder: str, batches: int | None = None) -> Features:
        """Asked to end in the midst of the last one of so many batches."""
        left = [batches]

        def ending(model: keras.Model):
            step = compiled(model)

            def counted(images):
                left[0] = None if left[0] is None else left[0] - 1
                asked.number = signal.SIGTERM if left[0] == 0 else None
                return step(images)

            return counted

        monkeypatch.setattr(frozen, "_compiled", ending)
        read.clear()
        ours = dataclasses.replace(cache(start, tmp_path / folder), stop=asked)
        passes = [(Noisy(), 0), (Noisy(), 1)]
        return ours.features("train", few().train, passes, np.arange(100), seed=3)

    whole = features("whole")
    with pytest.raises(Stopped, match="ended by SIGTERM, 32 of 200 features train are saved; the"):
        features("parts", 1)
    with pytest.raises(Stopped, match="164 of 200 features train are saved"):
        features("parts", 5)  # the three that were left of the first pass, of 4 images the last
    resumed = features("parts")
    assert len(read) == 36
    np.testing.assert_array_equal(resumed.values, whole.values)
    np.testing.assert_array_equal(resumed.labels, whole.labels)
    assert len(list((tmp_path / "parts").iterdir())) == 2  # values and labels, and no part

    with pytest.raises(Stopped):
        features("damaged", 2)
    (part,) = (tmp_path / "damaged").glob("*.part.npz")
    part.write_bytes(part.read_bytes()[:-100])
    np.testing.assert_array_equal(features("damaged").values, whole.values)
    assert len(read) == 200


def test_further_copies_are_augmented_and_differ(start: Start, tmp_path: Path) -> None:
    config = start.config(
        tmp_path,
        phases="head",
        feature_copies=3,
        keep_features=True,
        recipe={"train_crop": "random", "crop_area": 0.08},
    )
    finetune(config, progress=False)
    one, two, three = np.split(cached(tmp_path, "train"), 3)
    plain = cache(start, tmp_path / "plain").features(
        "x", few().train, [(PIXELS, 0)], np.arange(100)
    )
    np.testing.assert_array_equal(one, plain.values)
    # of 100 images each, none is the same in two copies
    assert all((np.abs(a - b).max(1) > 0).all() for a, b in ((one, two), (two, three)))


def test_of_too_many_images_some_are_drawn(
    start: Start, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(library, "_MOST_NUMBERS", 60 * (16 + 3 * 10))
    finetune(start.config(tmp_path, phases="head", keep_features=True))
    assert "fitted to 60 training images of 100, drawn by chance" in capsys.readouterr().err
    assert len(cached(tmp_path, "train")) == 60


# --- The head


def objective_gradient(
    head: linear_head.LinearHead, values: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Of mean cross-entropy and penalty, in the kernel, where the features have one scale."""
    values = values.astype(np.float64)
    scale = np.sqrt(((values - values.mean(0)) ** 2).mean())
    logits = values @ head.kernel + head.bias
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    shares[np.arange(len(labels)), labels] -= 1
    data_term = ((values - values.mean(0)) / scale).T @ shares / len(labels)
    return data_term + head.strength * head.kernel * scale


@pytest.mark.parametrize("classes", [2, 5])
def test_the_head_is_at_the_minimum(classes: int) -> None:
    random = np.random.default_rng(0)
    centres = random.normal(0, 1, (classes, 20))
    labels = random.integers(0, classes, 600)
    values = (3 + 0.01 * (centres[labels] + 2 * random.normal(size=(600, 20)))).astype(np.float32)
    train = Features(values[:400], labels[:400])
    head = linear_head.fit(train, Features(values[400:], labels[400:]), classes)
    assert head.converged and head.strength in linear_head.STRENGTHS[1:-1]
    gradient = objective_gradient(head, train.values, train.labels)
    if classes == 2:  # scikit-learn's penalty is that of the difference of the kernels: half
        gradient -= objective_gradient(dataclasses.replace(head, strength=0), *vars(train).values())
        gradient = objective_gradient(head, *vars(train).values()) + gradient
    # scikit-learn ends where no component is above 1e-4
    assert np.abs(gradient).max() < 3e-4


def test_what_the_head_leaves_out() -> None:
    """Pictures that could not be read, and a class without pictures."""
    random = np.random.default_rng(0)
    labels = np.array([0, 2, 3] * 30)
    values = random.normal(size=(90, 4)).astype(np.float32) + np.eye(4, dtype=np.float32)[labels]
    holed = labels.copy()
    holed[10:20] = pipeline.PADDING
    known = holed != pipeline.PADDING
    head = linear_head.fit(Features(values, holed), Features(values, holed), 4)
    same = linear_head.fit(
        Features(values[known], labels[known]), Features(values[known], labels[known]), 4
    )
    np.testing.assert_array_equal(head.kernel, same.kernel)
    assert (head.kernel[:, 1] == 0).all() and (head.logits(values).argmax(1) != 1).all()
    seen = linear_head.evaluate(head, Features(values, holed))
    assert seen.images == 80 and seen.top5 == 1
    assert seen.top1 == (head.logits(values).argmax(1) == labels)[known].mean()
    with pytest.raises(kapps.InputError, match="all 90 training images are of one class"):
        linear_head.fit(Features(values, 0 * labels), Features(values, labels), 4)


def test_classes_may_count_alike() -> None:
    """With nothing to see, a rare class is as probable as a frequent one."""
    labels = np.array([0] * 90 + [1] * 10)
    features = Features(np.random.default_rng(0).normal(size=(100, 1)).astype(np.float32), labels)
    bias = [linear_head.fit(features, features, 2, balanced=b).bias for b in (False, True)]
    assert np.ptp(bias[0]) == pytest.approx(np.log(9), abs=0.3)
    assert np.ptp(bias[1]) < 0.3


@pytest.mark.parametrize(
    ("name", "arguments", "side"),
    [("ResNet18V2", {}, 32), ("LeNet5", {}, 32), ("MobileNetV3Small", {"alpha": 0.25}, 32)],
    ids=["convolution of 1x1", "hidden layers", "hidden layer of a map"],
)
def test_heads_of_all_kinds(name: str, arguments: dict[str, float], side: int) -> None:
    model = build_network(
        kapps.get_builder(name),
        {**arguments, "classifier_activation": None},
        input_shape=(side, side, 3),
        classes=3,
    )
    pixels = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), np.uint8)
    values = np.asarray(frozen.frozen_part(model)(pixels, training=False))
    random = np.random.default_rng(1)
    kernel = random.normal(size=(values.shape[1], 3)).astype(np.float32)
    head = linear_head.LinearHead(kernel, np.ones(3, np.float32), 1.0, True, 0)
    library._assign(frozen.classifier(model), head)
    wanted = head.logits(values)
    found = np.asarray(model(pixels, training=False))
    # float32 sums of at most 1024 products, in another order
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


# --- Rates


def test_earlier_stages_learn_more_slowly(start: Start) -> None:
    model = start.pretrained()
    assert layers.rates(model, 1.0) is None
    rates = layers.rates(model, 0.5)
    by_layer = dict(
        zip((v.path.split("/")[-2] for v in model.trainable_variables), rates, strict=True)
    )
    assert by_layer == {
        **dict.fromkeys(("stem", "bn1", "depthwise", "bn2"), 0.25),
        **dict.fromkeys(("last", "bn3"), 0.5),
        "classifier": 1.0,
    }
    variables = model.trainable_variables
    before = [v.numpy() for v in variables]
    optimizer = optimizers.make_optimizer("sgd", 0.1, variables, rates=rates)
    optimizers.apply_summed(optimizer, [keras.ops.ones_like(v) for v in variables], variables)
    for rate, was, variable in zip(rates, before, variables, strict=True):
        np.testing.assert_allclose(was - variable.numpy(), 0.1 * rate, rtol=1e-3, atol=1e-6)


def test_rates_reach_the_run(start: Start, tmp_path: Path) -> None:
    """At a decay of 1e-6 nothing but the head moves."""
    finetune(start.config(tmp_path, rate_decay=1e-6, recipe={"epochs": 1}), progress=False)
    before, after = start.pretrained(), runs.load_run(tmp_path).model
    for was, now in zip(before.trainable_variables, after.trainable_variables, strict=True):
        moved = np.abs(was.numpy() - now.numpy()).max()
        assert moved > 1e-3 if "classifier" in was.path else moved < 1e-5, was.path


# --- Cut networks


DENSE = "features_denseblock2_denselayer2_concat"
# Builder, arguments, side, where to cut, and the layer behind which that is
CUTS = [
    ("MobileNetV2", {"alpha": 0.35}, 32, "16", "blocks_4_2_add"),
    ("MobileNetV2", {"alpha": 0.35}, 32, "blocks_4", "blocks_4_2_add"),
    ("MobileNetV2", {"alpha": 0.35}, 32, "blocks.2.1", "blocks_2_1_add"),
    ("ResNet18", {}, 32, "layer3", "layer3_1_act2"),
    ("ResNet18", {}, 32, "4", "layer1_1_act2"),
    ("GoogLeNet", {}, 32, "16", "inception4e_concat"),
    ("DenseNet", {"blocks": (1, 2, 1, 1), "growth": 8}, 32, "8", DENSE),
    ("NiN", {}, 32, "4", "relu_cccp5"),
    ("LeNet5", {}, 32, "2", "relu2"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "side", "at", "layer"), CUTS)
def test_networks_are_cut_between_blocks(
    name: str, arguments: dict[str, object], side: int, at: str, layer: str
) -> None:
    builder = kapps.get_builder(name)
    model = cut_network(builder, arguments, at, input_shape=(side, side, 3), classes=3)
    assert model.features_layer == layer and model.output_shape == (None, 3)
    frozen.classifier(model)  # can be fitted
    pixels = np.zeros((1, side, side, 3), np.uint8)
    np.testing.assert_allclose(np.asarray(model(pixels)).sum(), 1, rtol=1e-5)


def test_a_cut_network_has_the_weights_and_is_a_run(start: Start, tmp_path: Path) -> None:
    config = start.config(tmp_path / "cut", cut_at="2", recipe={"epochs": 1})
    result = finetune(config, progress=False)
    run = runs.load_run(tmp_path / "cut")
    assert run.model.features_layer == "block_add"
    names = [layer.name for layer in run.model.layers]
    assert names[-2:] == ["global_pool", "classifier"] and "last" not in names
    again = training.evaluate(run.model, few().validation, transform=run.transform)
    assert again.top1 == result.validation.top1
    head = build_network(
        kapps.get_builder("TinyNet"), weights=str(tmp_path / "cut" / "head.safetensors"),
        input_shape=(16, 16, 3), classes=10, cut_at="2",
    )  # fmt: skip
    for name in ("stem", "depthwise"):
        wanted = start.pretrained().get_layer(name).get_weights()
        np.testing.assert_array_equal(head.get_layer(name).get_weights(), wanted)

    passes = pytest.importorskip("kapps.tflite").run_passes
    probabilities = run.model(images(), training=False)
    exported = np.concatenate([passes(run.model)(images()[i : i + 1]) for i in range(3)])
    # batch norm is folded into the convolutions
    np.testing.assert_allclose(exported, np.asarray(probabilities)[:3], atol=1e-4)

    # A run of a cut network is started from as well, and stays cut.
    more = start.config(tmp_path / "more", weights=str(tmp_path / "cut"), phases="all")
    more = dataclasses.replace(more, model="", recipe=dataclasses.replace(more.recipe, epochs=1))
    assert finetune(more, progress=False).validation.top1 > 0.5
    assert runs.load_run(tmp_path / "more").model.features_layer == "block_add"


# --- Mistakes


def mistakes() -> dict[str, tuple[dict[str, object], str]]:
    return {
        "no weights": ({"weights": None}, "--weights must be given: imagenet"),
        "no such file": ({"weights": "{tmp}/none.safetensors"}, "no weights file"),
        "not a run": ({"weights": "{tmp}"}, "holds no finished run"),
        "own folder": ({"weights": "{tmp}/run"}, "--workdir is the folder of --weights"),
        "other network": (
            {"weights": "{start}", "model": "ResNet18"},
            "is a run of TinyNet, and --model=ResNet18; leave --model out",
        ),
        "other file": ({"model": "LeNet5", "recipe": {"image_size": 32}}, "does not fit LeNet5"),
        "nothing to build": ({"model": ""}, "--model must be given, unless"),
        "phases": ({"phases": "all,head"}, "--phases must be head or head,all or all"),
        "rate": ({"all_rate": 0.0}, "--all_rate must be above 0"),
        "decay": ({"rate_decay": 1.5}, "--rate_decay must be above 0, and at most 1"),
        "copies": ({"feature_copies": 0}, "feature_copies must be a whole number above 0"),
        "machines": ({"strategy": "multi_worker"}, "none or mirrored"),
        "cut name": (
            {"cut_at": "blok"},
            "unknown place to cut TinyNet at 'blok'; did you mean bloc",
        ),
        "cut stride": ({"cut_at": "8"}, "no map at stride 8 to cut at; there are: 2, 4"),
        "cut without head": ({"cut_at": "2", "phases": "all"}, "it needs --phases=head,all"),
        "loss": (
            {"recipe": {"loss": "binary"}},
            "the recipe's loss is binary; give --loss=softmax",
        ),
        "one class": ({"dataset": "one"}, "one has a single class, 'a'; two are the least"),
        "random head": (
            {"dataset": "two", "phases": "all"},
            "the phase all needs one that fits: give --phases=head,all",
        ),
    }


@pytest.mark.parametrize("mistake", mistakes())
def test_mistakes_are_named(start: Start, tmp_path: Path, monkeypatch, mistake: str) -> None:
    own, message = mistakes()[mistake]
    source = data.Subset(few().train, np.arange(0, 100, 10))
    pair = data.Subset(few().train, np.flatnonzero(few().train.labels < 2))
    for name, classes, each in (("one", ("a",), source), ("two", ("a", "b"), pair)):
        made = data.Dataset(name, classes, each, each, each)
        monkeypatch.setitem(data._BUILT_IN, name, lambda made=made: made)
    (tmp_path / "run").mkdir()
    values = {
        key: value.format(tmp=tmp_path, start=start.folder) if isinstance(value, str) else value
        for key, value in own.items()
    }
    recipe = {"batch_size": 10, **values.pop("recipe", {})}
    config = start.config(tmp_path / "run", recipe=recipe)
    with pytest.raises(kapps.InputError, match=re.escape(message)):
        finetune(dataclasses.replace(config, **values), progress=False)


def test_published_weights_are_evaluated_as_published(start, published_net, tmp_path) -> None:
    network, published, _ = published_net
    assert (published.crop, published.interpolation) == (0.875, "bicubic")
    recipe = {"image_size": 32, "crop": None, "interpolation": None}
    config = start.config(tmp_path / "run", recipe=recipe, weights="imagenet", phases="head")
    finetune(dataclasses.replace(config, model="MobileNetV3Small"), progress=False)
    run = runs.load_run(tmp_path / "run")
    assert run.transform == kapps.EvalTransform(32, 0.875, "bicubic")
    for was, now in zip(network.weights[:-2], run.model.weights[:-2], strict=True):
        np.testing.assert_array_equal(was.numpy(), now.numpy(), err_msg=was.path)
    assert run.model.output_shape == (None, 10)


def test_folders_of_others_are_left_alone(start: Start, tmp_path: Path) -> None:
    with pytest.raises(kapps.InputError, match="holds a run of another program, such as kapps-"):
        finetune(start.config(start.folder, weights="imagenet"), progress=False)


def test_networks_without_a_linear_classifier_name_the_remedy() -> None:
    for name, problem in (
        ("NiN", "the layer 'relu_cccp6' behind"),
        ("LeNet5Original", "no linear"),
    ):
        builder = kapps.get_builder(name)
        model = build_network(builder, {"classifier_activation": None})
        with pytest.raises(kapps.InputError, match=f"{problem}.*give --cut_at"):
            frozen.classifier(model)


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        model = kapps.LeNet5(classes=4)
    kapps.save_weights(model, tmp_path / "start.safetensors")
    flags = f"--model=LeNet5 --dataset=digits --weights={tmp_path}/start.safetensors"
    answer = run_here(
        "tools.finetune", f"{flags} --workdir={tmp_path}/run --phases=head --crop=1", capsys
    )
    assert answer.code in (None, 0), answer.stderr
    # digits are told apart even by random features
    found = re.search(
        r"LeNet5: validation top-1 (0\.\d+), .* by the head and 0 epochs", answer.stdout
    )
    assert found is not None and float(found[1]) > 0.8
    assert "LeNet5 head: loss" in answer.stderr
    answer = run_here("tools.finetune", f"{flags} --workdir={tmp_path}/run --seed=1", capsys)
    assert answer.code == 2
    assert "phases was 'head' and is 'head,all'" in answer.stderr
    assert "seed was 0 and is 1" in answer.stderr
