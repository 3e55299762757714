"""Sampled functions, kinks and jumps included, against closed forms and against adaptive quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quadrature import adaptive
from scipy import stats

from jaxstab.theory.sampling import sampled

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


def expect(function):
    """E[f(z)], z ~ N(0, 1)."""
    nodes = sampled(function)
    return float(nodes.mean(nodes.value, 1.0))


@pytest.mark.parametrize("name", BROKEN)
def test_kinks_jumps_and_narrow_places_are_found(name):
    function, breaks = BROKEN[name]
    assert expect(function) == pytest.approx(adaptive(function, breaks), abs=1e-10)


@pytest.mark.parametrize(("power", "moment"), [(0, 1), (1, 0), (2, 1), (4, 3), (8, 105), (12, 10395)])
def test_moments_of_the_normal_law(power, moment):
    assert expect(lambda x: x**power) == pytest.approx(moment, rel=1e-11, abs=1e-12)


def test_exponential_and_bounded_closed_forms():
    assert expect(jnp.exp) == pytest.approx(np.exp(0.5), rel=1e-12)
    assert expect(jnp.cos) == pytest.approx(np.exp(-0.5), rel=1e-12)
    assert expect(lambda x: jnp.sin(30 * x) ** 2) == pytest.approx(0.5, rel=1e-12)
    assert expect(jnp.abs) == pytest.approx(np.sqrt(2 / np.pi), rel=1e-12)


def test_a_function_in_float32_is_good_to_float32():
    assert expect(lambda x: 1 + jnp.tanh(x.astype(jnp.float32))) == pytest.approx(1.0, abs=1e-6)


SIZES = st.floats(-2, 2).map(lambda x: round(x, 9))  # subnormal numbers are not resolved: NaN


@settings(max_examples=10)
@given(at=st.floats(-3, 3), left=SIZES, right=SIZES)
def test_a_jump_anywhere(at, left, right):
    exact = left * stats.norm.cdf(at) + right * stats.norm.sf(at)
    assert expect(lambda x: jnp.where(x > at, right, left)) == pytest.approx(exact, abs=2e-9)


@pytest.mark.parametrize("at", [1e-6, 1.0837, 1.0837 + 1e-4, 2.1674 - 1e-5, 1e-12])
def test_a_jump_next_to_a_panel_boundary(at):
    mean = expect(lambda x: jnp.where(x > at, 1.0, 0.0))
    assert mean == pytest.approx(stats.norm.sf(at), abs=1e-9)


def test_expectations_that_do_not_exist_are_nan():
    assert np.isnan(expect(lambda x: jnp.exp(x**2)))
    assert np.isnan(expect(lambda x: jnp.sqrt(x)))
    assert np.isnan(expect(lambda x: jnp.sin(1e5 * x)))


def test_edges_are_where_the_function_is_not_smooth():
    nodes = sampled(lambda x: jnp.clip(x, -0.77, 1.3))
    assert nodes.kinks == pytest.approx([0.77, 1.3])
    assert set(nodes.kinks) <= set(nodes.edges)
    assert nodes.reach == np.inf
    assert sampled(jnp.sin).resolves(np.array([1.0, 1e6])).tolist() == [True, False]
