"""What does dropout keep and what does it drop, and does it know when it is wrong?

Chapter 4 applies its dropout layer to X = 0, 1, ..., 15 at p = 0, 0.5 and 1 (printed: X, a draw of 0s and
doubled entries, 0s), then trains 784-256-256-10 with ReLU, rates 0.2 and 0.5 after the hidden layers, on
Fashion-MNIST (10 epochs, batches of 256, SGD at rate 0.5, PyTorch's default initialization), and mentions
that dropout may be left on in testing to estimate how sure a prediction is.

Here the layer keeps the mean in law; the network is trained with and without dropout; and the uncertainty
of a prediction (entropy of the mean of many dropped predictions) is held against whether the prediction is
wrong. Where there are fewer images than 60,000 there are more epochs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy import stats

import jaxstab
from jaxstab.data.images import ImageData
from jaxstab.nets import mlp
from jaxstab.report import figures, substitute, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record
from jaxstab.trials import training
from jaxstab.trials.fitting import fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HIDDEN, BATCH, RATE = (256, 256), 256, 0.5
RATES = {"none": (0.0, 0.0), "chapter": (0.2, 0.5)}
CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
X = np.arange(16, dtype=np.float32).reshape(2, 8)
PRINTED_HALF = np.array([[0, 2, 0, 0, 8, 0, 12, 0], [16, 0, 20, 0, 24, 26, 28, 30]], np.float32)
"""The chapter's draw at p = 0.5."""
claim = partial(make_claim, "dropout", source="chapter 4")


@dataclasses.dataclass(frozen=True)
class Config:
    """`updates` where 10 epochs make fewer; `passes` dropped predictions of each test image."""

    seeds: int = 8
    updates: int = 600
    passes: int = 100
    layer_seeds: int = 4096
    fashion_mnist: Path | None = None


SCALES = {
    "smoke": Config(2, 12, 10, 64),
    "default": Config(),
    "full": Config(seeds=64, updates=2350, passes=1000, layer_seeds=65_536),
}


@jaxstab.family(dims={"dropped": ("row", "column")})
def layer(key: jax.Array, *, p: float) -> dict[str, jax.Array]:
    """The chapter's layer on its X."""
    return {"dropped": mlp.dropout(key, jnp.asarray(X), p)}


@jaxstab.family(
    dims={**dict.fromkeys(CURVES, ("epoch",)), "entropy": ("image",), "is_wrong": ("image",)},
    shared=training.load,
)
def classifier(
    key: jax.Array,
    data: ImageData,
    *,
    dataset: str,
    epochs: int,
    passes: int,
    rates: tuple[float, ...],
) -> dict[str, jax.Array]:
    """One training run, and the entropy [nat] of each test image's mean prediction over dropped networks."""
    fit_key, drop_key = jax.random.split(key)
    data = ImageData(*(jnp.asarray(x) for x in data))
    spec = training.Spec(dataset, HIDDEN, "relu", "torch_default", epochs=epochs, batch_size=BATCH)
    numbers = training.HParams(learning_rate=RATE, dropout=rates)
    task = training.make_task(spec, numbers, data)

    def probe(params, key: jax.Array) -> dict[str, jax.Array]:
        logits = task.apply(params, data.test_images, None)
        right = training.is_right(logits, data.test_labels)
        return {"test_loss": jnp.mean(task.loss(logits, data.test_labels)), "test_accuracy": jnp.mean(right)}

    run = fit(
        fit_key, task, training.make_update("sgd", numbers), epochs=epochs, batch_size=BATCH, probe=probe
    )

    def add(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return total + jax.nn.softmax(task.apply(run.params, data.test_images, key)), None

    total = jnp.zeros((len(data.test_labels), 10))
    mean = jax.lax.scan(add, total, jax.random.split(drop_key, passes))[0] / passes
    is_wrong = 1 - training.is_right(task.apply(run.params, data.test_images, None), data.test_labels)
    entropy = -jnp.sum(jax.scipy.special.xlogy(mean, mean), axis=1)
    status = (run.first_bad_step > 0).astype(jnp.int8)
    uncertainty = run.hide({"entropy": entropy, "is_wrong": is_wrong})
    return {name: run.seen[name] for name in CURVES} | uncertainty | {"status": status}


def run(config: Config) -> Record:
    """The layer at five rates; the network with and without dropout."""
    chosen = substitute.images_or_digits(config.fashion_mnist)
    family = training.from_folder(classifier, config.fashion_mnist)
    epochs, notes = max(10, chosen.epochs_of(config.updates, BATCH)), chosen.notes
    space = jaxstab.grid(rates=RATES, dataset=chosen.dataset, epochs=epochs, passes=config.passes)
    data = jaxstab.sweep(family, space, config.seeds)
    dropped = jaxstab.sweep(layer, jaxstab.grid(p=[0.0, 0.2, 0.5, 0.8, 1.0]), config.layer_seeds).dropped
    data["dropped"] = dropped.rename(seed="layer_seed")
    one = data.sel(rates="chapter")
    areas = [area_under_curve(*pair) for pair in zip(one.entropy.values, one.is_wrong.values, strict=True)]
    data["separation"] = ("seed", np.array(areas))
    if epochs != 10:
        notes += (f"{epochs} epochs, not the chapter's 10.",)
    return Record(data, notes)


def area_under_curve(entropy: np.ndarray, is_wrong: np.ndarray) -> float:
    """Chance that a wrong prediction is more uncertain than a right one; NaN where none is wrong."""
    wrong, right = entropy[is_wrong == 1], entropy[is_wrong == 0]
    if not len(wrong) or not len(right):
        return float("nan")
    return float(stats.mannwhitneyu(wrong, right).statistic) / (len(wrong) * len(right))


def plot(record: Record) -> dict[str, Figure]:
    """The layer's mean against its rate; curves with and without dropout; entropies of right and of wrong."""
    import matplotlib.pyplot as plt

    data = record.data
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.3))
    plot_layer(left, data)
    spelled = {"none": "without", "chapter": "with dropout"}
    for name, color in zip(RATES, ("C0", "C1"), strict=True):
        one = data.sel(rates=name)
        figures.band(
            middle, one.train_loss, x="epoch", color=color, linestyle=":", label=f"training, {spelled[name]}"
        )
        figures.band(middle, one.test_loss, x="epoch", color=color, label=f"test, {spelled[name]}")
    middle.set(xlabel="epoch", yscale="log", ylabel="loss [nat]")
    ends = {name: words.median(data.test_loss.sel(rates=name).isel(epoch=-1)) for name in RATES}
    middle.set_title(f"Test loss: {ends['chapter']} with, {ends['none']} without")
    plot_entropies(right, data.sel(rates="chapter"))
    for panel in (left, middle, right):
        panel.legend(fontsize=7.5)
    figures.note(figure, figures.of_seeds(data.sizes["seed"]))
    figures.describe(figure, tell(data, ends))
    return {"dropout": figure}


def plot_layer(panel: Axes, data: xr.Dataset) -> None:
    """Mean of the layer's output over its draws at each rate, with the published draw."""
    mean = data.dropped.mean(("row", "column"))
    low, _, high = figures.quantiles(mean, dim="layer_seed")
    center = mean.mean("layer_seed")
    spread = (center - low, high - center)
    panel.errorbar(data.p, center, spread, fmt="o", capsize=3, label="mean and 95 % of draws")
    panel.plot(0.5, PRINTED_HALF.mean(), "x", color=figures.PUBLISHED, label="published draw")
    figures.theory(panel, [0, 1], [X.mean()] * 2, label="mean of X")
    panel.set(xlabel="dropout rate p", ylabel="mean of the layer's output", ylim=(-1, 22))
    panel.set_title("Below p = 1 the layer keeps the mean")


def plot_entropies(panel: Axes, one: xr.Dataset) -> None:
    """Densities of the entropy of right and of wrong predictions."""
    for wrong, label in ((0, "right"), (1, "wrong")):
        sample = one.entropy.values[one.is_wrong.values == wrong]
        figures.histogram(panel, sample, bins=30, color=f"C{wrong}", label=f"{label} ({len(sample)})")
    panel.set(
        xlabel="entropy of the prediction [nat]",
        ylabel="density",
        yscale="log",
        title="Predictions that are right or wrong",
    )


def tell(data: xr.Dataset, ends: dict[str, str]) -> str:
    """The figure in words; `ends` are the last test losses."""
    one = data.sel(rates="chapter")
    entropies = [
        words.number(sample.mean()) if sample.size else "of none"
        for wrong in (0, 1)
        for sample in [one.entropy.values[one.is_wrong.values == wrong]]
    ]
    return (
        f"Left: the mean of the layer's output at each rate, near {words.number(X.mean())} but for p = 1,"
        f" with the published draw. Middle: losses over {data.sizes['epoch']} epochs; the test loss ends at"
        f" {ends['chapter']} with dropout and at {ends['none']} without. Right: densities of the entropy,"
        f" with a mean in nat of {entropies[0]} for right predictions and {entropies[1]} for wrong ones."
    )


def findings(record: Record) -> str:
    """What the layer keeps, what the network reaches with and without it, and whether uncertainty tells wrong."""
    data = record.data
    p = data.p.values[1:-1]
    means = [words.number(data.dropped.sel(p=one).mean()) for one in p]
    reached = [
        f"{words.bracketed(data.test_accuracy.sel(rates=name).isel(epoch=-1))} {how}"
        for name, how in (("chapter", "with dropout"), ("none", "without"))
    ]
    told = data.separation.dropna("seed")
    uncertain = (
        "With dropout left on in testing a wrong prediction is less certain (larger entropy) than a right"
        f" one with a chance of {words.bracketed(told)}, where 1/2 would tell nothing; in brackets 95 % of"
        f" {told.size} seeds."
        if told.size
        else "No prediction was wrong, so that its uncertainty tells nothing."
    )
    return (
        f"The layer's output at p = {words.listed(f'{one:g}' for one in p)} has a mean of"
        f" {words.listed(means)} over {data.sizes['layer_seed']:,} draws, where its input's is"
        f" {words.number(X.mean())}; after {data.sizes['epoch']} epochs of"
        f" {words.DATASETS[str(data.dataset.values)]} the test accuracy is {words.listed(reached)}."
        f" {uncertain}"
    )


def claims(record: Record) -> Iterator[Claim]:
    """The layer at 0, 0.5 and 1; what the book asserts; whether uncertainty tells wrong from right."""
    dropped, chapter = record.data.dropped, record.data.sel(rates="chapter")
    for p, kept in ((0.0, X), (1.0, 0 * X)):
        error = abs(dropped.sel(p=p) - kept).max(("row", "column"))
        yield claim(f"layer at p = {p:g}: largest error", error, 0.0, theory=0.0)
    half = dropped.sel(p=0.5)
    off = np.minimum(abs(half), abs(half - 2 * X)).max(("row", "column"))
    yield claim("layer at p = 0.5: largest distance from 0 or 2 x", off, 0.0, theory=0.0)
    mean = half.mean(("row", "column"))
    yield claim("layer at p = 0.5: mean of the output", mean, float(PRINTED_HALF.mean()), theory=7.5)
    last, other = chapter.isel(epoch=-1), f"a bound, {'and on other data' if record.notes else 'not a value'}"
    for name, bound, side in (("train loss", 0.5, "below"), ("test accuracy", 0.7, "above")):
        what = f"{name} of the last epoch (asserted: {side})"
        yield claim(what, last[name.replace(" ", "_")], bound, incomparable=other)
    for wrong, name in enumerate(("right", "wrong")):
        mean = chapter.entropy.where(chapter.is_wrong == wrong).mean("image")
        yield claim(f"entropy of {name} predictions [nat]", mean)
    yield claim("chance that a wrong prediction is more uncertain than a right one", record.data.separation)
