"""Where a value stands: sites, the place in nested programs that they are seen from, and the numbering of calls."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from jaxstab.observation.marks import FORWARD

RECOMPUTED = "rematted_computation"
"""Scope that JAX opens where it computes a forward value again."""
SCOPE = "scope"
"""Kind of a site where a value leaves a named scope."""


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a value stands in the program. Static: nothing here depends on what runs.

    `loops` are the lengths of the scans around it, outermost first; `call` tells the calls of one trace apart;
    `position` is that of the equation: its index, after those of the equations around it, outermost first;
    `terms` is how many numbers are summed up in each entry.
    """

    path: str
    kind: str
    direction: str
    shape: tuple[int, ...]
    dtype: str
    source: str = ""
    output: str = ""
    branch: str = ""
    loops: tuple[int, ...] = ()
    in_while: bool = False
    call: int = -1
    position: tuple[int, ...] = ()
    terms: int = 1

    @property
    def iterations(self) -> str:
        return "x".join(map(str, self.loops))


@dataclasses.dataclass(frozen=True)
class Place:
    """What surrounds a program inside the whole one."""

    names: tuple[str, ...] = ()
    is_transposed: bool = False
    is_recomputed: bool = False
    is_in_backward_remat: bool = False
    """Whether it computes again what a remat did not keep, so that forward marks were seen before."""
    branch: str = ""
    in_while: bool = False
    kept: tuple[bool, ...] | None = None
    """Which outputs of the program are more than residuals for a backward pass; None: all."""
    position: tuple[int, ...] = ()
    """Indices of the equations around it, outermost first; that of a cond is followed by the branch's number."""
    equations: tuple[Any, ...] = ()
    """The equations around it, outermost first, and its own."""

    def at(self, eqn: Any, index: int) -> Place:
        """The place of the equation with that index: its own names below these."""
        names, is_transposed, is_recomputed = list(self.names), self.is_transposed, self.is_recomputed
        own = []
        for entry in eqn.source_info.name_stack.stack:
            if type(entry).__name__ != "Scope":
                is_transposed |= entry.name == "transpose"
            elif entry.name == RECOMPUTED:
                is_recomputed = True
            else:
                own += [entry.name]
        half = len(own) // 2
        if eqn.params.get("differentiated") and own[:half] == own[half:]:
            own = own[:half]  # the transpose of a remat repeats the names of the remat
        return dataclasses.replace(
            self,
            names=(*names, *own),
            is_transposed=is_transposed,
            is_recomputed=is_recomputed,
            kept=None,
            position=(*self.position, index),
            equations=(*self.equations, eqn),
        )

    def site(self, variable: Any, **fields: Any) -> Site:
        """The site of an equation's output."""
        aval = variable.aval
        where = {"path": "/".join(self.names), "branch": self.branch, "in_while": self.in_while}
        where["position"] = self.position
        return Site(**{**where, "shape": tuple(aval.shape), "dtype": str(aval.dtype), **fields})


def number_calls(sites: list[Site]) -> tuple[Site, ...]:
    """The sites, with gradients under the path of the call that they belong to, and repeated calls numbered.

    The transpose of a program carries names that JAX may have repeated or dropped, so that a gradient is joined to
    its call by the call's number, and only where several share that (one trace for several calls) by its names,
    then in reverse order. The second call with one path and branch is path#2, and so on.
    """
    forward = _numbered([i for i, s in enumerate(sites) if s.direction == FORWARD], sites)
    by_call = collections.defaultdict(list)
    for i, path in forward.items():
        if sites[i].call >= 0:
            by_call[sites[i].call, sites[i].output, sites[i].branch].append(path)
    named = dict(forward)
    later = [i for i, s in enumerate(sites) if s.direction != FORWARD and s.call >= 0]
    for i in later:
        mates = by_call[sites[i].call, sites[i].output, sites[i].branch]
        if len(mates) == 1:
            named[i] = mates[0]
        elif mates:
            alike = [path for path in mates if path.split("#")[0] == sites[i].path]
            chosen = (alike or mates)[-1]
            mates.remove(chosen)
            named[i] = chosen
    return _numbered_scopes([dataclasses.replace(s, path=named.get(i, s.path)) for i, s in enumerate(sites)])


def _numbered_scopes(sites: list[Site]) -> tuple[Site, ...]:
    """The sites, with outputs 0, 1, ... in the order of the program where several values leave one scope."""
    keys = [(s.path, s.direction, s.branch) if s.kind == SCOPE else None for s in sites]
    several = {key for key, n in collections.Counter(keys).items() if key and n > 1}
    count: dict[tuple | None, int] = collections.Counter()
    numbered = []
    for key, site in zip(keys, sites, strict=True):
        numbered.append(dataclasses.replace(site, output=str(count[key])) if key in several else site)
        count[key] += 1
    return tuple(numbered)


def _numbered(indices: list[int], sites: list[Site]) -> dict[int, str]:
    """Index -> path with #2, #3, ... where calls share a path, branch and output. Operations are not numbered."""
    count: dict[tuple, int] = collections.Counter()
    paths = {}
    for i in indices:
        site = sites[i]
        count[site.path, site.branch, site.output] += site.call >= 0
        number = count[site.path, site.branch, site.output]
        paths[i] = f"{site.path}#{number}" if number > 1 else site.path
    return paths
