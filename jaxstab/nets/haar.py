"""Uniformly distributed (Haar) orthonormal rows and columns without LAPACK, in float32.

LAPACK called from inside a compiled trial can hang where CPU devices equal the pool's threads, so this is
Gram-Schmidt in plain lax loops: panels of rows, each orthogonalized twice against the rows before it (twice
is enough: Giraud et al. 2005), which keeps |Q Q' - I| near float32's epsilon and the work in products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TOLERANCE = 8 * float(jnp.finfo(jnp.float32).eps)
"""Rounding leaves less than this share of a row that depends on others (6e-7 seen up to 1,024 columns)."""

PANEL = 32
"""Rows orthogonalized at a time: 32 x 256 float32 numbers stay in a core's first cache."""


def haar_matrix(key: Array, rows: int, columns: int) -> Float[Array, "{rows} {columns}"]:
    """Orthonormal rows where rows <= columns, otherwise orthonormal columns; square: Haar on O(n).

    Gram-Schmidt of independent normals is unique once every diagonal entry of R is positive, and then
    invariant under rotation (Mezzadri 2007, section 5).
    """
    tall = rows > columns
    shape = (columns, rows) if tall else (rows, columns)
    frame = orthonormal_rows(jax.random.normal(key, shape, jnp.float32), tolerance=0.0)
    return frame.T if tall else frame


def orthonormal_rows(rows: Float[Array, "k n"], tolerance: float = TOLERANCE) -> Float[Array, "k n"]:
    """Gram-Schmidt from the first row on: orthonormal rows and zeros that span what `rows` span, at any rank.

    Row i lies in the span of rows 1..i, and is zero where it adds less than `tolerance` of its own length to
    the rows before it: what is left there is rounding, of no direction. Rows' squares must be in range.
    """
    k, n = rows.shape
    panel = min(PANEL, k)
    count = -(-k // panel)
    padded = jnp.zeros((count * panel, n), jnp.float32).at[:k].set(rows)
    floors = tolerance * jnp.sqrt(jnp.sum(padded * padded, axis=1))

    def add_panel(index: Array, frame: Array) -> Array:
        block = jax.lax.dynamic_slice_in_dim(padded, index * panel, panel)
        floor = jax.lax.dynamic_slice_in_dim(floors, index * panel, panel)
        block = _orthonormalize_panel(_remove(block, frame), floor)
        block = _orthonormalize_panel(_remove(block, frame), jnp.zeros_like(floor))
        return jax.lax.dynamic_update_slice_in_dim(frame, block, index * panel, axis=0)

    return jax.lax.fori_loop(0, count, add_panel, jnp.zeros_like(padded))[:k]


def _orthonormalize_panel(block: Float[Array, "p n"], floor: Float[Array, " p"]) -> Float[Array, "p n"]:
    """The rows of `block` made orthonormal, or zero where no more than `floor` is left of their length."""

    def add_row(index: Array, frame: Array) -> Array:
        row = jax.lax.dynamic_slice_in_dim(block, index, 1)
        row = _remove(_remove(row, frame), frame)
        norm = jnp.sqrt(jnp.sum(row * row))
        kept = norm > floor[index]
        row = jnp.where(kept, row / jnp.where(kept, norm, 1), 0)
        return jax.lax.dynamic_update_slice_in_dim(frame, row, index, axis=0)

    return jax.lax.fori_loop(0, len(block), add_row, jnp.zeros_like(block))


def _remove(block: Float[Array, "p n"], frame: Float[Array, "q n"]) -> Float[Array, "p n"]:
    """`block` less its projection on the orthonormal (or zero) rows of `frame`."""
    highest = jax.lax.Precision.HIGHEST
    return block - jnp.matmul(jnp.matmul(block, frame.T, precision=highest), frame, precision=highest)
