"""Is the chapter's derivation by hand of the gradient of J = L + s what `jax.grad` computes?

Chapter 4 takes one hidden layer without biases, z = W1 x, h = phi(z), o = W2 h, a loss L(o, y) and the
penalty s = lambda/2 (|W1|^2 + |W2|^2), and derives by the chain rule dJ/dW2 = dL/do h' + lambda W2 and
dJ/dW1 = (W2' dL/do * phi'(z)) x' + lambda W1. It prints no numbers.

Here both are computed for every seed, in float32 and in float64, for several activations and lambdas: they
differ by rounding, which float64 makes 2^29 times smaller; a forgotten term would not shrink.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import jaxstab
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record
from jaxstab.theory import activations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS, HIDDEN, OUTPUTS = 20, 30, 10
DTYPES = ("float32", "float64")
LAMBDAS = np.concatenate([[0.0], np.geomspace(1e-3, 10, 9)])
claim = partial(make_claim, "regularized_backprop", source="chapter 4")


@dataclasses.dataclass(frozen=True)
class Config:
    """How many networks, and of which activations."""

    seeds: int = 1024
    activations: tuple[str, ...] = ("sigmoid", "tanh", "relu")


SCALES = {"smoke": Config(seeds=32, activations=("tanh",)), "default": Config(), "full": Config(seeds=32_768)}


@jaxstab.family
def gradients(key: jax.Array, *, activation: str, dtype: str, decay: float) -> dict[str, jax.Array]:
    """One example and one network: relative difference of the two gradients, and the penalty's share in them."""
    phi = activations.resolve(activation)
    x_key, y_key, *keys = jax.random.split(key, 4)
    sizes = {"W1": (HIDDEN, INPUTS), "W2": (OUTPUTS, HIDDEN)}
    draw = jaxstab.initializers.xavier_normal(in_axis=1, out_axis=0)
    weights = {name: draw(k, size).astype(dtype) for k, (name, size) in zip(keys, sizes.items(), strict=True)}
    x = jax.random.normal(x_key, (INPUTS,)).astype(dtype)
    label, strength = jax.random.randint(y_key, (), 0, OUTPUTS), jnp.asarray(decay).astype(dtype)
    product = partial(jnp.matmul, precision="highest")

    def objective(weights: dict[str, jax.Array]) -> jax.Array:
        o = product(weights["W2"], phi(product(weights["W1"], x)))
        penalty = strength / 2 * sum(jnp.sum(w**2) for w in weights.values())
        return -jax.nn.log_softmax(o)[label] + penalty

    # forward, and back again by the chain rule
    z = product(weights["W1"], x)
    h = phi(z)
    o = product(weights["W2"], h)
    at_o = jax.nn.softmax(o) - jax.nn.one_hot(label, OUTPUTS, dtype=dtype)
    at_h = product(weights["W2"].T, at_o)
    at_z = at_h * activations.derivative(phi)(z)
    by_hand = {
        "W1": jnp.outer(at_z, x) + strength * weights["W1"],
        "W2": jnp.outer(at_o, h) + strength * weights["W2"],
    }
    by_grad = jax.grad(objective)(weights)

    def norm(a: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(a**2))

    found = {}
    for name in sizes:
        found[f"difference_{name}"] = norm(by_hand[name] - by_grad[name]) / norm(by_grad[name])
        found[f"share_{name}"] = norm(strength * weights[name]) / norm(by_grad[name])
    return found


def run(config: Config) -> Record:
    """Every activation and lambda, in both dtypes."""
    found = []
    for dtype in DTYPES:
        with jax.enable_x64(dtype == "float64"):
            space = jaxstab.grid(activation=config.activations, decay=LAMBDAS, dtype=dtype)
            data = jaxstab.sweep(gradients, space, config.seeds)
        found.append(data.drop_vars("dtype"))
    data = xr.concat(found, "dtype")
    return Record(data.assign_coords(dtype=list(DTYPES)))


def plot(record: Record) -> dict[str, Figure]:
    """Relative differences over seeds, and how much of the gradient is the penalty's as lambda grows."""
    import matplotlib.pyplot as plt

    data = record.data
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2))
    bins = np.geomspace(1e-18, 1e-5, 90)
    for number, weight in enumerate(("W1", "W2")):
        for dtype, alpha in zip(DTYPES, (0.9, 0.45), strict=True):
            difference = data[f"difference_{weight}"].sel(dtype=dtype).values.ravel()
            left.hist(
                np.maximum(difference, bins[0]),
                bins,
                color=f"C{number}",
                alpha=alpha,
                label=f"{weight}, {dtype}",
            )
        for activation, line in zip(data.activation.values[-2:], ("-", "--"), strict=False):
            share = data[f"share_{weight}"].sel(dtype="float32", activation=activation, decay=LAMBDAS[1:])
            label = f"{weight}, {words.called(activation)}"
            figures.band(right, share, x="decay", color=f"C{number}", linestyle=line, label=label)
    for dtype in DTYPES:
        left.axvline(np.finfo(dtype).eps, color=figures.THEORY, linewidth=0.9, linestyle=":")
    left.set(
        xscale="log",
        xlabel="relative difference, by hand and jax.grad",
        ylabel="networks",
        title="By hand and by jax.grad they differ by rounding",
    )
    right.set(xscale="log", yscale="log", xlabel="$\\lambda$", ylabel="|penalty's gradient| / |gradient|")
    right.set_title("The penalty's share grows with $\\lambda$")
    left.annotate(
        "exactly 0", (bins[0], 0), (1.6, 0.05), textcoords="offset points", rotation=90, fontsize=7.5
    )
    left.legend(fontsize=7.5)
    right.legend()
    figures.note(figure, figures.of_seeds(data.sizes["seed"]), "dots: rounding units")
    figures.describe(figure, tell(data))
    return {"gradients": figure}


def worst_difference(data: xr.Dataset, dtype: str) -> float:
    """The largest relative difference of all networks."""
    one = data.sel(dtype=dtype)
    return float(np.maximum(one.difference_W1, one.difference_W2).max())


def tell(data: xr.Dataset) -> str:
    """The figure in words."""
    worst = [f"{words.short(worst_difference(data, dtype))} in {dtype}" for dtype in DTYPES]
    shares = [
        words.number(jaxstab.quantiles(data.share_W1.sel(decay=decay), 0.5).mean())
        for decay in LAMBDAS[[1, -1]]
    ]
    return (
        f"Left: histograms of relative differences, at most {words.listed(worst)}, those that are exactly 0"
        f" at the left end. Right: the penalty's share of W1's gradient over lambda, from {shares[0]} at"
        f" {LAMBDAS[1]:g} to {shares[1]} at {LAMBDAS[-1]:g}."
    )


def findings(record: Record) -> str:
    """The largest relative difference in either dtype: rounding shrinks with it, a forgotten term would not."""
    data = record.data
    told = [
        f"{words.short(worst_difference(data, dtype))} in {dtype} (which rounds by"
        f" {words.short(np.finfo(dtype).eps)})"
        for dtype in DTYPES
    ]
    return (
        f"Over {data.sizes['seed']:,} draws of a network {INPUTS}-{HIDDEN}-{OUTPUTS} with"
        f" {words.listed(map(words.called, data.activation.values))}, and {data.sizes['decay']} values of"
        f" lambda up to {words.number(data.decay.max())}, the gradients by hand and by jax.grad differ by at"
        f" most {words.listed(told)}, relative to their norm."
    )


def claims(record: Record) -> Iterator[Claim]:
    """The largest relative difference of each seed, in units of rounding."""
    for dtype in DTYPES:
        one = record.data.sel(dtype=dtype)
        worst = np.maximum(one.difference_W1, one.difference_W2).max(("activation", "decay"))
        what = f"{dtype}: largest relative difference, in rounding units"
        yield claim(what, worst / np.finfo(dtype).eps)
