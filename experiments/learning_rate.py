"""How narrow is the range of learning rates that trains, as depth and initialization change?

The lecture notes: a learning rate a little too large makes large weights, these make large gradients, and
in a few steps all is infinite; one too small makes no progress; "there is only a small range" to tune in.
They give no numbers.

Here tanh networks of 32 units (scikit-learn's digits, one epoch of plain SGD in batches of 32) are trained
at every learning rate, scale sigma_w of the initialization (weights N(0, sigma_w^2 / fan_in), biases 0) and
depth. A run ends trained, untrained (its loss is no better than a guess that looks at no image), diverged
(at least twice what it was or than that guess), or at a number that is not finite. The range that trains is
measured in decades for each seed. Dashed: chi = 1, where a gradient keeps its size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

import jaxstab
from jaxstab.report import endings, figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record
from jaxstab.trials.training import DIVERGED, NONFINITE, OK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, ACTIVATION = 32, "tanh"
claim = partial(make_claim, "learning_rate", source="lecture notes")


@dataclasses.dataclass(frozen=True)
class Config:
    """`points` learning rates and as many scales; one program for each depth."""

    seeds: int = 16
    points: int = 32
    depths: tuple[int, ...] = (1, 6)
    epochs: int = 1


SCALES = {
    "smoke": Config(seeds=2, points=4, depths=(2,)),
    "default": Config(),
    "full": Config(seeds=64, points=64, depths=(1, 2, 4, 10, 20, 40), epochs=5),
}


def run(config: Config) -> Record:
    """How every run ended, and the decades of learning rates that train each seed."""
    space = jaxstab.grid(
        hidden={f"{depth}": (WIDTH,) * depth for depth in config.depths},
        learning_rate=np.geomspace(1e-3, 1e2, config.points),
        gain=np.geomspace(0.25, 4, config.points),
        activation=ACTIVATION,
        init="lecun_normal",
        epochs=config.epochs,
        batch_size=32,
    )
    data = jaxstab.sweep(jaxstab.training, space, config.seeds, keep=["train_loss"])
    data["final_loss"] = data.train_loss.isel(epoch=-1, drop=True)
    data = data.drop_vars(["train_loss", "epoch"]).rename(hidden="depth", gain="sigma_w")
    decades = 5 / (config.points - 1)
    data["trained_decades"] = decades * (data.status == OK).sum("learning_rate")
    failed = (data.status == DIVERGED) | (data.status == NONFINITE)
    data["largest_rate"] = data.learning_rate.where(data.status == OK).max("learning_rate")
    data["first_failing_rate"] = data.learning_rate.where(failed).min("learning_rate")
    return Record(data.assign_attrs(critical=jaxstab.critical_initialization(ACTIVATION)[0]))


def plot(record: Record) -> dict[str, Figure]:
    """A map for each depth: how runs ended; below, the width of the range that trains against sigma_w."""
    import matplotlib.pyplot as plt

    data = record.data
    depths = data.depth.values
    figure, panels = plt.subplots(1, len(depths) + 1, figsize=(3 * len(depths) + 3.4, 3.4))
    for panel, depth in zip(panels, depths, strict=False):
        one = data.sel(depth=depth)
        endings.draw_map(panel, one.status, "sigma_w", "learning_rate")
        figures.theory(panel, [data.attrs["critical"]] * 2, [1e-3, 1e2])
        panel.set(xlabel="$\\sigma_w$", title=f"{depth} hidden layer{'s' * (depth != '1')}: how runs end")
        panel.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
        panel.minorticks_off()
        figures.band(panels[-1], one.trained_decades, x="sigma_w", label=f"{depth} hidden")
    panels[0].set_ylabel("learning rate")
    panels[-1].axvline(data.attrs["critical"], color=figures.THEORY, linestyle=(0, (4, 2)), linewidth=1.1)
    panels[-1].set(xscale="log", xlabel="$\\sigma_w$", ylabel="decades", ylim=(0, None))
    panels[-1].set_title("Decades of rates that train")
    panels[-1].set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    panels[-1].minorticks_off()
    panels[-1].legend()
    endings.draw_legend(figure, data.status)
    figures.note(figure, figures.of_seeds(data.sizes["seed"]), "dashes: $\\chi$ = 1")
    widest = [
        f"{words.number(middle.max())} decades at sigma_w = {words.number(middle.idxmax(), 2)} with {depth}"
        for depth in depths
        for middle in [jaxstab.quantiles(data.trained_decades.sel(depth=depth), 0.5)]
    ]
    figures.describe(
        figure,
        "Maps of learning rate against sigma_w, coloured by how runs end: trained, untrained, diverged or"
        f" not finite; a panel for {words.listed(depths)} hidden layers. The rates that train span at most"
        f" {words.listed(widest)}.",
    )
    return {"ranges": figure}


def findings(record: Record) -> str:
    """Decades of rates that train, by depth, at chi = 1 and on both sides of it."""
    data = record.data
    scales = dict.fromkeys(
        float(data.sigma_w.sel(sigma_w=factor * data.attrs["critical"], method="nearest"))
        for factor in (0.5, 1, 2)
    )  # of a coarse grid two may be the same
    told = [
        f"{words.listed(f'{words.bracketed(one.sel(sigma_w=s))} at sigma_w = {words.number(s, 2)}' for s in scales)}"
        f" with {depth} hidden layer{'s' * (depth != '1')}"
        for depth in data.depth.values
        for one in [data.trained_decades.sel(depth=depth)]
    ]
    return (
        f"Of five decades of learning rates so many train tanh networks of {WIDTH} units on scikit-learn's"
        f" digits in {int(data.epochs)} epoch{'s' * (int(data.epochs) > 1)}: {'; '.join(told)} (chi = 1 at"
        f" sigma_w = {words.number(data.attrs['critical'])}; in brackets 95 % of {data.sizes['seed']}"
        " seeds)."
    )


def claims(record: Record) -> Iterator[Claim]:
    """Decades of rates that train, at the scale nearest to chi = 1 and twice as far from it on both sides."""
    critical = record.data.attrs["critical"]
    for depth in record.data.depth.values:
        for factor, name in ((0.5, "half of"), (1.0, "at"), (2.0, "twice")):
            one = record.data.sel(depth=depth).sel(sigma_w=factor * critical, method="nearest")
            what = f"{depth} layers, sigma_w {name} chi = 1: decades of learning rates that train"
            yield claim(what, one.trained_decades)
