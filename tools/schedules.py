"""The learning rate in the course of training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kapps._errors import unknown

SCHEDULES = ("constant", "cosine", "exponential", "linear", "plateau", "steps")
# Epochs are steps divided by steps: what should be a whole number may come out just below it.
_ROUNDING = 1e-9


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate by step, as a part of a compiled step or for a plain number.

    First the rate grows linearly, for `warmup_epochs`; then it follows a curve:

    - constant: the highest rate
    - cosine, linear: from there, where warm-up ends, to `final` of it in the end
    - steps: multiplied by `factor` at each of the epochs `boundaries`
    - exponential: multiplied by `factor` every `decay_epochs`, or evenly if not `staircase`
    - plateau: multiplied by `scale`, which follows `Plateau`

    The epochs of steps and exponential count from the start of training, not from the end of
    warm-up: papers and TensorFlow 1 count so.

    Args:
        kind: of the curve.
        learning_rate: the highest one.
        epochs: of the whole training, warm-up included.
        steps_per_epoch: steps of the optimizer.
        warmup_epochs: need not be whole; 0 for none.
        warmup_start: share of the highest rate that the first step has.
        final: share of the highest rate.
        boundaries: epochs, finished ones.
        factor: of steps and exponential.
        decay_epochs: need not be whole.
        staircase: see above.
        by_epoch: whether each epoch has the rate of its first step, as in torchvision's and timm's
            recipes. With a warm-up from 0 the first epoch then changes nothing.
        scale: multiplies the rate at all times; to be made in the devices' scope.

    Raises:
        InputError: there is no such curve.
    """

    def __init__(
        self,
        kind: str,
        learning_rate: float,
        *,
        epochs: float,
        steps_per_epoch: int,
        warmup_epochs: float = 0.0,
        warmup_start: float = 0.0,
        final: float = 0.0,
        boundaries: Sequence[float] = (),
        factor: float = 0.1,
        decay_epochs: float = 1.0,
        staircase: bool = True,
        by_epoch: bool = False,
        scale: keras.Variable | None = None,
    ) -> None:
        if kind not in SCHEDULES:
            raise unknown("schedule", kind, SCHEDULES)
        self._kind, self._learning_rate = kind, learning_rate
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._warmup_epochs, self._warmup_start = warmup_epochs, warmup_start
        self._final, self._boundaries, self._factor = final, tuple(boundaries), factor
        self._decay_epochs, self._staircase, self._by_epoch = decay_epochs, staircase, by_epoch
        self._scale = scale

    def __call__(self, step: Any) -> Any:
        epoch = ops.cast(step, "float64") / self._steps_per_epoch  # float32 ends at 2^24 steps
        if self._by_epoch:
            epoch = _whole(epoch)
        share = self._curve(epoch)
        if self._warmup_epochs:
            grown = self._warmup_start + (1 - self._warmup_start) * epoch / self._warmup_epochs
            share = ops.where(epoch < self._warmup_epochs - _ROUNDING, grown, share)
        rate = ops.cast(self._learning_rate * share, "float32")
        return rate if self._scale is None else rate * self._scale

    def _curve(self, epoch: Any) -> Any:
        """The share of the highest rate, if there were no warm-up."""
        if self._kind == "steps":
            passed = [ops.cast(epoch > b - _ROUNDING, epoch.dtype) for b in self._boundaries]
            return self._factor ** sum(passed, ops.zeros_like(epoch))
        if self._kind == "exponential":
            times = epoch / self._decay_epochs
            return self._factor ** (_whole(times) if self._staircase else times)
        if self._kind in ("cosine", "linear"):
            length = max(self._epochs - self._warmup_epochs, _ROUNDING)
            done = ops.clip((epoch - self._warmup_epochs) / length, 0.0, 1.0)
            left = 0.5 * (1 + ops.cos(math.pi * done)) if self._kind == "cosine" else 1 - done
            return self._final + (1 - self._final) * left
        return ops.ones_like(epoch)


def _whole(x: Any) -> Any:
    return ops.floor(x + _ROUNDING)


@dataclasses.dataclass(frozen=True)
class PlateauState:
    """What `Plateau` knows after an epoch; plain values, so that JSON can keep it."""

    scale: float = 1.0
    """Of the learning rate in the next epoch."""
    best: float | None = None
    """The best figure of those that were gains; None before the first epoch."""
    waited: int = 0
    """Epochs since then, or since the rate was lowered."""


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Lowers the learning rate when the validation figure does not improve.

    It is lowered after `patience` epochs without a gain and one more, as PyTorch's
    ReduceLROnPlateau counts.
    """

    factor: float = 0.1
    patience: int = 10
    minimum: float = 0.0
    """Share of the first rate that it does not fall below."""
    threshold: float = 1e-4
    """A gain is more than this: of an accuracy, 5 of ImageNet's 50,000 validation images."""

    def update(self, state: PlateauState, figure: float) -> PlateauState:
        """The state after an epoch.

        Args:
            state: the one before.
            figure: of this epoch; larger is better, so an accuracy or the negative of a loss.
        """
        if state.best is None or figure > state.best + self.threshold:
            return PlateauState(state.scale, figure, 0)
        if state.waited < self.patience:
            return PlateauState(state.scale, state.best, state.waited + 1)
        return PlateauState(max(state.scale * self.factor, self.minimum), state.best, 0)
