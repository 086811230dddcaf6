"""Compound scaling: section 3.3 of Tan and Le 2019, "EfficientNet: Rethinking Model Scaling".

The result of both functions goes into the builder: `kapps.EfficientNet(**scaling._asdict())`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

from kapps._errors import InputError, is_number
from kapps.efficientnet import plan

# Section 4: what the search on B0 found for depth, width and resolution.
_ALPHA, _BETA, _GAMMA = 1.2, 1.1, 1.15
_RESOLUTION = 224

# phi in steps of 0.01, at which the resolution misses no pixel below 700; from 36 px to 14,832 px
_STEPS = 100
_LEAST, _MOST = -13 * _STEPS, 30 * _STEPS


class Scaling(NamedTuple):
    """The parameters of `kapps.EfficientNet`."""

    width: float
    """The factor of the channels."""
    depth: float
    """The factor of the blocks in a stage."""
    resolution: int
    """Height and width of the input, pixels."""


def compound_scaling(phi: float) -> Scaling:
    """Depth 1.2^phi, width 1.1^phi and resolution 224 * 1.15^phi (equation 3 of the paper).

    Every 1 more of `phi` doubles the multiply-accumulates, about, for 1.2 * 1.1^2 * 1.15^2 is 1.92.
    B0 is phi 0; the published B1 to B7 are near 0.5, 1, 2, 3.5, 5, 6 and 7, rounded by hand and
    less deep.

    Args:
        phi: -13 (36 pixels) to 30 (14,832 pixels), whole or not.

    Raises:
        InputError: phi is not of that range.
    """
    if not is_number(phi) or not _LEAST <= phi * _STEPS <= _MOST:
        raise InputError(
            f"compound_scaling: phi must be a number from {_LEAST // _STEPS} to "
            f"{_MOST // _STEPS}, not {phi!r}"
        )
    return _scaling((float(phi),) * 3)


def scaling_for_macs(macs: float) -> Scaling:
    """The largest balanced EfficientNet that costs at most `macs` multiply-accumulates an image.

    Counted are the convolutions and the classifier of 1,000 classes of the network as it is built,
    channels, blocks and pixels being whole. The three factors grow together, phi in steps of 0.01,
    as long as the network fits. Then it takes what is left of the budget: the three go on one by
    one, a step each in turn, first the depth, then the width, then the resolution, until none can:
    a step more of any one would not fit.

    Args:
        macs: such as 600e6, what is called a mobile network.

    Raises:
        InputError: no network, of those of `compound_scaling`, is so small or so large.
    """
    least, most = (_macs(_scaling((k / _STEPS,) * 3)) for k in (_LEAST, _MOST))
    if not is_number(macs) or not least <= macs <= most:
        raise InputError(
            f"scaling_for_macs: macs must be a number from {least:,} to {most:,}, not {macs!r}"
        )
    fitting = bisect.bisect_right(
        range(_LEAST, _MOST + 1), macs, key=lambda k: _macs(_scaling((k / _STEPS,) * 3))
    )
    steps = [_LEAST + fitting - 1] * 3
    growing = [0, 1, 2]
    while growing:
        for i in tuple(growing):
            steps[i] += 1
            if steps[i] > _MOST or _macs(_scaling([k / _STEPS for k in steps])) > macs:
                steps[i] -= 1
                growing.remove(i)
    return _scaling([k / _STEPS for k in steps])


def _scaling(phi: Sequence[float]) -> Scaling:
    """Of a phi for depth, width and resolution each."""
    return Scaling(
        width=_BETA ** phi[1],
        depth=_ALPHA ** phi[0],
        resolution=round(_RESOLUTION * _GAMMA ** phi[2]),
    )


def _macs(scaling: Scaling) -> int:
    """Multiply-accumulates of one RGB image, from the layer table alone.

    They never fall when a factor rises, because no rounding does.
    """
    channels, stages, head = plan(scaling.width, scaling.depth)
    side = math.ceil(scaling.resolution / 2)
    total = side**2 * 3 * 3 * 3 * channels
    for repeats, kernel, stride, expansion, filters in stages:
        for j in range(repeats):
            expanded = channels * expansion
            if expansion > 1:
                total += side**2 * channels * expanded
            side = math.ceil(side / stride) if j == 0 else side
            squeezed = channels // 4
            total += side**2 * expanded * (kernel**2 + filters) + 2 * expanded * squeezed
            channels = filters
    return total + side**2 * channels * head + head * 1000
