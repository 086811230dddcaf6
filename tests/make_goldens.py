"""Makes the golden logits of tests/goldens from the reference implementations.

    pip install torch torchvision timm numpy
    python tests/make_goldens.py [MODEL ...]

A peer is filled with the weights of `model_table.tensor`, a function of each parameter's published
name and shape, and only its logits are stored. The tests fill our model by the same rule, through
the same loader that reads published files. Nothing of kapps is imported here.
"""

from __future__ import annotations

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

    return getattr(torchvision.models, name)(weights=None)


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


def main(names: list[str]) -> None:
    library = declare_torchvision_operators()
    for row in model_table.TABLE:
        if names and row.name not in names:
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
        images = torch.from_numpy(model_table.golden_images(row).transpose(0, 3, 1, 2).copy())
        with torch.inference_mode():
            logits = model(images).numpy()
        # Logits that do not move from image to image, or explode, would test nothing.
        moved = np.abs(logits[1:] - logits[:1]).mean() / logits.std()
        assert moved > 0.1, f"{row.name}: the logits hardly move ({moved:.3f})"
        np.save(model_table.GOLDENS / f"{row.name}.npy", logits)
        print(f"{row.name}: spread {logits.std():.3g}, moved by {moved:.2f} of it")
    del library


if __name__ == "__main__":
    main(sys.argv[1:])
