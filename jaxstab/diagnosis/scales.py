"""Findings of scales that do not fit: gains, summands, softmaxes, masks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxstab.diagnosis.evidence import Evidence, Rehearsals
from jaxstab.diagnosis.findings import Finding, number
from jaxstab.observation.flow import Origin
from jaxstab.observation.marks import FORWARD
from jaxstab.observation.sites import Site

GAIN_OCTAVES = 3.0
"""A layer that changes the scale of its input by more octaves than this is out of line: Xavier's and He's rules
keep it within one, normal(0.02) at width 64 within 2.7."""
DROWNED = 32.0
"""Ratio of magnitudes of two summands from which the smaller one is said to be lost."""
CERTAIN = 1.5
"""Mean number of keys that share a softmax, 1 if one takes all, below which it is called saturated."""
MASKED = 1e9
"""Largest entry of a row, in magnitude, from which every entry of the row is taken to be masked."""


def scales(evidence: Evidence) -> Iterator[Finding]:
    """Layers with the wrong gain, summands that drown, softmaxes that are certain, rows that are masked."""
    run, told = evidence.any_run, set()
    for i, site in enumerate(run.seen.sites):
        if site.direction != FORWARD or not np.all(np.isfinite(run.values(i, "absmax"))):
            continue
        rule = RULES.get(site.kind)
        finding = rule(evidence, run, i, site) if rule is not None else None
        if finding is not None and (finding.kind, finding.path, finding.source) not in told:
            told.add((finding.kind, finding.path, finding.source))
            yield finding


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
    """A product with a parameter that changes the scale by more than `GAIN_OCTAVES`."""
    found = [_magnitude(evidence, run, o) for o in evidence.sources(site, (0,) * len(site.loops))]
    weights = [k for _, k in found if k is not None and k < len(evidence.parameters)]
    inputs = [m for m, k in found if k is None or k >= len(evidence.parameters)]
    if len(weights) != 1 or len(inputs) != 1:
        return None
    each = run.values(i, "magnitude")
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = np.log2(each / inputs[0].reshape(-1, *[1] * (each.ndim - 1)))
    middle = np.median(octaves, axis=0)
    if np.all(~np.isfinite(middle)):
        return None
    at = np.unravel_index(int(np.nanargmax(np.abs(np.where(np.isfinite(middle), middle, 0.0)))), middle.shape)
    if not abs(middle[at]) > GAIN_OCTAVES:
        return None
    w = evidence.arguments[weights[0]]
    fan_in = site.terms
    layer = "".join(f"[{k}]" for k in at)
    std = float(np.std(w[at] if at and w.ndim > len(at) else w))
    told = (
        f"multiplies the scale of its input by {number(2.0 ** middle[at])};"
        f" {evidence.parameters[weights[0]]}{layer} has std {number(std)},"
        f" and 1/sqrt(fan_in = {fan_in}) is {number(fan_in**-0.5)}"
    )
    remedy = (
        "initialize it with lecun_normal (he_normal before ReLU), variance_scaling(gain**2, 'fan_in', ...)"
    )
    return Finding("wrong gain", "warning", site.path + layer, site.source, told, remedy, "", FORWARD)


def _drowned(evidence: Evidence, run: Rehearsals, i: int, site: Site) -> Finding | None:
    """A sum of two arrays of one shape, the smaller of which hardly counts."""
    eqn = evidence.flow.equation(site.position)
    if len({getattr(v.aval, "shape", ()) for v in eqn.invars}) > 1 or len(site.shape) < 2:
        return None
    sources = evidence.sources(
        site, (max(n // 2 for n in site.loops),) * len(site.loops) if site.loops else ()
    )
    found = [_magnitude(evidence, run, o) for o in sources]
    if any(k is not None and evidence.arguments[k].ndim < 2 for _, k in found):
        return None
    small, large = sorted(float(np.median(m)) for m, _ in found)
    if not (small > 0 and large > DROWNED * small):
        return None
    told = f"adds values of magnitude {number(small)} to values of magnitude {number(large)}"
    remedy = "scale one of the two: a factor that is applied twice, or a normalization that is missing"
    return Finding("summand drowned", "warning", site.path, site.source, told, remedy, "", FORWARD)


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
    if not float(np.max(run.values(i, "absmax"))) > MASKED:
        return None
    told = f"the largest entry of a row is {number(-np.max(run.values(i, 'absmax')))}: every entry is masked"
    return Finding(
        "row masked", "warning", site.path, site.source, told,
        "let every row see one entry, or drop the rows: they are averages over what was to be hidden", "", FORWARD,
    )  # fmt: skip


RULES = {
    "dot_general": _gain, "conv_general_dilated": _gain, "add": _drowned, "reduce_sum": _certain,
    "reduce_max": _masked,
}  # fmt: skip
