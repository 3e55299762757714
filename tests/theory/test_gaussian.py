"""Gaussian expectations against closed forms and against scipy's adaptive quadrature."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from jaxstab.errors import UsageError
from jaxstab.theory import gaussian, pairs
from jaxstab.theory.activations import ACTIVATIONS, derivative

BROKEN = {  # function -> where it is not smooth
    "leaky_jump": (lambda x: jnp.where(x > 0.3, x, 0.1 * x), (0.3,)),
    "clip": (lambda x: jnp.clip(x, -0.77, 1.3), (-0.77, 1.3)),
    "hard_tanh": (lambda x: jax.nn.hard_tanh(x) ** 2, (-1.0, 1.0)),
    "hard_swish": (jax.nn.hard_swish, (-3.0, 3.0)),
    "floor": (jnp.floor, tuple(range(-11, 12))),
    "step_far_out": (lambda x: jnp.where(x > 3.21987, 1.0, 0.0), (3.21987,)),
    "root": (lambda x: jnp.sqrt(jnp.abs(x - 0.5)), (0.5,)),
    "narrow": (lambda x: jnp.exp(-(((x - 2.2) / 0.02) ** 2)), (2.2,)),
}
CORRELATIONS = np.array([-1.0, -0.9, -0.3, 0.0, 1e-4, 0.5, 0.9, 0.99, 0.9964, 0.99999, 1.0])


def adaptive(function, breaks=(), q=1.0):
    """E[f(sqrt(q) z)] by scipy, panel by panel."""
    edges = [-12.0, *(b / np.sqrt(q) for b in breaks if abs(b) < 12 * np.sqrt(q)), 12.0]
    compiled = jax.jit(function)

    def integrand(z):
        return float(compiled(np.sqrt(q) * z)) * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)

    with jax.enable_x64(True):
        panels = itertools.pairwise(edges)
        return sum(integrate.quad(integrand, a, b, limit=400, epsabs=1e-12)[0] for a, b in panels)


@pytest.mark.parametrize("name", BROKEN)
def test_kinks_jumps_and_narrow_places_are_found(name):
    function, breaks = BROKEN[name]
    assert gaussian.expect(function) == pytest.approx(adaptive(function, breaks), abs=1e-10)


@pytest.mark.parametrize(("power", "moment"), [(0, 1), (1, 0), (2, 1), (4, 3), (8, 105), (12, 10395)])
def test_moments_of_the_normal_law(power, moment):
    assert gaussian.expect(lambda x: x**power) == pytest.approx(moment, rel=1e-11, abs=1e-12)


def test_exponential_and_bounded_closed_forms():
    assert gaussian.expect(jnp.exp) == pytest.approx(np.exp(0.5), rel=1e-12)
    assert gaussian.expect(jnp.cos) == pytest.approx(np.exp(-0.5), rel=1e-12)
    assert gaussian.expect(lambda x: jnp.sin(30 * x) ** 2) == pytest.approx(0.5, rel=1e-12)
    assert gaussian.expect(jnp.abs) == pytest.approx(np.sqrt(2 / np.pi), rel=1e-12)


def test_a_function_in_float32_is_good_to_float32():
    assert gaussian.expect(lambda x: 1 + jnp.tanh(x.astype(jnp.float32))) == pytest.approx(1.0, abs=1e-6)


@settings(deadline=None, max_examples=10)
@given(at=st.floats(-3, 3), left=st.floats(-2, 2), right=st.floats(-2, 2))
def test_a_jump_anywhere(at, left, right):
    exact = left * stats.norm.cdf(at) + right * stats.norm.sf(at)
    assert gaussian.expect(lambda x: jnp.where(x > at, right, left)) == pytest.approx(exact, abs=2e-9)


@pytest.mark.parametrize("at", [1e-6, 1.0837, 1.0837 + 1e-4, 2.1674 - 1e-5, 1e-12])
def test_a_jump_next_to_a_panel_boundary(at):
    mean = gaussian.expect(lambda x: jnp.where(x > at, 1.0, 0.0))
    assert mean == pytest.approx(stats.norm.sf(at), abs=1e-9)


def test_expectations_that_do_not_exist_are_refused():
    with pytest.raises(UsageError, match="does not exist or cannot be resolved"):
        gaussian.expect(lambda x: jnp.exp(x**2))
    with pytest.raises(UsageError, match="does not exist or cannot be resolved"):
        gaussian.expect(lambda x: jnp.sqrt(x))
    with pytest.raises(UsageError, match="does not exist or cannot be resolved"):
        gaussian.expect(lambda x: jnp.sin(1e5 * x))


@pytest.mark.parametrize("q", [1e-6, 0.1, 1.0, 30.0, 1e6])
@pytest.mark.parametrize("name", ["relu", "selu", "gelu", "sigmoid", "tanh"])
def test_moments_at_any_variance(name, q):
    phi = ACTIVATIONS[name]
    # at q = 1e6 tanh is a step of width 1e-3: scipy needs to be told where
    breaks = (-30.0, -1.0, 0.0, 1.0, 30.0)
    first = adaptive(phi, breaks, q)
    second = adaptive(lambda x: phi(x) ** 2, breaks, q)
    slope = adaptive(lambda x: derivative(phi)(x) ** 2, breaks, q)
    assert gaussian.first_moment(phi, q) == pytest.approx(first, rel=1e-9, abs=1e-10)
    assert gaussian.second_moment(phi, q) == pytest.approx(second, rel=1e-9)
    assert gaussian.slope_moment(phi, q) == pytest.approx(slope, rel=1e-9)


def test_erf_has_closed_forms_over_thirty_decades():
    q = np.geomspace(1e-15, 1e15, 31).reshape(1, 31)
    second = gaussian.second_moment(jax.lax.erf, q)
    exact = 2 / np.pi * np.arctan2(2 * q, np.sqrt(1 + 4 * q))  # arcsin(2q / (1 + 2q)), where it rounds well
    np.testing.assert_allclose(second, exact, rtol=1e-12)
    np.testing.assert_allclose(
        gaussian.slope_moment(jax.lax.erf, q), 4 / np.pi / np.sqrt(1 + 4 * q), rtol=1e-10
    )
    rate = 4 / np.pi / ((1 + 2 * q) * np.sqrt(1 + 4 * q))
    within = q < 1e3  # beyond, the rate is below the rounding of what it is the rate of
    np.testing.assert_allclose(gaussian.second_moment_slope(jax.lax.erf, q)[within], rate[within], rtol=1e-6)


def test_limits_of_the_variance():
    assert gaussian.second_moment(ACTIVATIONS["sigmoid"], 0.0) == pytest.approx(0.25, rel=1e-9)
    assert gaussian.slope_moment(ACTIVATIONS["relu"], 0.0) == pytest.approx(0.5)  # not relu'(0)^2
    assert gaussian.second_moment(jnp.tanh, np.inf) == pytest.approx(1.0, rel=1e-9)
    assert np.isnan(gaussian.second_moment(jnp.tanh, np.nan))


def test_what_is_not_resolved_is_nan():
    moments = gaussian.second_moment(jnp.sin, np.array([1.0, 100.0, 1e12]))
    np.testing.assert_allclose(moments[:2], (1 - np.exp(-2 * np.array([1.0, 100.0]))) / 2, rtol=1e-10)
    assert np.isnan(moments[2])


def test_rate_of_a_function_with_jumps():
    def step(x):
        return jnp.where(x > 1.0, 1.0, 0.0)

    q = 0.7  # d/dq P(sqrt(q) z > 1)
    exact = stats.norm.pdf(1 / np.sqrt(q)) / (2 * q**1.5)
    assert gaussian.second_moment_slope(step, q) == pytest.approx(exact, rel=1e-9)


@jax.custom_jvp
def gated(x):
    """A surrogate slope, as of a straight-through estimator: it jumps where the value does not."""
    return x


@gated.defjvp
def gated_jvp(primals, tangents):
    return primals[0], jnp.where(primals[0] > 0.3, 1.0, 0.0) * tangents[0]


def test_a_slope_that_is_not_that_of_the_value():
    assert gaussian.slope_moment(gated, 1.0) == pytest.approx(stats.norm.sf(0.3), abs=1e-9)
    assert gaussian.second_moment(gated, 1.0) == pytest.approx(1.0, rel=1e-12)


def test_pairs_through_relu_and_its_slope():
    angle = np.arccos(CORRELATIONS)
    q = 1.7  # Cho & Saul 2009: kernels of degree 1 and 0
    degree_1 = q * (np.sqrt(1 - CORRELATIONS**2) + CORRELATIONS * (np.pi - angle)) / (2 * np.pi)
    np.testing.assert_allclose(pairs.expect_pair(jax.nn.relu, CORRELATIONS, q), degree_1, atol=1e-12)
    slopes = pairs.expect_pair(derivative(jax.nn.relu), CORRELATIONS, q)
    np.testing.assert_allclose(slopes, (np.pi - angle) / (2 * np.pi), atol=1e-8)


@pytest.mark.parametrize("q", [1e-6, 0.1, 1.0, 100.0, 1e4])
def test_pairs_through_erf(q):
    exact = 2 / np.pi * np.arcsin(2 * q * CORRELATIONS / (1 + 2 * q))  # Williams 1996
    scale = 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q))
    np.testing.assert_allclose(
        pairs.expect_pair(jax.lax.erf, CORRELATIONS, q) / scale, exact / scale, atol=1e-9
    )


def test_pairs_of_a_function_with_a_jump_off_centre():
    def step(x):
        return jnp.where(x > 0.3, 1.0, 0.0)

    for c in (-0.6, 0.2, 0.95):
        law = stats.multivariate_normal([0, 0], [[1, c], [c, 1]])
        assert pairs.expect_pair(step, c, 1.0) == pytest.approx(law.cdf([-0.3, -0.3]), abs=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_pairs_agree_with_single_moments_at_the_ends(name):
    phi = ACTIVATIONS[name]
    q = np.array([0.01, 1.0, 50.0])
    np.testing.assert_allclose(pairs.expect_pair(phi, 1.0, q), gaussian.second_moment(phi, q), rtol=1e-9)
    np.testing.assert_allclose(
        pairs.expect_pair(phi, 0.0, q), gaussian.first_moment(phi, q) ** 2, rtol=1e-9, atol=1e-12
    )


def test_pairs_broadcast():
    table = pairs.expect_pair(jnp.tanh, np.array([0.1, 0.2, 0.3])[:, None], np.array([1.0, 2.0]))
    assert table.shape == (3, 2)
    assert table[2, 1] == pytest.approx(float(pairs.expect_pair(jnp.tanh, 0.3, 2.0)), rel=1e-12)
