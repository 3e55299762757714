"""Layers: what each keeps to (what it computes: `test_layers_by_hand`), what theory says; a user's own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import assert_mean_matches

import jaxstab
from jaxstab.nets.layers import register
from jaxstab.nets.layers.layer import (
    Numbers,
    end,
    gradient_rms,
    in_dtype,
    noting,
    signal,
    start,
)
from jaxstab.nets.weights import Weights

WIDTH, BATCH, TOKENS = 12, 3, 4
NUMBERS = Numbers(gain=1.3, sigma_b=0.2, branch_scale=0.5, skip_scale=0.8, qk_scale=1.5)
CASES = {
    "plain": {},
    "residual": {},
    "residual, two matrices": {"branch_matrices": 2},
    "normalized": {},
    "rms_norm": {},
    "batch_norm": {},
    "recurrent": {},
    "lstm": {},
    "pre_ln": {},
    "post_ln": {},
    "attention": {"heads": 3},
    "residual_attention": {"heads": 2},
    "pre_ln, attention": {"sublayers": "attention", "heads": 2},
    "post_ln, attention": {"sublayers": "attention"},
}


def make(name, sampler="dense", activation="relu"):
    kind = name.split(",")[0]
    weights = Weights("xavier_normal", sampler)
    (layer,) = register.make_layers(kind, WIDTH, activation, weights, **CASES[name])
    return layer


def inputs(name, dtype=jnp.float32):
    shape = (BATCH, TOKENS, WIDTH) if "attention" in name else (BATCH, WIDTH)
    return jax.random.normal(jax.random.key(5), shape).astype(dtype)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sampler", ["dense", "conditioned"])
def test_a_layer_keeps_to_the_contract(name, sampler):
    if sampler == "conditioned" and name in register.REUSED:
        with pytest.raises(jaxstab.UsageError, match="uses one matrix at every step"):
            make(name, sampler)
        return
    layer = make(name, sampler)
    assert hash(layer) == hash(make(name, sampler))
    params = layer.draw(jax.random.key(1), NUMBERS)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        state = jax.tree.map(lambda a, dtype=dtype: a.astype(dtype), start(layer, inputs(name)))
        after = layer(in_dtype(params, dtype), state, NUMBERS)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert (a.shape, a.dtype) == (b.shape, dtype)
            assert jnp.isfinite(a).all()
        assert end(layer, after).shape == inputs(name).shape


@pytest.mark.parametrize("name", ["plain", "residual, two matrices", "lstm", "attention"])
def test_the_rms_of_a_weights_gradient_is_found_without_the_gradient(name):
    layer, x = make(name), inputs(name)
    params = layer.draw(jax.random.key(1), NUMBERS)
    after, pull = jax.vjp(lambda p: signal(layer(p, start(layer, x), NUMBERS)), params)
    (of_params,) = pull(jax.random.normal(jax.random.key(3), after.shape))
    weights = [one for key, one in of_params.items() if key != "bias"]
    whole = np.concatenate([np.ravel(one.drawn) for one in weights]).astype(np.float64)
    np.testing.assert_allclose(gradient_rms(of_params), np.sqrt(np.mean(whole**2)), rtol=1e-4)


def test_preactivations_are_noted_for_whoever_asks():
    layer, x = make("normalized"), inputs("plain")
    params = layer.draw(jax.random.key(1), NUMBERS)
    with noting() as noted:
        after = layer(params, x, NUMBERS)
    np.testing.assert_array_equal(jnp.maximum(noted[0][1], 0), after)
    layer(params, x, NUMBERS)
    assert len(noted) == 1


def test_saturation_is_of_the_activation_that_a_layer_names():
    """Of a layer of one's own it hangs on nothing that the Spec says by default."""

    class Relu(Gated):
        def __call__(self, params, state, numbers):
            return jax.nn.relu(jaxstab.preactivation(state @ params["u"], "relu"))

    data = jaxstab.propagate(
        8, kind={"mine": Relu(64)}, depth=2, width=64, keep=["saturated_fraction", "zero_fraction"]
    )
    np.testing.assert_allclose(data.saturated_fraction, data.zero_fraction, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Gated:
    """A user's own: silu(x U) * (x V), matrices as plain arrays."""

    width: int = 64

    def draw(self, key, numbers):
        names = dict(zip("uv", jax.random.split(key), strict=True))
        scale = numbers.gain / np.sqrt(self.width)
        return {n: scale * jax.random.normal(k, (self.width, self.width)) for n, k in names.items()}

    def __call__(self, params, state, numbers):
        return jax.nn.silu(state @ params["u"]) * (state @ params["v"])


def test_a_users_layer_is_swept_both_ways_as_one_network_written_out():
    layer = Gated(16)
    data = jaxstab.propagate(
        5, kind={"gated": layer, "tanh": "plain"}, depth=3, width=16, batch=2, gain=[1.0, 2.0], progress=False
    )
    assert data.kind.values.tolist() == ["gated", "tanh"]
    assert data.attrs["programs"] == 2
    own = data.sel(kind="gated", gain=2.0, seed=4)
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), 4)
    input_key, layers_key, readout_key = jax.random.split(key, 3)
    draws = [layer.draw(jax.random.fold_in(layers_key, i), Numbers(gain=2.0)) for i in range(3)]
    x = jax.random.normal(input_key, (2, 16))
    readout = jax.random.normal(readout_key, (2, 16))

    def read(nudges, draws):
        h, signals = x, []
        for params, nudge in zip(draws, nudges, strict=True):
            h = layer(params, h, None) + nudge
            signals.append(h)
        return jnp.sum(h * readout), signals

    (of_nudges, of_draws), signals = jax.grad(read, argnums=(0, 1), has_aux=True)(
        [jnp.zeros_like(x)] * 3, draws
    )
    rms = lambda *a: np.sqrt(np.mean(np.concatenate([np.ravel(one) for one in a]) ** 2))  # noqa: E731 - a formula
    for i in range(3):
        np.testing.assert_allclose(own.forward_rms[i], rms(signals[i]), rtol=1e-4)
        np.testing.assert_allclose(own.backward_rms[i], rms(of_nudges[i]), rtol=1e-4)
        np.testing.assert_allclose(own.weight_gradient_rms[i], rms(*of_draws[i].values()), rtol=1e-4)
    assert np.isnan(own.saturated_fraction).all()
    assert np.isfinite(data.sel(kind="tanh").saturated_fraction).all()


def test_a_users_layer_resumes_and_another_one_is_refused(tmp_path):
    call = {"seeds": 3, "depth": 2, "width": 16, "batch": 2, "store": tmp_path, "progress": False}
    first = jaxstab.propagate(kind={"mine": Gated(16)}, **call)
    assert first.identical(jaxstab.propagate(kind={"mine": Gated(16)}, **call))

    class Other(Gated):
        def __call__(self, params, state, numbers):
            return jax.nn.relu(state @ params["u"]) * (state @ params["v"])

    with pytest.raises(jaxstab.UsageError, match="holds another sweep"):
        jaxstab.propagate(kind={"mine": Other(16)}, **call)


@dataclasses.dataclass(frozen=True)
class Wrong:
    """Other units than it was given, always float32, and something among its draws."""

    units: int = 16
    beside: object = ()

    def draw(self, key, numbers):
        return {"w": jax.random.normal(key, (16, self.units)), "beside": self.beside}

    def __call__(self, params, state, numbers):
        return (state @ params["w"]).astype(jnp.float32)


@dataclasses.dataclass
class Unhashable:
    width: int

    draw, __call__ = Gated.draw, Gated.__call__


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "residul"}, "unknown kind 'residul'.*Did you mean 'residual'"),
        (
            {"kind": {"mine": Wrong(8)}, "width": 16},
            r"kind=Wrong: makes float32\[2,8\] of float32\[2,16\]; a state",
        ),
        (
            {"kind": {"mine": Wrong()}, "width": 16, "dtype": "float16"},
            r"makes float32\[2,16\] of float16\[2,16\]",
        ),
        ({"kind": {"mine": Wrong(16, jnp.tanh)}, "width": 16}, "draw returns .*tanh.*, which is no array"),
        ({"kind": {"mine": Unhashable(16)}, "width": 16}, "kind: a Unhashable cannot be hashed"),
        ({"kind": {"mine": 3}}, r"kind=3: a name, or an object with draw\(key, numbers\)"),
        ({"init": {"mine": lambda key: key}}, r"init=<lambda> is no initializer \(key, shape, dtype\)"),
        ({"init": {"mine": lambda key, shape, dtype: jnp.zeros(3)}}, r"for \(2, 3\) it gives \(3,\)"),
        (
            {"init": {"mine": jax.nn.initializers.he_normal()}, "sampler": "conditioned"},
            "cannot be drawn without",
        ),
        ({"kind": "attention"}, "attends to tokens: give tokens="),
        ({"kind": "pre_ln", "heads": 5, "width": 16}, "heads=5: a divisor of width=16"),
        ({"kind": "residual", "branch_matrices": 3}, "branch_matrices=3: 1 or 2"),
        ({"dropout": 1.5}, "dropout=1.5: a rate is a probability"),
        ({"dropout": 0.1, "kind": "lstm"}, "kind='lstm' has none"),
        (
            {"tokens": 2**20, "width": 2**11},
            r"width=2048 and batch=2 of 1048576 tokens: a signal of .* entries",
        ),
        ({"tokens": -1}, "tokens=-1"),
    ],
)
def test_what_cannot_be_meant_is_named(settings, words):
    with pytest.raises(jaxstab.UsageError, match=words) as refusal:
        jaxstab.propagate(2, depth=2, batch=2, **settings)
    assert "\n" not in str(refusal.value)


def test_any_initializer_of_jaxs_protocol_draws_the_weights():
    settings = {"depth": 4, "width": 64, "batch": 4, "keep": ["forward_rms"], "progress": False}
    own = {"own": jax.nn.initializers.normal(64**-0.5), "lecun": "lecun_normal"}
    data = jaxstab.propagate(400, init=own, gain=[1.0, 2.0], activation="relu", **settings)
    assert data.attrs["programs"] == 2
    squares = data.forward_rms.values.astype(np.float64)[:, 0] ** 2
    assert_mean_matches(squares[0], 0.5 ** np.arange(1, 5))
    np.testing.assert_allclose(squares[0].mean(0), squares[1].mean(0), rtol=0.2)
    assert np.isnan(jaxstab.predict(init=own, depth=2, width=64).forward_rms.sel(init="own")).all()


def squares(seeds, **settings):
    """(E h^2, E g^2) of each network and layer, float64."""
    data = jaxstab.propagate(
        seeds, sampler="conditioned", keep=["forward_rms", "backward_rms"], progress=False, **settings
    )
    return (data[name].values.astype(np.float64) ** 2 for name in ("forward_rms", "backward_rms"))


def test_a_residual_branch_of_two_matrices_adds_its_variance():
    """(a^2 + b^2)^L forward and backward: He-scaled, so that E f^2 is that of its input."""
    settings = {"kind": "residual", "branch_matrices": 2, "activation": "relu", "init": "lecun_normal"}
    forward, backward = squares(
        600, depth=8, width=128, batch=2, gain=2**0.25, branch_scale=0.5, skip_scale=0.9, **settings
    )
    layers = np.arange(1, 9)
    assert_mean_matches(forward, (0.81 + 0.25) ** layers)
    assert_mean_matches(backward, (0.81 + 0.25) ** (8 - layers))
    with pytest.raises(AssertionError):
        assert_mean_matches(forward, 1.05 * (0.81 + 0.25) ** layers)


def test_dropout_at_its_gain_keeps_signal_and_gradient():
    """ReLU at gain sqrt(1 - p) times He's: E h^2 stays 1 both ways, p = 0.5."""
    settings = {"activation": "relu", "init": "kaiming_normal", "dropout": 0.5, "gain": 0.5**0.5}
    forward, backward = squares(2000, depth=4, width=64, batch=2, **settings)
    assert_mean_matches(forward, np.ones(4))
    assert_mean_matches(backward, np.r_[np.ones(3), 1.0])
    with pytest.raises(AssertionError):
        assert_mean_matches(1.1 * forward, np.ones(4))


def test_a_pre_norm_stack_adds_a_unit_of_variance_a_layer_and_keeps_its_gradient():
    """Q_l = 1 + l and E g_l^2 = 1 / Q_l of ReLU blocks whose branch has variance 1."""
    settings = {"kind": "pre_ln", "activation": "relu", "init": "lecun_normal", "gain": 2**0.25}
    forward, backward = squares(200, depth=12, width=256, batch=2, **settings)
    layers = np.arange(1, 13)
    np.testing.assert_allclose(np.median(forward, 0), 1 + layers, rtol=0.05)
    np.testing.assert_allclose(np.median(backward, 0), 1 / (1 + layers), rtol=0.1)


def test_batch_norm_lets_gradients_explode():
    """pi / (pi - 1) a layer in mean square for ReLU, as the batch grows. Yang et al. 2019."""
    settings = {"kind": "batch_norm", "activation": "relu", "init": "lecun_normal"}
    _, backward = squares(12, depth=16, width=256, batch=128, **settings)
    rates = (backward[:, 2] / backward[:, 13]) ** (1 / 11)
    np.testing.assert_allclose(rates.mean(), np.pi / (np.pi - 1), rtol=0.02)


def test_attention_alone_makes_tokens_alike_and_a_skip_slows_it():
    settings = {"tokens": 8, "depth": 4, "width": 32, "batch": 2, "keep": ["correlation"], "progress": False}
    alone = jaxstab.propagate(16, kind="attention", **settings).correlation.mean("seed")
    skip = jaxstab.propagate(16, kind="residual_attention", **settings).correlation.mean("seed")
    assert float(alone[-1]) > 0.95 > float(skip[-1])


@pytest.mark.parametrize(("cosine", "square", "after"), [(0.3, 0.3220, 0.9735), (0.7, None, 0.9992)])
def test_attention_mixes_tokens_of_a_cosine_as_theory_says(cosine, square, after):
    """Of T tokens, logits of variance 1: out^2 = c + (1 - c) e^(1-c) / T, out^2 c' = c + (1 - c) e^(c (1-c)) / T."""
    tokens, width, draws = 64, 256, 40
    (layer,) = register.make_layers("attention", width, "tanh", Weights("lecun_normal"))

    def one(key):
        shared, own, drawn = jax.random.split(key, 3)
        common = cosine**0.5 * jax.random.normal(shared, (1, 1, width))
        x = common + (1 - cosine) ** 0.5 * jax.random.normal(own, (1, tokens, width))
        h = layer(layer.draw(drawn, Numbers()), x, Numbers())[0]
        unit = h / jnp.linalg.norm(h, axis=1, keepdims=True)
        mean_cosine = (jnp.sum(jnp.sum(unit, 0) ** 2) - tokens) / (tokens * (tokens - 1))
        return jnp.mean(h**2), mean_cosine

    squares, cosines = map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws)))
    told = cosine + (1 - cosine) * np.exp(1 - cosine) / tokens
    assert told == pytest.approx(square or told, abs=5e-5)
    assert (cosine + (1 - cosine) * np.exp(cosine * (1 - cosine)) / tokens) / told == pytest.approx(
        after, abs=5e-5
    )
    for found, wanted in ((squares, told), (cosines, after)):
        assert abs(found.mean() - wanted) < 5 * found.std(ddof=1) / np.sqrt(draws)
    assert abs(cosines.mean() - (after - 0.01)) > 5 * cosines.std(ddof=1) / np.sqrt(draws)
