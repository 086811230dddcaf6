"""Pictures made by gradient steps: what class visualization, DeepDream and inversion share.

Pixels here go from 0 to 1, whatever the range of the model's images, so that rates and penalties
mean the same everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from kapps._errors import InputError, check_whole, is_number
from kapps.explain import _perturbation
from kapps.explain._classifier import Classifier
from kapps.explain._differentiation import value_and_gradients
from kapps.explain._spectrum import Spectrum


@dataclasses.dataclass(frozen=True)
class Descent:
    """Adam (Kingma and Ba 2015) on pictures; each one is on its own.

    Attributes:
        steps: how many.
        rate: of Adam, falling by half a cosine to zero.
        norm: weight and exponent of `norm_penalty`.
        variation: the weight of `total_variation`.
        jitter: pixels that the pictures are moved at most before each step, around the border.
    """

    steps: int
    rate: float
    norm: tuple[float, int] = (0.0, 2)
    variation: float = 0.0
    jitter: int = 0

    def run(
        self,
        net: Classifier,
        loss: Callable[..., Any],
        start: np.ndarray,
        *,
        form: Spectrum,
        bounds: tuple[float, float],
        rng: np.random.Generator,
        constants: Sequence[Any] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """The pictures after all steps, in 0..1, and what the loss alone was at the last, (batch,).

        Args:
            net: the network.
            loss: takes images in the model's range, and the constants; gives (batch,).
            start: what `form` makes pixels of, (batch, height, width, channels).
            form: what the steps are on.
            bounds: the model's range.
            rng: draws the jitter.
            constants: tensors.
        """
        step = net.compiled(self._step(loss, form, bounds))
        variables = ops.convert_to_tensor(start.astype("float32"))
        mean = square = ops.zeros_like(variables)
        losses = ops.zeros(len(start))
        for number in range(self.steps):
            moves = rng.integers(-self.jitter, self.jitter + 1, 2)
            rows, columns = (
                ops.convert_to_tensor((np.arange(side) + move) % side)
                for side, move in zip(start.shape[1:3], moves, strict=True)
            )
            variables, mean, square, losses = step(
                variables, mean, square, *self._pace(number), rows, columns, *constants
            )
            variables = form.kept(variables, (number + 1) / self.steps)
        pixels = ops.convert_to_numpy(form.pixels(variables))
        return pixels, ops.convert_to_numpy(losses)

    def _pace(self, number: int) -> tuple[Any, Any]:
        """The rate of this step, and its number from 1, as tensors."""
        rate = self.rate * (1 + np.cos(np.pi * number / self.steps)) / 2
        rate, count = map(ops.convert_to_tensor, (np.float32(rate), np.float32(number + 1)))
        return rate, count

    def _step(
        self, loss: Callable[..., Any], form: Spectrum, bounds: tuple[float, float]
    ) -> Callable[..., tuple[Any, ...]]:
        low, high = bounds
        weight, exponent = self.norm

        def step(
            variables: Any,
            mean: Any,
            square: Any,
            rate: Any,
            number: Any,
            rows: Any,
            columns: Any,
            *rest: Any,
        ) -> tuple[Any, ...]:
            def objective(inputs: list[Any]) -> tuple[Any, Any]:
                pixels = form.pixels(inputs[0])
                moved = pixels
                if self.jitter:
                    moved = ops.take(ops.take(pixels, rows, axis=1), columns, axis=2)
                losses = loss(low + (high - low) * moved, *rest)
                total = losses
                if weight:
                    total = total + weight * norm_penalty(pixels, exponent)
                if self.variation:
                    total = total + self.variation * total_variation(pixels)
                return ops.sum(total), losses

            _, losses, (gradient,) = value_and_gradients(objective, [variables])
            change, mean, square = _perturbation.adam(gradient, mean, square, number)
            return variables + rate * change, mean, square, losses

        return step


def norm_penalty(pixels: Any, exponent: int) -> Any:
    """How far pixels are from mid-gray, in the mean, (batch,); Mahendran and Vedaldi 2015, (3)."""
    return ops.mean((2 * pixels - 1) ** exponent, axis=(1, 2, 3))


def total_variation(pixels: Any) -> Any:
    """The mean square of the steps from pixel to pixel, (batch,); ibid. (4), beta 2."""
    down = pixels[:, 1:] - pixels[:, :-1]
    right = pixels[:, :, 1:] - pixels[:, :, :-1]
    return ops.mean(down * down, axis=(1, 2, 3)) + ops.mean(right * right, axis=(1, 2, 3))


def check_options(caller: str, **options: Any) -> None:
    """Raises InputError where a weight, a rate or a size is no number of 0 or more."""
    for name, value in options.items():
        if name in ("steps", "starts", "octaves"):
            check_whole(caller, name, value)
        elif name in ("jitter", "seed"):
            check_whole(caller, name, value, least=0)
        elif not is_number(value) or value < 0:
            raise InputError(f"{caller}: {name} must be a number, 0 or more, not {value!r}")


def to_range(pixels: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Pixels of 0..1 as images in the model's range, float32."""
    low, high = bounds
    return np.clip(low + (high - low) * pixels, low, high).astype("float32")


def to_pixels(images: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Images in the model's range as pixels of 0..1; what lies outside is cut to the range."""
    low, high = bounds
    return np.clip((images - low) / (high - low), 0, 1).astype("float32")
