"""The chapter's regressions against their own definition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxstab.data import synthetic
from jaxstab.errors import UsageError

KEY = jax.random.key(0)


def test_polynomial_has_the_chapters_sizes_and_features():
    data = synthetic.polynomial(KEY)
    assert data.train_inputs.shape == data.test_inputs.shape == (100, 20)
    assert data.train_targets.shape == data.test_targets.shape == (100,)
    x = np.asarray(data.train_inputs[:, 1], np.float64)
    exact = np.stack([x**i / math.factorial(i) for i in range(20)], axis=1)
    np.testing.assert_allclose(data.train_inputs, exact, rtol=2e-6, atol=1e-37)


def test_polynomial_features_do_not_overflow_on_the_way():
    # 30^30 / 30! is 7.8e11, 30^30 itself 2e44
    assert np.isfinite(synthetic.power_features(jnp.array([30.0]), 31)).all()
    assert np.isinf(jnp.float32(30.0) ** 30)


def test_polynomial_targets_are_the_polynomial_and_noise():
    data = synthetic.polynomial(KEY, n_train=10_000, n_test=10)
    x = np.asarray(data.train_inputs[:, 1], np.float64)
    noise = np.asarray(data.train_targets) - (5 + 1.2 * x - 3.4 * x**2 / 2 + 5.6 * x**3 / 6)
    assert stats.kstest(x, stats.norm().cdf).pvalue > 1e-3
    assert stats.kstest(noise, stats.norm(0, 0.1).cdf).pvalue > 1e-3
    assert stats.kstest(1.1 * noise, stats.norm(0, 0.1).cdf).pvalue < 1e-3
    assert abs(np.corrcoef(x, noise)[0, 1]) < 5 / math.sqrt(10_000)


def test_linear_is_the_chapters():
    data = synthetic.linear(KEY)
    assert data.train_inputs.shape == (20, 200)
    assert data.test_inputs.shape == (100, 200)
    data = synthetic.linear(KEY, n_train=3000)
    noise = np.asarray(data.train_targets) - (
        0.05 + 0.01 * np.asarray(data.train_inputs, np.float64).sum(axis=1)
    )
    assert stats.kstest(noise, stats.norm(0, 0.01).cdf).pvalue > 1e-3
    assert stats.kstest(noise + 0.002, stats.norm(0, 0.01).cdf).pvalue < 1e-3


@pytest.mark.parametrize("draw", [synthetic.polynomial, synthetic.linear])
def test_draws_are_pure_and_take_traced_numbers(draw):
    lanes = jax.jit(jax.vmap(lambda key, noise: draw(key, noise=noise)))(
        jnp.stack([KEY, KEY]), jnp.array([0.0, 1.0])
    )
    np.testing.assert_array_equal(lanes.train_inputs[0], lanes.train_inputs[1])
    assert np.all(lanes.train_targets[0] != lanes.train_targets[1])
    other = draw(jax.random.key(1), noise=1.0)
    assert np.all(other.train_inputs[:, 1] != lanes.train_inputs[0, :, 1])


def test_x64_changes_no_dtype():
    with jax.enable_x64(True):
        data = synthetic.polynomial(KEY, noise=jnp.float64(0.1))
    assert {leaf.dtype for leaf in data} == {jnp.dtype("float32")}


def test_train_and_test_are_different_draws():
    data = synthetic.linear(KEY, n_train=50, n_test=50)
    assert np.all(data.train_inputs != data.test_inputs)


def test_more_weights_than_degrees_are_refused():
    with pytest.raises(UsageError, match="4 weights"):
        synthetic.polynomial(KEY, degrees=3)
