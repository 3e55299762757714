"""Every kind of layer beside one written out in float64; all of it: `python -m experiments.benchmarks.layers`."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.benchmarks import layers as campaign
from experiments.benchmarks import layers_by_hand as by_hand
from jaxstab.formats import COMPUTED
from jaxstab.nets.layers import layer as layers
from jaxstab.nets.layers import register

CASES = {case.name: case for case in campaign.cases()}
PLAINEST = [name for name in CASES if name.endswith("dense, float32")]
SWEPT = [
    "post_ln, attention of 2, dense, float16", "pre_ln, in turn, dense, float64",
    "convolution, circular, conditioned, float32",
]  # fmt: skip
"""A few of the campaign's cases; it has them all."""


def test_no_kind_is_forgotten():
    assert set(by_hand.FORMULAS) == set(register.KINDS)
    assert {CASES[name].spec.kind for name in PLAINEST} == set(register.KINDS)
    refused = {kind for kind in register.KINDS if f"{kind}, conditioned" not in " ".join(CASES)}
    assert refused - set(register.ATTENDING) == set(register.REUSED)
    assert {case.spec.dtype for case in CASES.values()} == set(COMPUTED)


@pytest.mark.parametrize("name", SWEPT)
def test_a_stack_is_the_network_written_out(name):
    failed = [one for one in campaign.check(CASES[name], is_quick=True) if not one.passed]
    assert failed == []


@pytest.mark.parametrize("name", PLAINEST)
def test_a_layer_is_what_its_definition_says(name):
    case = CASES[name]
    spec, layer, numbers = case.spec, case.spec.layers[0], layers.Numbers(gain=1.3, **case.numbers)
    params = layer.draw(jax.random.key(1), numbers)
    x = jax.random.normal(jax.random.key(5), spec.shape)
    found = layers.end(layer, layer(params, layers.start(layer, x), numbers))
    wanted, _ = by_hand.walk(spec, numbers, [params], np.asarray(x, np.float64), None, np)
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)
    assert not np.allclose(found, 1.01 * wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", PLAINEST)
def test_it_is_homogeneous_where_it_says_so_and_its_gradients_are_differences(name):
    assert campaign.is_as_homogeneous_as_it_says(CASES[name])
    assert campaign.error_of_gradient(CASES[name]) < 1e-6
    says = layers.is_homogeneous(CASES[name].spec.layers[0])
    assert says == (CASES[name].spec.kind in ("plain", "residual", "recurrent", "convolution"))


def test_the_campaign_sees_what_it_is_there_for(monkeypatch):
    """A hundredth off, a flag that is missing, a layer that says what it is not."""
    case = CASES["plain, dense, float32"]
    whole = campaign.sweep(case)
    assert campaign.unlike_by_hand(case, whole) == campaign.unflagged(whole) == []
    wrong = campaign.unlike_by_hand(case, whole, factor=1.01)
    assert {"forward_rms", "backward_rms", "weight_gradient_rms", "log10_backward_rms"} <= set(wrong)
    none = whole.assign(first_bad_layer_forward=0 * whole.first_bad_layer_forward)
    assert {"forward_rms", "first_bad_layer_forward", "status"} <= set(campaign.unflagged(none))
    norm = CASES["normalized, dense, float32"]
    monkeypatch.setattr(type(norm.spec.layers[0]), "is_homogeneous", True)
    assert not campaign.is_as_homogeneous_as_it_says(norm)
