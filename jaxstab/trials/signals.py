"""Statistics of a tensor that survive overflow, and where along a stack a signal broke.

Everything is accumulated in float32, of float64 in that, after an exact rescaling by a power of two, so that a
standard deviation is right up to the largest number of the dtype (squaring first would overflow at half the exponent
range).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxstab.reductions import absmax, fraction, largest, mean_square, total
from jaxstab.scaling import rescale, wide

LOG10_2 = 0.3010299956639812


def log10_rms(x: Float[Array, ...], exponent: Int[Array, ""] | int = 0) -> Float[Array, ""]:
    """log10 of the rms of x 2^exponent: -inf for zeros; no limit but that of the exponent, 2^31."""
    m, own = rescale(x)
    return jnp.log10(jnp.sqrt(mean_square(m))) + LOG10_2 * (own + exponent).astype(jnp.float32)


def describe(x: Float[Array, "batch ..."]) -> dict[str, Float[Array, ""]]:
    """Moments of all entries: mean, std (unbiased), rms, absmax, the fraction of zeros, one entry; `wide`."""
    m, exponent = rescale(x)
    mean = total(m) / m.size
    std = jnp.sqrt(total((m - mean) ** 2) / max(m.size - 1, 1))
    if m.size == 1:
        std = jnp.full_like(std, jnp.nan)
    return {
        "mean": jnp.ldexp(mean, exponent),
        "std": jnp.ldexp(std, exponent),
        "rms": jnp.ldexp(jnp.sqrt(mean_square(m)), exponent),
        "absmax": wide(absmax(x)),
        "entry": wide(x[(0,) * x.ndim]),
        "zero_fraction": fraction(x == 0),
    }


def mean_cosine(x: Float[Array, "batch ..."]) -> Float[Array, ""]:
    """Mean cosine over all pairs of nonzero rows; NaN where there are fewer than two.

    Of inputs that have tokens, [batch, tokens, units], over the pairs of tokens of each input; an image,
    [batch, row, column, units], is one row. The sum over pairs is
    taken from |sum of unit rows|^2 = r + sum over pairs: batch x units operations.
    """
    if x.ndim == 3:
        return jnp.mean(jax.vmap(mean_cosine)(x))
    x = x.reshape(len(x), -1)
    m, _ = jax.vmap(rescale)(x)
    norm = jnp.sqrt(total(m * m, kept=1))[:, None]
    nonzero = norm > 0
    unit = jnp.where(nonzero, m / jnp.where(nonzero, norm, 1.0), 0.0)
    rows = jnp.sum(nonzero).astype(jnp.float32)
    pairs = rows * (rows - 1)
    mean = (total(jnp.sum(unit, axis=0) ** 2) - rows) / jnp.where(pairs > 0, pairs, 1.0)
    return jnp.where((pairs > 0) & jnp.isfinite(absmax(m)), jnp.clip(mean, -1.0, 1.0), jnp.nan)


def first_layer(found: Bool[Array, " layer"]) -> Int[Array, ""]:
    """The first layer, counting from 1, where `found`; 0 where there is none."""
    return jnp.where(jnp.any(found), jnp.argmax(found) + 1, 0).astype(jnp.int32)


def last_layer(found: Bool[Array, " layer"]) -> Int[Array, ""]:
    """The last layer, counting from 1, where `found` (the first that a gradient meets); 0 for none."""
    depth = found.shape[0]
    return jnp.where(jnp.any(found), depth - jnp.argmax(found[::-1]), 0).astype(jnp.int32)


def is_bad(x: Shaped[Array, ...]) -> dict[str, Bool[Array, ""]]:
    """Whether any entry is infinite, any is NaN, and whether all are zero."""
    most = absmax(x)
    return {"inf": largest(jnp.isinf(x)), "nan": jnp.isnan(most), "zero": most == 0}
