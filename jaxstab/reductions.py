"""Reductions that keep NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def absmax(x: jax.Array, axis: int | None = None) -> jax.Array:
    """Largest magnitude over all entries, or over an axis; NaN if an entry is NaN, 0 of none. Not differentiable.

    XLA's CPU backend drops NaN from a float32 maximum of more than a few thousand entries (openxla/xla#21461). The
    bits of magnitudes are ordered as the magnitudes are, with NaN above infinity, and integers are not dropped.
    """
    x = jnp.abs(x)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"int{8 * x.dtype.itemsize}"))
    return jax.lax.bitcast_convert_type(jnp.max(bits, axis=axis, initial=0), x.dtype)
