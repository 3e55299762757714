"""Findings of scales that grow or shrink with depth, or from step to step of a recurrent network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxstab.diagnosis.evidence import Evidence
from jaxstab.diagnosis.findings import Finding
from jaxstab.diagnosis.layers import field
from jaxstab.observation.marks import BACKWARD, FORWARD

OCTAVES = 7.0
"""Growth over all layers from which it is told."""
FEWEST = 6
"""Layers that make a trend."""


class Levels(NamedTuple):
    """log2 of the rms from layer to layer, (seed, layer): calls in order, or the iterations of a scan."""

    name: str
    values: np.ndarray
    source: str
    is_time: bool
    """Whether all of them share their parameters: the steps of a recurrent network."""


def trends(evidence: Evidence) -> Iterator[Finding]:
    """Scales that grow or shrink from layer to layer: one finding for the signal and one for the gradient."""
    for direction in (FORWARD, BACKWARD):
        groups = [one for one in _groups(evidence, direction) if one.values.shape[1] >= FEWEST]
        found = [(one, t) for one in groups if (t := _trend(one.values)) is not None]
        if found:
            levels, (slope, total) = max(found, key=lambda f: (f[0].values.shape[1], -len(f[0].name)))
            yield _trend_said(levels, slope, total, direction)


def _groups(evidence: Evidence, direction: str) -> Iterator[Levels]:
    calls: dict[str, list[int]] = {}
    lengths = _stacked_lengths(evidence)
    for i, site in enumerate(evidence.calls.sites):
        if site.direction != direction or site.in_while or site.branch:
            continue
        if site.loops:
            values = _log2(field(evidence, i, "rms")).reshape(evidence.seeds, -1)
            yield Levels(site.path, values, site.source, site.loops not in lengths)
        else:
            calls.setdefault(re.sub(r"\d+", "*", site.path), []).append(i)
    for pattern, members in calls.items():
        ordered = members if direction == FORWARD else members[::-1]
        values = np.stack([_log2(field(evidence, i, "rms")) for i in ordered], axis=1)
        yield Levels(pattern, values, evidence.calls.sites[members[0]].source, is_time=False)


def _stacked_lengths(evidence: Evidence) -> set[tuple[int, ...]]:
    """Loops whose iterations have parameters of their own, by their lengths."""
    found = set()
    for site in evidence.any_run.seen.sites:
        if site.loops and site.kind in ("dot_general", "conv_general_dilated"):
            variables = evidence.flow.equation(site.position).invars
            for v, origins in zip(variables, evidence.sources(site, (0,) * len(site.loops)), strict=True):
                given = [o.position[0] for o in origins if o.kind == "argument"]
                if any(
                    k < len(evidence.parameters) and evidence.arguments[k].ndim > len(v.aval.shape)
                    for k in given
                ):
                    found.add(site.loops)
    return found


def _log2(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log2(x)


def _trend(levels: np.ndarray) -> tuple[float, float] | None:
    """(octaves a layer, octaves in all) of the median over seeds, if it is a straight line and a steep one."""
    middle = np.median(levels, axis=0)
    good = np.isfinite(middle)
    if good.sum() < FEWEST:
        return None
    at, y = np.flatnonzero(good), middle[good]
    slope = np.polyfit(at, y, 1)[0]
    straight = abs(np.corrcoef(at, y)[0, 1]) > 0.9 if np.ptp(y) > 0 else False
    total = y[-1] - y[0]
    return (float(slope), float(total)) if straight and abs(total) > OCTAVES else None


def _trend_said(levels: Levels, slope: float, total: float, direction: str) -> Finding:
    backward, count = direction == BACKWARD, levels.values.shape[1]
    slope, total = (-slope, -total) if backward else (slope, total)
    kind = ("gradient " if backward else "signal ") + ("explodes" if slope > 0 else "vanishes")
    one, back = ("step", " back in time") if levels.is_time else ("layer", " towards the input")
    told = f"x{2**slope:.3g} a {one}{back if backward else ''}, x{2**total:.3g} over {count} {one}s"
    if levels.is_time:
        gravity = "warning" if slope > 0 else "note"  # every recurrent network forgets
        remedy = "an orthogonal recurrent matrix, gates that begin open (a forget bias of 1), or fewer steps"
    else:
        gravity = "warning"
        remedy = (
            f"multiply the gain of the initializer by {2**-slope:.3g} (see jaxstab.gain of the activation), or"
            " normalize (a norm in each block, residual branches scaled by 1/sqrt(depth))"
        )
    return Finding(kind, gravity, levels.name, levels.source, told, remedy, "", direction)
