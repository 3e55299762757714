"""Uniformly distributed (Haar) orthonormal rows and columns without LAPACK, in float32.

LAPACK called from inside a compiled trial can hang where CPU devices equal the pool's threads, so this is
Cholesky of the rows' products (it squares their condition) where they are well apart but for what they have in
common with the first, and else modified Gram-Schmidt in plain lax loops, halving the rows so that most of the
work is products. One pass leaves |Q Q' - I| of order epsilon times the rows' condition (Björck 1967), below 1
since rows that depend on others are set to zero; Newton's iteration then brings it to epsilon without leaving
their span. So it must be for a half before anything is projected on it: what it is off by, all rows below would
share.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab import random
from jaxstab.compiler import one_kernel
from jaxstab.reductions import absmax, total

TOLERANCE = 8 * float(jnp.finfo(jnp.float32).eps)
"""Rounding leaves less than this share of a row that depends on others (6e-7 seen up to 1,024 columns)."""

WELL_APART = 1e-4
"""Where each row adds more than this share of its square, Cholesky is right to epsilon over this share for what the
row adds, to epsilon over its root for the row."""

UNROLLED = 32
"""Up to so many columns the elimination is written out: a loop's turn would cost as much as what it does."""

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
    """Orthonormal rows and zeros that span what `rows` span, at any rank: the Q of `lq`."""
    return lq(rows, tolerance)[1]


@partial(jax.jit, static_argnames="tolerance")
def lq(
    rows: Float[Array, "k n"], tolerance: float = TOLERANCE
) -> tuple[Float[Array, "k k"], Float[Array, "k n"]]:
    """(L, Q), rows = L Q: Q's rows orthonormal or zero, by Gram-Schmidt from the first; L so nearly lower triangular.

    Row i of Q is zero where it adds less than `tolerance` of its own length to the rows before it: what is left
    there is rounding, of no direction. Rows' squares must be in range. ValueError for more rows than columns.
    """
    k, n = rows.shape
    if k > n:
        raise ValueError(f"{k} rows of {n} columns cannot all be orthogonal.")

    def by_gram_schmidt(rows: Array) -> tuple[Array, Array]:
        floors = tolerance * jnp.sqrt(total(rows * rows, kept=1))
        frame = _polish(_gram_schmidt(rows, floors, max(16, k // LEAVES)))
        return _matmul(rows, frame.T), frame

    def again(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # other lanes' rows are zero here; without this XLA would see that every turn is the same, and take it first
        return *by_gram_schmidt(jnp.where(state[2], rows, 0.0)), jnp.array(False)

    if 2 * k > n:  # nearly square: some row always adds little
        return by_gram_schmidt(rows)
    lower, frame, is_well = _by_cholesky(rows, tolerance)
    # a loop of one turn or none: a branch would be taken by every lane of a batch
    lower, frame, _ = jax.lax.while_loop(lambda state: state[2], again, (lower, frame, ~is_well))
    return lower, frame


def _by_cholesky(rows: Float[Array, "k n"], tolerance: float) -> tuple[Array, Array, Array]:
    """(L, Q, whether they are right), what every row has of the first one being taken from it before.

    Examples grow alike with depth (ReLU, sigmoid), and what tells them apart is lost in products of whole rows.
    """
    squares = total(rows * rows, kept=1)
    along = _matmul(rows, rows[:1].T) / jnp.where(squares[0] > 0, squares[0], 1.0)
    along = along.at[0].set(0.0)
    rest = rows - along * rows[:1]
    gram = _matmul(rest, rest.T)
    lower = cholesky(gram)
    diagonal = jnp.diagonal(gram)
    is_left = diagonal > tolerance**2 * squares
    is_apart = jnp.square(jnp.diagonal(lower)) > WELL_APART * diagonal
    # none is where a row is not finite: Gram-Schmidt leaves it no direction, and gradients go on
    return lower + along * lower[0], _polish(_matmul(inverse(lower), rest)), jnp.all(is_left & is_apart)


def cholesky(gram: Float[Array, "k k"], tolerance: float = 0.0) -> Float[Array, "k k"]:
    """Lower triangular L with L L' = gram, at any rank.

    Column i is zero where its pivot is at most `tolerance` of gram[i, i].
    """
    return _lanes_last(one_kernel(partial(_eliminate, tolerance=tolerance)))(gram)


def inverse(lower: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """The inverse of a lower triangular matrix (of no meaning where a diagonal entry is 0)."""
    return _lanes_last(_invert)(lower)


def _lanes_last(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """`f` of matrices [k, k, lanes] for one of them or for a batch: a vector's entries are one entry of many lanes."""
    whole = jax.custom_batching.custom_vmap(lambda x: f(x[..., None])[..., 0])

    @whole.def_vmap
    def of_batch(size: int, is_batched: list[bool], x: Array) -> tuple[Array, bool]:
        return jnp.moveaxis(f(jnp.moveaxis(x, 0, -1)), -1, 0), True

    return whole


@partial(jax.jit, static_argnames="tolerance")
def _eliminate(left: Float[Array, "k k lanes"], tolerance: float) -> Float[Array, "k k lanes"]:
    """The Cholesky factor by elimination, every column from those after it."""
    k = len(left)
    smallest = tolerance * jnp.diagonal(left).T

    def inverse_of(pivot: Array, smallest: Array) -> Array:
        kept = (pivot > 0) & (pivot > smallest)
        return jnp.where(kept, 1 / jnp.where(kept, pivot, 1.0), 0.0)

    def column(j: Array, left: Array) -> Array:
        at = lambda x: jax.lax.dynamic_index_in_dim(x, j, keepdims=False)  # noqa: E731
        row = at(left)
        share = jnp.where(jnp.arange(k)[:, None] > j, row * inverse_of(at(row), at(smallest)), 0.0)
        return left - share[:, None] * row

    if k <= UNROLLED:
        rows = []
        for j in range(k):
            rows.append(left[0])
            share = left[0, j + 1 :] * inverse_of(left[0, j], smallest[j])
            left = left[1:] - share[:, None] * left[0]
        left = jnp.stack(rows)
    else:
        left = jax.lax.fori_loop(0, k, column, left)
    scaled = left * jnp.sqrt(inverse_of(jnp.diagonal(left).T, smallest))[:, None]
    return jnp.triu(scaled.transpose(2, 0, 1)).transpose(2, 1, 0)


@jax.jit
def _invert(lower: Float[Array, "k k lanes"]) -> Float[Array, "k k lanes"]:
    """Blocks on the diagonal, each from two of half its size: [[A, 0], [B, C]] of [-C^-1 B A^-1]."""
    k, _, lanes = lower.shape
    size = 1 << (k - 1).bit_length()
    lower = jnp.zeros((size, size, lanes)).at[:k, :k].set(lower)
    diagonal = jnp.diagonal(lower).T
    blocks = jnp.where(diagonal > 0, 1 / jnp.where(diagonal > 0, diagonal, 1.0), 0.0)[:, None, None]

    def product(a: Array, b: Array) -> Array:
        return jnp.sum(a[:, :, :, None] * b[:, None], axis=2)

    while (m := blocks.shape[1]) < size:
        pairs = jnp.arange(size // (2 * m))
        below = lower.reshape(len(pairs), 2, m, len(pairs), 2, m, lanes)[pairs, 1, :, pairs, 0]
        a, c = blocks[0::2], blocks[1::2]
        upper = jnp.concatenate([a, jnp.zeros_like(a)], axis=2)
        blocks = jnp.concatenate(
            [upper, jnp.concatenate([-product(product(c, below), a), c], axis=2)], axis=1
        )
    return blocks[0, :k, :k]


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


@jax.jit
def _polish(frame: Float[Array, "k n"]) -> Float[Array, "k n"]:
    """Nearly orthonormal rows (and zeros) made so to rounding: Q <- (3 I - Q Q') Q / 2, which squares the error."""
    identity = jnp.eye(len(frame))

    def improve(frame: Array, gram: Array) -> Array:
        return _matmul(1.5 * identity - 0.5 * gram, frame)

    def is_rough(state: tuple[Array, Array, Array]) -> Array:
        _, gram, steps = state
        wanted = identity * (jnp.diagonal(gram) > 0.5)
        # the step after the loop makes 3e-4 of it 1e-7; what is not finite stays as it is
        return (absmax(gram - wanted) > 3e-4) & (steps < 8)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        frame = improve(*state[:2])
        return frame, _matmul(frame, frame.T), state[2] + 1

    frame, gram, _ = jax.lax.while_loop(is_rough, step, (frame, _matmul(frame, frame.T), jnp.int32(0)))
    return improve(frame, gram)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
