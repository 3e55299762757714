"""Who made what is not finite: from outputs that are not, backwards through the inputs that are not, to the root."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxstab.diagnosis.evidence import Evidence, Rehearsals
from jaxstab.observation.flow import ALL, Iteration, Origin
from jaxstab.observation.marks import FORWARD
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
        sites = enumerate(self.run.seen.sites)
        self.branch_of = {i: self.evidence.flow.branch(s.position) for i, s in sites if s.branch}
        self.branches: dict[tuple[int, ...], list[int]] = {}
        for i, branch in self.branch_of.items():
            if branch is not None:
                self.branches.setdefault(branch, []).append(i)

    def roots(self) -> list[Root]:
        """Roots of what is not finite among the program's outputs, the first in order of execution first."""
        outputs = self.run.exact if self.field == "absmax" else self.run.outputs
        found: dict[tuple, Root] = {}
        for origins, output in zip(self.evidence.flow.outputs(), outputs, strict=True):
            if not np.all(np.isfinite(output[self.seed])):
                bad = [value for origin in origins for value in self._bad(origin)]
                found |= {self._order(root): root for value in bad for root in self._of(value)}
        return [found[key] for key in sorted(found)]

    def made_here(self, i: int) -> list[Root]:
        """The root that site i is itself, in the first iteration that makes something not finite; or none."""
        whole = Origin("operation", (), (ALL,) * len(self.run.seen.sites[i].loops))
        found = [root for value in self._bad_of(i, whole) for root in self._of(value)]
        return [root for root in found if root.site is self.run.seen.sites[i]]

    def swallowed(self) -> Iterator[tuple[float, str, Root]]:
        """(error, kind) of each operation that makes finite values of what only the format made infinite; its root."""
        sites = self.run.seen.sites
        pairs = zip(self.exact, self.peaks, strict=True)
        if not any(np.any(np.isfinite(exact) & ~np.isfinite(peak)) for exact, peak in pairs):
            return
        for i, site in enumerate(sites):
            if site.direction != FORWARD:
                continue
            for iteration in np.ndindex(site.loops):
                if not np.isfinite(self.peaks[i][iteration]):
                    continue
                for root in {
                    id(r): r for v in self._bad_behind((i, iteration)) for r in self._of(v)
                }.values():
                    if root.site is not None and np.isfinite(root.largest) and root.site.direction == FORWARD:
                        yield float(self.run.values(i, "error")[self.seed][iteration]), site.kind, root

    def _order(self, root: Root) -> tuple:
        if root.site is None:
            return (-1, root.argument or 0)
        return self.evidence.flow.order(root.site.position, root.iteration)

    def _bad(self, origin: Origin) -> Iterator[Value]:
        """Values of an origin that are not finite; of several iterations the first that is executed."""
        if origin.kind == "argument":
            x = self.evidence.arguments[origin.position[0]]
            if np.issubdtype(x.dtype, np.inexact) and not np.all(np.isfinite(x) & (np.abs(x) <= self.limit)):
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
        """Whether it stands in a branch that was not taken, where everything is NaN: unless it is in the others too."""
        branch = self.branch_of.get(i)
        if branch is None or not self._is_nan_throughout(branch, iteration):
            return False
        others = [b for b in self.branches if b[:-1] == branch[:-1] and b != branch]
        return not others or not all(self._is_nan_throughout(b, iteration) for b in others)

    def _is_nan_throughout(self, branch: tuple[int, ...], iteration: Iteration) -> bool:
        """All that a branch computes in an iteration, but for the scans inside it."""
        peaks = [
            self.exact[k][iteration] for k in self.branches[branch] if self.exact[k].ndim == len(iteration)
        ]
        return bool(np.all(np.isnan(peaks)))

    def _of(self, value: Value) -> list[Root]:
        """Roots of a value, each once. Chains are as long as the program, so that nothing here calls itself."""
        opened: dict[Value, list[Value]] = {}
        stack = [value]
        while stack:
            here = stack[-1]
            if here in self.memory:
                stack.pop()
            elif here not in opened:
                opened[here] = self._bad_behind(here)
                # what is open already is behind itself, in a loop of a while
                stack += [v for v in opened[here] if v not in self.memory and v not in opened]
            else:
                behind = {id(root): root for v in opened[here] for root in self.memory.get(v, [])}
                self.memory[here] = self._find(*here, [*behind.values()])
                stack.pop()
        return self.memory[value]

    def _sources(self, i: int, iteration: Iteration) -> list[Origin]:
        inputs = self.evidence.sources(self.run.seen.sites[i], iteration)
        return [origin for origins in inputs for origin in origins]

    def _bad_behind(self, value: Value) -> list[Value]:
        """Inputs of what made a value that are not finite."""
        sources = self._sources(*value) if value[0] >= 0 else []
        return [*dict.fromkeys(bad for origin in sources for bad in self._bad(origin))]

    def _find(self, i: int, iteration: Iteration, behind: list[Root]) -> list[Root]:
        if i < 0:
            return [Root(None, (), _has_nan(self.evidence.arguments[-1 - i]), np.inf, (), argument=-1 - i)]
        if behind:
            return behind
        site, peak, sources = self.run.seen.sites[i], self.peaks[i][iteration], self._sources(i, iteration)
        infinite = [c for c in map(_constant, sources) if c is not None and not abs(c) <= self.limit]
        if infinite and not np.isnan(peak) and not _is_factor(site, infinite):
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


def _is_factor(site: Site, constants: list[float]) -> bool:
    """Whether numbers beyond the format are factors: nobody masks by a factor that is finite."""
    return site.kind in ("mul", "div") and all(map(np.isfinite, constants))


def _has_nan(x: np.ndarray) -> bool:
    return np.issubdtype(x.dtype, np.inexact) and bool(np.any(np.isnan(x)))


def _product(axes: list) -> Iterator[tuple]:
    if not axes:
        yield ()
        return
    for first in axes[0]:
        for rest in _product(axes[1:]):
            yield (first, *rest)
