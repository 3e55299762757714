"""By what must a residual branch shrink with depth, L^-a, for the signal to have a limit?

The lecture notes turn products into sums; how large the summands may be they do not say. With a second matrix in the
branch, h + L^-a W2 phi(W1 h), the branch has mean 0 and the mean square of the last layer is (1 + L^-2a)^L: 2^L for
a = 0, e for a = 1/2, 1 for a = 1, and so is the gradient's. Without one, means of the activation add up: for ReLU
a = 1/2 has no limit, cosh^2(sqrt(L/pi)) from above, and a = 1 tends to cosh^2(1/sqrt(pi)) = 1.354. CompleteP
(arXiv:2505.01618) takes a = 1.
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

EXPONENTS = (0.0, 0.5, 1.0)
GAINS = {1: 2**0.5, 2: 2**0.25}
"""Matrices of the branch -> gain of each, at which a ReLU branch has the mean square of its input."""
claim = partial(make_claim, "depth_scaling", source="arXiv:2505.01618, lecture notes")


@dataclasses.dataclass(frozen=True)
class Config:
    """Residual stacks of each of `depths`."""

    seeds: int = 128
    depths: tuple[int, ...] = (4, 16, 64)
    width: int = 512
    batch: int = 2


SCALES = {
    "smoke": Config(seeds=8, depths=(4, 16), width=128),
    "default": Config(),
    "full": Config(seeds=1024, depths=(4, 8, 16, 32, 64, 128), width=1024),
}


def run(config: Config) -> Record:
    """Decades that signal and gradient gain over a stack, for each number of matrices, exponent and depth."""
    found = [
        xr.concat([_one(config, matrices, depth) for depth in config.depths], "depth").assign_coords(
            matrices=matrices
        )
        for matrices in GAINS
    ]
    return Record(xr.concat(found, "matrices").assign_coords(depth=list(config.depths)))


def _one(config: Config, matrices: int, depth: int) -> xr.Dataset:
    settings = {
        "kind": "residual", "activation": "relu", "init": "lecun_normal", "branch_matrices": matrices, "depth": depth,
        "width": config.width, "batch": config.batch, "gain": GAINS[matrices],
    }  # fmt: skip  # an argument a line otherwise
    space = jaxstab.grid(**settings) * jaxstab.grid(branch_scale=[depth**-a for a in EXPONENTS])
    names = ["log10_forward_rms", "log10_backward_rms"]
    measured = jaxstab.sweep(
        jaxstab.propagation,
        space,
        config.seeds,
        keep=names,
    )
    told = jaxstab.predict(space)
    parts = {}
    for name, variable, layer in (("signal", names[0], -1), ("gradient", names[1], 0)):
        parts[name] = 2 * measured[variable].isel(layer=layer, drop=True)
        parts[f"{name}_theory"] = 2 * told[variable].isel(layer=layer, drop=True)
    by_exponent = xr.Dataset(parts).reset_coords(drop=True).rename(branch_scale="exponent")
    return by_exponent.assign_coords(exponent=list(EXPONENTS))


def plot(record: Record) -> dict[str, Figure]:
    """The factor on the mean square of signal and gradient over depth; dashed: theory, where it holds at this width."""
    import matplotlib.pyplot as plt

    data = record.data
    figure, panels = plt.subplots(2, 2, figsize=(9, 6.4), sharex=True, sharey="row")
    for row, name in zip(panels, ("signal", "gradient"), strict=True):
        for panel, matrices in zip(row, data.matrices.values, strict=True):
            one = data.sel(matrices=matrices)
            for i, exponent in enumerate(EXPONENTS):
                low, middle, high = figures.quantiles(one[name].sel(exponent=exponent))
                panel.fill_between(data.depth, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
                panel.plot(data.depth, middle, color=f"C{i}", label=f"a = {exponent:g}")
                figures.theory(panel, data.depth, one[f"{name}_theory"].sel(exponent=exponent))
            panel.set(
                xscale="log", title=f"{matrices} matri{'x' if matrices == 1 else 'ces'} in the branch: {name}"
            )
            panel.set_ylim(-0.3, 4.5)  # what grows as 2^L leaves the panel
            figures.label_lines(panel)
            panel.set_xticks(data.depth.values, [str(depth) for depth in data.depth.values], minor=False)
            panel.minorticks_off()
    for panel in panels[1]:
        panel.set_xlabel("layers L")
    figure.supylabel("log10 of the factor on the mean square", fontsize=9.5)
    figure.suptitle(
        "Residual branches times L^-a: which a has a limit depends on the branch's matrices", fontsize=10
    )
    figures.note(figure, figures.of_seeds(data.sizes["seed"], "networks"), "dashes: theory, where it holds")
    last = jaxstab.quantiles(data.signal.isel(depth=-1), 0.5)
    told = [
        f"{words.power(last.sel(matrices=m, exponent=a))} for a = {a:g} with {m}"
        for m in data.matrices.values
        for a in EXPONENTS
    ]
    figures.describe(
        figure,
        "Four panels, signal and gradient with one and with two matrices in the branch: log10 of the factor"
        f" on the mean square against depth. At {int(data.depth[-1])} layers the signal's is"
        f" {words.listed(told)} of them.",
    )
    return {"growth": figure}


def findings(record: Record) -> str:
    """The factor on the deepest stacks' mean square, and where it still changes with depth."""
    data, told, settled = record.data, [], []
    shallow, deep = (int(depth) for depth in data.depth.values[-2:])
    median = jaxstab.quantiles(data.signal, 0.5)
    for matrices in data.matrices.values:
        name = f"{matrices} matri{'x' if matrices == 1 else 'ces'}"
        one = median.sel(matrices=matrices)
        factors = [f"{words.power(one.sel(exponent=a, depth=deep))} for a = {a:g}" for a in EXPONENTS]
        told.append(f"{words.listed(factors)} with {name}")
        changes = abs(one.sel(depth=deep) - one.sel(depth=shallow))
        settled += [f"a = {a:g} with {name}" for a in EXPONENTS if changes.sel(exponent=a) < np.log10(1.1)]
    return (
        f"{deep} residual ReLU layers whose branch shrinks as L^-a multiply the signal's mean square by"
        f" {'; '.join(told)} in the branch (medians of {data.sizes['seed']} networks). From {shallow} to"
        f" {deep} layers it changes by less than 10 % for {words.listed(settled)}."
    )


def claims(record: Record) -> Iterator[Claim]:
    """What the deepest stacks gain, beside theory: nobody published a draw."""
    deepest = record.data.isel(depth=-1)
    for matrices in record.data.matrices.values:
        for exponent in EXPONENTS:
            one = deepest.sel(matrices=matrices, exponent=exponent)
            what = (
                f"{matrices} matrices, L^-{exponent:g}, L = {int(one.depth)}: log10 factor on the mean square"
            )
            yield claim(what, one.signal, theory=float(one.signal_theory))
