"""Moments of one variable and of two, against closed forms and against adaptive quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quadrature import adaptive
from scipy import stats

from jaxstab import theory
from jaxstab.theory.activations import ACTIVATIONS, derivative
from jaxstab.theory.moments import expect_pair, moments, second_moment_slope

CORRELATIONS = np.array([-1.0, -0.9, -0.3, 0.0, 1e-4, 0.5, 0.9, 0.99, 0.9964, 0.99999, 1.0])


@pytest.mark.parametrize("q", [1e-6, 0.1, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("name", ["relu", "selu", "gelu", "sigmoid", "tanh"])
def test_moments_at_any_variance(name, q):
    phi = ACTIVATIONS[name]
    # at q = 1e6 tanh is a step of width 1e-3: scipy needs to be told where
    breaks = (-30.0, -1.0, 0.0, 1.0, 30.0)
    first = adaptive(phi, breaks, q)
    second = adaptive(lambda x: phi(x) ** 2, breaks, q)
    slope = adaptive(lambda x: derivative(phi)(x) ** 2, breaks, q)
    found = moments(phi, q)
    assert found.mean == pytest.approx(first, rel=1e-9, abs=1e-10)
    assert found.square == pytest.approx(second, rel=1e-9)
    assert found.slope_square == pytest.approx(slope, rel=1e-9)


def test_erf_has_closed_forms_over_thirty_decades():
    q = np.geomspace(1e-15, 1e15, 31).reshape(1, 31)
    second = moments(jax.lax.erf, q).square
    exact = 2 / np.pi * np.arctan2(2 * q, np.sqrt(1 + 4 * q))  # arcsin(2q / (1 + 2q)), where it rounds well
    np.testing.assert_allclose(second, exact, rtol=1e-12)
    np.testing.assert_allclose(
        moments(jax.lax.erf, q).slope_square, 4 / np.pi / np.sqrt(1 + 4 * q), rtol=1e-10
    )
    rate = 4 / np.pi / ((1 + 2 * q) * np.sqrt(1 + 4 * q))
    within = q < 1e3  # beyond, the rate is below the rounding of what it is the rate of
    np.testing.assert_allclose(second_moment_slope(jax.lax.erf, q)[within], rate[within], rtol=1e-6)


def test_limits_of_the_variance():
    assert moments(ACTIVATIONS["sigmoid"], 0.0).square == pytest.approx(0.25, rel=1e-9)
    assert moments(ACTIVATIONS["relu"], 0.0).slope_square == pytest.approx(0.5)  # not relu'(0)^2
    assert moments(jnp.tanh, np.inf).square == pytest.approx(1.0, rel=1e-9)
    assert np.isnan(moments(jnp.tanh, np.nan).square)


def test_what_is_not_resolved_is_nan():
    squares = moments(jnp.sin, np.array([1.0, 100.0, 1e12])).square
    np.testing.assert_allclose(squares[:2], (1 - np.exp(-2 * np.array([1.0, 100.0]))) / 2, rtol=1e-10)
    assert np.isnan(squares[2])


def test_rate_of_a_function_with_jumps():
    def step(x):
        return jnp.where(x > 1.0, 1.0, 0.0)

    q = 0.7  # d/dq P(sqrt(q) z > 1)
    exact = stats.norm.pdf(1 / np.sqrt(q)) / (2 * q**1.5)
    assert second_moment_slope(step, q) == pytest.approx(exact, rel=1e-9)


@jax.custom_jvp
def gated(x):
    """A surrogate slope, as of a straight-through estimator: it jumps where the value does not."""
    return x


@gated.defjvp
def gated_jvp(primals, tangents):
    return primals[0], jnp.where(primals[0] > 0.3, 1.0, 0.0) * tangents[0]


def test_a_slope_that_is_not_that_of_the_value():
    assert moments(gated, 1.0).slope_square == pytest.approx(stats.norm.sf(0.3), abs=1e-9)
    assert moments(gated, 1.0).square == pytest.approx(1.0, rel=1e-12)
    walked = theory.trajectory(gated, 2, 1.0)
    assert np.exp(walked.log_step) == pytest.approx([stats.norm.sf(0.3)] * 2, abs=1e-9)


def test_pairs_through_relu_and_its_slope():
    angle = np.arccos(CORRELATIONS)
    q = 1.7  # Cho & Saul 2009: kernels of degree 1 and 0
    degree_1 = q * (np.sqrt(1 - CORRELATIONS**2) + CORRELATIONS * (np.pi - angle)) / (2 * np.pi)
    np.testing.assert_allclose(expect_pair(jax.nn.relu, CORRELATIONS, q), degree_1, atol=1e-12)
    slopes = expect_pair(derivative(jax.nn.relu), CORRELATIONS, q)
    np.testing.assert_allclose(slopes, (np.pi - angle) / (2 * np.pi), atol=1e-8)


@pytest.mark.parametrize("q", [1e-6, 0.1, 1.0, 100.0, 1e4])
def test_pairs_through_erf(q):
    exact = 2 / np.pi * np.arcsin(2 * q * CORRELATIONS / (1 + 2 * q))  # Williams 1996
    scale = 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q))
    np.testing.assert_allclose(expect_pair(jax.lax.erf, CORRELATIONS, q) / scale, exact / scale, atol=1e-9)


def test_pairs_of_a_function_with_a_jump_off_centre():
    def step(x):
        return jnp.where(x > 0.3, 1.0, 0.0)

    for c in (-0.6, 0.2, 0.95):
        law = stats.multivariate_normal([0, 0], [[1, c], [c, 1]])
        assert expect_pair(step, c, 1.0) == pytest.approx(law.cdf([-0.3, -0.3]), abs=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_pairs_agree_with_single_moments_at_the_ends(name):
    phi = ACTIVATIONS[name]
    q = np.array([0.01, 1.0, 50.0])
    np.testing.assert_allclose(expect_pair(phi, 1.0, q), moments(phi, q).square, rtol=1e-9)
    np.testing.assert_allclose(expect_pair(phi, 0.0, q), moments(phi, q).mean ** 2, rtol=1e-9, atol=1e-12)


def test_pairs_broadcast():
    table = expect_pair(jnp.tanh, np.array([0.1, 0.2, 0.3])[:, None], np.array([1.0, 2.0]))
    assert table.shape == (3, 2)
    assert table[2, 1] == pytest.approx(float(expect_pair(jnp.tanh, 0.3, 2.0)), rel=1e-12)
