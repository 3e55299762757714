"""Uniformly distributed (Haar) orthonormal rows and columns without LAPACK, in float32.

LAPACK called from inside a compiled trial can hang where CPU devices equal the pool's threads, so this is
Gram-Schmidt in plain lax loops: panels of rows, each orthogonalized twice against the rows before it (twice
is enough: Giraud et al. 2005), which keeps |Q Q' - I| near float32's epsilon and the work in products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PANEL = 32
"""Rows orthogonalized at a time: 32 x 256 float32 numbers stay in a core's first cache."""


def haar_matrix(key: Array, rows: int, columns: int) -> Float[Array, "{rows} {columns}"]:
    """Orthonormal rows where rows <= columns, otherwise orthonormal columns; square: Haar on O(n).

    Gram-Schmidt of independent normals is unique once every diagonal entry of R is positive, and then
    invariant under rotation (Mezzadri 2007, section 5).
    """
    tall = rows > columns
    shape = (columns, rows) if tall else (rows, columns)
    frame = orthonormal_rows(jax.random.normal(key, shape, jnp.float32))
    return frame.T if tall else frame


def orthonormal_rows(rows: Float[Array, "k n"]) -> Float[Array, "k n"]:
    """Gram-Schmidt from the first row on, k <= n: row i of the result lies in the span of rows 1..i.

    A row that is exactly zero stays zero. For generic rows; those nearly in the span of the others lose
    orthogonality as in any scheme without pivoting.
    """
    k, n = rows.shape
    panel = min(PANEL, k)
    count = -(-k // panel)
    padded = jnp.zeros((count * panel, n), jnp.float32).at[:k].set(rows)

    def add_panel(index: Array, frame: Array) -> Array:
        block = jax.lax.dynamic_slice_in_dim(padded, index * panel, panel)
        for _ in range(2):
            block = _orthonormalize_panel(_remove(block, frame))
        return jax.lax.dynamic_update_slice_in_dim(frame, block, index * panel, axis=0)

    return jax.lax.fori_loop(0, count, add_panel, jnp.zeros_like(padded))[:k]


def _orthonormalize_panel(block: Float[Array, "p n"]) -> Float[Array, "p n"]:
    def add_row(index: Array, frame: Array) -> Array:
        row = jax.lax.dynamic_slice_in_dim(block, index, 1)
        row = _remove(_remove(row, frame), frame)
        norm = jnp.sqrt(jnp.sum(row * row))
        row = row * jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0)
        return jax.lax.dynamic_update_slice_in_dim(frame, row, index, axis=0)

    return jax.lax.fori_loop(0, len(block), add_row, jnp.zeros_like(block))


def _remove(block: Float[Array, "p n"], frame: Float[Array, "q n"]) -> Float[Array, "p n"]:
    """`block` less its projection on the orthonormal (or zero) rows of `frame`."""
    highest = jax.lax.Precision.HIGHEST
    return block - jnp.matmul(jnp.matmul(block, frame.T, precision=highest), frame, precision=highest)
