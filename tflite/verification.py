"""Is the .tflite file still the model? The check that every conversion has to pass."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from kapps._errors import InputError
from kapps.tflite.comparison import Comparison, compare_layers
from kapps.tflite.inference import batches
from kapps.tflite.interpreter import Runner


@dataclass(frozen=True)
class Verification:
    """A file's probabilities against the Keras model's, on real images.

    The model's are first rounded to the steps that the file's output can express (1/256 for uint8),
    so that what counts is what quantization changed inside.

    Attributes:
        images: how many images.
        agreement: share of them, 0 to 1, that the file puts into a class which is the model's best.
        regret: how much less probable, by the model, the file's class is than the model's best:
            the mean over the images, 0 to 1. What the model itself expects to lose in top-1.
        max_error: the largest difference of a probability, over all images and classes.
        drift: the share of probability that moved to other classes (half the sum of the absolute
            differences), mean over the images, 0 to 1; comparable whatever the number of classes.
    """

    images: int
    agreement: float
    regret: float
    max_error: float
    drift: float

    def __str__(self) -> str:
        return (
            f"same class on {self.agreement:.1%} of {self.images} images, regret "
            f"{self.regret:.2g}, drift {self.drift:.2g}, largest error {self.max_error:.2g}"
        )


class ConversionError(InputError):
    """The converted file does not do what the model does.

    Attributes:
        verification: the figures.
        comparison: the same layer by layer; None if that was not possible.
    """

    def __init__(
        self, message: str, verification: Verification, comparison: Comparison | None = None
    ) -> None:
        super().__init__(message)
        self.verification = verification
        self.comparison = comparison


@dataclass(frozen=True)
class Limit:
    """The largest regret and drift with which a file passes."""

    regret: float
    drift: float


# Beside each limit the worst that was seen with sound files: LeNet5, MobileNetV3Small and
# ShuffleNetV2_x0_5 at 32 px, trained on `digits` to 0.99, 0.96 and only 0.77 (an unsure network
# changes its mind most, and its int8 file was no less accurate), 360 held-out images; and the five
# networks of `comparison.LIMITS`, none of which was worse: int8 0.0006 and 0.031. For scale,
# broken ones: pixels in 0..1 instead of 0..255 give a regret of 0.7 to 0.9 and a drift of 0.8 to
# 0.9; the stem's kernel too large by a quarter 0.1 to 0.2 and 0.15 to 0.4; pixels off by 16, which
# hardly changes a class, a drift of 0.006 to 0.28.
LIMITS = {
    #                regret  drift       seen: regret, drift
    "float32": Limit(0.0001, 0.0001),  #     0       0.0000012
    "float16": Limit(0.002, 0.01),  #        0       0.0023
    "dynamic": Limit(0.01, 0.05),  #         0.0011  0.019
    "int4": Limit(0.1, 0.3),  #              0.018   0.21; EfficientNetLite0 on photographs
    "int4_blockwise": Limit(0.05, 0.2),  #   0.006   0.055
    "int8": Limit(0.05, 0.2),  #             0.025   0.096
    "mixed": Limit(0.05, 0.2),  #            as int8
    "int16x8": Limit(0.01, 0.05),  #         0.0002  0.0026
}

_REMEDY = {
    "float32": "Please report it: a float32 file has to be exact.",
    "float16": "Use float32, or look for weights beyond the range of float16.",
    "dynamic": "Use float16.",
    "int4": "Use int4_blockwise or dynamic.",
    "int4_blockwise": "Use dynamic.",
    "int8": "Calibrate on more images, of all classes and such as the model will see, or use "
    "float16.",
    "mixed": "Calibrate on more images, of all classes and such as the model will see, or use "
    "float16.",
    "int16x8": "Calibrate on more images, of all classes and such as the model will see, or use "
    "float16.",
}

# Bytes of a file of which XNNPACK may hold a copy in memory, beside the file itself: with all else
# that makes 1.5 GB. LiteRT's own kernels, which run larger files, take three times as long.
_MOST_TWICE = 560 << 20

_COMPARED = 4  # images, when it has to be said which layer is to blame


def verify(
    model: keras.Model,
    path: str | os.PathLike[str],
    images: np.ndarray,
    quantization: str,
    *,
    where: str | None = None,
) -> Verification:
    """Compares the file at `path` with the Keras `model` on real images.

    Args:
        model: the model that the file came from.
        path: the file.
        images: (n, height, width, channels) in 0..255.
        quantization: whose limit applies.
        where: what to call the file in errors, by default `path`.

    Raises:
        InputError: the model's outputs are no probabilities.
        ConversionError: the file is beyond the limit of its quantization.
    """
    return verify_against(probabilities(model, images), model, path, images, quantization, where)


def probabilities(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """What `predict` gives.

    Raises:
        InputError: it is no probabilities.
    """
    expected = predict(model, images)
    # A tuned model, of tf_keras, rounds each probability to 1/256.
    rounding = 1e-3 if isinstance(model, keras.Model) else expected.shape[1] / 512
    # This and the condition below are written so that nan fails.
    if not (expected.min() >= 0 and np.abs(expected.sum(axis=1) - 1).max() <= rounding):
        raise InputError(
            f"model {model.name!r} returns no probabilities of classes that exclude each other: "
            f"they go from {expected.min():.3g} to {expected.max():.3g}, and sum up to "
            f"{expected[0].sum():.3g} for the first image; end it in a softmax"
        )
    return expected


def verify_against(
    expected: np.ndarray,
    model: keras.Model,
    path: str | os.PathLike[str],
    images: np.ndarray,
    quantization: str,
    where: str | None = None,
) -> Verification:
    """As `verify`, where the model's `probabilities` are known."""
    runner = Runner(path, delegate=Path(path).stat().st_size <= _MOST_TWICE)
    figures = compare(expected, runner.predict(images), step=runner.output_quantization[0])
    del runner  # with its copy of the weights
    judge(figures, expected, model, images, quantization, str(where or path), path)
    return figures


def judge(
    figures: Verification,
    expected: np.ndarray,
    model: keras.Model,
    images: np.ndarray,
    quantization: str,
    where: str,
    path: str | os.PathLike[str] | None = None,
) -> None:
    """Whether a file with these figures passes.

    Args:
        figures: of the file.
        expected: the model's `probabilities`.
        model, images, quantization: as in `verify`.
        where: what to call the file in the error.
        path: of a .tflite file: the error then says where file and model part.

    Raises:
        ConversionError: it does not.
    """
    limit = LIMITS[quantization]
    within = figures.regret <= limit.regret and figures.drift <= limit.drift
    if not within and quantization == "float32" and isinstance(model, keras.Model):
        noise = _rounding(model, images, expected)
        within = (
            figures.regret <= limit.regret + _ROUNDINGS * noise.regret
            and figures.drift <= limit.drift + _ROUNDINGS * noise.drift
        )
    if not within:
        comparison, remedy, same = None, _REMEDY[quantization], model
        if not isinstance(model, keras.Model):  # but a tuned one, of tf_keras
            from kapps.tflite.tuning import restored

            remedy = "Train it for more steps, or at a smaller learning rate."
            same = restored(model)
        if same is not None and path is not None:
            with contextlib.suppress(InputError, RuntimeError):  # the verdict stands without it
                comparison = compare_layers(same, path, images[:_COMPARED])
        raise ConversionError(
            f"{where}: the {quantization} file does not do what the model does: {figures} "
            f"(at most {limit.regret:g} and {limit.drift:g}). "
            f"{comparison.verdict() + ' ' if comparison else ''}{remedy}",
            figures,
            comparison,
        )


def _rounding(model: keras.Model, images: np.ndarray, expected: np.ndarray) -> Verification:
    """What the model itself makes of pixels that differ by a rounding of float32.

    Of a network whose logits are in the thousands that can be more than a limit, and then no file
    is nearer to it than it is to itself.
    """
    signs = np.random.default_rng(0).choice([-1, 1], images.shape)
    return compare(expected, predict(model, images * (1 + signs * np.float64(2.0**-23))))


_ROUNDINGS = 4  # a file rounds in each layer, and not in the first one only


def compare(expected: np.ndarray, actual: np.ndarray, *, step: float = 0.0) -> Verification:
    """The figures for two arrays of probabilities (images, classes).

    `step` is the distance of two probabilities that `actual` can express, 0 for floats.
    """
    if step:
        expected = np.rint(expected / step) * step
    best = expected.max(axis=1)
    chosen = expected[np.arange(len(expected)), actual.argmax(axis=1)]
    error = np.abs(expected - actual)
    return Verification(
        images=len(expected),
        agreement=float((chosen == best).mean()),
        regret=float((best - chosen).mean()),
        max_error=float(error.max()),
        drift=float(error.sum(axis=1).mean() / 2),
    )


def predict(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """The model's outputs in inference for images in 0..255: float32 (n, classes)."""
    return np.concatenate([outputs[0] for outputs in batches(model, images)])
