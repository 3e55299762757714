"""Who made what is not finite: from outputs that are not, backwards through the inputs that are not, to the root."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxstab.diagnosis.evidence import Evidence, Rehearsals
from jaxstab.observation.flow import ALL, Iteration, Origin
from jaxstab.observation.sites import Site

Value = tuple[int, Iteration]
"""A site, and an iteration of the scans around it."""


@dataclasses.dataclass(frozen=True)
class Root:
    """An operation whose output is not finite though its inputs are, or are infinite on purpose.

    `constant` is an infinite constant that it meets (a mask); `is_argument` of what comes in from outside.
    """

    site: Site | None
    iteration: Iteration
    is_nan: bool
    largest: float
    inputs: tuple[float, ...]
    constant: float | None = None
    argument: int | None = None


@dataclasses.dataclass(eq=False)
class Search:
    """Of one seed in one run: `field` is "absmax" (the float32 run) or "absmax_rounded" (the format)."""

    evidence: Evidence
    run: Rehearsals
    field: str
    seed: int
    limit: float
    """Magnitudes beyond it are infinite: a constant that is not infinite in float32 may be in the format."""

    def __post_init__(self) -> None:
        self.peaks = [self.run.values(i, self.field)[self.seed] for i in range(len(self.run.seen.sites))]
        self.exact = [self.run.values(i, "absmax")[self.seed] for i in range(len(self.run.seen.sites))]
        self.memory: dict[Value, list[Root]] = {}

    def roots(self) -> list[Root]:
        """Roots of what is not finite among the program's outputs, the first in order of execution first."""
        outputs = self.run.exact if self.field == "absmax" else self.run.outputs
        found: dict[tuple, Root] = {}
        for origins, output in zip(self.evidence.flow.outputs(), outputs, strict=True):
            if not np.all(np.isfinite(output[self.seed])):
                for root in self._behind(origins):
                    found[self._order(root)] = root
        return [found[key] for key in sorted(found)]

    def made_here(self, i: int) -> list[Root]:
        """The root that site i is itself, in the first iteration that makes something not finite; or none."""
        whole = Origin("operation", (), (ALL,) * len(self.run.seen.sites[i].loops))
        found = [root for value in self._bad_of(i, whole) for root in self._of(value)]
        return [root for root in found if root.site is self.run.seen.sites[i]]

    def _order(self, root: Root) -> tuple:
        if root.site is None:
            return (-1, root.argument or 0)
        return self.evidence.flow.order(root.site.position, root.iteration)

    def _behind(self, origins: list[Origin]) -> list[Root]:
        return [root for origin in origins for value in self._bad(origin) for root in self._of(value)]

    def _bad(self, origin: Origin) -> Iterator[Value]:
        """Values of an origin that are not finite; of several iterations the first that is executed."""
        if origin.kind == "argument":
            x = self.evidence.arguments[origin.position[0]]
            if np.issubdtype(x.dtype, np.inexact) and not np.all(np.abs(x) <= self.limit):
                yield -1 - origin.position[0], ()
        elif origin.kind == "operation" and (i := self.run.index.get(origin.position)) is not None:
            yield from self._bad_of(i, origin)

    def _bad_of(self, i: int, origin: Origin) -> Iterator[Value]:
        site, peaks = self.run.seen.sites[i], self.peaks[i]
        at = [range(n) if s is ALL else [s] for n, s in zip(site.loops, origin.iteration, strict=False)]
        bad = [it for it in _product(at) if not np.isfinite(peaks[it]) and not self._untaken(i, it)]
        if bad:
            yield i, min(bad, key=lambda it: self.evidence.flow.order(site.position, it))

    def _untaken(self, i: int, iteration: Iteration) -> bool:
        """Whether it stands in a branch that was not taken, where everything is NaN."""
        fields = self.run.seen.values[i][(self.seed, *iteration)]
        return bool(self.run.seen.sites[i].branch) and bool(np.all(np.isnan(fields[:2])))

    def _of(self, value: Value) -> list[Root]:
        if value not in self.memory:
            self.memory[value] = []  # a loop of a while leads back here
            self.memory[value] = self._find(*value)
        return self.memory[value]

    def _find(self, i: int, iteration: Iteration) -> list[Root]:
        if i < 0:
            return [Root(None, (), _has_nan(self.evidence.arguments[-1 - i]), np.inf, (), argument=-1 - i)]
        site, peak = self.run.seen.sites[i], self.peaks[i][iteration]
        sources = [o for origins in self.evidence.sources(site, iteration) for o in origins]
        behind = self._behind(sources)
        infinite = [c for c in map(_constant, sources) if c is not None and not abs(c) <= self.limit]
        if behind:
            return behind
        if infinite and not np.isnan(peak):
            return []  # an infinity that somebody wrote, and that is one still
        ranges = tuple(self._peak(o) for o in sources)
        return [
            Root(site, iteration, bool(np.isnan(peak)), float(self.exact[i][iteration]), ranges,
                 constant=infinite[0] if infinite else self._passed_on(sources))
        ]  # fmt: skip

    def _passed_on(self, sources: list[Origin]) -> float | None:
        """An infinity among the inputs that goes back to constants alone."""
        return np.inf if any(True for o in sources for _ in self._bad(o)) else None

    def _peak(self, origin: Origin) -> float:
        if origin.kind == "argument":
            x = self.evidence.arguments[origin.position[0]]
            return float(np.max(np.abs(x), initial=0.0)) if np.issubdtype(x.dtype, np.number) else np.nan
        if origin.kind == "constant":
            known = _constant(origin)
            return np.nan if known is None else abs(known)
        i = self.run.index.get(origin.position)
        if i is None:
            return np.nan
        where = tuple(slice(None) if step is ALL else step for step in origin.iteration)
        return float(np.max(self.peaks[i][where]))


def _constant(origin: Origin) -> float | None:
    """The largest magnitude of a constant; None for what is none, and near float32's end, which stands for any end."""
    if (
        origin.kind != "constant"
        or origin.constant is None
        or not np.issubdtype(np.asarray(origin.constant).dtype, np.floating)
    ):
        return None
    x = np.asarray(origin.constant, np.float64)
    known = x[~np.isnan(x) & ((np.abs(x) < 8e37) | np.isinf(x))]
    return float(known.flat[np.argmax(np.abs(known))]) if known.size else None


def _has_nan(x: np.ndarray) -> bool:
    return np.issubdtype(x.dtype, np.inexact) and bool(np.any(np.isnan(x)))


def _product(axes: list) -> Iterator[tuple]:
    if not axes:
        yield ()
        return
    for first in axes[0]:
        for rest in _product(axes[1:]):
            yield (first, *rest)
