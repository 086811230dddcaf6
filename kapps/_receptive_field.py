"""What the units of a feature map see of the image, layer by layer."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import keras
from keras import layers

from kapps import custom_layers

# They keep the size of a map and still move or mix its positions.
_MIXING = (
    layers.GroupNormalization,
    layers.Permute,
    layers.Reshape,
    layers.Attention,
    layers.AdditiveAttention,
    layers.Dot,
    custom_layers.MultiQueryAttention,
)
_ALONG_AXIS = (
    layers.LayerNormalization,
    layers.RMSNormalization,
    layers.Softmax,
    layers.UnitNormalization,
)
_MIXING_OPS = re.compile("Flip|Moveaxis|Reshape|Roll|Rot90|Swapaxes|Transpose")


@dataclasses.dataclass(frozen=True)
class Axis:
    """What the units along one axis of a map see of the image, without regard to its edges.

    Unit i sees the pixels low[r] + q * step to high[r] + q * step, where q, r = divmod(i, n) for
    the n entries of `low` and `high`. They are more than one only behind an upsampling, whose
    units differ in what they see.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    step: int | Fraction

    @classmethod
    def everything(cls, step: Fraction) -> Axis:
        return cls((-math.inf,), (math.inf,), step)

    @property
    def extent(self) -> float:
        return max(high - low + 1 for low, high in zip(self.low, self.high, strict=True))

    @property
    def spacing(self) -> Fraction:
        """Pixels from one unit to the next, in the mean."""
        return Fraction(self.step, len(self.low))

    @property
    def stride(self) -> float:
        spacing = self.spacing
        return int(spacing) if spacing.denominator == 1 else float(spacing)

    def unit(self, i: int) -> tuple[float, float]:
        turns, phase = divmod(i, len(self.low))
        return self.low[phase] + turns * self.step, self.high[phase] + turns * self.step

    def read(self, sources: Callable[[int], Iterable[int]], outputs: int, inputs: int) -> Axis:
        """The axis of a map whose unit i reads the units `sources(i)` of this one.

        The pattern repeats: `outputs` units further on, it reads `inputs` units further on.
        """
        phases = len(self.low) // math.gcd(len(self.low), inputs)
        spans = [[self.unit(j) for j in sources(i)] for i in range(outputs * phases)]
        return Axis(
            tuple(min((low for low, _ in span), default=math.inf) for span in spans),
            tuple(max((high for _, high in span), default=-math.inf) for span in spans),
            self.step * (inputs * phases // len(self.low)),
        )

    def window(self, size: int, stride: int, dilation: int, before: int) -> Axis:
        """Unit i reads `size` units, `dilation` apart, from i * stride - before on."""
        return self.read(
            lambda i: (i * stride - before + j * dilation for j in range(size)), 1, stride
        )

    def transposed(self, size: int, stride: int, dilation: int, before: int) -> Axis:
        """Each unit is written into the `size` units that `window` would read it from."""

        def sources(i: int) -> Iterable[int]:
            targets = (i + before - j * dilation for j in range(size))
            return (target // stride for target in targets if target % stride == 0)

        return self.read(sources, stride, 1)

    def upsampled(self, factor: int, bilinear: bool) -> Axis:
        def sources(i: int) -> Iterable[int]:
            if not bilinear:
                return (i // factor,)
            # The centre of unit i, from that of unit 0 of the input, in halves of a unit of ours.
            left, beyond = divmod(2 * i + 1 - factor, 2 * factor)
            return (left, left + 1) if beyond else (left,)

        return self.read(sources, factor, 1)

    def joined(self, other: Axis) -> Axis:
        """Each unit sees what the units at its place in both maps see."""
        if self.spacing != other.spacing:
            return Axis.everything(self.spacing)
        units = range(math.lcm(len(self.low), len(other.low)))
        low, high = zip(
            *(
                (min(a[0], b[0]), max(a[1], b[1]))
                for a, b in ((self.unit(i), other.unit(i)) for i in units)
            ),
            strict=True,
        )
        return Axis(low, high, self.step * (len(units) // len(self.low)))


def propagate(
    op: Any, axis: int, sources: Sequence[tuple[int, Axis]], side: int, everything: Axis
) -> Axis:
    """What the output of a layer sees along one axis (0 vertical, 1 horizontal).

    Args:
        op: the layer or operation; None for one that is known to have no window.
        axis: which of the two.
        sources: the number of units of each input along the axis, and what they see.
        side: the number of units of the output.
        everything: the answer where all units see all of the image.
    """
    units, first = sources[0]
    if isinstance(op, layers.Conv2DTranspose):
        return first.transposed(*_transposed_window(op, axis))
    if isinstance(op, layers.UpSampling2D) and op.interpolation in ("nearest", "bilinear"):
        return first.upsampled(op.size[axis], op.interpolation == "bilinear")
    if isinstance(op, custom_layers.NearestDoubling2D):  # the other input only tells its size
        return first.read(lambda i: ((i - side % 2) // 2,), 2, 1)
    window = _window(op, axis, units, side)
    if window is not None:
        return first.window(*window)
    alike = [field for units, field in sources if units == side]
    if _mixes(op) or len(alike) < len(sources):
        return dataclasses.replace(everything, step=alike[0].spacing) if alike else everything
    return functools.reduce(Axis.joined, alike)


def _mixes(op: Any) -> bool:
    """Whether the units of a map get to see each other's, though their number stays."""
    if not isinstance(op, keras.Layer):
        return _MIXING_OPS.fullmatch(type(op).__name__) is not None
    if isinstance(op, _ALONG_AXIS):
        return op.axis not in (-1, 3, [-1], [3], (-1,), (3,))
    return isinstance(op, _MIXING)


def _window(op: Any, axis: int, units: int, side: int) -> tuple[int, int, int, int] | None:
    """Size, stride, dilation and padding before the first unit; None for a layer without these."""
    if isinstance(op, layers.ZeroPadding2D):
        return 1, 1, 1, op.padding[axis][0]
    if isinstance(op, layers.Cropping2D):
        return 1, 1, 1, -op.cropping[axis][0]
    if isinstance(op, custom_layers.MirrorPadding2D):
        return 1, 1, 1, op.width
    if isinstance(op, custom_layers.AdaptiveAveragePooling2D) or hasattr(op, "output_size"):
        # Where the windows differ in size they are left to `everything`.
        return (units // side, units // side, 1, 0) if units % side == 0 else None
    size = getattr(op, "kernel_size", getattr(op, "pool_size", None))
    if size is None or not hasattr(op, "strides"):
        return None
    size, stride = _at(size, axis), _at(size if op.strides is None else op.strides, axis)
    dilation = _at(getattr(op, "dilation_rate", 1), axis)
    before = 0
    if op.padding == "same":
        reach = (math.ceil(units / stride) - 1) * stride + (size - 1) * dilation + 1
        before = max(reach - units, 0) // 2
    return size, stride, dilation, before


def _transposed_window(op: Any, axis: int) -> tuple[int, int, int, int]:
    """As `_window`, of the convolution that reads the output."""
    size, stride, dilation = (
        _at(value, axis) for value in (op.kernel_size, op.strides, op.dilation_rate)
    )
    before = 0
    if op.padding == "same":
        before = max((size - 1) * dilation + 1 - stride, 0) // 2
        if op.output_padding is not None:  # then Keras cuts half a kernel at both ends
            before = size // 2
    return size, stride, dilation, before


def _at(value: Any, axis: int) -> int:
    return int(value if isinstance(value, int) else value[axis])
