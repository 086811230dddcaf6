"""The golden maps: what make_explain_goldens.py makes and test_explain_maps.py compares."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from model_table import GOLDENS, batch_norms, tensor

if TYPE_CHECKING:  # the peers' environment has no Keras
    import keras

FILE = GOLDENS / "explain.npz"
PHOTOGRAPHS = (0, 1)
"""Numbers of foolbox's ImageNet pictures."""
CLASSES = (243, 559)
"""What they show."""
STEPS = 20
"""Of integrated gradients."""
WINDOW, STRIDE, GRAY = 14, 7, 127.5
"""Of occlusion: pixels, and what the window shows."""
ROWS = slice(3, None, 41)
"""Of a whole photograph's map: what is stored of it as it is, besides means of blocks."""

PEER_CAMS = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMPlusPlus",
    "layer_cam": "LayerCAM",
    "score_cam": "ScoreCAM",
}


class Case(NamedTuple):
    net: str
    method: str
    whole: bool = False
    """224 pixels; otherwise the photographs are shrunk to 56."""
    layer: str | None = None
    """By kapps's name; "" for the map that the head takes. None for a map of pixels."""
    peer_layer: str = ""

    @property
    def few(self) -> bool:
        """Whether it is tested on every backend, each method once."""
        return self.net == "resnet18"

    @property
    def key(self) -> str:
        layer = {None: "", "": "-last"}.get(self.layer, f"-{self.layer}")
        return f"{self.net}-{self.method}-{224 if self.whole else 56}{layer}"


CASES = [
    Case("lite0", "grad_cam", True, "", "bn2"),
    Case("lite0", "grad_cam_plus_plus", True, "", "bn2"),
    Case("lite0", "layer_cam", True, "", "bn2"),
    Case("lite0", "saliency", True),
    Case("lite0", "grad_cam", False, "blocks.4.2", "blocks.4.2"),
    Case("lite0", "grad_cam_plus_plus", False, "blocks.4.2", "blocks.4.2"),
    Case("lite0", "layer_cam", False, "blocks.1.1", "blocks.1.1"),
    Case("lite0", "score_cam", False, "blocks.4.2", "blocks.4.2"),
    Case("lite0", "score_cam", False, "act1", "bn1"),
    Case("lite0", "saliency"),
    Case("lite0", "guided_backpropagation"),
    Case("lite0", "integrated_gradients"),
    Case("lite0", "occlusion"),
    Case("resnet18", "grad_cam", False, "layer3.1", "layer3.1"),
    Case("resnet18", "grad_cam_plus_plus", False, "layer3.1", "layer3.1"),
    Case("resnet18", "layer_cam", False, "layer2.1", "layer2.1"),
    Case("resnet18", "score_cam", False, "layer1.1", "layer1.1"),
    Case("resnet18", "saliency"),
    Case("resnet18", "guided_backpropagation"),
    Case("resnet18", "integrated_gradients"),
]


def shrunk(images: np.ndarray) -> np.ndarray:
    """A quarter of the sides, by means, which are exact in float32."""
    return images.reshape(len(images), 56, 4, 56, 4, 3).mean(axis=(2, 4), dtype="float64")


def stored(key: str, maps: np.ndarray) -> dict[str, np.ndarray]:
    """What stands for maps (N, h, w): their range, and small ones whole, or means and rows."""
    found = {"range": np.ptp(maps, axis=(1, 2))}
    if maps.shape[1] < 224:
        found["maps"] = maps
    else:
        found["blocks"] = maps.reshape(len(maps), 28, 8, 28, 8).mean(axis=(2, 4))
        found["rows"] = maps[:, ROWS]
    return {f"{key}:{name}": value.astype("float32") for name, value in found.items()}


# --- Ours -----------------------------------------------------------------------------------------


def net(case: Case, lite0: keras.Model) -> keras.Model:
    """In the precision that Keras is set to, with the weights that the peer had."""
    import kapps
    from kapps import weights

    shape = (224, 224, 3) if case.whole else (56, 56, 3)
    if case.net == "lite0":
        model = kapps.EfficientNetLite0(input_shape=shape)
        model.set_weights(lite0.get_weights())
        return model
    model = kapps.ResNet18(input_shape=shape)
    shapes = {
        weights.published_name(parameter, model): parameter.shape
        for parameter in weights.published_parameters(model)
    }
    scales = np.load(GOLDENS / "ResNet18.npz")["scales"]
    by_path = dict(zip(batch_norms(shapes), scales, strict=True))
    tensors = {
        name: tensor(name, shape, by_path.get(name.rpartition(".")[0], 1.0))
        for name, shape in shapes.items()
    }
    weights.assign(model, tensors, Path("golden"))
    return model


def maps(case: Case, model: keras.Model, photographs: np.ndarray) -> np.ndarray:
    from kapps import explain

    pictures = photographs[list(PHOTOGRAPHS)]
    arguments: dict[str, Any] = {
        "integrated_gradients": {"steps": STEPS},
        "occlusion": {"size": WINDOW, "stride": STRIDE, "value": GRAY},
    }.get(case.method, {"layer": case.layer} if case.layer else {})
    shown = pictures if case.whole else shrunk(pictures)
    return getattr(explain, case.method)(model, shown, list(CLASSES), **arguments)


def apart(case: Case, found: np.ndarray) -> float:
    """The largest difference from the peers' maps, as a share of the peer's map's range."""
    golden = np.load(FILE)
    limits = golden[f"{case.key}:range"][:, None, None]
    return max(
        float((np.abs(mine - golden[name]) / limits).max())
        for name, mine in stored(case.key, found).items()
        if not name.endswith("range")
    )


def same_pixels(photographs: np.ndarray) -> bool:
    """Whether Pillow prepares here what it did where the goldens were made."""
    pictures = photographs[list(PHOTOGRAPHS)].astype("uint8")
    return [zlib.crc32(picture.tobytes()) for picture in pictures] == list(np.load(FILE)["crc32"])
