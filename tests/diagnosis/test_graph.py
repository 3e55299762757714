"""The graph of a function: its nodes, the values and gradients beside them, and a text that Graphviz can read."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.diagnosis import graph as graphs
from jaxstab.diagnosis.graph import Graph, draw_graph
from jaxstab.diagnosis.nodes import Node
from jaxstab.errors import UsageError

ROOT = Path(__file__).parent.parent.parent
WEIGHTS = {"W1": jnp.array([[1.0], [2.0]]), "W2": jnp.array([[3.0, 4.0], [5.0, 6.0]])}
X, TARGET = jnp.array([1.0]), jnp.array([1.0, 0.0])


def example(a, b):
    return (a + b) * (b + 1)


def loss(weights, x, target):
    y = jax.nn.sigmoid(jnp.matmul(weights["W1"], x, precision="highest"))
    y = jax.nn.sigmoid(jnp.matmul(weights["W2"], y, precision="highest"))
    return jnp.mean((y - target) ** 2)


def nodes_of(graph: Graph, kind: str) -> list[Node]:
    return [node for node in graph.nodes if node.kind == kind]


def named(graph: Graph, label: str) -> Node:
    (node,) = (node for node in graph.nodes if node.label == label)
    return node


def value_of(node: Node) -> np.ndarray:
    (value,) = node.values
    assert value is not None
    return value


def gradient_of(node: Node) -> np.ndarray:
    (gradient,) = node.gradients
    assert gradient is not None
    return gradient


CLOSES = {">": "<", "}": "{", "</FONT>": "<FONT>"}


def is_well_formed(dot: str) -> bool:
    """Whether quotes, braces, labels and tags close in their order, and every edge joins nodes that are there."""
    is_open: list[str] = []
    text = re.sub(r'"[^"\n]*"', "", dot).replace("->", "").replace("<FONT COLOR=>", "<FONT>")
    for token in re.findall(r"</?FONT>|<BR/>|[<>{}]", text):
        if token == "<BR/>" or (token in "{}" and "<" in is_open):  # a brace inside a label is text
            continue
        if token not in CLOSES:
            is_open.append(token)
        elif not is_open or is_open.pop() != CLOSES[token]:
            return False
    there = set(re.findall(r"^ *(n\d+) \[label=", dot, re.MULTILINE))
    edges = re.findall(r"^ *(n\d+) -> (n\d+)", dot, re.MULTILINE)
    is_escaped = not re.search(r"&(?!(amp|lt|gt|quot|#160|#x27);)", dot)
    return not is_open and '"' not in text and is_escaped and {n for edge in edges for n in edge} <= there


def test_the_three_operations_of_e_bear_the_numbers_of_the_notes():
    graph = draw_graph(example, 2.0, 1.0)
    c, d, e = nodes_of(graph, "operation")
    assert [node.label for node in (c, d, e)] == ["add", "add", "mul"]
    assert [float(value_of(node)) for node in (c, d, e)] == [3, 2, 6]
    assert [float(gradient_of(node)) for node in (c, d, e)] == [2, 3, 1]
    assert [(node.label, float(gradient_of(node))) for node in nodes_of(graph, "argument")] == [
        ("a", 2),
        ("b", 5),
    ]
    assert [node.label for node in nodes_of(graph, "constant")] == ["1"]
    assert [node.label for node in nodes_of(graph, "output")] == ["output"]
    edges = {(graph.nodes[source].label, node.label) for node in graph.nodes for source, _ in node.inputs}
    assert edges == {("a", "add"), ("b", "add"), ("1", "add"), ("add", "mul"), ("mul", "output")}
    assert is_well_formed(graph.dot)
    assert "= 6</FONT>" in graph.dot
    assert "∂ 5</FONT>" in graph.dot


def require_gradients_of_the_network(graph: Graph) -> None:
    """Those of jax.grad at the arguments; the chain rule's, written out, between them."""
    by_grad = jax.grad(loss, argnums=(0, 1, 2))(WEIGHTS, X, TARGET)
    names = ("weights['W1']", "weights['W2']", "x", "target")
    for name, expected in zip(names, jax.tree.leaves(by_grad), strict=True):
        np.testing.assert_allclose(gradient_of(named(graph, name)), expected, rtol=1e-5)
    z1, y1, z2, y2 = nodes_of(graph, "operation")[:4]
    out, hidden = value_of(y2), value_of(y1)
    at_z2 = (out - np.asarray(TARGET)) * out * (1 - out)
    at_y1 = np.asarray(WEIGHTS["W2"]).T @ at_z2
    np.testing.assert_allclose(gradient_of(y2), out - np.asarray(TARGET), rtol=1e-5)
    np.testing.assert_allclose(gradient_of(z2), at_z2, rtol=1e-3)  # 1 - y is small
    np.testing.assert_allclose(gradient_of(y1), at_y1, rtol=1e-3)
    np.testing.assert_allclose(gradient_of(z1), at_y1 * hidden * (1 - hidden), rtol=1e-3)


def test_the_four_weight_network_bears_its_gradients():
    graph = draw_graph(loss, WEIGHTS, X, TARGET)
    require_gradients_of_the_network(graph)
    labels = [node.label for node in nodes_of(graph, "operation")]
    assert labels[:4] == ["dot_general", "logistic", "dot_general", "logistic"]
    (output,) = nodes_of(graph, "output")
    assert round(float(value_of(graph.nodes[output.inputs[0][0]])), 4) == 0.4999


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_wrong_gradient_is_seen(monkeypatch, factor):
    @jax.custom_jvp
    def sigmoid(x):
        return 1 / (1 + jnp.exp(-x))

    @sigmoid.defjvp
    def _(primals, tangents):
        y = sigmoid(*primals)
        return y, factor * y * (1 - y) * tangents[0]

    right = loss
    monkeypatch.setattr(jax.nn, "sigmoid", sigmoid)
    graph = draw_graph(lambda weights, x, target: right(weights, x, target), WEIGHTS, X, TARGET)
    monkeypatch.undo()
    assert nodes_of(graph, "operation")[1].label == "sigmoid"
    if factor == 1:
        require_gradients_of_the_network(graph)
        return
    with pytest.raises(AssertionError):
        require_gradients_of_the_network(graph)


def test_a_function_with_a_derivative_of_its_own_keeps_it():
    @jax.custom_vjp
    def straight(x):
        return jnp.round(x)

    straight.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
    graph = draw_graph(
        lambda x: 3 * jax.nn.relu(x) + straight(x), 0.0
    )  # max(x, 0) has the derivative 1/2 at 0
    assert {node.label for node in nodes_of(graph, "operation")} == {"relu", "straight", "mul", "add"}
    assert float(gradient_of(named(graph, "x"))) == 1


def test_loops_and_branches_are_one_node():
    def f(x):
        y, _ = jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)
        return jax.lax.cond(y > 0, lambda t: t * 2, lambda t: -t, y)

    graph = draw_graph(f, 1.0)
    assert "sin" not in {node.label for node in graph.nodes}
    assert float(value_of(named(graph, "cond"))) == pytest.approx(float(f(1.0)))
    assert float(gradient_of(named(graph, "scan length=3"))) == 2
    assert float(gradient_of(named(graph, "x"))) == pytest.approx(float(jax.grad(f)(1.0)))
    graph = draw_graph(lambda x: jax.lax.while_loop(lambda t: t < 3, lambda t: t + 1, x), 1.0)
    assert float(value_of(named(graph, "while"))) == 3
    assert named(graph, "x").gradients == (None,)
    assert "no gradients: Reverse-mode" in graph.caption


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(2)(x)))


def test_modules_scopes_and_calls_are_clusters():
    variables = Pair().init(jax.random.key(0), jnp.ones((1, 2)))
    graph = draw_graph(Pair().apply, variables, jnp.ones((1, 2)))
    assert named(graph, "tanh").scope == ("Pair",)
    assert {node.scope for node in graph.nodes if node.label == "dot_general"} == {
        ("Pair", "Dense_0"),
        ("Pair", "Dense_1"),
    }
    assert named(graph, "variables['params']['Dense_0']['kernel']").scope == ()
    assert graph.dot.count("subgraph cluster_") == 3

    def f(x):
        with jax.named_scope("outer"):
            y = jax.jit(jnp.sin)(x)
            with jax.named_scope("inner"):
                y = jnp.cos(y) + 1
        return jax.jit(jnp.sin)(y) * jax.checkpoint(jnp.tan)(y)

    graph = draw_graph(f, 1.0)
    assert [(node.label, node.scope) for node in nodes_of(graph, "operation")] == [
        ("sin", ("outer", "sin")),
        ("cos", ("outer", "inner")),
        ("add", ("outer", "inner")),
        ("sin", ("sin",)),
        ("tan", ("checkpoint",)),
        ("mul", ()),
    ]
    np.testing.assert_allclose(gradient_of(named(graph, "x")), jax.grad(f)(1.0), rtol=1e-6)
    again = draw_graph(lambda x: jax.jit(jnp.sin)(jax.jit(jnp.sin)(x)), 1.0)
    assert [node.scope for node in nodes_of(again, "operation")] == [("sin",), ("sin (2)",)]
    assert all(is_well_formed(g.dot) for g in (graph, again))


def test_arguments_constants_and_outputs_have_names():
    offset = jnp.array([1.0, 2.0])
    graph = draw_graph(
        lambda p, *more: {"sum": p["w"] + offset, "given": more[1], "three": 3.0}, {"w": X}, 1.0, 2
    )
    assert [node.label for node in nodes_of(graph, "argument")] == ["p['w']", "more[0]", "more[1]"]
    assert {node.label for node in nodes_of(graph, "constant")} == {"offset", "3"}
    assert [node.label for node in nodes_of(graph, "output")] == [
        "output['given']",
        "output['sum']",
        "output['three']",
    ]
    given = graph.nodes[nodes_of(graph, "output")[0].inputs[0][0]]
    assert given.label == "more[1]"
    assert "the output is not one real scalar" in graph.caption
    assert all(gradient is None for node in graph.nodes for gradient in node.gradients)


def is_valued(graph: Graph) -> bool:
    return any(value is not None for node in graph.nodes for value in node.values)


def chain(x, length: int):
    for _ in range(length):
        x = jnp.sin(x)
    return x


def test_values_are_shown_in_small_graphs_only():
    assert is_valued(draw_graph(lambda x: x.sum(), jnp.ones((2, 2))))
    large = draw_graph(lambda x: x.sum(), jnp.ones((5,)))
    assert not is_valued(large)
    assert "float32[5]" in large.dot
    assert is_valued(draw_graph(lambda x: chain(x, 58), 1.0))  # 60 nodes with the argument and the output
    assert not is_valued(draw_graph(lambda x: chain(x, 59), 1.0))
    abstract = draw_graph(example, jax.ShapeDtypeStruct((), jnp.float16), 1.0)
    assert not is_valued(abstract)
    assert "shapes alone" in abstract.caption
    inside = []
    jax.jit(lambda x: (inside.append(draw_graph(jnp.sin, x)), x)[1])(1.0)
    assert not is_valued(inside[0])
    assert not is_valued(draw_graph(jax.random.normal, jax.random.key(0)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8, jnp.complex64, bool])
def test_values_of_any_dtype_are_written(dtype):
    graph = draw_graph(lambda x: x * x, jnp.asarray(1, dtype))
    assert is_valued(graph)
    assert is_well_formed(graph.dot)
    assert (named(graph, "x").gradients[0] is not None) == jnp.issubdtype(dtype, jnp.floating)


ODD = 'a "<b>&{}\\N\n]]-> </FONT> \x00é'


def test_labels_may_hold_anything():
    def f(tree):
        with jax.named_scope(ODD):
            return jnp.sin(tree[ODD])

    graph = draw_graph(f, {ODD: 1.0, "": 2.0})
    assert is_well_formed(graph.dot)
    assert "&quot;&lt;b&gt;&amp;{}" in graph.dot
    assert "é" in graph.dot
    lines = graph.dot.splitlines()
    assert all(line.isprintable() and line.endswith(("{", "}", ";")) for line in lines)


def test_a_text_that_is_not_well_formed_is_seen(monkeypatch):
    monkeypatch.setattr(graphs.html, "escape", str)
    assert not is_well_formed(draw_graph(lambda tree: jnp.sin(tree[ODD]), {ODD: 1.0}).dot)
    monkeypatch.undo()
    dot = draw_graph(example, 2.0, 1.0).dot
    for planted in (
        dot + "}",
        dot.replace("n5 ->", "n9 ->"),
        dot.replace("</FONT>", "", 1),
        dot.replace("b;", 'b";'),
    ):
        assert not is_well_formed(planted)


def test_the_text_is_the_same_in_every_process():
    code = (
        "import jax, jax.numpy as jnp; from jaxstab.diagnosis.graph import draw_graph; c = jnp.ones(2);"
        "f = jax.jit(lambda p: jnp.mean(jax.nn.relu(p['b'] @ c) * p['a'] + c.sum()));"
        "print(draw_graph(f, {'b': jnp.ones((2, 2)), 'a': 2.0}).dot)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    one, two = (process.communicate()[0] for process in running)
    assert one == two
    assert is_well_formed(one)
    assert "relu" in one


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The only folder in which programs are looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_text_is_written_without_graphviz_and_pictures_say_what_they_need(tmp_path, programs):
    graph = draw_graph(example, 2.0, 1.0)
    for name in ("graph.dot", "graph.GV"):
        graph.save(tmp_path / name)
        assert (tmp_path / name).read_text() == graph.dot
    for name, words in {
        "graph.svg": "needs Graphviz's program `dot`, which is not installed",
        "graph.jpg": "Choices: dot, gv, svg",
        "graph": "unknown format",
        "none/graph.dot": "there is no folder",
    }.items():
        with pytest.raises(UsageError, match=words) as error:
            graph.save(str(tmp_path / name))
        assert "\n" not in str(error.value)
    assert graph._repr_svg_() is None
    assert "digraph" in str(graph._repr_html_())
    assert repr(graph).startswith("Graph of 7 nodes and 7 edges")


def test_graphviz_is_given_the_text(tmp_path, programs):
    program = programs / "dot"
    program.write_text('#!/bin/sh\necho "<svg>$1"\nwhile read -r line; do echo "$line"; done\n')
    program.chmod(0o755)
    graph = draw_graph(example, 2.0, 1.0)
    graph.save(tmp_path / "graph.svg")
    written = (tmp_path / "graph.svg").read_text()
    assert written.startswith("<svg>-Tsvg\ndigraph {")
    assert graph._repr_svg_() == written
    assert graph._repr_html_() is None
    program.write_text("#!/bin/sh\necho syntax error >&2\nexit 1\n")
    with pytest.raises(UsageError, match="failed: syntax error"):
        graph.save(tmp_path / "graph.png")


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@pytest.mark.parametrize("name", ["graph.svg", "graph.png", "graph.pdf"])
def test_graphviz_draws_it(tmp_path, name):
    draw_graph(loss, WEIGHTS, X, TARGET).save(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("f", "args", "words"),
    [
        (3, (), "a function is wanted first.*type int"),
        (jnp.sin, ("text",), "x is a value of type str, which is no array"),
        (lambda x: x @ x, (jnp.ones((2, 3)),), "does not run on these arguments .TypeError: dot_general"),
        (lambda x: x, (), "missing 1 required positional argument"),
        (lambda x: 1 if x > 0 else 2, (1.0,), "TracerBoolConversionError"),
        (Pair, (1.0,), "Pair does not run"),
        (lambda x: None, (1.0,), "returns no array"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(f, args, words):
    unchecked = inspect.unwrap(draw_graph)  # annotations are checked at run time in tests alone
    with pytest.raises(UsageError, match=words) as error:
        unchecked(f, *args)
    assert "\n" not in str(error.value)


def contrast(one: str, other: str) -> float:
    """Of two colours, as the Web Content Accessibility Guidelines define it: 4.5 is wanted of text, 3 of lines."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_what_is_written_is_legible_on_light_and_dark_pages():
    assert min(contrast(colour, "#ffffff") for colour in (graphs.TEXT, graphs.VALUE, graphs.GRADIENT)) > 4.5
    assert min(contrast(graphs.LINE, page) for page in ("#ffffff", "#111111")) > 4
    assert contrast("#cccccc", "#ffffff") < 3
