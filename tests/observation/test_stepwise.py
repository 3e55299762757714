"""Equation by equation a program does what it does as one, and alike equations share what was compiled."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import halves
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstab
from experiments.benchmarks.contract import count_compilations
from jaxstab.formats import format_of
from jaxstab.observation.stepwise import Stepwise
from jaxstab.observation.transform import see, trace
from jaxstab.observation.whatif import rehearse

F16 = format_of("float16")


def branches(v, x):
    """A cond and a while loop."""
    x = jax.lax.cond(x.sum() > 1e9, jnp.exp, lambda x: x @ v, x)
    return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.tanh(s[1])), (0, x))[1]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.silu(nn.Dense(8)(nn.LayerNorm()(x))), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.remat(Layer, prevent_cse=False)
        return nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(x, None)[
            0
        ]


def step(v, x):
    return jax.value_and_grad(lambda v: jnp.mean(Scanned().apply(v, x) ** 2))(v)


X = jax.random.normal(jax.random.key(0), (4, 8))
CASES = {
    "mlp": (halves.step("mlp"), lambda: (halves.draw("mlp", 1), halves.inputs("mlp"))),
    "scanned": (step, lambda: (Scanned().init(jax.random.key(1), X), X)),
    "branches": (branches, lambda: (jnp.eye(8), jnp.ones((4, 8)))),
}


@pytest.mark.parametrize("case", CASES)
def test_a_format_s_run_is_that_of_one_program(case):
    f, make = CASES[case]
    args = make()
    _, twin = jax.jit(jaxstab.what_if(f, "float16"))(*args)
    closed, arrays, _ = trace(f, args, {})
    _, rounded, seen = rehearse(closed, arrays, F16, "float16", Stepwise())
    assert seen.sites == twin.seen.sites
    for one, other in zip(jax.tree.leaves(twin.outputs), rounded, strict=True):
        np.testing.assert_allclose(other, one, rtol=2e-2, atol=2e-3)
    for one, other in zip(twin.seen.values, seen.values, strict=True):
        np.testing.assert_allclose(other[..., :3], one[..., :3], rtol=2e-2, atol=1e-4)


def test_calls_are_seen_as_in_one_program():
    f, make = CASES["scanned"]
    args = make()
    outputs, one = jax.jit(jaxstab.observe(f))(*args)
    closed, arrays, _ = trace(f, args, {})
    found, other = see(closed, arrays, one.statistics, runner=Stepwise())
    same = [[dataclasses.replace(s, call=0) for s in seen.sites] for seen in (one, other)]
    assert same[0] == same[1]
    for a, b in zip([*jax.tree.leaves(outputs), *one.values], [*found, *other.values], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)


def chain(v, x, depth):
    for _ in range(depth):
        x = jnp.tanh(x @ v)
    return jnp.sum(x)


def test_more_layers_of_one_kind_compile_nothing_more():
    v, x = jnp.eye(24), jnp.ones((5, 24))
    closed = {depth: trace(lambda v, x, d=depth: jax.grad(chain)(v, x, d), (v, x), {}) for depth in (2, 3, 9)}

    def run(depth):
        program, arrays, _ = closed[depth]
        rehearse(program, arrays, F16, "float16", Stepwise())

    assert count_compilations(lambda: run(2)) > 5
    run(3)  # its middle layer adds up gradients, as all of those to come do
    assert count_compilations(lambda: run(9)) == 0


def test_a_loop_is_compiled_once_for_all_runs():
    f, make = CASES["scanned"]
    args = make()
    closed, arrays, _ = trace(f, args, {})
    runner = Stepwise()
    rehearse(closed, arrays, F16, "half", runner)
    other = format_of("bfloat16")
    assert count_compilations(lambda: rehearse(closed, arrays, other, "half", runner)) == 0
