"""Makes tests/goldens/zip.pth and legacy.pth with PyTorch: both forms of its files, few kB each.

python tests/make_pth_goldens.py
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

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


if __name__ == "__main__":
    main()
