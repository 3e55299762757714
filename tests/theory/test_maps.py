"""One layer's maps against closed forms, against differences, and at the ends of float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import theory
from jaxstab.errors import UsageError
from jaxstab.theory.activations import ACTIVATIONS
from jaxstab.theory.gains import gain
from jaxstab.theory.maps import log_moments, weights_share

RATES_AT_THE_GAIN = {"elu": 0.891, "selu": 0.783, "gelu": 1.144, "silu": 1.173, "mish": 1.076}


def relu_correlation(c):
    return (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi


def erf_correlation(c, q, sigma_w, sigma_b):
    """Williams 1996, in the mean-field map."""

    def moment(product):
        return sigma_w**2 * 2 / np.pi * np.arcsin(2 * product / (1 + 2 * q)) + sigma_b**2

    return moment(c * q) / moment(q)


@pytest.mark.parametrize("name", RATES_AT_THE_GAIN)
def test_which_activations_are_stable_at_their_gain(name):
    sigma_w = gain(name)
    assert theory.q_map(name, 1.0, sigma_w) == pytest.approx(1.0, rel=1e-9)
    assert theory.q_map_slope(name, 1.0, sigma_w) == pytest.approx(RATES_AT_THE_GAIN[name], abs=6e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_of_the_map_is_the_limit_of_differences(name):
    q, h = np.array([0.05, 1.0, 20.0]), 1e-5
    rise = theory.q_map(name, q * (1 + h), 1.3, 0.2) - theory.q_map(name, q * (1 - h), 1.3, 0.2)
    np.testing.assert_allclose(theory.q_map_slope(name, q, 1.3), rise / (2 * h * q), rtol=1e-6, atol=1e-9)


def test_relu_correlation_map():
    c, found = 0.0, []
    for _ in range(100):
        c = theory.c_map("relu", c, 1.0, np.sqrt(2))
        found.append(c)
    assert found[0] == pytest.approx(0.318310, abs=6e-7)
    assert found[9] == pytest.approx(0.871536, abs=6e-7)
    assert found[99] == pytest.approx(0.996423, abs=6e-7)


def test_correlation_maps_in_closed_form():
    c = np.linspace(-1, 1, 21)
    np.testing.assert_allclose(theory.c_map("relu", c, 3.0, 0.7), relu_correlation(c), atol=1e-9)
    exact = erf_correlation(c, 2.0, 1.5, 0.3)
    np.testing.assert_allclose(theory.c_map("erf", c, 2.0, 1.5, 0.3), exact, atol=1e-9)
    np.testing.assert_allclose(theory.c_map("linear", c, 2.0, 1.5, 0.0), c, atol=1e-12)


def test_a_correlation_beyond_one_is_refused():
    with pytest.raises(UsageError, match="a correlation lies in"):
        theory.c_map("relu", 1.5, 1.0, 1.0)


def test_maps_go_on_beyond_what_is_integrated():
    assert theory.q_map("relu", 1e200, 2.0) == pytest.approx(2e200, rel=1e-9)
    assert theory.q_map("gelu", 1e200, 2.0) == pytest.approx(2e200, rel=1e-6)
    assert theory.q_map("tanh", np.inf, 2.0, 1.0) == pytest.approx(5.0)
    assert theory.q_map("tanh", 1e-200, 2.0) == pytest.approx(4e-200, rel=1e-9)
    assert theory.q_map("sigmoid", 0.0, 2.0) == pytest.approx(1.0)
    assert theory.chi("tanh", 0.0, 2.0) == pytest.approx(4.0)
    assert theory.chi("tanh", np.inf, 2.0) == 0.0


def test_logarithms_of_moments_at_either_infinity():
    found = log_moments(jnp.tanh, np.array([-np.inf, np.inf, np.nan]))
    np.testing.assert_allclose(found.square, [-np.inf, 0.0, np.nan], atol=1e-9)
    np.testing.assert_allclose(found.slope_square, [0.0, -np.inf, np.nan], atol=1e-9)


def test_biases_are_common_to_all_inputs():
    share = weights_share(
        np.log([1.0, 4.0, 0.0 + 1e-300]), np.array([1.0, 0.5, 1.0]), np.array([1.0, 0.0, 1.0])
    )
    np.testing.assert_allclose(share, [0.5, 1.0, 0.0], atol=1e-12)


def test_a_layer_of_zeros():
    def zero(x):
        return 0 * x

    assert theory.q_map(zero, 1.0, 2.0, 0.5) == 0.25
    assert theory.chi(zero, 1.0, 2.0) == 0.0
