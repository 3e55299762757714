"""Layers in law without their matrix: held against explicit matrices, forward and backward."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import assert_same_law

import jaxstab
from jaxstab.nets import conditioned
from jaxstab.nets.haar import haar_matrix

SEEDS = 2000
INPUTS = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)


def inputs(batch: int, n: int, shape: str) -> np.ndarray:
    """`batch` inputs of `n` units: generic, nearly equal, two the same, or one dead."""
    h = np.random.default_rng(batch * n).normal(size=(batch, n)).astype(np.float32)
    if shape == "aligned":
        h = h[:1] + 1e-3 * h
    if shape == "duplicated" and batch > 1:
        h[1] = h[0]
    if shape == "dead":
        h[-1] = 0
    return h


def statistics(linear, h: np.ndarray) -> dict[str, np.ndarray]:
    """Projections and products of y = H W and of the gradient G of a loss that depends on y, over seeds."""
    rng = np.random.default_rng(1)
    first, half = rng.normal(size=h.shape[0]).astype(np.float32), h.shape[1] // 2

    @jax.jit
    @jax.vmap
    def run(seed):
        key = jax.random.fold_in(jax.random.key(0), seed)
        y, back = jax.vjp(lambda h: linear(key, h), jnp.asarray(h))
        (g,) = back(jnp.tanh(y) + 0.3)
        return {
            "y": y[0, 0],
            "y_norm": jnp.sum((first @ y)[:half] ** 2),  # all of it would be no random number for Haar
            "g_last": g[0, -1],
            "g_norm": jnp.sum((first @ g)[:half] ** 2),
            "g_on_h": jnp.sum(g[0] * h[0]),
            "both": jnp.sum(g[0] * h[-1]) + jnp.sum(y[0] * y[-1]),
        }

    return run(jnp.arange(SEEDS))


def explicit_gaussian(key, h, units):
    return jnp.matmul(h, 0.7 * jax.random.normal(key, (h.shape[1], units)), precision="highest")


def explicit_haar(key, h):
    return jnp.matmul(h, 1.3 * haar_matrix(key, h.shape[1], h.shape[1]), precision="highest")


def in_law(law, n):
    if law == "gaussian":
        return partial(explicit_gaussian, units=n), partial(conditioned.gaussian_layer, std=0.7, units=n)
    return explicit_haar, partial(conditioned.haar_layer, gain=1.3)


@pytest.mark.parametrize("law", ["gaussian", "haar"])
@pytest.mark.parametrize(
    ("batch", "n", "shape"),
    [
        (4, 24, "aligned"),
        (4, 12, "duplicated"),
        (3, 12, "dead"),
        (1, 8, "generic"),
        (9, 6, "generic"),
    ],
)
def test_a_layer_in_law_is_a_layer(law, batch, n, shape):
    h = inputs(batch, n, shape)
    explicit, drawn = in_law(law, n)
    a = statistics(explicit, h)
    b = statistics(lambda key, h: drawn(jax.random.fold_in(key, 7), h), h)
    for name in a:
        assert_same_law(a[name], b[name])


@pytest.mark.parametrize("law", ["gaussian", "haar"])
def test_leaving_out_the_conditional_mean_is_seen(law):
    h = inputs(5, 24, "generic")
    explicit, drawn = in_law(law, 24)
    backward = {"gaussian": "_gaussian_backward", "haar": "_haar_backward"}[law]
    original = getattr(conditioned, backward)

    def broken(*arguments):
        *rest, saved, d = arguments
        frame = saved[1]
        none, g, *others = original(*rest, saved, d)
        known = g @ frame.T @ frame  # its part in the span of the inputs is the conditional mean
        return none, g - known, *others

    target = conditioned._gaussian if law == "gaussian" else conditioned._haar
    forward = conditioned._gaussian_forward if law == "gaussian" else conditioned._haar_forward
    target.defvjp(forward, broken)
    try:
        a = statistics(explicit, h)
        b = statistics(lambda key, h: drawn(jax.random.fold_in(key, 7), h), h)
        with pytest.raises(AssertionError):
            assert_same_law(a["g_on_h"], b["g_on_h"])
    finally:
        target.defvjp(forward, original)


def test_the_gradient_of_the_scale_is_right():
    key, h = jax.random.key(3), jnp.asarray(INPUTS[:4])
    gaussian = partial(conditioned.gaussian_layer, key, h, units=12)
    for layer in (gaussian, lambda s: conditioned.haar_layer(key, h, s)):
        slope = jax.grad(lambda s, layer=layer: jnp.sum(layer(s) ** 2))(0.5)
        np.testing.assert_allclose(slope, 4 * jnp.sum(layer(0.5) ** 2), rtol=1e-5)


@pytest.mark.parametrize("exponent", [-100, 100])
def test_any_scale_of_inputs_and_gradients_survives(exponent):
    key, h = jax.random.key(3), jnp.asarray(INPUTS[:4])
    for layer in (
        lambda h: conditioned.gaussian_layer(key, h, 1.0, 12),
        lambda h: conditioned.haar_layer(key, h, 1.0),
    ):
        y, back = jax.vjp(layer, h)
        far, far_back = jax.vjp(layer, jnp.ldexp(h, exponent))
        np.testing.assert_array_equal(jnp.ldexp(y, exponent), far)
        np.testing.assert_array_equal(jnp.ldexp(back(y)[0], exponent), far_back(jnp.ldexp(y, exponent))[0])


@pytest.mark.parametrize("spoiled", [np.inf, np.nan, 0.0])
def test_an_input_that_has_no_direction_takes_nothing_of_a_rotated_gradient(spoiled):
    h = jnp.asarray(inputs(4, 24, "generic")).at[2].set(spoiled)
    _, back = jax.vjp(lambda h: conditioned.haar_layer(jax.random.key(3), h, 1.3), h)
    d = inputs(5, 24, "generic")[:4]
    (g,) = back(jnp.asarray(d))
    np.testing.assert_allclose(np.linalg.norm(g, axis=1), 1.3 * np.linalg.norm(d, axis=1), rtol=1e-5)


@pytest.mark.parametrize("law", ["gaussian", "haar"])
@pytest.mark.parametrize("shape", ["generic", "aligned", "duplicated", "dead"])
@pytest.mark.parametrize("exponent", [0, 90])
def test_the_gradient_of_the_matrix_that_is_not_there_has_its_size(law, shape, exponent):
    h, d = inputs(5, 24, shape), inputs(5, 24, "generic")[::-1]
    draw = in_law(law, 24)[1]

    def size(h, d):
        _, back = jax.vjp(
            lambda probe: draw(jax.random.key(3), jnp.asarray(h), probe=probe), jnp.float32(0.0)
        )
        return float(back(jnp.asarray(d))[0])

    wanted = np.sqrt(np.mean((h.astype(np.float64).T @ d) ** 2))
    scaled = np.ldexp(h, -exponent), np.ldexp(d, exponent + 3 * np.arange(-2, 3)[:, None])
    np.testing.assert_allclose(size(h, d), wanted, rtol=1e-5)
    far = np.sqrt(np.mean((scaled[0].astype(np.float64).T @ scaled[1]) ** 2))
    np.testing.assert_allclose(size(*scaled), far, rtol=1e-5)
    assert size(0 * h, d) == size(h, 0 * d) == 0
    assert np.isnan(size(h, np.where(np.arange(5)[:, None] == 1, np.nan, d)))


@pytest.mark.parametrize("root", ["gaussian", "zeros", "equal"])
def test_the_root_of_a_gram_matrix_at_any_rank(root):
    d = {"gaussian": INPUTS, "zeros": np.zeros_like(INPUTS), "equal": np.repeat(INPUTS[:1], 9, axis=0)}[root]
    lower = np.asarray(conditioned._root(jnp.asarray(d @ d.T)))
    np.testing.assert_allclose(lower @ lower.T, d @ d.T, atol=2e-5)
    assert np.array_equal(lower, np.tril(lower))


STACKS = {
    "tanh 40x5": {"width": 40, "batch": 5, "activation": "tanh", "gain": 1.5},
    "gelu residual 40x5": {"width": 40, "batch": 5, "activation": "gelu", "gain": 1.5, "kind": "residual",
                           "branch_scale": 0.3},
    "linear 8x1": {"width": 8, "batch": 1, "activation": "linear"},
    "orthogonal tanh 40x5": {"width": 40, "batch": 5, "activation": "tanh", "init": "orthogonal", "gain": 1.3},
    "aligned": {"width": 40, "batch": 5, "depth": 40, "activation": "tanh", "gain": 0.5},
    "more inputs than units": {"width": 6, "batch": 9, "activation": "relu", "init": "kaiming_normal"},
}  # fmt: skip  # a stack a line


@pytest.mark.parametrize("name", STACKS)
def test_stacks_in_law_are_stacks(name):
    keep = ["forward_rms", "backward_rms", "correlation", "weight_gradient_rms"]
    settings = {"depth": 8, "keep": keep, "devices": 2} | STACKS[name]
    explicit = jaxstab.propagate(1000, sampler="dense", **settings)
    drawn = jaxstab.propagate(range(5000, 6000), sampler="conditioned", **settings)
    depth = settings["depth"]
    for variable in settings["keep"]:
        for layer in {1, depth // 2, depth - 1}:
            a, b = (x[variable].sel(layer=layer).values for x in (explicit, drawn))
            if np.isnan(a).any() and variable == "correlation":
                np.testing.assert_array_equal(np.isnan(a).all(), np.isnan(b).all())
                continue
            assert_same_law(a, b)


def test_the_cost_counts_no_matrix():
    """Random numbers of a conditioned layer grow with the width, those of an explicit one with its square."""

    def drawn(width: int, sampler: str) -> int:
        spec = jaxstab.propagation.Spec(depth=3, width=width, batch=4, sampler=sampler)
        trial = jaxstab.propagation.make_trial(spec)
        jaxpr = jax.make_jaxpr(trial)(jax.random.key(0), jaxstab.propagation.HParams())
        return max(size for size in array_sizes(jaxpr.jaxpr))

    assert drawn(512, "conditioned") * 2 == drawn(1024, "conditioned")
    assert drawn(512, "dense") * 4 == drawn(1024, "dense")


def array_sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (int(np.prod(v.aval.shape)) for v in equation.outvars if v.aval.shape)
        for value in equation.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(item, "eqns"):
                    yield from array_sizes(item)
                elif hasattr(item, "jaxpr"):
                    yield from array_sizes(item.jaxpr)
