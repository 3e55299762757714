"""Uniformly distributed (Haar) orthonormal rows and columns without LAPACK, in float32.

LAPACK called from inside a compiled trial can hang where CPU devices equal the pool's threads, so this is
modified Gram-Schmidt in plain lax loops, halving the rows so that most of the work is products. One pass leaves
|Q Q' - I| of order epsilon times the rows' condition (Björck 1967), below 1 since rows that depend on others are
set to zero; Newton's iteration then brings it to epsilon without leaving their span. So it must be for a half
before anything is projected on it: what it is off by, all rows below would share.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab import random

TOLERANCE = 8 * float(jnp.finfo(jnp.float32).eps)
"""Rounding leaves less than this share of a row that depends on others (6e-7 seen up to 1,024 columns)."""

LEAVES = 16
"""At most about so many panels of rows are orthogonalized row by row: each is a loop in the program."""


def haar_matrix(key: Array, rows: int, columns: int) -> Float[Array, "{rows} {columns}"]:
    """Orthonormal rows where rows <= columns, otherwise orthonormal columns; square: Haar on O(n).

    Gram-Schmidt of independent normals is unique once every diagonal entry of R is positive, and then
    invariant under rotation (Mezzadri 2007, section 5).
    """
    tall = rows > columns
    shape = (columns, rows) if tall else (rows, columns)
    frame = orthonormal_rows(random.normal(key, shape), tolerance=0.0)
    return frame.T if tall else frame


def orthonormal_rows(rows: Float[Array, "k n"], tolerance: float = TOLERANCE) -> Float[Array, "k n"]:
    """Orthonormal rows and zeros that span what `rows` span, at any rank: Gram-Schmidt from the first row on.

    Row i is zero where it adds less than `tolerance` of its own length to the rows before it: what is left
    there is rounding, of no direction. Rows' squares must be in range. ValueError for more rows than columns.
    """
    k, n = rows.shape
    if k > n:
        raise ValueError(f"{k} rows of {n} columns cannot all be orthogonal.")
    floors = tolerance * jnp.sqrt(jnp.sum(rows * rows, axis=1))
    return _polish(_gram_schmidt(rows, floors, max(8, k // LEAVES)))


def _gram_schmidt(rows: Float[Array, "k n"], floors: Float[Array, " k"], panel: int) -> Float[Array, "k n"]:
    """The upper half, then the lower half less its projection on it."""
    k = len(rows)
    if k <= panel:
        return _orthonormalize_panel(rows, floors)
    half = -(-k // 2 // panel) * panel if k > 2 * panel else panel
    upper = _polish(_gram_schmidt(rows[:half], floors[:half], panel))
    lower = rows[half:] - _matmul(_matmul(rows[half:], upper.T), upper)
    return jnp.concatenate([upper, _gram_schmidt(lower, floors[half:], panel)])


def _orthonormalize_panel(block: Float[Array, "p n"], floor: Float[Array, " p"]) -> Float[Array, "p n"]:
    """Each row normalized, or zero where no more than `floor` is left of it, and taken from those after it."""
    places = jnp.arange(len(block))

    def take_row(index: Array, block: Array) -> Array:
        row = jax.lax.dynamic_slice_in_dim(block, index, 1)
        norm = jnp.sqrt(jnp.sum(row * row))
        kept = norm > floor[index]
        row = jnp.where(kept, row / jnp.where(kept, norm, 1), 0)
        share = jnp.where(places > index, jnp.sum(block * row, axis=1), 0)
        return jax.lax.dynamic_update_slice_in_dim(block - share[:, None] * row, row, index, axis=0)

    return jax.lax.fori_loop(0, len(block), take_row, block)


def _polish(frame: Float[Array, "k n"]) -> Float[Array, "k n"]:
    """Nearly orthonormal rows (and zeros) made so to rounding: Q <- (3 I - Q Q') Q / 2, which squares the error."""
    identity = jnp.eye(len(frame))

    def improve(frame: Array, gram: Array) -> Array:
        return _matmul(1.5 * identity - 0.5 * gram, frame)

    def is_rough(state: tuple[Array, Array, Array]) -> Array:
        _, gram, steps = state
        wanted = identity * (jnp.diagonal(gram) > 0.5)
        # the step after the loop makes 3e-4 of it 1e-7; what is not finite stays as it is
        return (jnp.max(jnp.abs(gram - wanted)) > 3e-4) & (steps < 8)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        frame = improve(*state[:2])
        return frame, _matmul(frame, frame.T), state[2] + 1

    frame, gram, _ = jax.lax.while_loop(is_rough, step, (frame, _matmul(frame, frame.T), jnp.int32(0)))
    return improve(frame, gram)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
