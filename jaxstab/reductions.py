"""Reductions and programs that keep NaN."""

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
    """Largest along all axes but the first `kept` of unsigned integers; whether any is true of booleans; else 0.

    XLA's CPU backend reduces these one entry after the other, or by windows, unless there is a column for each place
    of a vector: so down columns first and then what is left of them, in a tenth of the time. The barrier keeps it from
    making one reduction of both.
    """
    reduce = jnp.any if x.dtype == bool else functools.partial(jnp.max, initial=0)
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


@functools.cache
def compiler_options(*, is_small: bool = False) -> dict[str, Any]:
    """Compiler options under which a program passes NaN on, as IEEE 754 has it and as accelerators do.

    On CPUs XLA gives maxima to a library that returns the other operand for NaN: `max(NaN, 0)` is 0, so that a ReLU
    makes a network finite again that is not (jaxlib 0.10; openxla/xla#21461). It is told not to. A program of small
    arrays is there sooner if it isn't optimized: in a fourth of the time. An option that is unknown is left out.
    """
    if jax.default_backend() != "cpu":
        return {}
    wanted: dict[str, Any] = {"xla_cpu_experimental_ynn_fusion_type": ""}
    if is_small:
        wanted |= {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}
    return {name: value for name, value in wanted.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(jnp.negative, compiler_options={name: value}).lower(1.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
