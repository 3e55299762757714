"""What do eight initializations do to a stack of 100 layers of 256 units, forward and backward?

The notes on deep stacks push 16 inputs of N(0, 1) numbers through 100 layers without biases and print each
layer's standard deviation: N(0, 1) weights give 15.95, then 16 times more a layer, until about layer 33 is not a
number; 1/sqrt(n) keeps it at 1 without an activation and lets it shrink under tanh; Xavier's uniform weights with
the tanh gain 5/3 keep it at 0.6 to 0.65; for ReLU 1/sqrt(n) shrinks and Kaiming's sqrt(2/n) is stable.

Here each of the eight is a distribution over seeds, with mean-field theory beside it, and so is the gradient of
a random read-out on its way back. Kaiming's spread at layer 100 is that of Hanin & Nica 2019 for one input.
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
from jaxstab.theory import finite_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIGURATIONS = {
    "N(0, 1)": ("linear", "normal", 1.0),
    "1/sqrt n": ("linear", "lecun_normal", 1.0),
    "1/sqrt n, tanh": ("tanh", "lecun_normal", 1.0),
    "Xavier by hand, tanh": ("tanh", "lecun_uniform", 5 / 3),  # U(-a, a), a = 5/3 sqrt(6 / 2n)
    "Xavier, tanh": ("tanh", "xavier_uniform", 5 / 3),
    "1/sqrt n, ReLU": ("relu", "lecun_normal", 1.0),
    "Kaiming by hand, ReLU": ("relu", "lecun_normal", np.sqrt(2.0)),
    "Kaiming, ReLU": ("relu", "kaiming_normal", 1.0),
}
PRINTED = {
    "1/sqrt n": (1.0, 0.0),
    "1/sqrt n, tanh": (None, 0.0),
    "Xavier by hand, tanh": (0.625, 0.03),
    "Xavier, tanh": (0.625, 0.03),
    "1/sqrt n, ReLU": (None, 0.0),
    "Kaiming, ReLU": (None, 0.0),
}
"""configuration -> (standard deviation of the last layer, how far off it may be read); None where none is printed."""

KEEP = ["forward_std", "log10_forward_rms", "log10_backward_rms", "first_bad_layer_forward"]
claim = partial(make_claim, "deep_stack", source="deep stack")


@dataclasses.dataclass(frozen=True)
class Config:
    """The source's sizes; `spread_seeds` networks of one input each for the spread of Kaiming's."""

    seeds: int = 256
    spread_seeds: int = 4096
    depth: int = 100
    width: int = 256
    batch: int = 16


SCALES = {"smoke": Config(seeds=8, spread_seeds=128), "default": Config(), "full": Config(4096, 65536)}


def run(config: Config) -> Record:
    """All eight, measured and predicted; and Kaiming's network once more with one input."""
    columns = zip(*CONFIGURATIONS.values(), strict=True)
    sizes = {"depth": config.depth, "width": config.width}
    space = jaxstab.zipped(
        **dict(zip(("activation", "init", "gain"), columns, strict=True)), **sizes, batch=config.batch
    )
    measured = jaxstab.sweep(jaxstab.propagation, space, config.seeds, keep=KEEP)
    predicted = jaxstab.predict(space)
    # one input of a Gaussian layer is drawn in law, at a cost of order width instead of width^2
    single = jaxstab.propagate(
        config.spread_seeds,
        activation="relu",
        init="kaiming_normal",
        batch=1,
        **sizes,
        keep=["log10_forward_rms"],
    )
    theory = [
        name for name in predicted.data_vars if str(name).removesuffix("_low").removesuffix("_high") in KEEP
    ]
    data = measured.assign({f"{name}_theory": predicted[name] for name in theory})
    data["log10_single_rms"] = single.log10_forward_rms.rename(seed="single_seed").drop_vars(
        ["activation", "init", "batch", "sampler"]
    )
    return Record(data.assign_coords(configuration=list(CONFIGURATIONS)))


def plot(record: Record) -> dict[str, Figure]:
    """Standard deviations and gradients layer by layer, and the spread of Kaiming's last layer."""
    import matplotlib.pyplot as plt

    data, pictures = record.data, {}
    for title, name in [("forward", "log10_forward_rms"), ("backward", "log10_backward_rms")]:
        pictures[title], panels = plt.subplots(2, 4, figsize=(11, 4.8), sharex=True)
        for panel, label in zip(panels.flat, CONFIGURATIONS, strict=True):
            one = data.sel(configuration=label)
            figures.band(panel, one[name])
            figures.theory(panel, one.layer, one[f"{name}_theory"])
            for end in ("low", "high"):
                figures.theory(panel, one.layer, one[f"{name}_{end}_theory"], linestyle=":")
            low, high = panel.get_ylim()
            if high - low < 0.5:  # not to blow rounding up to a picture
                panel.set_ylim((low + high) / 2 - 0.25, (low + high) / 2 + 0.25)
            bad = one.first_bad_layer_forward
            if title == "forward" and bool((bad > 0).any()):
                panel.axvline(float(jaxstab.quantiles(bad, 0.5)), color="C1", linewidth=1)
                panel.annotate(
                    "float32\nends here",
                    (float(jaxstab.quantiles(bad, 0.5)) + 2, 5),
                    color="C1",
                    fontsize=8,
                )
            panel.set_title(label)
        what = "rms of the layer" if title == "forward" else "rms of the gradient"
        for panel in panels[1]:
            panel.set_xlabel("layer")
        pictures[title].supylabel(f"log10 of the {what}", fontsize=9.5)
        figures.note(
            pictures[title],
            figures.of_seeds(data.sizes["seed"]),
            "dashes: infinite width, dots: 95 % at this width, where the law is known",
        )
        moved = [
            f"“{label}” {words.power(float(ends[-1] - ends[0]) * (1 if title == 'forward' else -1))}"
            for label in CONFIGURATIONS
            for ends in [jaxstab.quantiles(data[name].sel(configuration=label), 0.5).values]
        ]
        figures.describe(
            pictures[title],
            f"Eight panels, one for each initialization: log10 of the {what} over {int(data.depth)} layers,"
            f" with theory as dashes. In the direction of travel it is multiplied by {'; '.join(moved)}.",
        )
    pictures["spread"] = plot_spread(data)
    return pictures


def plot_spread(data: xr.Dataset) -> Figure:
    """Kaiming's last layer for one input over seeds, against the log-normal law."""
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(6, 3.2))
    last = data.log10_single_rms.isel(layer=-1) + 0.0
    figures.histogram(panel, last, label=f"{last.size:,} networks, one input")
    log_mean, log_var = finite_width.hanin_nica(int(data.width), int(data.depth))  # of ln |h|^2
    mean, std = log_mean / np.log(100), np.sqrt(log_var) / np.log(100)
    x = np.linspace(mean - 4 * std, mean + 4 * std, 200)
    figures.theory(
        panel,
        x,
        np.exp(-(((x - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi)),
        label="theory: Hanin & Nica 2019",
    )
    panel.set(xlabel=f"log10 of the rms at layer {int(data.depth)}", ylabel="density")
    panel.set_title("Kaiming, ReLU: the spread over seeds is log-normal")
    panel.legend()
    low, middle, high = (float(q) for q in figures.quantiles(last, dim="single_seed"))
    figures.describe(
        figure,
        f"Density of log10 of the last layer's rms over {last.size} Kaiming networks: a bell with median"
        f" {middle:.2f} and 95 % between {low:.2f} and {high:.2f}, under the curve of Hanin and Nica's"
        " log-normal law.",
    )
    return figure


def findings(record: Record) -> str:
    """Which of the eight keep signal and gradient within a factor of ten, and what the others do to them."""
    data = record.data
    rises = {
        way: (one.isel(layer=last) - one.isel(layer=first))
        for way, one, first, last in (
            ("signal", data.log10_forward_rms, 0, -1),
            ("gradient", data.log10_backward_rms, -1, 0),
        )
    }
    totals = {way: jaxstab.quantiles(rise, 0.5) for way, rise in rises.items()}
    is_kept = (abs(totals["signal"]) < np.log10(2)) & (abs(totals["gradient"]) < np.log10(2))
    kept = [f"“{name}”" for name in data.configuration.values[is_kept]]
    others = [
        f"“{name}” {words.power(total.signal)} and {words.power(total.gradient)}"
        for name in data.configuration.values[~is_kept]
        for total in [xr.Dataset(totals).sel(configuration=name)]
    ]
    bad = data.first_bad_layer_forward.sel(configuration="N(0, 1)")
    end = "no layer" if not (bad > 0).any() else f"layer {words.interval(bad)}"
    return (
        f"Over {int(data.depth)} layers of {int(data.width)} units {words.listed(kept)} keep the median"
        " signal and gradient within a factor of 2; the others multiply signal and gradient by:"
        f" {'; '.join(others)}. In float32 numbers from N(0, 1) weights are not finite from {end} on."
    )


def claims(record: Record) -> Iterator[Claim]:
    """Each printed standard deviation, and where N(0, 1) ends."""
    data = record.data
    explosive = data.forward_std.sel(configuration="N(0, 1)")
    growth = (explosive.sel(layer=20) / explosive.sel(layer=1)) ** (1 / 19)
    bad = data.first_bad_layer_forward.sel(configuration="N(0, 1)")
    yield claim("N(0, 1): std of layer 1", explosive.sel(layer=1), 15.95, theory=16.0)
    yield claim("N(0, 1): growth of the std a layer", growth, 16.0, theory=16.0)
    yield claim("N(0, 1): first layer that is not finite", bad, 33.0, theory=32.0, resolution=1.0)
    for label, (published, resolution) in PRINTED.items():
        last = data.sel(configuration=label).isel(layer=-1)
        std, theory = last.forward_std, last.forward_std_theory
        yield claim(f"{label}: std of the last layer", std, published, theory=theory, resolution=resolution)
