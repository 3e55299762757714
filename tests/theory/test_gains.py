"""Gains against published digits and independent quadrature; the edge of chaos against its own definition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstab import theory
from jaxstab.errors import UsageError
from jaxstab.theory import moments
from jaxstab.theory.activations import ACTIVATIONS
from jaxstab.theory.gains import PYTORCH_GAINS, critical_initialization, gain

GAINS = {  # forward, backward, std, chi at the forward gain
    "relu": (1.414214, 1.414214, 1.712859, 1.000000),
    "tanh": (1.592537, 1.467414, 1.592537, 1.177807),
    "sigmoid": (1.846229, 4.722646, 4.801313, 0.152827),
    "scaled_sigmoid": (1.200328, 1.180662, 1.200328, 1.033592),
    "gelu": (1.533530, 1.481114, 1.700926, 1.072032),
    "silu": (1.676532, 1.623320, 1.787187, 1.066634),
    "selu": (1.000000, 0.966026, 1.000000, 1.071575),
}


@pytest.mark.parametrize("name", GAINS)
def test_gains_to_the_published_digits(name):
    forward, backward, std, chi = GAINS[name]
    assert gain(name) == gain(name, "forward") == pytest.approx(forward, abs=6e-7)
    assert gain(name, "backward") == pytest.approx(backward, abs=6e-7)
    assert gain(name, "std") == pytest.approx(std, abs=6e-7)
    assert theory.chi(name, 1.0, gain(name)) == pytest.approx(chi, abs=6e-7)


def test_closed_forms():
    assert gain("linear") == pytest.approx(1.0, rel=1e-12)
    assert gain("relu", "std") == pytest.approx(1 / math.sqrt(0.5 - 1 / (2 * math.pi)), rel=1e-12)
    assert gain("leaky_relu", "backward") == pytest.approx(math.sqrt(2 / (1 + 1e-4)), rel=1e-12)
    assert gain("erf") == pytest.approx(1 / math.sqrt(2 / math.pi * math.asin(2 / 3)), rel=1e-12)


def test_pytorch_gains():
    assert dict(PYTORCH_GAINS) == pytest.approx(
        {
            "linear": 1.0,
            "sigmoid": 1.0,
            "tanh": 5 / 3,
            "relu": math.sqrt(2),
            "leaky_relu": 1.4141428569978354,
            "selu": 0.75,
        }
    )
    assert gain("tanh", "pytorch") == 5 / 3
    assert gain(jax.nn.relu, "pytorch") == math.sqrt(2)


def test_where_pytorch_has_none_it_is_said():
    for name in set(ACTIVATIONS) - set(PYTORCH_GAINS):
        with pytest.raises(UsageError, match=rf"PyTorch has no gain for '{name}'.*leaky_relu.*0\.01"):
            gain(name, "pytorch")

    def tanh(x):
        return x

    with pytest.raises(UsageError, match="is not PyTorch's 'tanh'"):
        gain(tanh, "pytorch")  # a namesake


def test_callables_with_kinks_anywhere():
    a, b = 0.77, 1.3
    clipped = 1 / gain(lambda x: jnp.clip(x, -a, b), "backward") ** 2
    within = 0.5 * (math.erf(a / math.sqrt(2)) + math.erf(b / math.sqrt(2)))
    assert clipped == pytest.approx(within, abs=1e-10)


@settings(deadline=None, max_examples=15)
@given(slope=st.floats(-1, 1))
def test_any_leaky_relu(slope):
    assert gain(lambda x: jnp.where(x > 0, x, slope * x)) == pytest.approx(
        math.sqrt(2 / (1 + slope**2)), rel=1e-10
    )


@settings(deadline=None, max_examples=10)
@given(scale=st.floats(0.01, 100), kind=st.sampled_from(["forward", "backward", "std"]))
def test_a_factor_on_the_activation_divides_the_gain(scale, kind):
    assert gain(lambda x: scale * jax.nn.silu(x), kind) == pytest.approx(gain("silu", kind) / scale, rel=1e-9)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: 0 * x, "forward"),
        (lambda x: 0 * x, "backward"),
        (lambda x: 0 * x + 3, "std"),
        (jnp.sign, "backward"),
        (lambda x: jnp.exp(x**2), "forward"),
    ],
)
def test_a_gain_that_does_not_exist_is_refused(function, kind):
    with pytest.raises(UsageError, match=f"has no {kind} gain"):
        gain(function, kind)


def test_an_unknown_kind_is_refused_with_the_choices():
    with pytest.raises(UsageError, match="Choices: forward, backward, std, pytorch"):
        gain("relu", "fan_in")


def test_published_edges_of_chaos():
    assert critical_initialization("tanh") == pytest.approx((1.0, 0.0), abs=1e-9)
    sigma_w, sigma_b = critical_initialization("tanh", math.sqrt(0.05))
    assert sigma_w**2 == pytest.approx(1.760955, abs=6e-7)
    assert sigma_b == math.sqrt(0.05)
    assert critical_initialization("relu") == pytest.approx((math.sqrt(2), 0.0))
    assert critical_initialization("leaky_relu") == pytest.approx((gain("leaky_relu"), 0.0))
    assert critical_initialization("scaled_sigmoid") == pytest.approx((1.0, 0.0), abs=1e-9)
    assert critical_initialization("erf") == pytest.approx((math.sqrt(math.pi) / 2, 0.0), abs=1e-9)


@pytest.mark.parametrize("sigma_b", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("name", ["elu", "selu", "sigmoid", "tanh", "erf"])
def test_chi_is_one_at_the_fixed_point_it_leads_to(name, sigma_b):
    sigma_w, same = critical_initialization(name, sigma_b)
    assert same == sigma_b
    point = theory.fixed_point(name, sigma_w, sigma_b)
    assert point.chi == pytest.approx(1.0, abs=1e-8)
    assert point.stable
    assert theory.phase(name, sigma_w, sigma_b) == "critical"
    assert theory.phase(name, 1.01 * sigma_w, sigma_b) == "chaotic"
    assert theory.phase(name, 0.99 * sigma_w, sigma_b) == "ordered"


def test_sigmoid_is_critical_only_with_large_weights():
    sigma_w, _ = critical_initialization("sigmoid")
    assert sigma_w == pytest.approx(10.149264, abs=1e-5)
    q = theory.fixed_point("sigmoid", sigma_w).q
    assert sigma_w**2 * moments.moments(jax.nn.sigmoid, q).slope_square == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "sigma_b", "why"),
    [
        ("relu", 0.1, "homogeneous"),
        ("linear", 1.0, "homogeneous"),
        ("gelu", 0.0, "no attracting fixed point"),
        ("silu", 0.0, "no attracting fixed point"),
        ("mish", 0.0, "no attracting fixed point"),
        ("gelu", 0.3, "no attracting fixed point"),  # at q = 1.42 chi = 1, but dQ/dq = 1.046: it repels
        ("softplus", 0.0, "no attracting fixed point"),
        (jnp.sign, 0.0, "slope of 'sign' is zero"),
    ],
)
def test_where_there_is_no_edge_the_reason_is_given(name, sigma_b, why):
    with pytest.raises(UsageError, match=f"^none: .*{why}"):
        critical_initialization(name, sigma_b)


def test_gelu_at_zero_repels():
    """sigma_w = 2 makes chi = 1 at q = 0; yet any q > 0 grows, so that this is no edge of chaos."""
    assert theory.chi("gelu", 0.0, 2.0) == pytest.approx(1.0)
    assert theory.q_map("gelu", 1e-4, 2.0) > 1e-4
    assert theory.fixed_point("gelu", 2.0, q0=1e-4).q == np.inf


def test_hard_tanh_is_critical_where_it_is_linear():
    assert critical_initialization(jax.nn.hard_tanh) == pytest.approx((1.0, 0.0), abs=1e-9)


@pytest.mark.parametrize("sigma_b", [-0.1, math.nan, math.inf])
def test_a_bias_that_is_no_standard_deviation_is_refused(sigma_b):
    with pytest.raises(UsageError, match="sigma_b must be"):
        critical_initialization("tanh", sigma_b)
