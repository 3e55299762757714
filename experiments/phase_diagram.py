"""Where in the plane of (sigma_w, sigma_b) do gradients vanish, and where do they explode?

Mean-field theory (Poole et al. 2016; Schoenholz et al. 2017) draws a line through the plane, chi = 1: below it a
deep tanh network forgets its inputs and its gradients vanish (ordered), above it both explode (chaotic). Here chi is
measured at every point, from how a gradient grows on its way back through layers that have settled, and the
measured boundary is held against the theoretical line row by row.
"""

from __future__ import annotations

import dataclasses
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

claim = partial(make_claim, "phase_diagram", source="Schoenholz et al. 2017")


@dataclasses.dataclass(frozen=True)
class Config:
    """`points` values each of sigma_w and sigma_b; the first `settle` layers are left to find their fixed point."""

    seeds: int = 8
    points: int = 64
    width: int = 512
    depth: int = 60
    settle: int = 30


SCALES = {
    "smoke": Config(seeds=4, points=12, width=256, depth=30, settle=15),
    "default": Config(),
    "full": Config(seeds=64, points=128, width=1024, depth=120, settle=60),
}


def run(config: Config) -> Record:
    """The growth of gradients at every point of the plane: one program, one input, layers drawn in law."""
    sigma_w = np.linspace(0.5, 3.0, config.points)
    sigma_b = np.linspace(0.05, 1.5, config.points)
    stack = {"activation": "tanh", "init": "lecun_normal", "width": config.width, "depth": config.depth}
    plane = {"gain": sigma_w, "sigma_b": sigma_b}
    space = jaxstab.grid(**stack, **plane, batch=1)
    measured = jaxstab.sweep(jaxstab.propagation, space, config.seeds, keep=["log10_backward_rms"])
    upper, lower = config.depth - 1, config.settle
    growth = measured.log10_backward_rms.sel(layer=lower) - measured.log10_backward_rms.sel(layer=upper)
    log_chi = 2 * np.log(10) * growth / (upper - lower)
    critical = [jaxstab.critical_initialization("tanh", b)[0] for b in sigma_b]
    data = xr.Dataset(
        {"log_chi": log_chi.drop_vars("layer", errors="ignore"), "critical": ("sigma_b", np.array(critical))}
    ).rename(gain="sigma_w")
    data["boundary"] = boundary(data.log_chi.mean("seed"))
    return Record(data)


def boundary(log_chi: xr.DataArray) -> xr.DataArray:
    """sigma_w where the measured ln chi of each row first rises through 0, interpolated; NaN where it does not."""
    sigma_w, found = log_chi.sigma_w.values, []
    for row in log_chi.transpose("sigma_b", "sigma_w").values:
        after = np.flatnonzero((row[1:] > 0) & (row[:-1] <= 0))
        i = after[0] if after.size else -1
        share = -row[i] / (row[i + 1] - row[i]) if after.size else np.nan
        found.append(sigma_w[i] + share * (sigma_w[i + 1] - sigma_w[i]) if after.size else np.nan)
    return xr.DataArray(found, {"sigma_b": log_chi.sigma_b}, ("sigma_b",))


def rows_within_a_step(data: xr.Dataset) -> float:
    """Share of the rows whose measured boundary lies within one grid step of the theoretical line."""
    step = float(data.sigma_w[1] - data.sigma_w[0])
    return float((np.abs(data.boundary - data.critical) <= step).mean())


def plot(record: Record) -> dict[str, Figure]:
    """ln chi over the plane, and the depth over which a gradient changes by e, with the theoretical line."""
    import matplotlib.pyplot as plt

    data = record.data
    log_chi = data.log_chi.mean("seed").transpose("sigma_b", "sigma_w")
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4), sharey=True)
    scale = np.minimum(1 / np.abs(log_chi), 1e3)
    shown = [
        (
            log_chi,
            "How fast gradients grow, ln $\\chi$ a layer",
            {"cmap": "RdBu_r", "vmin": -1.5, "vmax": 1.5},
        ),
        (
            np.log10(scale),
            "Depth that a gradient reaches, log10 of 1/|ln $\\chi$| layers",
            {"cmap": "cividis", "vmin": 0, "vmax": 2.5},
        ),
    ]
    for panel, (values, title, colours) in zip(panels, shown, strict=True):
        mesh = panel.pcolormesh(data.sigma_w, data.sigma_b, values, rasterized=True, **colours)
        panel.grid(visible=False)
        figure.colorbar(mesh, ax=panel, shrink=0.9)
        panel.plot(data.critical, data.sigma_b, color="black", linewidth=1.6, label="theory, $\\chi$ = 1")
        panel.plot(data.boundary, data.sigma_b, ".", color="C1", markersize=3, label="measured")
        panel.set(xlabel="$\\sigma_w$", title=title, xlim=(0.5, 3))
    panels[0].set_ylabel("$\\sigma_b$")
    # on the map, whose colours are the same whatever surrounds the figure
    panels[0].legend(loc="upper left", facecolor="white", labelcolor="black", frameon=True)
    panels[0].text(2.3, 0.35, "chaotic:\ngradients explode", fontsize=8.5, color="black")
    panels[0].text(0.55, 0.8, "ordered:\ngradients vanish", fontsize=8.5, color="white")
    share = words.percent(rows_within_a_step(data))
    figures.describe(
        figure,
        "Two maps over sigma_w from 0.5 to 3 and sigma_b from 0.05 to 1.5: ln chi, negative on the left and"
        " positive on the right of theory's line chi = 1, and the depth scale, largest along that line. The"
        f" measured boundary lies within a grid step of the line in {share} of the rows.",
    )
    return {"plane": figure}


def findings(record: Record) -> str:
    """How near to theory's line the measured boundary runs, and how large chi is far from it."""
    data = record.data
    step = float(data.sigma_w[1] - data.sigma_w[0])
    row = data.isel(sigma_b=0)
    ends = {way: words.middle(row.log_chi.isel(sigma_w=i)) for way, i in (("left", 0), ("right", -1))}
    told = [
        f"{'grows' if value > 0 else 'shrinks'} {words.number(np.exp(abs(value)))}-fold a layer at sigma_w ="
        f" {words.number(row.sigma_w[i])}"
        for i, value in zip((0, -1), ends.values(), strict=True)
    ]
    return (
        "The boundary at which gradients of tanh networks neither vanish nor explode lies within one grid"
        f" step ({words.number(step, 2)} in sigma_w) of theory's line chi = 1 in"
        f" {words.percent(rows_within_a_step(data))} of {data.sizes['sigma_b']} values of sigma_b. At sigma_b"
        f" = {words.number(row.sigma_b)} it runs at sigma_w = {words.number(row.boundary)} (theory"
        f" {words.number(row.critical)}), and on the way back the gradient's mean square"
        f" {words.listed(told)}."
    )


def claims(record: Record) -> Iterator[Claim]:
    """No source prints a number of this plane; theory's line is what it is held against."""
    data = record.data
    row = data.isel(sigma_b=data.sizes["sigma_b"] // 2)
    near = row.log_chi.sel(sigma_w=float(row.critical), method="nearest")
    yield claim("rows within a step of chi = 1, %", 100 * rows_within_a_step(data), theory=100.0)
    yield claim(f"ln chi nearest the line, sigma_b = {float(row.sigma_b):.2f}", near, theory=0.0)
