"""Equations with programs inside: jit, remat, scan, while and cond, each bound again with statistics as outputs.

What a walk sees inside leaves an equation as more outputs: stacked by iteration from a scan, one set a branch from a
cond, the largest over iterations from a while.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun, primitives

from jaxstab.observation.sites import Place, Site

Records = list[tuple[Site, Any]]
Result = tuple[list[Any], Records]


@runtime_checkable
class Walker(Protocol):
    """What goes through a program; what stands for a value in it is an array or a pytree of arrays."""

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], place: Place) -> Result: ...
    def carried(self, value: Any) -> Any: ...
    def own(self, value: Any) -> Any: ...
    def merge(self, old: Any, new: Any) -> Any: ...


class Operation:
    """An equation without its operands: equal to another that does the same. TypeError if it cannot be hashed."""

    def __init__(self, eqn: Any):
        self.primitive, self.params = eqn.primitive, eqn.params

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Operation) and (self.primitive, self.params) == (
            other.primitive,
            other.params,
        )

    def __hash__(self) -> int:
        return hash((self.primitive, frozenset(self.params.items())))


def bind(operation: Any, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of an equation or `Operation`, left whole."""
    primitive = operation.primitive
    outputs = primitive.bind(*inputs, **primitive.get_bind_params(operation.params))
    return list(outputs) if primitive.multiple_results else [outputs]


def can_enter(eqn: Any) -> bool:
    """Whether what an equation does is told by its program: no mutable references, no shardings of a jit."""
    if any("Ref" in type(v.aval).__name__ for v in eqn.invars):
        return False
    shardings = (*eqn.params.get("in_shardings", ()), *eqn.params.get("out_shardings", ()))
    return all("Unspecified" in type(sharding).__name__ for sharding in shardings)


class _Inside:
    """A program with the records' arrays as a second output; the sites are known once it was traced."""

    def __init__(self, walk: Walker, jaxpr: Any, consts: Sequence[Any], place: Place):
        self.walk, self.jaxpr, self.consts, self.place = walk, jaxpr, consts, place
        self.sites: list[Site] = []

    def __call__(self, *args: Any) -> tuple[list[Any], list[Any]]:
        outputs, records = self.here(args)
        self.sites = [site for site, _ in records]
        return outputs, [value for _, value in records]

    def here(self, inputs: Sequence[Any]) -> Result:
        """The program's equations as if they stood in place of the equation."""
        return self.walk.run(self.jaxpr, self.consts, inputs, self.place)

    def records(self, values: Sequence[Any]) -> Records:
        return list(zip(self.sites, values, strict=True))


def _inside_jit(walk: Walker, eqn: Any, here: Place) -> _Inside:
    closed = eqn.params["jaxpr"]
    return _Inside(walk, closed.jaxpr, closed.consts, here)


def _inside_remat(walk: Walker, eqn: Any, here: Place) -> _Inside:
    again = here.is_in_backward_remat or eqn.params["differentiated"]
    return _Inside(walk, eqn.params["jaxpr"], (), dataclasses.replace(here, is_in_backward_remat=again))


def _enter_jit(walk: Walker, eqn: Any, inputs: list[Any], here: Place) -> Result:
    inside = _inside_jit(walk, eqn, here)

    def call(*args: Any) -> tuple[list[Any], list[Any]]:
        return inside(*args)

    call.__name__ = eqn.params["name"]
    outputs, values = jax.jit(call, inline=eqn.params["inline"])(*inputs)
    return outputs, inside.records(values)


def _enter_remat(walk: Walker, eqn: Any, inputs: list[Any], here: Place) -> Result:
    """Bound as the equation that it is: what keeps the compiler from undoing the recomputation is in its parameters."""
    inside = _inside_remat(walk, eqn, here)
    closed, shape = jax.make_jaxpr(inside, return_shape=True)(*inputs)
    jaxpr = closed.jaxpr.replace(constvars=(), invars=[*closed.jaxpr.constvars, *closed.jaxpr.invars])
    arrays = jax.tree.leaves((closed.consts, inputs))
    flat = primitives.remat_p.bind(*arrays, **{**eqn.params, "jaxpr": jaxpr})
    outputs, values = jax.tree.unflatten(jax.tree.structure(shape), flat)
    return outputs, inside.records(values)


def _enter_scan(walk: Walker, eqn: Any, inputs: list[Any], here: Place) -> Result:
    known, closed = eqn.params, eqn.params["jaxpr"]
    consts, carries = known["num_consts"], known["num_carry"]
    if here.kept is not None:
        here = dataclasses.replace(here, kept=(*[True] * carries, *here.kept[carries:]))
    inside = _Inside(walk, closed.jaxpr, closed.consts, here)

    def body(carry: list[Any], row: list[Any]) -> tuple[list[Any], Any]:
        outputs, values = inside(*inputs[:consts], *carry, *row)
        return [walk.carried(x) for x in outputs[:carries]], (outputs[carries:], values)

    start, rows = [walk.carried(x) for x in inputs[consts : consts + carries]], inputs[consts + carries :]
    end, (stacked, values) = lax.scan(
        body, start, rows, length=known["length"], reverse=known["reverse"], unroll=known["unroll"]
    )
    sites = [dataclasses.replace(site, loops=(known["length"], *site.loops)) for site in inside.sites]
    return [*end, *stacked], list(zip(sites, values, strict=True))


def _enter_while(walk: Walker, eqn: Any, inputs: list[Any], here: Place) -> Result:
    known = eqn.params
    first, second = known["cond_nconsts"], known["cond_nconsts"] + known["body_nconsts"]
    test = jaxpr_as_fun(known["cond_jaxpr"])
    body = known["body_jaxpr"]
    inside = _Inside(walk, body.jaxpr, body.consts, dataclasses.replace(here, in_while=True, kept=None))

    def step(state: tuple[Any, list[Any], list[Any]]) -> tuple[Any, list[Any], list[Any]]:
        has_run, carry, old = state
        outputs, new = inside(*inputs[first:second], *carry)
        merged = [
            jax.tree.map(functools.partial(jnp.where, has_run), walk.merge(a, b), b)
            for a, b in zip(old, new, strict=True)
        ]
        return jnp.ones((), bool), [walk.carried(x) for x in outputs], merged

    start = [walk.carried(x) for x in inputs[second:]]
    empty = _not_taken(jax.eval_shape(inside, *inputs[first:second], *start)[1])
    _, outputs, values = lax.while_loop(
        lambda state: test(*map(walk.own, (*inputs[:first], *state[1])))[0],
        step,
        (jnp.zeros((), bool), start, empty),
    )
    return outputs, inside.records(values)


def _enter_cond(walk: Walker, eqn: Any, inputs: list[Any], here: Place) -> Result:
    index, operands = walk.own(inputs[0]), inputs[1:]
    insides = []
    for number, closed in enumerate(eqn.params["branches"]):
        branch = f"{here.branch}/{number}" if here.branch else str(number)
        place = dataclasses.replace(here, branch=branch, position=(*here.position, number))
        insides.append(_Inside(walk, closed.jaxpr, closed.consts, place))
    shapes = [jax.eval_shape(inside, *operands)[1] for inside in insides]

    def branch_of(number: int) -> Callable[..., Any]:
        def branch(*args: Any) -> tuple[list[Any], list[Any]]:
            outputs, values = insides[number](*args)
            return [walk.carried(x) for x in outputs], [
                values if i == number else _not_taken(shape) for i, shape in enumerate(shapes)
            ]

        return branch

    outputs, values = lax.switch(index, [branch_of(i) for i in range(len(insides))], *operands)
    records = [record for inside, own in zip(insides, values, strict=True) for record in inside.records(own)]
    return outputs, records


def _not_taken(shapes: Sequence[Any]) -> list[Any]:
    return [jax.tree.map(lambda one: jnp.full(one.shape, jnp.nan, one.dtype), shape) for shape in shapes]


ENTERED: dict[Any, Callable[[Any, Any, list[Any], Place], Result]] = {
    primitives.jit_p: _enter_jit,
    primitives.remat_p: _enter_remat,
    primitives.scan_p: _enter_scan,
    primitives.while_p: _enter_while,
    primitives.cond_p: _enter_cond,
}

INLINED: dict[Any, Callable[[Any, Any, Place], _Inside]] = {
    primitives.jit_p: _inside_jit,
    primitives.remat_p: _inside_remat,
}
"""Equations that only hold others together."""
