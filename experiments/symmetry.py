"""How long do equal hidden units stay equal: under SGD, under an L2 penalty, under dropout?

Chapter 4 and the notes on section 4.8 start from W = c: all hidden units then compute the same and get the
same gradient, so that SGD keeps them equal for ever and the layer is worth one unit, while "dropout and
regularization break the symmetry". A deterministic L2 penalty treats equal units equally and should break
nothing; rounding might. Here units that begin with equal weights (in and out) are trained for thousands of
steps; after each epoch the distinct ones are counted, bit by bit, and the distance of the two farthest is
measured.

Two witnesses tell rounding from a real break. The same run in float64: a break by rounding begins 2^29
times smaller there, a real one is the same in both. And a run in which one weight of one unit begins one
ulp away shows how fast a difference of that size grows. Whether rounding treats equal units alike is the
matrix product's affair: it may compute the columns that fill its registers and the rest by different
instructions, so that 3 units may part where 8 do not.

The notes' other remark, that hidden units may be permuted without changing the function, is measured on the
units that dropout has set apart.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import jaxstab
from jaxstab.data import datasets
from jaxstab.data.images import ImageData
from jaxstab.nets.mlp import dropout as drop
from jaxstab.report import figures, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record
from jaxstab.trials.fitting import Task, fit, matrices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH, STEPS_PER_EPOCH = 64, 23
DTYPES = ("float32", "float64")
RUNS = {
    "SGD": (0.0, 0.0, 0.0),
    "SGD + L2": (1e-3, 0.0, 0.0),
    "SGD + dropout": (0.0, 0.5, 0.0),
    "SGD + one ulp": (0.0, 0.0, 1.0),
}
"""run -> (L2 penalty, dropout rate, ulps by which one weight begins elsewhere)."""

SEEN = ("distinct", "distance", "train_loss")
claim = partial(make_claim, "symmetry", source="chapter 4")


@dataclasses.dataclass(frozen=True)
class Config:
    """A run of 130 epochs of digits is 2,990 steps."""

    seeds: int = 8
    epochs: int = 130
    units: tuple[int, ...] = (3, 8)


SCALES = {
    "smoke": Config(seeds=2, epochs=8, units=(3,)),
    "default": Config(),
    "full": Config(seeds=256, epochs=1000),
}


@jaxstab.family(dims=dict.fromkeys(SEEN, ("epoch",)), shared=lambda spec: datasets.load("digits"))
def equal_units(
    key: jax.Array,
    data: ImageData,
    *,
    units: int,
    dtype: str,
    epochs: int,
    decay: float = 0.0,
    dropout: float = 0.0,
    ulps: float = 0.0,
    learning_rate: float = 0.5,
    start: float = 0.1,
) -> dict[str, jax.Array]:
    """64 pixels, equal tanh units, 10 classes, in plain arrays. Every draw is the same in both dtypes."""
    x, y = jnp.asarray(data.train_images, dtype), jnp.asarray(data.train_labels)
    product = partial(jnp.matmul, precision="highest")

    def apply(params: dict[str, jax.Array], x: jax.Array, key: jax.Array | None) -> jax.Array:
        h = jnp.tanh(product(x, params["w"]) + params["b"])
        h = h if key is None else drop(key, h, jnp.asarray(dropout))
        return product(h, params["out"]) + params["c"]

    def init(key: jax.Array) -> dict[str, jax.Array]:
        out = jnp.full((units, 10), start, dtype)
        out = out.at[0, 0].multiply(1 + jnp.asarray(ulps, dtype) * jnp.finfo(dtype).eps)
        zeros = jnp.zeros(units + 10, dtype)
        return {
            "w": jnp.full((x.shape[1], units), start, dtype),
            "b": zeros[:units],
            "out": out,
            "c": zeros[units:],
        }

    def probe(params: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        rows = jnp.concatenate([params["w"].T, params["b"][:, None], params["out"]], axis=1)
        difference = rows[:, None] - rows[None]
        is_equal = jnp.all(difference == 0, axis=-1)
        is_first = jnp.argmax(is_equal, axis=1) == jnp.arange(units)  # no unit before it is its equal
        distance = jnp.max(jnp.sqrt(jnp.sum(difference**2, axis=-1)))
        return {"distinct": jnp.sum(is_first, dtype=jnp.int32), "distance": distance}

    decayed = optax.add_decayed_weights(jnp.asarray(decay, dtype), mask=matrices)
    update = optax.chain(decayed, optax.sgd(jnp.asarray(learning_rate, dtype)))
    task = Task(init, apply, optax.softmax_cross_entropy_with_integer_labels, (x, y))
    run = fit(key, task, update, epochs=epochs, batch_size=BATCH, probe=probe)
    params, order = run.params, jax.random.permutation(key, units)
    permuted = {
        "w": params["w"][:, order],
        "b": params["b"][order],
        "out": params["out"][order],
        "c": params["c"],
    }
    before, after = apply(params, x, None), apply(permuted, x, None)
    change = jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(before))
    return {name: run.seen[name] for name in SEEN} | run.hide({"change_by_permutation": change})


def run(config: Config) -> Record:
    """Every run, with 3 units and with 8, in both dtypes."""
    decay, dropout, ulps = zip(*RUNS.values(), strict=True)
    space = jaxstab.zipped(decay=decay, dropout=dropout, ulps=ulps) * jaxstab.grid(
        units=config.units, epochs=config.epochs
    )
    found = []
    for dtype in DTYPES:
        with jax.enable_x64(dtype == "float64"):
            data = jaxstab.sweep(equal_units, space * jaxstab.grid(dtype=dtype), config.seeds)
        found.append(data.drop_vars("dtype"))
    data = xr.concat(found, xr.IndexVariable("dtype", np.array(DTYPES)))
    return Record(data.assign_coords(configuration=list(RUNS), step=data.epoch * STEPS_PER_EPOCH))


def plot(record: Record) -> dict[str, Figure]:
    """Distance of the two units farthest apart, over steps, and how many are distinct in the end."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, record.data.sizes["units"], figsize=(10, 3.6), sharey=True, squeeze=False
    )
    floor = 1e-18
    for panel, units in zip(panels.flat, record.data.units.values, strict=True):
        for number, name in enumerate(RUNS):
            for dtype, line in zip(DTYPES, ("-", "--"), strict=True):
                one = record.data.sel(units=units, configuration=name, dtype=dtype)
                _, distance, _ = figures.quantiles(one.distance)
                distinct = int(jaxstab.quantiles(one.distinct.isel(epoch=-1), 0.5))
                label = f"{name}, {dtype}: {distinct} of {units} distinct"
                panel.plot(
                    one.step, np.maximum(distance, floor) * 1.5**number, line, color=f"C{number}", label=label
                )
        panel.set(yscale="log", ylim=(floor / 2, 1e3), xlabel="step", title=f"{units} units that begin equal")
        panel.legend(fontsize=7, loc=(0.46, 0.12))
    panels[0, 0].set_yticks(
        [floor, 1e-15, 1e-10, 1e-5, 1], ["0", "$10^{-15}$", "$10^{-10}$", "$10^{-5}$", "1"]
    )
    panels[0, 0].set_ylabel("largest distance of two units")
    figures.note(
        figure, f"median of {record.data.sizes['seed']} seeds", "lines that lie on each other are drawn apart"
    )
    last = record.data.distance.isel(epoch=-1, units=-1).sel(dtype="float32")
    ends = [f"{name} {words.median(last.sel(configuration=name), words.short)}" for name in RUNS]
    figures.describe(
        figure,
        f"The largest distance of two hidden units over {int(record.data.step[-1]):,} training steps, on a"
        " logarithmic axis, solid in float32 and dashed in float64; at the end, of"
        f" {int(record.data.units[-1])} units in float32, {words.listed(ends)}.",
    )
    return {"distances": figure}


def findings(record: Record) -> str:
    """How many units are distinct in the end, and whether what parted them shrinks with rounding."""
    data = record.data.sel(configuration=list(RUNS)[:3])
    distinct = jaxstab.quantiles(data.distinct.isel(epoch=-1), 0.5)
    parted = [
        f"{name}"
        f" {words.listed(f'{counts(distinct.sel(configuration=name, units=n))} of {n}' for n in data.units.values)}"
        for name in data.configuration.values
    ]
    first = data.distance.isel(epoch=0, units=0)
    apart = [
        f"{name}"
        f" {' and '.join(words.median(first.sel(configuration=name, dtype=d), words.short) for d in DTYPES)}"
        for name in data.configuration.values
    ]
    return (
        f"After {int(data.step[-1]):,} steps on scikit-learn's digits so many units are distinct, in float32"
        f" and float64: {'; '.join(parted)} (medians of {data.sizes['seed']} seeds). A real break is as large"
        f" in float64, one by rounding is smaller there: after {int(data.step[0])} steps the farthest of"
        f" {int(data.units[0])} units are apart by, in float32 and float64, {words.listed(apart)}."
    )


def counts(distinct: xr.DataArray) -> str:
    """The number in either dtype, once where they are the same."""
    return " and ".join(dict.fromkeys(words.number(distinct.sel(dtype=dtype)) for dtype in DTYPES))


def claims(record: Record) -> Iterator[Claim]:
    """How many units are distinct in the end; how far apart after one epoch; what a permutation changes."""
    data, most = record.data, record.data.isel(units=-1)
    for units, name, dtype in itertools.product(data.units.values, list(RUNS)[:3], DTYPES):
        distinct = data.distinct.sel(units=units, configuration=name, dtype=dtype).isel(epoch=-1)
        what = f"{name}, {units} units, {dtype}: distinct units at the end"
        yield claim(what, distinct, 1.0 if name == "SGD" else None)
    dropped, ulp = (most.sel(configuration=f"SGD + {what}") for what in ("dropout", "one ulp"))
    first = dropped.distance.isel(epoch=0)
    yield claim("dropout: distance after an epoch, float32 over float64", first[0] / first[1], theory=1.0)
    steps = ulp.step.where(ulp.distance > 1).min("epoch")  # NaN where they are not within the run
    for dtype in DTYPES:
        yield claim(f"one ulp, {dtype}: steps until two units are 1 apart", steps.sel(dtype=dtype))
        change = dropped.change_by_permutation.sel(dtype=dtype)
        yield claim(f"permuted units, {dtype}: relative change of the output", change, theory=0.0)
