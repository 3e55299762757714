"""Gram-Schmidt in lax loops: orthonormal to float32's epsilon, Haar in law, no LAPACK."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxstab.nets import haar

KEY = jax.random.key(0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (31, 40), (33, 33), (100, 64), (96, 200)])
def test_rows_or_columns_are_orthonormal(shape):
    matrix = np.asarray(haar.haar_matrix(KEY, *shape), np.float64)
    assert matrix.shape == shape
    product = matrix @ matrix.T if shape[0] <= shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, np.eye(len(product)), atol=2e-6)


def test_gram_schmidt_is_the_qr_decomposition_with_a_positive_diagonal():
    rows = np.random.default_rng(1).normal(size=(40, 70)).astype(np.float32)
    q, r = np.linalg.qr(rows.astype(np.float64).T)
    np.testing.assert_allclose(
        haar.orthonormal_rows(jnp.asarray(rows)), (q * np.sign(np.diag(r))).T, atol=1e-5
    )


def test_nearly_dependent_rows_are_orthogonalized_too():
    rows = 1 + 1e-4 * jax.random.normal(KEY, (40, 64))
    frame = np.asarray(haar.orthonormal_rows(rows), np.float64)
    np.testing.assert_allclose(frame @ frame.T, np.eye(40), atol=2e-6)
    unscaled = np.asarray(rows / jnp.linalg.norm(rows, axis=1, keepdims=True), np.float64)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(unscaled @ unscaled.T, np.eye(40), atol=2e-6)


def rank_3(rows):
    left, right = jax.random.normal(KEY, (rows, 3)), jax.random.normal(jax.random.key(1), (3, 64))
    return jnp.matmul(left, right, precision="highest")


GENERIC = jax.random.normal(KEY, (16, 64))


@pytest.mark.parametrize(
    ("rows", "rank"),
    [
        (GENERIC.at[2].set(0.0), 15),
        (GENERIC.at[8:].set(GENERIC[:8]), 8),
        (jnp.tile(GENERIC[:1], (16, 1)), 1),
        (GENERIC.at[5].set(-1e-3 * GENERIC[0]), 15),
        (rank_3(16), 3),
        (rank_3(60), 3),
        (jnp.zeros((4, 64)), 0),
        (GENERIC[0] + 4e-6 * GENERIC[1:], 15),
    ],
    ids=[
        "a zero",
        "duplicates",
        "all equal",
        "a multiple",
        "rank 3",
        "rank 3, panels",
        "zeros",
        "near",
    ],
)
def test_dependent_rows_become_zeros_and_the_others_span_them(rows, rank):
    frame = np.asarray(haar.orthonormal_rows(rows), np.float64)
    norms = np.linalg.norm(frame, axis=1)
    assert int((norms > 0).sum()) == rank
    np.testing.assert_allclose(frame @ frame.T, np.diag(norms > 0).astype(float), atol=2e-6)
    beyond = rows - (np.asarray(rows, np.float64) @ frame.T) @ frame
    assert np.linalg.norm(beyond) <= 2e-6 * np.linalg.norm(rows)


def smallest(x):
    return np.linalg.svd(x, compute_uv=False)[-1]


@pytest.mark.parametrize("apart", [1.0, 0.1, 1e-2, 1e-3, 1e-5])
def test_l_times_q_is_the_rows_however_near_they_are(apart):
    """Down to the smallest singular value, to a rounding of the rows: what Cholesky alone would lose."""
    rows = 1 + apart * jax.random.normal(KEY, (16, 256))
    lower, frame = (np.asarray(x, np.float64) for x in jax.jit(haar.lq)(rows))
    rows = np.asarray(rows, np.float64)
    rounding = 2e-6 * np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(frame @ frame.T, np.eye(16), atol=2e-6)
    assert (np.linalg.norm(rows - lower @ frame, axis=1) < rounding).all()
    assert abs(smallest(lower) - smallest(rows)) < rounding[0]
    once = np.asarray(haar.cholesky(jnp.asarray(rows @ rows.T, jnp.float32)), np.float64)
    if apart == 1e-3:
        assert not abs(smallest(once) - smallest(rows)) < rounding[0]


@pytest.mark.parametrize("apart", [1.0, 0.1, 1e-2, 1e-3, 1e-5])
def test_rows_in_two_bundles_are_right_to_what_cholesky_leaves(apart, monkeypatch):
    """What they have in common with the first row helps one bundle alone."""
    places = jnp.array([1.0, -1.0]).repeat(8)[:, None] * jax.random.normal(
        jax.random.key(2), (2, 256)
    ).repeat(8, 0)
    rows = places + apart * jax.random.normal(KEY, (16, 256))
    exact = np.asarray(rows, np.float64)

    def off() -> tuple[float, float]:
        lower, frame = (np.asarray(x, np.float64) for x in haar.lq.__wrapped__(rows))  # no trace is kept
        share = np.linalg.norm(exact - lower @ frame, axis=1) / np.linalg.norm(exact, axis=1)
        return share.max(), abs(smallest(lower) / smallest(exact) - 1)

    epsilon = 2.0**-23
    of_the_rows, of_what_is_added = off()
    assert of_the_rows < 4 * epsilon / math.sqrt(haar.WELL_APART)
    assert of_what_is_added < max(4 * epsilon / haar.WELL_APART, 4 * epsilon / apart)
    monkeypatch.setattr(haar, "WELL_APART", 0.0)
    if apart == 1e-3:
        assert not off()[1] < 4 * epsilon / 1e-4


@pytest.mark.parametrize("spoiled", [np.inf, np.nan])
def test_a_row_that_is_not_finite_has_no_direction(spoiled):
    """The gradient of a diverged lane goes back all the same: a linear layer's does not depend on its inputs."""
    lower, frame = haar.lq(GENERIC.at[3, 5].set(spoiled))
    assert not np.isfinite(lower[3]).all()
    assert not frame[3].any()
    np.testing.assert_allclose(frame @ frame.T, np.diag(np.arange(16) != 3).astype(float), atol=2e-6)


def test_a_lane_s_rows_do_not_depend_on_whether_another_needs_gram_schmidt():
    far, near = jax.random.normal(KEY, (4, 64)), 1 + 1e-5 * jax.random.normal(KEY, (4, 64))
    both = jax.jit(jax.vmap(haar.lq))
    for mine, theirs in zip(both(jnp.stack([far, far])), both(jnp.stack([far, near])), strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])


@pytest.mark.parametrize("size", [1, 16, 40])
def test_cholesky_of_one_and_of_many_at_full_rank_and_below(size):
    d = jax.random.normal(KEY, (5, size, 64))
    gram = jnp.matmul(d, d.mT, precision="highest")
    wanted = np.linalg.cholesky(np.asarray(gram, np.float64))
    lower = jax.vmap(haar.cholesky)(gram)
    inverse = jax.vmap(haar.inverse)(lower)
    np.testing.assert_allclose(lower, wanted, atol=1e-4)
    np.testing.assert_allclose(lower @ inverse, np.broadcast_to(np.eye(size), gram.shape), atol=1e-4)
    np.testing.assert_allclose(haar.cholesky(gram[3]), wanted[3], atol=1e-4)
    below = gram.at[:, -1].set(0).at[:, :, -1].set(0)
    np.testing.assert_allclose(jax.vmap(haar.cholesky)(below)[:, -1], np.zeros((5, size)))


def test_more_rows_than_columns_are_refused():
    with pytest.raises(ValueError, match="65 rows of 64 columns"):
        haar.orthonormal_rows(jnp.ones((65, 64)))


@pytest.mark.parametrize("shape", [(5, 5), (5, 3), (3, 5)])
def test_the_law_is_haar(shape):
    """Each squared entry is Beta(1/2, (n - 1)/2), signs are fair, the trace has mean 0 and variance k/n."""
    keys = jax.random.split(jax.random.key(7), 4000)
    matrices = np.asarray(jax.jit(jax.vmap(lambda key: haar.haar_matrix(key, *shape)))(keys), np.float64)
    beta = stats.beta(0.5, (max(shape) - 1) / 2)
    for row, column in [(0, 0), (2, 2), (shape[0] - 1, 0), (0, shape[1] - 1)]:
        entry = matrices[:, row, column]
        assert stats.kstest(entry**2, beta.cdf).pvalue > 1e-3
        assert stats.kstest((1.1 * entry) ** 2, beta.cdf).pvalue < 1e-3
        assert stats.binomtest(int((entry > 0).sum()), len(entry)).pvalue > 1e-3
    trace = np.trace(matrices, axis1=1, axis2=2)
    assert abs(trace.mean()) < 5 * trace.std() / math.sqrt(len(trace))
    squares = trace**2
    assert abs(squares.mean() - min(shape) / max(shape)) < 5 * squares.std() / math.sqrt(len(trace))


def test_without_the_signs_of_r_it_would_not_be_haar():
    peer = np.linalg.qr(np.random.default_rng(8).normal(size=(4000, 5, 5)))[0][:, 0, 0]
    assert stats.binomtest(int((peer > 0).sum()), len(peer)).pvalue < 1e-3


def test_no_lapack_is_called():
    lowered = jax.jit(jax.vmap(lambda key: haar.haar_matrix(key, 40, 40))).lower(jax.random.split(KEY, 3))
    assert "custom_call" not in lowered.as_text()
    peer = jax.jit(lambda key: jax.nn.initializers.orthogonal()(key, (40, 40)))
    assert "custom_call" in peer.lower(KEY).as_text()


def test_lanes_do_not_know_each_other():
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda key: haar.haar_matrix(key, 33, 40)))(keys)
    np.testing.assert_allclose(together[1], haar.haar_matrix(keys[1], 33, 40), atol=1e-5)
