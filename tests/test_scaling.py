"""Powers of two: exact where they are used, and right up to the ends of a format."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstab import scaling

X = np.random.default_rng(0).normal(0.3, 1, (16, 64)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_power_of_two_is_ldexp_within_the_normal_numbers_and_their_end_beyond(dtype):
    info = np.finfo(dtype)
    exponents = np.array([info.minexp, -1, 0, 1, 57, info.maxexp - 1])
    with jax.enable_x64(True):
        found = scaling.power_of_two(jnp.asarray(exponents), dtype)
        beyond = scaling.power_of_two(jnp.array([info.minexp - 9, info.maxexp + 9]), dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.ldexp(np.ones((), dtype), exponents))
    np.testing.assert_array_equal(beyond, np.ldexp(np.ones((), dtype), [info.minexp, info.maxexp - 1]))


@pytest.mark.parametrize("largest", [np.finfo(np.float32).max, np.finfo(np.float32).tiny, 0.7, 4.0])
def test_what_is_rescaled_stands_in_its_range(largest):
    m, _ = scaling.rescale(jnp.array([largest, -largest / 2], jnp.float32))
    assert 0.5 <= float(jnp.max(jnp.abs(m))) < 4


@pytest.mark.parametrize("largest", [0.0, np.inf, np.nan])
def test_zeros_and_what_is_not_finite_have_exponent_zero(largest):
    assert int(scaling.exponent_of(jnp.array([largest, 0.0]))) == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-(2**20), 2**20), min_size=2, max_size=2), st.integers(-90, 90))
def test_rescaling_is_exact(values, exponent):
    """Where no entry is so much smaller than the largest that float32 cannot hold both."""
    x = jnp.ldexp(jnp.array(values, jnp.float32), exponent)
    m, e = scaling.rescale(x)
    np.testing.assert_array_equal(jnp.ldexp(m, e), x)
    assert float(jnp.max(jnp.abs(m))) < 1


def test_infinities_and_zeros_are_told():
    assert float(scaling.rms(jnp.array([1.0, jnp.inf]))) == np.inf
    assert np.isnan(float(scaling.rms(jnp.array([1.0, jnp.nan]))))
    assert float(scaling.rms(jnp.zeros(4))) == 0


def test_the_gradient_of_a_matrix_has_its_norm_without_the_matrix():
    other = np.random.default_rng(1).normal(size=(16, 48)).astype(np.float32)
    wanted = np.sqrt(np.mean((X.astype(np.float64).T @ other) ** 2))
    np.testing.assert_allclose(scaling.outer_rms(jnp.asarray(X), jnp.asarray(other)), wanted, rtol=1e-5)
    far = scaling.outer_rms(jnp.ldexp(jnp.asarray(X), 100), jnp.ldexp(jnp.asarray(other), -100))
    np.testing.assert_allclose(far, wanted, rtol=1e-5)
    wide = jax.ShapeDtypeStruct((1, 2**16), jnp.float32)  # of 2^32 entries
    assert jax.eval_shape(scaling.outer_rms, wide, wide).shape == ()
