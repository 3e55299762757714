"""Findings of scales that do not fit: gains, summands, softmaxes, masks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from jaxstab.diagnosis.evidence import Evidence, Rehearsals
from jaxstab.diagnosis.findings import Finding, number
from jaxstab.observation.flow import Origin
from jaxstab.observation.marks import FORWARD
from jaxstab.observation.sites import Site

GAIN_OCTAVES = 3.0
"""A layer whose weights change the scale of an input by more octaves than this is out of line: Xavier's and He's
rules keep it within one, normal(0.02) at width 64 within 2.7."""
DROWNED = 32.0
"""Ratio of magnitudes of two summands from which the smaller one is said to be lost."""
CERTAIN = 1.5
"""Mean number of keys that share a softmax, 1 if one takes all, below which it is called saturated."""
MASKED = 1e9
"""Largest entry of a row, in magnitude, from which every entry of the row is taken to be masked."""


def scales(evidence: Evidence) -> Iterator[Finding]:
    """Layers with the wrong gain, summands that drown, softmaxes that are certain, rows that are masked.

    What is said of several layers whose paths differ by numbers alone is said once, of the pattern.
    """
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in [*_by_operation(evidence), *drowned(evidence)]:
        pattern = re.sub(r"\d+", "*", finding.path)
        alike.setdefault((finding.kind, pattern, finding.source), []).append(finding)
    for (_, pattern, _), found in alike.items():
        paths = dict.fromkeys(f.path for f in found)
        told = f"{found[0].evidence}; the first of {len(paths)} such layers, {found[0].path}"
        yield dataclasses.replace(found[0], path=pattern, evidence=told) if len(paths) > 1 else found[0]


def _by_operation(evidence: Evidence) -> Iterator[Finding]:
    run = evidence.any_run
    for i, site in enumerate(run.seen.sites):
        rule = RULES.get(site.kind)
        if rule is not None and site.direction == FORWARD and _is_finite(run, i):
            finding = rule(evidence, run, i, site)
            if finding is not None:
                yield finding


def _is_finite(run: Rehearsals, i: int) -> bool:
    return bool(np.all(np.isfinite(run.values(i, "absmax"))))


def _magnitude(evidence: Evidence, run: Rehearsals, origins: list[Origin]) -> tuple[np.ndarray, int | None]:
    """Mean magnitude, (seed,), of an input, and which argument it is, if it is one. NaN if it is a constant."""
    nothing = np.full(evidence.seeds, np.nan)
    if not origins or all(o.kind == "constant" for o in origins):
        return nothing, None
    made = [o for o in origins if o.kind == "operation" and o.position in run.index]
    if made:
        return np.nanmax([_level(run, run.index[o.position]) for o in made], axis=0), None
    given = [o.position[0] for o in origins if o.kind == "argument"]
    if not given or not np.issubdtype(evidence.arguments[given[0]].dtype, np.floating):
        return nothing, None
    x = evidence.arguments[given[0]]
    return np.full(evidence.seeds, np.mean(np.abs(x)) if x.size else np.nan), given[0]


def _level(run: Rehearsals, i: int) -> np.ndarray:
    """Mean magnitude, (seed,): the median over iterations."""
    values = run.values(i, "magnitude")
    return np.nanmedian(values.reshape(len(values), -1), axis=1)


def _gain(evidence: Evidence, run: Rehearsals, i: int, site: Site) -> Finding | None:
    """A product with a parameter whose entries change the scale of any input by more than `GAIN_OCTAVES`."""
    found = [_magnitude(evidence, run, o) for o in evidence.sources(site, (0,) * len(site.loops))]
    weights = [
        (side, k) for side, (_, k) in enumerate(found) if k is not None and k < len(evidence.parameters)
    ]
    inputs = [m for m, k in found if k is None or k >= len(evidence.parameters)]
    if len(weights) != 1 or len(inputs) != 1:
        return None
    side, k = weights[0]
    each, fan_in = run.values(i, "magnitude"), site.terms
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = np.median(np.log2(each / inputs[0].reshape(-1, *[1] * (each.ndim - 1))), axis=0)
    layers = evidence.arguments[k]
    stacked = layers.ndim - len(evidence.flow.equation(site.position).invars[side].aval.shape)
    if not (0 < stacked <= len(site.loops) and layers.shape[:stacked] == site.loops[:stacked]):
        layers, stacked = layers[None], 0
    rms = np.sqrt(
        np.mean(np.square(layers, dtype=np.float64), axis=tuple(range(max(stacked, 1), layers.ndim)))
    )
    with np.errstate(divide="ignore"):
        drawn = np.log2(rms * fan_in**0.5)
    at = np.unravel_index(int(np.argmax(np.where(np.isfinite(drawn), np.abs(drawn), 0.0))), drawn.shape)
    seen = float(np.median(octaves[at[:stacked]]))
    if not (np.isfinite(drawn[at]) and abs(drawn[at]) > GAIN_OCTAVES and drawn[at] * seen > 0):
        return None
    layer = "".join(f"[{n}]" for n in at[:stacked])
    told = (
        f"multiplies the scale of its input by {number(2.0**seen)};"
        f" {evidence.parameters[k]}{layer} has std {number(float(np.std(layers[at])))},"
        f" and 1/sqrt(fan_in = {fan_in}) is {number(fan_in**-0.5)}"
    )
    remedy = (
        "initialize it with lecun_normal (he_normal before ReLU), variance_scaling(gain**2, 'fan_in', ...)"
    )
    return Finding("wrong gain", "warning", site.path + layer, site.source, told, remedy, "", FORWARD)


def drowned(evidence: Evidence) -> Iterator[Finding]:
    """Sums of two arrays of one shape, the smaller of which hardly counts; by what made the larger one so large."""
    run = evidence.any_run
    found: dict[tuple[str, str], list[tuple[float, float, Site]]] = {}
    for i, site in enumerate(run.seen.sites):
        if site.kind == "add" and site.direction == FORWARD and _is_finite(run, i):
            known = _summands(evidence, run, site)
            if known is not None and 0 < DROWNED * known[0] < known[1]:
                found.setdefault(_grown(evidence, run, site), []).append((*known[:2], site))
    for (path, source), sums in found.items():
        small, large, site = sums[0]
        told = f"its values of magnitude {number(large)} drown the {number(small)} that {_place(site)} adds to them"
        told += f"; so in {len(sums)} sums" if len(sums) > 1 else ""
        remedy = "scale one of the two: a factor that is applied twice, or a normalization that is missing"
        yield Finding("summand drowned", "warning", path, source, told, remedy, "", FORWARD)


def _place(site: Site) -> str:
    return f"{site.path} ({site.source.rsplit('/', 1)[-1]})"


def _summands(evidence: Evidence, run: Rehearsals, site: Site) -> tuple[float, float, list[Origin]] | None:
    """Magnitudes of the smaller and the larger summand, and the origins of the larger; None for a bias."""
    eqn = evidence.flow.equation(site.position)
    if len({getattr(v.aval, "shape", ()) for v in eqn.invars}) > 1 or len(site.shape) < 2:
        return None
    sources = evidence.sources(site, tuple(max(n // 2 for n in site.loops) for _ in site.loops))
    found = [_magnitude(evidence, run, o) for o in sources]
    if any(k is not None and evidence.arguments[k].ndim < 2 for _, k in found):
        return None
    sizes = [float(np.median(m)) for m, _ in found]
    large = int(np.argmax(sizes))
    if len(sources) == 2 and _is_function_of(evidence, sources[1 - large], [o[:3] for o in sources[large]]):
        return None  # a polynomial, as inside GELU
    return min(sizes), max(sizes), sources[large]


def _is_function_of(evidence: Evidence, origins: list[Origin], of: list[tuple], depth: int = 4) -> bool:
    """Whether a value is made, entry by entry, of that of some origins in a few operations."""
    index, sites = evidence.any_run.index, evidence.any_run.seen.sites
    for origin in origins:
        if origin[:3] in of:
            return True
        i = index.get(origin.position) if origin.kind == "operation" and depth else None
        if i is not None and sites[i].kind not in RULES:
            behind = [o for one in evidence.sources(sites[i], origin.iteration) for o in one]
            if _is_function_of(evidence, behind, of, depth - 1):
                return True
    return False


def _grown(evidence: Evidence, run: Rehearsals, site: Site) -> tuple[str, str]:
    """(path, source) of what made the larger summand of a sum: back through the sums in which it hardly grew."""
    known, size = _summands(evidence, run, site), 0.0
    while known is not None and known[1] > size / 2:
        size = known[1]
        made = [o for o in known[2] if o.kind == "operation" and o.position in run.index]
        if not made:
            given = [evidence.names[o.position[0]] for o in known[2] if o.kind == "argument"]
            return (given[0], "") if given else (site.path, site.source)
        last = max(made, key=lambda o: float(np.median(_level(run, run.index[o.position]))))
        if run.seen.sites[run.index[last.position]] is site:
            break  # its own carry, in a loop
        site = run.seen.sites[run.index[last.position]]
        known = _summands(evidence, run, site) if site.kind == "add" else None
    return site.path, site.source


def _certain(evidence: Evidence, run: Rehearsals, i: int, site: Site) -> Finding | None:
    """The sum under a softmax: 1 where one entry takes all, the number of entries where all are alike."""
    (origins,) = evidence.sources(site, (0,) * len(site.loops))
    made = [run.index[o.position] for o in origins if o.kind == "operation" and o.position in run.index]
    if len(made) != 1 or run.seen.sites[made[0]].kind != "exp" or site.terms < 8:
        return None
    if any(s.kind == "log" and reads(evidence, s, site) for s in run.seen.sites[i + 1 :]):
        return None  # of a logarithm: its gradient, the softmax less what is wanted, does not vanish
    peak = np.max(run.values(made[0], "absmax"))
    level = float(np.median(run.values(i, "magnitude")))
    if not (0.99 < peak < 1.01 and level < CERTAIN):
        return None
    told = f"of {site.terms} entries {number(level)} share the softmax on average: its gradient vanishes"
    remedy = "scale the scores down (1/sqrt(width of a head), once) or normalize queries and keys"
    return Finding("softmax saturated", "warning", site.path, site.source, told, remedy, "", FORWARD)


def reads(evidence: Evidence, reader: Site, maker: Site) -> bool:
    """Whether an operation has the output of another as input."""
    return any(
        o.position[:-1] == maker.position
        for origins in evidence.sources(reader, (0,) * len(reader.loops))
        for o in origins
    )


def _masked(evidence: Evidence, run: Rehearsals, i: int, site: Site) -> Finding | None:
    if not (float(np.max(run.values(i, "absmax"))) > MASKED and _is_masking(evidence, site)):
        return None
    told = f"the largest entry of a row is {number(-np.max(run.values(i, 'absmax')))}: every entry is masked"
    return Finding(
        "row masked", "warning", site.path, site.source, told,
        "let every row see one entry, or drop the rows: they are averages over what was to be hidden", "", FORWARD,
    )  # fmt: skip


def _is_masking(evidence: Evidence, site: Site, depth: int = 3) -> bool:
    """Whether a large negative constant is among what a value is made of, a few operations back."""
    origins = [o for one in evidence.sources(site, (0,) * len(site.loops)) for o in one]
    constants = [np.asarray(o.constant) for o in origins if o.kind == "constant" and o.constant is not None]
    if any(np.issubdtype(x.dtype, np.floating) and np.any(x < -MASKED) for x in constants):
        return True
    index = evidence.any_run.index
    made = [index[o.position] for o in origins if o.kind == "operation" and o.position in index]
    return depth > 1 and any(_is_masking(evidence, evidence.any_run.seen.sites[k], depth - 1) for k in made)


RULES = {
    "dot_general": _gain, "conv_general_dilated": _gain, "reduce_sum": _certain,
    "reduce_max": _masked,
}  # fmt: skip
