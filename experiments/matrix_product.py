"""How fast does a product of 101 Gaussian 4 x 4 matrices explode?

The chapter multiplies a 4 x 4 matrix of N(0, 1) numbers by a hundred more and prints entries of about 1e27, in two
editions. Here that is a linear stack of depth 100, width 4, batch 4, whose inputs are the first matrix, for many
seeds. A row's logarithm grows by a chi^2_4 a step, exactly, hence at the Lyapunov exponent of Newman 1986,
(ln 2 + digamma(2)) / 2 a step, and an entry is a row's norm before the last step times one N(0, 1) number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

import jaxstab
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record
from jaxstab.theory import finite_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRINTED = {
    "notes on 4.8": [
        [1.7021e27, 2.2672e27, -7.8770e26, 1.1673e27],
        [-3.1653e27, -4.2160e27, 1.4648e27, -2.1708e27],
        [-5.8994e25, -7.8576e25, 2.7301e25, -4.0459e25],
        [-1.4618e27, -1.9471e27, 6.7649e26, -1.0025e27],
    ],
    "chapter 4": [
        [-2.5868e27, -1.0076e27, -2.8457e27, -5.1784e27],
        [2.4840e27, 9.6753e26, 2.7327e27, 4.9727e27],
        [-1.3921e27, -5.4223e26, -1.5315e27, -2.7868e27],
        [1.6945e27, 6.6002e26, 1.8642e27, 3.3922e27],
    ],
}
STEPS = 100
SIZE = 4
claim = partial(make_claim, "matrix_product", source="4.8 notes")


@dataclasses.dataclass(frozen=True)
class Config:
    """One seed is one product."""

    seeds: int = 10_000


SCALES = {"smoke": Config(seeds=200), "default": Config(), "full": Config(seeds=200_000)}


def run(config: Config) -> Record:
    """The products' growth step by step, and one entry of each."""
    data = jaxstab.propagate(
        config.seeds,
        activation="linear",
        init="normal",
        width=SIZE,
        batch=SIZE,
        depth=STEPS,
        keep=["log10_forward_rms", "forward_entry"],
    )
    data["log10_entry"] = np.log10(np.abs(data.forward_entry.isel(layer=-1, drop=True)))
    return Record(data.drop_vars("forward_entry"))


def plot(record: Record) -> dict[str, Figure]:
    """Growth over the steps against the Lyapunov exponent, and the law of an entry."""
    import matplotlib.pyplot as plt

    data = record.data
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4))
    figures.band(left, data.log10_forward_rms, label="measured")
    exponent = float(finite_width.lyapunov_exponents(SIZE)[0]) / np.log(10)
    start = float(jaxstab.quantiles(data.log10_forward_rms.isel(layer=0), 0.5))
    figures.theory(left, data.layer, start + exponent * (data.layer - 1), label="Lyapunov exponent")
    last = data.log10_forward_rms.isel(layer=-1)
    left.set(xlabel="matrices multiplied on", ylabel="log10 of the entries' rms")
    left.set_title(f"A product of {STEPS} matrices has entries of about {words.median(last, words.power)}")
    left.legend(loc="upper left")
    figures.histogram(right, data.log10_entry, label="an entry of each product")
    probability = np.linspace(0.001, 0.999, 200)
    x = np.array([finite_width.log10_entry_quantile(p, SIZE, STEPS + 1) for p in probability])
    figures.theory(right, x, np.gradient(probability, x), label="theory")
    for shade, (name, entries) in zip(("-", ":"), PRINTED.items(), strict=True):
        value = np.log10(abs(entries[0][0]))
        right.axvline(
            value, color=figures.PUBLISHED, linewidth=1.2, linestyle=shade, label=f"published, {name}"
        )
    larger = [words.percent((data.log10_entry < np.log10(abs(e[0][0]))).mean()) for e in PRINTED.values()]
    right.set(xlabel="log10 |entry|", ylabel="density")
    right.set_title(f"The published entries are larger than {words.listed(larger)} of all")
    right.legend(loc="upper left", fontsize=7.5)
    figures.note(figure, figures.of_seeds(data.sizes["seed"], "products"))
    figures.describe(
        figure,
        "Left: log10 of the rms of the entries over the number of matrices, a straight line up to"
        f" {float(last.median()):.1f} behind {STEPS}, as the Lyapunov exponent predicts. Right: the density"
        " of log10 of one entry, a bell that follows theory's curve, with the two printed draws as vertical"
        f" lines, larger than {words.listed(larger)} of all.",
    )
    return {"products": figure}


def findings(record: Record) -> str:
    """How fast the products grow, how large they get, and where the printed ones stand among them."""
    rms = record.data.log10_forward_rms
    growth = 10 ** ((rms.isel(layer=-1) - rms.isel(layer=0)) / (rms.sizes["layer"] - 1))
    exponent = np.exp(float(finite_width.lyapunov_exponents(SIZE)[0]))
    last = rms.isel(layer=-1)
    above = [
        f"{words.percent((last < np.log10(np.sqrt(np.mean(np.square(entries))))).mean())} ({source})"
        for source, entries in PRINTED.items()
    ]
    return (
        f"Each {SIZE} x {SIZE} matrix of N(0, 1) numbers makes the entries"
        f" {words.interval(growth, of='products')} times larger, where theory says {words.number(exponent)};"
        f" behind {rms.sizes['layer']} of them the entries' rms is"
        f" {words.interval(last, words.power, of='products')}. The printed products are larger than"
        f" {words.listed(above)} of these."
    )


def claims(record: Record) -> Iterator[Claim]:
    """Both printed draws, by the rms of their sixteen entries and by their first entry."""
    data = record.data
    rms = data.log10_forward_rms.isel(layer=-1)
    median = finite_width.log10_entry_quantile(0.5, SIZE, STEPS + 1)
    for source, entries in PRINTED.items():
        printed = float(np.log10(np.sqrt(np.mean(np.square(entries)))))
        yield claim("log10 rms of the 16 entries", rms, printed, source=source)
        first = float(np.log10(abs(entries[0][0])))
        yield claim("log10 |first entry|", data.log10_entry, first, source=source, theory=median)
    growth = (rms - data.log10_forward_rms.isel(layer=0)) / (STEPS - 1)
    exponent = finite_width.lyapunov_exponents(SIZE)[0] / np.log(10)
    yield claim("log10 growth a step", growth, theory=exponent)
