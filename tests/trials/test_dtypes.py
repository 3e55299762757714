"""Formats of the real stream: float64 is a witness, and what JAX does not compute in is simulated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxstab
from jaxstab import random
from jaxstab.formats import format_of, round_to
from jaxstab.trials.propagation import make_trial
from jaxstab.trials.stack import HParams, Spec
from jaxstab.trials.walk import Walk

SMALL = {"depth": 5, "width": 12, "batch": 3, "sampler": "dense"}
SEEDS = 3
FLOAT8 = {"float8_e5m2": ml_dtypes.float8_e5m2, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}


def draws_of(spec: Spec, seed: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(inputs, read-out, matrices) of a lane."""
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), seed)
    walk = Walk(spec, HParams(), key)
    matrices = [walk.draw(walk.layers[0], jnp.int32(i))["weight"].drawn for i in range(spec.depth)]
    inputs, readout = (random.normal(k, spec.shape) for k in (walk.input_key, walk.readout_key))
    return np.asarray(inputs), np.asarray(readout), [np.asarray(w) for w in matrices]


def by_hand(spec: Spec, seed: int, kept) -> dict[str, np.ndarray]:
    """tanh stacks in NumPy's float64 whose draws, states and gradients are `kept`."""
    inputs, readout, matrices = draws_of(spec, seed)
    states, weights = [kept(inputs)], [kept(w) for w in matrices]
    for w in weights:
        states.append(kept(np.tanh(states[-1] @ w)))
    gradient, gradients, of_weights = kept(readout), [], []
    for w, before in zip(weights[::-1], states[-2::-1], strict=True):
        gradients.append(gradient)
        slope = gradient * (1 - np.tanh(before @ w) ** 2)
        of_weights.append(before.T @ slope)
        gradient = kept(slope @ w.T)
    rms = lambda arrays: np.array([np.sqrt(np.mean(a**2)) for a in arrays])  # noqa: E731
    return {
        "forward_rms": rms(states[1:]),
        "forward_entry": np.array([h[0, 0] for h in states[1:]]),
        "backward_rms": rms(gradients[::-1]),
        "weight_gradient_rms": rms(of_weights[::-1]),
    }


def test_float64_is_the_network_in_float64_on_the_same_draws():
    """To 13 digits, where float32 is right to 6; logarithms are of a stream that is float32 in both."""
    found = jaxstab.propagate(SEEDS, dtype=["float32", "float64"], **SMALL)
    one, whole = found.sel(dtype="float32"), found.sel(dtype="float64")
    assert found.forward_rms.dtype == np.float64
    for seed in range(SEEDS):
        wanted = by_hand(Spec(**SMALL, dtype="float64"), seed, lambda x: np.asarray(x, np.float64))
        for name, value in wanted.items():
            np.testing.assert_allclose(whole[name].sel(seed=seed), value, rtol=1e-13, err_msg=name)
            single = one[name].sel(seed=seed)
            np.testing.assert_allclose(single, value, rtol=2e-5, err_msg=name)
            assert not np.allclose(single, value, rtol=1e-13)
    np.testing.assert_allclose(one.log10_backward_rms, whole.log10_backward_rms, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "e4m3"])
@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({"init": "orthogonal"}, {"dropout": (0.1,)}),
        ({"kind": "recurrent"}, {"gain": (1.0, 2.0)}),
        ({"kind": ("plain", "normalized")}, {"gain": (1.0, 2.0)}),
        ({"kind": "pre_ln", "sublayers": "alternate", "tokens": 2}, {}),
        ({"kind": "lstm"}, {}),
        ({"kind": "convolution"}, {}),
    ],
)
def test_every_kind_is_traced_in_a_format_and_tells_in_its_dtype(dtype, settings, numbers):
    """Without a warning of JAX's, which are errors here."""
    spec = Spec(depth=2, width=4, batch=2, sampler="dense", dtype=dtype, **settings)
    hparams = jax.tree.map(jnp.float32, HParams(**numbers))
    seen = jax.eval_shape(make_trial(spec), jax.random.key(0), hparams)
    wanted = {"float64": np.float64, "e4m3": np.float32}[dtype]
    names = ("forward_rms", "forward_entry", "backward_rms", "weight_gradient_rms")
    assert {seen[name].dtype for name in names} == {np.dtype(wanted)}


def test_float64_holds_what_float32_does_not():
    axes = {**SMALL, "depth": 30, "activation": "relu", "gain": [1e-4, 1e4]}
    found = jaxstab.propagate(SEEDS, dtype=["float32", "float64"], **axes)
    assert (found.sel(dtype="float32", gain=1e4).status == 1).all()
    assert (found.sel(dtype="float32", gain=1e-4).status == 2).all()
    whole = found.sel(dtype="float64")
    assert (whole.status == 0).all()
    assert (np.abs(whole.log10_forward_rms.isel(layer=-1)) > 60).all()
    for way in ("forward", "backward"):
        np.testing.assert_allclose(np.log10(whole[f"{way}_rms"]), whole[f"log10_{way}_rms"], atol=1e-4)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_a_format_of_8_bits_keeps_states_gradients_and_draws(dtype):
    """Beside NumPy's own conversions to it; float32 in place of float64 decides a rounding here and there."""
    found = jaxstab.propagate(SEEDS, dtype=dtype, **SMALL)
    kept = lambda x: np.asarray(x, np.float32).astype(FLOAT8[dtype]).astype(np.float64)  # noqa: E731
    exact = jaxstab.propagate(SEEDS, **SMALL)
    for seed in range(SEEDS):
        for name, value in by_hand(Spec(**SMALL, dtype=dtype), seed, kept).items():
            one = found[name].sel(seed=seed).values
            np.testing.assert_allclose(one, value, rtol=2e-3, atol=1e-4, err_msg=name)
            assert not np.allclose(exact[name].sel(seed=seed), value, rtol=2e-3, atol=1e-4)


def test_states_are_numbers_of_the_format():
    for dtype in ("e3m2", "float8_e4m3fn", "e6m9"):
        found = jaxstab.propagate(SEEDS, dtype=dtype, keep=["forward_entry", "forward_absmax"], **SMALL)
        for values in (found.forward_entry.values, found.forward_absmax.values):
            np.testing.assert_array_equal(values, round_to(jnp.asarray(values), format_of(dtype)))
            assert (values != 0).any()


def test_a_format_ends_as_it_ends():
    """e4m3fn has no infinity, so that what is too large for it is NaN; in 5 bits of exponent it is inf."""
    axes = {**SMALL, "activation": "relu", "gain": 20.0}
    found = jaxstab.propagate(SEEDS, dtype=["float8_e4m3fn", "float8_e5m2", "e5m2"], **axes)
    assert (found.first_bad_layer_forward > 0).all()
    no_infinity = found.sel(dtype="float8_e4m3fn")
    assert (no_infinity.first_nan_layer_forward == no_infinity.first_bad_layer_forward).all()
    assert (no_infinity.first_inf_layer_forward == 0).all()
    assert (found.sel(dtype="float8_e5m2").first_inf_layer_forward > 0).all()
    pair, named = found.sel(dtype="e5m2"), found.sel(dtype="float8_e5m2")
    assert pair.drop_vars("dtype").identical(named.drop_vars("dtype"))


def test_theory_is_silent_where_a_narrow_format_has_no_digits_left():
    axes = {**SMALL, "depth": 30, "width": 64, "activation": "relu", "init": "lecun_normal"}
    told = jaxstab.predict(dtype=["float8_e4m3fn", "bfloat16"], **axes)
    narrow, wide = told.sel(dtype="float8_e4m3fn"), told.sel(dtype="bfloat16")
    rms = wide.forward_rms.values
    kept = rms >= float(jnp.finfo(jnp.float8_e4m3fn).smallest_normal)
    assert 0 < kept.sum() < len(rms)
    np.testing.assert_array_equal(narrow.forward_rms, np.where(kept, rms, np.nan))
    assert np.isnan(narrow.backward_rms).all()
    assert np.isnan(narrow.break_fraction_forward)
    assert wide.break_fraction_forward == 0
    np.testing.assert_array_equal(narrow.log10_forward_rms, wide.log10_forward_rms)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"dtype": "e4m3, say"}, ["'e4m3, say'", "Choices"]),
        ({"dtype": "float7"}, ["'float7'", "float64", "float8_e4m3fn", "e4m3"]),
        ({"dtype": "bfloat_16"}, ["Did you mean 'bfloat16'"]),
        ({"dtype": "e9m3"}, ["9, 3", "2 to 8 exponent bits"]),
        ({"dtype": "float64", "sampler": "conditioned"}, ["float64", "sampler='dense'"]),
    ],
)
def test_a_format_that_is_none_gets_one_line(axes, words):
    with pytest.raises(jaxstab.UsageError) as caught:
        Spec(**axes)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_format_goes_by_any_of_its_names():
    wanted = {"float16": ["half", np.float16, jnp.float16], "e4m3": [(4, 3)], "float64": [np.dtype("f8")]}
    assert {name: {Spec(dtype=one).dtype for one in given} for name, given in wanted.items()} == {
        name: {name} for name in wanted
    }
