"""Who compiles what a walk binds: whoever has called it, or each equation for itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
from jax.extend.core import primitives

from jaxstab.compiler import compiler_options
from jaxstab.observation import loops
from jaxstab.observation.sites import Place, Site

Enter = Callable[[Any, Any, list[Any], Place], loops.Result]


@runtime_checkable
class Runner(Protocol):
    """How equations are run. `function` is of something static and of arrays."""

    is_stepwise: bool

    def run(self, function: Callable[..., Any], static: Any, *arrays: Any) -> Any: ...
    def enter(self, enter: Enter, walk: Any, eqn: Any, inputs: list[Any], here: Place) -> loops.Result: ...


class Traced:
    """What is bound becomes part of the caller's program, under `jax.jit` or another transformation.

    It is traced and lowered once for all equations that are alike, and inlined by the compiler.
    """

    is_stepwise = False

    def run(self, function: Callable[..., Any], static: Any, *arrays: Any) -> Any:
        return _traced(function)(static, *arrays) if _is_hashable(static) else function(static, *arrays)

    def enter(self, enter: Enter, walk: Any, eqn: Any, inputs: list[Any], here: Place) -> loops.Result:
        return enter(walk, eqn, inputs, here)


TRACED = Traced()


class Stepwise:
    """Every equation is a program of its own, the same for all that are alike, and a loop one with its iterations.

    Compiling a network of many layers so costs what its different operations cost, and another network's alike are
    known already; all pass NaN on. Only for arrays that are there: not under a transformation.
    """

    is_stepwise = True

    def __init__(self) -> None:
        self._loops: dict[tuple[int, ...], tuple[Callable[..., Any], list[Site]]] = {}

    def run(self, function: Callable[..., Any], static: Any, *arrays: Any) -> Any:
        if not _is_hashable(static):
            return function(static, *arrays)
        return _compiled(function, _size(arrays) <= SMALL)(static, *arrays)

    def enter(self, enter: Enter, walk: Any, eqn: Any, inputs: list[Any], here: Place) -> loops.Result:
        if (inside := loops.INLINED.get(eqn.primitive)) is not None:
            return inside(walk, eqn, here).here(inputs)
        if eqn.primitive not in LOOPS:
            return enter(walk, eqn, inputs, here)
        if here.position not in self._loops:
            self._loops[here.position] = _loop(enter, eqn, here, _size(inputs) <= LOOP)
        program, sites = self._loops[here.position]
        outputs, values = program(dataclasses.replace(walk, runner=TRACED), inputs)
        return outputs, list(zip(sites, values, strict=True))


SMALL = 2**16
"""Entries of all operands together, up to which compiling takes longer than running."""
LOOP = 2**20
"""The same of a loop, which is a program of many equations."""

LOOPS = frozenset({primitives.scan_p, primitives.while_p, primitives.cond_p})


def _loop(enter: Enter, eqn: Any, here: Place, is_small: bool) -> tuple[Callable[..., Any], list[Site]]:
    """The compiled loop, and the sites of its records once it has run."""
    sites: list[Site] = []

    def program(walk: Any, inputs: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs, records = enter(walk, eqn, inputs, here)
        sites[:] = [site for site, _ in records]
        return outputs, [value for _, value in records]

    return jax.jit(program, compiler_options=_options(is_small)), sites


def _is_hashable(static: Any) -> bool:
    try:
        hash(static)
    except TypeError:
        return False
    return True


@functools.cache
def _traced(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, static_argnums=0)


@functools.cache
def _compiled(function: Callable[..., Any], is_small: bool) -> Callable[..., Any]:
    return jax.jit(function, static_argnums=0, compiler_options=_options(is_small))


def _options(is_small: bool) -> dict[str, Any]:
    return compiler_options(jax.default_backend(), is_small=is_small)


def _size(arrays: Any) -> int:
    return sum(getattr(x, "size", 1) for x in jax.tree.leaves(arrays))
