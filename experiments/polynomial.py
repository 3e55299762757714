"""Which of the weights that a normal, an underfitting and an overfitting polynomial learn are luck?

Chapter 4 draws 100 training and 100 test points of y = 5 + 1.2 x - 3.4 x^2/2! + 5.6 x^3/3! + N(0, 0.1^2), x
~ N(0, 1), and fits them by SGD (rate 0.01, batches of 10) with the first 4 powers (400 epochs), with the
first 2 (400), and with all 20 (1,500), from PyTorch's default initialization and without a bias. It prints
the weights of one draw each.

Here data, initialization and order are drawn anew for every seed. Theory: the true weights for 4 powers;
for 2 the best line in the mean over x, which is 3.3 + 4 x, since E[x^2] = 1 and E[x^4] = 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxstab
from jaxstab.data import synthetic
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record
from jaxstab.trials.fitting import Task, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REGIMES = {"normal": (4, 400), "underfitting": (2, 400), "overfitting": (20, 1500)}
"""regime -> (powers, epochs)."""

PRINTED = {
    "normal": (4.9968014, 1.1759847, -3.3869977, 5.6261597),
    "underfitting": (3.5368464, 3.61459),
    "overfitting": (
        4.9899335, 1.2519569, -3.3273060, 5.1611152, -0.30114734, 1.5310085, 0.063773572, 0.056982357,
        0.15180694, -0.16061942, 0.15435787, -0.051890615, 0.076504171, -0.17830151, -0.13083144, -0.19575839,
        0.0020399282, -0.11690621, 0.0020840177, -0.15289702,
    ),
}  # fmt: skip  # as they are printed
THEORY = {"normal": synthetic.POLYNOMIAL_WEIGHTS, "underfitting": (3.3, 4.0), "overfitting": ()}
claim = partial(make_claim, "polynomial", source="chapter 4")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything but the seeds is the chapter's."""

    seeds: int = 1024


SCALES = {"smoke": Config(seeds=32), "default": Config(), "full": Config(seeds=16_384)}


@jaxstab.family(dims={"train_loss": ("epoch",), "test_loss": ("epoch",), "weights": ("power",)})
def regression(
    key: jax.Array, *, powers: int, epochs: int, learning_rate: float = 0.01
) -> dict[str, jax.Array]:
    """One draw of the data, fitted with the first powers of x; losses of all 100 points after each epoch."""
    data_key, fit_key = jax.random.split(key)
    data = synthetic.polynomial(data_key)
    inputs, targets = data.train_inputs[:, :powers], data.train_targets

    def predict(weights: jax.Array, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return jnp.sum(x * weights[:, 0], axis=-1)

    def losses(weights: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        fitted, tested = predict(weights, inputs), predict(weights, data.test_inputs[:, :powers])
        return {
            "fitted_loss": jnp.mean((fitted - targets) ** 2),
            "test_loss": jnp.mean((tested - data.test_targets) ** 2),
        }

    task = Task(
        init=lambda key: jaxstab.initializers.torch_default()(key, (powers, 1)),
        apply=predict,
        loss=lambda outputs, targets: (outputs - targets) ** 2,
        data=(inputs, targets),
    )
    run = fit(fit_key, task, optax.sgd(learning_rate), epochs=epochs, batch_size=10, probe=losses)
    return {
        "train_loss": run.seen["fitted_loss"],
        "test_loss": run.seen["test_loss"],
        "weights": run.hide(run.params[:, 0]),
        "status": (run.first_bad_step > 0).astype(jnp.int8),
    }


def run(config: Config) -> Record:
    """The three regimes; losses at the epochs that the chapter draws."""
    powers, epochs = zip(*REGIMES.values(), strict=True)
    data = jaxstab.sweep(regression, jaxstab.zipped(powers=powers, epochs=epochs), config.seeds)
    drawn = (data.epoch == 1) | (data.epoch % 20 == 0)
    data = data.rename(powers="n_powers").isel(epoch=drawn.values).assign_coords(configuration=list(REGIMES))
    return Record(data.assign_coords(power=data.power - 1))


def plot(record: Record) -> dict[str, Figure]:
    """The chapter's loss curves as bands; below them the weights, with what is printed and what is true."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(10.5, 5.6), width_ratios=(4, 3, 8))
    for (above, below), (name, (powers, epochs)) in zip(panels.T, REGIMES.items(), strict=True):
        one = record.data.sel(configuration=name, power=slice(None, powers - 1)).sel(
            epoch=slice(None, epochs)
        )
        for loss, label in (("train_loss", "train"), ("test_loss", "test")):
            figures.band(above, one[loss], x="epoch", label=label)
        above.set(yscale="log", ylim=(1e-3, 1e2), xlabel="epoch", title=f"{name}: {powers} powers")
        low, median, high = figures.quantiles(one.weights)
        below.errorbar(
            one.power, median, (median - low, high - median), fmt="_", capsize=2, label="median and 95 %"
        )
        below.plot(one.power, PRINTED[name], "x", color=figures.PUBLISHED, markersize=5, label="published")
        truth = (*THEORY[name], *[np.nan] * (powers - len(THEORY[name])))
        below.plot(
            one.power, truth, "o", color=figures.THEORY, fillstyle="none", markersize=7, label="theory"
        )
        below.margins(x=0.15 if powers < 10 else 0.03)
        below.set(xlabel="power of x", xticks=one.power[:: 1 if powers < 10 else 2])
    panels[0, 0].set_ylabel("mean squared error")
    panels[1, 0].set_ylabel("weight")
    panels[0, 0].legend()
    panels[1, 2].legend()
    figures.note(figure, figures.of_seeds(record.data.sizes["seed"]))
    ends = [
        f"{name} {words.median(one.train_loss, words.short)} and {words.median(one.test_loss, words.short)}"
        for name, (_, epochs) in REGIMES.items()
        for one in [record.data.sel(configuration=name, epoch=epochs)]
    ]
    figures.describe(
        figure,
        f"Above: training and test loss over the epochs, in the end {'; '.join(ends)}. Below: each weight's"
        " median and 95 % of seeds, with the published weight as a cross and theory's as a circle.",
    )
    return {"fits": figure}


def findings(record: Record) -> str:
    """Of each regime, the weights whose sign is not luck, and how much worse it tests than it trains."""
    told = []
    for name, (powers, epochs) in REGIMES.items():
        one = record.data.sel(configuration=name, power=slice(None, powers - 1))
        low, _, high = figures.quantiles(one.weights)
        last = one.sel(epoch=epochs)
        told.append(
            f"{int((low * high > 0).sum())} of {powers} weights ({name}, median test loss"
            f" {words.median(last.test_loss, words.short)}, training loss"
            f" {words.median(last.train_loss, words.short)})"
        )
    return (
        f"With data and initialization drawn anew for each of {record.data.sizes['seed']:,} seeds, 95 % of"
        f" them agree on the sign of {words.listed(told)}; those of the others depend on the seed."
    )


def claims(record: Record) -> Iterator[Claim]:
    """Every printed weight, and how much larger the last test loss is than the training loss."""
    for name, (_, epochs) in REGIMES.items():
        one = record.data.sel(configuration=name)
        truth = dict(enumerate(THEORY[name]))
        for power, printed in enumerate(PRINTED[name]):
            what = f"{name}: weight of x^{power}/{power}!"
            yield claim(what, one.weights.sel(power=power), printed, theory=truth.get(power))
        last = one.sel(epoch=epochs)
        yield claim(f"{name}: test loss over training loss", last.test_loss / last.train_loss)
