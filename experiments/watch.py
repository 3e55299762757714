"""What does every layer do while a network learns? Observed inside the user's own step, with optax and with NNX.

No callback, no hook: `jaxstab.observe` of the training step is one more step, of the same bits, that also returns what
was seen; every so many steps it takes the place of the plain one, and `xarray.concat` makes a history of it. Here two
deep networks of sigmoids learn scikit-learn's digits: at first no gradient reaches their lower layers, and one sees
when it does. `python -m experiments.watch` draws both histories, layer by step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
import xarray as xr
from flax import linen, nnx

import jaxstab
from jaxstab.data import datasets
from jaxstab.report import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, WIDTH, CLASSES, PIXELS, BATCH = 6, 64, 10, 64, 64


def watch(
    step: Callable[[Any, Any], Any], state: Any, batches: Iterable[Any], every: int
) -> tuple[Any, xr.Dataset]:
    """Train by `state = step(state, batch)`; the last state, and what was seen in every `every`-th step."""
    plain, observed = jax.jit(step), jax.jit(jaxstab.observe(step))
    seen = {}
    for number, batch in enumerate(batches):
        if number % every:
            state = plain(state, batch)
        else:
            state, seen[number] = observed(state, batch)
    steps = xr.Variable("step", list(seen), {"long_name": "training step", "units": "1"})
    tables = [one.to_dataset() for one in seen.values()]
    history = xr.concat(tables, steps, coords="minimal", compat="override", join="override")
    return state, cast(xr.Dataset, history)


class Linen(linen.Module):
    """Sigmoids, and a linear read-out."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(DEPTH):
            x = jax.nn.sigmoid(linen.Dense(WIDTH, name=f"layer_{i + 1}")(x))
        return linen.Dense(CLASSES, name="head")(x)


def with_optax(optimizer: optax.GradientTransformation) -> tuple[Callable[[Any, Any], Any], Any]:
    """A step of a linen module, (parameters, optimizer's state) -> the next, and where it begins."""
    model = Linen()

    def loss(params: Any, batch: Any) -> jax.Array:
        return cross_entropy(model.apply(params, batch[0]), batch[1])

    def step(state: Any, batch: Any) -> Any:
        params, inner = state
        updates, inner = optimizer.update(jax.grad(loss)(params, batch), inner, params)
        return optax.apply_updates(params, updates), inner

    params = model.init(jax.random.key(0), jnp.zeros((1, PIXELS)))
    return step, (params, optimizer.init(params))


class Nnx(nnx.Module):
    """The same in NNX, with layer norm before each sigmoid."""

    def __init__(self, rngs: nnx.Rngs):
        sizes = [PIXELS, *[WIDTH] * DEPTH]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(DEPTH)])
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = jax.nn.sigmoid(norm(layer(x)))
        return self.head(x)


def with_nnx(optimizer: optax.GradientTransformation) -> tuple[Callable[[Any, Any], Any], Any]:
    """A step of an NNX module, (model, `nnx.Optimizer`) -> both as the step leaves them, and where it begins."""

    def step(state: Any, batch: Any) -> Any:
        model, optimizer = state
        grads = nnx.grad(lambda model: cross_entropy(model(batch[0]), batch[1]))(model)
        optimizer.update(model, grads)
        return model, optimizer  # what a step changes it returns

    model = Nnx(nnx.Rngs(0))
    return step, (model, nnx.Optimizer(model, optimizer, wrt=nnx.Param))


def cross_entropy(logits: Any, labels: Any) -> jax.Array:
    """Mean over the batch, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def batches(steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images [batch, pixels], labels [batch]) of the digits, drawn at random, the same each time."""
    data, rng = datasets.load("digits"), np.random.default_rng(0)
    for _ in range(steps):
        chosen = rng.integers(len(data.train_images), size=BATCH)
        yield np.asarray(data.train_images)[chosen], np.asarray(data.train_labels)[chosen]


def gradients(history: xr.Dataset) -> xr.DataArray:
    """log10 rms of the gradient with respect to every layer's output, (layer, step), the first layer first."""
    layers = (history.direction == "backward") & history.kind.isin(["Dense", "Linear"])
    rms = history.rms.isel(site=layers).transpose("site", "step")[::-1]
    return np.log10(rms.where(rms > 0)).assign_attrs(long_name="log10 rms of the gradient")


def plot(histories: dict[str, xr.Dataset]) -> Figure:
    """A map of each history, layer by step, in one scale of colours."""
    import matplotlib.pyplot as plt

    maps = {title: gradients(history) for title, history in histories.items()}
    ends = [float(end) for one in maps.values() for end in (one.min(), one.max())]
    layers = np.arange(1, DEPTH + 2)
    figure, panels = plt.subplots(1, len(maps), figsize=(10, 3.4), sharey=True, squeeze=False)
    for panel, (title, one) in zip(panels[0], maps.items(), strict=True):
        panel.pcolormesh(one.step, layers, one, vmin=min(ends), vmax=max(ends), shading="nearest")
        panel.grid(False)
        panel.set(title=title, xlabel="training step", yticks=layers)
    panels[0, 0].set(ylabel="layer")
    figure.colorbar(panels[0, 0].collections[0], ax=panels[0].tolist(), label="log10 rms of the gradient")
    return figure


def main(steps: int = 600, every: int = 10, out: Path = Path("results/watch")) -> None:
    """Train both networks, and draw what their layers did.

    Args:
        steps: of training.
        every: this many steps one is observed.
        out: folder for watch.png.
    """
    histories = {}
    for title, make in (("optax, linen", with_optax), ("nnx.Optimizer, layer norm", with_nnx)):
        step, state = make(optax.adam(1e-3))
        _, histories[title] = watch(step, state, batches(steps), every)
    with figures.style():
        figures.save(plot(histories), out / "watch.png")
    print(out / "watch.png")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m experiments.watch")
