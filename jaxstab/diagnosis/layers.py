"""Findings from calls: what gets no gradient, what is dead or all alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import jax
import numpy as np

from jaxstab.diagnosis.evidence import STATISTICS, Evidence
from jaxstab.diagnosis.findings import Finding, number
from jaxstab.observation.marks import BACKWARD, FORWARD
from jaxstab.observation.twins import NORMALIZATIONS

FIELD = {name: k for k, name in enumerate(STATISTICS)}
ALIKE = {"unit_spread": 1e-5, "sample_spread": 1e-3}


def field(evidence: Evidence, i: int, name: str) -> np.ndarray:
    return evidence.calls.values[i][..., FIELD[name]]


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
            "no effect",
            "drop it: what follows takes it out again (a mean that is subtracted, a softmax)",
        ),
        (late, "no gradient in the first step", "nothing, if it is meant: a factor behind it begins at 0"),
    ):
        if names:
            told = f"{what}: {_listed(names)}"
            yield Finding("silent parameter", "note", names[0], "", told, remedy, "", BACKWARD)


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


PLURAL = {
    "has no effect": "have no effect",
    "gets no gradient in the first step": "get no gradient in the first step",
}


def is_under(name: str, path: str) -> bool:
    return name == path or name.startswith(path.rstrip("/") + "/")


def _boundary(evidence: Evidence) -> tuple[str, str, str]:
    """(path, source, what to add) of the last call that gets no gradient, or of the one behind it that kills it."""
    sites = evidence.calls.sites
    alive = {
        s.path
        for i, s in enumerate(sites)
        if s.direction == BACKWARD and np.any(field(evidence, i, "absmax") > 0)
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
    zeros = [n for n in dead if not np.any(field(evidence, leaves[n], "absmax"))]
    if zeros and dead[-1] in zeros and zeros[0] > 0:
        before, first = sites[leaves[zeros[0] - 1]], sites[leaves[zeros[0]]]
        if _is_empty_norm(evidence, leaves[zeros[0]]):
            return first.path, first.source, f"; {first.path} returns zeros alone"
        told = f"; nothing of what {before.path} returns reaches {first.path}, which returns zeros"
        return before.path, before.source, told
    last = sites[leaves[dead[-1]]]
    told = f"; the last call without one is {last.path}"
    if dead[-1] + 1 < len(leaves):
        behind = leaves[dead[-1] + 1]
        if _is_empty_norm(evidence, behind):
            return sites[behind].path, sites[behind].source, f"; {sites[behind].path} returns zeros alone"
    return last.path, last.source, told


def _has_only_zeros(evidence: Evidence, path: str) -> bool:
    """Whether the weights of a call, its parameters of two dimensions or more, are all zero."""
    weights = [w for _, w in _owned(evidence, path) if w.ndim >= 2]
    return bool(weights) and not any(map(np.any, weights))


def _is_empty_norm(evidence: Evidence, i: int) -> bool:
    """Whether call i is a normalization that returns zeros, and not for a scale that begins at zero."""
    site = evidence.calls.sites[i]
    if site.kind not in NORMALIZATIONS or np.any(field(evidence, i, "absmax")):
        return False
    return not any(n in ("scale", "weight") and not np.any(w) for n, w in _owned(evidence, site.path))


def _owned(evidence: Evidence, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """(last name, value) of the parameters of a call."""
    for name, w in zip(evidence.parameters, evidence.arguments, strict=False):
        owner, _, last = name.removesuffix("/value").rpartition("/")
        if owner and f"/{path}".endswith(f"/{owner}"):
            yield last, w


def alike(evidence: Evidence) -> Iterator[Finding]:
    """Units or samples that are all the same, units that are dead, normalizations that leave nothing."""
    sites = evidence.calls.sites
    forward = [i for i, s in enumerate(sites) if s.direction == FORWARD]
    leaves = [i for i in forward if not any(sites[j].path.startswith(sites[i].path + "/") for j in forward)]
    for name, limit in ALIKE.items():
        if name == "sample_spread" and _inputs_alike(evidence):
            continue
        spreads = {i: _median(field(evidence, i, name)) for i in leaves if len(sites[i].shape) >= 2}
        for i, spread in spreads.items():
            size = _median(field(evidence, i, "rms"))
            # samples part again behind what is made of parameters alone, such as a learned query
            is_lasting = name == "unit_spread" or all(not spreads[k] >= limit for k in spreads if k > i)
            if np.isfinite(size) and size > 0 and spread < limit and is_lasting:
                yield _alike_said(sites[i], name, spread)
                break
    for i in leaves:
        if _is_empty_norm(evidence, i):
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
        share = _median(field(evidence, i, "dead_units"))
        if 0.5 < share < 1 and np.any(field(evidence, i, "absmax")):
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
