"""How long do equal hidden units stay equal: under SGD, under an L2 penalty, under dropout?

Chapter 4 and the notes on section 4.8 start from W = c: all hidden units then compute the same and get the same
gradient, so that SGD keeps them equal for ever and the layer is worth one unit, while "dropout and regularization
break the symmetry". A deterministic L2 penalty treats equal units equally and should break nothing; rounding might.
Here hidden units that begin with equal weights (in and out) are trained for thousands of steps, and after each epoch
the distinct ones are counted, bit by bit, and the distance of the two farthest is measured. The same run in float64
is the witness: a break that is rounding begins 2^29 times smaller there, one that is real is the same in both.

The notes' other remark, that hidden units may be permuted without changing the function, is measured too.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import jaxstab
from jaxstab.data import images
from jaxstab.nets.mlp import dropout as drop
from jaxstab.report import claims as scoreboard
from jaxstab.report import figures
from jaxstab.report.record import Record
from jaxstab.trials.fitting import Task, fit, matrices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNITS, BATCH = 8, 64
RUNS = {"SGD": (0.0, 0.0), "SGD + L2": (1e-3, 0.0), "SGD + dropout": (0.0, 0.5)}
"""run -> (L2 penalty, dropout rate)."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A run of 200 epochs of digits is 4,600 steps."""

    seeds: int = 32
    epochs: int = 200


SCALES = {"smoke": Config(seeds=2, epochs=10), "default": Config(), "full": Config(seeds=256, epochs=1000)}


@jaxstab.family(
    dims={name: ("epoch",) for name in ("distinct", "distance", "train_loss")},
    shared=lambda spec: images.load("digits"),
)
def equal_units(
    key: jax.Array, data: images.ImageData, *, dtype: str = "float32", epochs: int = 200, learning_rate: float = 0.1,
    decay: float = 0.0, dropout: float = 0.0, start: float = 0.1,
) -> dict[str, jax.Array]:
    """64 pixels, equal tanh units, 10 classes, in plain arrays. All draws are the same in every dtype."""
    x, y = jnp.asarray(data.train_images, dtype), jnp.asarray(data.train_labels)
    product = lambda a, b: jnp.matmul(a, b, precision="highest")  # noqa: E731

    def apply(params: dict[str, jax.Array], x: jax.Array, key: jax.Array | None) -> jax.Array:
        h = jnp.tanh(product(x, params["w"]) + params["b"])
        h = h if key is None else drop(key, h, jnp.asarray(dropout))
        return product(h, params["out"]) + params["c"]

    def init(key: jax.Array) -> dict[str, jax.Array]:
        fill = lambda *shape: jnp.full(shape, start, dtype)  # noqa: E731
        zeros = lambda n: jnp.zeros(n, dtype)  # noqa: E731
        return {"w": fill(x.shape[1], UNITS), "b": zeros(UNITS), "out": fill(UNITS, 10), "c": zeros(10)}

    def probe(params: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        units = jnp.concatenate([params["w"].T, params["b"][:, None], params["out"]], axis=1)
        difference = units[:, None] - units[None]
        distance = jnp.sqrt(jnp.sum(difference**2, axis=-1))
        equal = jnp.all(difference == 0, axis=-1)
        first = jnp.argmax(equal, axis=1) == jnp.arange(UNITS)  # no unit before this one is its equal
        return {"distinct": jnp.sum(first, dtype=jnp.int32), "distance": jnp.max(distance)}

    update = optax.chain(
        optax.add_decayed_weights(jnp.asarray(decay, dtype), mask=matrices), optax.sgd(jnp.asarray(learning_rate, dtype))
    )
    task = Task(init, apply, optax.softmax_cross_entropy_with_integer_labels, (x, y))
    run = fit(key, task, update, epochs=epochs, batch_size=BATCH, probe=probe)
    p, order = run.params, jax.random.permutation(key, UNITS)
    permuted = {"w": p["w"][:, order], "b": p["b"][order], "out": p["out"][order], "c": p["c"]}
    changed = jnp.max(jnp.abs(apply(permuted, x, None) - apply(p, x, None))) / jnp.max(jnp.abs(apply(p, x, None)))
    return {name: run.seen[name] for name in ("distinct", "distance", "train_loss")} | {"permuted_change": changed}
