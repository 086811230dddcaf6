"""Each recipe beside its source: what papers and their authors' code say, written from these.

The learning rate is looked up where the trainer has it from, the schedule that is made for a data
set of the source's size, at epochs or steps that the source speaks of.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import pytest

from kapps.tools.recipe import Recipe, settings
from kapps.tools.recipes import RECIPES
from kapps.tools.schedules import Plateau, PlateauState
from kapps.tools.training import make_schedule

IMAGENET, CIFAR, DIGITS = 1_281_167, 50_000, 1_197

# What the rates and sizes tell, and what they depend on.
TOLD_BY_RATES = {
    *("learning_rate", "schedule", "warmup_epochs", "warmup_start", "final_rate"),
    *("boundaries", "factor", "decay_epochs", "patience", "rate_by_epoch"),
}
TOLD_BY_SIDES = {"crop", "scales"}


@dataclasses.dataclass(frozen=True)
class Source:
    """What a source says.

    Attributes:
        images: that an epoch has.
        rates: learning rate by epochs done; or, of one that falls at plateaus, one after another.
        settings: all others that are not the defaults of `Recipe`.
        steps: of the whole training, where the source counts them.
        sides: least and most of the shorter side that training cuts from, pixels.
        evaluated: the shorter side that evaluation cuts from, pixels; None: as the cut.
        tolerance: of the rates. They are float32 (6e-8); where the source counts steps and the
            recipe epochs, half an epoch of steps is lost.
    """

    images: int
    rates: dict[float, float] | list[float]
    settings: dict[str, Any]
    steps: int | None = None
    sides: tuple[int, int] | None = None
    evaluated: int | None = None
    tolerance: float = 1e-6


def cosine(rate: float, done: float) -> float:
    return rate * (1 + math.cos(math.pi * done)) / 2


SGD = {"optimizer": "sgd", "momentum": 0.9, "flip": 0.5}
RMSPROP = {"optimizer": "rmsprop", "momentum": 0.9, "rho": 0.9, "flip": 0.5}
# He et al. 2015, section 4.2, and those who cite it for CIFAR: 4 pixels padded, shifted, mirrored.
SHIFTED = {**SGD, "image_size": 32, "train_crop": "shift", "pad": 4}
# Szegedy et al. 2015, "Going Deeper with Convolutions", section 6: 8 % to all of the area, 3:4 to
# 4:3.
PARTS = {"train_crop": "random", "crop_area": 0.08, "crop_aspect": 4 / 3}
# TF-slim's preprocessing of Inception, at its quick setting: brightness by 32 of 255, saturation by
# 0.5 to 1.5.
COLOURS = {"brightness": 32 / 255, "saturation": 0.5}
AT_150_225 = {0: 0.1, 149.99: 0.1, 150: 0.01, 224.99: 0.01, 225: 0.001, 299.99: 0.001}
# 312 steps an epoch. Multiplied by 0.97 every 2.4 epochs of all: twice by the end of warm-up.
EFFICIENTNET = {
    0: 0.0,
    2.5: 0.128,
    4.99: 0.256 * 1557 / 1560,
    5: 0.256 * 0.97**2,
    7.19: 0.256 * 0.97**2,
    7.21: 0.256 * 0.97**3,
    24: 0.256 * 0.97**10,
    349.99: 0.256 * 0.97**145,
}

SOURCES = {
    # Krizhevsky et al. 2012, sections 4.1 (parts of 256 px, mirrored, noise of colour of 0.1) and 5
    # ("reduced three times", "roughly 90 cycles"); 227 px are what its 11x11 at stride 4 needs.
    "alexnet": Source(
        IMAGENET,
        [1e-2, 1e-3, 1e-4, 1e-5],
        SGD
        | {"weight_decay": 5e-4, "batch_size": 128, "epochs": 90, "image_size": 227}
        | {"train_crop": "scale", "lighting": 0.1},
        sides=(256, 256),
        evaluated=256,
    ),
    # Simonyan and Zisserman 2015, sections 3.1 (74 epochs, 370,000 steps, S of 256 to 512, three
    # times lower) and 4.1 (evaluated at Q = 384).
    "vgg": Source(
        IMAGENET,
        [1e-2, 1e-3, 1e-4, 1e-5],
        SGD
        | {"weight_decay": 5e-4, "batch_size": 256, "epochs": 74, "image_size": 224}
        | {"train_crop": "scale", "lighting": 0.1},
        steps=370_000,
        sides=(256, 512),
        evaluated=384,
    ),
    # He et al. 2015, section 3.4.
    "resnet": Source(
        IMAGENET,
        [0.1, 0.01, 0.001],
        SGD
        | {"weight_decay": 1e-4, "batch_size": 256, "epochs": 120, "image_size": 224}
        | {"train_crop": "scale", "lighting": 0.1},
        steps=600_000,
        sides=(256, 480),
        evaluated=256,
    ),
    # He et al. 2015, section 4.2: divided by 10 at 32,000 and 48,000 of 64,000 steps. The recipe is
    # in epochs of 390 steps, so up to half of them early or late.
    "cifar_resnet": Source(
        CIFAR,
        {
            0: 0.1,
            31_805 / 390: 0.1,
            32_195 / 390: 0.01,
            47_805 / 390: 0.01,
            48_195 / 390: 0.001,
            63_805 / 390: 0.001,
        },
        SHIFTED | {"weight_decay": 1e-4, "batch_size": 128, "epochs": 164},
        steps=64_000,
    ),
    # Zagoruyko and Komodakis 2016, section 3, "Implementation details".
    "wrn": Source(
        CIFAR,
        {
            0: 0.1,
            59.99: 0.1,
            60: 0.02,
            119.99: 0.02,
            120: 0.004,
            159.99: 0.004,
            160: 0.0008,
            199.99: 0.0008,
        },
        SHIFTED | {"nesterov": True, "weight_decay": 5e-4, "batch_size": 128, "epochs": 200},
    ),
    # Huang et al. 2017, section 4.2: divided at a half and at three quarters of 300 epochs.
    "cifar_densenet": Source(
        CIFAR,
        AT_150_225,
        SHIFTED | {"nesterov": True, "weight_decay": 1e-4, "batch_size": 64, "epochs": 300},
    ),
    # Han et al. 2017, section 4.
    "pyramidnet": Source(
        CIFAR,
        AT_150_225,
        SHIFTED | {"nesterov": True, "weight_decay": 1e-4, "batch_size": 128, "epochs": 300},
    ),
    # Xie et al. 2017, appendix A; Nesterov is in train.lua of facebookresearch/ResNeXt.
    "cifar_resnext": Source(
        CIFAR,
        AT_150_225,
        SHIFTED | {"nesterov": True, "weight_decay": 5e-4, "batch_size": 128, "epochs": 300},
    ),
    # Szegedy et al. 2015, "Rethinking", sections 7 and 8; the rest, synchronous, is in
    # inception_distributed_train.py and slim of tensorflow/models.
    "inception": Source(
        IMAGENET,
        {
            0: 0.045,
            1.99: 0.045,
            2: 0.045 * 0.94,
            10: 0.045 * 0.94**5,
            99.99: 0.045 * 0.94**49,
        },
        RMSPROP
        | PARTS
        | COLOURS
        | {"epsilon": 1.0, "clip_norm": 2.0, "weight_decay": 4e-5, "batch_size": 50 * 32}
        | {"epochs": 100, "image_size": 299, "label_smoothing": 0.1, "average": 0.9999},
        evaluated=round(299 / 0.875),
    ),
    # Sandler et al. 2018, section 6.1. The README of slim/nets/mobilenet in tensorflow/models has
    # 0.045 times the replicas for averaged gradients, smoothing and average, and
    # train_image_classifier.py epsilon.
    "mobilenet_v2": Source(
        IMAGENET,
        {0: 0.72, 0.99: 0.72, 1: 0.72 * 0.98, 100.5: 0.72 * 0.98**100},
        RMSPROP
        | PARTS
        | COLOURS
        | {"epsilon": 1.0, "weight_decay": 4e-5, "batch_size": 16 * 96, "epochs": 300}
        | {"image_size": 224, "label_smoothing": 0.1, "average": 0.9999},
        evaluated=256,
    ),
    # Howard et al. 2019, section 6.1.1. 1 % less every 3 epochs; warm-up and epsilon are in the
    # utils.py that MnasNet's and EfficientNet's code share, the length in torchvision's references.
    "mobilenet_v3": Source(
        IMAGENET,
        {
            0: 0.0,
            2.5: 0.05,
            5: 0.1 * 0.99,
            5.99: 0.1 * 0.99,
            6: 0.1 * 0.99**2,
            599.99: 0.1 * 0.99**199,
        },
        RMSPROP
        | PARTS
        | COLOURS
        | {"epsilon": 1e-3, "weight_decay": 1e-5, "batch_size": 4096, "epochs": 600}
        | {"image_size": 224, "label_smoothing": 0.1, "average": 0.9999, "dropout_rate": 0.2}
        | {"bn_momentum": 0.99},
        evaluated=256,
    ),
    # Ma et al. 2018, section 4, by Zhang et al. 2018, section 4; smoothing and colours are in
    # train.py of megvii-model/ShuffleNet-Series.
    "shufflenet": Source(
        IMAGENET,
        {0: 0.5, 75_000 / 1251: 0.375, 150_000 / 1251: 0.25, 225_000 / 1251: 0.125},
        SGD
        | PARTS
        | {"weight_decay": 4e-5, "batch_size": 1024, "epochs": 240, "image_size": 224}
        | {"label_smoothing": 0.1, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
        steps=300_000,
        evaluated=256,
        tolerance=3e-3,
    ),
    # Tan and Le 2019, section 5.2; main.py and utils.py of tensorflow/tpu's efficientnet have the
    # batch (0.016 for 256 images), 350 epochs, warm-up, epsilon, smoothing and average.
    "efficientnet": Source(
        IMAGENET,
        EFFICIENTNET,
        RMSPROP
        | PARTS
        | {"epsilon": 1e-3, "weight_decay": 1e-5, "batch_size": 256 * 256 // 16, "epochs": 350}
        | {"label_smoothing": 0.1, "average": 0.9999, "bn_momentum": 0.99, "drop_path_rate": 0.2}
        | {"policy": "autoaugment-imagenet", "interpolation": "bicubic"},
        evaluated=256,
    ),
    # Tan and Le 2021, section 5.1 and table 6, S.
    "efficientnet_v2": Source(
        IMAGENET,
        EFFICIENTNET,
        RMSPROP
        | PARTS
        | {"epsilon": 1e-3, "weight_decay": 1e-5, "batch_size": 4096, "epochs": 350}
        | {"label_smoothing": 0.1, "average": 0.9999, "bn_momentum": 0.99, "drop_path_rate": 0.2}
        | {"policy": "randaugment", "policy_operations": 2, "policy_magnitude": 15}
        | {"dropout_rate": 0.3, "image_size": 300, "eval_size": 384, "interpolation": "bicubic"}
        | {
            "stages": 4,
            "start": (("image_size", 128), ("policy_magnitude", 5), ("dropout_rate", 0.1)),
        },
    ),
}

# Wightman et al. 2021, table 2: what A1 to A3 share. timm changes the rate by epochs and begins its
# warm-up at 1e-4.
STRIKES_BACK = {
    **PARTS,
    "optimizer": "lamb",
    "epsilon": 1e-6,
    "batch_size": 2048,
    "flip": 0.5,
    "loss": "binary",
    "policy": "randaugment-increasing",
    "policy_operations": 2,
    "policy_deviation": 0.5,
    "cutmix": 1.0,
    "mix_probability": 1.0,
    "mix_switch": 0.5,
    "interpolation": "bicubic",
}
SOURCES |= {
    "strikes_back_a1": Source(
        IMAGENET,
        {
            0: 1e-4,
            4.99: 1e-4 + 4.9e-3 * 4 / 5,
            5: 5e-3,
            5.99: 5e-3,
            153: cosine(5e-3, 148 / 595),
            599: cosine(5e-3, 594 / 595),
        },
        STRIKES_BACK
        | {"weight_decay": 0.01, "epochs": 600, "image_size": 224, "label_smoothing": 0.1}
        | {"policy_magnitude": 7, "mixup": 0.2, "repeats": 3, "drop_path_rate": 0.05},
        evaluated=round(224 / 0.95),
    ),
    "strikes_back_a2": Source(
        IMAGENET,
        {0: 1e-4, 5: 5e-3, 152: cosine(5e-3, 147 / 295), 299: cosine(5e-3, 294 / 295)},
        STRIKES_BACK
        | {"weight_decay": 0.02, "epochs": 300, "image_size": 224}
        | {"policy_magnitude": 7, "mixup": 0.1, "repeats": 3, "drop_path_rate": 0.05},
        evaluated=round(224 / 0.95),
    ),
    "strikes_back_a3": Source(
        IMAGENET,
        {0: 1e-4, 1: 1e-4 + 7.9e-3 / 5, 5: 8e-3, 52: cosine(8e-3, 47 / 95)},
        STRIKES_BACK
        | {"weight_decay": 0.02, "epochs": 100, "image_size": 160, "eval_size": 224}
        | {"policy_magnitude": 6, "mixup": 0.1},
        evaluated=round(224 / 0.95),
    ),
    # The blog post that `Recipe.source` names, and its train.py: LinearLR from 0.01 over 5 epochs,
    # then CosineAnnealingLR over 595.
    "torchvision_v2": Source(
        IMAGENET,
        {
            0: 0.005,
            1: 0.005 + 0.495 / 5,
            5: 0.5,
            302: cosine(0.5, 297 / 595),
            599: cosine(0.5, 594 / 595),
        },
        SGD
        | PARTS
        | {"weight_decay": 2e-5, "batch_size": 8 * 128, "epochs": 600, "image_size": 176}
        | {"eval_size": 224, "policy": "trivialaugment-wide", "erasing": 0.1, "mixup": 0.2}
        | {"cutmix": 1.0, "repeats": 4, "label_smoothing": 0.1}
        # An average that keeps 0.99998 an image and is updated every 32 steps, less often the
        # more epochs: train.py takes (1 - 0.99998) 8 128 32 / 600 of the weights each time.
        | {"average": pytest.approx((1 - 2e-5 * 8 * 128 * 32 / 600) ** (1 / 32), abs=1e-7)},
        evaluated=232,
    ),
    # No paper: AdamW and a cosine as Loshchilov and Hutter 2019 have them, and by trial.
    "default": Source(
        10_000,
        {0: 0.0, 0.5: 1.5e-3, 1: 3e-3, 15.5: 1.5e-3},
        {"weight_decay": 0.05, "batch_size": 128, "epochs": 30, "flip": 0.5}
        | {"train_crop": "random", "crop_area": 0.75},
        evaluated=256,
    ),
    "digits": Source(
        DIGITS,
        {0: 0.0, 1: 1e-2, 15.5: cosine(1e-2, 537 / 1073)},
        {"weight_decay": 0.05, "batch_size": 32, "epochs": 30, "image_size": 64}
        | {"train_crop": "random", "crop_area": 0.75, "label_smoothing": 0.1}
        | {"bn_momentum": 0.9, "stop_at": 0.99, "stop_patience": 4},
        evaluated=64,
    ),
}


def test_no_recipe_is_without_its_source() -> None:
    assert SOURCES.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_the_sources(name: str) -> None:
    """And nothing is in use that the source does not have."""
    source = SOURCES[name]
    recipe = RECIPES[name].for_images(source.images)
    neutral = dataclasses.asdict(Recipe(source="", command="", expected=""))
    expected = neutral | source.settings
    told = {*settings(), "start"} - TOLD_BY_RATES - TOLD_BY_SIDES
    assert {key: getattr(recipe, key) for key in told} == {key: expected[key] for key in told}


@pytest.mark.parametrize("name", RECIPES)
def test_images_are_cut_from_the_sources_sides(name: str) -> None:
    source, recipe = SOURCES[name], RECIPES[name]
    if recipe.train_crop == "scale":
        assert tuple(round(scale * recipe.image_size) for scale in recipe.scales) == source.sides
    else:
        assert source.sides is None
    size = recipe.eval_size or recipe.image_size or 224
    crop = 0.875 if recipe.crop is None else recipe.crop  # as the trainer has it by default
    assert round(size / crop) == (source.evaluated or size)


@pytest.mark.parametrize("name", [n for n, s in SOURCES.items() if isinstance(s.rates, dict)])
def test_rates_are_the_sources(name: str) -> None:
    source = SOURCES[name]
    recipe = RECIPES[name].for_images(source.images)
    steps = recipe.steps_per_epoch(source.images)
    schedule = make_schedule(recipe, steps)
    found = {epoch: float(schedule(math.ceil(epoch * steps - 1e-6))) for epoch in source.rates}
    assert found == pytest.approx(source.rates, rel=source.tolerance, abs=1e-12)
    if recipe.schedule in ("cosine", "linear"):  # the last step's is next to nothing
        assert float(schedule(recipe.epochs * steps - 1)) < 1e-3 * recipe.learning_rate
    if source.steps is not None:
        assert abs(recipe.epochs * steps - source.steps) <= steps


@pytest.mark.parametrize("name", [n for n, s in SOURCES.items() if isinstance(s.rates, list)])
def test_rates_fall_where_the_accuracy_stays(name: str) -> None:
    source, recipe = SOURCES[name], RECIPES[name]
    steps = recipe.steps_per_epoch(source.images)
    scale = keras.Variable(1.0)
    schedule = make_schedule(recipe, steps, scale)
    plateau, state = Plateau(recipe.factor, recipe.patience), PlateauState()
    rates = []
    # It gains for 20 epochs, and then no more.
    for epoch in range(recipe.epochs):
        scale.assign(state.scale)
        rates.append(float(schedule(epoch * steps)))
        state = plateau.update(state, min(epoch, 20) / 100)
    assert set(rates[:21]) == {rates[0]}
    distinct = list(dict.fromkeys(rates))[: len(source.rates)]
    assert distinct == pytest.approx(source.rates, rel=source.tolerance)
    if source.steps is not None:
        assert abs(recipe.epochs * steps - source.steps) <= steps


def test_efficientnet_v2_grows_in_four_stages() -> None:
    """Tan and Le 2021, table 6, S, and algorithm 1: by equal parts in 87 or 88 epochs each."""
    recipe = RECIPES["efficientnet_v2"]
    assert [recipe.stage_of(epoch) for epoch in (0, 87, 88, 174, 175, 262, 263, 349)] == [
        *(0, 0, 1, 1, 2, 2, 3, 3)
    ]
    stages = [recipe.at_stage(stage) for stage in range(4)]
    assert [stage.image_size for stage in stages] == [128, 185, 243, 300]
    for name, values in {
        "policy_magnitude": [5, 5 + 10 / 3, 5 + 20 / 3, 15],
        "dropout_rate": [0.1, 0.1 + 0.2 / 3, 0.1 + 0.4 / 3, 0.3],
    }.items():
        assert [getattr(stage, name) for stage in stages] == pytest.approx(values)
