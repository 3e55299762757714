"""Ranges against the formats themselves, forecasts against arrays cast to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstab.errors import UsageError
from jaxstab.theory import floats
from jaxstab.theory.floats import (
    FLOATS,
    first_overflow_layer,
    first_underflow_layer,
    loss_scale,
    loss_scale_or_reason,
)

COUNT = 16 * 256
GROWTH = np.arange(1, 101) * np.log10(16)  # N(0, 1) weights, width 256: 16 a layer


def test_published_ranges():
    assert FLOATS["float16"] == (65504.0, 65520.0, 2.0**-14, 2.0**-24, 2.0**-10)
    assert FLOATS["bfloat16"].largest == pytest.approx(3.39e38, rel=2e-3)
    assert FLOATS["bfloat16"][2:] == (2.0**-126, 2.0**-133, 2.0**-7)
    assert FLOATS["float32"].largest == pytest.approx(3.40e38, rel=2e-3)
    assert FLOATS["float32"][2:] == (2.0**-126, 2.0**-149, 2.0**-23)


@pytest.mark.parametrize("dtype", FLOATS)
def test_overflow_begins_where_it_is_said(dtype):
    kind, limits = jnp.dtype(dtype), FLOATS[dtype]
    with np.errstate(over="ignore"):
        assert np.isinf(np.float64(limits.overflow).astype(kind))
        assert np.isfinite(np.float64(limits.overflow * (1 - 1e-3 * limits.epsilon)).astype(kind))
        assert np.float64(limits.largest).astype(kind) == limits.largest


@pytest.mark.parametrize("dtype", FLOATS)
def test_numbers_vanish_where_it_is_said(dtype):
    kind, limits = jnp.dtype(dtype), FLOATS[dtype]
    kept = limits.vanishing(flush_subnormals=False)
    assert np.float64(kept).astype(kind) == 0
    assert np.float64(kept * 1.001).astype(kind) > 0
    assert limits.vanishing(flush_subnormals=True) == limits.smallest_normal


@pytest.mark.parametrize(("dtype", "layer"), [("float16", 4), ("bfloat16", 32), ("float32", 32)])
def test_unscaled_weights_overflow_in_the_published_layer(dtype, layer):
    assert first_overflow_layer(GROWTH, dtype, COUNT) == layer
    assert first_overflow_layer(GROWTH[: layer - 1], dtype, COUNT) == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_forecasts_agree_with_arrays_cast_to_the_format(dtype):
    """Gaussian layers of exactly these scales, cast down; a layer's own maximum varies by 10 %."""
    noise = np.random.default_rng(0).normal(size=COUNT)
    for slope in (0.73, -0.61):
        log10_rms = slope * np.arange(1, 130)
        layers = [(10.0 ** float(scale) * noise) for scale in log10_rms if -300 < scale < 300]
        with np.errstate(over="ignore"):
            cast = [np.asarray(layer.astype(jnp.dtype(dtype)), np.float64) for layer in layers]
        overflows = [i + 1 for i, layer in enumerate(cast) if np.any(np.isinf(layer))]
        vanishes = [i + 1 for i, layer in enumerate(cast) if np.all(layer == 0)]
        assert first_overflow_layer(log10_rms, dtype, COUNT) == (overflows or [0])[0]
        assert first_underflow_layer(log10_rms, dtype, COUNT, flush_subnormals=False) == (vanishes or [0])[0]


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_flushed_is_what_a_compiled_program_loses(dtype):
    """A sixteenth of the smallest normal number, which is exact in each of the formats that keep it."""
    normal = FLOATS[dtype].smallest_normal
    small, factor = jnp.asarray(normal * 4, dtype), jnp.asarray(2.0**-6, dtype)
    product = np.asarray(jax.jit(lambda x, y: x * y)(small, factor)).astype(np.float64)
    assert floats.flushes_subnormals(dtype) == (product == 0)
    if not floats.flushes_subnormals(dtype):
        assert product == normal / 16


def test_what_jax_flushes_on_the_cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("a statement about the CPU")
    assert [dtype for dtype in FLOATS if floats.flushes_subnormals(dtype)] == ["bfloat16", "float32"]


def test_flushing_is_found_while_a_program_is_traced():
    floats.flushes_subnormals.cache_clear()
    found = []
    jax.jit(lambda x: found.append(floats.flushes_subnormals("float16")) or x)(1.0)
    assert found == [floats.flushes_subnormals("float16")]


def test_flushing_brings_the_end_forward():
    kept = first_underflow_layer(-GROWTH, "float32", COUNT, flush_subnormals=False)
    flushed = first_underflow_layer(-GROWTH, "float32", COUNT)
    assert (flushed, kept) == (32, 38)
    assert first_underflow_layer(-GROWTH, "float16", COUNT) == 7


def test_forecasts_for_several_trajectories_at_once():
    together = first_overflow_layer(np.stack([GROWTH, -GROWTH, np.full(100, np.nan)]), "float16", COUNT)
    np.testing.assert_array_equal(together, [4, 0, 0])
    assert first_overflow_layer(GROWTH, "float16", COUNT, headroom=100.0) == 2


def test_largest_of_many():
    sample = np.abs(np.random.default_rng(0).normal(size=(4000, 100))).max(axis=1)
    below = np.mean(sample < floats.largest_of(100))
    assert abs(below - 0.5) < 5 * 0.5 / np.sqrt(4000)
    assert floats.largest_of(10**6) == pytest.approx(np.sqrt(2 * np.log(10**6)), rel=0.07)


@settings(max_examples=50)
@given(st.lists(st.floats(-4, 2), min_size=1, max_size=20), st.floats(-20, 20), st.sampled_from(list(FLOATS)))
def test_a_loss_scale_keeps_every_layer_inside(logs, shift, dtype):
    log10_gradient = np.array(logs) + shift
    scale = loss_scale(log10_gradient, dtype, COUNT)
    assert np.log2(scale) == round(np.log2(scale))
    scaled = log10_gradient + np.log10(scale)
    assert first_overflow_layer(scaled, dtype, COUNT) == 0
    assert 10.0 ** np.min(scaled) >= FLOATS[dtype].smallest_normal


def test_a_loss_scale_of_gradients_that_need_none_is_small():
    assert loss_scale(np.zeros(5), "float16", COUNT) == 1.0


@pytest.mark.parametrize(
    ("logs", "dtype", "reason"),
    [
        ([0.0, -10.0], "float16", r"gradients span 10\.6 decades and float16 holds 9\.0"),
        ([-60.0], "bfloat16", "beyond float32"),
        ([0.0, -np.inf], "float16", "inf or NaN"),
    ],
)
def test_where_no_single_scale_does_it_is_said(logs, dtype, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        loss_scale(np.array(logs), dtype, COUNT)
    scale, said = loss_scale_or_reason(np.array(logs), dtype, COUNT)
    assert np.isnan(scale)
    assert said == str(caught.value)


def test_where_a_scale_does_there_is_no_reason():
    logs = np.array([-3.0, -4.0])
    assert loss_scale_or_reason(logs, "float16", COUNT) == (loss_scale(logs, "float16", COUNT), "")
    with pytest.raises(UsageError, match="Choices"):
        loss_scale_or_reason(logs, "float8", COUNT)


def test_refusals():
    with pytest.raises(UsageError, match="Choices: float16, bfloat16, float8_e5m2"):
        first_overflow_layer(GROWTH, "float8", COUNT)
    with pytest.raises(UsageError, match="no layers"):
        first_overflow_layer(np.zeros(0), "float16", COUNT)
    with pytest.raises(UsageError, match="count=0"):
        first_overflow_layer(GROWTH, "float16", 0)
