"""What does weight decay leave of 200 weights that 20 examples cannot determine?

Chapter 4 fits y = 0.05 + 0.01 sum x + N(0, 0.01^2), 200 inputs, 20 examples, by SGD (100 epochs, batches of
5, rate 0.003) with lambda = 0 and 3 (its text says 10), and prints the norm of w of one draw each, twice:
from scratch (w from N(0, 1), bias 0, half the squared error, lambda |w|^2 / 2 in the loss, 11.440 and
0.3744) and concise (a bias from N(0, 1) too, the squared error without the half, decay in the optimizer,
14.369 and 0.4457). These are two experiments, not one written twice: below, `matched` is the concise code
with loss, bias and draw of the first, and equal to it to rounding.

Theory: what no example speaks of, 180 of 200 directions, decays by (1 - 0.003 lambda) a step and is moved
by nothing else: a chi with 180 degrees of freedom, the norm but for a few hundredths at lambda = 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from scipy import stats

import jaxstab
from jaxstab.data import synthetic
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record
from jaxstab.trials.fitting import Task, Update, fit, matrices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS, BATCH, RATE, INPUTS = 100, 5, 0.003, 200
PRINTED = {
    ("scratch", 0): 11.439933,
    ("scratch", 3): 0.37439817,
    ("concise", 0): 14.369257,
    ("concise", 3): 0.44569576,
}
DECAYS = (0, 3, 10)
CURVES = ["w_norm", "train_loss", "test_loss"]
NEAR_ZERO = 0.01
claim = partial(make_claim, "weight_decay", source="chapter 4")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings are the chapter's. `pairs`: seeds whose every weight is looked at."""

    seeds: int = 2048
    pairs: int = 64


SCALES = {"smoke": Config(seeds=64, pairs=8), "default": Config(), "full": Config(seeds=32_768)}


def from_scratch(decay: jax.Array, l1: jax.Array, rate: jax.Array) -> tuple[Task, Update]:
    """Plain arrays: the penalty in the loss, the update by hand. The data are still to be given."""

    class Descent:
        init = staticmethod(lambda params: ())
        update = staticmethod(
            lambda gradient, memory, params: (jax.tree.map(lambda g: -rate * g, gradient), memory)
        )

    task = Task(
        init=lambda key: {"w": jax.random.normal(key, (INPUTS, 1)), "b": jnp.zeros(1)},
        apply=lambda params, x, key: jnp.matmul(x, params["w"], precision="highest")[:, 0] + params["b"],
        loss=lambda outputs, targets: (outputs - targets) ** 2 / 2,
        data=((), ()),
        penalty=lambda params: decay * jnp.sum(params["w"] ** 2) / 2 + l1 * jnp.sum(jnp.abs(params["w"])),
    )
    return task, Descent()


def concise(decay: jax.Array, l1: jax.Array, rate: jax.Array) -> tuple[Task, Update]:
    """Flax and optax: the penalty in the optimizer, which leaves the bias out."""
    normal = nn.initializers.normal(1.0)
    model = nn.Dense(1, kernel_init=normal, bias_init=normal, precision="highest")
    sign = optax.stateless_with_tree_map(lambda g, w: g + l1 * jnp.sign(jnp.asarray(w)))
    update = optax.chain(
        optax.add_decayed_weights(decay, mask=matrices), optax.masked(sign, matrices), optax.sgd(rate)
    )
    task = Task(
        init=lambda key: model.init(key, jnp.zeros((1, INPUTS))),
        apply=lambda params, x, key: jnp.asarray(model.apply(params, x))[:, 0],
        loss=lambda outputs, targets: (outputs - targets) ** 2,
        data=((), ()),
    )
    return task, update


def matched(decay: jax.Array, l1: jax.Array, rate: jax.Array) -> tuple[Task, Update]:
    """The concise code on the loss, the bias and the draw of the code from scratch."""
    (scratch, _), (task, update) = from_scratch(decay, l1, rate), concise(decay, l1, rate)

    def init(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
        drawn = scratch.init(key)
        return {"params": {"kernel": drawn["w"], "bias": drawn["b"]}}

    return task._replace(init=init, loss=scratch.loss), update


WAYS = {"scratch": from_scratch, "concise": concise, "matched": matched}


@jaxstab.family(
    dims={"train_loss": ("epoch",), "test_loss": ("epoch",), "w_norm": ("epoch",), "w": ("epoch", "input")}
)
def regression(
    key: jax.Array,
    *,
    way: str = "scratch",
    epochs: int = EPOCHS,
    decay: float = 0.0,
    l1: float = 0.0,
    rate: float = RATE,
) -> dict[str, jax.Array]:
    """One draw of the data, fitted one way; losses of all examples, each way's own, after each epoch."""
    data_key, fit_key = jax.random.split(key)
    data = synthetic.linear(data_key)
    task, update = WAYS[way](jnp.asarray(decay), jnp.asarray(l1), jnp.asarray(rate))
    task = task._replace(data=(data.train_inputs, data.train_targets))

    def probe(params: dict, key: jax.Array) -> dict[str, jax.Array]:
        (w,) = (x for x in jax.tree.leaves(params) if x.ndim > 1)

        def loss(x: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.mean(task.loss(task.apply(params, x, key), y))

        losses = {"fitted_loss": loss(*task.data), "test_loss": loss(data.test_inputs, data.test_targets)}
        return {"w": w[:, 0], "w_norm": jnp.sqrt(jnp.sum(w**2)), **losses}

    run = fit(fit_key, task, update, epochs=epochs, batch_size=BATCH, probe=probe)
    outputs = {"train_loss": run.seen.pop("fitted_loss"), "status": (run.first_bad_step > 0).astype(jnp.int8)}
    return {name: run.seen[name] for name in ("test_loss", "w_norm", "w")} | outputs


def run(config: Config) -> Record:
    """Both ways at each lambda; the concise code matched to the other; L2 against L1."""
    data = jaxstab.sweep(
        regression, jaxstab.grid(way=["scratch", "concise"], decay=DECAYS), config.seeds, keep=CURVES
    )
    pair = jaxstab.sweep(
        regression, jaxstab.grid(way=["scratch", "matched"], decay=[0, 3]), config.pairs, keep=["w"]
    )
    apart = abs(pair.w.sel(way="scratch", drop=True) - pair.w.sel(way="matched", drop=True))
    data["matched_difference"] = apart.rename(decay="matched_decay").max("input").rename(seed="few_seeds")
    kinds = jaxstab.sweep(regression, jaxstab.zipped(decay=[1, 0], l1=[0, 1]), config.pairs, keep=["w"])
    size = (
        abs(kinds.w)
        .assign_coords(configuration=["L2", "L1"])
        .rename(configuration="penalty", seed="few_seeds")
    )
    data["near_zero"] = (size < NEAR_ZERO).mean("input")
    last = size.isel(epoch=-1)
    ordered = last.copy(data=np.sort(last, axis=last.dims.index("input")))
    data["sorted_size"] = jaxstab.quantiles(ordered, 0.5, "few_seeds")
    return Record(data.drop_vars(["l1", "decay"], errors="ignore").assign_coords(decay=list(DECAYS)))


def left_over(decay: float) -> tuple[float, int]:
    """(factor, degrees of freedom) of the chi that is left of the directions which no example speaks of."""
    return (1 - RATE * decay) ** (EPOCHS * 20 // BATCH), INPUTS - 20


def plot(record: Record) -> dict[str, Figure]:
    """The chapter's curves as bands, the norms with what was printed; equality; L1 against L2."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 4, figsize=(11, 5))
    for (above, below), ((way, decay), printed) in zip(panels.T, PRINTED.items(), strict=True):
        one = record.data.sel(way=way, decay=decay)
        for loss, label in (("train_loss", "train"), ("test_loss", "test")):
            figures.band(above, one[loss], x="epoch", label=label)
        above.set(yscale="log", xlabel="epoch", title=f"{way}, $\\lambda$ = {decay}")
        figures.histogram(below, one.w_norm.isel(epoch=-1))
        factor, freedom = left_over(decay)
        low, high = below.get_xlim()
        x = np.linspace(low, high, 200)
        figures.theory(
            below, x, stats.chi.pdf(x / factor, freedom) / factor, label="theory: what no\nexample speaks of"
        )
        below.axvline(printed, color=figures.PUBLISHED, label="published")
        below.set(xlabel="norm of w", yticks=[])
    panels[0, 0].set_ylabel("loss")
    panels[1, 0].set_ylabel("density over seeds")
    panels[0, 0].legend(loc="lower left")
    panels[1, 3].legend(loc="upper right")
    figures.note(figure, figures.of_seeds(record.data.sizes["seed"]))
    norms = [
        f"{way} with lambda = {decay} {words.median(one)} (published {words.number(printed)})"
        for (way, decay), printed in PRINTED.items()
        for one in [record.data.w_norm.sel(way=way, decay=decay).isel(epoch=-1)]
    ]
    figures.describe(
        figure,
        "Above: training and test loss over the epochs for two ways and two lambdas. Below: histograms of"
        " the norm of the weights with theory's curve and the published norm; medians are"
        f" {'; '.join(norms)}.",
    )
    return {"curves": figure, "penalties": plot_penalties(record.data)}


def plot_penalties(data: xr.Dataset) -> Figure:
    """How far the matched codes are apart; what L1 and L2 leave of each weight."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 2.9))
    for decay in data.matched_decay.values:
        difference = data.matched_difference.sel(matched_decay=decay).max("few_seeds")
        left.plot(data.epoch, difference, label=f"$\\lambda$ = {decay:g}")
    left.set(xlabel="epoch", ylabel="largest difference of a weight", title="Matched, the two codes are one")
    left.set_yscale("symlog", linthresh=1e-8)
    for penalty in data.penalty.values:
        middle.plot(np.sort(data.sorted_size.sel(penalty=penalty))[::-1], label=penalty)
        figures.band(
            right, data.near_zero.sel(penalty=penalty).rename(few_seeds="seed"), x="epoch", label=penalty
        )
    middle.set(xlabel="weights, largest first", ylabel="|w| after 100 epochs", yscale="log", ylim=(1e-4, 3))
    middle.set_title("What a penalty leaves, $\\lambda$ = 1")
    right.set(xlabel="epoch", ylabel=f"share within {NEAR_ZERO} of 0", ylim=(0, 1))
    shares = {
        penalty: words.percent(words.middle(data.near_zero.sel(penalty=penalty).isel(epoch=-1), "few_seeds"))
        for penalty in data.penalty.values
    }
    right.set_title(f"L1 clears {shares['L1']} of the weights, L2 {shares['L2']}")
    figures.note(figure, figures.of_seeds(data.sizes["few_seeds"]))
    figures.describe(
        figure,
        "Left: the largest difference of a weight between the matched codes, at most"
        f" {words.number(data.matched_difference.max(), 2)}. Middle and right: what L1 and L2 leave of the"
        f" weights; within {NEAR_ZERO} of 0 are {shares['L1']} under L1 and {shares['L2']} under L2.",
    )
    for panel in (left, middle, right):
        panel.legend()
    return figure


def findings(record: Record) -> str:
    """The norms that are left, beside theory; what L1 and L2 leave of single weights."""
    data = record.data
    norm = data.w_norm.isel(epoch=-1)
    left = []
    for decay in (0, 3):
        factor, freedom = left_over(decay)
        each = [f"{words.bracketed(norm.sel(way=way, decay=decay))} {way}" for way in ("scratch", "concise")]
        theory = words.number(factor * stats.chi.median(freedom))
        left.append(
            f"{words.listed(each)} with lambda = {decay} (theory of what no example speaks of: {theory})"
        )
    shares = [
        f"{penalty} leaves {words.percent(words.middle(one.isel(epoch=-1), 'few_seeds'))}"
        for penalty in ("L1", "L2")
        for one in [data.near_zero.sel(penalty=penalty)]
    ]
    return (
        f"After {EPOCHS} epochs the norm of the {INPUTS} weights is {words.listed(left)}; in brackets 95 % of"
        f" {norm.sizes['seed']:,} seeds."
        f" With lambda = 1 {words.listed(shares)} of the weights within {NEAR_ZERO} of 0."
    )


def claims(record: Record) -> Iterator[Claim]:
    """The four printed norms; the norm at the lambda of the text; what should be the same, or zero."""
    data = record.data
    norm = data.w_norm.isel(epoch=-1)
    for (way, decay), printed in PRINTED.items():
        factor, freedom = left_over(decay)
        theory = factor * stats.chi.median(freedom)
        one = norm.sel(way=way, decay=decay)
        yield claim(f"{way}, lambda = {decay}: norm of w", one, printed, theory=theory)
    ten, other = norm.sel(way="scratch", decay=10), "the text says 10, the code that printed the number 3"
    yield claim("scratch, lambda = 10: norm of w", ten, PRINTED["scratch", 3], incomparable=other)
    apart = data.matched_difference.max("matched_decay").sel(epoch=5)
    yield claim("matched ways: largest difference of a weight after 20 steps", apart, theory=0.0)
    for penalty in ("L2", "L1"):
        share = data.near_zero.sel(penalty=penalty).isel(epoch=-1)
        yield claim(f"{penalty}, lambda = 1: share of weights within {NEAR_ZERO} of 0", share)
