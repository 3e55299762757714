"""Sweeps: how often they compile, what they return, what they refuse, that cutting them changes no bit."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import jaxstab

SMALL = {"depth": 6, "width": 16, "batch": 4}


class Compilations:
    """Programs that XLA compiled while this was active."""

    def __enter__(self):
        self.count, self.active = 0, True
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def _listen(self, event: str, duration: float, **_) -> None:
        if self.active and event == "/jax/core/compile/backend_compile_duration":
            self.count += 1

    def __exit__(self, *_):
        self.active = False


def test_one_compilation_for_each_spec_whatever_the_seeds_and_gains():
    gains = np.linspace(0.5, 2.5, 64)
    with Compilations() as first:
        jaxstab.propagate(
            seeds=100, activation=["tanh", "relu", "gelu"], gain=gains, keep=["forward_rms"], **SMALL
        )
    assert first.count == 3
    with Compilations() as second:
        jaxstab.propagate(
            seeds=7, activation=["relu", "tanh"], gain=[1.0, 3.0], keep=["forward_rms"], **SMALL
        )
    assert second.count == 0


def test_the_compilation_counter_counts():
    with Compilations() as counter:
        jax.jit(lambda x: x * 3.25)(jnp.arange(5))
    assert counter.count >= 1


def test_dimensions_coordinates_and_padding():
    data = jaxstab.propagate(
        seeds=[5, 3],
        depth=[2, 4],
        gain=np.float32([0.5, 1.5]),
        activation="relu",
        width=8,
        batch=2,
        keep=["forward_rms"],
    )
    assert dict(data.sizes) == {"depth": 2, "gain": 2, "seed": 2, "layer": 4}
    assert data.forward_rms.dims == ("depth", "gain", "seed", "layer")
    assert data.status.dims == ("depth", "gain", "seed")
    assert data.seed.values.tolist() == [5, 3]
    assert data.layer.values.tolist() == [1, 2, 3, 4]
    assert data.activation.item() == "relu"
    assert data.gain.values.tolist() == [0.5, 1.5]
    assert np.isnan(data.forward_rms.sel(depth=2, layer=[3, 4])).all()
    assert np.isfinite(data.forward_rms.sel(depth=2, layer=[1, 2])).all()
    assert np.isfinite(data.forward_rms.sel(depth=4)).all()


def test_a_seed_is_the_same_network_whatever_stands_beside_it():
    many = jaxstab.propagate(seeds=9, gain=[0.7, 1.1, 1.9], **SMALL)
    one = jaxstab.propagate(seeds=[4], gain=1.1, **SMALL)
    for name in many.data_vars:
        np.testing.assert_array_equal(
            many[name].sel(gain=1.1, seed=4), one[name].sel(seed=4), err_msg=str(name)
        )


@pytest.mark.parametrize("sampler", ["dense", "conditioned"])
def test_devices_and_chunks_change_no_bit(sampler):
    settings = {"seeds": 37, "gain": [0.8, 1.6], "tile": 4, "sampler": sampler, **SMALL}
    settings["keep"] = ["forward_rms", "backward_rms", "weight_gradient_rms"]
    whole = jaxstab.propagate(devices=1, **settings)
    for devices in (3, 8):
        xr.testing.assert_identical(jaxstab.propagate(devices=devices, **settings), whole)


def test_keep_computes_no_more_than_asked():
    data = jaxstab.propagate(seeds=3, keep=["forward_rms"], **SMALL)
    assert set(data.data_vars) == {"forward_rms", "status"}
    whole = jaxstab.propagate(seeds=3, **SMALL)
    np.testing.assert_allclose(data.forward_rms, whole.forward_rms, rtol=1e-5)


def test_a_diverged_lane_changes_no_bit_of_another():
    @jaxstab.family(dims={"x": ("step",)})
    def iterate(key, *, factor: float):
        start = jax.random.normal(key, (8,))
        return {"x": jax.lax.scan(lambda x, _: (jnp.tanh(x) * factor, x.sum()), start, length=20)[1]}

    healthy = jaxstab.sweep(iterate, jaxstab.grid(factor=[1.5]), seeds=1)
    for bad in (1, 32, 63):
        factors = [np.nan] * bad + [1.5] * (64 - bad)
        mixed = jaxstab.sweep(iterate, jaxstab.zipped(factor=factors), seeds=1)
        assert mixed.status.values[:, 0].tolist() == [1] * bad + [0] * (64 - bad)
        np.testing.assert_array_equal(mixed.x[bad:, 0], np.broadcast_to(healthy.x[0, 0], (64 - bad, 20)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activation": "rlu"}, ["'rlu'", "'relu'", "tanh"]),
        ({"init": "javier"}, ["'javier'", "xavier_normal"]),
        ({"kind": "deep"}, ["'deep'", "residual"]),
        ({"dtype": "float8"}, ["'float8'", "bfloat16"]),
        ({"gian": 1}, ["'gian'", "'gain'", "width"]),
        ({"depth": 0}, ["depth=0", "1"]),
        ({"batch": -2}, ["batch=-2"]),
        ({"gain": "big"}, ["gain='big'", "number"]),
        ({"gain": [1.0, None]}, ["gain", "None"]),
        ({"sigma_b": -0.1}, ["sigma_b=-0.1"]),
        ({"seeds": [3, 3]}, ["3 repeats"]),
        ({"seeds": 0}, ["seeds=0"]),
        ({"keep": ["forward_rsm"]}, ["'forward_rsm'", "'forward_rms'"]),
        ({"keep": "forward_rms"}, ["keep=['forward_rms']"]),
        ({"tile": 0}, ["tile=0"]),
        ({"devices": 99}, ["devices=99", "8"]),
        ({"sampler": "conditioned", "init": "xavier_uniform"}, ["'xavier_uniform'", "xavier_normal", "orthogonal"]),
        ({"sampler": "conditioned", "kind": "lstm"}, ["'lstm'", "residual"]),
    ],
)  # fmt: skip  # a refusal a line
def test_bad_input_is_refused_in_one_line_before_anything_is_compiled(settings, words):
    with Compilations() as compilations, pytest.raises(jaxstab.UsageError) as caught:
        jaxstab.propagate(**({"seeds": 2} | settings))
    assert compilations.count == 0
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_is_no_family_or_space_is_refused():
    sweep = inspect.unwrap(jaxstab.sweep)  # without the tests' own check of annotations
    with pytest.raises(jaxstab.UsageError, match="family"):
        sweep(print, jaxstab.grid(a=1), seeds=1)
    with pytest.raises(jaxstab.UsageError, match="space"):
        sweep(jaxstab.propagation, {"gain": [1]}, seeds=1)


def test_an_output_with_axes_that_nobody_named_is_refused():
    @jaxstab.family
    def unnamed(key, *, x: float = 1.0):
        return {"y": jnp.zeros(3) + x}

    with pytest.raises(jaxstab.UsageError, match="'y'"):
        jaxstab.sweep(unnamed, jaxstab.grid(x=[1.0]), seeds=1)
