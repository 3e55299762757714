"""Statistics that survive: right up to the largest number, and honest beyond it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.trials import signals

X = np.random.default_rng(0).normal(0.3, 1, (16, 64)).astype(np.float32)


@pytest.mark.parametrize("exponent", [-110, -60, 0, 60, 124])
def test_moments_are_right_at_every_scale(exponent):
    x = jnp.ldexp(jnp.asarray(X), exponent)
    seen = jax.jit(signals.describe)(x)
    scale = 2.0**exponent
    wanted = {
        "mean": X.mean(dtype=np.float64),
        "std": X.std(dtype=np.float64, ddof=1),
        "rms": np.sqrt((X.astype(np.float64) ** 2).mean()),
        "absmax": np.abs(X).max(),
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(float(seen[name]) / scale, value, rtol=2e-6, err_msg=name)
    np.testing.assert_allclose(
        signals.log10_rms(x), np.log10(wanted["rms"]) + exponent * np.log10(2), rtol=1e-5, atol=1e-6
    )


def test_squaring_first_would_have_overflowed():
    x = jnp.ldexp(jnp.asarray(X), 100)
    assert np.isinf(float(jnp.std(x, ddof=1)))
    assert np.isfinite(float(signals.describe(x)["std"]))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precisions_are_summed_in_float32(dtype):
    x = jnp.full((64, 128), 60000 if dtype == jnp.float16 else 3e38, dtype)
    seen = signals.describe(x)
    np.testing.assert_allclose(float(seen["rms"]), float(x[0, 0].astype(jnp.float32)), rtol=1e-6)
    assert float(seen["std"]) == 0


def test_zeros_and_a_single_entry_are_told():
    assert float(signals.log10_rms(jnp.zeros(4))) == -np.inf
    assert np.isnan(float(signals.describe(jnp.ones((1, 1)))["std"]))


def test_mean_cosine_is_that_of_all_pairs():
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(16, 1)]
    np.testing.assert_allclose(signals.mean_cosine(jnp.asarray(X)), cosines.mean(), atol=2e-6)


def test_mean_cosine_leaves_zero_rows_out_and_does_not_care_for_scale():
    x = np.concatenate([X[:3] * np.float32([[1e-30], [1.0], [1e30]]), np.zeros((2, 64), np.float32)])
    np.testing.assert_allclose(
        signals.mean_cosine(jnp.asarray(x)), signals.mean_cosine(jnp.asarray(X[:3])), atol=2e-6
    )
    assert np.isnan(float(signals.mean_cosine(jnp.asarray(x[:1]))))


def test_first_layers_count_from_one_and_zero_is_none():
    found = jnp.array([False, True, False, True])
    assert int(signals.first_layer(found)) == 2
    assert int(signals.last_layer(found)) == 4
    assert int(signals.first_layer(jnp.zeros(4, bool))) == 0
    assert int(signals.last_layer(jnp.zeros(4, bool))) == 0
