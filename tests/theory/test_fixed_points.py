"""Maps, fixed points and phases against closed forms, against plain iteration and against wide networks."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxstab import theory
from jaxstab.theory.activations import ACTIVATIONS
from jaxstab.theory.gains import gain


def erf_correlation(c, q, sigma_w, sigma_b):
    """Williams 1996, in the mean-field map."""

    def moment(product):
        return sigma_w**2 * 2 / np.pi * np.arcsin(2 * product / (1 + 2 * q)) + sigma_b**2

    return moment(c * q) / moment(q)


def test_tanh_with_pytorchs_gain():
    point = theory.fixed_point("tanh", 5 / 3)
    assert point.q == pytest.approx(1.178480, abs=6e-7)
    assert point.chi == pytest.approx(1.209831, abs=6e-7)
    assert point.stable
    rms = np.sqrt(theory.q_map("tanh", point.q, 1.0))
    assert rms == pytest.approx(0.651347, abs=6e-7)
    assert point.chi**50 == pytest.approx(1.4e4, rel=0.05)  # the gradient's std over 100 layers


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fixed_points_are_where_iteration_leads(name):
    sigma_w, sigma_b = np.array([0.4, 0.8, 1.6, 2.2, 3.6])[:, None], np.array([0.0, 0.3, 1.0])
    point = theory.fixed_point(name, sigma_w, sigma_b)
    q = sigma_w**2 + sigma_b**2
    for _ in range(400):
        q = np.minimum(theory.q_map(name, q, sigma_w, sigma_b), 1e18)
    assert point.q.shape == (5, 3)
    np.testing.assert_array_equal(np.isinf(point.q), q > 1e15)
    np.testing.assert_allclose(np.where(np.isinf(point.q), q, point.q), q, rtol=1e-7, atol=1e-9)
    assert np.all(point.stable == np.isfinite(point.q))


@settings(deadline=None, max_examples=25)
@given(st.floats(0.1, 5.0), st.floats(0.0, 2.0), st.sampled_from(["tanh", "erf", "sigmoid"]))
def test_a_fixed_point_maps_to_itself(sigma_w, sigma_b, name):
    point = theory.fixed_point(name, sigma_w, sigma_b)
    assert theory.q_map(name, point.q, sigma_w, sigma_b) == pytest.approx(point.q, rel=1e-9, abs=1e-12)
    assert point.chi == pytest.approx(theory.chi(name, point.q, sigma_w))
    assert theory.q_map_slope(name, point.q, sigma_w) == pytest.approx(point.slope)


def test_homogeneous_fixed_points():
    assert theory.fixed_point("relu", 1.0, 0.5).q == pytest.approx(0.25 / (1 - 0.5))
    assert theory.fixed_point("relu", 1.0).q == 0.0
    assert theory.fixed_point("relu", 1.5).q == np.inf
    assert theory.fixed_point("relu", np.sqrt(2), 0.1).q == np.inf
    kept = theory.fixed_point("relu", np.float32(np.sqrt(2)), q0=3.0)  # rounded to float32
    assert kept.q == pytest.approx(6.0)
    assert kept.stable
    assert theory.fixed_point("linear", 0.0, 0.5).q == pytest.approx(0.25)


def test_the_ends_of_the_map():
    assert theory.fixed_point("tanh", 0.9).q == 0.0
    assert theory.fixed_point("tanh", 0.0).q == 0.0
    assert theory.fixed_point("gelu", gain("gelu")).q == np.inf
    assert not theory.fixed_point("gelu", gain("gelu")).stable
    assert np.isnan(theory.fixed_point("tanh", np.nan).q)


def test_a_grid_is_quick():
    theory.fixed_point("tanh", 1.5, 0.1)
    start = time.perf_counter()
    theory.fixed_point("tanh", np.linspace(0.5, 4, 64)[:, None], np.linspace(0, 1, 64))
    assert time.perf_counter() - start < 10  # 2 s on an idle core


def test_phases():
    assert theory.phase("tanh", 0.5) == "ordered"
    assert theory.phase("tanh", 1.0) == "critical"
    assert theory.phase("relu", np.float32(np.sqrt(2))) == "critical"
    assert theory.phase("tanh", 5 / 3) == "chaotic"
    assert theory.phase("tanh", np.sqrt(1.760955), np.sqrt(0.05)) == "critical"
    phases = theory.phase("tanh", np.array([[0.5], [1.5]]), np.array([0.0, 3.0]))
    assert phases.tolist() == [["ordered", "ordered"], ["chaotic", "ordered"]]
    assert theory.phase("tanh", 1.001, tolerance=0.01) == "critical"


def test_correlations_settle_at_one_in_order_and_below_in_chaos():
    sigma_w = np.array([0.9, 1.3, 1.5, 2.0, 3.0])
    found = theory.correlation_fixed_point("erf", sigma_w, 0.1)
    q = theory.fixed_point("erf", sigma_w, 0.1).q
    c = np.full(5, 0.5)
    for _ in range(3000):
        c = erf_correlation(c, q, sigma_w, 0.1)
    np.testing.assert_allclose(found, c, atol=1e-7)
    assert found[0] == 1.0
    assert found[-1] < 0.05
    assert theory.correlation_fixed_point("relu", 1.7) == 1.0


@pytest.mark.parametrize("sigma_w", [0.8, 2.0])
def test_depth_scales_are_the_rates_at_which_things_settle(sigma_w):
    q_star = theory.fixed_point("erf", sigma_w, 0.3).q
    c_star = theory.correlation_fixed_point("erf", sigma_w, 0.3)
    c, q = c_star - 1e-3, q_star * 1.001
    for _ in range(8):
        c, c_before = erf_correlation(c, q_star, sigma_w, 0.3), c
        q, q_before = theory.q_map("erf", q, sigma_w, 0.3), q
    c_scale = -1 / np.log((c - c_star) / (c_before - c_star))
    q_scale = -1 / np.log((q - q_star) / (q_before - q_star))
    assert theory.depth_scale_correlation("erf", sigma_w, 0.3) == pytest.approx(c_scale, rel=3e-3)
    assert theory.depth_scale_length("erf", sigma_w, 0.3) == pytest.approx(q_scale, rel=3e-3)


def test_depth_scale_of_gradients():
    assert theory.depth_scale_gradient("tanh", 0.5) == pytest.approx(1 / abs(np.log(0.25)))
    ordered = theory.depth_scale_gradient("tanh", 0.5, 0.3)
    assert theory.depth_scale_correlation("tanh", 0.5, 0.3) == pytest.approx(ordered)


def test_depth_scale_diverges_at_the_edge():
    sigma_w = np.sqrt(1.760955) * np.array([0.9, 0.99, 0.999, 1.001, 1.01, 1.1])
    scale = theory.depth_scale_correlation("tanh", sigma_w, np.sqrt(0.05))
    assert np.all(np.diff(scale[:3]) > 0)
    assert np.all(np.diff(scale[3:]) < 0)
    assert min(scale[2], scale[3]) > 300


def test_a_callable_with_kinks_is_as_good_as_a_name():
    def relu6(x):
        return jnp.clip(x, 0.0, 6.0)

    point = theory.fixed_point(relu6, 1.8, 0.5)
    assert theory.q_map(jax.nn.relu6, point.q, 1.8, 0.5) == pytest.approx(point.q, rel=1e-9)
    assert point.stable
