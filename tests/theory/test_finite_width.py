"""Laws at finite width against published numbers, closed forms and explicit random matrices."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import assert_mean_matches
from scipy import special, stats

from jaxstab.errors import UsageError
from jaxstab.theory import finite_width
from jaxstab.theory.finite_width import (
    log10_entry_quantile,
    log10_rms_interval,
    log10_rms_interval_backward,
    log10_row_norm,
    log_factor_quantile,
)

ROOT_2 = math.sqrt(2)


def assert_quantiles(sample, quantiles, probabilities):
    """As many of the sample lie below each quantile as should, within five binomial standard errors."""
    for quantile, probability in zip(quantiles, probabilities, strict=True):
        below = np.mean(np.asarray(sample) <= quantile)
        error = math.sqrt(probability * (1 - probability) / len(sample))
        assert abs(below - probability) < 5 * error, f"{below} of the sample below the quantile {probability}"


def test_lyapunov_exponents():
    exponents = finite_width.lyapunov_exponents(4)
    assert exponents[0] == pytest.approx(0.557966, abs=6e-7)
    assert exponents == pytest.approx((math.log(2) + special.digamma([2.0, 1.5, 1.0, 0.5])) / 2)
    assert finite_width.lyapunov_exponents(4, 0.1) == pytest.approx(exponents + math.log(0.1))
    neutral = math.exp(-exponents[0])
    assert neutral == pytest.approx(0.572372, abs=6e-7)
    assert finite_width.lyapunov_exponents(4, neutral)[0] == pytest.approx(0, abs=1e-12)
    assert log10_row_norm(4, 1)[1] * math.log(10) == pytest.approx(math.sqrt(special.polygamma(1, 2) / 4))


def test_exponents_are_the_rates_of_an_explicit_product():
    """QR, step by step: the logarithms of R's diagonal have the exponents as their means."""
    rng = np.random.default_rng(0)
    q, logs = np.eye(4), []
    for _ in range(4000):
        q, r = np.linalg.qr(rng.normal(size=(4, 4)) @ q)
        logs.append(np.log(np.abs(np.diag(r))))
    assert_mean_matches(logs, finite_width.lyapunov_exponents(4))
    with pytest.raises(AssertionError):
        assert_mean_matches(logs, finite_width.lyapunov_exponents(4, 1.05))  # 5 % of scale is seen
    variance = np.square(np.array(logs)[:, 0] - finite_width.lyapunov_exponents(4)[0])
    assert_mean_matches(variance, (log10_row_norm(4, 1)[1] * math.log(10)) ** 2)


def test_the_source_s_hundred_and_one_matrices():
    mean, std = log10_row_norm(4, 101)
    assert mean == pytest.approx(24.47, abs=0.005)
    assert std == pytest.approx(1.75, abs=0.005)
    low, median, high = (log10_entry_quantile(p, 4, 101) for p in (0.025, 0.5, 0.975))
    assert median < mean  # an entry is a row's norm times a number below 1
    assert low < median < 27 < high  # the published draw, 1e27


def test_rows_and_entries_of_explicit_products():
    rng = np.random.default_rng(1)
    product = np.broadcast_to(np.eye(3), (4000, 3, 3))
    for _ in range(5):
        product = product @ (0.7 * rng.normal(size=(4000, 3, 3)))
    rows = np.log10(np.linalg.norm(product[:, 0], axis=1))
    mean, std = log10_row_norm(3, 5, 0.7)
    assert_mean_matches(rows, mean)
    assert_mean_matches((rows - mean) ** 2, std**2)
    probabilities = (0.01, 0.1, 0.5, 0.9, 0.99)
    quantiles = [log10_entry_quantile(p, 3, 5, 0.7) for p in probabilities]
    entries = np.log10(np.abs(product[:, 1, 2]))
    assert_quantiles(entries, quantiles, probabilities)
    with pytest.raises(AssertionError):
        assert_quantiles(entries, np.add(quantiles, 0.1), probabilities)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-4, 1 - 1e-4), st.integers(1, 50))
def test_one_matrix_has_gaussian_entries(probability, n):
    exact = math.log10(stats.halfnorm.ppf(probability))
    assert log10_entry_quantile(probability, n, 1) == pytest.approx(exact, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-4, 1 - 1e-4), st.integers(1, 600))
def test_one_linear_layer_is_chi(probability, width):
    exact = math.log(stats.chi2.ppf(probability, width) / width) / 2
    assert log_factor_quantile("linear", probability, width, 1) == pytest.approx(exact, abs=1e-9)


def test_one_relu_layer_is_a_mixture_of_chis():
    width, active = 6, np.arange(1, 7)
    for probability in (0.05, 0.4, 0.9):
        quantile = log_factor_quantile("relu", probability, width, 1, ROOT_2)
        square = width / 2 * math.exp(2 * quantile)
        below = 0.5**width + np.sum(stats.binom.pmf(active, width, 0.5) * stats.chi2.cdf(square, active))
        assert below == pytest.approx(probability, abs=1e-9)
    assert log_factor_quantile("relu", 0.9 * 0.5**6, width, 1) == -math.inf  # no unit is active


def test_published_spread_of_deep_stacks():
    relu = [math.exp(log_factor_quantile("relu", p, 256, 100, ROOT_2)) for p in (0.5, 0.025, 0.975)]
    assert relu == pytest.approx([0.612, 0.154, 2.43], rel=0.01)  # published from samples
    linear = [math.exp(log_factor_quantile("linear", p, 256, 100)) for p in (0.5, 0.025, 0.975)]
    assert linear == pytest.approx([0.822, 0.345, 1.96], rel=3e-3)
    mean, var = finite_width.hanin_nica(256, 100)
    rough = [math.exp((mean + z * math.sqrt(var)) / 2) for z in (0.0, -1.96, 1.96)]
    assert rough == pytest.approx([0.62, 0.157, 2.45], rel=0.02)
    assert relu == pytest.approx(rough, rel=0.03)


def test_published_spread_of_sixteen_inputs_together():
    interval = log10_rms_interval("linear", 256, 100, 16)
    low, median, high = (10 ** float(end[-1]) for end in interval)
    assert (low, median) == pytest.approx((0.646, 0.944), rel=0.03)
    assert high == pytest.approx(1.505, rel=0.03)


def test_one_input_by_both_ways_is_the_same():
    """Exactly, and from the Gram matrix's law."""
    sample = finite_width._gram_samples(20, 30, 1)[:, 30] / math.log(10)
    interval = log10_rms_interval("linear", 20, 30, 1)
    assert_quantiles(sample, [end[-1] for end in interval], (0.025, 0.5, 0.975))
    with pytest.raises(AssertionError):
        assert_quantiles(sample, [end[-1] + 0.05 for end in interval], (0.025, 0.5, 0.975))


@pytest.mark.parametrize(("width", "batch"), [(8, 3), (6, 9)])
def test_several_inputs_to_explicit_linear_stacks(width, batch):
    rng, stacks, depth = np.random.default_rng(2), 4000, 6
    h = rng.normal(size=(stacks, batch, width))
    for _ in range(depth):
        h = h @ (rng.normal(size=(stacks, width, width)) * 1.3 / math.sqrt(width))
    measured = np.log10(np.sqrt(np.mean(h**2, axis=(1, 2))))
    sample = finite_width._gram_samples(width, depth, batch)[:, depth] / math.log(10)
    sample = sample + depth * math.log10(1.3)
    assert stats.ks_2samp(measured, sample).pvalue > 1e-4
    assert stats.ks_2samp(measured, sample + 0.02).pvalue < 1e-4
    interval = log10_rms_interval("linear", width, depth, batch, sigma_w=1.3, level=0.9)
    assert [end[-1] for end in interval] == pytest.approx(np.quantile(sample, (0.05, 0.5, 0.95)))


def relu_networks(width, depth, networks):
    """log10 rms of every layer of He-initialized ReLU stacks, and of the gradient: [layer, network] each."""
    rng = np.random.default_rng(3)
    h, weights, masks, forward, backward = rng.normal(size=(networks, width)), [], [], [], []
    with np.errstate(divide="ignore"):
        for _ in range(depth):
            weights.append(rng.normal(size=(networks, width, width)) * math.sqrt(2 / width))
            z = np.einsum("sij,sj->si", weights[-1], h)
            masks.append(z > 0)
            h = np.maximum(z, 0)
            forward.append(np.log10(np.mean(h**2, axis=1)) / 2)
        g = rng.normal(size=(networks, width))
        for w, mask in zip(weights[::-1], masks[::-1], strict=True):
            backward.insert(0, np.log10(np.mean(g**2, axis=1)) / 2)
            g = np.einsum("sij,si->sj", w, g * mask)
    return np.array(forward), np.array(backward)


def test_relu_stacks_forward_and_backward():
    width, depth, level = (
        8,
        6,
        0.7,
    )  # of these, 2.3 % die: more than the interval's rim would make its end -inf
    forward, backward = relu_networks(width, depth, 20_000)
    probabilities = ((1 - level) / 2, 0.5, (1 + level) / 2)
    there = log10_rms_interval("relu", width, depth, sigma_w=ROOT_2, level=level)
    back = log10_rms_interval_backward("relu", width, depth, sigma_w=ROOT_2, level=level)
    for layer in range(depth):
        assert_quantiles(forward[layer], [end[layer] for end in there], probabilities)
        assert_quantiles(backward[layer], [end[layer] for end in back], probabilities)
    with pytest.raises(AssertionError):
        assert_quantiles(backward[0], [end[1] for end in back], probabilities)  # one layer off is seen
    assert np.mean(np.isinf(backward[0])) == pytest.approx(1 - (1 - 2.0**-width) ** depth, abs=0.005)


def test_intervals_broadcast_and_shift_with_sigma_w():
    sigma_w = np.array([[0.5, 1.0, 2.0]])
    interval = log10_rms_interval("linear", 16, 5, sigma_w=sigma_w)
    assert interval.low.shape == (1, 3, 5)
    step = np.arange(1, 6) * math.log10(2)
    np.testing.assert_allclose(interval.median[0, 2] - interval.median[0, 1], step)
    assert np.all((interval.low < interval.median) & (interval.median < interval.high))
    back = log10_rms_interval_backward("linear", 16, 5, sigma_w=1.0)
    np.testing.assert_allclose(back.high[:-1], interval.high[0, 1, ::-1][1:])  # depth - l layers


def test_what_is_not_known_is_nan():
    for interval in (
        log10_rms_interval("tanh", 16, 5),
        log10_rms_interval("relu", 16, 5, batch=2),
        log10_rms_interval("linear", 16, 5, sigma_b=0.1),
        log10_rms_interval("linear", 128, 5, batch=128),
        log10_rms_interval_backward("gelu", 16, 5),
    ):
        assert np.shape(interval) == (3, 5)
        assert np.all(np.isnan(interval))


def test_refusals():
    with pytest.raises(UsageError, match=r"'tanh' at finite width is not known\. Choices: linear, relu"):
        log_factor_quantile("tanh", 0.5, 10, 3)
    with pytest.raises(UsageError, match="probability=1"):
        log_factor_quantile("linear", 1.0, 10, 3)
    with pytest.raises(UsageError, match="level=2"):
        log10_rms_interval("linear", 10, 3, level=2.0)
    with pytest.raises(UsageError, match="depth=0"):
        log10_rms_interval("linear", 10, 0)
    with pytest.raises(UsageError, match="n=0"):
        finite_width.lyapunov_exponents(0)
