"""Exact rescaling by powers of two, and what it makes right up to the largest number of a format.

The power comes of frexp and its own bits, not of a division by the largest magnitude (whose reciprocal is flushed
to zero above 2^126) nor of ldexp on the tensor (which is right too, and many times as slow).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def power_of_two(exponent: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """2^exponent, float32 and exact, by its bits; exponents outside [-126, 127] are taken as the nearer end.

    A product with it is `ldexp`, which costs many times as much on the CPU, wherever the result is no subnormal.
    """
    biased = jnp.clip(exponent, -126, 127).astype(jnp.int32) + 127
    return jax.lax.bitcast_convert_type(biased << 23, jnp.float32)


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


def outer_rms(a: Float[Array, "batch n"], b: Float[Array, "batch m"]) -> Float[Array, ""]:
    """rms of the entries of a'b; where rows are few without forming it: |a'b|^2 = trace((a a')(b b'))."""
    a_scaled, a_exponent = rescale(a)
    b_scaled, b_exponent = rescale(b)
    times = partial(jnp.matmul, precision="highest")
    if len(a) > 2 * max(a.shape[1], b.shape[1]):
        return jnp.ldexp(jnp.sqrt(jnp.mean(times(a_scaled.T, b_scaled) ** 2)), a_exponent + b_exponent)
    square = jnp.maximum(jnp.sum(times(a_scaled, a_scaled.T) * times(b_scaled, b_scaled.T)), 0.0)
    square = square / (float(a.shape[1]) * b.shape[1])
    return jnp.ldexp(jnp.sqrt(square), a_exponent + b_exponent)
