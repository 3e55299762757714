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
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxstab
from jaxstab.report import words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.figures import MEASURED, THEORY
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
    """Sampled standard-deviation ratios as violins over the seeds; exact, backward and PyTorch's as marks."""
    import matplotlib.pyplot as plt

    data = record.data
    places = np.arange(data.sizes["activation"])
    figure, panel = plt.subplots(figsize=(9, 3.6))
    violins = panel.violinplot(list(data["std"].values), places, widths=0.8, showextrema=False)
    for body in violins["bodies"]:  # type: ignore[attr-defined]
        body.set(facecolor=MEASURED, alpha=0.45)
    marks = {
        "std": ("_", "std ratio"),
        "forward": ("x", "forward"),
        "backward": ("+", "backward"),
        "pytorch": ("o", "PyTorch"),
    }
    for kind, (marker, label) in marks.items():
        hollow: dict[str, Any] = {"mfc": "none", "mec": "#d1603d"} if marker == "o" else {"color": THEORY}
        panel.plot(places, data[f"exact_{kind}"], marker, ms=6.5, mew=1.1, label=label, **hollow)
    panel.set_xticks(places, data.activation.values, rotation=30, ha="right")
    panel.set(ylabel="gain", title=f"sampled (violin, {data.sizes['seed']} seeds) and exact gains")
    panel.legend(ncols=4, loc="upper left")
    panel.set_ylim(0.7, 1.12 * float(data.exact_std.max()))
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
