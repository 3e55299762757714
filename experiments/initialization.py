"""What do the usual initializations draw, and what do they do to shallow, deep and unequal networks?

The chapter and the lecture notes compare the framework's default, N(0, 0.01^2), Xavier and Kaiming: N(0, 0.01^2) may
serve a small network and does not serve a deep one; Xavier cannot keep the variance forward (n_in gamma = 1) and
backward (n_out gamma = 1) at once unless n_in = n_out, and takes gamma = 2/(n_in + n_out). The chapter prints one
4 x 5 Xavier matrix.
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
from jaxstab.nets import initializers
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INITS = {
    "default": ("torch_default", 1.0),
    "N(0, 0.01^2)": ("normal", 0.01),
    "Xavier": ("xavier_normal", 1.0),
    "Kaiming": ("kaiming_normal", 1.0),
}
MODES = ["fan_in", "fan_avg", "fan_out"]
PRINTED = [
    [-0.0154, -0.0992, -0.0582, 0.0524, 0.5907],
    [0.0058, 0.6695, 0.7016, 0.0252, 0.6670],
    [-0.3062, 0.3940, -0.1168, -0.3365, -0.4733],
    [0.4919, -0.3069, -0.2660, -0.9376, 0.0806],
]
claim = partial(make_claim, "initialization", source="chapter 4")


@dataclasses.dataclass(frozen=True)
class Config:
    """Networks of 256 units; a layer from `wide` units to `narrow`."""

    seeds: int = 64
    depths: tuple[int, ...] = (2, 50)
    width: int = 256
    wide: int = 512
    narrow: int = 64


SCALES = {"smoke": Config(seeds=8, depths=(20,), width=64), "default": Config(), "full": Config(seeds=1024)}


@jaxstab.family
def printed_matrix(key: jax.Array, *, rows: int = 4, columns: int = 5) -> dict[str, jax.Array]:
    """Root mean square of a small Xavier matrix's entries, as printed."""
    matrix = initializers.xavier_normal()(key, (rows, columns))
    return {"rms": jnp.sqrt(jnp.mean(matrix**2))}


@jaxstab.family
def unequal_layer(
    key: jax.Array, *, n_in: int, n_out: int, mode: str, distribution: str
) -> dict[str, jax.Array]:
    """Variance of y = x W and of g = d W' for x and d of variance 1, where W's variance is 1 over a fan."""
    w_key, x_key, d_key = jax.random.split(key, 3)
    weights = initializers.variance_scaling(1.0, mode, distribution)(w_key, (n_in, n_out))
    x, d = jax.random.normal(x_key, (64, n_in)), jax.random.normal(d_key, (64, n_out))
    return {
        "forward_var": jnp.var(jnp.matmul(x, weights, precision="highest")),
        "backward_var": jnp.var(jnp.matmul(d, weights.T, precision="highest")),
    }


def run(config: Config) -> Record:
    """Small and deep networks under each initialization; a layer of unequal widths under each mode."""
    names, gains = zip(*INITS.values(), strict=True)
    schemes = jaxstab.zipped(init=names, gain=gains)
    axes = jaxstab.grid(activation=["relu", "tanh"], depth=list(config.depths), width=config.width)
    measured = jaxstab.sweep(
        jaxstab.propagation, schemes * axes, config.seeds, keep=["log10_forward_rms", "log10_backward_rms"]
    ).drop_vars("status")
    predicted = jaxstab.predict(schemes * axes)
    data = measured.assign({f"{name}_theory": predicted[name] for name in measured.data_vars})
    layer = jaxstab.sweep(
        unequal_layer,
        jaxstab.grid(mode=MODES, distribution=["normal", "uniform"], n_in=config.wide, n_out=config.narrow),
        config.seeds,
    ).drop_vars(["status", "n_in", "n_out"])
    matrix = jaxstab.sweep(printed_matrix, jaxstab.grid(), 10_000)
    data = data.assign(layer.data_vars).assign(printed_rms=("draw", matrix.rms.values))
    data.attrs = {"n_in": config.wide, "n_out": config.narrow}
    return Record(data.assign_coords(configuration=list(INITS)))


def plot(record: Record) -> dict[str, Figure]:
    """Signals and gradients by layer in deep networks; both variances of the unequal layer."""
    import matplotlib.pyplot as plt

    data = record.data
    deep = data.isel(depth=-1)
    figure, panels = plt.subplots(2, 2, figsize=(9.5, 5.4), sharex=True)
    for row, name in zip(panels, ("log10_forward_rms", "log10_backward_rms"), strict=True):
        for panel, activation in zip(row, ("relu", "tanh"), strict=True):
            for label in INITS:
                one = deep.sel(configuration=label, activation=activation)
                figures.band(panel, one[name], label=label)
                figures.theory(panel, one.layer, one[f"{name}_theory"])
            panel.set_ylim(-25, 5)
            panel.set_title(f"{words.called(activation)}: {'signal' if 'forward' in name else 'gradient'}")
            if "forward" in name:
                figures.label_lines(panel)
        row[0].set_ylabel("log10 of the rms")
    for panel in panels[1]:
        panel.set_xlabel(f"layer of {int(deep.depth)}")
    figures.note(figure, figures.of_seeds(data.sizes["seed"]), "dashes: theory")
    figures.describe(
        figure,
        f"Four panels: log10 of the rms of signal and gradient over {int(deep.depth)} layers, for ReLU and"
        " tanh, a line for each initialization. "
        + "; ".join(
            f"{label}'s signal under ReLU becomes {words.median(one.isel(layer=-1), words.power)}"
            for label in INITS
            for one in [deep.log10_forward_rms.sel(configuration=label, activation="relu")]
        )
        + ".",
    )
    return {"deep": figure, "unequal": plot_unequal(data)}


def plot_unequal(data: xr.Dataset) -> Figure:
    """Variance forward and backward for each mode, with n_in gamma and n_out gamma as dashes."""
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(6.4, 3.3))
    for i, (name, fan) in enumerate([("forward_var", "n_in"), ("backward_var", "n_out")]):
        places = np.arange(len(MODES)) + 0.16 * (i - 0.5)
        one = data[name].sel(distribution="normal")
        low, middle, high = figures.quantiles(one)
        label = f"measured, {name.removesuffix('_var')}"
        panel.errorbar(places, middle, (middle - low, high - middle), fmt="o", capsize=3, label=label)
        told = [data.attrs[fan] * gamma(data, mode) for mode in MODES]
        panel.plot(places, told, "_", color=figures.THEORY, ms=22, label=None if i else "theory")
    panel.axhline(1, color=figures.THEORY, linewidth=0.9, linestyle=":")
    panel.set_xticks(np.arange(len(MODES)), ["1/n_in", "2/(n_in + n_out)", "1/n_out"])
    panel.set(
        yscale="log",
        xlim=(-0.5, len(MODES) - 0.5),
        xlabel="variance of a weight",
        ylabel="variance of what leaves",
        title=f"From {data.attrs['n_in']} to {data.attrs['n_out']} units no weight keeps both variances at 1",
    )
    figures.plain_ticks(panel.yaxis, [0.1, 0.2, 0.5, 1, 2, 5, 10])
    panel.legend()
    figures.note(figure, f"points: median and 95 % of {data.sizes['seed']} seeds")
    figures.describe(
        figure,
        "Two points, variance forward and backward, for each of three variances of the weights: 1/n_in"
        " keeps the forward one at 1, 1/n_out the backward one, and 2/(n_in + n_out) neither.",
    )
    return figure


def gamma(data: xr.Dataset, mode: str) -> float:
    """A weight's variance under a mode."""
    n_in, n_out = data.attrs["n_in"], data.attrs["n_out"]
    return {"fan_in": 1 / n_in, "fan_avg": 2 / (n_in + n_out), "fan_out": 1 / n_out}[mode]


def findings(record: Record) -> str:
    """What each scheme leaves of a ReLU network's gradient, shallow and deep, and the compromise of Xavier."""
    data = record.data
    told = []
    for depth in data.depth.values:
        one = data.log10_backward_rms.sel(depth=depth, activation="relu")
        lost = one.sel(layer=1) - one.sel(layer=depth)
        left = {name: words.middle(lost.sel(configuration=name)) for name in INITS}
        each = [
            f"{words.power(left[name])} ({name})" for name in sorted(left, key=left.__getitem__, reverse=True)
        ]
        told.append(f"through {depth} layers {words.listed(each)}")
    variances = [
        f"{words.median(data[f'{way}_var'].sel(distribution='normal', mode='fan_avg'))} {way}"
        for way in ("forward", "backward")
    ]
    return (
        f"Of the gradient's rms at the last layer of a ReLU network ({int(data.width)} units a layer) the"
        f" first layer gets {'; '.join(told)}; medians of {data.sizes['seed']} seeds. From"
        f" {data.attrs['n_in']} to {data.attrs['n_out']} units Xavier's compromise turns a variance of 1"
        f" into {words.listed(variances)}."
    )


def claims(record: Record) -> Iterator[Claim]:
    """The printed Xavier matrix, and what the notes say of N(0, 0.01^2) in words."""
    data, printed = record.data, float(np.sqrt(np.mean(np.square(PRINTED))))
    yield claim("rms of a 4 x 5 Xavier matrix", data.printed_rms, printed, theory=np.sqrt(2 / 9))
    small = data.sel(configuration="N(0, 0.01^2)", activation="relu", layer=1)
    for depth in data.depth.values:
        one = small.sel(depth=depth)
        what = f"N(0, 0.01^2), ReLU, {depth} layers: log10 gradient at layer 1"
        theory = one.log10_backward_rms_theory
        yield claim(what, one.log10_backward_rms, source="lecture notes", theory=theory)
