"""Every public model: the one table that drives the model tests and the golden files.

No row, no merge: `test_models.py` compares the table with `kapps.list_models()`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN_IMAGES = 3


class Row(NamedTuple):
    name: str
    input_shape: tuple[int, int, int]
    """The default input: the parameter count holds for it."""
    parameters: int
    """Trainable ones, as the peer counts them."""
    peer: str
    """library:name, as make_goldens.py builds it."""
    golden_size: int
    """Height and width of the golden images, pixels."""
    min_size: int


TABLE = [
    Row("LeNet5", (32, 32, 1), 61_706, "pytorch:lenet", 32, 16),
    Row("MobileNetV3Small", (224, 224, 3), 2_542_856, "timm:mobilenetv3_small_100", 64, 32),
    Row("ShuffleNetV2_x0_5", (224, 224, 3), 1_366_792, "torchvision:shufflenet_v2_x0_5", 64, 32),
    Row("EfficientNetLite0", (224, 224, 3), 4_652_008, "timm:tf_efficientnet_lite0", 64, 32),
]


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden weights: a function of a published tensor's name and shape alone.

    Kernels keep the activations in scale (He et al. 2015); batch norms get statistics and an
    affine part that are not trivial, so that a swapped one shows. Numpy guarantees that
    `RandomState` gives the same numbers for ever.
    """
    random = np.random.RandomState(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    normal = random.standard_normal(shape)
    component = name.rpartition(".")[2]
    if component == "running_var":
        value = np.exp(0.2 * normal)
    elif component == "weight" and len(shape) == 1:
        value = 1 + 0.1 * normal
    elif component == "weight":
        value = normal * np.sqrt(2 / np.prod(shape[1:]))
    else:  # bias, running_mean
        value = 0.1 * normal
    return value.astype(np.float32)


def golden_images(row: Row) -> np.ndarray:
    """Normalized images (n, h, w, c), float32, that differ in their large structure."""
    random = np.random.RandomState(7)
    size, channels = row.golden_size, row.input_shape[2]
    coarse = random.standard_normal((GOLDEN_IMAGES, 4, 4, channels)).repeat(size // 4, 1)
    fine = random.standard_normal((GOLDEN_IMAGES, size, size, channels))
    return (coarse.repeat(size // 4, 2) + 0.3 * fine).astype(np.float32)
