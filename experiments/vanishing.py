"""How much of a gradient does each sigmoid take, and do the bottom layers of a deep sigmoid network learn at all?

The notes on backpropagation: y (1 - y) is at most 1/4, so that each sigmoid leaves at most a quarter of the gradient.
The lecture notes: then the bottom layers cannot move, only the top ones are trained, and a deep network is as good as
a shallow one. Here the factor is measured layer by layer; and networks of 2 and 12 layers learn scikit-learn's
digits with sigmoid, tanh and ReLU, each at the best of four learning rates, while it is observed how far each layer
moves from where it began.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import jaxstab
from jaxstab.data import datasets
from jaxstab.data.images import ImageData
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record
from jaxstab.trials import training
from jaxstab.trials.fitting import fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RATES = [0.003, 0.01, 0.03, 0.1]
ACTIVATIONS = {"sigmoid": "xavier_normal", "tanh": "xavier_normal", "relu": "kaiming_normal"}
UNITS = 32
claim = partial(make_claim, "vanishing", source="lecture notes")


@dataclasses.dataclass(frozen=True)
class Config:
    """Stacks of `depth` sigmoids; classifiers of `layers` matrices, `epochs` epochs of batches of 64."""

    seeds: int = 16
    depth: int = 20
    layers: tuple[int, ...] = (2, 12)
    epochs: int = 20


SCALES = {
    "smoke": Config(seeds=3, layers=(2, 4), epochs=2),
    "default": Config(),
    "full": Config(seeds=256, epochs=60),
}


@jaxstab.family(
    dims={"moved": ("matrix",), "gradient": ("matrix",)}, shared=lambda spec: datasets.load("digits")
)
def classifier(
    key: jax.Array,
    data: ImageData,
    *,
    layers: int,
    activation: str,
    epochs: int,
    learning_rate: float = 0.1,
) -> dict[str, jax.Array]:
    """Train a classifier of `layers` matrices; how far each moved, relative to where it began, and its accuracy."""
    spec = training.Spec("digits", (UNITS,) * (layers - 1), activation, ACTIVATIONS[activation])
    task = training.make_task(spec, training.HParams(), data)
    result = fit(key, task, optax.sgd(learning_rate, momentum=0.9), epochs=epochs, batch_size=64)
    inputs, targets = jax.tree.map(lambda x: x[:256], task.data)

    def loss(params: Any) -> jax.Array:
        return jnp.mean(task.loss(task.apply(params, inputs, None), targets))

    def root(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.mean(x**2))

    begun, ended, slope = (
        matrices(tree) for tree in (result.start, result.params, jax.grad(loss)(result.start))
    )
    guess = jnp.argmax(task.apply(result.params, jnp.asarray(data.test_images), None), axis=1)
    return {
        "moved": jnp.stack([root(b - a) / root(a) for a, b in zip(begun, ended, strict=True)]),
        "gradient": jnp.stack([root(g) for g in slope]),
        "test_accuracy": jnp.mean(guess == data.test_labels),
    }


def matrices(params: Any) -> list[jax.Array]:
    """Weight matrices from the input on."""
    found = jax.tree_util.tree_leaves_with_path(params)
    kernels = [(jax.tree_util.keystr(path), leaf) for path, leaf in found if leaf.ndim == 2]
    numbered = sorted(kernels, key=lambda item: int("".join(c for c in item[0] if c.isdigit()) or 0))
    return [leaf for _, leaf in numbered]


def run(config: Config) -> Record:
    """The factor of every sigmoid, and the training of shallow and deep classifiers."""
    deep = jaxstab.grid(activation=list(ACTIVATIONS), init="lecun_normal", depth=config.depth)
    stack = jaxstab.sweep(jaxstab.propagation, deep, config.seeds, keep=["log10_backward_rms"])
    trained = jaxstab.sweep(
        classifier,
        jaxstab.grid(
            layers=list(config.layers),
            activation=list(ACTIVATIONS),
            learning_rate=RATES,
            epochs=config.epochs,
        ),
        config.seeds,
    )
    best = figures.quantiles(trained.test_accuracy)[1].idxmax("learning_rate")
    trained = trained.sel(learning_rate=best).rename(learning_rate="best_rate")
    log10 = stack.log10_backward_rms.reset_coords(drop=True)
    # what layer l + 1 leaves of the gradient on its way from its own output to that of layer l
    factor = 10 ** -log10.diff("layer", label="lower")
    return Record(trained.drop_vars("status").assign(log10_backward_rms=log10, factor=factor))


def plot(record: Record) -> dict[str, Figure]:
    """Gradients through the stacks; how far each matrix moved; accuracies of shallow and deep."""
    import matplotlib.pyplot as plt

    data = record.data
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.5))
    for activation in ACTIVATIONS:
        name = words.called(activation)
        figures.band(left, data.log10_backward_rms.sel(activation=activation), label=name)
        deep = data.moved.sel(activation=activation).isel(layers=-1)
        figures.band(middle, deep, x="matrix", label=name)
    layers = data.layer.values
    figures.theory(left, layers, np.log10(0.25) * (layers[-1] - layers), label="1/4 a layer")
    least, moved = (
        words.median(data.log10_backward_rms.sel(activation="sigmoid").isel(layer=0), words.power),
        words.median(data.moved.sel(activation="sigmoid").isel(layers=-1, matrix=0), words.short),
    )
    left.set(xlabel="layer", ylabel="log10 of the gradient's rms")
    left.set_title(f"At the start the first sigmoid layer gets {least}")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend()
    deepest = int(data.layers[-1])
    middle.set(
        xlabel="matrix",
        ylabel="distance moved / size at the start",
        yscale="log",
        title=f"Trained, sigmoid's first of {deepest} has moved by {moved}",
    )
    middle.xaxis.get_major_locator().set_params(integer=True)
    figures.label_lines(middle)
    plot_accuracies(right, data)
    figures.note(figure, figures.of_seeds(data.sizes["seed"]))
    figures.describe(figure, tell(data))
    return {"vanishing": figure}


def plot_accuracies(panel: Axes, data: xr.Dataset) -> None:
    """Median and 95 % of the test accuracies of shallow and deep, for each activation."""
    places = np.arange(len(ACTIVATIONS))
    for i, count in enumerate(data.layers.values):
        accuracy = data.test_accuracy.sel(layers=count).transpose("activation", "seed")
        low, median, high = figures.quantiles(accuracy)
        ends = [median - low, high - median]
        panel.errorbar(places + 0.16 * (i - 0.5), median, ends, fmt="o", label=f"{count} matrices")
    panel.set_xticks(places, [words.called(name) for name in ACTIVATIONS])
    panel.set(ylabel="test accuracy", title="What training on digits reaches", ylim=(0, 1.02))
    panel.legend(loc="lower right")


def tell(data: xr.Dataset) -> str:
    """The figure in words."""
    lost, moved = (
        words.listed(f"{words.called(n)} {words.median(x.sel(activation=n), spell)}" for n in ACTIVATIONS)
        for x, spell in (
            (data.log10_backward_rms.isel(layer=0), words.power),
            (data.moved.isel(layers=-1, matrix=0), words.short),
        )
    )
    return (
        f"Left: the gradient's rms by layer of {int(data.layer[-1])}; at the first it is {lost}. Middle: how"
        f" far each of {int(data.layers[-1])} matrices moved in training, relative to its size; the first by"
        f" {moved}. Right: test accuracies of {words.listed(data.layers.values)} matrices for each"
        " activation."
    )


def findings(record: Record) -> str:
    """What a sigmoid layer leaves; how far the first matrix moved; accuracies of shallow and deep."""
    data = record.data
    depth = int(data.layer[-1])
    shallow, deep = (int(data.layers[i]) for i in (0, -1))
    factor = data.factor.sel(activation="sigmoid", layer=depth // 2)
    told = []
    for name in ACTIVATIONS:
        one = data.sel(activation=name)
        accuracy = {n: words.median(one.test_accuracy.sel(layers=n)) for n in (shallow, deep)}
        told.append(
            f"with {words.called(name)} by {words.median(one.moved.sel(layers=deep).isel(matrix=0))} of its"
            f" size, to a test accuracy of {accuracy[deep]} (with {shallow} matrices {accuracy[shallow]})"
        )
    return (
        f"In a stack of {depth} sigmoid layers with weights of variance 1/n each leaves"
        f" {words.interval(factor)} of the gradient. In {int(data.epochs)} epochs of scikit-learn's digits,"
        f" at the best of {len(RATES)} learning rates, the first of {deep} matrices ({UNITS} units) moves"
        f" {'; '.join(told)}; medians."
    )


def claims(record: Record) -> Iterator[Claim]:
    """The bound of 1/4, and what became of the bottom layer."""
    sigmoid = record.data.sel(activation="sigmoid")
    deep, shallow = sigmoid.isel(layers=-1), sigmoid.isel(layers=0)
    depth = int(record.data.layer[-1])
    theory = jaxstab.predict(activation="sigmoid", init="lecun_normal", depth=depth).log10_backward_rms
    middle = depth // 2
    yield claim(
        "sigmoid: share of the gradient that a layer leaves",
        sigmoid.factor.sel(layer=middle),
        0.25,
        source="backpropagation",
        theory=10 ** (theory.sel(layer=middle) - theory.sel(layer=middle + 1)),
        incomparable="a bound on the factor, not a draw of it",
    )
    name = f"sigmoid, {int(deep.layers)} layers"
    yield claim(f"{name}: first matrix moved, relative", deep.moved.isel(matrix=0))
    yield claim(f"{name}: test accuracy", deep.test_accuracy)
    yield claim("sigmoid, 2 layers: test accuracy", shallow.test_accuracy)
