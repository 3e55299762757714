"""Growth of gradients through batch norm: its limit, a simulation in plain numpy, and where there is no mean."""

import numpy as np
import pytest
from scipy.special import gammaln

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


@pytest.mark.parametrize("batch", [2, 3, 5, 64, 5000])
@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid"])
def test_moments_are_those_of_points_on_a_sphere(batch, name):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2_000_000 // batch, batch))
    y -= y.mean(axis=1, keepdims=True)
    y /= y.std(axis=1, keepdims=True)
    phi = {"relu": lambda y: np.maximum(y, 0), "tanh": np.tanh, "sigmoid": lambda y: 1 / (1 + np.exp(-y))}[
        name
    ]
    for told, power in zip(theory.batch_norm_moments(name, batch), (1, 2), strict=True):
        means = np.mean(phi(y) ** power, axis=1)
        error = 5 * means.std(ddof=1) / np.sqrt(means.size) + 1e-6
        assert abs(means.mean() - told) < error
        assert abs(means.mean() - told - 0.02) > error


def test_moments_of_relu_are_closed_forms():
    for batch in (2, 3, 16, 10_000):
        mean, square = theory.batch_norm_moments("relu", batch)
        d = batch - 1
        assert square == pytest.approx(0.5, rel=1e-9)
        ratio = np.exp(gammaln(d / 2) - gammaln((d + 1) / 2))
        assert mean == pytest.approx(0.5 * np.sqrt(d / np.pi) * ratio, rel=1e-6)
