"""What tests of observation hold against each other."""

from __future__ import annotations

import jax
import models
import numpy as np
from models import CASES

from jaxstab.observation import observe, stepwise


def assert_close(wanted, found):
    """Within eight roundings of the largest entry, in every array; what cancels has those of what it is made of."""
    assert jax.tree.structure(wanted) == jax.tree.structure(found)
    sizes = [float(np.abs(a).max()) for a in jax.tree.leaves(wanted)]
    for a, b, size in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), sizes, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(size, 1e-2 * max(sizes)))


def assert_same_bits(wanted, found):
    """The same structure, dtypes and bits."""
    assert jax.tree.structure(wanted) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def rows(seen, direction="forward", **where):
    """path -> rms over iterations, of one direction."""
    frame = seen.to_pandas()
    for name, value in {"direction": direction, **where}.items():
        frame = frame[frame[name] == value]
    return {path: part["rms"].to_numpy() for path, part in frame.groupby("path")}


def observed(case, **options):
    loss, params = CASES[case]()
    return jax.jit(observe(jax.value_and_grad(loss), **options))(params, models.inputs())


def rms(x):
    return np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))


def plant(monkeypatch, module, name, planted):
    """Another function in a module's place, in what is traced from now on: nothing that was traced before serves."""
    monkeypatch.setattr(module, name, planted)
    monkeypatch.setattr(stepwise, "_traced", lambda function: function)
