"""Where a format ends a stack, as a law over networks: against closed forms, and against networks.

Reference networks are drawn by NumPy here, in float32 rounded to float16 after every product; shares are compared
within five of their own standard errors.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from scipy.special import ndtr

import jaxstab
from jaxstab.errors import UsageError
from jaxstab.theory import breaking, entries, rowgradient, trajectory
from jaxstab.theory.activations import ACTIVATIONS
from jaxstab.theory.breaking import forecast
from jaxstab.theory.floats import FLOATS, largest_of

ERRORS = 5.0
NORMAL, KAIMING = 8.0, math.sqrt(2)  # sigma_w at width 64


def told(
    activation, sigma_w, depth, *, width=64, batch=4, kind="plain", sigma_b=0.0, dtype="float16", **more
):
    """The forecast of one configuration: numbers by name."""
    walked = trajectory(activation, depth, np.array([sigma_w]), np.array([sigma_b]), kind=kind)
    found = forecast(
        activation, kind=kind, width=width, depth=depth, batch=batch, sigma_w=np.array([sigma_w]),
        sigma_b=np.array([sigma_b]), branch_scale=np.ones(1), dtype=dtype,
        log10_forward_rms=walked.log_square / math.log(100),
        log10_backward_rms=walked.log_gradient / math.log(100), **more,
    )  # fmt: skip
    return {name: float(value[0]) for name, value in found.items()}


def errors_apart(layers: np.ndarray, share: float) -> float:
    """Standard errors between a foretold share and that of `layers` [network] that are not 0."""
    count = layers.size
    guess = (share * count + 1) / (count + 2)  # a share of 0 or 1 has an error too
    return abs(float(np.mean(layers > 0)) - share) / math.sqrt(guess * (1 - guess) / count)


def agree(layers: np.ndarray, found: dict[str, float], name: str, *, exact: bool) -> None:
    """Share, coverage of the interval and, where the law is exact, the median of layers [network].

    A median is right if the sample's share on neither side of it is five standard errors over a half; where the
    interval is one layer it has to be that layer.
    """
    share = name.replace("first_bad_layer", "break_fraction").replace("first_lost_layer", "lost_fraction")
    assert errors_apart(layers, found[share]) < ERRORS, (name, np.mean(layers > 0), found[share])
    broken = layers[layers > 0]
    low, high, median = found[f"{name}_low"], found[f"{name}_high"], found[name]
    if broken.size >= 20:
        inside = np.mean((broken >= low) & (broken <= high))
        assert inside > 0.95 - ERRORS * math.sqrt(0.05 * 0.95 / broken.size), (name, inside)
    assert (median > 0) == (found[share] >= 0.5), (name, median)
    if exact and median > 0:
        sides = max(float(np.mean(broken < median)), float(np.mean(broken > median)))
        assert sides < 0.5 + ERRORS * 0.5 / math.sqrt(broken.size), (name, median, np.median(broken))
        assert low < high or np.median(broken) == median, (name, median, np.median(broken))


@functools.lru_cache(maxsize=1)
def relu_networks(count: int = 250, width: int = 64, batch: int = 4, depth: int = 50) -> np.ndarray:
    """First bad layers of ReLU stacks of gain 1.25, [network], by NumPy alone."""
    rng, found = np.random.default_rng(7), np.zeros(count, int)
    for network in range(count):
        h = rng.normal(size=(batch, width)).astype(np.float16).astype(np.float32)
        for layer in range(depth):
            weights = rng.normal(size=(width, width)) * 1.25 * math.sqrt(2 / width)
            with np.errstate(over="ignore", invalid="ignore"):
                z = (h @ weights.astype(np.float16).astype(np.float32)).astype(np.float16)
            h = np.maximum(z, 0).astype(np.float32)
            if not np.all(np.isfinite(h)):
                found[network] = layer + 1
                break
    return found


def test_networks_drawn_by_numpy():
    agree(relu_networks(), told("relu", 1.25 * KAIMING, 50), "first_bad_layer_forward", exact=True)


def test_the_comparison_sees_a_gaussian_maximum():
    """Taking h of a ReLU stack as Gaussian is one layer off, taking one scale for all networks breaks all of them."""
    name = "first_bad_layer_forward"
    measured = jaxstab.propagate(
        seeds=100,
        width=256,
        batch=16,
        depth=6,
        activation="relu",
        init="normal",
        dtype="float16",
        keep=[name],
    )
    found = told("relu", 16.0, 6, width=256, batch=16)
    agree(measured[name].values, found, name, exact=True)
    rms = trajectory("relu", 6, np.array([16.0])).log_square[0] / math.log(100)
    wrong = 1 + float(np.argmax(rms + math.log10(largest_of(4096)) > math.log10(65520)))
    with pytest.raises(AssertionError):
        agree(
            measured[name].values, found | {name + x: wrong for x in ("", "_low", "_high")}, name, exact=True
        )
    rms = trajectory("relu", 50, np.array([1.25 * KAIMING])).log_square[0] / math.log(100)
    one_scale = float(np.any(rms + math.log10(largest_of(256)) > math.log10(65520)))
    assert errors_apart(relu_networks(), one_scale) > ERRORS


@pytest.mark.parametrize(
    ("activation", "init", "gain", "depth", "exact"),
    [
        ("linear", "kaiming_normal", 0.86, 50, True),
        ("relu", "normal", 1.0, 14, True),
        ("relu", "kaiming_normal", 1.2, 55, True),
        ("leaky_relu", "normal", 1.0, 14, True),
        ("gelu", "kaiming_normal", 1.2, 55, True),
        ("elu", "kaiming_normal", 1.2, 55, False),
        ("tanh", "normal", 1.0, 14, False),
        ("relu", "kaiming_normal", 0.7, 48, True),
    ],
)
def test_networks_as_they_are_propagated(activation, init, gain, depth, exact):
    names = [f"first_{what}_layer_{way}" for way in ("forward", "backward") for what in ("bad", "lost")]
    measured = jaxstab.propagate(
        seeds=200, width=64, batch=4, depth=depth, activation=activation, init=init, gain=gain, dtype="float16",
        keep=names,
    )  # fmt: skip
    found = told(activation, gain * (NORMAL if init == "normal" else KAIMING), depth)
    for name in names:
        agree(measured[name].values, found, name, exact=exact)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_one_layer_has_a_closed_form(activation):
    """P(break) = 1 - E[P(no entry of a row beyond t)]^B, the row's variance sigma_w^2 chi^2_n/n; a wide law."""
    width, batch, sigma_w = 1000, 4, 20000.0
    found = told(activation, sigma_w, 1, width=width, batch=batch)
    spread = 1 + np.sqrt(2 / width) * np.linspace(-6, 6, 4001)
    weight = np.exp(-(np.linspace(-6, 6, 4001) ** 2) / 2)
    tail = ndtr(-65520 / (sigma_w * np.sqrt(spread))) * (2 if activation == "linear" else 1)
    intact = np.sum(weight * (1 - tail) ** width) / np.sum(weight)
    assert found["break_fraction_forward"] == pytest.approx(1 - intact**batch, abs=0.01)
    assert found["break_fraction_backward"] == 0


@pytest.mark.parametrize(("sigma_w", "layers", "measured"), [(1.1, 100, 0.351), (1.3, 37, 0.661)])
def test_the_published_walk(sigma_w, layers, measured):
    """Kaiming times 1.1 and 1.3, 256 x 16, simulated with 1000 networks (error up to 0.015 each)."""
    found = told("relu", sigma_w * KAIMING, layers, width=256, batch=16)
    assert found["break_fraction_forward"] == pytest.approx(measured, abs=ERRORS * 0.015)


def test_unscaled_weights_at_width_256():
    """Measured: ReLU 394 of 400 networks in layer 4, and then its gradient is lost in the layer below the last."""
    found = told("relu", 16.0, 30, width=256, batch=16)
    assert (found["first_bad_layer_forward"], found["break_fraction_forward"]) == (4, pytest.approx(1))
    assert (found["first_lost_layer_backward"], found["break_fraction_backward"]) == (29, 0)
    assert told("gelu", 16.0, 20, width=256, batch=16)["first_bad_layer_backward"] == 19
    assert told("linear", 16.0, 20, width=256, batch=16)["first_bad_layer_backward"] == 16


def test_what_cannot_break_is_walked_by_nobody_and_is_0(monkeypatch):
    class Untouched:
        def __getattr__(self, name):
            pytest.fail(f"rowwalk.{name} was asked for")

    monkeypatch.setattr(breaking, "rowwalk", Untouched())
    many = np.full((1000, 100), 0.3)
    one = np.ones(1000)
    found = forecast(
        "gelu", kind="plain", width=256, depth=100, batch=16, sigma_w=one, sigma_b=0 * one, branch_scale=one,
        dtype="float32", log10_forward_rms=many, log10_backward_rms=-many,
    )  # fmt: skip
    assert set(found) == set(breaking.NAMES)
    for name, values in found.items():
        assert np.all(np.isnan(values) if name.endswith(("_low", "_high")) else values == 0), name


def test_where_no_law_is_known_all_is_nan():
    for found in (
        told("linear", KAIMING, 30, kind="residual"),
        told("relu", 1e6, 30),  # weights themselves overflow
    ):
        assert np.all(np.isnan(list(found.values())))


def test_the_same_call_gives_the_same_numbers():
    first = told("elu", 1.2 * KAIMING, 50)
    breaking._of_plain.cache_clear()
    again = told("elu", 1.2 * KAIMING, 50)
    np.testing.assert_array_equal(list(first.values()), list(again.values()))


def test_callables_are_treated_as_their_names():
    own = lambda x: x * (x > 0)  # noqa: E731 - the ReLU but for inf times 0, which makes NaN of -inf
    name, call = (told(phi, 1.25 * KAIMING, 50) for phi in ("relu", own))
    assert call["break_fraction_forward"] >= name["break_fraction_forward"]
    same = told(ACTIVATIONS["gelu"], 1.2 * KAIMING, 50)
    np.testing.assert_array_equal(list(same.values()), list(told("gelu", 1.2 * KAIMING, 50).values()))


def test_ends_of_the_known_functions():
    relu, tanh, gelu, linear = (
        entries.ends(ACTIVATIONS[x], "float16") for x in ("relu", "tanh", "gelu", "linear")
    )
    overflow = FLOATS["float16"].overflow
    assert relu.bad == (pytest.approx(overflow, rel=1e-6), np.inf)
    assert tanh.bad == (np.inf, np.inf)
    assert linear.bad == (pytest.approx(overflow, rel=1e-6),) * 2
    assert (relu.slopes, linear.slopes) == ((1, 0, 0), (1, 1, 1))
    assert np.isnan(gelu.slopes[2])
    assert np.isinf(relu.product)
    assert overflow <= gelu.product <= 2.01 * overflow


def test_moments_of_a_homogeneous_function_in_the_middle_of_the_format():
    m = entries.moments(ACTIVATIONS["relu"], "float16")
    i = m.line(0.0)
    assert np.exp([m.log_gain[i], m.log_slope[i]]) == pytest.approx([0.5, 0.5], rel=1e-4)
    assert (m.spread[i], m.slope_spread[i], m.aligned[i], m.carried[i]) == pytest.approx(
        (5, 2, 1, 1), rel=2e-3
    )


def test_a_product_of_two_normals():
    """P(|xy| > t) against 200,000 draws."""
    draws = np.abs(np.prod(np.random.default_rng(0).normal(size=(2, 200_000)), axis=0))
    for t in (0.3, 1.0, 3.0):
        p = 2 * ndtr(-np.interp(np.log(t), np.log(rowgradient._T), rowgradient._AS_NORMAL))
        assert abs(np.mean(draws > t) - p) < ERRORS * math.sqrt(p * (1 - p) / 200_000)


def test_refusals():
    with pytest.raises(UsageError, match="Choices: float16"):
        told("relu", 1.0, 3, dtype="float8")
    with pytest.raises(UsageError, match="law of the weights"):
        told("relu", 1.0, 3, weights="cauchy")
