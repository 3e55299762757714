"""Shares and errors that `what_if` tells of an operation, against direct counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sightings import plant

from jaxstab import what_if
from jaxstab.formats import format_of, round_to
from jaxstab.observation import twins
from jaxstab.observation.whatif import accumulation_error

F16 = format_of("float16")


def half(x):
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


def scale_by_three(x):
    """The row of x * 3 in float16, with the exact and the stored value by NumPy."""
    _, twin = jax.jit(what_if(lambda x: x * 3.0, "float16"))(x)
    data = twin.to_dataset()
    assert list(data.kind.values) == ["mul"]
    return data.isel(site=0), np.asarray(x, np.float32) * np.float32(3), half(half(x) * np.float32(3))


def assert_shares_are_counted():
    rng = np.random.default_rng(0)
    x = np.float32(rng.choice([-1, 1], 256) * 2.0 ** rng.uniform(-34, 20, 256))  # a sample is all of it
    data, exact, stored = scale_by_three(x)
    assert data.absmax == np.abs(exact).max()
    assert data.absmax_rounded == np.inf
    np.testing.assert_allclose(data.underflow, np.mean((stored == 0) & (exact != 0)), rtol=1e-6)
    np.testing.assert_allclose(data.overflow, np.mean(np.abs(exact) > 65504), rtol=1e-6)
    assert 0.05 < data.underflow < 0.5
    assert 0.01 < data.overflow < 0.5


def assert_errors_are_right():
    x = np.random.default_rng(1).normal(size=256).astype(np.float32)
    data, exact, stored = scale_by_three(x)
    size = np.abs(exact).mean(dtype=np.float64)
    wanted = {
        "magnitude": size,
        "error": np.abs(stored - exact).mean(dtype=np.float64) / size,
        "error_made": np.abs(half(exact) - exact).mean(dtype=np.float64) / size,
        "error_brought": np.abs(stored - half(exact)).mean(dtype=np.float64) / size,
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(data[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(data.headroom, np.log2(65504 / np.abs(exact).max()), rtol=1e-6)


@pytest.mark.parametrize("check", [assert_shares_are_counted, assert_errors_are_right])
def test_what_is_told_is_what_numpy_counts(check, monkeypatch):
    check()
    lost = F16._replace(mantissa_bits=9, epsilon=2.0**-9)
    plant(monkeypatch, twins, "round_to", lambda x, f: round_to(x, lost if f == F16 else f))
    monkeypatch.setattr("jaxstab.observation.whatif.round_to", lambda x, f: round_to(4 * x, f) / 8)
    with pytest.raises(AssertionError):
        check()


def test_shares_of_a_large_array_are_those_of_a_sample():
    rng = np.random.default_rng(2)
    x = np.float32(2.0 ** rng.uniform(-40, 0, 100_000))
    data, exact, stored = scale_by_three(x)
    share = np.mean((stored == 0) & (exact != 0))
    assert abs(data.underflow - share) < 4 * np.sqrt(share * (1 - share) / twins.SAMPLE)
    assert data.absmax == exact.max()
    assert data.absmax_rounded == stored.max()


def test_nan_and_infinity_show_in_the_largest_magnitude():
    for bad in (np.nan, np.inf):
        data, _, _ = scale_by_three(np.float32([1, bad, 2]))
        np.testing.assert_equal(float(data.absmax), bad)
        np.testing.assert_equal(float(data.absmax_rounded), bad)
        assert np.isfinite(data.error)


def simulated_sums(terms, networks=4000):
    """Sums of `terms` normal numbers one by one, each partial sum stored in float16: rms relative error and its
    standard error over the networks."""
    x = np.random.default_rng(terms).normal(size=(terms, networks))
    total = np.zeros(networks)
    for row in x:
        total = (total + row).astype(np.float16).astype(np.float64)
    exact = x.sum(0)
    squares = (total - exact) ** 2 / np.mean(exact**2)
    rms = np.sqrt(squares.mean())
    return rms, np.std(squares, ddof=1) / np.sqrt(networks) / (2 * rms)


def assert_accumulation_is_simulated(terms, narrow):
    """Within four standard errors and 5 %: the law takes partial sums for spread evenly over a binade."""
    rms, error = simulated_sums(terms)
    assert abs(accumulation_error(terms, narrow) - rms) < 4 * error + 0.05 * rms


@pytest.mark.parametrize("terms", [64, 256, 1024])
def test_accumulating_in_the_format_adds_what_a_simulation_adds(terms):
    assert_accumulation_is_simulated(terms, F16)
    with pytest.raises(AssertionError):
        assert_accumulation_is_simulated(terms, F16._replace(mantissa_bits=9, epsilon=2.0**-9))


def test_one_term_accumulates_nothing():
    assert accumulation_error(1, F16) == 0
    assert jnp.ndim(accumulation_error(np.array([1, 2]), F16)) == 1
