"""A lane is traced once, and what runs is what was hashed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstab
from jaxstab.engine.lane import Arguments, keeping, trace


def counted():
    """A family, and how often its function was called."""
    calls = []

    @jaxstab.family(dims={"path": ("step",)})
    def walk(key, *, steps: int = 4, drift: float = 0.0):
        calls.append(steps)
        path = jnp.cumsum(drift + jax.random.normal(key, (steps,)))
        return {"path": path, "last": path[-1], "worst": jnp.abs(path).max()}

    return walk, calls


def test_every_spec_is_traced_once_whatever_is_kept_stored_and_run_again(tmp_path):
    walk, calls = counted()
    space = jaxstab.grid(steps=[3, 5], drift=[0.0, 1.0])
    jaxstab.sweep(walk, space, 4)
    jaxstab.sweep(walk, space, 4, keep=["last"])
    jaxstab.sweep(walk, space, 300, keep=["last"], store=tmp_path, devices=1)
    jaxstab.sweep(walk, space, 4, tile=2)
    assert sorted(calls) == [3, 5]


def test_another_configuration_of_jax_is_another_trace():
    walk, calls = counted()
    jaxstab.sweep(walk, jaxstab.grid(steps=3), 2)
    with jax.default_matmul_precision("highest"):
        jaxstab.sweep(walk, jaxstab.grid(steps=3), 2)
    assert len(calls) == 2


def lane_of(family, steps: int = 4):
    spec, hparams = family.configure({"steps": steps})
    columns = jax.tree.map(lambda x: np.array([x]), hparams)
    return trace(family, spec, Arguments.of(columns, ())), jax.tree.map(np.float32, columns)


def test_a_lane_is_the_trial_on_its_seeds_key():
    walk, _ = counted()
    lane, hparams = lane_of(walk)
    own = keeping(lane, ("last",))
    found = own(jnp.uint32(7), jax.tree.map(lambda x: x[0], hparams))
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), 7)
    assert {*found} == {"last", "status"} == {*own.outputs}
    np.testing.assert_allclose(found["last"], walk(key)["last"], rtol=1e-6)


def test_the_digest_is_of_the_program_that_runs_and_of_nothing_that_is_not_kept():
    def make(factor, other):
        @jaxstab.family(dims={"path": ("step",)})
        def walk(key, *, steps: int = 4, drift: float = 0.0):
            path = jnp.cumsum(drift + jax.random.normal(key, (steps,)))
            return {"last": factor * path[-1], "unwanted": other * path[0], "status": jnp.int8(0)}

        lane, hparams = lane_of(walk)
        return keeping(lane, ("last",)).digest(4, hparams, ())

    assert make(2.0, 1.0) == make(2.0, 3.0) != make(3.0, 1.0)


@pytest.mark.parametrize("tile", [1, 3])
def test_a_tile_is_its_lanes(tile):
    walk, _ = counted()
    lane, hparams = lane_of(walk)
    drifts = jax.tree.map(lambda x: jnp.arange(tile, dtype=jnp.float32) + x[0], hparams)
    whole = lane.of_tile(jnp.arange(tile, dtype=jnp.uint32), drifts)
    for i in range(tile):
        one = lane(jnp.uint32(i), jax.tree.map(lambda x, i=i: x[i], drifts))
        np.testing.assert_allclose(whole["path"][i], one["path"], rtol=1e-5, atol=1e-6)
