"""Findings of what a format loses: gradients and epsilons that become zero, gradients that are wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from jaxstab.diagnosis.evidence import Evidence, Rehearsals
from jaxstab.diagnosis.findings import Finding
from jaxstab.observation.flow import Origin
from jaxstab.observation.formats import Format, format_of
from jaxstab.observation.marks import BACKWARD, FORWARD


def lost_in_format(evidence: Evidence) -> Iterator[Finding]:
    """Gradients and epsilons that become zero in a format, and gradients that lose their digits."""
    for run in evidence.rehearsals.values():
        known = format_of(run.dtype)
        if all(np.all(np.isfinite(x)) for x in run.outputs):
            yield from _gradients(evidence, run, known)
        yield from _epsilons(evidence, run, known)


def _gradients(evidence: Evidence, run: Rehearsals, known: Format) -> Iterator[Finding]:
    exact, rounded = run.exact[1:], run.outputs[1:]
    shares = [_median_lost(e, r) for e, r in zip(exact, rounded, strict=True)]
    if max(shares, default=0.0) > 0.5:
        worst = int(np.argmax(shares))
        backward = [i for i, site in enumerate(run.seen.sites) if site.direction == BACKWARD]
        peak = max((float(np.nanmax(run.values(i, "absmax"))) for i in backward), default=1.0)
        scale = 2.0 ** math.floor(math.log2(known.largest / peak / 4)) if peak > 0 else 1.0
        many = f"over half in {sum(s > 0.5 for s in shares)} of {len(shares)} parameters"
        told = f"{shares[worst]:.0%} of its gradient becomes 0, {many}"
        remedy = (
            f"multiply the loss by {scale:g} and divide the gradients by it (the largest value on the way then"
            f" reaches a quarter of {run.dtype}'s range)"
        )
        name = evidence.parameters[worst]
        yield Finding("gradient underflow", "warning", name, "", told, remedy, run.dtype, BACKWARD)
        return
    errors = [_median_error(e, r) for e, r in zip(exact, rounded, strict=True)]
    sizes = np.array([np.mean(np.abs(e)) for e in exact])
    told_errors = [e if size > 1e-6 * sizes.max() else 0.0 for e, size in zip(errors, sizes, strict=True)]
    if max(told_errors, default=0.0) > 1.0:
        worst = int(np.argmax(told_errors))
        told = f"its gradient is off by {told_errors[worst]:.0%} of its size"
        yield Finding(
            "inaccurate gradient", "warning", evidence.parameters[worst], "", told, "keep this part in float32",
            run.dtype, BACKWARD,
        )  # fmt: skip


def _median_lost(exact: np.ndarray, rounded: np.ndarray) -> float:
    there = exact != 0
    lost = (there & (rounded == 0)).reshape(len(exact), -1).sum(1) / np.maximum(
        there.reshape(len(exact), -1).sum(1), 1
    )
    return float(np.median(lost))


def _median_error(exact: np.ndarray, rounded: np.ndarray) -> float:
    off = np.abs(rounded - exact).reshape(len(exact), -1).sum(1, dtype=np.float64)
    size = np.abs(exact).reshape(len(exact), -1).sum(1, dtype=np.float64)
    return float(np.median(np.where(size > 0, off / np.maximum(size, 1e-300), 0.0)))


def _epsilons(evidence: Evidence, run: Rehearsals, known: Format) -> Iterator[Finding]:
    least = known.smallest_normal * known.epsilon / 2
    told: set[str] = set()
    for site in run.seen.sites:
        if site.kind != "add" or site.dtype == "float32" or site.source in told or site.direction != FORWARD:
            continue
        for origins in evidence.sources(site, (0,) * len(site.loops)):
            small = [_scalar(o) for o in origins if o.kind == "constant"]
            if small and small[0] is not None and 0 < abs(small[0]) < least:
                told.add(site.source)
                found = f"the constant {small[0]:g} that is added is 0 in {run.dtype}"
                remedy = f"an epsilon of at least {known.smallest_normal:.0e}, or float32 here"
                yield Finding(
                    "epsilon lost", "warning", site.path, site.source, found, remedy, run.dtype, FORWARD
                )


def _scalar(origin: Origin) -> float | None:
    x = np.asarray(origin.constant) if origin.constant is not None else np.zeros(2)
    return float(x) if x.size == 1 and np.issubdtype(x.dtype, np.floating) else None
