"""Threefry written out: JAX's words and uniforms, and the normal law to its last digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxstab import random

KEY = jax.random.key(0)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (7,), (0,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("seed", [0, 12345])
def test_the_numbers_are_jax_s(shape, seed):
    key = jax.random.key(seed)
    np.testing.assert_array_equal(random.bits(key, shape), jax.random.bits(key, shape, jnp.uint32))
    np.testing.assert_array_equal(random.uniform(key, shape), jax.random.uniform(key, shape))
    np.testing.assert_allclose(random.normal(key, shape), jax.random.normal(key, shape), rtol=1e-5)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_jax_s(impl):
    key = jax.random.key(7, impl=impl)
    data = jax.random.key_data
    np.testing.assert_array_equal(data(random.split(key, 3)), data(jax.random.split(key, 3)))
    for number in (0, 5, 2**32 - 1):
        number = jnp.uint32(number)
        np.testing.assert_array_equal(
            data(random.fold_in(key, number)), data(jax.random.fold_in(key, number))
        )
    many = jax.vmap(random.fold_in, (None, 0))(key, jnp.arange(4))
    np.testing.assert_array_equal(
        data(many), data(jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(4)))
    )


def test_a_key_s_numbers_do_not_depend_on_its_neighbours():
    keys = jax.random.split(KEY, 8)
    together = jax.jit(jax.vmap(lambda key: random.normal(key, (33, 3))))(keys)
    np.testing.assert_array_equal(together[5], jax.jit(lambda key: random.normal(key, (33, 3)))(keys[5]))


def test_old_keys_and_those_of_other_generators_are_taken():
    old = jax.random.key_data(KEY)
    np.testing.assert_array_equal(random.bits(old, (9,)), random.bits(KEY, (9,)))
    other = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(random.bits(other, (9,)), jax.random.bits(other, (9,), jnp.uint32))


def test_normals_are_the_quantiles_to_float32_s_digits():
    # both tails, and every 257th step between
    steps = np.unique(
        np.concatenate([np.arange(5000), np.arange(0, 2**23, 257), 2**23 - 1 - np.arange(5000)])
    )
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    x = (2 * (steps * 2.0**-23).astype(np.float32) + lowest).astype(
        np.float64
    )  # the law's steps, rounded as JAX does
    wanted = np.sign(x) * -special.ndtri((1 - np.abs(x)) / 2)
    found = np.asarray(random._normal_of(jnp.asarray(steps.astype(np.uint32) << 9)))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found, wanted * (1 + 2e-6), rtol=1e-6)


def test_laws():
    z = np.asarray(random.normal(KEY, (10**6,)))
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert stats.kstest(1.02 * z, "norm").pvalue < 1e-3
    lagged = z[:-1] * z[1:]
    assert abs(lagged.mean()) < 5 * lagged.std() / 1e3
