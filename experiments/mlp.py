"""What do the chapter's two classifiers reach, from scratch and concise, and how much of it is the seed?

Chapter 4 trains 784-256-10 with ReLU on Fashion-MNIST (10 epochs, batches of 256, SGD at rate 0.1), once in
plain arrays (weights N(0, 0.01^2), biases 0) and once with the framework's layers (the same weights, biases
U(-1/sqrt(fan_in), 1/sqrt(fan_in))), shows the curves and predicted pictures, and prints no numbers; the
book's own training function asserts a training loss below 0.5 and accuracies above 0.7.

Here both ways are distributions over seeds; `matched` is the concise code (Flax, optax) on the draw of the
code from scratch, and equal to it to rounding over the first steps. Where there are fewer images than
60,000, the epochs are as many as make the chapter's 2,350 updates.
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
import optax
import xarray as xr

import jaxstab
from jaxstab.data import datasets
from jaxstab.data.images import ImageData
from jaxstab.nets.mlp import Mlp
from jaxstab.report import figures, substitute, words
from jaxstab.report.claims import Claim, make_claim
from jaxstab.report.record import Record
from jaxstab.trials import training
from jaxstab.trials.fitting import Task, Update, fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIDDEN, CLASSES, BATCH, RATE, STD = 256, 10, 256, 0.1, 0.01
CURVES = ("train_loss", "train_accuracy", "test_accuracy")
PICTURES = 12
BOUNDS = {"train_loss": 0.5, "train_accuracy": 0.7, "test_accuracy": 0.7}
"""What d2l's train_ch3 asserts of the last epoch."""
claim = partial(make_claim, "mlp", source="chapter 4")


@dataclasses.dataclass(frozen=True)
class Config:
    """2,350 updates are 10 epochs of 60,000 images. `pairs`: seeds for which the two ways are compared."""

    seeds: int = 16
    updates: int = 2350
    pairs: int = 4
    fashion_mnist: Path | None = None


SCALES = {"smoke": Config(2, 30, 2), "default": Config(), "full": Config(seeds=128, pairs=16)}


def from_scratch(n_inputs: int) -> tuple[Task, Update]:
    """Plain arrays: ReLU, cross-entropy and SGD by hand. The data are still to be given."""

    class Descent:
        init = staticmethod(lambda params: ())
        update = staticmethod(
            lambda gradient, memory, params: (jax.tree.map(lambda g: -RATE * g, gradient), memory)
        )

    def init(key: jax.Array) -> list[jax.Array]:
        first, second = jax.random.split(key)
        w1 = STD * jax.random.normal(first, (n_inputs, HIDDEN))
        w2 = STD * jax.random.normal(second, (HIDDEN, CLASSES))
        return [w1, jnp.zeros(HIDDEN), w2, jnp.zeros(CLASSES)]

    def apply(params: list[jax.Array], x: jax.Array, key: jax.Array | None) -> jax.Array:
        w1, b1, w2, b2 = params
        h = jnp.maximum(jnp.matmul(x, w1, precision="highest") + b1, 0)
        return jnp.matmul(h, w2, precision="highest") + b2

    def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
        largest = jnp.max(logits, axis=1, keepdims=True)
        log_sum = largest[:, 0] + jnp.log(jnp.sum(jnp.exp(logits - largest), axis=1))
        return log_sum - logits[jnp.arange(len(labels)), labels]

    return Task(init, apply, cross_entropy, ((), ())), Descent()


def concise(n_inputs: int) -> tuple[Task, Update]:
    """Flax's layers, optax's loss and SGD; biases as PyTorch's layers draw them."""
    weights, biases = jaxstab.initializers.normal(STD), jaxstab.initializers.bias_initializer
    model = Mlp((HIDDEN,), CLASSES, "relu", weights, lambda fan_in: biases("torch_default", fan_in))
    task = Task(
        init=lambda key: model.init(key, jnp.zeros((1, n_inputs))),
        apply=lambda params, x, key: model.apply(params, x),
        loss=optax.softmax_cross_entropy_with_integer_labels,
        data=((), ()),
    )
    return task, optax.sgd(RATE)


def matched(n_inputs: int) -> tuple[Task, Update]:
    """The concise code on the draw of the code from scratch."""
    (scratch, _), (task, update) = from_scratch(n_inputs), concise(n_inputs)

    def init(key: jax.Array) -> dict[str, dict[str, dict[str, jax.Array]]]:
        w1, b1, w2, b2 = scratch.init(key)
        layers = {"Dense_0": {"kernel": w1, "bias": b1}, "Dense_1": {"kernel": w2, "bias": b2}}
        return {"params": layers}

    return task._replace(init=init), update


WAYS = {"scratch": from_scratch, "concise": concise, "matched": matched}


@jaxstab.family(
    dims={
        **dict.fromkeys(CURVES, ("epoch",)),
        "predicted": ("image",),
        "first_weights": ("epoch", "pixel", "unit"),
    },
    shared=training.load,
)
def classifier(
    key: jax.Array, data: ImageData, *, dataset: str, way: str, epochs: int
) -> dict[str, jax.Array]:
    """One training run; labels predicted for the first test images; the first layer's weights by epoch."""
    x, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    task, update = WAYS[way](x.shape[1])

    def is_right(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32)

    task = task._replace(data=(x, labels), measure=lambda *batch: {"train_accuracy": is_right(*batch)})

    def probe(params, key: jax.Array) -> dict[str, jax.Array]:
        (first,) = (w for w in jax.tree.leaves(params) if w.shape == (x.shape[1], HIDDEN))
        logits = task.apply(params, jnp.asarray(data.test_images), None)
        return {
            "test_accuracy": jnp.mean(is_right(logits, jnp.asarray(data.test_labels))),
            "first_weights": first,
        }

    run = fit(key, task, update, epochs=epochs, batch_size=BATCH, probe=probe)
    predicted = jnp.argmax(task.apply(run.params, jnp.asarray(data.test_images[:PICTURES]), None), axis=1)
    status = (run.first_bad_step > 0).astype(jnp.int8)
    return {name: run.seen[name] for name in (*CURVES, "first_weights")} | {
        "predicted": predicted,
        "status": status,
    }


def run(config: Config) -> Record:
    """Both ways on Fashion-MNIST (or what stands in for it); the matched pair over its first epochs."""
    chosen = substitute.images_or_digits(config.fashion_mnist)
    dataset, images, notes = chosen
    family = training.from_folder(classifier, config.fashion_mnist)
    epochs = chosen.epochs_of(config.updates, BATCH)
    few = jaxstab.grid(way=["scratch", "matched"], dataset=dataset, epochs=min(epochs, 3))
    pair = jaxstab.sweep(family, few, config.pairs, keep=["first_weights"]).first_weights.rename(
        epoch="early_epoch"
    )
    space = jaxstab.grid(way=["scratch", "concise"], dataset=dataset, epochs=epochs)
    data = jaxstab.sweep(family, space, config.seeds, keep=[*CURVES, "predicted"])
    apart = abs(pair.sel(way="scratch", drop=True) - pair.sel(way="matched", drop=True))
    data["matched_difference"] = apart.max(("pixel", "unit")).rename(seed="few_seeds")
    pixels = images.test_images[:PICTURES].reshape(-1, images.side, images.side)
    data["picture"] = (("image", "row", "column"), np.asarray(pixels))
    data["label"] = ("image", np.asarray(images.test_labels[:PICTURES]))
    if epochs != 10:
        notes += (f"{epochs} epochs, for as many updates as the chapter's 10 epochs make.",)
    return Record(data, notes)


def plot(record: Record) -> dict[str, Figure]:
    """The chapter's curves, both ways, as bands; the first test images with what the seeds say of them."""
    import matplotlib.pyplot as plt

    data = record.data
    curves, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    names = {"train_loss": "train loss", "train_accuracy": "train accuracy", "test_accuracy": "test accuracy"}
    told = []
    for panel, way in zip(panels, ("scratch", "concise"), strict=True):
        one = data.sel(way=way)
        for name, label in names.items():
            figures.band(panel, one[name], x="epoch", label=label)
        reached = {name: words.median(one[name].isel(epoch=-1)) for name in names}
        told.append(f"{way} to {words.listed(f'{reached[name]} ({label})' for name, label in names.items())}")
        panel.set(xlabel="epoch", ylim=(0, 2.4))
        panel.set_title(f"{way}: test accuracy {reached['test_accuracy']}{figures.diverged(one.train_loss)}")
    panels[0].set_ylabel("loss [nat] or accuracy")
    panels[0].legend()
    figures.note(curves, figures.of_seeds(data.sizes["seed"]))
    figures.describe(
        curves,
        "Two panels, from scratch and concise: training loss falls and accuracies rise over"
        f" {data.sizes['epoch']} epochs, in the end {'; '.join(told)}.",
    )
    return {"curves": curves, "pictures": plot_pictures(data)}


def plot_pictures(data: xr.Dataset) -> Figure:
    """True label, the label most seeds predict, and how many of them do."""
    import matplotlib.pyplot as plt

    names = datasets.classes(str(data.dataset.values))
    figure, panels = plt.subplots(2, PICTURES // 2, figsize=(9, 3.8))
    said = []
    for number, panel in enumerate(panels.flat):
        predicted = data.predicted.sel(way="scratch").isel(image=number)
        votes = np.bincount(predicted, minlength=CLASSES)
        best, label = int(votes.argmax()), int(data.label[number])
        panel.imshow(data.picture[number], cmap="gray_r")
        color = plt.rcParams["text.color"] if best == label else "C4"
        said.append(f"{names[label]} as {names[best]} by {votes[best]} of {votes.sum()}")
        text = f"{names[label]}\n{names[best]} ({votes[best]}/{votes.sum()})"
        panel.set_title(text, fontsize=8, color=color, loc="center")
        panel.set_axis_off()
    figure.supxlabel(
        "above: the label; below: what most seeds predict (from scratch), and how many", fontsize=8
    )
    figures.describe(
        figure,
        f"The first {PICTURES} test images with their label and what most seeds predict: {'; '.join(said)}.",
    )
    return figure


def findings(record: Record) -> str:
    """What both ways reach, and how far they are apart on one draw."""
    data = record.data
    reached = [
        f"{words.bracketed(data.test_accuracy.sel(way=way).isel(epoch=-1))} {label}"
        for way, label in (("scratch", "from scratch"), ("concise", "in Flax"))
    ]
    apart = data.matched_difference.isel(early_epoch=0)
    return (
        f"After {data.sizes['epoch']} epochs of {words.DATASETS[str(data.dataset.values)]} the test accuracy"
        f" is {words.listed(reached)}; in brackets 95 % of {data.sizes['seed']} seeds. From the same weights,"
        f" over the same batches, the two codes' weights differ by {words.number(apart.max(), 2)} at most"
        " after an epoch."
    )


def claims(record: Record) -> Iterator[Claim]:
    """The bounds that the book's own training function asserts, both ways; the matched pair."""
    data = record.data
    other = "a bound, and on other data" if record.notes else "a bound, not a value"
    for way in ("scratch", "concise"):
        for name, bound in BOUNDS.items():
            side = "below" if name == "train_loss" else "above"
            what = f"{way}: {name.replace('_', ' ')} of the last epoch (asserted: {side})"
            yield claim(what, data[name].sel(way=way).isel(epoch=-1), bound, incomparable=other)
    apart = data.matched_difference.isel(early_epoch=0)
    yield claim("matched ways: largest difference of a weight after an epoch", apart, theory=0.0)
