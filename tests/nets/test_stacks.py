"""Stacks whose layers differ: widths and gains by layer, sublayers and layers in turn, convolutions."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import assert_mean_matches
from test_layers import Gated

import jaxstab
from jaxstab.nets.layers.layer import Numbers
from jaxstab.nets.layers.register import make_layers
from jaxstab.nets.weights import Weights
from jaxstab.trials.stack import HParams, Spec
from jaxstab.trials.walk import Walk

WIDTHS, GAINS = (100, 400, 50, 300, 80), (1.1, 0.9, 1.2, 0.8)


def squares(data, name):
    return data[name].values.astype(np.float64).squeeze() ** 2


@pytest.mark.parametrize("sampler", ["dense", "conditioned"])
def test_widths_and_gains_by_layer_are_measured_beside_theory(sampler):
    """He by fan_in, ReLU: E h_L^2 is the product of the gains' squares, E g_0^2 that of n_l/n_(l-1) besides."""
    settings = {
        "width": {"five": WIDTHS},
        "gain": {"four": GAINS},
        "depth": 4,
        "batch": 2,
        "activation": "relu",
        "init": "kaiming_normal",
    }  # fmt: skip - a line each otherwise
    keep = ["forward_rms", "backward_rms", "weight_gradient_rms"]
    data = jaxstab.propagate(600, **settings, sampler=sampler, keep=keep, progress=False)
    told = jaxstab.predict(**settings)
    assert data.width.item() == "five"
    assert data.gain.item() == "four"
    np.testing.assert_allclose(squares(told, "forward_rms"), np.cumprod(np.square(GAINS)), rtol=1e-6)
    for name in ("forward_rms", "backward_rms", "weight_gradient_rms"):
        assert_mean_matches(squares(data, name)[:, :-1], squares(told, name)[:-1])
        with pytest.raises(AssertionError):
            assert_mean_matches(squares(data, name), 1.1 * squares(told, name))
    swapped = jaxstab.predict(**settings | {"width": {"other": WIDTHS[::-1]}})
    with pytest.raises(AssertionError):
        assert_mean_matches(squares(data, "backward_rms"), squares(swapped, "backward_rms"))


@pytest.mark.parametrize(
    ("mode", "forward", "backward"),
    [("fan_in", 0.9033, 0.7226), ("fan_out", 1.1291, 0.9033), ("fan_avg", 0.2898, 0.2318)],
)
def test_the_fan_that_an_initialization_counts_shows_at_once(mode, forward, backward):
    """E h_L^2/E h_0^2 = prod Var(W_l) n_(l-1)/2, E g_0^2/E g_L^2 = prod Var(W_l) n_l/2; digits as published."""
    own = jax.nn.initializers.variance_scaling(2.0, mode, "normal")
    data = jaxstab.propagate(
        600,
        init={mode: own},
        width={"five": WIDTHS},
        gain={"four": GAINS},
        depth=4,
        batch=1,
        activation="relu",
        keep=["forward_rms", "backward_rms"],
        progress=False,
    )  # fmt: skip - a line each otherwise
    fans = {"fan_in": WIDTHS[:-1], "fan_out": WIDTHS[1:], "fan_avg": np.add(WIDTHS[:-1], WIDTHS[1:]) / 2}[
        mode
    ]
    variances = np.square(GAINS) / fans
    assert np.prod(variances * WIDTHS[:-1]) == pytest.approx(forward, abs=6e-5)
    assert np.prod(variances * WIDTHS[1:]) == pytest.approx(backward, abs=6e-5)
    assert_mean_matches(squares(data, "forward_rms")[:, -1], forward)
    assert_mean_matches(squares(data, "backward_rms")[:, 0], np.prod((variances * WIDTHS[1:])[1:]))


def test_equal_gains_by_layer_are_one_gain():
    keep = ["forward_rms", "backward_rms", "weight_gradient_rms"]
    settings = {"depth": 3, "batch": 2, "keep": keep, "progress": False}
    one = jaxstab.propagate(3, gain=1.5, width=16, **settings)
    three = jaxstab.propagate(3, gain={"three": (1.5,) * 3}, width={"four": (16,) * 4}, **settings)
    for name in keep:
        np.testing.assert_allclose(one[name], three[name].squeeze(), rtol=1e-5)


def test_gains_by_layer_are_lanes_of_one_program():
    gains = {"up": (0.5, 2.0), "down": (2.0, 0.5)}
    settings = {"depth": 2, "width": 8, "batch": 2, "activation": "linear", "keep": ["forward_rms"]}
    data = jaxstab.propagate(2, gain=gains, progress=False, **settings)
    assert data.attrs["programs"] == 1
    np.testing.assert_allclose(
        data.forward_rms.sel(gain="up", layer=2), data.forward_rms.sel(gain="down", layer=2)
    )
    np.testing.assert_allclose(
        4 * data.forward_rms.sel(gain="up", layer=1), data.forward_rms.sel(gain="down", layer=1)
    )


def test_sublayers_in_turn_are_attention_and_feed_forward():
    spec = Spec(kind="pre_ln", sublayers="alternate", tokens=3, depth=4, width=8, batch=2, heads=2)
    key = jax.random.key(3)
    walk = Walk(spec, HParams(), key)
    _, streams, seen = walk.forward()
    h = jax.random.normal(walk.input_key, spec.shape)
    for i in range(4):
        layer = walk.layers[i % 2]
        assert layer.sublayer == ("attention", "ffn")[i % 2]
        h = layer(walk.draw(layer, jnp.int32(i)), h, Numbers())
        np.testing.assert_allclose(seen["forward_rms"][i], np.sqrt(np.mean(h**2)), rtol=1e-5)
    np.testing.assert_allclose(streams["real"].state, h, rtol=1e-5, atol=1e-6)


def test_layers_of_ones_own_are_walked_in_turn():
    keep = ["forward_rms", "backward_rms", "weight_gradient_rms"]
    kinds = {"both": (Gated(16), Gated(16)), "one": Gated(16)}
    data = jaxstab.propagate(2, kind=kinds, depth=4, width=16, batch=2, keep=keep, progress=False)
    for name in keep:
        np.testing.assert_allclose(data[name].sel(kind="both"), data[name].sel(kind="one"), rtol=1e-4)


def test_names_may_stand_among_them():
    settings = {"depth": 4, "width": 16, "batch": 2, "activation": "relu", "sampler": "dense"}
    spec = Spec(kind=("plain", "residual", Gated(16), "normalized"), **settings)
    assert [type(layer).__name__ for layer in spec.layers] == ["Plain", "Residual", "Gated", "Normalized"]
    data = jaxstab.propagate(
        2, kind={"mixed": ("plain", "residual"), "plain": "plain"}, keep=["forward_rms"], **settings
    )
    np.testing.assert_array_equal(*data.forward_rms.sel(layer=1).values)
    assert (data.forward_rms.sel(layer=2, kind="mixed") > data.forward_rms.sel(layer=2, kind="plain")).all()


def test_each_layer_is_called_with_its_own_gain():
    @dataclasses.dataclass(frozen=True)
    class Scaled:
        def draw(self, key, numbers):
            return ()

        def __call__(self, params, state, numbers):
            return state * numbers.gain.astype(state.dtype)

    settings = {"depth": 2, "width": 8, "batch": 2, "keep": ["forward_rms", "backward_rms"]}
    data = jaxstab.propagate(1, kind={"own": Scaled()}, gain={"g": (2.0, 3.0)}, **settings)
    first, second = data.forward_rms.values.squeeze()
    np.testing.assert_allclose(second, 3 * first, rtol=1e-6)
    np.testing.assert_allclose(
        data.backward_rms.values.squeeze()[0], 3 * data.backward_rms.values.squeeze()[1]
    )


@pytest.mark.parametrize(("kernel", "padding"), [(3, "zero"), (3, "circular"), (2, "zero"), (1, "circular")])
def test_a_convolution_is_flaxs(kernel, padding):
    weights = Weights("kaiming_normal", kernel=kernel)
    (layer,) = make_layers("convolution", 5, "tanh", weights, padding=padding)
    params = layer.draw(jax.random.key(0), Numbers(sigma_b=0.3))
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, 5))
    flax = nn.Conv(5, (kernel, kernel), padding={"zero": "SAME", "circular": "CIRCULAR"}[padding])
    own = {"kernel": params["weight"].drawn.reshape(kernel, kernel, 5, 5), "bias": params["bias"]}
    np.testing.assert_allclose(
        layer(params, x, Numbers()), np.tanh(flax.apply({"params": own}, x)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("sampler", ["dense", "conditioned"])
@pytest.mark.parametrize("padding", ["zero", "circular"])
def test_images_darken_from_the_border_where_zeros_are_read(padding, sampler):
    settings = {
        "kind": "convolution",
        "activation": "relu",
        "init": "kaiming_normal",
        "depth": 4,
        "width": 48,
        "side": 4,
        "batch": 1,
        "padding": padding,
    }  # fmt: skip - a line each otherwise
    keep = ["forward_profile", "backward_rms"]
    data = jaxstab.propagate(150, sampler=sampler, **settings, keep=keep, progress=False)
    told = jaxstab.predict(**settings)
    assert_mean_matches(data.forward_profile**2, told.forward_profile**2)
    assert_mean_matches(squares(data, "backward_rms")[:, :-1], squares(told, "backward_rms")[:-1])
    np.testing.assert_allclose(
        told.forward_rms**2, (told.forward_profile**2).mean(("row", "column")), rtol=1e-9
    )
    with pytest.raises(AssertionError):  # of the dense map, or of the other padding
        assert_mean_matches(data.forward_profile**2, 1.0 if padding == "zero" else 0.7)


def test_an_image_of_a_delta_orthogonal_kernel_keeps_its_length():
    own = jax.nn.initializers.delta_orthogonal()
    data = jaxstab.propagate(
        2,
        kind="convolution",
        init={"delta": own},
        activation="linear",
        depth=30,
        width=8,
        batch=1,
        keep=["forward_rms", "backward_rms"],
        progress=False,
    )
    np.testing.assert_allclose(data.forward_rms.sel(layer=30), data.forward_rms.sel(layer=1), rtol=1e-4)
    np.testing.assert_allclose(data.backward_rms.sel(layer=1), data.backward_rms.sel(layer=30), rtol=1e-4)


def test_kinds_with_and_without_pixels_stand_in_one_sweep():
    settings = {"side": 3, "depth": 2, "width": 8, "batch": 2}
    data = jaxstab.propagate(2, kind=["plain", "convolution"], progress=False, **settings)
    assert data.forward_profile.sizes == {"kind": 2, "seed": 2, "layer": 2, "row": 3, "column": 3}
    assert np.isnan(data.forward_profile.sel(kind="plain")).all()
    assert np.isfinite(data.forward_profile.sel(kind="convolution")).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": {"w": (8, 4)}, "depth": 3}, r"width=\(8, 4\): 2 widths are 1 layers; give depth=1"),
        ({"width": {"w": (8, 0)}, "depth": 1}, r"width=\(8, 0\): at least 1"),
        (
            {"width": {"w": (8, 4)}, "depth": 1, "kind": "residual"},
            "kind='residual' wants one width. Choices",
        ),
        (
            {"width": {"w": (8, 4)}, "depth": 1, "init": "orthogonal", "sampler": "conditioned"},
            "draws orthogonal matrices that are square only",
        ),
        ({"gain": {"g": (1.0, 2.0)}, "depth": 3}, r"gain=\(1.0, 2.0\): 2 gains of layers, and depth=3"),
        (
            {"gain": {"g": (1.0, 2.0), "one": 1.0}, "depth": 2},
            "gain: configurations of one Spec hold one number and",
        ),
        ({"kind": "pre_ln", "sublayers": "alternate", "tokens": 2, "depth": 3}, "depth=3: a multiple of 2"),
        ({"kind": "pre_ln", "sublayers": "alternate", "depth": 2}, "attends to tokens: give tokens="),
        ({"kind": {"mine": (Gated(256), 3)}}, "kind=3: a name, or an object"),
        ({"kind": {"mine": ("plain", "convolution")}}, "'convolution'. .*Choices: plain, residual"),
        ({"kind": {"mine": ("plain", "lstm")}}, "a layer that is drawn once stands alone"),
        ({"kind": "convolution", "padding": "mirror"}, "padding 'mirror'. Choices: zero, circular"),
        ({"kind": "convolution", "kernel": 0}, "kernel=0: at least 1"),
        ({"kind": "convolution", "side": 2**14}, "of 16384 x 16384 pixels: a signal of"),
    ],
)  # fmt: skip - a case a line
def test_what_cannot_be_meant_is_named(settings, words):
    with pytest.raises(jaxstab.UsageError, match=words) as refusal:
        jaxstab.propagate(2, **{"depth": 2, "batch": 2} | settings)
    assert "\n" not in str(refusal.value)


def test_what_is_not_said_in_words_is_said_where_it_is_told():
    told = str(jaxstab.explain(kind="convolution"))
    assert told == "Of images theory is told layer by layer, by jaxstab.predict, and not in words."
    assert "differ in width or gain" in str(jaxstab.explain(gain=(1.0, 2.0), depth=2))
