"""Exact rescaling by powers of two, and what it makes right up to the largest number of a format.

The power comes of frexp and its own bits, not of a division by the largest magnitude (whose reciprocal is flushed
to zero above 2^126) nor of ldexp on the tensor (which is right too, and many times as slow).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstab.reductions import absmax, mean_square, total


def power_of_two(exponent: Int[Array, "*shape"], dtype: Any = jnp.float32) -> Float[Array, "*shape"]:
    """2^exponent in float32 or float64, exact, by its bits; beyond the normal numbers' exponents the nearest of these.

    A product with it is `ldexp`, which costs many times as much on the CPU, wherever the result is no subnormal.
    """
    info = jnp.finfo(dtype)
    biased = jnp.clip(exponent, info.minexp, info.maxexp - 1).astype(f"int{info.bits}") + (info.maxexp - 1)
    return jax.lax.bitcast_convert_type(biased << info.nmant, jnp.dtype(dtype))


def wide(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in the dtype that its statistics are taken in: float32, of float64 its own."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def exponent_of(x: Float[Array, ...]) -> Int[Array, ""]:
    """The power of two just above the largest magnitude of `x`; 0 where that is zero or not finite.

    At most 126 (1022 of float64), so that the reciprocal is a normal number too: above, the magnitude is up to four
    times it.
    """
    largest = absmax(wide(x))
    _, exponent = jnp.frexp(largest)
    most = -jnp.finfo(largest.dtype).minexp
    return jnp.where(jnp.isfinite(largest), jnp.clip(exponent, -most, most), 0)


def rescale(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Int[Array, ""]]:
    """(m, e) with x = m 2^e, m `wide` with its largest magnitude in [1/2, 1) (in [1, 4) from 2^126 on).

    Exact, but for entries 2^126 times smaller than the largest, which become zero.
    """
    exponent, m = exponent_of(x), wide(x)
    return m * power_of_two(-exponent, m.dtype), exponent


def rms(x: Float[Array, ...]) -> Float[Array, ""]:
    """Root of the mean square of all entries, `wide`; right wherever the result itself is finite."""
    m, exponent = rescale(x)
    return jnp.ldexp(jnp.sqrt(mean_square(m)), exponent)


def outer_rms(a: Float[Array, "batch n"], b: Float[Array, "batch m"]) -> Float[Array, ""]:
    """rms of the entries of a'b; where rows are few without forming it: |a'b|^2 = trace((a a')(b b'))."""
    a_scaled, a_exponent = rescale(a)
    b_scaled, b_exponent = rescale(b)
    times = partial(jnp.matmul, precision="highest")
    if len(a) > 2 * max(a.shape[1], b.shape[1]):
        return jnp.ldexp(jnp.sqrt(mean_square(times(a_scaled.T, b_scaled))), a_exponent + b_exponent)
    square = jnp.maximum(total(times(a_scaled, a_scaled.T) * times(b_scaled, b_scaled.T)), 0.0)
    square = square / (float(a.shape[1]) * b.shape[1])
    return jnp.ldexp(jnp.sqrt(square), a_exponent + b_exponent)
