"""Which networks train: learning rate against the scale of the initialization, over the line chi = 1?

Beyond the sources. Mean-field theory (Schoenholz et al. 2017) says that a deep network trains where signals
and gradients reach its depth: near the line chi = sigma_w^2 E[phi'^2] = 1, up to depths of about 6/|ln
chi|. Plain SGD on scikit-learn's digits, 6 hidden layers of 32 units without biases at the start, every
learning rate against every sigma_w, for tanh (critical at sigma_w = 1) and ReLU (at sqrt 2).

Lanes that diverge are told from lanes that merely learn nothing: a run ends `nonfinite`, `diverged` (its
loss is at least twice what it began with, and twice that of a guess which looks at no image), `untrained`
(no better than either) or `ok`. The boundary of divergence is measured for each seed: the smallest rate
that fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

import jaxstab
from jaxstab import theory
from jaxstab.report import endings, figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record
from jaxstab.trials.training import DIVERGED, NONFINITE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REACH = 6
claim = partial(make_claim, "trainability", source="beyond")


@dataclasses.dataclass(frozen=True)
class Config:
    """`points` learning rates and as many scales; one program for each activation."""

    seeds: int = 16
    points: int = 32
    depth: int = 6
    width: int = 32
    epochs: int = 1
    activations: tuple[str, ...] = ("tanh", "relu")


SCALES = {
    "smoke": Config(seeds=2, points=4, depth=3, activations=("relu",)),
    "default": Config(),
    "full": Config(seeds=64, points=64, depth=20, epochs=5),
}


def run(config: Config) -> Record:
    """How every run ended; where divergence begins; theory's chi for every sigma_w."""
    sigma_w = np.geomspace(0.5, 4, config.points)
    space = jaxstab.grid(
        activation=config.activations,
        learning_rate=np.geomspace(1e-3, 1e3, config.points),
        gain=sigma_w,
        hidden={f"{config.depth}": (config.width,) * config.depth},
        init="lecun_normal",
        epochs=config.epochs,
        batch_size=32,
    )
    data = jaxstab.sweep(jaxstab.training, space, config.seeds, keep=["train_accuracy", "first_bad_step"])
    data["train_accuracy"] = data.train_accuracy.isel(epoch=-1, drop=True)
    data = data.drop_vars("epoch").rename(gain="sigma_w").isel(hidden=0)
    failed = (data.status == DIVERGED) | (data.status == NONFINITE)
    data["boundary"] = data.learning_rate.where(failed).min("learning_rate").fillna(np.inf)
    chi = [np.asarray(theory.fixed_point(name, sigma_w).chi) for name in config.activations]
    data["chi"] = (("activation", "sigma_w"), np.array(chi))
    critical = [jaxstab.critical_initialization(name)[0] for name in config.activations]
    data["critical_sigma_w"] = ("activation", np.array(critical))
    return Record(data)


def plot(record: Record) -> dict[str, Figure]:
    """Accuracy over (sigma_w, rate) with theory's line and the measured boundary; ends along the line chi = 1."""
    import matplotlib.pyplot as plt

    data = record.data
    figure, panels = plt.subplots(
        data.sizes["activation"],
        2,
        figsize=(9, 0.4 + 2.9 * data.sizes["activation"]),
        width_ratios=(3, 2),
        squeeze=False,
    )
    for (left, right), name in zip(panels, data.activation.values, strict=True):
        one = data.sel(activation=name)
        draw_accuracy(left, one)
        near = one.sel(sigma_w=float(one.critical_sigma_w), method="nearest")
        endings.draw_shares(right, near.status, "learning_rate")
        right.set(xlabel="learning rate", ylabel="share of seeds")
        right.set_title(f"How runs end at $\\sigma_w$ = {float(near.sigma_w):.2f}")
    endings.draw_legend(figure, data.status)
    figures.note(figure, figures.of_seeds(data.sizes["seed"]))
    peaks = [
        f"{words.number(best.max())} at sigma_w = {words.number(best.idxmax(), 2)} for {words.called(name)}"
        for name in data.activation.values
        for best in [jaxstab.quantiles(data.train_accuracy.sel(activation=name).max("learning_rate"), 0.5)]
    ]
    figures.describe(
        figure,
        "Left: maps of training accuracy over sigma_w and learning rate, with the line chi = 1 and the"
        f" smallest rate that fails; the best is {words.listed(peaks)}. Right: shares of runs that end"
        " trained, diverged, not finite or untrained, against the rate, near chi = 1.",
    )
    return {"trainability": figure}


def draw_accuracy(panel: Axes, one: xr.Dataset) -> None:
    """The median training accuracy as a map, with theory's line and the boundaries."""
    critical = float(one.critical_sigma_w)
    accuracy = jaxstab.quantiles(one.train_accuracy, 0.5).clip(min=0).transpose("learning_rate", "sigma_w")
    image = panel.pcolormesh(
        one.sigma_w, one.learning_rate, accuracy, vmin=0.1, shading="nearest", rasterized=True
    )
    panel.figure.colorbar(image, ax=panel, label="training accuracy in the epoch")
    draw_boundaries(panel, one)
    figures.theory(panel, [critical] * 2, [1e-3, 1e3], color="white", label="$\\chi$ = 1")
    panel.set(
        xscale="log",
        yscale="log",
        xlabel="$\\sigma_w$",
        ylabel="learning rate",
        title=f"{words.called(one.activation.item())}, {one.hidden.values} hidden layers",
    )
    panel.set_xticks([0.5, 1, 2, 4], ["1/2", "1", "2", "4"])
    panel.minorticks_off()
    panel.grid(False)
    panel.legend(loc="upper right", labelcolor="white", fontsize=7.5)


def draw_boundaries(panel: Axes, one: xr.Dataset) -> None:
    """The smallest failing rate over seeds, and where chi lets a gradient reach the depth."""
    figures.band(
        panel, one.boundary, x="sigma_w", color=endings.COLORS["diverged"], label="smallest rate that fails"
    )
    reach = np.abs(np.log(one.chi.values)) * int(one.hidden)  # the depth in units of theory's 1/|ln chi|
    inside = np.flatnonzero(reach < REACH)
    ends = [i for i in (inside.min(), inside.max()) if 0 < i < len(reach) - 1] if inside.size else []
    for number, i in enumerate(ends):
        label = f"depth = {REACH} / |ln $\\chi$|" if number == 0 else None
        panel.axvline(float(one.sigma_w[i]), color="white", linewidth=0.9, linestyle=":", label=label)


def findings(record: Record) -> str:
    """Where each activation trains best, beside chi = 1, and from which rate on it fails there."""
    data, told = record.data, []
    for name in data.activation.values:
        one = data.sel(activation=name)
        best = one.train_accuracy.max("learning_rate")
        peak = jaxstab.quantiles(best, 0.5).idxmax("sigma_w")
        near = one.sel(sigma_w=float(one.critical_sigma_w), method="nearest")
        told.append(
            f"{words.called(name)} networks learn best at sigma_w = {words.number(peak, 2)} (chi = 1 at"
            f" {words.number(one.critical_sigma_w)}; median training accuracy"
            f" {words.median(best.sel(sigma_w=peak))}) and fail near chi = 1 from a learning rate of"
            f" {words.median(near.boundary)} on"
        )
    return (
        f"Over {data.sizes['learning_rate']} learning rates, {int(data.epochs)}"
        f" epoch{'s' * (int(data.epochs) > 1)} of scikit-learn's digits and {int(data.hidden)} hidden layers,"
        f" {'; '.join(told)} (medians of {data.sizes['seed']} seeds)."
    )


def claims(record: Record) -> Iterator[Claim]:
    """The best training accuracy at chi = 1 and on both sides; where divergence begins."""
    for name in record.data.activation.values:
        one = record.data.sel(activation=name)
        best, critical = one.train_accuracy.max("learning_rate"), float(one.critical_sigma_w)
        for factor, where in ((0.5, "half of"), (1.0, "at"), (2.0, "twice")):
            near = best.sel(sigma_w=factor * critical, method="nearest")
            yield claim(f"{name}, sigma_w {where} chi = 1: best training accuracy over the rates", near)
        boundary = one.boundary.sel(sigma_w=critical, method="nearest")
        yield claim(f"{name}, sigma_w at chi = 1: smallest learning rate that fails", boundary)
        what = f"{name}: sigma_w of the best training accuracy (chi = 1 at {critical:.3g})"
        yield claim(what, best.idxmax("sigma_w"))
