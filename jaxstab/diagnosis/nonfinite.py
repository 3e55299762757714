"""Findings of what is not finite, in the run and in each format, by the operation that made it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from jaxstab.diagnosis.evidence import Evidence, Rehearsals
from jaxstab.diagnosis.findings import WRONG, Finding, number
from jaxstab.diagnosis.producers import Root, Search
from jaxstab.formats import format_of
from jaxstab.observation.marks import BACKWARD, FORWARD


def not_finite(evidence: Evidence) -> Iterator[Finding]:
    """In the run itself, then in each format, by the operations that made it; one finding a source and kind."""
    in_run = list(_of_run(evidence, evidence.any_run, ""))
    yield from in_run
    for run in evidence.rehearsals.values():
        for finding in _of_run(evidence, run, run.dtype):
            if not any(f.source == finding.source and f.path == finding.path for f in in_run):
                yield finding


def _of_run(evidence: Evidence, run: Rehearsals, dtype: str) -> Iterator[Finding]:
    field, limit = ("absmax_rounded", format_of(dtype).largest) if dtype else ("absmax", math.inf)
    met: Counter = Counter()
    first: dict[tuple, Root] = {}
    for seed in range(evidence.seeds):
        found = {_key(root): root for root in reversed(Search(evidence, run, field, seed, limit).roots())}
        met.update(found.keys())
        for key in reversed(found):
            first.setdefault(key, found[key])
    for key, root in first.items():
        yield _said(
            evidence, root, dtype, f"in {met[key]} of {evidence.seeds} seeds" if evidence.seeds > 1 else ""
        )


def hidden(evidence: Evidence) -> Iterator[Finding]:
    """Infinities and NaNs of the run that nothing finite is made of, and that reach neither loss nor gradient."""
    run, told = evidence.any_run, set()
    if not all(np.all(np.isfinite(x)) for x in run.exact):
        return
    searches = [Search(evidence, run, "absmax", seed, math.inf) for seed in range(evidence.seeds)]
    for i, site in enumerate(run.seen.sites):
        roots = [root for search in searches for root in search.made_here(i)]
        if roots and site.source not in told:
            told.add(site.source)
            said = _said(evidence, roots[0], "", "")
            remedy = "harmless here; its derivative may not be: put a safe value INTO the operation where it is masked"
            yield Finding("hidden", "note", said.path, said.source, said.evidence, remedy, "", said.direction)


def swallowed(evidence: Evidence) -> Iterator[Finding]:
    """Overflows of a format that its outputs do not show: grave where what is made of them is wrong, else a note."""
    for run in evidence.rehearsals.values():
        if not all(np.all(np.isfinite(x)) for x in run.outputs):
            continue
        worst: dict[tuple, tuple[float, str, Root]] = {}
        for seed in range(evidence.seeds):
            search = Search(evidence, run, "absmax_rounded", seed, format_of(run.dtype).largest)
            for error, kind, root in search.swallowed():
                if error >= worst.get(_key(root), (-1.0,))[0]:
                    worst[_key(root)] = error, kind, root
        for error, kind, root in worst.values():
            said = _said(evidence, root, run.dtype, "")
            if error > WRONG:
                told = f"{said.evidence}; {kind} makes finite values of it that are off by {error:.0%}"
                yield dataclasses.replace(said, evidence=told)
            else:
                remedy = f"harmless here: what {kind} makes of it is right"
                yield dataclasses.replace(said, kind="hidden", gravity="note", remedy=remedy)


def _key(root: Root) -> tuple:
    site = root.site
    return (
        ("argument", root.argument) if site is None else (site.path, site.source, site.direction, root.is_nan)
    )


def _said(evidence: Evidence, root: Root, dtype: str, often: str) -> Finding:
    what = "NaN" if root.is_nan else "inf"
    if root.site is None:
        name = evidence.names[root.argument or 0]
        told = f"{name} holds {what}" + (f" or numbers beyond {dtype}" if dtype else "")
        return Finding("not finite", "grave", name, "", told, "mend or scale what comes in", dtype, FORWARD)
    site = root.site
    where = "".join(f", iteration {i}" for i in root.iteration) + (
        f", branch {site.branch}" if site.branch else ""
    )
    inputs = ", ".join(number(x) for x in root.inputs if not math.isnan(x))
    scale = "" if root.is_nan and not dtype else f"; in float32 up to {number(root.largest)}" if dtype else ""
    mask = f", one of them the constant {root.constant:g}" if root.constant is not None else ""
    told = f"{site.kind} ({site.direction}{where}) gives {what} from inputs up to {inputs or 'unknown'}{mask}{scale}"
    kind = (
        "not finite" if root.is_nan or not dtype or root.largest <= format_of(dtype).largest else "overflow"
    )
    return Finding(
        kind, "grave", site.path, site.source, "; ".join(filter(None, (told, often))), _remedy(evidence, root, dtype),
        dtype, site.direction,
    )  # fmt: skip


def _remedy(evidence: Evidence, root: Root, dtype: str) -> str:
    site = root.site
    assert site is not None
    if dtype and root.largest > format_of(dtype).largest:
        if site.direction == BACKWARD:
            return "lower the loss scale, or clip or normalize what makes the gradient grow"
        return f"compute {site.kind} here in float32 (cast its input), scale its input down, or use bfloat16"
    if root.constant is not None and root.is_nan:
        return "a row is masked throughout (inf - inf): let one entry see itself, or use a finite mask and drop the row"
    if _hides_infinity(evidence, root):
        return "where() hides the value and not its derivative: put a safe value INTO the operation where it is masked"
    kinds = {
        s.kind for s in evidence.any_run.seen.sites if s.source == site.source and s.direction == FORWARD
    }
    kind = "sqrt" if site.kind == "div" and "sqrt" in kinds else site.kind  # 1 / sqrt is its derivative
    said = {
        "log": "add an epsilon inside the logarithm, or use log_softmax / log1p / logsumexp",
        "exp": "subtract the largest entry before exp (jax.nn.softmax, logsumexp do)",
        "sqrt": "add an epsilon inside the root", "rsqrt": "enlarge the epsilon inside the root",
        "div": "add an epsilon to the denominator, one that the format holds",
        "pow": "keep the base away from 0", "integer_pow": "add an epsilon: a power of 0 or of a large number",
    }  # fmt: skip
    return said.get(kind, f"bound the inputs of {site.kind}, or normalize before it")


def _hides_infinity(evidence: Evidence, root: Root) -> bool:
    """Whether the gradient alone is broken where the same line gave an infinity that was masked."""
    run, site = evidence.any_run, root.site
    if site is None or np.any(~np.isfinite(run.exact[0])):
        return False
    alike = [i for i, s in enumerate(run.seen.sites) if s.source == site.source and s.direction == FORWARD]
    alike = [i for i in alike if run.seen.sites[i] is not site]
    return any(not np.all(np.isfinite(run.values(i, "absmax"))) for i in alike)
