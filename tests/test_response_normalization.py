"""Local response normalization, against its definition in numpy."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kapps.alexnet import LocalResponseNormalization


@pytest.mark.parametrize("settings", [{}, {"size": 3, "k": 0.5, "alpha": 0.3, "beta": 2.0}])
def test_each_channel_is_divided_by_its_neighbours(settings):
    """Krizhevsky et al. 2012, section 3.3: a sum, not a mean, over the channels that there are."""
    x = np.random.default_rng(0).normal(0, 30, (2, 1, 3, 7)).astype(np.float32)
    # The paper's constants, unless others are given.
    n, k, alpha, beta = ({"size": 5, "k": 2, "alpha": 1e-4, "beta": 0.75} | settings).values()
    expected = np.empty(x.shape)
    for i in range(7):
        near = x[..., max(0, i - n // 2) : min(6, i + n // 2) + 1].astype(float)
        expected[..., i] = x[..., i] / (k + alpha * (near**2).sum(-1)) ** beta
    y = keras.ops.convert_to_numpy(LocalResponseNormalization(**settings)(x))
    np.testing.assert_allclose(y, expected, rtol=1e-5)
