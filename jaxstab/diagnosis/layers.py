"""Findings from calls: growth and decay with depth, what gets no gradient, what is dead or all alike."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxstab.diagnosis.evidence import STATISTICS, Evidence
from jaxstab.diagnosis.findings import Finding, number
from jaxstab.observation.marks import BACKWARD, FORWARD
from jaxstab.observation.twins import NORMALIZATIONS

FIELD = {name: k for k, name in enumerate(STATISTICS)}
OCTAVES = 7.0
"""Growth over all layers from which it is told."""
FEWEST = 6
"""Layers that make a trend."""
ALIKE = {"unit_spread": 1e-5, "sample_spread": 1e-3}


def _field(evidence: Evidence, i: int, name: str) -> np.ndarray:
    return evidence.calls.values[i][..., FIELD[name]]


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
            values = _log2(_field(evidence, i, "rms")).reshape(evidence.seeds, -1)
            yield Levels(site.path, values, site.source, site.loops not in lengths)
        else:
            calls.setdefault(re.sub(r"\d+", "*", site.path), []).append(i)
    for pattern, members in calls.items():
        ordered = members if direction == FORWARD else members[::-1]
        values = np.stack([_log2(_field(evidence, i, "rms")) for i in ordered], axis=1)
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


def cut_off(evidence: Evidence, ignore: Collection[str]) -> Iterator[Finding]:
    """Parameters that get no gradient in any seed though everything is finite."""
    if not all(np.all(np.isfinite(g)) for g in evidence.gradients):
        return
    silent = [n for n, g in zip(evidence.parameters, evidence.gradients, strict=True) if not np.any(g)]
    silent = [n for n in silent if not any(is_under(n, path) for path in ignore)]
    fed = _fed_zeros(evidence, silent)
    for name in dict.fromkeys(fed.values()):
        own = [n for n in silent if fed.get(n) == name]
        yield Finding(
            "cut off from the loss", "grave", name, "",
            f"{name} is 0 in every entry: what multiplies it gets no gradient ({_listed(own)})",
            "pass numbers as they come in training", "", BACKWARD,
        )  # fmt: skip
    silent = [n for n in silent if n not in fed]
    heard = {n.rsplit("/", 1)[0] for n in evidence.parameters if n not in silent and "/" in n}
    late = [n for n in silent if n in evidence.revived]
    useless = [n for n in silent if n not in late and "/" in n and n.rsplit("/", 1)[0] in heard]
    cut = [n for n in silent if n not in late and n not in useless]
    if cut:
        path, source, told = _boundary(evidence)
        yield Finding(
            "cut off from the loss", "grave", path or cut[0], source,
            f"{len(cut)} of {len(evidence.parameters)} parameters have the gradient 0 in all seeds"
            f" ({_listed(cut)}){told}",
            "look for stop_gradient, argmax, rounding, a dead activation or an output that is not used behind it;"
            " name what is frozen on purpose in ignore=[...]", "", BACKWARD,
        )  # fmt: skip
    for names, what, remedy in (
        (
            useless,
            "has no effect",
            "drop it: what follows takes it out again (a mean that is subtracted, a softmax)",
        ),
        (
            late,
            "gets no gradient in the first step",
            "nothing, if it is meant: a factor behind it begins at 0",
        ),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield Finding(
                "silent parameter", "note", names[0], "", f"{names[0]}{more} {what}", remedy, "", BACKWARD
            )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _fed_zeros(evidence: Evidence, silent: Collection[str]) -> dict[str, str]:
    """Silent parameter -> the input that it multiplies, where that is zero throughout."""
    empty = {
        k for k, (name, x) in enumerate(zip(evidence.names, evidence.arguments, strict=True))
        if name.startswith("input") and np.issubdtype(x.dtype, np.floating) and x.size and not np.any(x)
    }  # fmt: skip
    found = {}
    for site in evidence.any_run.seen.sites if empty and silent else ():
        if site.kind in ("dot_general", "conv_general_dilated") and site.direction == FORWARD:
            sources = evidence.sources(site, (0,) * len(site.loops))
            read = [o.position[0] for origins in sources for o in origins if o.kind == "argument"]
            given = [evidence.names[k] for k in read if k in empty]
            found |= {evidence.names[k]: given[0] for k in read if given and evidence.names[k] in silent}
    return found


def is_under(name: str, path: str) -> bool:
    return name == path or name.startswith(path.rstrip("/") + "/")


def _boundary(evidence: Evidence) -> tuple[str, str, str]:
    """(path, source, what to add) of the last call that gets no gradient, or of the one behind it that kills it."""
    sites = evidence.calls.sites
    alive = {
        s.path
        for i, s in enumerate(sites)
        if s.direction == BACKWARD and np.any(_field(evidence, i, "absmax") > 0)
    }
    calls = [i for i, s in enumerate(sites) if s.direction == FORWARD and s.kind not in ("scope", "mark")]
    calls = calls or [i for i, s in enumerate(sites) if s.direction == FORWARD]
    leaves = [i for i in calls if not any(sites[j].path.startswith(sites[i].path + "/") for j in calls)]
    dead = [n for n, i in enumerate(leaves) if sites[i].path not in alive]
    if not dead:
        return "", "", ""
    empty = [sites[leaves[n]] for n in dead if _has_only_zeros(evidence, sites[leaves[n]].path)]
    if empty:
        return empty[0].path, empty[0].source, f"; all weights of {empty[0].path} are 0"
    zeros = [n for n in dead if not np.any(_field(evidence, leaves[n], "absmax"))]
    if zeros and dead[-1] in zeros and zeros[0] > 0:
        before, first = sites[leaves[zeros[0] - 1]], sites[leaves[zeros[0]]]
        if first.kind in NORMALIZATIONS:
            return first.path, first.source, f"; {first.path} returns zeros alone"
        told = f"; nothing of what {before.path} returns reaches {first.path}, which returns zeros"
        return before.path, before.source, told
    last = sites[leaves[dead[-1]]]
    told = f"; the last call without one is {last.path}"
    if dead[-1] + 1 < len(leaves):
        behind = leaves[dead[-1] + 1]
        if sites[behind].kind in NORMALIZATIONS and not np.any(_field(evidence, behind, "absmax")):
            return sites[behind].path, sites[behind].source, f"; {sites[behind].path} returns zeros alone"
    return last.path, last.source, told


def _has_only_zeros(evidence: Evidence, path: str) -> bool:
    """Whether the weights of a call, its parameters of two dimensions or more, are all zero."""
    owned = zip(evidence.parameters, evidence.arguments, strict=False)
    weights = [
        w
        for n, w in owned
        if w.ndim >= 2 and path.endswith("/" + n.removesuffix("/value").rpartition("/")[0])
    ]
    return bool(weights) and not any(map(np.any, weights))


def alike(evidence: Evidence) -> Iterator[Finding]:
    """Units or samples that are all the same, units that are dead, normalizations that leave nothing."""
    sites = evidence.calls.sites
    forward = [i for i, s in enumerate(sites) if s.direction == FORWARD]
    leaves = [i for i in forward if not any(sites[j].path.startswith(sites[i].path + "/") for j in forward)]
    for name, limit in ALIKE.items():
        if name == "sample_spread" and _inputs_alike(evidence):
            continue
        for i in leaves:
            spread, size = _median(_field(evidence, i, name)), _median(_field(evidence, i, "rms"))
            if np.isfinite(size) and size > 0 and spread < limit and len(sites[i].shape) >= 2:
                yield _alike_said(sites[i], name, spread)
                break
    for i in leaves:
        if sites[i].kind in NORMALIZATIONS and not np.any(_field(evidence, i, "absmax")):
            yield Finding(
                "normalized away", "warning", sites[i].path, sites[i].source,
                f"returns zeros alone from {'x'.join(map(str, sites[i].shape))}: its statistics are over one sample",
                "give it more samples, or use LayerNorm or GroupNorm", "", FORWARD,
            )  # fmt: skip
            break
    for i, site in reversed(
        [*enumerate(sites)]
    ):  # the first layer that is: those after it get too little of it
        if site.direction != BACKWARD or len(site.shape) < 2 or np.prod(site.shape[:-1]) < 16:
            continue
        share = _median(_field(evidence, i, "dead_units"))
        if 0.5 < share < 1 and np.any(_field(evidence, i, "absmax")):
            yield Finding(
                "dead units", "warning", site.path, site.source,
                f"{share:.0%} of its units get no gradient from any of {site.shape[0]} samples",
                "a smaller bias or learning rate, another gain, or an activation that never is flat (leaky_relu, gelu)",
                "", BACKWARD,
            )  # fmt: skip
            break


def _median(x: np.ndarray) -> float:
    return float(np.median(np.asarray(x, np.float64)))


def _inputs_alike(evidence: Evidence) -> bool:

    leaves = [
        np.asarray(x) for x in jax.tree.leaves(evidence.subject.inputs) if hasattr(x, "ndim") and x.ndim
    ]
    return bool(leaves) and all(len(x) < 2 or np.all(x == x[:1]) for x in leaves)


def _alike_said(site: object, name: str, spread: float) -> Finding:
    units = name == "unit_spread"
    told = f"its {'units' if units else 'samples'} differ by {number(spread)} of their size"
    remedy = (
        "draw the parameters at random: units that begin alike stay alike"
        if units
        else "the signal has collapsed to one direction: raise the gain, shorten the stack, or add residual connections"
    )
    kind = "units alike" if units else "samples alike"
    return Finding(kind, "warning", site.path, site.source, told, remedy, "", FORWARD)  # type: ignore[attr-defined]
