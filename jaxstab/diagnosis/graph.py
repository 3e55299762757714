"""The computational graph of a function, with values forward and gradients backward where it is small.

`draw_graph(f, *args)` traces f and lays out what it computes as one flat list of nodes in the order of the
computation: arguments and constants first written down where they are read, operations inside the modules, named
scopes and jitted functions that they belong to, outputs last. A small graph is also run: each node then bears its
value and the gradient of the output with respect to it, as one writes them beside the nodes by hand.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxstab.diagnosis.nodes import (
    Node,
    Place,
    Program,
    is_written,
    names_of_arguments,
    names_of_globals,
    write_number,
)
from jaxstab.errors import UsageError, require_choice

MOST_NODES = 60
"""Values are shown in graphs of no more nodes, where every value is short enough to be written."""

TEXT, LINE, VALUE, GRADIENT = "#222222", "#777777", "#0062a3", "#b34700"
"""Nodes are white, so that what is written in them is legible on a dark page too; lines and names of clusters are of a
grey that is seen on both. Blue and burnt orange are told apart by all, and `=` and `∂` say it without colour."""

FONT = 'fontname="Helvetica,Arial,sans-serif"'
STYLES = {
    "argument": 'style="filled"', "constant": 'style="filled,dashed"', "operation": 'style="filled,rounded"',
    "output": 'style="filled", peripheries=2',
}  # fmt: skip

FORMATS = ("dot", "gv", "svg", "png", "pdf")


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """What a function computes: its nodes in the order of the computation, and what is said below the picture."""

    nodes: tuple[Node, ...]
    caption: str = ""

    @property
    def dot(self) -> str:
        """The graph in Graphviz's language, the same text for the same function and arguments."""
        return "\n".join(_dot_lines(self)) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the graph to a file: its text to .dot and .gv, a picture by Graphviz to .svg, .png and .pdf.

        UsageError for any other ending, and for a picture where Graphviz is not installed.
        """
        path = Path(path)
        suffix = require_choice(path.suffix.removeprefix(".").lower(), FORMATS, "format of a graph's file")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}.")
        path.write_bytes(self.dot.encode() if suffix in ("dot", "gv") else _render(self.dot, suffix))

    def _repr_svg_(self) -> str | None:
        return _render(self.dot, "svg").decode() if shutil.which("dot") else None

    def _repr_html_(self) -> str | None:  # a notebook prefers HTML to SVG, hence none beside a picture
        return None if shutil.which("dot") else f"<pre>{html.escape(self.dot)}</pre>"

    def __repr__(self) -> str:
        edges = sum(len(node.inputs) for node in self.nodes)
        return f"Graph of {len(self.nodes)} nodes and {edges} edges: .dot is its text, .save(path) writes it"


def draw_graph(f: Callable[..., Any], *args: Any) -> Graph:
    """The graph of f at these arguments (arrays, pytrees of them, or `jax.ShapeDtypeStruct` for the shapes alone).

    Modules, `jax.named_scope` and jitted functions are clusters. In a graph of at most 60 nodes with at most four
    numbers a value, nodes bear their values and, where f returns one real scalar, its gradient with respect to them.
    """
    if not callable(f):
        raise UsageError(f"draw_graph: a function is wanted first, then its arguments; this is {_kind(f)}.")
    names = names_of_arguments(f, args)
    for name, leaf in zip(names, jax.tree.leaves(args), strict=True):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, (int, float, complex)):
            raise UsageError(f"draw_graph: {name} is {_kind(leaf)}, which is no array.")
    try:
        closed, shapes = jax.make_jaxpr(lambda *given: f(*given), return_shape=True)(*args)
    except Exception as error:  # whatever f raises at these arguments
        reason = next(iter(str(error).splitlines()), "")
        name = getattr(f, "__name__", type(f).__name__)
        raise UsageError(
            f"draw_graph: {name} does not run on these arguments ({type(error).__name__}: {reason})"
        ) from error
    outputs = [
        f"output{jax.tree_util.keystr(path)}" for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    if not outputs:
        raise UsageError("draw_graph: the function returns no array, so that there is nothing to draw.")
    program = Program(names_of_globals(f))
    program.trace(closed, names, outputs)
    return _evaluated(program, jax.tree.leaves(args))


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def _evaluated(program: Program, arguments: list[Any]) -> Graph:
    """The graph with values and gradients, where it is small and the arguments are numbers; else with types alone."""
    given = [*arguments, *program.constants.values()]
    if any(isinstance(v, (jax.ShapeDtypeStruct, Tracer)) for v in given):
        return Graph(tuple(program.nodes), "values are not shown: shapes alone were given")
    if len(program.nodes) > MOST_NODES or not all(map(is_written, program.avals.values())):
        return Graph(tuple(program.nodes), "")
    outputs = [node.inputs[0] for node in program.nodes if node.kind == "output"]
    values, gradients = None, {}
    caption = "= value (blue); no gradients: the output is not one real scalar"
    if len(outputs) == 1 and _is_real(program.avals[outputs[0]]) and program.avals[outputs[0]].shape == ():
        try:
            values, gradients = _differentiated(program, arguments, outputs[0])
            caption = "= value (blue); ∂ gradient of the output with respect to it (orange)"
        except (ValueError, TypeError, NotImplementedError) as error:  # a while loop or a callback, say
            caption = f"= value (blue); no gradients: {next(iter(str(error).splitlines()), '')}"
    if values is None:
        values = jax.jit(program.run)(arguments, {})
    as_arrays = lambda found, number, node: tuple(  # noqa: E731
        np.asarray(found[number, i]) if (number, i) in found else None for i in range(len(node.types))
    )
    nodes = [
        dataclasses.replace(
            node, values=as_arrays(values, number, node), gradients=as_arrays(gradients, number, node)
        )
        for number, node in enumerate(program.nodes)
    ]
    return Graph(tuple(nodes), caption)


def _is_real(aval: Any) -> bool:
    return bool(jnp.issubdtype(aval.dtype, jnp.floating))


def _differentiated(
    program: Program, arguments: list[Any], output: Place
) -> tuple[dict[Place, Any], dict[Place, Any]]:
    """Every value, and the output's gradient with respect to all but constants: that of a zero added to each."""
    shifts = {
        place: jnp.zeros(aval.shape, aval.dtype)
        for place, aval in program.avals.items()
        if _is_real(aval) and program.nodes[place[0]].kind != "constant"
    }

    def shifted(shifts: dict[Place, Any], arguments: list[Any]) -> tuple[Any, dict[Place, Any]]:
        values = program.run(arguments, shifts)
        return values[output], values

    gradients, values = jax.jit(jax.grad(shifted, has_aux=True))(shifts, arguments)
    return values, gradients


def _escaped(text: str) -> str:
    """Text as it may stand in a label, whatever it holds."""
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return html.escape("".join(printable)) or "&#160;"


def _label_of(node: Node) -> str:
    lines = [_escaped(node.label)]
    marked = (("=", VALUE, node.values), ("∂", GRADIENT, node.gradients))
    for sign, colour, found in marked:
        lines += [
            f'<FONT COLOR="{colour}">{sign} {_escaped(write_number(number))}</FONT>'
            for number in found
            if number is not None and write_number(number) != node.label  # a number's name is its value
        ]
    return "<BR/>".join(lines)


def _dot_lines(graph: Graph) -> Iterable[str]:
    yield "digraph {"
    yield f'  rankdir=LR; bgcolor="transparent"; color="{LINE}"; fontcolor="{LINE}"; {FONT};'
    if graph.caption:
        yield f"  label=<{_escaped(graph.caption)}>; labelloc=b;"
    yield f'  node [shape=box, fillcolor="white", color="{LINE}", fontcolor="{TEXT}", {FONT}];'
    yield f'  edge [color="{LINE}", fontcolor="{LINE}", {FONT}, fontsize=10];'
    yield from _node_lines(graph)
    for number, node in enumerate(graph.nodes):
        for source, i in node.inputs:
            maker = graph.nodes[source]
            is_valued = bool(maker.values) and maker.values[i] is not None
            label = "" if is_valued else f" [label=<{_escaped(maker.types[i])}>]"
            yield f"  n{source} -> n{number}{label};"
    yield "}"


def _node_lines(graph: Graph) -> Iterable[str]:
    """Nodes in their order, each inside its clusters, which stay open as long as their nodes follow each other."""
    clusters, is_open = itertools.count(), ()
    indents = [
        "  " * depth for depth in range(1, 2 + max((len(node.scope) for node in graph.nodes), default=0))
    ]
    for number, node in enumerate(graph.nodes):
        alike = (a == b for a, b in zip(is_open, node.scope, strict=False))
        shared = sum(1 for _ in itertools.takewhile(bool, alike))
        yield from (indent + "}" for indent in reversed(indents[shared : len(is_open)]))
        for indent, name in zip(indents[shared:], node.scope[shared:], strict=False):
            yield f"{indent}subgraph cluster_{next(clusters)} {{ label=<{_escaped(name)}>;"
        is_open = node.scope
        yield f"{indents[len(is_open)]}n{number} [label=<{_label_of(node)}>, {STYLES[node.kind]}];"
    yield from (indent + "}" for indent in reversed(indents[: len(is_open)]))


def _render(dot: str, suffix: str) -> bytes:
    """The picture that Graphviz makes of a graph's text."""
    program = shutil.which("dot")
    if program is None:
        raise UsageError(
            f"a graph as .{suffix} needs Graphviz's program `dot`, which is not installed (graphviz.org/download;"
            " `apt install graphviz`, `brew install graphviz`); .dot and .gv need nothing."
        )
    done = subprocess.run([program, f"-T{suffix}"], input=dot.encode(), capture_output=True, check=False)
    if done.returncode:
        raise UsageError(f"Graphviz's `dot` failed: {next(iter(done.stderr.decode().splitlines()), '')}")
    return done.stdout
