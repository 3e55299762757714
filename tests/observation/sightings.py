"""What tests of observation hold against each other."""

from __future__ import annotations

import jax
import models
import numpy as np
from models import CASES

from jaxstab.observation import observe


def assert_close(wanted, found):
    """Within eight roundings of the largest entry."""
    assert jax.tree.structure(wanted) == jax.tree.structure(found)
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(float(np.abs(a).max()), 1e-3))


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
