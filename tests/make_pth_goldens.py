"""Makes tests/goldens/zip.pth and legacy.pth with PyTorch: both forms of its files, few kB each;
and checkpoints as training programs write them, with all that they put beside the weights.

python tests/make_pth_goldens.py
"""

from __future__ import annotations

import argparse
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"


def expected() -> dict[str, np.ndarray]:
    """What the files hold, by name; bfloat16 as float32."""
    base = np.arange(24, dtype=np.float32) / 8 - 1
    return {
        "conv.weight": base.reshape(2, 3, 2, 2),
        "conv.bias": np.array([0.5, -2.0], np.float32),
        "bn.num_batches_tracked": np.array(12345678901, np.int64),
        "transposed": base.reshape(4, 6).T,
        "shared.first": base[:6],
        "shared.rest": base[6:].reshape(3, 6)[:, 1:4],
        "half": base.astype(np.float16),
        "bfloat": _truncated([1.0, -2.5, 3.0e38, 1e-3]),
        "double": np.array([[np.pi]]),
        "int": np.array([-7, 7], np.int32),
        "byte": np.arange(5, dtype=np.uint8),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }


def _truncated(numbers: list[float]) -> np.ndarray:
    """To the numbers that bfloat16 has: the upper 16 of 32 bits."""
    return (np.array(numbers, np.float32).view(np.uint32) >> 16 << 16).view(np.float32)


CHECKPOINTS = ("timm", "torchvision", "parallel", "tutorial", "whole_model")


def trained(average: bool = False) -> dict[str, np.ndarray]:
    """The weights of a small network, after training; or the moving average of them."""
    shapes = {"stem.conv.weight": (4, 3, 3, 3), "fc.weight": (3, 4), "fc.bias": (3,)}
    return {
        name: (np.arange(np.prod(shape), dtype=np.float32) / 64 + average).reshape(shape)
        for name, shape in shapes.items()
    }


def checkpoints() -> dict[str, Any]:
    """As timm's train.py and torchvision's references/classification write them, after an epoch;
    from inside of torch.compile and DataParallel; as in PyTorch's tutorial; and a whole module.
    """
    import torch

    stem = torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(3, 4, 3, bias=False)))
    parts = OrderedDict(stem=stem, pool=torch.nn.AdaptiveAvgPool2d(1), flatten=torch.nn.Flatten())
    net = torch.nn.Sequential(parts | OrderedDict(fc=torch.nn.Linear(4, 3)))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])
    net(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    schedule.step()
    state, average = (
        OrderedDict((name, torch.tensor(value)) for name, value in trained(mean).items())
        for mean in (False, True)
    )
    net.load_state_dict(state)
    args = argparse.Namespace(
        model="net", lr=0.1, output=Path("runs"), device=torch.device("cpu"), crop={1, 2}
    )
    assert isinstance(schedule.state_dict()["milestones"], Counter)
    averaged = OrderedDict(n_averaged=torch.tensor(7))
    averaged.update({f"module.{name}": value for name, value in average.items()})
    return {
        "timm": {
            "epoch": 3,
            "arch": "net",
            "state_dict": state,
            "optimizer": optimizer.state_dict(),
            "version": 2,
            "args": args,
            "state_dict_ema": average,
            "metric": np.float64(71.5),
        },
        "torchvision": {
            "model": state,
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": schedule.state_dict(),
            "epoch": 3,
            "args": args,
            "model_ema": averaged,
        },
        "parallel": {f"_orig_mod.module.{name}": value for name, value in state.items()},
        "tutorial": {
            "epoch": 3,
            "model_state_dict": state,
            "optimizer_state_dict": optimizer.state_dict(),
            "loss": 0.5,
        },
        "whole_model": {"epoch": 3, "model": net},
    }


def main() -> None:
    import torch

    arrays = expected()
    tensors = OrderedDict((name, torch.tensor(value)) for name, value in arrays.items())
    base = torch.tensor(arrays["conv.weight"].copy().reshape(-1))
    tensors["conv.weight"] = torch.nn.Parameter(tensors["conv.weight"])
    tensors["transposed"] = torch.tensor(arrays["transposed"].T.copy()).t()
    tensors["shared.first"] = base[:6]
    tensors["shared.rest"] = base[6:].reshape(3, 6)[:, 1:4]
    tensors["bfloat"] = tensors["bfloat"].to(torch.bfloat16)
    tensors._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    for form in ("zip", "legacy"):
        file = GOLDENS / f"{form}.pth"
        torch.save(tensors, file, _use_new_zipfile_serialization=form == "zip")
    for name, content in checkpoints().items():
        # The old form in one of them, which has its storages one after the other.
        is_zip = name != "torchvision"
        file = GOLDENS / f"checkpoint_{name}.pth"
        torch.save(content, file, _use_new_zipfile_serialization=is_zip)


if __name__ == "__main__":
    main()
