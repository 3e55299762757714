"""Growth of gradients through batch norm: its limit, a simulation in plain numpy, and where there is no mean."""

import numpy as np
import pytest

from jaxstab import theory


def measured_growth(batch, width=768, depth=12, seed=0):
    """Factors on the mean square of the gradient through single layers behind the first few, [layer]."""
    rng = np.random.default_rng(seed)
    h, kept, factors = rng.normal(size=(batch, width)), [], []
    for w in rng.normal(size=(depth, width, width)) / width**0.5:
        z = h @ w
        std = z.std(axis=0)
        y = (z - z.mean(axis=0)) / std
        h = np.maximum(y, 0)
        kept.append((w, std, y))
    g = rng.normal(size=(batch, width))
    for w, std, y in reversed(kept):
        before, g = np.mean(g**2), g * (y > 0)
        g = (g - g.mean(axis=0) - y * np.mean(g * y, axis=0)) / std
        g = g @ w.T
        factors.append(np.mean(g**2) / before)
    return np.array(
        factors[2:-3]
    )  # the gradient's covariance over the batch has settled, and so has the signal's


@pytest.mark.parametrize("batch", [8, 16, 64])
def test_growth_is_the_simulated_one(batch):
    factors = np.concatenate([measured_growth(batch, seed=seed) for seed in range(8)])
    error = 5 * factors.std(ddof=1) / np.sqrt(factors.size) + 0.005
    growth = theory.batch_norm_growth(batch)
    assert abs(factors.mean() - growth) < error
    assert abs(factors.mean() - 1.1 * growth) > error


def test_growth_of_large_batches_and_of_few_inputs():
    assert theory.batch_norm_growth(1e8) == pytest.approx(np.pi / (np.pi - 1), rel=1e-6)
    growth = theory.batch_norm_growth(np.arange(2, 9))
    assert np.isnan(growth[:2]).all()
    assert np.all(np.diff(growth[2:]) < 0)
