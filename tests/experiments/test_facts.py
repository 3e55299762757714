"""A few of the published simulations, measured again; all of them: `python -m experiments.benchmarks.facts`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstab
from experiments.benchmarks import facts
from experiments.benchmarks.published import facts as all_facts
from experiments.benchmarks.published import of_inputs
from experiments.benchmarks.stack_inputs import OneInput, from_inputs
from jaxstab.nets.layers.register import make_layers
from jaxstab.nets.weights import Weights

CHEAP = (
    "dropout 0.5, relu at its gain",
    "residual, two matrices, a = 1, b = 0.25",
    "pre_ln, relu, L = 12",
)


@pytest.mark.parametrize("case", CHEAP)
def test_a_published_simulation_is_measured_again(case):
    chosen = [fact for fact in all_facts() if fact.case == case]
    assert chosen
    runs = {}
    for fact in chosen:
        ours, error = facts.measure(fact, runs)
        assert facts.apart(fact, ours, error) < facts.MOST_APART, (fact.quantity, ours, error)
        off = fact._replace(
            simulated=fact.simulated + 6 * math.hypot(fact.error, error) * np.sign(fact.simulated - ours)
        )
        assert facts.apart(off, ours, error) > facts.MOST_APART
    assert len(list(facts.lines(chosen[:1]))) == 1


def test_the_gradient_of_the_inputs_goes_on_where_propagations_ends():
    """An orthogonal layer more keeps it."""
    settings = {"activation": "linear", "init": "orthogonal", "width": 16, "depth": 3, "batch": 2}
    whole = jaxstab.sweep(from_inputs, jaxstab.grid(**settings), 4, progress=False)
    layers = jaxstab.propagate(4, progress=False, **settings)
    np.testing.assert_allclose(of_inputs(whole), layers.backward_rms.sel(layer=1) ** 2, rtol=1e-4)


def test_one_input_stands_in_every_row():
    layer = OneInput(*make_layers("plain", 4, "relu", Weights("lecun_normal")))
    rows = layer.start(jax.random.normal(jax.random.key(0), (3, 4)))
    assert jnp.all(rows == rows[0])
