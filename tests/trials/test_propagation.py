"""Propagation: what is measured is what happens, where theory is exact they agree, and broken layers are found."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import assert_mean_matches

import jaxstab
from jaxstab.theory import finite_width
from jaxstab.trials import propagation as module
from jaxstab.trials import walk as walks
from jaxstab.trials.propagation import make_trial
from jaxstab.trials.stack import HParams, Spec
from jaxstab.trials.walk import Walk

KINDS = {
    "plain": {},
    "residual": {"kind": "residual"},
    "normalized": {"kind": "normalized"},
    "recurrent": {"kind": "recurrent"},
    "lstm": {"kind": "lstm"},
    "relu": {"activation": "relu", "init": "kaiming_uniform"},
    "biased": {"init": "torch_default"},
}


def written_out(kind, phi, h, c, z, branch_scale):
    """(h, c) after one layer of each kind, from its definition."""
    if kind == "residual":
        return h + branch_scale * phi(z), c
    if kind == "normalized":
        centred = z - z.mean(axis=1, keepdims=True)
        return phi(centred / jnp.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)), c
    if kind == "lstm":
        into, forget, new, out = (z[:, 12 * i : 12 * (i + 1)] for i in range(4))
        sigmoid = lambda x: 1 / (1 + jnp.exp(-x))  # noqa: E731
        c = sigmoid(forget) * c + sigmoid(into) * phi(new)
        return sigmoid(out) * phi(c), c
    return phi(z), c


@pytest.mark.parametrize("name", KINDS)
def test_a_trial_sees_what_the_whole_network_has(name):
    """Every layer's activations and gradients against one network written out and differentiated as a whole."""
    spec = Spec(depth=4, width=12, batch=3, **KINDS[name])
    hparams, key = HParams(gain=1.3, sigma_b=0.2, branch_scale=0.5, forget_bias=0.7), jax.random.key(11)
    seen = jax.jit(make_trial(spec))(key, hparams)
    walk = Walk(spec, hparams, key)  # for the draws alone
    phi = {"tanh": jnp.tanh, "relu": lambda x: jnp.maximum(x, 0)}[spec.activation]
    inputs = jax.random.normal(walk.input_key, (3, 12))
    cell = jnp.zeros((3, 12 if name == "lstm" else 0))
    draws = [walk.draw(walk.layers[0], jnp.int32(i)) for i in range(4)]

    def read_out(nudges):
        """The random read-out, each layer's state and linear part moved by a nudge of zero."""
        h, c, signals = inputs, cell, []
        for parameters, (of_h, of_c, of_z) in zip(draws, nudges, strict=True):
            z = jnp.matmul(h, parameters["weight"].drawn, precision="highest") + parameters["bias"] + of_z
            h, c = written_out(spec.kind, phi, h, c, z, 0.5)
            h, c = h + of_h, c + of_c
            signals.append(h)
        return jnp.sum(h * jax.random.normal(walk.readout_key, (3, 12))), signals

    units = draws[0]["weight"].units
    nudges = [(jnp.zeros_like(inputs), jnp.zeros_like(cell), jnp.zeros((3, units))) for _ in range(4)]
    gradients, signals = jax.grad(read_out, has_aux=True)(nudges)
    for layer, h in enumerate(signals):
        np.testing.assert_allclose(seen["forward_std"][layer], jnp.std(h, ddof=1), rtol=1e-4)
        np.testing.assert_allclose(seen["forward_mean"][layer], jnp.mean(h), atol=1e-5)
        np.testing.assert_allclose(seen["forward_absmax"][layer], jnp.max(jnp.abs(h)), rtol=1e-4)
        of_h, of_c, of_linear = gradients[layer]
        entries = np.concatenate([np.ravel(of_h), np.ravel(of_c)])
        np.testing.assert_allclose(seen["backward_rms"][layer], np.sqrt(np.mean(entries**2)), rtol=1e-4)
        given = inputs if layer == 0 else signals[layer - 1]
        weights = np.asarray(given, np.float64).T @ np.asarray(of_linear, np.float64)
        np.testing.assert_allclose(
            seen["weight_gradient_rms"][layer], np.sqrt(np.mean(weights**2)), rtol=1e-3
        )
    np.testing.assert_allclose(seen["log10_backward_rms"], np.log10(seen["backward_rms"]), atol=1e-4)
    np.testing.assert_allclose(seen["log10_forward_rms"], np.log10(seen["forward_rms"]), atol=1e-4)


@pytest.mark.parametrize(("dtype", "layer"), [("float16", 4), ("float32", 32), ("bfloat16", 32)])
def test_unit_weights_end_where_the_dtype_ends_measured_and_forecast_alike(dtype, layer):
    settings = {"activation": "linear", "init": "normal", "depth": 70, "dtype": dtype}
    data = jaxstab.propagate(seeds=4, **settings)
    forecast = jaxstab.predict(**settings)
    assert (
        set(data.first_bad_layer_forward.values.tolist())
        == {layer}
        == {int(forecast.first_bad_layer_forward)}
    )
    # the gradient makes one step less: with respect to the last layer it is the read-out itself
    assert (
        set(data.first_bad_layer_backward.values.tolist())
        == {70 - layer}
        == {int(forecast.first_bad_layer_backward)}
    )
    assert (data.status == 1).all()
    assert (data.first_nan_layer_forward >= data.first_inf_layer_forward).all()
    theory = np.arange(1, 71) * np.log10(16)
    np.testing.assert_allclose(data.log10_forward_rms.mean("seed"), theory, atol=0.25)
    finite = data.forward_std.sel(layer=slice(1, layer - 1))
    np.testing.assert_allclose(np.log10(finite), data.log10_forward_rms.sel(layer=finite.layer), atol=0.01)
    np.testing.assert_allclose(
        data.log10_backward_rms.mean("seed"), np.arange(69, -1, -1) * np.log10(16), atol=0.25
    )


def test_a_signal_that_underflows_is_lost_and_its_logarithm_goes_on():
    keep = ["forward_rms", "log10_forward_rms", "first_lost_layer_forward", "first_bad_layer_forward"]
    data = jaxstab.propagate(
        seeds=4, activation="linear", gain=1e-3, depth=20, width=32, dtype="float16", keep=keep
    )
    forecast = jaxstab.predict(activation="linear", gain=1e-3, depth=20, width=32, dtype="float16")
    assert (data.first_lost_layer_forward == data.first_lost_layer_forward[0]).all()
    assert int(data.first_lost_layer_forward[0]) == int(forecast.first_lost_layer_forward) == 3
    assert (data.first_bad_layer_forward == 0).all()
    assert (data.status == module.VANISHED).all()
    assert (data.forward_rms.sel(layer=4) == 0).all()
    np.testing.assert_allclose(data.log10_forward_rms.sel(layer=20).mean(), -60, atol=0.5)


def test_tanh_gradients_go_on_below_float32():
    settings = {"activation": "tanh", "gain": 0.1, "depth": 60, "width": 32}
    data = jaxstab.propagate(seeds=4, keep=["backward_rms", "log10_backward_rms"], **settings)
    assert (data.backward_rms.sel(layer=1) == 0).all()
    np.testing.assert_allclose(data.log10_backward_rms.sel(layer=1).mean(), -59, atol=1)


@pytest.mark.parametrize("sampler", ["dense", "conditioned"])
def test_the_mean_square_of_relu_is_exact_at_any_width(sampler):
    data = jaxstab.propagate(
        seeds=4000, activation="relu", init="kaiming_normal", width=32, depth=6, batch=2, sampler=sampler,
        keep=["forward_rms", "backward_rms"],
    )  # fmt: skip
    square = data.forward_rms.values.astype(np.float64) ** 2
    assert_mean_matches(square, 1.0)  # [seed, layer]; 5 L / n is at most 0.94
    with pytest.raises(AssertionError):
        assert_mean_matches(1.05 * square, 1.0)


def test_the_spread_of_relu_is_hanin_and_nicas():
    data = jaxstab.propagate(
        seeds=3000, activation="relu", init="kaiming_normal", batch=1, sampler="conditioned", keep=["log10_forward_rms"]
    )  # fmt: skip
    factor = 10 ** data.log10_forward_rms.isel(layer=-1).values.astype(np.float64)
    low, median, high = np.quantile(factor, [0.025, 0.5, 0.975])
    assert (low, median, high) == pytest.approx((0.154, 0.612, 2.43), rel=0.1)
    predicted = jaxstab.predict(activation="relu", init="kaiming_normal", batch=1)
    inside = (np.log10(factor) > predicted.log10_forward_rms_low[-1].item()) & (
        np.log10(factor) < predicted.log10_forward_rms_high[-1].item()
    )
    assert abs(inside.mean() - 0.95) < 5 * np.sqrt(0.95 * 0.05 / 3000)


def test_deep_narrow_relu_is_judged_by_its_mean_logarithm():
    """Where 5 L / n is large, the mean of q lives in a tail that no sample sees; ln q is the oracle there."""
    width, depth = 32, 100
    data = jaxstab.propagate(
        seeds=2000, activation="relu", init="kaiming_normal", width=width, depth=depth, batch=1, sampler="conditioned",
        keep=["log10_forward_rms"],
    )  # fmt: skip
    log_q = np.log(10) * 2 * data.log10_forward_rms.values[:, -1].astype(np.float64)
    active = np.arange(1, width + 1)
    from scipy.special import digamma
    from scipy.stats import binom

    weights = binom.pmf(active, width, 0.5)
    a_layer = np.sum(weights * (digamma(active / 2) + np.log(2))) / weights.sum() + np.log(2 / width)
    first = digamma(width / 2) + np.log(2 / width)
    assert_mean_matches(log_q, depth * a_layer + first)
    with pytest.raises(AssertionError):
        assert_mean_matches(log_q, 0.9 * (depth * a_layer + first))


def test_the_interval_of_linear_stacks_covers_its_share():
    settings = {"activation": "linear", "depth": 30, "width": 64, "batch": 8}
    data = jaxstab.propagate(
        seeds=1500, sampler="conditioned", keep=["log10_forward_rms", "log10_backward_rms"], **settings
    )
    predicted = jaxstab.predict(**settings)
    for name in ("log10_forward_rms", "log10_backward_rms"):
        inside = (data[name] > predicted[f"{name}_low"]) & (data[name] < predicted[f"{name}_high"])
        share = inside.mean("seed")
        assert (np.abs(share - 0.95) < 0.05).all(), share.values


def test_tanh_settles_at_the_mean_field_within_its_bias_of_order_one_over_width():
    data = jaxstab.propagate(
        seeds=32, activation="tanh", gain=5 / 3, width=512, depth=30, keep=["forward_rms", "backward_rms"]
    )
    predicted = jaxstab.predict(activation="tanh", gain=5 / 3, width=512, depth=30)
    np.testing.assert_allclose(data.forward_rms.mean("seed"), predicted.forward_rms, rtol=0.01)
    assert float(predicted.forward_rms[-1]) == pytest.approx(0.651347, rel=1e-5)
    growth = predicted.backward_rms[0] / predicted.backward_rms[1]
    assert float((predicted.backward_rms[20] / predicted.backward_rms[21]) ** 2) == pytest.approx(
        1.209831, rel=1e-5
    )
    assert float(growth) > 1


def test_theory_bears_the_measurements_names():
    predicted = set(jaxstab.predict(depth=3).data_vars)
    measured = set(jaxstab.propagate(seeds=2, depth=3, width=8, batch=2).data_vars)
    bounds = {name for name in predicted if str(name).endswith(("_low", "_high"))}
    assert {str(b).rsplit("_", 1)[0] for b in bounds} <= predicted
    alone = {"loss_scale", "loss_scale_reason"} | {
        f"{what}_fraction_{way}" for what in ("break", "lost") for way in ("forward", "backward")
    }
    assert predicted - bounds - alone <= measured


def test_theory_is_silent_where_none_is_known():
    for settings in ({"kind": "lstm"}, {"init": "constant"}):
        predicted = jaxstab.predict(depth=3, width=8, **settings)
        assert str(predicted.loss_scale_reason.values).startswith("no loss scale")
        assert all(np.isnan(one).all() for one in predicted.drop_vars("loss_scale_reason").values())


def test_any_scalar_callable_is_an_activation():
    def hat(x):
        return jnp.maximum(0, 1 - jnp.abs(x))

    data = jaxstab.propagate(
        seeds=64, activation=[hat, "tanh"], depth=3, width=256, keep=["forward_rms", "status"]
    )
    predicted = jaxstab.predict(activation=[hat, "tanh"], depth=3, width=256)
    assert data.activation.values.tolist() == ["hat", "tanh"]
    np.testing.assert_allclose(data.forward_rms.mean("seed"), predicted.forward_rms, rtol=0.02)


def test_lyapunov_exponents_are_measured():
    data = jaxstab.propagate(
        seeds=2000, activation="linear", init="normal", width=4, batch=1, depth=100, keep=["log10_forward_rms"]
    )  # fmt: skip
    log_norm = np.log(10) * data.log10_forward_rms.values[:, -1] + np.log(2)  # |row| = rms sqrt(4)
    assert_mean_matches(log_norm, 101 * finite_width.lyapunov_exponents(4)[0])
    with pytest.raises(AssertionError):
        assert_mean_matches(log_norm, 101 * 1.02 * finite_width.lyapunov_exponents(4)[0])


@pytest.mark.parametrize("sampler", ["dense", "conditioned"])
def test_drawing_again_is_storing(monkeypatch, sampler):
    def fresh(key, hparams):
        seen = make_trial(Spec(depth=5, width=16, batch=3, sampler=sampler))(key, hparams)
        return {name: seen[name] for name in ("forward_rms", "backward_rms", "weight_gradient_rms")}

    stored = jax.jit(fresh)(jax.random.key(1), HParams())
    monkeypatch.setattr(walks, "STORED_DRAWS_BYTES", 0)
    jax.clear_caches()
    redrawn = jax.jit(fresh)(jax.random.key(1), HParams())
    for name in stored:
        np.testing.assert_allclose(stored[name], redrawn[name], rtol=1e-5, err_msg=name)
