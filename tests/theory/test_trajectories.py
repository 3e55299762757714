"""Layer by layer against closed forms, and against wide random networks in plain numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import assert_mean_matches
from scipy import special, stats

from jaxstab.errors import UsageError
from jaxstab.theory import q_map
from jaxstab.theory.activations import ACTIVATIONS
from jaxstab.theory.trajectories import max_slope, trajectory

DEPTH, WIDTH, BATCH, SEEDS = 6, 320, 4, 60
SIGMA_W, SIGMA_B, BRANCH = 1.3, 0.2, 0.5
MAX_SLOPES = {
    "selu": 1.0507009873554805 * 1.6732632423543772,
    "gelu": float(special.ndtr(math.sqrt(2)) + math.sqrt(2) * math.exp(-1) / math.sqrt(2 * math.pi)),
    "silu": 1.0998393201288670,  # at the root of its second derivative, x = 2.3994
    "mish": 1.0884981612517,
    "sigmoid": 0.25,
    "erf": 2 / math.sqrt(math.pi),
}


def silu_slope(z):
    s = special.expit(z)
    return s + z * s * (1 - s)


FUNCTIONS = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "silu": (lambda z: z * special.expit(z), silu_slope),
}


class Network:
    """One draw of a stack: what its layers hold, and the gradient of a random linear read-out."""

    def __init__(self, name, kind, rng):
        self.phi, self.slope = FUNCTIONS[name]
        self.kind, self.scale = kind, BRANCH if kind == "residual" else 1.0
        self.h, self.z, self.weights, self.spread = [rng.normal(size=(BATCH, WIDTH))], [], [], []
        for _ in range(DEPTH):
            self.forward(rng)
        self.gradient, self.weight_gradient = [], []
        g = rng.normal(size=(BATCH, WIDTH))
        for layer in reversed(range(DEPTH)):
            self.gradient.insert(0, np.mean(g**2))
            g = self.backward(layer, g)

    def forward(self, rng):
        weights = rng.normal(size=(WIDTH, WIDTH)) * SIGMA_W / np.sqrt(WIDTH)
        z = self.h[-1] @ weights + SIGMA_B * rng.normal(size=WIDTH)
        spread = z.std(axis=1, keepdims=True)
        if self.kind == "normalized":
            z = (z - z.mean(axis=1, keepdims=True)) / spread
        before = self.h[-1] if self.kind == "residual" else 0.0
        self.h.append(before + self.scale * self.phi(z))
        self.z.append(z)
        self.weights.append(weights)
        self.spread.append(spread)

    def backward(self, layer, g):
        z = self.z[layer]
        d = self.scale * self.slope(z) * g
        if self.kind == "normalized":
            along = np.mean(d * z, axis=1, keepdims=True)
            d = (d - d.mean(axis=1, keepdims=True) - z * along) / self.spread[layer]
        self.weight_gradient.insert(0, np.mean((self.h[layer].T @ d) ** 2) / BATCH)
        through = d @ self.weights[layer].T
        return g + through if self.kind == "residual" else through

    @property
    def cosines(self):
        unit = [h / np.linalg.norm(h, axis=1, keepdims=True) for h in self.h[1:]]
        return [(np.sum(u @ u.T) - BATCH) / (BATCH * (BATCH - 1)) for u in unit]

    @property
    def measured(self):
        """[quantity, layer]"""
        activations = self.h[1:]
        top = 1.0 if self.phi is not FUNCTIONS["silu"][0] else 1.0998393
        return [
            [np.mean(h**2) for h in activations],
            [np.mean(h) for h in activations],
            self.cosines,
            [np.mean(h == 0) for h in activations],
            [np.mean(np.abs(self.slope(z)) < 0.01 * top) for z in self.z],
            self.gradient,
            self.weight_gradient,
        ]


def predicted(walk):
    return np.stack(
        [
            walk.rms**2,
            walk.mean,
            walk.correlation,
            walk.zero_fraction,
            walk.saturated_fraction,
            walk.gradient_rms**2,
            walk.weight_gradient_rms**2,
        ]
    )


@pytest.mark.parametrize("kind", ["plain", "residual", "normalized"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_wide_networks_do_as_predicted(name, kind):
    rng = np.random.default_rng([FUNCTIONS[name] is FUNCTIONS["tanh"], len(kind)])
    sample = np.array([Network(name, kind, rng).measured for _ in range(SEEDS)])
    theory = predicted(trajectory(name, DEPTH, SIGMA_W, SIGMA_B, kind=kind, branch_scale=BRANCH))
    moves = sample.std(axis=0) > 0
    assert np.array_equal(sample.mean(axis=0)[~moves], theory[~moves])
    finite_width = 5 * DEPTH / WIDTH * np.abs(theory)  # what the limit leaves out, of order depth / width
    distance = np.abs(sample.mean(axis=0) - theory)
    near = np.where(distance < finite_width / 5, sample.mean(axis=0), theory)
    assert_mean_matches(sample[:, moves], near[moves])
    with pytest.raises(AssertionError):
        assert_mean_matches(sample[:, 0], 1.1 * theory[0])  # 10 % more is seen


def test_relu_keeps_its_second_moment_and_aligns_its_inputs():
    walk = trajectory("relu", 100, np.sqrt(2))
    np.testing.assert_allclose(walk.rms, 1.0, rtol=1e-10)
    np.testing.assert_allclose(walk.gradient_rms, 1.0, rtol=1e-10)
    assert walk.correlation[[0, 9, 99]] == pytest.approx([0.318310, 0.871536, 0.996423], abs=6e-7)
    np.testing.assert_allclose(walk.mean, np.sqrt(1 / np.pi), rtol=1e-10)
    np.testing.assert_allclose(walk.std / walk.rms, np.sqrt(1 - 1 / np.pi), rtol=1e-10)
    np.testing.assert_allclose(walk.zero_fraction, 0.5, atol=1e-9)
    np.testing.assert_allclose(walk.saturated_fraction, 0.5, atol=1e-9)


def test_relu_with_gain_one_halves_at_every_layer():
    walk = trajectory("relu", 100, 1.0)
    assert walk.rms[-1] == pytest.approx(2.0**-50, rel=1e-10)
    assert walk.gradient_rms[0] == pytest.approx(2.0**-49.5, rel=1e-10)


def test_tanh_settles_at_its_fixed_point():
    walk = trajectory("tanh", 100, 5 / 3)
    assert walk.rms[-1] == pytest.approx(0.651347, abs=6e-7)
    assert np.exp(walk.log_step[-1]) == pytest.approx(1.209831, abs=6e-7)
    assert walk.gradient_rms[0] == pytest.approx(np.exp(np.sum(walk.log_step[1:]) / 2))
    assert walk.gradient_rms[-1] == 1.0
    q = [5 / 3 * 5 / 3]
    for _ in range(99):
        q.append(q_map("tanh", q[-1], 5 / 3))
    np.testing.assert_allclose(walk.log_q, np.log(q), atol=1e-10)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_largest_slope(name):
    assert max_slope(ACTIVATIONS[name]) == pytest.approx(MAX_SLOPES.get(name, 1.0), abs=3e-9)


def test_largest_slope_of_a_callable_inside_a_traced_program():
    @jax.jit
    def program(x):
        return x * max_slope(lambda y: jnp.sin(3 * y))

    assert program(1.0) == pytest.approx(3.0)
    assert jax.vmap(program)(jnp.ones(2)).tolist() == [3.0, 3.0]


def test_saturation_is_where_the_slope_is_small():
    edge = np.arctanh(np.sqrt(0.99))  # 1 - tanh^2 = 0.01
    walk = trajectory("tanh", 1, 4.0)
    assert walk.saturated_fraction[0] == pytest.approx(2 * stats.norm.sf(edge / 4), rel=1e-9)
    assert walk.zero_fraction[0] == 0.0
    threshold = trajectory(lambda x: jnp.where(jnp.abs(x) < 0.7, 0.0, x), 1, 2.0)
    assert threshold.zero_fraction[0] == pytest.approx(1 - 2 * stats.norm.sf(0.35), rel=1e-9)


def test_a_thousand_layers_neither_overflow_nor_underflow():
    up = trajectory("linear", 1000, 16.0, c0=None)
    np.testing.assert_allclose(up.log_square, np.arange(1, 1001) * np.log(256), rtol=1e-11)
    assert up.rms[-1] == np.inf
    down = trajectory("tanh", 1000, 0.1, c0=None)
    np.testing.assert_allclose(np.diff(down.log_square)[500:], np.log(0.01), rtol=1e-9)
    gelu = trajectory("gelu", 1000, 16.0, c0=None)
    np.testing.assert_allclose(np.diff(gelu.log_square)[500:], np.log(128), rtol=1e-9)
    bounded = trajectory("tanh", 5, 1e20, c0=None)
    np.testing.assert_allclose(bounded.rms, 1.0, rtol=1e-9)
    assert np.all(np.isfinite(bounded.log_step))


def test_hyperparameters_broadcast():
    grid = trajectory("tanh", 7, np.array([[0.5], [1.5]]), np.array([0.0, 0.1, 0.2]), c0=0.3)
    assert grid.log_q.shape == (2, 3, 7)
    alone = trajectory("tanh", 7, 1.5, 0.2, c0=0.3)
    for together, single in zip(grid, alone, strict=True):
        np.testing.assert_allclose(together[1, 2], single, rtol=1e-12, atol=1e-14)
    scales = trajectory("relu", 3, 1.0, kind="residual", branch_scale=np.array([0.0, 1.0]))
    np.testing.assert_allclose(scales.rms[0], 1.0)
    assert np.all(scales.rms[1] > 1)


def test_without_a_correlation_it_is_nan_and_the_rest_is_the_same():
    full, lean = trajectory("tanh", 5, 1.2), trajectory("tanh", 5, 1.2, c0=None)
    assert np.all(np.isnan(lean.correlation))
    np.testing.assert_array_equal(full.log_gradient, lean.log_gradient)


def test_what_is_not_resolved_is_nan():
    walk = trajectory(jnp.sin, 3, np.array([1.0, 1e8]))
    assert np.all(np.isfinite(walk.rms[0]))
    assert np.isnan(walk.rms[1, 0])


@pytest.mark.parametrize("zero", [{"sigma_w": 0.0}, {"sigma_w": 1.0, "q0": 0.0}])
def test_a_signal_of_zeros_has_the_slope_at_zero(zero):
    walk = trajectory("gelu", 3, **zero)
    assert np.all(walk.rms == 0)
    np.testing.assert_allclose(np.exp(walk.log_step), zero["sigma_w"] ** 2 / 4)
    sigmoid = trajectory("sigmoid", 3, 0.0)
    np.testing.assert_allclose(sigmoid.rms, 0.5)
    assert sigmoid.gradient_rms.tolist() == [0.0, 0.0, 1.0]


def test_refusals():
    with pytest.raises(UsageError, match="Choices: plain, residual, normalized"):
        trajectory("tanh", 3, 1.0, kind="lstm")
    with pytest.raises(UsageError, match="depth=0"):
        trajectory("tanh", 0, 1.0)
