"""Makes the golden logits of tests/goldens from the reference implementations.

    pip install torch torchvision timm numpy
    python tests/make_goldens.py [MODEL ...]

A peer is filled with the weights of `model_table.tensor`, a function of each parameter's published
name and shape; stored are its logits, and one number for each batch norm. The tests fill our model
by the same rule, through the same loader that reads published files. All is computed in double
precision: in single precision rounding alone moves the logits of the deep networks by up to a
hundredth of their spread. Nothing of kapps is imported here.
"""

from __future__ import annotations

import functools
import sys

import model_table
import numpy as np
import torch


def lenet() -> torch.nn.Module:
    """LeNet-5 as in PyTorch's tutorial "Training a Classifier", for one channel and 32 px."""
    from torch import nn

    class LeNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
            self.fc1, self.fc2, self.fc3 = (
                nn.Linear(16 * 5 * 5, 120),
                nn.Linear(120, 84),
                nn.Linear(84, 10),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
            x = nn.functional.max_pool2d(self.conv2(x).relu(), 2).flatten(1)
            return self.fc3(self.fc2(self.fc1(x).relu()).relu())

    return LeNet()


def build(peer: str) -> torch.nn.Module:
    library, name = peer.split(":")
    if library == "pytorch":
        return {"lenet": lenet}[name]()
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    import torchvision

    # GoogLeNet would spend a minute on its initial weights, and brings auxiliary heads.
    arguments = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    return getattr(torchvision.models, name)(weights=None, **arguments)


def declare_torchvision_operators() -> torch.library.Library:
    """torchvision's compiled half does not load beside a PyTorch built for the CPU alone.

    Its import looks up two operators that no classifier uses; the declaration lasts as long as
    what is returned.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    return library


def scale_batch_norms(model: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    """Scales the statistics of every batch norm to the standard deviation of what it gets.

    Returns:
        The factors, in the order of `model_table.batch_norms`.
    """
    found: dict[str, float] = {}

    def scale(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], path: str) -> None:
        found[path] = float(f"{inputs[0].std().item():.3g}")
        for name in ("running_mean", "running_var"):
            buffer = getattr(module, name)
            value = model_table.tensor(f"{path}.{name}", tuple(buffer.shape), found[path])
            buffer.copy_(torch.from_numpy(value))

    hooks = [
        module.register_forward_pre_hook(functools.partial(scale, path=path))
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return np.array([found[path] for path in model_table.batch_norms(model.state_dict())])


def main(names: list[str]) -> None:
    library = declare_torchvision_operators()
    for row in model_table.TABLE:
        if not row.peer or (names and row.name not in names):
            continue
        model = build(row.peer).eval()
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == row.parameters, f"{row.name}: the peer has {count} parameters"
        model.load_state_dict(
            {
                key: value
                if key.endswith("num_batches_tracked")
                else torch.from_numpy(model_table.tensor(key, tuple(value.shape)))
                for key, value in model.state_dict().items()
            }
        )
        model = model.double()
        images = torch.from_numpy(model_table.golden_images(row).transpose(0, 3, 1, 2).copy())
        images = images.double()
        with torch.inference_mode():
            scales = scale_batch_norms(model, images)
            logits = model(images).numpy()
            # One image after the other the sums run in another order: what that changes is noise.
            again = torch.cat([model(image[None]) for image in images]).numpy()
        noise = np.abs(again - logits).max() / logits.std()
        # Logits that do not move from image to image, or explode, would test nothing.
        moved = np.abs(logits[1:] - logits[:1]).mean() / logits.std()
        print(
            f"{row.name}: spread {logits.std():.3g}, moved {moved:.2f}, rounding {noise:.1e} of it",
            flush=True,
        )
        assert moved > 0.1, "the logits hardly move"
        # Nor would those that the peer itself does not know to a fraction of the tolerance.
        assert noise < 1e-10, "too much of the spread is rounding"
        np.savez(model_table.GOLDENS / f"{row.name}.npz", logits=logits, scales=scales)
    del library


if __name__ == "__main__":
    main(sys.argv[1:])
