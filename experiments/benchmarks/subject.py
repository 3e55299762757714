"""What the reliability campaign sweeps, a small network's training of 200 steps, and one process of such a sweep."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

import jaxstab
from jaxstab.engine import cluster
from jaxstab.errors import Interrupted

SPACE = jaxstab.grid(learning_rate=[0.05, 0.5, 3.0])
TILE = 1


@jaxstab.family(dims={"loss": ("step",)})
def regression(key: jax.Array, *, steps: int = 200, learning_rate: float = 0.1) -> dict[str, jax.Array]:
    """Two layers fitted by gradient descent, at the largest rate chaotically: rounding grows over the steps."""
    data, noise, start = jax.random.split(key, 3)
    x, y = jax.random.normal(data, (16, 8)), jax.random.normal(noise, (16, 2))
    first, second = jax.random.split(start)
    weights = jax.random.normal(first, (8, 16)) / 8**0.5, jax.random.normal(second, (16, 2)) / 4

    def loss(weights: Any) -> jax.Array:
        return jnp.mean((jnp.tanh(x @ weights[0]) @ weights[1] - y) ** 2)

    def step(weights: Any, _: None) -> tuple[Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(weights)
        return jax.tree.map(lambda w, g: w - learning_rate * g, weights, gradient), value

    return {"loss": jax.lax.scan(step, weights, length=steps)[1]}


def digest(folder: Path) -> dict[str, str]:
    """Names and SHA-256 of everything that counts in a store."""
    files = sorted(p for p in folder.glob("[!.]*") if p.suffix in (".npz", ".json"))  # no half-written ones
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main(
    store: Path,
    seeds: int,
    devices: int | None = None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Run this process's share of the sweep."""
    if coordinator is not None:
        cluster.join(coordinator, processes, process)
    jaxstab.sweep(regression, SPACE, seeds, store=store, tile=TILE, devices=devices)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        raise
