"""What the way back of a walk keeps of the way there: no array twice, and nothing that is cheap to have again."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxstab.observation.walk import programs_in
from jaxstab.trials import walk
from jaxstab.trials.stack import HParams, Spec

BATCH, WIDTH, DEPTH = 4, 32, 7
SIGNAL, MATRIX = (BATCH, WIDTH), (WIDTH, WIDTH)
IN_LAW = ["the inputs' frame", "normals", "preactivations"]
HALF = {"dtype": "bfloat16"}


def kept(**settings):
    """(shape, dtype) of every array of a layer that the first scan hands to the second, signals and larger."""
    spec = Spec(depth=DEPTH, width=WIDTH, batch=BATCH, **settings)

    def there_and_back(key):
        own = walk.Walk(spec, HParams(), key)
        passages, streams, _ = own.forward()
        return own.backward(passages, streams)

    scan = next(e for e in equations(jax.make_jaxpr(there_and_back)(jax.random.key(0)).jaxpr) if is_there(e))
    stacked = [v.aval for v in scan.outvars[scan.params["num_carry"] :]]
    large = [(a.shape[1:], a.dtype) for a in stacked if a.size >= DEPTH * BATCH * WIDTH]
    return sorted((shape, str(dtype)) for shape, dtype in large)


def equations(jaxpr):
    for e in jaxpr.eqns:
        yield e
        for inner in programs_in(e):
            yield from equations(inner)


def is_there(e):
    return e.primitive.name == "scan" and e.params["length"] == DEPTH and not e.params["reverse"]


@pytest.mark.parametrize("kind", ["plain", "residual", "normalized"])
def test_of_a_layer_in_law_three_signals_are_kept(kind):
    assert kept(kind=kind, sampler="conditioned") == [(SIGNAL, "float32")] * len(IN_LAW)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_it_is_so_of_every_activation(activation):
    """Of the derivative of `jax.nn.relu` JAX would keep a mask and an array of zeros."""
    streams = 2 if activation == "relu" else 1  # another one's scale is carried apart
    found = kept(sampler="conditioned", activation=activation, init="kaiming_normal")
    assert found == [(SIGNAL, "float32")] * len(IN_LAW) * streams


def test_of_a_linear_layer_no_preactivation_is_kept():
    assert kept(sampler="dense", activation="linear") == [(SIGNAL, "float32")] * 2 + [(MATRIX, "float32")]


def test_a_matrix_is_kept_once_whatever_streams_read_it():
    assert kept(sampler="dense") == [(SIGNAL, "float32")] * 2 + [(MATRIX, "float32")]
    both = [(SIGNAL, dtype) for dtype in ("bfloat16", "float32") for _ in range(2)]
    assert kept(sampler="dense", **HALF) == [*both, (MATRIX, "float32")]


def test_a_matrix_kept_in_every_dtype_is_seen(monkeypatch):
    monkeypatch.setattr(walk, "without_draws", lambda pull: pull)
    assert kept(sampler="dense", **HALF).count((MATRIX, "bfloat16")) == 1


def test_large_draws_are_drawn_again(monkeypatch):
    monkeypatch.setattr(walk, "STORED_DRAWS_BYTES", 0)
    assert kept(sampler="dense") == [(SIGNAL, "float32")] * 2
    assert kept(sampler="conditioned") == [(SIGNAL, "float32")]  # walked again from its inputs


@pytest.mark.parametrize(("sampler", "dtype"), [("dense", "bfloat16"), ("conditioned", "float32")])
def test_what_is_kept_does_not_change_what_is_found(monkeypatch, sampler, dtype):
    spec = Spec(depth=3, width=WIDTH, batch=BATCH, sampler=sampler, dtype=dtype)

    @jax.jit
    def found(key):
        own = walk.Walk(spec, HParams(), key)
        return own.backward(*own.forward()[:2])

    stored = found(jax.random.key(1))
    monkeypatch.setattr(walk, "STORED_DRAWS_BYTES", 0)
    found.clear_cache()
    again = found(jax.random.key(1))
    for name, value in stored.items():
        eps = float(jnp.finfo(dtype).eps)
        assert jnp.allclose(value, again[name], rtol=8 * eps, atol=1e-5), name
