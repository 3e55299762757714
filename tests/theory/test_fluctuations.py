"""How far networks of finite width stray, against closed forms and against networks in plain NumPy."""

import numpy as np
import pytest

from jaxstab.theory import trajectory
from jaxstab.theory.fluctuations import displacements, reuse_excess


def stray(activation, depth, width, sigma_w, sigma_b=0.0, kind="plain", **more):
    """`displacements` of one configuration: [layer] forward, [layer] backward."""
    walked = trajectory(activation, depth, np.array([sigma_w]), sigma_b, kind=kind, c0=None)
    there, back = displacements(
        activation,
        walked,
        kind=kind,
        width=width,
        sigma_b=np.array([sigma_b]),
        branch_scale=np.ones(1),
        **more,
    )
    return there[0], back[0]


def logarithms(phi, slope, depth, width, sigma_w, sigma_b, networks=1500):
    """ln of the mean square of every layer's output and of the gradient, one input each: [network, layer]."""
    rng = np.random.default_rng(5)
    h, weights, slopes, forward, backward = rng.normal(size=(networks, width)), [], [], [], []
    for _ in range(depth):
        weights.append(rng.normal(size=(networks, width, width)) * sigma_w / np.sqrt(width))
        z = np.einsum("sij,sj->si", weights[-1], h) + sigma_b * rng.normal(size=(networks, width))
        h = phi(z)
        slopes.append(slope(z))
        forward.append(np.log(np.mean(h**2, axis=1)))
    g = rng.normal(size=(networks, width))
    for w, d in zip(weights[::-1], slopes[::-1], strict=True):
        backward.insert(0, np.log(np.mean(g**2, axis=1)))
        g = np.einsum("sij,si->sj", w, d * g)
    return np.array(forward).T, np.array(backward).T


def test_relu_strays_as_hanin_and_nica_have_it():
    layers = np.arange(1, 101)
    there, back = stray("relu", 100, 256, np.sqrt(2))
    np.testing.assert_allclose(there, (5 * layers + 2) / 2 / 256)
    np.testing.assert_allclose(back, (5 * (100 - layers) + 2) / 2 / 256)


def test_orthogonal_layers_add_nothing_to_a_linear_stack():
    for end in stray("linear", 50, 16, 1.0, orthogonal=True):
        np.testing.assert_allclose(end, 1 / 16)


@pytest.mark.parametrize(
    ("name", "phi", "slope"),
    [
        ("tanh", np.tanh, lambda z: 1 - np.tanh(z) ** 2),
        ("elu", lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))), lambda z: np.exp(np.minimum(z, 0))),
    ],
)
def test_networks_stray_as_far_as_said(name, phi, slope):
    """Half the variance of the logarithm, within a fifth and no more than five standard errors beyond it."""
    depth, width, sigma_w, sigma_b = 8, 32, 1.4, 0.2
    for said, sample in zip(
        stray(name, depth, width, sigma_w, sigma_b),
        logarithms(phi, slope, depth, width, sigma_w, sigma_b),
        strict=True,
    ):
        half = sample.var(axis=0, ddof=1) / 2
        assert np.all(half < 1.35 * said)
        assert np.all(said < 2.5 * half)  # the drift may be the greater


def test_an_unstable_fixed_point_leads_astray():
    stable, unstable = (stray("gelu", 60, 64, sigma_w)[0][-1] for sigma_w in (1.0, 1.5335))
    assert unstable > 1.5 * stable


def test_normalized_layers_forget_the_length_that_came_in():
    there, _ = stray("tanh", 30, 32, 3.0, kind="normalized")
    np.testing.assert_allclose(there, there[0])


def test_one_matrix_for_all_steps_adds_what_ginibre_s_ensemble_has():
    """To leading order ln(sinh(x)/x), x = l (l + 1)/2n; explicit powers of matrices beside it."""
    width, steps, networks = 48, 7, 1500
    walked = trajectory("linear", steps, np.ones(1), c0=None)
    there, back = reuse_excess("linear", walked, width=width, sigma_b=np.zeros(1))
    rng = np.random.default_rng(6)
    matrices = rng.normal(size=(networks, width, width)) / np.sqrt(width)
    h = rng.normal(size=(networks, width))
    for _ in range(steps):
        h = np.einsum("sij,sj->si", matrices, h)
    square = np.mean(h**2, axis=1)
    x = steps * (steps + 1) / 2 / width
    assert abs(square.mean() - np.sinh(x) / x) < 5 * square.std() / np.sqrt(networks) + 0.15
    assert there[0, -1] == pytest.approx(np.log(np.sinh(x) / x), rel=0.4)
    assert back[0, 0] == pytest.approx((steps - 1) ** 4 / 24 / width**2)
