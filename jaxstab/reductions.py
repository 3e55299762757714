"""Reductions that keep NaN, in any program, and are fast on CPUs too."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

COLUMNS = 32
"""Columns that a row is cut to: a few of the processor's vectors."""

LONG = 2**19
"""At most so many entries are summed up in a chain, which drifts in float32: by 3e-6 of 2^19 squares."""


def absmax(x: jax.Array, kept: int = 0) -> jax.Array:
    """Largest magnitude along all axes but the first `kept`; NaN if one is NaN, 0 of none. Not differentiable.

    XLA's CPU backend drops NaN from float32 maxima (see `compiler_options`). The bits of magnitudes are ordered as the
    magnitudes are, with NaN above infinity, and integers are not dropped.
    """
    bits = magnitude_bits(jnp.abs(x) if jnp.iscomplexobj(x) else x)
    return jax.lax.bitcast_convert_type(largest(bits, kept), x.real.dtype)


def largest(x: jax.Array, kept: int = 0) -> jax.Array:
    """Largest along all axes but the first `kept` of unsigned integers; whether any is true of booleans; else 0."""
    return _down_columns(jnp.any if x.dtype == bool else functools.partial(jnp.max, initial=0), x, kept)


def total(x: jax.Array, kept: int = 0) -> jax.Array:
    """Sum along all axes but the first `kept`."""
    return _down_columns(jnp.sum, x, kept)


def mean_square(x: jax.Array) -> jax.Array:
    """Mean of the squares of all entries."""
    return total(x * x) / x.size


def norm(tree: Any) -> jax.Array:
    """Euclidean norm of all numbers of a pytree of arrays, real or complex."""
    squares = (total(jnp.real(x * jnp.conj(x))) for x in jax.tree.leaves(tree))
    return jnp.sqrt(sum(squares, start=jnp.float32(0)))


def fraction(found: jax.Array) -> jax.Array:
    """Share of entries that are true, float32."""
    return total(found.astype(jnp.float32)) / found.size


def _down_columns(reduce: Callable[..., jax.Array], x: jax.Array, kept: int) -> jax.Array:
    """`reduce` along all axes but the first `kept`, to which zeros add nothing.

    XLA's CPU backend combines one entry after the other, as long as every addition takes, or by windows, unless there
    is a column for each place of a vector: so down columns first and then what is left of them, in a tenth of the
    time. The barriers keep it from making one reduction of all.
    """
    if x.ndim == kept:
        return x
    if x.ndim == kept + 1 and x.shape[-1] >= 2 * COLUMNS:
        x = jnp.pad(x, [(0, 0)] * kept + [(0, -x.shape[-1] % COLUMNS)]).reshape(*x.shape[:-1], -1, COLUMNS)
    if x.ndim > kept + 1:
        x = jax.lax.optimization_barrier(reduce(x, axis=tuple(range(kept, x.ndim - 1))))
    return reduce(x, axis=-1)


def magnitude_bits(x: jax.Array) -> jax.Array:
    """Unsigned integers that are ordered as the magnitudes of real numbers are, with NaN above infinity."""
    size = 8 * x.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{size}"))
    return bits & jnp.array(2 ** (size - 1) - 1, bits.dtype)  # XLA leaves abs out where x is a square


def mean_square_and_absmax(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean square and `absmax` of all entries of a real array, in one pass over them; in two if a row is very long."""
    if x.size == 1:
        return (x * x).reshape(()), jnp.abs(x).reshape(())
    is_long, columns = x.size > LONG, x.shape[-1] if x.ndim else 1
    if is_long and max(columns, x.size // columns) > LONG:
        return jnp.mean(x * x), absmax(x)
    combine = (operator.add, jnp.maximum)
    total, largest = reduce_together(combine, (x * x, magnitude_bits(x)), by_rows=is_long)
    return total / x.size, jax.lax.bitcast_convert_type(largest, x.dtype)


def absmax_of_both(x: jax.Array, y: jax.Array) -> jax.Array:
    """`absmax` of two real arrays of one shape and dtype, shape (2,), in one pass over them."""
    largest = reduce_together((jnp.maximum, jnp.maximum), (magnitude_bits(x), magnitude_bits(y)))
    return jax.lax.bitcast_convert_type(jnp.stack(largest), x.dtype)


def reduce_together(
    combine: Sequence[Callable[[Any, Any], Any]], arrays: Sequence[jax.Array], *, by_rows: bool = False
) -> list[jax.Array]:
    """Arrays of one shape reduced over all axes from 0, each by its own function, in one loop.

    XLA's CPU backend makes a maximum of integers, reduced alone, by windows, which take up to 10 times as long.
    The zeros are no constants to it: it would reduce constant arrays by an interpreter while it compiles.
    """

    def together(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
        return [f(a, b) for f, a, b in zip(combine, one, other, strict=True)]

    zeros = jax.lax.optimization_barrier(tuple(jnp.zeros((), x.dtype) for x in arrays))
    if by_rows:
        arrays = jax.lax.reduce(tuple(arrays), zeros, together, (arrays[0].ndim - 1,))
    return list(jax.lax.reduce(tuple(arrays), zeros, together, tuple(range(arrays[0].ndim))))
