"""Findings of random numbers that a forward pass draws."""

from __future__ import annotations

from collections.abc import Iterator

from jax.extend.core import Jaxpr

from jaxstab.diagnosis.evidence import Evidence
from jaxstab.diagnosis.findings import Finding
from jaxstab.observation.marks import FORWARD
from jaxstab.observation.sites import Place
from jaxstab.observation.walk import programs_in, source_of

DRAWS = frozenset({"random_bits", "random_gamma", "rng_bit_generator", "rng_uniform"})
"""Primitives that draw numbers; those of split and fold_in make keys alone."""


def random(evidence: Evidence) -> Iterator[Finding]:
    """One note of what draws numbers in the forward pass, by the first place that does."""
    places = list(dict.fromkeys(_draws(evidence.flow.root.jaxpr, Place())))
    if not places or evidence.subject.is_training:
        return
    path, source = places[0]
    others = f", as do others ({len(places) - 1} more)" if len(places) > 1 else ""
    yield Finding(
        "random", "note", path, source, f"draws random numbers in the forward pass{others}",
        "nothing in training; in evaluation switch it off (deterministic=True, train=False, model.eval())", "",
        FORWARD,
    )  # fmt: skip


def _draws(jaxpr: Jaxpr, place: Place) -> Iterator[tuple[str, str]]:
    """(path, source) of what draws, in the order of the program."""
    for i, eqn in enumerate(jaxpr.eqns):
        here = place.at(eqn, i)
        if here.is_transposed or here.is_recomputed:
            continue
        if eqn.primitive.name in DRAWS:
            yield "/".join(here.names), source_of(here)
        for inner in programs_in(eqn):
            yield from _draws(inner, here)
