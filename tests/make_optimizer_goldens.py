"""Makes tests/goldens/optimizers.npz: what PyTorch and timm do with weights and learning rates.

    pip install torch timm numpy
    python tests/make_optimizer_goldens.py

Optimizers go down a noisy bowl, `gradient`, which the tests go down as well; stored are the
weights, in PyTorch's layouts and in double precision, after some of the steps. Nothing of kapps is
imported here, and torch only by `main`: the tests take the problem and its settings from here.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).with_name("goldens") / "optimizers.npz"

# PyTorch's layouts. The last two have ways of their own through the trust ratios: a kernel of zeros
# has no norm to go by.
SHAPES = {
    "conv": (4, 3, 3, 3),
    "depthwise": (6, 1, 3, 3),
    "dense": (5, 6),
    "bias": (5,),
    "zeros": (3, 4),
}
STEPS = (1, 10, 50, 200)

# name: class, learning rate, what kapps.tools.optimizers.make_optimizer takes beside it
OPTIMIZERS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "adamw": ("adamw", 0.02, {"weight_decay": 0.05, "beta_2": 0.99}),
    "adamw_epsilon": ("adamw", 0.02, {"weight_decay": 0.05, "epsilon": 0.1}),
    "lamb": ("lamb", 0.02, {"weight_decay": 0.02}),
    "lamb_no_decay": ("lamb", 0.02, {"weight_decay": 0.0}),
    "lars": ("lars", 0.1, {"momentum": 0.9, "weight_decay": 0.02}),
    "lars_nesterov": ("lars", 0.1, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    "rmsprop": ("rmsprop", 0.01, {"momentum": 0.9, "weight_decay": 0.02, "epsilon": 1e-3}),
    "rmsprop_rho": ("rmsprop", 0.01, {"momentum": 0.0, "rho": 0.99, "epsilon": 1e-3}),
    "sgd": ("sgd", 0.05, {"momentum": 0.9, "weight_decay": 0.02}),
    "sgd_nesterov": ("sgd", 0.05, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    "sgd_plain": ("sgd", 0.05, {"momentum": 0.0, "weight_decay": 0.02}),
}

# Norms around those of the gradients at `start`, so that some are clipped, and some are not.
GLOBAL_NORMS = (0.5, 1000.0)
ADAPTIVE_FACTORS = (0.01, 2.0)

EPOCHS, STEPS_PER_EPOCH, RATE = 30, 10, 0.4  # 2.4 epochs are whole steps: timm rounds down
# name: what kapps.tools.schedules.Schedule takes
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"kind": "cosine", "warmup_epochs": 5, "warmup_start": 0.01, "final": 0.02},
    "cosine_by_epoch": {
        "kind": "cosine",
        "warmup_epochs": 5,
        "warmup_start": 0.01,
        "final": 0.02,
        "by_epoch": True,
    },
    "linear": {"kind": "linear", "final": 0.1},
    "steps_by_epoch": {
        "kind": "steps",
        "boundaries": (10, 20, 25),
        "factor": 0.1,
        "by_epoch": True,
    },
    "exponential": {
        "kind": "exponential",
        "factor": 0.97,
        "decay_epochs": 2.4,
        "warmup_epochs": 3,
        "warmup_start": 0.1,
    },
    "exponential_by_epoch": {
        "kind": "exponential",
        "factor": 0.97,
        "decay_epochs": 2.4,
        "warmup_epochs": 3,
        "warmup_start": 0.1,
        "by_epoch": True,
    },
    "exponential_smooth": {
        "kind": "exponential",
        "factor": 0.97,
        "decay_epochs": 1.0,
        "staircase": False,
    },
}

PLATEAU = {"factor": 0.5, "patience": 3, "minimum": 0.1, "threshold": 1e-3}


@functools.cache
def draw(name: str) -> np.ndarray:
    """Normal numbers for "purpose/tensor"; NumPy keeps those of RandomState for ever."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return random.standard_normal(SHAPES[name.rpartition("/")[2]])


def start(name: str) -> np.ndarray:
    return draw(f"start/{name}") * (name != "zeros")


def gradient(name: str, step: int, weights: np.ndarray) -> np.ndarray:
    """At a place in a bowl that is steeper in some directions than in others, with noise."""
    slope = np.exp(draw(f"slope/{name}")) * (weights - 2 * draw(f"target/{name}"))
    return slope + 0.3 * draw(f"noise{step}/{name}")


def rate_share(step: int) -> float:
    """Of the learning rate, in all runs: falling, and suddenly a tenth."""
    return (1 - step / 400) * (0.1 if step >= 100 else 1.0)


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """All of `SHAPES` as one vector."""
    return np.concatenate([tensors[name].ravel() for name in SHAPES])


def figures() -> np.ndarray:
    """Validation accuracies of a training that gets stuck from time to time."""
    random = np.random.RandomState(0)
    return np.round(0.8 - 0.5 * np.exp(-np.arange(40) / 6) + 0.01 * random.standard_normal(40), 4)


def main() -> None:
    import make_goldens

    library = make_goldens.declare_torchvision_operators()  # timm imports torchvision
    goldens: dict[str, np.ndarray] = {}
    for run in OPTIMIZERS:
        goldens[run] = np.array(list(_descend(run)))
    goldens |= dict(_clipped())
    goldens |= {f"schedule/{name}": rates for name, rates in _schedules().items()}
    goldens["plateau"] = _plateau()
    np.savez_compressed(GOLDENS, **goldens)
    print(f"{GOLDENS}: {len(goldens)} arrays, {GOLDENS.stat().st_size} bytes")
    del library


def _parameters() -> dict[str, Any]:
    import torch

    return {name: torch.nn.Parameter(torch.from_numpy(start(name))) for name in SHAPES}


def _descend(run: str) -> Iterator[np.ndarray]:
    """The weights after each of `STEPS`."""
    import torch

    kind, rate, settings = OPTIMIZERS[run]
    weights = _parameters()
    groups = [
        {"params": [w for w in weights.values() if w.ndim > 1]},
        {"params": [w for w in weights.values() if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = _peer(kind, groups, rate, settings)
    for step in range(max(STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_share(step)
        for name, weight in weights.items():
            weight.grad = torch.from_numpy(gradient(name, step, weight.detach().numpy()))
        optimizer.step()
        if step + 1 in STEPS:
            yield flat({name: weight.detach().numpy() for name, weight in weights.items()})


def _peer(kind: str, groups: list[dict[str, Any]], rate: float, settings: dict[str, Any]) -> Any:
    """The peer's optimizer, by the names that it has for our settings."""
    import timm.optim
    import torch

    classes: dict[str, Callable[..., Any]] = {
        "adamw": torch.optim.AdamW,
        "lamb": timm.optim.Lamb,
        "lars": timm.optim.Lars,
        "rmsprop": timm.optim.RMSpropTF,
        "sgd": torch.optim.SGD,
    }
    names = {"rho": "alpha", "epsilon": "eps"}
    arguments = {names.get(name, name): value for name, value in settings.items()}
    if "beta_2" in arguments:
        arguments["betas"] = (0.9, arguments.pop("beta_2"))
    if kind == "lamb":
        arguments["max_grad_norm"] = None  # clipping is another matter
    return classes[kind](groups, lr=rate, **arguments)


def _clipped() -> Iterator[tuple[str, np.ndarray]]:
    import torch
    from timm.utils.agc import adaptive_clip_grad

    for clip, values in (
        (torch.nn.utils.clip_grad_norm_, GLOBAL_NORMS),
        (adaptive_clip_grad, ADAPTIVE_FACTORS),
    ):
        for value in values:
            weights = _parameters()
            for name, weight in weights.items():
                weight.grad = torch.from_numpy(gradient(name, 0, start(name)))
            clip(list(weights.values()), value)
            kind = "global" if clip is torch.nn.utils.clip_grad_norm_ else "adaptive"
            yield (
                f"{kind}/{value}",
                flat({name: weight.grad.numpy() for name, weight in weights.items()}),
            )


def _schedules() -> dict[str, np.ndarray]:
    """The rate of each step; where it changes by epoch, of each epoch."""
    import timm.scheduler
    import torch.optim.lr_scheduler as torch_schedulers

    steps = EPOCHS * STEPS_PER_EPOCH

    def torch_rates(make: Callable[[Any], Any], count: int) -> np.ndarray:
        optimizer = _idle()
        scheduler, rates = make(optimizer), []
        for _ in range(count):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return np.array(rates)

    def timm_rates(kind: str, unit: int, **arguments: Any) -> np.ndarray:
        """`unit`: steps an epoch, or 1 for a schedule by epoch."""
        optimizer, by_epoch = _idle(), unit == 1
        scheduler = getattr(timm.scheduler, kind)(optimizer, t_in_epochs=by_epoch, **arguments)
        rates = []
        for t in range(EPOCHS * unit):
            (scheduler.step if by_epoch else scheduler.step_update)(t)
            rates.append(optimizer.param_groups[0]["lr"])
        return np.array(rates)

    def warm_cosine(optimizer: Any) -> Any:
        return torch_schedulers.SequentialLR(
            optimizer,
            [
                torch_schedulers.LinearLR(optimizer, start_factor=0.01, total_iters=5),
                torch_schedulers.CosineAnnealingLR(optimizer, EPOCHS - 5, eta_min=0.02 * RATE),
            ],
            milestones=[5],
        )

    def exponential(unit: int) -> np.ndarray:
        return timm_rates(
            "StepLRScheduler",
            unit,
            decay_t=2.4 * unit,
            decay_rate=0.97,
            warmup_t=3 * unit,
            warmup_lr_init=0.1 * RATE,
            warmup_prefix=False,
        )

    return {
        "cosine": timm_rates(
            "CosineLRScheduler",
            STEPS_PER_EPOCH,
            t_initial=(EPOCHS - 5) * STEPS_PER_EPOCH,
            lr_min=0.02 * RATE,
            warmup_t=5 * STEPS_PER_EPOCH,
            warmup_lr_init=0.01 * RATE,
            warmup_prefix=True,
        ),
        "cosine_by_epoch": torch_rates(warm_cosine, EPOCHS),
        "linear": torch_rates(
            lambda o: torch_schedulers.LinearLR(o, 1.0, 0.1, total_iters=steps), steps
        ),
        "steps_by_epoch": torch_rates(
            lambda o: torch_schedulers.MultiStepLR(o, [10, 20, 25], 0.1), EPOCHS
        ),
        "exponential": exponential(STEPS_PER_EPOCH),
        "exponential_by_epoch": exponential(1),
        "exponential_smooth": torch_rates(
            lambda o: torch_schedulers.ExponentialLR(o, 0.97 ** (1 / STEPS_PER_EPOCH)), steps
        ),
    }


def _plateau() -> np.ndarray:
    """The share of the rate after each epoch of `figures`."""
    import torch

    optimizer = _idle()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max",
        threshold_mode="abs",
        threshold=PLATEAU["threshold"],
        factor=PLATEAU["factor"],
        patience=PLATEAU["patience"],
        min_lr=PLATEAU["minimum"] * RATE,
    )
    rates = []
    for figure in figures():
        scheduler.step(figure)
        rates.append(optimizer.param_groups[0]["lr"])
    return np.array(rates) / RATE


def _idle() -> Any:
    import torch

    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)


if __name__ == "__main__":
    main()
