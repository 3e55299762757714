"""Does the gradient worked out by hand equal `jax.grad`'s, and how much of it does each sigmoid take?

Two examples of the notes on backpropagation: e = (a + b)(b + 1) at a = 2, b = 1; and the network 1-2-2 with a
sigmoid after each layer, x = 1, W1 = [[1], [2]], W2 = [[3, 4], [5, 6]], target (1, 0), mean squared error: its
forward pass, its loss (printed: 0.4999), every gradient by the chain rule, and one step of SGD at rate 1. Both graphs
are drawn with the value and the gradient beside each node; data.nc holds them in Graphviz's language, too.
A vector-Jacobian product with z equals the gradient of the scalar product with z. The network is exported to ONNX,
too, where jax2onnx is installed, and run there.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from jaxstab.diagnosis.graph import Graph, draw_graph
from jaxstab.diagnosis.nodes import write_number
from jaxstab.diagnosis.onnx import to_onnx
from jaxstab.errors import UsageError
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

X, TARGET = jnp.array([1.0]), jnp.array([1.0, 0.0])
WEIGHTS = {"W1": jnp.array([[1.0], [2.0]]), "W2": jnp.array([[3.0, 4.0], [5.0, 6.0]])}
claim = partial(make_claim, "backprop", source="backpropagation")


@dataclasses.dataclass(frozen=True)
class Config:
    """Nothing is random here."""


SCALES = {"smoke": Config(), "default": Config(), "full": Config()}


def example(a: jax.Array, b: jax.Array) -> jax.Array:
    """The notes' e."""
    return (a + b) * (b + 1)


def forward(weights: dict[str, jax.Array], x: jax.Array = X) -> dict[str, jax.Array]:
    """Every node of the network's graph; z of the linear parts, y of the sigmoids."""
    z1 = jnp.matmul(weights["W1"], x, precision="highest")
    y1 = jax.nn.sigmoid(z1)
    z2 = jnp.matmul(weights["W2"], y1, precision="highest")
    return {"z1": z1, "y1": y1, "z2": z2, "y2": jax.nn.sigmoid(z2)}


def loss(weights: dict[str, jax.Array], x: jax.Array = X, target: jax.Array = TARGET) -> jax.Array:
    """Mean squared error."""
    return jnp.mean((forward(weights, x)["y2"] - target) ** 2)


def gradients_by_hand(weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The chain rule from the loss back, written out; what is found at z2 serves both matrices."""
    nodes = forward(weights)
    at_z2 = (nodes["y2"] - TARGET) * nodes["y2"] * (1 - nodes["y2"])  # 2/2 of the mean over two outputs
    at_z1 = jnp.matmul(weights["W2"].T, at_z2, precision="highest") * nodes["y1"] * (1 - nodes["y1"])
    return {"W1": jnp.outer(at_z1, X), "W2": jnp.outer(at_z2, nodes["y1"])}


def vector_jacobian_products() -> tuple[np.ndarray, np.ndarray]:
    """Gradients of x in t = x + y: that of the scalar t'z, and the product of z with t's Jacobian."""
    x, y, z = (jnp.array(v) for v in ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]))
    of_scalar = jax.grad(lambda x: jnp.dot(x + y, z, precision="highest"))(x)
    (of_vector,) = jax.vjp(lambda x: x + y, x)[1](z)
    return np.asarray(of_scalar), np.asarray(of_vector)


def run(config: Config) -> Record:
    """Both examples, by hand and by `jax.grad`."""
    by_hand, by_grad = gradients_by_hand(WEIGHTS), jax.grad(loss)(WEIGHTS)
    updates, _ = optax.sgd(1.0).update(by_grad, optax.sgd(1.0).init(WEIGHTS))
    after = jax.tree.map(jnp.add, WEIGHTS, updates)
    de_da, de_db = jax.grad(example, argnums=(0, 1))(2.0, 1.0)
    of_scalar, of_vector = vector_jacobian_products()
    names = [f"{m}[{i},{j}]" for m, w in WEIGHTS.items() for i, j in np.ndindex(*w.shape)]

    def flat(tree: dict[str, jax.Array]) -> np.ndarray:
        return np.concatenate([np.ravel(tree[m]) for m in WEIGHTS])

    nodes = forward(WEIGHTS)
    data = xr.Dataset(
        {
            "by_hand": ("weight", flat(by_hand)),
            "by_grad": ("weight", flat(by_grad)),
            "after_one_step": ("weight", flat(after)),
            "node_value": ("node", np.concatenate([np.ravel(v) for v in nodes.values()])),
            "loss": loss(WEIGHTS),
            "loss_after_one_step": loss(after),
            "de_da": de_da,
            "de_db": de_db,
            "vjp_of_scalar": ("component", of_scalar),
            "vjp_of_vector": ("component", of_vector),
            "sigmoid_slope": (
                ("sigmoid", "unit"),
                np.stack([nodes[y] * (1 - nodes[y]) for y in ("y1", "y2")]),
            ),
        },
        {
            "weight": names,
            "node": [f"{name}[{i}]" for name, v in nodes.items() for i in range(v.size)],
            "sigmoid": [1, 2],
        },
    )
    graphs = {"e": draw_graph(example, 2.0, 1.0), "network": draw_graph(loss, WEIGHTS, X, TARGET)}
    data = xr.merge([data, *(tabulate(name, graph) for name, graph in graphs.items())])
    attributes = {f"graph_of_{name}": graph.dot for name, graph in graphs.items()}
    return Record(data.assign_attrs(attributes), (say_onnx(),))


def say_onnx() -> str:
    """The network's operators in ONNX, and how far its output there is from here; or why they are not known."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            export = to_onnx(lambda x: forward(WEIGHTS, x)["y2"], (X,), Path(folder) / "network.onnx")
        except UsageError as error:
            return f"The network in ONNX is left out: {error}"
    difference = export.largest_difference
    checked = "not run there" if difference is None else f"relative difference of the output {difference:.1g}"
    return f"The network in ONNX (opset {export.opset}): {', '.join(export.operators)}; {checked}."


def tabulate(name: str, graph: Graph) -> xr.Dataset:
    """A graph as data: what stands at each node, which reads which, and the layer in which a node is drawn.

    An operation stands below all that it reads, an argument right above the first that reads it.
    """
    nodes, edges = graph.nodes, [(s, n) for n, node in enumerate(graph.nodes) for s, _ in node.inputs]
    layer = [0] * len(nodes)
    for number, node in enumerate(nodes):
        layer[number] = max((layer[source] + 1 for source, _ in node.inputs), default=0)
    for number, node in enumerate(nodes):
        if not node.inputs:
            layer[number] = min((layer[n] - 1 for source, n in edges if source == number), default=0)
    written = {
        what: [" ".join(write_number(v) for v in getattr(node, what) if v is not None) for node in nodes]
        for what in ("values", "gradients")
    }
    at = f"node_of_{name}"
    return xr.Dataset(
        {
            f"label_in_{name}": (at, [node.label for node in nodes]),
            f"layer_in_{name}": (at, layer),
            f"edges_in_{name}": ((f"edge_of_{name}", "end"), edges),
            **{f"{what}_in_{name}": (at, lines) for what, lines in written.items()},
        }
    )


def plot(record: Record) -> dict[str, Figure]:
    """Gradients by hand and by `jax.grad`, and the factor that each sigmoid leaves."""
    import matplotlib.pyplot as plt

    data = record.data
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2))
    places = np.arange(data.sizes["weight"])
    left.plot(places, np.abs(data.by_hand), "o", markersize=9, markerfacecolor="none", label="by hand")
    left.plot(places, np.abs(data.by_grad), "x", label="jax.grad")
    left.set_xticks(places, data.weight.values)
    left.set(
        yscale="log", ylabel="|gradient of the loss|", title="By hand and by jax.grad: the same gradients"
    )
    left.legend()
    for unit in (0, 1):
        right.plot(data.sigmoid, data.sigmoid_slope.isel(unit=unit), "o-", label=f"unit {unit + 1}")
    figures.theory(right, [1, 2], [0.25, 0.25], label="1/4, the most")
    right.set(yscale="log", ylim=(None, 0.5), xticks=[1, 2], xlabel="layer", ylabel="slope y (1 - y)")
    right.set_title("What each sigmoid leaves of the gradient")
    right.legend(loc="lower left")
    slopes = [words.listed(words.number(s, 2) for s in data.sigmoid_slope.sel(sigmoid=i)) for i in (1, 2)]
    figures.describe(
        figure,
        "Left: the sizes of six gradients, by hand as circles and by jax.grad as crosses, which lie in one"
        f" another. Right: the slopes of the sigmoids, {slopes[0]} in layer 1 and {slopes[1]} in layer 2,"
        " under a line at 1/4.",
    )
    return {"gradients": figure, **{f"graph_of_{name}": plot_graph(data, name) for name in ("e", "network")}}


def plot_graph(data: xr.Dataset, name: str) -> Figure:
    """The computation from top to bottom; at each node its value (=) and the gradient with respect to it (∂)."""
    import matplotlib.pyplot as plt

    label, layer, edges, values, gradients = (
        data[f"{what}_in_{name}"].values for what in ("label", "layer", "edges", "values", "gradients")
    )
    place = np.array([np.count_nonzero(layer[:n] == layer[n]) for n in range(layer.size)])
    x = (place + 0.5) / np.array([np.count_nonzero(layer == layer[n]) for n in range(layer.size)])
    lines = []
    for name, value, gradient in zip(label, values, gradients, strict=True):
        known = ((f"= {value}", "C0"), (f"∂ {gradient}", "C1"))
        news = [
            (text, color) for text, color in known if text[2:] not in ("", name)
        ]  # a number's label is its value
        lines.append([(name, None), *news])
    figure, axes = plt.subplots(figsize=(6.5, 0.8 * (layer.max() + 1.5)))
    for source, target in edges:
        below = layer[source] + 0.2 * len(lines[source]) - 0.3
        arrow = {"arrowstyle": "->", "color": figures.THEORY}
        axes.annotate("", (x[target], layer[target] - 0.3), (x[source], below), arrowprops=arrow)
    for n in range(layer.size):
        for row, (text, color) in enumerate(lines[n]):
            y = layer[n] + 0.2 * (row - 1)
            axes.text(x[n], y, text, color=color, fontsize=8, ha="center", va="center")
    axes.set(
        xlim=(0, 1), ylim=(layer.max(), -0.4), title="= value, forward; ∂ gradient of the output, backward"
    )
    axes.axis("off")
    told = [f"{line[0][0]} {' '.join(text for text, _ in line[1:])}".strip() for line in lines]
    figures.describe(
        figure,
        "A graph of the computation from top to bottom, value (=) and gradient (∂) at each node:"
        f" {'; '.join(told)}.",
    )
    return figure


def findings(record: Record) -> str:
    """How far the two ways are apart, and the slopes of the sigmoids."""
    data = record.data
    difference = np.max(np.abs(data.by_hand - data.by_grad) / np.abs(data.by_grad))
    slopes = [words.listed(words.number(s, 2) for s in data.sigmoid_slope.sel(sigmoid=i)) for i in (1, 2)]
    return (
        "By hand and by jax.grad the six gradients of the network 1-2-2 differ by"
        f" {words.number(difference, 2)} of their size at most (float32 rounds by"
        f" {words.number(np.finfo(np.float32).eps, 2)}). A sigmoid's slope, at most 1/4, is {slopes[0]} in"
        f" the first layer and {slopes[1]} in the second; a step at rate 1 changes"
        f" the loss of {float(data.loss):.5f} by {words.number(data.loss_after_one_step - data.loss, 2)}."
    )


def claims(record: Record) -> Iterator[Claim]:
    """The printed loss, the derivatives of e, and the largest slope of a sigmoid."""
    data = record.data
    difference = np.max(np.abs(data.by_hand - data.by_grad) / np.abs(data.by_grad))
    yield claim("loss of the sigmoid network 1-2-2", data.loss, 0.4999, resolution=5e-5)
    yield claim("de/da at a = 2, b = 1", data.de_da, 2.0, theory=2.0)
    yield claim("de/db at a = 2, b = 1", data.de_db, 5.0, theory=5.0)
    yield claim("largest relative difference, by hand and jax.grad", difference, theory=0.0)
