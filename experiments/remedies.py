"""Which remedies keep the gradients of a hundred layers or steps in [1e-6, 1e3]?

The lecture notes name the goal, gradients in a reasonable range, for example [1e-6, 1e3], and three ways there:
turn products into sums (ResNet, LSTM), normalize (gradients, or layers), clip gradients; and, in the end, choose
weights and activations well. Here each is measured over seeds: a remedy holds in a network where the gradient with
respect to every layer lies in the range. An LSTM is a matter of its forget gate: with a bias of 1 each step keeps
0.73 of the cell, so 100 steps keep 1e-14; with the bias ln(99) of Tallec & Ollivier 2018 they keep a third. Batch norm
is no such remedy: its gradients grow by a factor in each layer, for ReLU pi/(pi - 1) in mean square and more for small
batches (Yang et al. 2019, arXiv:1902.08129).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

import jaxstab
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANGE = (-6.0, 3.0)
REMEDIES: dict[str, dict[str, object]] = {
    "plain, small weights": {"gain": 0.5},
    "plain, large weights": {"gain": 3.0},
    "plain, critical": {"gain": 1.0},
    "residual": {"gain": 3.0, "kind": "residual", "branch_scale": 0.1},
    "layer norm": {"gain": 3.0, "kind": "normalized"},
    "batch norm, batch 64": {"gain": 3.0, "kind": "batch_norm", "batch": 64},
    "RNN, small weights": {"gain": 0.5, "kind": "recurrent"},
    "RNN, large weights": {"gain": 3.0, "kind": "recurrent"},
    "LSTM, small weights, bias 1": {"gain": 0.5, "kind": "lstm", "forget_bias": 1.0},
    "LSTM, small weights, bias ln 99": {"gain": 0.5, "kind": "lstm", "forget_bias": math.log(99)},
}
LIMIT = math.pi / (math.pi - 1)
CLIPPED = {"clipped, large weights": "plain, large weights", "clipped, small weights": "plain, small weights"}
claim = partial(make_claim, "remedies", source="lecture notes, range [1e-6, 1e3]")


@dataclasses.dataclass(frozen=True)
class Config:
    """Stacks of `depth` layers or steps; batch norm in stacks of 24 for each of `batches`."""

    seeds: int = 64
    depth: int = 100
    width: int = 128
    batch: int = 8
    batches: tuple[int, ...] = (4, 16, 64, 256)


SCALES = {
    "smoke": Config(seeds=4, width=32, batches=(8, 16)),
    "default": Config(),
    "full": Config(seeds=1024, width=256, batches=(4, 8, 16, 32, 64, 128, 256)),
}


def run(config: Config) -> Record:
    """Gradients layer by layer under each remedy; clipping is by global norm 1, over all layers at once."""
    parts: dict[str, xr.DataArray] = {}
    sizes = {"depth": config.depth, "width": config.width, "batch": config.batch}
    for name, settings in REMEDIES.items():
        space = jaxstab.grid(activation="tanh", init="lecun_normal", **sizes | settings)
        one = jaxstab.sweep(jaxstab.propagation, space, config.seeds, keep=["log10_backward_rms"])
        parts[name] = one.log10_backward_rms.reset_coords(drop=True)
    parts |= {name: clip(parts[of], config.width * config.batch) for name, of in CLIPPED.items()}
    gradient = xr.Dataset(parts).to_dataarray("remedy")
    inside = ((gradient >= RANGE[0]) & (gradient <= RANGE[1])).all("layer")
    data = xr.Dataset({"log10_gradient": gradient, "share_kept": inside.mean("seed")})
    return Record(data.assign(growth=_batch_norm(config)))


def _batch_norm(config: Config) -> xr.DataArray:
    """Factor on the gradient's mean square a layer on the way back through batch norm and ReLU: [batch, seed].

    Layers 3 to 22 of 24: the signal has settled there, and so has the gradient.
    """
    space = jaxstab.grid(
        kind="batch_norm", activation="relu", init="lecun_normal", depth=24, width=config.width
    )
    space = space * jaxstab.grid(batch=list(config.batches))
    found = jaxstab.sweep(jaxstab.propagation, space, config.seeds, keep=["log10_backward_rms"])
    decades = found.log10_backward_rms.sel(layer=3) - found.log10_backward_rms.sel(layer=22)
    return (10 ** (2 * decades / 19)).reset_coords(drop=True)


def clip(log10_rms: xr.DataArray, entries: int, norm: float = 1.0) -> xr.DataArray:
    """Gradients scaled so that the norm of all of them together is at most `norm`; in log10, which does not end."""
    top = log10_rms.max("layer")
    log_norm = top + 0.5 * np.log10((10 ** (2 * (log10_rms - top))).sum("layer") * entries)
    return log10_rms - np.maximum(log_norm - math.log10(norm), 0)


def plot(record: Record) -> dict[str, Figure]:
    """The gradients under each remedy, and how fast they grow through batch norm."""
    return {"gradients": _plot_gradients(record.data), "batch_norm": _plot_batch_norm(record.data)}


def _plot_gradients(data: xr.Dataset) -> Figure:
    """Each remedy's gradients by layer, the wanted range shaded, and the share of networks that stay in it."""
    import matplotlib.pyplot as plt

    names = data.remedy.values
    figure, panels = plt.subplots(3, 4, figsize=(11, 6.4), sharex=True)
    for panel, name in zip(panels.flat, names, strict=False):
        one = data.sel(remedy=name)
        panel.axhspan(*RANGE, **figures.RANGE)
        figures.band(panel, one.log10_gradient)
        kept = 100 * float(one.share_kept)
        panel.set_title(f"{name}: {kept:.0f} %", color="C3" if kept > 95 else "C4", fontsize=9)
        low, high = panel.get_ylim()
        panel.set_ylim(min(low, -8), max(high, 5))
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    for panel in panels[-1]:
        panel.set_xlabel("layer or step")
    figure.supylabel("log10 of the gradient's rms", fontsize=9.5)
    figure.suptitle(
        "Share of networks whose gradients stay in [1e-6, 1e3] (shaded) at every layer", fontsize=10
    )
    figures.note(figure, figures.of_seeds(data.sizes["seed"], "networks"))
    first = jaxstab.quantiles(data.log10_gradient.isel(layer=0), 0.5)
    told = [f"“{name}” {words.power(first.sel(remedy=name))}" for name in names]
    figures.describe(
        figure,
        f"A panel for each of {len(names)} remedies: the gradient's rms over {data.sizes['layer']} layers or"
        " steps on a logarithmic axis, the range [1e-6, 1e3] shaded. At the first layer it is, in the"
        f" median, {'; '.join(told)}.",
    )
    return figure


def _plot_batch_norm(data: xr.Dataset) -> Figure:
    """Growth a layer by batch size: median and 95 % of networks; dashed theory, and its limit."""
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(6, 3.8))
    low, middle, high = figures.quantiles(data.growth)
    ends = np.abs(np.stack([low, high]) - middle.values)
    panel.errorbar(data.batch, middle, ends, fmt="o", color=figures.MEASURED, capsize=3, label="networks")
    sizes = np.geomspace(4, data.batch.max(), 200)
    figures.theory(
        panel, sizes, jaxstab.theory.batch_norm_growth(sizes), label="theory: mean, infinite width"
    )
    panel.axhline(
        LIMIT, color=figures.THEORY, linestyle=":", linewidth=0.9, label="large batches: pi/(pi - 1)"
    )
    panel.set(xscale="log", xlabel="batch size", ylabel="factor a layer")
    panel.set_xticks(data.batch.values, [str(size) for size in data.batch.values])
    panel.minorticks_off()
    panel.set_title("Batch norm: gradients grow, most in small batches")
    panel.legend()
    figures.note(figure, f"points: median and 95 % of {data.sizes['seed']} networks")
    told = [f"{words.median(data.growth.sel(batch=size))} at batch {size}" for size in data.batch.values]
    figures.describe(
        figure,
        "The factor on the gradient's mean square a layer through batch norm and ReLU against the batch size:"
        f" {words.listed(told)}, along theory's curve, which falls to {LIMIT:.3f}.",
    )
    return figure


def findings(record: Record) -> str:
    """Which remedies keep every network's gradients in the range, which none, and how fast they grow by batch norm."""
    data = record.data
    names, share = data.remedy.values, data.share_kept.values
    some = [f"“{name}” ({words.percent(s)})" for name, s in zip(names, share, strict=True) if 0 < s < 1]
    every, never = ([f"“{name}”" for name in names[share == end]] for end in (1, 0))
    parts = {f"in all {data.sizes['seed']} networks": every, "in some": some, "in none": never}
    told = [f"{where} with {words.listed(which)}" for where, which in parts.items() if which]
    growth = [f"{words.bracketed(data.growth.sel(batch=size))} (batch {size})" for size in data.batch.values]
    return (
        f"Over {data.sizes['layer']} layers or steps the gradients stay in [1e-6, 1e3] everywhere"
        f" {'; '.join(told)}. Through batch norm and ReLU their mean square grows by {words.listed(growth)}"
        " a layer; in brackets 95 % of networks."
    )


def claims(record: Record) -> Iterator[Claim]:
    """The range is the notes' wish, not a draw: what each remedy makes of it."""
    first = record.data.log10_gradient.isel(layer=0)
    for name in first.remedy.values:
        yield claim(f"{name}: log10 gradient at the first layer", first.sel(remedy=name))
    for size in record.data.batch.values:
        growth, theory = record.data.growth.sel(batch=size), jaxstab.theory.batch_norm_growth(int(size))
        what = f"batch norm, ReLU, batch {size}: factor on the gradient's mean square a layer"
        yield make_claim("remedies", what, growth, theory=theory, source="arXiv:1902.08129")
