"""Quantiles over seeds that forget no lane."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import jaxstab
from jaxstab.trials.outputs import Output

INF, NAN = math.inf, math.nan


def lanes(*values: float, **attrs) -> xr.DataArray:
    return xr.DataArray(np.array(values), dims="seed", attrs=attrs)


def by_hand(values: np.ndarray, q: float) -> float:
    """The definition in words: linear between finite neighbours, else the nearer, the infinite one on a tie."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    share = place - math.floor(place)
    if math.isfinite(low) and math.isfinite(high):
        return low + share * (high - low)
    if share != 0.5:
        return low if share < 0.5 else high
    return high if math.isinf(high) else low


@pytest.mark.parametrize("q", [0.0, 0.025, 0.3, 0.5, 0.7, 0.975, 1.0])
def test_finite_values_are_numpys(q):
    values = np.random.default_rng(0).normal(size=37)
    assert float(jaxstab.quantiles(lanes(*values), q)) == pytest.approx(np.quantile(values, q), abs=1e-12)


def test_infinities_are_not_interpolated():
    rng = np.random.default_rng(1)
    for _ in range(300):
        values = rng.choice([-INF, -1.0, 0.0, 2.0, INF, NAN], size=rng.integers(1, 9))
        counted = np.where(np.isnan(values), INF, values)
        q = float(rng.uniform())
        assert float(jaxstab.quantiles(lanes(*values), q)) == pytest.approx(by_hand(counted, q), abs=1e-12)


def test_a_diverged_lane_stands_at_the_bad_end():
    loss = lanes(0.1, 0.2, NAN, INF, NAN)
    assert [float(q) for q in jaxstab.quantiles(loss)] == [pytest.approx(0.11), INF, INF]
    accuracy = lanes(0.9, 0.8, NAN, NAN, INF, diverged_counts_as=-INF)
    assert [float(q) for q in jaxstab.quantiles(accuracy)] == [-INF, -INF, pytest.approx(0.89)]
    assert float(jaxstab.quantiles(loss, 0.5, diverged=-INF)) == -INF
    assert float(jaxstab.quantiles(lanes(-INF, -INF, 0.0), 0.5)) == -INF  # the logarithm of 0 stays


@jaxstab.family(dims={"loss": ("step",)})
def descent(key, *, steps: int = 50, learning_rate: float = 0.1):
    """The README's own."""
    start = jax.random.normal(key, (8,))

    def step(x, _):
        return x - learning_rate * jax.grad(lambda x: (x**4).sum())(x), (x**4).sum()

    return {"loss": jax.lax.scan(step, start, length=steps)[1]}


def test_the_median_of_the_readmes_own_example_is_infinite_where_most_lanes_diverge():
    last = jaxstab.sweep(descent, jaxstab.grid(learning_rate=[0.03, 0.3]), 256).isel(step=-1)
    diverged = (last.status.sel(learning_rate=0.3) != 0).mean()
    assert float(diverged) > 0.6
    assert float(last.loss.median("seed").sel(learning_rate=0.3)) < 0.01  # xarray's own forgets them
    median = jaxstab.quantiles(last.loss, 0.5)
    assert math.isinf(float(median.sel(learning_rate=0.3)))
    assert float(median.sel(learning_rate=0.03)) < INF


def test_padding_stays_nan_and_is_no_divergence():
    data = jaxstab.propagate(
        seeds=4,
        depth=[3, 5],
        width=8,
        batch=2,
        activation="linear",
        keep=["log10_forward_rms", "forward_rms"],
    )
    assert data.layer_count.values.tolist() == [3, 5]
    median = jaxstab.quantiles(data.forward_rms, 0.5)
    assert np.isnan(median.sel(depth=3).values).tolist() == [False] * 3 + [True] * 2
    assert np.isfinite(median.sel(depth=5)).all()


def test_what_overflows_inside_its_depth_counts_as_infinite():
    data = jaxstab.propagate(
        seeds=4, depth=[3, 60], width=64, batch=2, activation="linear", init="normal", keep=["forward_rms"]
    )
    median = jaxstab.quantiles(data.forward_rms, 0.5)
    assert np.isinf(median.sel(depth=60, layer=60))
    assert np.isnan(median.sel(depth=3, layer=60))


def test_a_statistic_that_is_undefined_stays_nan():
    data = jaxstab.propagate(seeds=3, width=8, batch=1, depth=3, keep=["correlation", "forward_rms"])
    assert np.isnan(jaxstab.quantiles(data.correlation)).all()
    assert np.isfinite(jaxstab.quantiles(data.forward_rms)).all()


def test_a_dataset_is_summarized_variable_by_variable():
    @jaxstab.family(outputs={"score": Output(("item",), "a score", "%", diverged=-INF)})
    def scores(key, *, level: float = 1.0):
        return {"score": jnp.array([level, jnp.nan]), "loss": level * jnp.inf}

    data = jaxstab.sweep(scores, jaxstab.grid(level=[1.0, 2.0]), 3)
    found = jaxstab.quantiles(data, 0.5)
    assert set(found.data_vars) == {"score", "loss"}
    assert found.score.values.tolist() == [[1.0, -INF], [2.0, -INF]]
    assert np.isinf(found.loss).all()
    assert found.score.attrs["units"] == "%"


def test_bad_input_gets_one_line():
    with pytest.raises(jaxstab.UsageError, match=r"no dimension 'lane'. Choices: seed"):
        jaxstab.quantiles(lanes(1.0), dim="lane")
    for q in (-0.1, 1.5, [[0.5]], NAN):
        with pytest.raises(jaxstab.UsageError, match="probabilities between 0 and 1"):
            jaxstab.quantiles(lanes(1.0), q)
