"""A walk of a traced program that binds every equation again and takes statistics on the way.

Values are what they were: the same primitives with the same parameters. Programs inside an equation are entered only
where there is something to see.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from jaxstab.observation import loops
from jaxstab.observation.loops import Operation, Records
from jaxstab.observation.marks import BACKWARD, FORWARD, MARK, library_files, mark_p
from jaxstab.observation.scopes import is_seen, kept_outputs, leaving
from jaxstab.observation.sites import SCOPE, Place, Site
from jaxstab.observation.statistics import STATISTICS, measure, merge
from jaxstab.observation.stepwise import TRACED, Runner

MOVING = frozenset({
    "broadcast_in_dim", "convert_element_type", "copy", "copy_p", "expand_dims", "reshape", "rev", "squeeze",
    "transpose",
})  # fmt: skip
"""Operations that only move entries, copy each as often as every other, or change their dtype (see `is_moving`)."""


def programs_in(eqn: Any) -> Iterator[Jaxpr]:
    """The programs among an equation's parameters."""
    for value in eqn.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def has_marks(jaxpr: Jaxpr) -> bool:
    """Whether a mark stands in a program or in one inside it."""
    return any(e.primitive is mark_p or any(map(has_marks, programs_in(e))) for e in jaxpr.eqns)


def has_calls(jaxpr: Jaxpr) -> bool:
    """Whether an output of a module is marked; marks that users set by hand are none."""
    return any(
        (e.primitive is mark_p and e.params["kind"] != MARK) or any(map(has_calls, programs_in(e)))
        for e in jaxpr.eqns
    )


def has_scopes(jaxpr: Jaxpr) -> bool:
    """Whether any equation stands under a name, or a mark does."""
    return any(
        any(type(entry).__name__ == "Scope" for entry in e.source_info.name_stack.stack)
        or e.primitive is mark_p
        or any(map(has_scopes, programs_in(e)))
        for e in jaxpr.eqns
    )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[],
    meta_fields=["statistics", "at", "scopes", "is_nested", "runner"],
)
@dataclasses.dataclass(frozen=True)
class Walk:
    """What to look for. `is_nested` keeps the marks in the program, for the observation around this one."""

    statistics: tuple[str, ...]
    at: str
    scopes: bool = False
    is_nested: bool = False
    runner: Runner = TRACED

    def start(self, closed: ClosedJaxpr, arrays: Sequence[Any]) -> tuple[list[Any], Records]:
        """The outputs of a whole program, and (site, statistics) of what was seen in its order."""
        return self.run(closed.jaxpr, closed.consts, arrays, Place())

    def run(
        self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], place: Place
    ) -> tuple[list, Records]:
        """The outputs of the program and the records, at a place of the whole program."""
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, map(self.constant, consts), strict=True))
        values |= zip(jaxpr.invars, args, strict=True)
        places = [place.at(eqn, i) for i, eqn in enumerate(jaxpr.eqns)]
        out_of = leaving(jaxpr, places, place) if self.scopes else {}
        kept = self.kept(jaxpr, places, place)
        dies = _last_uses(jaxpr)
        records: Records = []
        known: dict[Any, Any] = {}

        def read(v: Any) -> Any:
            return self.constant(v.val) if isinstance(v, Literal) else values[v]

        for i, eqn in enumerate(jaxpr.eqns):
            here = dataclasses.replace(places[i], kept=kept[i])
            stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
            with source_info_util.user_context(eqn.source_info.traceback, name_stack=stack), eqn.ctx.manager:
                outputs, inner = self.step(eqn, [read(v) for v in eqn.invars], here, known)
                values |= zip(eqn.outvars, outputs, strict=True)
                records += inner
                records += [self._scope(eqn, here, names, v, values[v]) for names, v in out_of.get(i, ())]
            for v in dies[i]:
                values.pop(v, None)
        return [read(v) for v in jaxpr.outvars], records

    def constant(self, value: Any) -> Any:
        """What stands for a constant of the program."""
        return value

    def carried(self, value: Any) -> Any:
        """What stands for a value in a loop's carry or leaves a branch, where every value has the same form."""
        return value

    def own(self, value: Any) -> Any:
        """The array of the program itself."""
        return value

    def merge(self, old: Any, new: Any) -> Any:
        """One record for two iterations of a while loop."""
        return merge(old, new, self.statistics)

    def kept(self, jaxpr: Jaxpr, places: list[Place], place: Place) -> Sequence[tuple[bool, ...] | None]:
        """For each equation, `Place.kept`."""
        return kept_outputs(jaxpr, places, place) if self.scopes else [None] * len(places)

    def step(
        self, eqn: Any, inputs: list[Any], here: Place, known: dict[Any, Any]
    ) -> tuple[list[Any], Records]:
        """The outputs of an equation and its records. `known` are the statistics of variables before it."""
        if eqn.primitive is mark_p:
            return self._marked(eqn, inputs, here)
        enter = loops.ENTERED.get(eqn.primitive)
        if enter is not None and self._is_worth(eqn) and loops.can_enter(eqn):
            return self.runner.enter(enter, self, eqn, inputs, here)
        outputs = self.bind(eqn, inputs)
        if self.at == "calls":
            return outputs, []
        source = source_of(here)
        fields = {"kind": eqn.primitive.name, "direction": direction_of(here), "source": source}
        return outputs, [
            (
                here.site(v, **fields, output=str(i) if len(outputs) > 1 else ""),
                self._statistics(eqn, v, inputs, x, known),
            )
            for i, (v, x) in enumerate(zip(eqn.outvars, outputs, strict=True))
            if is_seen(v)
        ]

    def bind(self, eqn: Any, inputs: list[Any]) -> list[Any]:
        if eqn.effects or not self.runner.is_stepwise:
            return loops.bind(eqn, inputs)
        return self.runner.run(loops.bind, Operation(eqn), inputs)

    def _is_worth(self, eqn: Any) -> bool:
        if self.at == "operations" or (self.runner.is_stepwise and eqn.primitive in loops.INLINED):
            return True
        return any((has_scopes if self.scopes else has_marks)(inner) for inner in programs_in(eqn))

    def _marked(self, eqn: Any, inputs: list[Any], here: Place) -> tuple[list[Any], Records]:
        """A mark is passed on as nothing. Forward marks of a recomputation were seen in the forward pass."""
        outputs = loops.bind(eqn, inputs) if self.is_nested else inputs
        known = dict(eqn.params)
        path = "/".join(filter(None, (*here.names, known.pop("name"))))
        if self.at != "calls" or (known["direction"] == FORWARD and here.is_in_backward_remat):
            return outputs, []
        site = here.site(eqn.outvars[0], path=path, **known)
        return outputs, [(site, self.measure(inputs[0]))]

    def _scope(self, eqn: Any, here: Place, names: tuple[str, ...], v: Any, value: Any) -> tuple[Site, Any]:
        fields = {
            "path": "/".join(names),
            "kind": SCOPE,
            "direction": direction_of(here),
            "source": source_of(here),
        }
        return here.site(v, **fields), self.measure(value)

    def _statistics(self, eqn: Any, v: Any, inputs: list[Any], value: Any, known: dict[Any, Any]) -> Any:
        """The statistics of an output. What only moves entries has those of what it moves, which are taken once."""
        source, array = v, value
        if is_moving(eqn) and not any(STATISTICS[name].knows_axes for name in self.statistics):
            source, array = eqn.invars[0], inputs[0]
        if isinstance(source, Literal):
            return self.measure(array)
        if source not in known:
            known[source] = self.measure(array)
        known[v] = known[source]
        return known[v]

    def measure(self, value: Any) -> Any:
        return self.runner.run(measure, self.statistics, value)


def is_moving(eqn: Any) -> bool:
    """Whether the outputs have the entries of the first input, each as often as every other, maybe in a wider dtype."""
    if eqn.primitive.name not in MOVING or not is_seen(eqn.invars[0]):
        return False
    before, after = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    return jnp.promote_types(before, jnp.float32) == jnp.promote_types(after, jnp.float32) and (
        jnp.promote_types(before, after) == after
    )


def _last_uses(jaxpr: Jaxpr) -> list[list[Any]]:
    """For each equation the variables that nothing needs after it."""
    last = {
        v: i for i, eqn in enumerate(jaxpr.eqns) for v in (*eqn.invars, *eqn.outvars) if isinstance(v, Var)
    }
    kept = {v for v in jaxpr.outvars if isinstance(v, Var)}
    dies: list[list[Any]] = [[] for _ in jaxpr.eqns]
    for v, i in last.items():
        if v not in kept:
            dies[i].append(v)
    return dies


def direction_of(here: Place) -> str:
    if here.is_recomputed:
        return "recomputed"
    return BACKWARD if here.is_transposed else FORWARD


def source_of(here: Place) -> str:
    """file:line of the innermost frame outside of libraries; JAX's own summary if all are inside.

    Equations of a library's jitted function have its frames alone, so that the call's stand for them.
    """
    for eqn in reversed(here.equations):
        for frame in getattr(eqn.source_info.traceback, "frames", ()):
            if not frame.file_name.startswith(("<", *library_files())):
                return f"{frame.file_name}:{frame.line_num}"
    return source_info_util.summarize(here.equations[-1].source_info)
