"""A moving average of a model's weights, which is often better than the weights themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
from keras import ops

from kapps.tools.distribution import update_each


class Average:
    """The exponential moving average of all weights, batch norm's statistics among them.

    Each step takes it nearer to the weights: a += (1 - decay) (w - a). While there are few steps
    yet, the decay is (1 + steps) / (10 + steps), as with TensorFlow's ExponentialMovingAverage,
    which EfficientNet was trained with: else the average would long remember the random start.

    It begins as the weights are now. To be made in the devices' scope.

    Args:
        weights: `model.weights`, so without the states of random generators.
        decay: what the average keeps at each step, 0 to below 1.
    """

    name = "average"

    def __init__(self, weights: Sequence[keras.Variable], decay: float) -> None:
        self._weights, self._decay = list(weights), decay
        with keras.name_scope(self.name):
            self._averages = [
                keras.Variable(
                    ops.convert_to_tensor(weight),
                    dtype=weight.dtype,
                    trainable=False,
                    name=weight.path.replace("/", "_"),
                )
                for weight in self._weights
            ]

    @property
    def variables(self) -> list[keras.Variable]:
        """The averages in the order of the weights; their paths are those of the weights."""
        return list(self._averages)

    def update(self, step: Any) -> None:
        """Takes in the weights as they are. In a replica's step only.

        Args:
            step: how many steps the optimizer has done, this one included.
        """
        share = ops.maximum(1 - self._decay, 9 / (10 + ops.cast(step, "float64")))

        def approach(average: Any, weight: Any, share: Any) -> None:
            average.assign_add((weight - average) * ops.cast(share, average.dtype))

        update_each(approach, self._averages, self._weights, share)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Within it the model has the averages for weights; then the weights again, bit by bit.

        Weights and averages change places, one by one, so that it takes no memory to speak of.
        Nothing is to be trained or saved meanwhile.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for average, weight in zip(self._averages, self._weights, strict=True):
            kept = ops.copy(weight)
            weight.assign(average)
            average.assign(kept)


def averaged(average: Average | None) -> AbstractContextManager[None]:
    """Within it the model has the averages for weights, where there are some."""
    return contextlib.nullcontext() if average is None else average.swapped()
