"""In which layer do float16, bfloat16 and float32 overflow and underflow, and what does a loss scale do?

The lecture notes say that float16 holds numbers from 6e-5 to 6e4, and that a gradient below 5e-4 may be taken for
0. Here the edges of each dtype are found by computing with it; stacks that explode or vanish are run in each and the
layer where they break is held against its forecast; and gradients are scaled by the loss scale that theory proposes.
float16 still holds 6e-8 (a subnormal number): the notes' 5e-4 is where its relative precision, not the number, is
in danger.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import jaxstab
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DTYPES = ["float16", "bfloat16", "float32"]
STACKS = {
    "N(0, 1), linear": {"activation": "linear", "init": "normal"},
    "1/sqrt n, ReLU": {"activation": "relu", "init": "lecun_normal"},
    "0.85 Kaiming, ReLU": {"activation": "relu", "init": "kaiming_normal", "gain": 0.85},
    "gain 0.01, tanh": {"activation": "tanh", "init": "lecun_normal", "gain": 0.01},
}
MARKS = {"bad": ("x", "not finite"), "lost": ("o", "all zero")}
BAR: dict[str, Any] = {"linewidth": 4, "alpha": 0.45}
BREAKS = [f"first_{what}_layer_{way}" for what in ("bad", "lost") for way in ("forward", "backward")]
claim = partial(make_claim, "precision", source="lecture notes")


@dataclasses.dataclass(frozen=True)
class Config:
    """Stacks of the deep-stack notes' size."""

    seeds: int = 16
    depth: int = 100
    width: int = 256
    batch: int = 16


SCALES = {"smoke": Config(seeds=2, depth=40), "default": Config(), "full": Config(seeds=256)}


@jaxstab.family(dims={"largest": (), "smallest": (), "smallest_normal": ()})
def edges(key: jax.Array, *, dtype: str) -> dict[str, jax.Array]:
    """Largest and smallest numbers of a dtype that computing with it keeps: 2^e times one, over all e."""
    exponents = jnp.arange(-160, 130)
    numbers = jnp.ldexp(jnp.ones(exponents.shape, jnp.float32), exponents // 2).astype(dtype)
    rest = jnp.ldexp(jnp.ones(exponents.shape, jnp.float32), exponents - exponents // 2).astype(dtype)
    powers = numbers * rest  # the product is made in the dtype itself
    exact = (powers != 0) & jnp.isfinite(powers)
    half_more = powers * jnp.asarray(1 + jnp.finfo(dtype).eps, dtype)
    log2 = exponents.astype(jnp.float32)
    return {
        "largest": jnp.max(jnp.where(exact, log2, -jnp.inf)),
        "smallest": jnp.min(jnp.where(exact, log2, jnp.inf)),
        "smallest_normal": jnp.min(jnp.where(exact & (half_more != powers), log2, jnp.inf)),
    }


def run(config: Config) -> Record:
    """Edges of the dtypes; every stack in every dtype, measured and forecast; gradients under the loss scale."""
    sizes = {"depth": config.depth, "width": config.width, "batch": config.batch}
    keep = [*BREAKS, "log10_backward_rms", "backward_rms"]
    measured, forecast = [], []
    for settings in STACKS.values():
        measured.append(
            jaxstab.propagate(config.seeds, dtype=DTYPES, keep=keep, **sizes, **settings).reset_coords(
                drop=True
            )
        )
        forecast.append(jaxstab.predict(dtype=DTYPES, **sizes, **settings).reset_coords(drop=True))
    stack = xr.DataArray(list(STACKS), dims="stack", name="stack")
    data = xr.concat(measured, stack).drop_vars("status")
    predicted = xr.concat(forecast, stack)
    data = data.assign({f"{name}_theory": predicted[name] for name in [*BREAKS, "loss_scale"]})
    limits = jaxstab.sweep(edges, jaxstab.grid(dtype=DTYPES), seeds=1).isel(seed=0, drop=True)
    data = data.assign(
        {f"edge_{name}": 2.0 ** limits[name].astype(float) for name in limits.data_vars if name != "status"}
    )
    return Record(data.assign(scaled_lost=lost_share(data)))


def lost_share(data: xr.Dataset) -> xr.DataArray:
    """Share of layers whose gradient underflows float16, unscaled and under the scale that theory proposes."""
    log10 = data.log10_backward_rms.sel(dtype="float16", drop=True)
    smallest = float(np.log10(data.edge_smallest.sel(dtype="float16")))
    largest = float(np.log10(data.edge_largest.sel(dtype="float16")))
    scale = np.log10(data.loss_scale_theory.sel(dtype="float16", drop=True))
    kept = {"unscaled": log10, "scaled": log10 + scale.fillna(0)}
    lost = xr.Dataset(
        {name: ((x < smallest) | (x > largest)).mean(("layer", "seed")) for name, x in kept.items()}
    )
    return lost.to_dataarray("loss")


def plot(record: Record) -> dict[str, Figure]:
    """How far signals and gradients get in each dtype, and where they break; and gradients over float16's range."""
    return {"breaks": plot_breaks(record.data), "scaling": plot_scaling(record.data)}


def plot_breaks(data: xr.Dataset) -> Figure:
    """How far signals get from left to right and gradients from right to left, for each stack and dtype."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    depth = int(data.layer[-1])
    for panel, way in zip(panels, ("forward", "backward"), strict=True):
        draw_reach(panel, data, way)
        panel.set_xlabel(f"layer of {depth}")
        panel.grid(visible=False, axis="y")
    panels[0].set_title("How far the signal gets, from left to right")
    panels[1].set_title("How far the gradient gets, from right to left")
    panels[0].set_yticks(range(len(STACKS)), list(STACKS))
    panels[0].invert_yaxis()
    line: dict[str, Any] = {"linestyle": "none", "color": figures.THEORY, "fillstyle": "none"}
    shown = [Line2D([], [], color=f"C{j}", label=dtype, **BAR) for j, dtype in enumerate(DTYPES)]
    shown += [Line2D([], [], marker=marker, label=label, **line) for marker, label in MARKS.values()]
    shown += [Line2D([], [], marker="|", markersize=11, label="forecast", **line)]
    figure.legend(handles=shown, loc="outside lower left", ncols=len(shown))
    figures.note(figure, f"median of {data.sizes['seed']} seeds")
    figures.describe(
        figure,
        f"Bars from where signal or gradient set out to the layer of {depth} at which they break, for each"
        f" stack in {words.listed(DTYPES)}: {'; '.join(say_breaks(data)) or 'none breaks'}. The forecasts are"
        " marked beside.",
    )
    return figure


def draw_reach(panel: Axes, data: xr.Dataset, way: str) -> None:
    """A bar from where each stack's signal or gradient sets out to where it breaks, and theory's mark."""
    start, through = data.layer.values[[0, -1] if way == "forward" else [-1, 0]]
    for (i, name), (j, dtype) in itertools.product(enumerate(STACKS), enumerate(DTYPES)):
        one, place, reached = data.sel(stack=name, dtype=dtype), i + 0.24 * (j - 1), through
        for what, (marker, _) in MARKS.items():
            measured = words.middle(one[f"first_{what}_layer_{way}"])
            told = float(one[f"first_{what}_layer_{way}_theory"])
            if measured > 0:
                reached = measured
                panel.plot(measured, place, marker, color=f"C{j}", markersize=7, fillstyle="none", mew=1.8)
            if told > 0:
                panel.plot(told, place, "|", color=figures.THEORY, markersize=13, mew=1.4)
        panel.plot([start, reached], [place] * 2, color=f"C{j}", solid_capstyle="butt", **BAR)


def plot_scaling(data: xr.Dataset) -> Figure:
    """Gradients by layer against what float16 holds, before and after the loss scale."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(STACKS), figsize=(12, 3.2), sharey=True)
    edge = data.sel(dtype="float16")
    for panel, name in zip(panels, STACKS, strict=True):
        one = edge.sel(stack=name)
        panel.axhspan(np.log10(one.edge_smallest), np.log10(one.edge_largest), **figures.RANGE)
        figures.band(panel, one.log10_backward_rms, label="as it is")
        scale = float(one.loss_scale_theory)
        if np.isfinite(scale):
            figures.band(
                panel, one.log10_backward_rms + np.log10(scale), label=f"loss x 2^{np.log2(scale):.0f}"
            )
            panel.legend(loc="upper right")
        panel.set(xlabel="layer", title=name if np.isfinite(scale) else f"{name}: no scale serves")
        panel.set_ylim(-22, 22)
    panels[0].set_ylabel("log10 of the gradient's rms")
    figures.note(figure, figures.of_seeds(data.sizes["seed"]), "shaded: what float16 holds")
    least = [
        f"“{name}” {words.median(one.log10_backward_rms.isel(layer=0), words.power)}"
        for name in STACKS
        for one in [edge.sel(stack=name)]
    ]
    figures.describe(
        figure,
        "A panel for each stack: the gradient's rms by layer on a logarithmic axis, over the range that"
        " float16 holds, and shifted by the loss scale where there is one. At the first layer it is"
        f" {words.listed(least)}.",
    )
    return figure


def findings(record: Record) -> str:
    """Where each stack breaks in each dtype, forward and backward, and what the loss scale saves of float16."""
    data = record.data
    half = data.sel(dtype="float16")
    lifted = [
        f"{words.power(least)} to {words.power(least + scale)} (“{name}”)"
        for name in STACKS
        for least, scale in [
            (
                float(jaxstab.quantiles(half.log10_backward_rms.sel(stack=name), 0.5).min()),
                float(np.log10(half.loss_scale_theory.sel(stack=name))),
            )
        ]
        if np.isfinite(scale) and scale > 0
    ]
    scaling = (
        f"A loss scale lifts the smallest gradients from {words.listed(lifted)}; for the other stacks there"
        " is none."
        if lifted
        else "No loss scale keeps the gradients of any of them in float16."
    )
    return (
        f"Of stacks of {data.sizes['layer']} layers in {words.listed(DTYPES)} these break:"
        f" {'; '.join(say_breaks(data)) or 'none'} (medians of {data.sizes['seed']} seeds; gradients"
        f" travel from the last layer down). {scaling}"
    )


def say_breaks(data: xr.Dataset) -> list[str]:
    """The stacks that break, and where."""
    told = []
    for name in STACKS:
        ends = [
            f"{what} {end}"
            for what, way in (("signal", "forward"), ("gradient", "backward"))
            if (end := say_end(data.sel(stack=name), way))
        ]
        told += [f"“{name}” {words.listed(ends)}"] if ends else []
    return told


def say_end(one: xr.Dataset, way: str) -> str:
    """The first layers, by dtype, at which a stack's numbers are not finite or all zero; "" where they never are."""
    found = []
    for what, (_, label) in MARKS.items():
        layers = jaxstab.quantiles(one[f"first_{what}_layer_{way}"], 0.5).values
        if (layers > 0).any():
            found.append(
                f"{label} at layer {', '.join(f'{layer:.0f}' if layer else 'never' for layer in layers)}"
            )
    return " and ".join(found)


def claims(record: Record) -> Iterator[Claim]:
    """The notes' three numbers about float16, and the layers that facts derive."""
    half = record.data.sel(dtype="float16")
    normal, largest, smallest = half.edge_smallest_normal, half.edge_largest, half.edge_smallest
    ends = "the largest number is 65504; powers of two end at 32768"
    yield claim("float16: smallest normal number", normal, 6e-5, theory=2.0**-14, resolution=5e-6)
    yield claim("float16: largest power of two", largest, 6e4, theory=2.0**15, incomparable=ends)
    yield claim("float16: magnitude below which a gradient is 0", smallest, 5e-4, theory=2.0**-24)
    for dtype in DTYPES:
        one = record.data.sel(stack="N(0, 1), linear", dtype=dtype)
        layer, theory = one.first_bad_layer_forward, one.first_bad_layer_forward_theory
        yield claim(f"{dtype}: N(0, 1) weights end in layer", layer, theory=theory)
