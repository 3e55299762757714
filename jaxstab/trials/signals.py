"""Statistics of a tensor that survive overflow, and where along a stack a signal broke.

Everything is accumulated in float32 after an exact rescaling by a power of two, so that a standard deviation
is right up to the largest number of the dtype (squaring first would overflow at half the exponent range).
The power comes of frexp and its own bits, not of a division by the largest magnitude (whose reciprocal is flushed
to zero above 2^126) nor of ldexp on the tensor (which is right too, and many times as slow).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxstab.reductions import absmax
from jaxstab.theory.floats import power_of_two

LOG10_2 = 0.3010299956639812


def exponent_of(x: Float[Array, ...]) -> Int[Array, ""]:
    """The power of two just above the largest magnitude of `x`; 0 where that is zero or not finite.

    At most 126, so that the reciprocal is a normal number too: above, the magnitude is up to four times it.
    """
    largest = jnp.max(jnp.abs(x.astype(jnp.float32)))
    _, exponent = jnp.frexp(largest)
    return jnp.where(jnp.isfinite(largest), jnp.clip(exponent, -126, 126), 0)


def rescale(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Int[Array, ""]]:
    """(m, e) with x = m 2^e, m in float32 with its largest magnitude in [1/2, 1) (in [1, 4) from 2^126 on).

    Exact, but for entries 2^126 times smaller than the largest, which become zero.
    """
    exponent = exponent_of(x)
    return x.astype(jnp.float32) * power_of_two(-exponent), exponent


def rms(x: Float[Array, ...]) -> Float[Array, ""]:
    """Root of the mean square of all entries, float32; right wherever the result itself is finite."""
    m, exponent = rescale(x)
    return jnp.ldexp(jnp.sqrt(jnp.mean(m * m)), exponent)


def log10_rms(x: Float[Array, ...], exponent: Int[Array, ""] | int = 0) -> Float[Array, ""]:
    """log10 of the rms of x 2^exponent: -inf for zeros; no limit but that of the exponent, 2^31."""
    m, own = rescale(x)
    return jnp.log10(jnp.sqrt(jnp.mean(m * m))) + LOG10_2 * (own + exponent).astype(jnp.float32)


def describe(x: Float[Array, "batch units"]) -> dict[str, Float[Array, ""]]:
    """Moments of all entries: mean, std (unbiased), rms, absmax, the fraction of zeros, one entry; float32."""
    m, exponent = rescale(x)
    mean = jnp.mean(m)
    std = jnp.sqrt(jnp.sum((m - mean) ** 2) / max(m.size - 1, 1))
    if m.size == 1:
        std = jnp.full_like(std, jnp.nan)
    return {
        "mean": jnp.ldexp(mean, exponent),
        "std": jnp.ldexp(std, exponent),
        "rms": jnp.ldexp(jnp.sqrt(jnp.mean(m * m)), exponent),
        "absmax": absmax(x).astype(jnp.float32),
        "entry": x[0, 0].astype(jnp.float32),
        "zero_fraction": jnp.mean((x == 0).astype(jnp.float32)),
    }


def mean_cosine(x: Float[Array, "batch units"]) -> Float[Array, ""]:
    """Mean cosine over all pairs of nonzero rows; NaN where there are fewer than two.

    The sum over pairs is taken from |sum of unit rows|^2 = r + sum over pairs: batch x units operations.
    """
    m, _ = jax.vmap(rescale)(x)
    norm = jnp.sqrt(jnp.sum(m * m, axis=1, keepdims=True))
    nonzero = norm > 0
    unit = jnp.where(nonzero, m / jnp.where(nonzero, norm, 1.0), 0.0)
    rows = jnp.sum(nonzero).astype(jnp.float32)
    pairs = rows * (rows - 1)
    mean = (jnp.sum(jnp.sum(unit, axis=0) ** 2) - rows) / jnp.where(pairs > 0, pairs, 1.0)
    return jnp.where((pairs > 0) & jnp.all(jnp.isfinite(m)), jnp.clip(mean, -1.0, 1.0), jnp.nan)


def outer_norm_rms(a: Float[Array, "batch n"], b: Float[Array, "batch m"]) -> Float[Array, ""]:
    """rms of the entries of a'b without forming the n x m matrix: |a'b|^2 = trace((a a')(b b'))."""
    a_scaled, a_exponent = rescale(a)
    b_scaled, b_exponent = rescale(b)
    gram_a = jnp.matmul(a_scaled, a_scaled.T, precision="highest")
    gram_b = jnp.matmul(b_scaled, b_scaled.T, precision="highest")
    square = jnp.maximum(jnp.sum(gram_a * gram_b), 0.0) / (a.shape[1] * b.shape[1])
    return jnp.ldexp(jnp.sqrt(square), a_exponent + b_exponent)


def first_layer(found: Bool[Array, " layer"]) -> Int[Array, ""]:
    """The first layer, counting from 1, where `found`; 0 where there is none."""
    return jnp.where(jnp.any(found), jnp.argmax(found) + 1, 0).astype(jnp.int32)


def last_layer(found: Bool[Array, " layer"]) -> Int[Array, ""]:
    """The last layer, counting from 1, where `found` (the first that a gradient meets); 0 for none."""
    depth = found.shape[0]
    return jnp.where(jnp.any(found), depth - jnp.argmax(found[::-1]), 0).astype(jnp.int32)


def is_bad(x: Shaped[Array, ...]) -> dict[str, Bool[Array, ""]]:
    """Whether any entry is infinite, any is NaN, and whether all are zero."""
    return {"inf": jnp.any(jnp.isinf(x)), "nan": jnp.any(jnp.isnan(x)), "zero": jnp.all(x == 0)}
