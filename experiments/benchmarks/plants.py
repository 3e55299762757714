"""Functions that leave the range of float16 at one known line each, the one that ends in `# here`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.observation.seen import Seen

Array = jax.Array


def square(x: Array) -> Array:
    y = 250 * x
    z = y**2  # here
    return jnp.sqrt(z)


def total(x: Array) -> Array:
    y = jnp.abs(x) * 100
    z = jnp.sum(y)  # here
    return y / z


def exponential(x: Array) -> Array:
    y = 10 * x
    z = jnp.exp(y)  # here
    return 1 / (1 + z)


def growth(x: Array) -> Array:
    def block(h: Array, _: None) -> tuple[Array, None]:
        branch = 2 * jnp.abs(h)
        return h + branch, None  # here

    return jax.lax.scan(block, jnp.abs(x), length=12)[0]


def reciprocal(x: Array) -> Array:
    small = x / 8192
    variance = jnp.mean(small * small, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(variance + 1e-12)  # here
    return small * scale


def product(x: Array) -> Array:
    y = 200 * x
    z = y @ y.T  # here
    return jnp.tanh(z)


PLANTS: Mapping[str, Callable[[Array], Array]] = {
    "square": square,
    "sum": total,
    "exp": exponential,
    "residual growth in scan": growth,
    "rsqrt with a small epsilon": reciprocal,
    "product": product,
}


def inputs(seed: int = 0) -> Array:
    """float32, (32, 64)."""
    return jax.random.normal(jax.random.key(seed), (32, 64))


def line_of(plant: Callable[..., Any]) -> str:
    """file:line where a plant overflows."""
    lines, first = inspect.getsourcelines(plant)
    (at,) = [i for i, line in enumerate(lines) if "# here" in line]
    return f"{inspect.getsourcefile(plant)}:{first + at}"


def first_overflow(seen: Seen, statistic: str) -> tuple[str, int] | None:
    """(source, iteration of the scan around it) of the first operation with an entry that is not finite."""
    column, found = seen.statistics.index(statistic), []
    for site, value in zip(seen.sites, seen.values, strict=True):
        bad = ~np.isfinite(np.asarray(value)[..., column]).reshape(-1)
        if bad.any():
            iteration = int(bad.argmax())
            found.append((site.position[:1], iteration, site.position, site.source))
    return (min(found)[3], min(found)[1]) if found else None
