"""Where does the gradient of an activation vanish, and which activations are the identity near 0?

The chapter draws the sigmoid and its gradient over x = -8, -7.9, ..., 7.9 (notes on section 4.8): the gradient is at
most 1/4, at 0, and vanishes on both sides. The lecture notes say that it is about 0 beyond 6, and judge
activations by their Taylor series at 0: tanh and ReLU pass small signals on as they are, the sigmoid does not,
4 sigmoid(x) - 2 does.
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

ACTIVATIONS = ["sigmoid", "tanh", "relu", "scaled_sigmoid"]
POINTS = np.arange(160, dtype=np.float32) / 10 - 8
claim = partial(make_claim, "sigmoid_gradient", source="backpropagation")


@dataclasses.dataclass(frozen=True)
class Config:
    """Nothing is random here, so that one seed says all."""


SCALES = {"smoke": Config(), "default": Config(), "full": Config()}


@jaxstab.family(dims={"value": ("x",), "gradient": ("x",)})
def curve(key: jax.Array, *, activation: str) -> dict[str, jax.Array]:
    """An activation and its gradient by `jax.grad` along the points, and its first Taylor coefficients at 0."""
    phi = activations.resolve(activation)
    x, zero = jnp.asarray(POINTS), jnp.float32(0)
    return {
        "value": phi(x),
        "gradient": jax.vmap(jax.grad(phi))(x),
        "at_0": phi(zero),
        "gradient_at_0": jax.grad(phi)(zero),
        "gradient_at_6": jax.grad(phi)(jnp.float32(6)),
    }


def run(config: Config) -> Record:
    """Every curve at the chapter's points."""
    data = jaxstab.sweep(curve, jaxstab.grid(activation=ACTIVATIONS), seeds=1)
    return Record(data.isel(seed=0).assign_coords(x=POINTS))


def plot(record: Record) -> dict[str, Figure]:
    """The chapter's figure, once for each activation."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(ACTIVATIONS), figsize=(10.5, 2.9), sharey=True)
    for panel, one in zip(panels, each(record.data), strict=True):
        panel.plot(one.x, one.value, label="activation")
        panel.plot(one.x, one.gradient, label="gradient")
        figures.theory(panel, one.x, one.x, linestyle=":", label="identity")
        panel.set(title=words.called(one.activation.item()), xlabel="x", ylim=(-2.2, 2.2))
        panel.annotate(
            f"gradient at 6:\n{words.number(one.gradient_at_6, 2)}",
            (6, float(one.gradient_at_6)),
            (1.5, -1.8),
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": figures.THEORY, "linewidth": 0.7},
        )
    panels[0].legend(loc="upper left")
    figures.describe(
        figure,
        "Four panels over x from -8 to 8, each with an activation, its gradient and the identity as a"
        " dotted line. The gradients of sigmoid, tanh and 4 sigmoid - 2 are bells around 0 that fall to"
        " nearly 0 on both sides; that of ReLU is a step from 0 to 1.",
    )
    return {"curves": figure}


def each(data: xr.Dataset) -> list[xr.Dataset]:
    """The activations in turn."""
    return [data.sel(activation=name) for name in data.activation.values]


def findings(record: Record) -> str:
    """How much of a gradient is left at 6, and what is the identity near 0, from the right and from the left."""
    data = record.data
    lost, kept = [], []
    for one in each(data):
        name = words.called(one.activation.item())
        ends = one.gradient.sel(x=-6, method="nearest"), one.gradient_at_6
        gone = [f"{words.number(end, 2)} at {x}" for end, x in zip(ends, (-6, 6), strict=True)]
        if max(ends) < 0.01:
            lost.append(f"{name} ({words.number(max(ends), 2)})")
        else:
            kept.append(f"{name} ({words.listed(gone)})")
    same = {
        side: [
            words.called(one.activation.item())
            for one in each(data)
            if abs(one.value - one.x).sel(x=sign * 0.1, method="nearest") < 0.01
        ]
        for side, sign in (("left", -1), ("right", 1))
    }
    both = [name for name in same["right"] if name in same["left"]]
    half = [f"{name} for x > 0 alone" for name in same["right"] if name not in both]
    slope = data.gradient.sel(activation="sigmoid").max()
    return (
        f"At x = -6 and 6 the gradient is below 0.01 for {words.listed(lost)}, but not for"
        f" {words.listed(kept)}; the sigmoid's is at most {words.number(slope)} anywhere. Near 0"
        f" {words.listed(both + half)} pass x on as it is."
    )


def claims(record: Record) -> Iterator[Claim]:
    """Largest derivative and its place, and the Taylor coefficient of the corrected sigmoid."""
    sigmoid = record.data.gradient.sel(activation="sigmoid")
    corrected = record.data.gradient_at_0.sel(activation="scaled_sigmoid")
    yield claim("largest derivative of the sigmoid", sigmoid.max(), 0.25, theory=0.25)
    yield claim("x at which it is largest", sigmoid.idxmax("x"), 0.0, theory=0.0)
    yield claim("slope of 4 sigmoid(x) - 2 at 0", corrected, 1.0, source="lecture notes", theory=1.0)
