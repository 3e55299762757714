"""Floating-point formats, and float32 numbers rounded to them: exactly, subnormals and overflow included.

`lax.reduce_precision` flushes the subnormals of narrow exponents and wants the format at compile time, and a compiler
may drop a cast there and back. Here a number is rounded to a whole multiple of its binade's spacing.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxstab.errors import ALIASES, UsageError

COMPUTED = ("float32", "bfloat16", "float16", "float64")
"""What JAX computes in itself."""
FORMATS = ("float16", "bfloat16", "float8_e5m2", "float8_e4m3fn", "float32")
"""Those with a name; any other is a pair (exponent bits, mantissa bits) with infinities and subnormals, as IEEE's."""


class Format(NamedTuple):
    """A format's numbers: Python's, or traced ones, so that one program serves every format."""

    exponent_bits: Any
    mantissa_bits: Any
    largest: Any
    beyond: Any
    """What a number becomes that rounds to more than `largest`: inf, or NaN where there is no infinity."""
    smallest_normal: Any
    epsilon: Any


def format_of(dtype: object) -> Format:
    """The format of a name (of `FORMATS`, or an alias such as "bf16"), of a dtype, or of (exponent, mantissa) bits.

    UsageError for one that float32 cannot simulate: more than 8 exponent or 23 mantissa bits.
    """
    if isinstance(dtype, tuple) and len(dtype) == 2 and all(isinstance(n, int) for n in dtype):
        exponent, mantissa = dtype
        if not (2 <= exponent <= 8 and 1 <= mantissa <= 23):
            raise UsageError(f"dtype={dtype}: 2 to 8 exponent bits and 1 to 23 mantissa bits are simulated.")
        bias = 2 ** (exponent - 1) - 1
        return _format(exponent, mantissa, (2 - 2.0**-mantissa) * 2.0**bias, math.inf)
    name = name_of_dtype(dtype)
    if pair := re.fullmatch(r"e(\d+)m(\d+)", name):
        return format_of((int(pair[1]), int(pair[2])))
    if name not in FORMATS:
        raise UsageError(
            f"unknown dtype {dtype!r}. Choices: {', '.join(FORMATS)}, or a pair (exponent bits, mantissa bits)."
        )
    info = jnp.finfo(name)
    beyond = float(np.asarray(np.inf).astype(jnp.dtype(name)).astype(np.float32))
    return _format(int(info.nexp), int(info.nmant), float(info.max), beyond)


def _format(exponent_bits: int, mantissa_bits: int, largest: float, beyond: float) -> Format:
    smallest = 2.0 ** (2 - 2 ** (exponent_bits - 1))
    return Format(exponent_bits, mantissa_bits, largest, beyond, smallest, 2.0**-mantissa_bits)


class Storage(NamedTuple):
    """How numbers are kept: computed in `dtype`, and rounded to `format` where JAX does not compute in that itself."""

    dtype: Any
    format: Format | None

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """x so stored."""
        x = x.astype(self.dtype)
        return x if self.format is None else round_to(x, self.format)

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """In which programs that compute so are traced: float64 is off in JAX by default."""
        return jax.enable_x64(True) if self.dtype == jnp.float64 else contextlib.nullcontext()


@functools.lru_cache
def storage(dtype: object) -> Storage:
    """Of float64, of a dtype that JAX computes in, or of a format that float32 simulates (see `format_of`)."""
    if name_of_dtype(dtype) in COMPUTED:
        return Storage(np.dtype(name_of_dtype(dtype)), None)
    return Storage(np.dtype(np.float32), format_of(dtype))


def name_of_format(dtype: object) -> str:
    """How the format is called in tables: its name, or e4m3 for (4, 3)."""
    format_of(dtype)
    return f"e{dtype[0]}m{dtype[1]}" if isinstance(dtype, tuple) else name_of_dtype(dtype)


def name_of_dtype(dtype: object) -> str:
    if isinstance(dtype, str):
        return ALIASES.get(dtype, dtype)
    try:
        return jnp.dtype(dtype).name  # type: ignore[arg-type]
    except TypeError:
        return ""


@jax.jit
def round_to(x: Float[Array, "*shape"], format: Format) -> Float[Array, "*shape"]:  # noqa: A002 - the field's word
    """float32 `x` rounded to the format, ties to even, held in float32; NaN stays NaN."""
    x = jax.lax.optimization_barrier(x)  # XLA would make (a / b) / binade a / (b * binade), which is a / 0
    exponent = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0x7F800000)
    binade = jnp.maximum(jax.lax.bitcast_convert_type(exponent, jnp.float32), format.smallest_normal)
    # all but the rounding is exact: by powers of two
    y = jnp.round(x / binade * (1 / format.epsilon)) * format.epsilon * binade
    is_float32 = format.exponent_bits + format.mantissa_bits == 31
    y = jnp.where(is_float32 | ~jnp.isfinite(x), x, y)
    return jnp.where(jnp.abs(y) > format.largest, jnp.copysign(jnp.float32(format.beyond), x), y)
