"""Reductions and programs that keep NaN."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def absmax(x: jax.Array, axis: int | None = None) -> jax.Array:
    """Largest magnitude over all entries, or over an axis; NaN if an entry is NaN, 0 of none. Not differentiable.

    XLA's CPU backend drops NaN from float32 maxima (see `compiler_options`). The bits of magnitudes are ordered as the
    magnitudes are, with NaN above infinity, and integers are not dropped.
    """
    x = jnp.abs(x) if jnp.iscomplexobj(x) else x
    size = 8 * x.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{size}"))
    magnitudes = bits & jnp.array(2 ** (size - 1) - 1, bits.dtype)  # XLA leaves abs out where x is a square
    return jax.lax.bitcast_convert_type(jnp.max(magnitudes, axis=axis, initial=0), x.dtype)


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
