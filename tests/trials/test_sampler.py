"""How layers are drawn where nobody says: in law where that is exact and cheaper, one way for a whole sweep."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from samples import assert_same_law

import jaxstab
from jaxstab.trials.stack import FEW, Spec

SMALL = {"depth": 3, "width": 32, "batch": 4, "progress": False, "keep": ["forward_rms"]}


@pytest.mark.parametrize(
    ("settings", "is_in_law"),
    [
        ({}, True),
        ({"batch": 256 // FEW}, True),
        ({"batch": 256 // FEW + 1}, False),
        ({"tokens": 3}, False),
        ({"tokens": 2}, True),
        ({"init": "orthogonal"}, True),
        ({"init": "orthogonal", "width": (256, 300), "depth": 1}, False),
        ({"width": (256, 300), "depth": 1}, True),
        ({"init": "xavier_uniform"}, False),
        ({"init": np.zeros}, None),
        ({"kind": "residual"}, True),
        ({"kind": "attention", "tokens": 2}, True),
        ({"kind": "recurrent"}, False),
        ({"kind": "lstm"}, False),
        ({"kind": "convolution"}, False),
        ({"kind": "convolution", "side": 3, "batch": 2}, True),
        ({"dtype": "float16"}, False),
        ({"precision": "default"}, False),
        ({"sampler": "dense"}, False),
        ({"sampler": "conditioned", "batch": 64}, True),
    ],
)
def test_it_is_decided_by_what_the_spec_says(settings, is_in_law):
    if is_in_law is None:
        with pytest.raises(jaxstab.UsageError):
            Spec(**settings)
        return
    assert Spec(**settings).is_in_law == is_in_law


def test_what_nobody_chose_is_what_is_chosen_and_said():
    unsaid = jaxstab.propagate(3, **SMALL)
    assert unsaid.sampler.item() == "conditioned"
    asked = jaxstab.propagate(3, sampler="conditioned", **SMALL)
    assert unsaid.identical(asked)
    matrices = jaxstab.propagate(3, init="xavier_uniform", **SMALL)
    assert matrices.sampler.item() == "dense"
    assert matrices.identical(jaxstab.propagate(3, init="xavier_uniform", sampler="dense", **SMALL))


def test_one_configuration_that_cannot_decides_for_all():
    both = jaxstab.propagate(3, init=["xavier_normal", "xavier_uniform"], **SMALL)
    alone = jaxstab.propagate(3, init="xavier_normal", sampler="dense", **SMALL)
    assert both.sampler.item() == "dense"
    np.testing.assert_array_equal(both.forward_rms.sel(init="xavier_normal"), alone.forward_rms)


def test_a_store_says_it_and_is_the_same_sweep(tmp_path):
    data = jaxstab.propagate(3, store=tmp_path, **SMALL)
    assert jaxstab.open_store(tmp_path).sampler.item() == "conditioned"
    assert jaxstab.propagate(3, store=tmp_path, sampler="conditioned", **SMALL).identical(data)
    with pytest.raises(jaxstab.UsageError, match="holds another sweep"):
        jaxstab.propagate(3, store=tmp_path, sampler="dense", **SMALL)


def test_a_trial_called_by_hand_is_the_sweeps():
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), 2)
    sizes = {name: value for name, value in SMALL.items() if name in ("depth", "width", "batch")}
    by_hand = jax.jit(lambda key: jaxstab.propagation(key, **sizes))(key)
    np.testing.assert_allclose(
        jaxstab.propagate(3, **SMALL).forward_rms.sel(seed=2), by_hand["forward_rms"], rtol=1e-5
    )


def test_the_law_is_the_same():
    keep = ["log10_forward_rms", "log10_backward_rms"]
    settings = SMALL | {"activation": "relu", "keep": keep}
    unsaid, asked = jaxstab.propagate(400, **settings), jaxstab.propagate(400, sampler="dense", **settings)
    for name in keep:
        assert_same_law(unsaid[name].isel(layer=1), asked[name].isel(layer=1))
    with pytest.raises(AssertionError):
        assert_same_law(unsaid[keep[0]].isel(layer=1), 0.1 + asked[keep[0]].isel(layer=1))


@dataclasses.dataclass(frozen=True)
class Scaled:
    def draw(self, key, numbers):
        return jax.random.normal(key)

    def __call__(self, params, state, numbers):
        return params * state


def test_the_samplers_name_says_nothing_of_layers_of_ones_own():
    assert "sampler" not in jaxstab.propagate(1, kind={"mine": Scaled()}, **SMALL).coords
