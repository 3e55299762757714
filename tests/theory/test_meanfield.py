"""Maps, fixed points and phases against closed forms, against plain iteration and against wide networks."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstab.errors import UsageError
from jaxstab.theory import meanfield
from jaxstab.theory.activations import ACTIVATIONS
from jaxstab.theory.gains import gain

RATES_AT_THE_GAIN = {"elu": 0.891, "selu": 0.783, "gelu": 1.144, "silu": 1.173, "mish": 1.076}


def relu_correlation(c):
    return (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi


def erf_correlation(c, q, sigma_w, sigma_b):
    """Williams 1996, in the mean-field map."""

    def moment(product):
        return sigma_w**2 * 2 / np.pi * np.arcsin(2 * product / (1 + 2 * q)) + sigma_b**2

    return moment(c * q) / moment(q)


def test_tanh_with_pytorchs_gain():
    point = meanfield.fixed_point("tanh", 5 / 3)
    assert point.q == pytest.approx(1.178480, abs=6e-7)
    assert point.chi == pytest.approx(1.209831, abs=6e-7)
    assert point.stable
    rms = np.sqrt(meanfield.q_map("tanh", point.q, 1.0))
    assert rms == pytest.approx(0.651347, abs=6e-7)
    assert point.chi**50 == pytest.approx(1.4e4, rel=0.05)  # the gradient's std over 100 layers


@pytest.mark.parametrize("name", RATES_AT_THE_GAIN)
def test_which_activations_are_stable_at_their_gain(name):
    sigma_w = gain(name)
    assert meanfield.q_map(name, 1.0, sigma_w) == pytest.approx(1.0, rel=1e-9)
    assert meanfield.q_map_slope(name, 1.0, sigma_w) == pytest.approx(RATES_AT_THE_GAIN[name], abs=6e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_of_the_map_is_the_limit_of_differences(name):
    q, h = np.array([0.05, 1.0, 20.0]), 1e-5
    rise = meanfield.q_map(name, q * (1 + h), 1.3, 0.2) - meanfield.q_map(name, q * (1 - h), 1.3, 0.2)
    np.testing.assert_allclose(meanfield.q_map_slope(name, q, 1.3), rise / (2 * h * q), rtol=1e-6, atol=1e-9)


def test_relu_correlation_map():
    c, found = 0.0, []
    for _ in range(100):
        c = meanfield.c_map("relu", c, 1.0, np.sqrt(2))
        found.append(c)
    assert found[0] == pytest.approx(0.318310, abs=6e-7)
    assert found[9] == pytest.approx(0.871536, abs=6e-7)
    assert found[99] == pytest.approx(0.996423, abs=6e-7)


def test_correlation_maps_in_closed_form():
    c = np.linspace(-1, 1, 21)
    np.testing.assert_allclose(meanfield.c_map("relu", c, 3.0, 0.7), relu_correlation(c), atol=1e-9)
    exact = erf_correlation(c, 2.0, 1.5, 0.3)
    np.testing.assert_allclose(meanfield.c_map("erf", c, 2.0, 1.5, 0.3), exact, atol=1e-9)
    np.testing.assert_allclose(meanfield.c_map("linear", c, 2.0, 1.5, 0.0), c, atol=1e-12)


def test_a_correlation_beyond_one_is_refused():
    with pytest.raises(UsageError, match="a correlation lies in"):
        meanfield.c_map("relu", 1.5, 1.0, 1.0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fixed_points_are_where_iteration_leads(name):
    sigma_w, sigma_b = np.array([0.4, 0.8, 1.6, 2.2, 3.6])[:, None], np.array([0.0, 0.3, 1.0])
    point = meanfield.fixed_point(name, sigma_w, sigma_b)
    q = sigma_w**2 + sigma_b**2
    for _ in range(400):
        q = np.minimum(meanfield.q_map(name, q, sigma_w, sigma_b), 1e18)
    assert point.q.shape == (5, 3)
    np.testing.assert_array_equal(np.isinf(point.q), q > 1e15)
    np.testing.assert_allclose(np.where(np.isinf(point.q), q, point.q), q, rtol=1e-7, atol=1e-9)
    assert np.all(point.stable == np.isfinite(point.q))


@settings(deadline=None, max_examples=25)
@given(st.floats(0.1, 5.0), st.floats(0.0, 2.0), st.sampled_from(["tanh", "erf", "sigmoid"]))
def test_a_fixed_point_maps_to_itself(sigma_w, sigma_b, name):
    point = meanfield.fixed_point(name, sigma_w, sigma_b)
    assert meanfield.q_map(name, point.q, sigma_w, sigma_b) == pytest.approx(point.q, rel=1e-9, abs=1e-12)
    assert point.chi == pytest.approx(meanfield.chi(name, point.q, sigma_w))
    assert meanfield.q_map_slope(name, point.q, sigma_w) == pytest.approx(point.slope)


def test_homogeneous_fixed_points():
    assert meanfield.fixed_point("relu", 1.0, 0.5).q == pytest.approx(0.25 / (1 - 0.5))
    assert meanfield.fixed_point("relu", 1.0).q == 0.0
    assert meanfield.fixed_point("relu", 1.5).q == np.inf
    assert meanfield.fixed_point("relu", np.sqrt(2), 0.1).q == np.inf
    kept = meanfield.fixed_point("relu", np.float32(np.sqrt(2)), q0=3.0)  # rounded to float32
    assert kept.q == pytest.approx(6.0)
    assert kept.stable
    assert meanfield.fixed_point("linear", 0.0, 0.5).q == pytest.approx(0.25)


def test_the_ends_of_the_map():
    assert meanfield.fixed_point("tanh", 0.9).q == 0.0
    assert meanfield.fixed_point("tanh", 0.0).q == 0.0
    assert meanfield.fixed_point("gelu", gain("gelu")).q == np.inf
    assert not meanfield.fixed_point("gelu", gain("gelu")).stable
    assert np.isnan(meanfield.fixed_point("tanh", np.nan).q)


def test_a_grid_is_quick():
    meanfield.fixed_point("tanh", 1.5, 0.1)
    start = time.perf_counter()
    meanfield.fixed_point("tanh", np.linspace(0.5, 4, 64)[:, None], np.linspace(0, 1, 64))
    assert time.perf_counter() - start < 10  # 2 s on an idle core


def test_phases():
    assert meanfield.phase("tanh", 0.5) == "ordered"
    assert meanfield.phase("tanh", 1.0) == "critical"
    assert meanfield.phase("relu", np.float32(np.sqrt(2))) == "critical"
    assert meanfield.phase("tanh", 5 / 3) == "chaotic"
    assert meanfield.phase("tanh", np.sqrt(1.760955), np.sqrt(0.05)) == "critical"
    phases = meanfield.phase("tanh", np.array([[0.5], [1.5]]), np.array([0.0, 3.0]))
    assert phases.tolist() == [["ordered", "ordered"], ["chaotic", "ordered"]]
    assert meanfield.phase("tanh", 1.001, tolerance=0.01) == "critical"


def test_correlations_settle_at_one_in_order_and_below_in_chaos():
    sigma_w = np.array([0.9, 1.3, 1.5, 2.0, 3.0])
    found = meanfield.correlation_fixed_point("erf", sigma_w, 0.1)
    q = meanfield.fixed_point("erf", sigma_w, 0.1).q
    c = np.full(5, 0.5)
    for _ in range(3000):
        c = erf_correlation(c, q, sigma_w, 0.1)
    np.testing.assert_allclose(found, c, atol=1e-7)
    assert found[0] == 1.0
    assert found[-1] < 0.05
    assert meanfield.correlation_fixed_point("relu", 1.7) == 1.0


@pytest.mark.parametrize("sigma_w", [0.8, 2.0])
def test_depth_scales_are_the_rates_at_which_things_settle(sigma_w):
    q_star = meanfield.fixed_point("erf", sigma_w, 0.3).q
    c_star = meanfield.correlation_fixed_point("erf", sigma_w, 0.3)
    c, q = c_star - 1e-3, q_star * 1.001
    for _ in range(8):
        c, c_before = erf_correlation(c, q_star, sigma_w, 0.3), c
        q, q_before = meanfield.q_map("erf", q, sigma_w, 0.3), q
    c_scale = -1 / np.log((c - c_star) / (c_before - c_star))
    q_scale = -1 / np.log((q - q_star) / (q_before - q_star))
    assert meanfield.depth_scale_correlation("erf", sigma_w, 0.3) == pytest.approx(c_scale, rel=3e-3)
    assert meanfield.depth_scale_length("erf", sigma_w, 0.3) == pytest.approx(q_scale, rel=3e-3)


def test_depth_scale_of_gradients():
    assert meanfield.depth_scale_gradient("tanh", 0.5) == pytest.approx(1 / abs(np.log(0.25)))
    ordered = meanfield.depth_scale_gradient("tanh", 0.5, 0.3)
    assert meanfield.depth_scale_correlation("tanh", 0.5, 0.3) == pytest.approx(ordered)


def test_depth_scale_diverges_at_the_edge():
    sigma_w = np.sqrt(1.760955) * np.array([0.9, 0.99, 0.999, 1.001, 1.01, 1.1])
    scale = meanfield.depth_scale_correlation("tanh", sigma_w, np.sqrt(0.05))
    assert np.all(np.diff(scale[:3]) > 0)
    assert np.all(np.diff(scale[3:]) < 0)
    assert min(scale[2], scale[3]) > 300


def test_a_callable_with_kinks_is_as_good_as_a_name():
    def relu6(x):
        return jnp.clip(x, 0.0, 6.0)

    point = meanfield.fixed_point(relu6, 1.8, 0.5)
    assert meanfield.q_map(jax.nn.relu6, point.q, 1.8, 0.5) == pytest.approx(point.q, rel=1e-9)
    assert point.stable
