"""Where values leave named scopes: the outputs of the parts of a function that calls no modules."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from jaxstab.observation.sites import Place


def is_seen(variable: Any) -> bool:
    """Whether a value has statistics: floating or complex, and not empty."""
    aval = variable.aval
    if not hasattr(aval, "dtype") or not hasattr(aval, "shape"):
        return False
    return jnp.issubdtype(aval.dtype, jnp.inexact) and 0 not in aval.shape


def kept_outputs(jaxpr: Jaxpr, places: list[Place], place: Place) -> list[tuple[bool, ...]]:
    """For each equation, which of its outputs are used other than by the backward pass.

    What only the backward pass uses are residuals of derivatives, which leave a scope without being its output.
    """
    needed = {
        v
        for v, keep in zip(jaxpr.outvars, place.kept or (True,) * len(jaxpr.outvars), strict=True)
        if keep and not isinstance(v, Literal)
    }
    for eqn, at in zip(jaxpr.eqns, places, strict=True):
        if not at.is_transposed or at.is_transposed == place.is_transposed:
            needed |= {v for v in eqn.invars if not isinstance(v, Literal)}
    return [
        tuple(at.is_transposed or v in needed for v in e.outvars)
        for e, at in zip(jaxpr.eqns, places, strict=True)
    ]


def leaving(jaxpr: Jaxpr, places: list[Place], place: Place) -> dict[int, list[tuple[tuple[str, ...], Any]]]:
    """Index of an equation -> (names of a scope, variable) for what leaves scopes there.

    A scope is a run of equations under one name, forward or backward; its outputs are what is used after the run.
    """
    kept = kept_outputs(jaxpr, places, place)
    last_use: dict[Any, int] = {v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, Literal)}
    for i, eqn in enumerate(jaxpr.eqns):
        for v in eqn.invars:
            if not isinstance(v, Literal):
                last_use[v] = max(i, last_use.get(v, -1))
    found: dict[int, list[tuple[tuple[str, ...], Any]]] = {}
    deepest = max((len(at.names) for at in places), default=0)
    for depth in range(len(place.names) + 1, deepest + 1):
        for start, stop in _runs(places, depth):
            for i in range(start, stop):
                for v, keep in zip(jaxpr.eqns[i].outvars, kept[i], strict=True):
                    if keep and not places[i].is_recomputed and is_seen(v) and last_use.get(v, -1) >= stop:
                        found.setdefault(i, []).append((places[i].names[:depth], v))
    return found


def _runs(places: list[Place], depth: int) -> list[tuple[int, int]]:
    """(first, one past the last) of every run of equations whose first `depth` names and direction agree."""
    runs, start = [], 0
    keys = [
        (at.names[:depth], at.is_transposed, at.is_recomputed) if len(at.names) >= depth else None
        for at in places
    ]
    for i in range(1, len(keys) + 1):
        if i == len(keys) or keys[i] != keys[start]:
            if keys[start] is not None:
                runs.append((start, i))
            start = i
    return runs
