"""What is the gain of every activation: sampled, exact, and PyTorch's?

The notes on deep stacks divide the standard deviation of 10,000 normal numbers by that of their images: about 1.6
for tanh. They report about 1.4 for ReLU, which is the ratio of second moments (sqrt 2); the ratio of standard
deviations, which their text describes, is 1.71, since a ReLU's output has a mean. Both stand below.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

import jaxstab
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record
from jaxstab.theory import activations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("forward", "backward", "std", "pytorch")
claim = partial(make_claim, "gain_table", source="deep stack")


@dataclasses.dataclass(frozen=True)
class Config:
    """`samples` normal numbers a seed, as in the source."""

    seeds: int = 1024
    samples: int = 10_000


SCALES = {"smoke": Config(seeds=16), "default": Config(), "full": Config(seeds=10_000)}


@jaxstab.family
def sampled_gain(key: jax.Array, *, activation: str, samples: int) -> dict[str, jax.Array]:
    """Ratios of normal numbers to their images: of standard deviations, and of roots of second moments."""
    z = jax.random.normal(key, (samples,))
    image = activations.resolve(activation)(z)
    return {
        "std": jnp.std(z, ddof=1) / jnp.std(image, ddof=1),
        "forward": jnp.sqrt(jnp.mean(z**2) / jnp.mean(image**2)),
    }


def run(config: Config) -> Record:
    """Sampled gains for every seed, exact ones beside them."""
    names = list(activations.ACTIVATIONS)
    data = jaxstab.sweep(sampled_gain, jaxstab.grid(activation=names, samples=config.samples), config.seeds)
    for kind in KINDS:
        data[f"exact_{kind}"] = ("activation", np.array([_gain(name, kind) for name in names]))
    return Record(data)


def _gain(activation: str, kind: str) -> float:
    try:
        return jaxstab.gain(activation, kind)
    except jaxstab.UsageError:  # PyTorch has none for this activation
        return float("nan")


def plot(record: Record) -> dict[str, Figure]:
    """Exact gains as marks, sampled ones as bars of 95 % of seeds, in the order of the forward gain."""
    import matplotlib.pyplot as plt

    data = record.data.sortby("exact_forward")
    places = np.arange(data.sizes["activation"])
    figure, panel = plt.subplots(figsize=(9, 3.8))
    marks = {
        "forward": ("x", figures.MEASURED, "keeps the mean square"),
        "std": ("_", "C1", "keeps the standard deviation"),
        "backward": ("+", "C2", "keeps the gradient"),
        "pytorch": ("o", figures.THEORY, "PyTorch's"),
    }
    for kind, (marker, color, label) in marks.items():
        hollow = {"markerfacecolor": "none", "linestyle": "none", "markersize": 7.5, "markeredgewidth": 1.3}
        panel.plot(places, data[f"exact_{kind}"], marker, color=color, label=label, **hollow)
        if kind in data:
            low, middle, high = figures.quantiles(data[kind])
            panel.errorbar(
                places,
                middle,
                (middle - low, high - middle),
                fmt="none",
                color=color,
                linewidth=4,
                alpha=0.35,
            )
    panel.set_xticks(places, [words.called(name) for name in data.activation.values], rotation=30, ha="right")
    panel.set(
        yscale="log", ylabel="gain", title="Which gain an activation needs depends on what it is to keep"
    )
    figures.plain_ticks(panel.yaxis, [0.75, 1, 1.5, 2, 3, 4, 5])
    panel.legend(ncols=2, loc="upper left")
    figures.note(
        figure, f"marks: exact, bars: 95 % of {data.sizes['seed']:,} seeds of {int(data.samples):,} samples"
    )
    told = [f"{words.called(n)} {words.number(x)}" for n, x in data.exact_forward.to_series().items()]
    figures.describe(
        figure,
        "For each activation the gains that keep the mean square, the standard deviation and the gradient"
        " of normal numbers, and PyTorch's where it has one. Those that keep the mean square are"
        f" {words.listed(told)}.",
    )
    return {"gains": figure}


def findings(record: Record) -> str:
    """The exact gains, how closely samples come to them, and where PyTorch's are others."""
    data = record.data
    kept = [
        f"{words.number(one.exact_forward)} for {words.called(name)}"
        for name in ("relu", "tanh", "sigmoid", "gelu")
        for one in [data.sel(activation=name)]
    ]
    apart = math.ceil(1000 * float(abs(data.forward / data.exact_forward - 1).max())) / 10
    off = (data.exact_pytorch / data.exact_forward - 1).to_series().dropna()
    others = [
        f"{words.called(name)} {words.number(data.exact_pytorch.sel(activation=name))} ({100 * share:+.0f} %)"
        for name, share in off.items()
        if abs(share) > 0.005
    ]
    relu = data.sel(activation="relu")
    return (
        f"The gain that keeps the mean square of N(0, 1) numbers is {words.listed(kept)}; those of"
        f" {int(data.samples):,} samples are within {apart:g} % of the exact ones, of which PyTorch's differ"
        f" for {words.listed(others)}. ReLU's {words.number(relu.exact_forward)} is such a ratio of second"
        f" moments; of standard deviations it is {words.number(relu.exact_std)}."
    )


def claims(record: Record) -> Iterator[Claim]:
    """The two printed gains, and what the second of them is a gain of."""
    for activation, kind, published in (("tanh", "std", 1.6), ("relu", "std", 1.4), ("relu", "forward", 1.4)):
        one = record.data.sel(activation=activation)
        ratio = "std ratio" if kind == "std" else "ratio of second moments"
        what, theory = f"{activation}, 10,000 samples, {ratio}", one[f"exact_{kind}"]
        yield claim(what, one[kind], published, resolution=0.05, theory=theory)
