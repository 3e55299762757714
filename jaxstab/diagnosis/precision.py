"""Findings of what a format loses: gradients and epsilons that become zero, gradients that are wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from jaxstab.diagnosis.evidence import Evidence, Rehearsals
from jaxstab.diagnosis.findings import WRONG, Finding, number
from jaxstab.diagnosis.scales import reads
from jaxstab.formats import Format, format_of
from jaxstab.observation.flow import Origin
from jaxstab.observation.marks import BACKWARD, FORWARD
from jaxstab.observation.sites import Site

STEPS = frozenset({"ceil", "floor", "round", "sign", "convert_element_type"})
"""Operations that jump: an error there is one of their meaning."""
NOISE = 1e-4
"""Share of the largest gradient below which one is taken for a sum of terms that cancel in float32 already, as that
of a bias before a normalization is."""
RIGHT = 1 / 16
"""Error over magnitude up to which the inputs of a result have their digits."""


def lost_in_format(evidence: Evidence) -> Iterator[Finding]:
    """Gradients and epsilons that become zero in a format, and gradients that lose their digits."""
    for run in evidence.rehearsals.values():
        known, cancelled = format_of(run.dtype), list(_cancelled(evidence, run))
        yield from cancelled
        if all(np.all(np.isfinite(x)) for x in run.outputs):
            yield from _gradients(evidence, run, known, bool(cancelled))
        yield from _epsilons(evidence, run, known)


def _cancelled(evidence: Evidence, run: Rehearsals) -> Iterator[Finding]:
    """Operations whose result is wrong in its first digits though their inputs are not; one for each line."""
    told: set[str] = set()
    for i, site in enumerate(run.seen.sites):
        if site.direction != FORWARD or site.kind in STEPS or site.source in told or site.branch:
            continue
        error, middle = _of_all(run, i, "error"), tuple(n // 2 for n in site.loops)
        if (
            not (WRONG < error < np.inf)
            or _of_all(run, i, "magnitude") < format_of(run.dtype).smallest_normal
        ):
            continue
        made = [run.index[o.position] for origins in evidence.sources(site, middle) for o in origins
                if o.kind == "operation" and o.position in run.index]  # fmt: skip
        if not _is_passed_on(evidence, run, site, i):
            continue
        before = max((_of_all(run, k, "error") for k in made), default=0.0)
        if before < RIGHT:
            told.add(site.source)
            sizes = ", ".join(number(_of_all(run, k, "magnitude")) for k in made)
            brought = f" from inputs of magnitude {sizes} that are off by {before:.1%}" if made else ""
            yield Finding(
                "digits lost", "warning", site.path, site.source,
                f"{site.kind} gives {number(_of_all(run, i, 'magnitude'))}{brought}, off by {error:.0%} of its size",
                f"compute {site.kind} and what goes into it in float32, or write it so that large values do not cancel",
                run.dtype, FORWARD,
            )  # fmt: skip


def _is_passed_on(evidence: Evidence, run: Rehearsals, site: Site, i: int) -> bool:
    """Whether what is made of it in the forward pass is wrong too; of an output of the program, yes."""
    readers = [
        k for k, s in enumerate(run.seen.sites)
        if s.direction == FORWARD and k > i and s.loops == site.loops and reads(evidence, s, site)
    ]  # fmt: skip
    if not readers:
        return any(o.position[:-1] == site.position for out in evidence.flow.outputs() for o in out)
    return any(_of_all(run, k, "error") > WRONG / 2 for k in readers)


def _of_all(run: Rehearsals, i: int, field: str) -> float:
    """The median over seeds and iterations."""
    return float(np.median(run.values(i, field)))


def _gradients(evidence: Evidence, run: Rehearsals, known: Format, is_explained: bool) -> Iterator[Finding]:
    exact, rounded = run.exact[1:], run.outputs[1:]
    shares = [_median_lost(e, r) for e, r in zip(exact, rounded, strict=True)]
    if max(shares, default=0.0) > 0.5 and _is_below(run, known):
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
    if is_explained:
        return
    errors = [_median_error(e, r) for e, r in zip(exact, rounded, strict=True)]
    sizes = np.array([np.mean(np.abs(e)) for e in exact])
    told_errors = [e if size > NOISE * sizes.max() else 0.0 for e, size in zip(errors, sizes, strict=True)]
    if max(told_errors, default=0.0) > 1.0:
        worst = int(np.argmax(told_errors))
        told = f"its gradient is off by {told_errors[worst]:.0%} of its size"
        yield Finding(
            "inaccurate gradient", "warning", evidence.parameters[worst], "", told, "keep this part in float32",
            run.dtype, BACKWARD,
        )  # fmt: skip


def _is_below(run: Rehearsals, known: Format) -> bool:
    """Whether values on the way back are too small for the format; others are lost as differences of large ones."""
    least = known.smallest_normal * known.epsilon
    return any(
        _of_all(run, i, "underflow") > 0.5 and 0 < _of_all(run, i, "magnitude") < 64 * least
        for i, site in enumerate(run.seen.sites)
        if site.direction == BACKWARD
    )


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
