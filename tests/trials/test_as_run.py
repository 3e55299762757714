"""Specs that differ by a number alone are run by one program, to the last bit."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import jaxstab
from jaxstab.nets.weights import GAUSSIAN
from jaxstab.trials import stack
from jaxstab.trials.stack import HParams, Spec

SMALL = {"depth": 3, "width": 12, "batch": 2}
KEEP = ["forward_rms", "weight_gradient_rms"]


def propagate(**axes):
    return jaxstab.propagate(3, keep=KEEP, progress=False, **SMALL | axes)


@pytest.mark.parametrize("sampler", ["dense", "conditioned"])
def test_gaussian_schemes_are_one_program_and_keep_their_bits(monkeypatch, sampler):
    axes = {"init": list(GAUSSIAN), "gain": [0.3, 1.7], "sampler": sampler, "sigma_b": 0.1}
    compiled = []
    listen = lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    shared = propagate(**axes)
    assert shared.attrs["programs"] == len(compiled) == 1
    monkeypatch.delattr(stack.Spec, "as_run")
    apart = propagate(**axes)
    assert apart.attrs["programs"] == len(GAUSSIAN)
    assert shared.drop_attrs().identical(apart.drop_attrs())


def test_a_scheme_in_place_of_another_is_seen():
    one, other = (propagate(init=init) for init in ("kaiming_normal", "lecun_normal"))
    assert not np.allclose(one.forward_rms, other.forward_rms, rtol=0.05)


@pytest.mark.parametrize(
    "settings",
    [
        {"init": "xavier_uniform"}, {"init": "orthogonal"}, {"init": "torch_default"}, {"init": "normal"},
        {"init": jax.nn.initializers.lecun_normal()}, {"width": (8, 8, 8, 8)},
    ],
)  # fmt: skip
def test_other_specs_run_themselves(settings):
    spec, numbers = Spec(**SMALL | settings), HParams(gain=np.float32(0.7))
    assert spec.as_run(numbers) == (spec, numbers)


def test_gains_by_layer_and_patches_are_scaled_by_their_own_fan():
    layers = Spec(**SMALL, init="kaiming_normal").as_run(HParams(gain=(1.0, 2.0, 3.0)))[1].gain
    np.testing.assert_allclose(layers, np.array([1, 2, 3]) * np.sqrt(2 / 12), rtol=1e-6)
    image = dataclasses.replace(Spec(**SMALL, init="lecun_normal"), kind="convolution", kernel=3)
    np.testing.assert_allclose(image.as_run(HParams())[1].gain, (9 * 12) ** -0.5, rtol=1e-6)
