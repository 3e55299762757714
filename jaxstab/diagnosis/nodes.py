"""The nodes of a function's graph: a trace of it laid out flat, calls written out in their place, and run again.

A trace is a tree of programs inside programs. Here it becomes one list of nodes in the order of the computation;
each knows the clusters it lies in, and a value is told by the node that makes it.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

MOST_NUMBERS = 4
"""A value is written beside its node where it holds no more numbers."""

INLINED = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}  # fmt: skip
"""Calls that become clusters, and the parameter that holds their body. A function with a derivative of its own stays
one node, since the derivative of its body is another; so do loops and branches, whose bodies run often or never."""

TELLING = {"scan": "length", "integer_pow": "y"}
"""Parameters without which a node's name says too little."""

Place = tuple[int, int]
"""A value: the number of a node in `Graph.nodes`, and which of the node's outputs."""


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One node: its kind ("argument", "constant", "operation" or "output"), its name, the clusters it lies in
    (outermost first), the values it reads, and of each value that it makes the type, the value and the gradient of
    the output with respect to it (None where there is none)."""

    kind: str
    label: str
    scope: tuple[str, ...] = ()
    inputs: tuple[Place, ...] = ()
    types: tuple[str, ...] = ()
    values: tuple[np.ndarray | None, ...] = ()
    gradients: tuple[np.ndarray | None, ...] = ()


class Program:
    """The nodes of a traced function, and what it takes to run them again one by one."""

    def __init__(self, constant_names: Mapping[int, str]):
        self.nodes: list[Node] = []
        self.avals: dict[Place, Any] = {}
        self.constants: dict[int, Any] = {}
        self.equations: dict[int, Any] = {}
        self.constant_names = constant_names
        self.calls: dict[tuple[str, ...], int] = {}

    def trace(self, closed: Any, arguments: Sequence[str], outputs: Sequence[str]) -> None:
        """Write down a whole function."""
        jaxpr = closed.jaxpr
        given = [
            self.add(Node("argument", name), [var.aval])[0]
            for name, var in zip(arguments, jaxpr.invars, strict=True)
        ]
        constants = [
            self.constant(v, var.aval) for v, var in zip(closed.consts, jaxpr.constvars, strict=True)
        ]
        for name, place in zip(outputs, self.inline(jaxpr, [*constants, *given], ()), strict=True):
            self.add(Node("output", name, inputs=(place,)), [])

    def add(self, node: Node, avals: Iterable[Any]) -> list[Place]:
        """Append a node that makes values of these types."""
        avals, number = list(avals), len(self.nodes)
        self.nodes.append(dataclasses.replace(node, types=tuple(map(_type_name, avals))))
        places = [(number, i) for i in range(len(avals))]
        self.avals.update(zip(places, avals, strict=True))
        return places

    def constant(self, value: Any, aval: Any, scope: tuple[str, ...] = ()) -> Place:
        """A box for an array that f closes over, or for a number written in its text."""
        label = self.constant_names.get(id(value), "constant")
        if label == "constant" and is_written(aval) and not aval.shape:
            label = write_number(value)
        self.constants[len(self.nodes)] = value
        return self.add(Node("constant", label, scope), [aval])[0]

    def inline(self, jaxpr: Any, given: Sequence[Place], scope: tuple[str, ...]) -> list[Place]:
        """Append the operations of a function whose constants and arguments are given; where its outputs are."""
        places = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))

        def read(atom: Any, here: tuple[str, ...]) -> Place:
            return (
                self.constant(atom.val, atom.aval, here) if isinstance(atom, core.Literal) else places[atom]
            )

        for eqn in jaxpr.eqns:
            here = scope + tuple(filter(None, str(eqn.source_info.name_stack).split("/")))
            inputs = [read(atom, here) for atom in eqn.invars]
            if INLINED.get(eqn.primitive.name) in eqn.params:
                made = self.call(eqn, inputs, here)
            else:
                self.equations[len(self.nodes)] = eqn
                node = Node("operation", _operation_name(eqn), here, tuple(inputs))
                made = self.add(node, [var.aval for var in eqn.outvars])
            places.update(zip(eqn.outvars, made, strict=True))
        return [read(atom, scope) for atom in jaxpr.outvars]

    def call(self, eqn: Any, inputs: list[Place], scope: tuple[str, ...]) -> list[Place]:
        """Append the body of a call as a cluster; the second call of the same name is another cluster."""
        body = eqn.params[INLINED[eqn.primitive.name]]
        name = {"remat2": "checkpoint"}.get(eqn.primitive.name, eqn.primitive.name)
        inside = (*scope, str(eqn.params.get("name") or name))
        self.calls[inside] = self.calls.get(inside, 0) + 1
        if self.calls[inside] > 1:
            inside = (*scope, f"{inside[-1]} ({self.calls[inside]})")
        if not isinstance(body, core.ClosedJaxpr):
            return self.inline(body, inputs, inside)
        closed = zip(body.consts, body.jaxpr.constvars, strict=True)
        constants = [self.constant(value, var.aval, inside) for value, var in closed]
        return self.inline(body.jaxpr, [*constants, *inputs], inside)

    def run(self, arguments: Sequence[Any], shifts: Mapping[Place, Any]) -> dict[Place, Any]:
        """Every value of the function, with `shifts` added to some as soon as they are made."""
        values: dict[Place, Any] = {}
        for number, node in enumerate(self.nodes):
            if node.kind == "output":
                continue
            if number in self.equations:
                eqn = self.equations[number]
                parameters = eqn.primitive.get_bind_params(eqn.params)
                with eqn.ctx.manager:
                    made = eqn.primitive.bind(*(values[place] for place in node.inputs), **parameters)
                made = made if eqn.primitive.multiple_results else [made]
            else:
                made = [self.constants[number] if number in self.constants else arguments[number]]
            for i, value in enumerate(made):
                shift = shifts.get((number, i))
                values[number, i] = value if shift is None else value + shift
        return values


def _type_name(aval: Any) -> str:
    return f"{aval.dtype}{list(aval.shape)}".replace(" ", "") if hasattr(aval, "dtype") else str(aval)


def _operation_name(eqn: Any) -> str:
    name = eqn.primitive.name
    if name.startswith("custom_"):  # the function's name, where it says one
        body = eqn.params.get("call_jaxpr")
        source = getattr(getattr(getattr(body, "jaxpr", body), "debug_info", None), "func_src_info", None)
        return str(source).split(" at ")[0] if source else name
    return f"{name} {TELLING[name]}={eqn.params[TELLING[name]]}" if TELLING.get(name) in eqn.params else name


def is_written(aval: Any) -> bool:
    """Whether a value of this type can be written in a node: few numbers, and no random key or token."""
    dtype = getattr(aval, "dtype", None)
    is_array = dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.extended)
    return is_array and math.prod(aval.shape) <= MOST_NUMBERS


def write_number(value: Any) -> str:
    """Numbers as one writes them beside a node: four digits, brackets around rows."""
    array = np.asarray(value)
    if array.ndim:
        return f"[{', '.join(map(write_number, array))}]"
    if array.dtype == bool or jnp.issubdtype(array.dtype, jnp.integer):
        return str(array.item())
    return f"{array.item():.4g}"


def names_of_arguments(f: Callable[..., Any], args: tuple[Any, ...]) -> list[str]:
    """Of each array in the arguments: the parameter's name in f's signature, and the path inside it."""
    try:
        named: Mapping[str, Any] = inspect.signature(f).bind(*args).arguments
    except (TypeError, ValueError):  # no signature, or one that says something else than the call
        named = {"argument": args}
    return [
        name + jax.tree_util.keystr(path)
        for name, value in named.items()
        for path, _ in jax.tree_util.tree_leaves_with_path(value)
    ]


def names_of_globals(f: Callable[..., Any]) -> dict[int, str]:
    """Names of the arrays that f reads without being given them, by identity."""
    try:
        found = inspect.getclosurevars(inspect.unwrap(f))
    except (TypeError, ValueError):
        return {}
    named = {**found.globals, **found.nonlocals}
    return {id(value): name for name, value in named.items() if isinstance(value, (jax.Array, np.ndarray))}
