"""Makes tests/goldens/augment.npz and augment_timm.npz with torchvision and timm.

    pip install torch torchvision timm pillow
    python tests/make_augment_goldens.py PHOTO

PHOTO is china.jpg of scikit-learn, a part of which becomes the image that every operation is
applied to. Stored beside it are the results, by operation and magnitude; the magnitudes of the
policies at all of their levels; AutoAugment's policies; and boxes that the peers draw. Nothing of
kapps is imported here, and the operations carry the peers' names.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_goldens import declare_torchvision_operators
from PIL import Image

GOLDENS = Path(__file__).parent / "goldens"

PART = (308, 340, 336, 360)  # left, top, right, bottom: flowers and hedge; wider than high
FILL = (124, 116, 104)
SIZE = (224, 160)  # width and height that the levels of translations are of

MAGNITUDES = {
    **dict.fromkeys(("Identity", "AutoContrast", "Equalize", "Invert"), (0.0,)),
    **dict.fromkeys(("ShearX", "ShearY"), (0.05, -0.05, 0.3, -0.3, 0.99, -0.99)),
    **dict.fromkeys(("TranslateX", "TranslateY"), (3.0, -3.0, 7.6, -7.6, 18.0, -18.0)),
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.09, -0.09, 0.9, -0.9)),
    "Rotate": (5.0, -5.0, 30.0, -30.0, 135.0, -135.0),
    "Posterize": (8.0, 7.0, 5.0, 4.0, 2.0),
    "Solarize": (255.0, 178.5, 85.0, 0.0),
}
HUES = (0.1, -0.1, 0.5, -0.5)
BOXES = 1500


def torchvision_goldens(image: Image.Image) -> dict[str, Any]:
    from torchvision.transforms import RandomResizedCrop, autoaugment, functional

    nearest = functional.InterpolationMode.NEAREST
    found: dict[str, Any] = {}
    for name, magnitudes in MAGNITUDES.items():
        for magnitude in magnitudes:
            changed = autoaugment._apply_op(image, name, magnitude, nearest, list(FILL))
            found[f"apply {name} {magnitude}"] = np.asarray(changed)
    for hue in HUES:
        found[f"apply Hue {hue}"] = np.asarray(functional.adjust_hue(image, hue))
    height_width = SIZE[::-1]
    spaces = {
        "rand": autoaugment.RandAugment()._augmentation_space(31, height_width),
        "auto": autoaugment.AutoAugment()._augmentation_space(10, height_width),
        "wide": autoaugment.TrivialAugmentWide()._augmentation_space(31),
    }
    for space, operations in spaces.items():
        for name, (levels, signed) in operations.items():
            found[f"level {space} {name} {signed}"] = levels.numpy().astype(np.float32)
    for policy in autoaugment.AutoAugmentPolicy:
        pairs = autoaugment.AutoAugment(policy).policies
        found[f"policy {policy.value}"] = np.array([[*a, *b] for a, b in pairs], dtype=str)
    for width, height in ((320, 200), (100, 40), (32, 32)):
        picture = Image.new("RGB", (width, height))
        drawn = [
            RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(BOXES)
        ]
        boxes = np.array([(left, top, w, h) for top, left, h, w in drawn], np.int16)
        found[f"crop {width} {height}"] = boxes
    return found


def timm_goldens(image: Image.Image) -> dict[str, Any]:
    from timm.data import auto_augment
    from timm.data.random_erasing import RandomErasing

    hparams = {"translate_const": 100, "img_mean": FILL}
    found: dict[str, Any] = {}
    levels = np.arange(0, 10.5, 0.5)
    resamples = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    for name in auto_augment._RAND_INCREASING_TRANSFORMS:
        level_to_argument = auto_augment.LEVEL_TO_ARG[name]
        if level_to_argument is None:
            continue
        for sign in (1, -1):
            auto_augment._randomly_negate = lambda value, sign=sign: sign * value
            arguments = [level_to_argument(level, hparams)[0] for level in levels]
            found[f"level {name} {sign}"] = np.array(arguments)
            argument = level_to_argument(7, hparams)[0]
            for word, resample in resamples.items():
                changed = auto_augment.NAME_TO_OP[name](
                    image, argument, fillcolor=FILL, resample=resample
                )
                found[f"apply {name} {sign} {word}"] = np.asarray(changed)
    for width, height in ((64, 40), (32, 32)):
        erase = RandomErasing(probability=1, mode="const", device="cpu")
        boxes = []
        while len(boxes) < BOXES:
            rows, columns = np.nonzero(erase(torch.ones(1, height, width))[0].numpy() == 0)
            if len(rows):
                left, top = columns.min(), rows.min()
                boxes.append((left, top, columns.max() + 1 - left, rows.max() + 1 - top))
        found[f"erase {width} {height}"] = np.array(boxes, np.int16)
    return found


def main(photo: str) -> None:
    library = declare_torchvision_operators()
    torch.manual_seed(0)
    random.seed(0)
    image = Image.open(photo).convert("RGB").crop(PART)
    pixels = np.asarray(image)
    # Of an image that has all of 0..255 autocontrast would test nothing.
    assert pixels.min() > 0 or pixels.max() < 255
    for name, found in (
        ("augment", torchvision_goldens(image)),
        ("augment_timm", timm_goldens(image)),
    ):
        np.savez_compressed(GOLDENS / f"{name}.npz", image=pixels, **found)
    del library


if __name__ == "__main__":
    main(sys.argv[1])
