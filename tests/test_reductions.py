"""The largest magnitude keeps NaN, of whatever sign, where XLA's own maximum on CPUs does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.compiler import compiler_options
from jaxstab.reductions import (
    LONG,
    absmax,
    absmax_of_both,
    fraction,
    largest,
    mean_square,
    mean_square_and_absmax,
    norm,
    total,
)

SHAPES = [(), (3,), (64, 64), (16, 12, 12, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_it_is_numpys(shape, dtype):
    x = np.asarray(np.random.default_rng(0).normal(size=shape), jnp.dtype(dtype))
    for f in (absmax, jax.jit(absmax)):
        assert f(jnp.asarray(x)) == np.max(np.abs(x))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_entry_that_is_not_finite_shows(shape, bad):
    x = np.zeros(shape, np.float32)
    x.reshape(-1)[-1] = bad
    found = jax.jit(absmax)(x)
    assert np.isnan(found) if np.isnan(bad) else found == np.inf


def test_nan_with_a_sign_shows_in_what_xla_knows_to_be_a_square():
    """There XLA leaves the magnitude out, and the bits of a NaN with a sign are below those of zero."""
    x = jnp.full((16, 144), -jnp.nan)
    assert np.isnan(jax.jit(lambda x: absmax(x * x))(x))


def test_nothing_and_complex_numbers():
    assert absmax(jnp.zeros((0, 3))) == 0
    np.testing.assert_allclose(absmax(jnp.array([3 + 4j, 1j])), 5)


SHAPES_OF_ROWS = [(5,), (97,), (4, 31), (4, 64), (3, 97), (2, 3, 256), (2, 3, 5, 4), (2, 0), (0, 2)]


@pytest.mark.parametrize(
    ("shape", "kept"), [(shape, kept) for shape in SHAPES_OF_ROWS for kept in range(len(shape) + 1)]
)
def test_the_first_axes_may_be_kept(shape, kept):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    axes = tuple(range(kept, len(shape)))
    np.testing.assert_array_equal(
        jax.jit(absmax, static_argnums=1)(x, kept), np.max(np.abs(x), axes, initial=0)
    )
    for found in (x > 2, x > 0):
        np.testing.assert_array_equal(largest(jnp.asarray(found), kept), np.any(found, axes))
    np.testing.assert_allclose(
        jax.jit(total, static_argnums=1)(x, kept), np.sum(x, axes), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("shape", [s for s in SHAPES_OF_ROWS if 0 not in s])
def test_means_of_all_entries(shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(jax.jit(mean_square)(x), np.mean(x * x), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(fraction)(x > 0), np.mean(x > 0), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(mean_square)(jnp.asarray(x)), 2 * x / x.size, rtol=1e-6)


def test_the_norm_of_a_pytree_is_of_all_of_its_numbers():
    rng = np.random.default_rng(2)
    tree = {"w": rng.normal(size=(64, 97)), "b": [rng.normal(size=97), np.float64(2.0)]}
    tree = jax.tree.map(jnp.float32, tree)
    wanted = np.linalg.norm(np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]))
    np.testing.assert_allclose(jax.jit(norm)(tree), wanted, rtol=1e-6)
    np.testing.assert_allclose(norm(jnp.array([3 + 4j, 12])), 13)
    assert norm({}) == 0
    assert np.isnan(norm({**tree, "bad": jnp.array([jnp.nan])}))


@pytest.mark.parametrize("place", [0, 37, 95, 96])
@pytest.mark.parametrize("kept", [0, 1])
def test_every_place_counts(place, kept):
    x = np.zeros((2, 97), np.float32)
    x[1, place] = np.nan
    assert np.isnan(absmax(jnp.asarray(x), kept)).tolist() == ([False, True] if kept else True)


@pytest.mark.parametrize("shape", [*SHAPES, (1024, LONG // 1024), (3, 5, LONG // 8)])
def test_two_numbers_of_one_pass_are_numpys(shape):
    x = np.asarray(np.random.default_rng(0).normal(size=shape), np.float32)
    mean_square, largest = jax.jit(mean_square_and_absmax)(x)
    np.testing.assert_allclose(mean_square, np.mean(np.square(x, dtype=np.float64)), rtol=1e-5)
    np.testing.assert_array_equal(largest, np.max(np.abs(x)))
    np.testing.assert_array_equal(jax.jit(absmax_of_both)(x, -2 * x), np.max(np.abs(x)) * np.float32([1, 2]))


@pytest.mark.parametrize("shape", [(4096, 8192), (2**24,), (2**22, 4), (1, 2**24), (64, 64, 64, 64)])
def test_a_long_sum_does_not_drift(shape):
    """One chain of additions would be off by 1e-4 and more here."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    wanted = np.mean(np.square(x, dtype=np.float64))
    np.testing.assert_allclose(jax.jit(mean_square_and_absmax)(x)[0], wanted, rtol=2e-6)
    options = compiler_options(jax.default_backend())
    np.testing.assert_allclose(jax.jit(mean_square, compiler_options=options)(x), wanted, rtol=4e-6)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_pass_keeps_what_is_not_finite(bad):
    x = np.ones((64, 64), np.float32)
    x[-1, -1] = bad
    found = (*jax.jit(mean_square_and_absmax)(x), *jax.jit(absmax_of_both)(x, x))
    assert np.isnan(found).all() if np.isnan(bad) else np.isposinf(found).all()


def test_constants_are_not_reduced_while_compiling():
    """XLA would reduce two operands together entry by entry, in minutes for a large array."""
    text = jax.jit(lambda: mean_square_and_absmax(jnp.ones((64, 64)))).lower().compile().as_text()
    assert "reduce(" in text
