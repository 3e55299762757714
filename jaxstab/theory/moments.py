"""Gaussian expectations of a function of one variable and of two correlated ones, at any variance.

E[f(sqrt(q) z)], z ~ N(0, 1), is a sum over the function's nodes. E[f(u) f(v)] of correlated Gaussian numbers comes in
closed form, by Hermite series, or by an iterated integral.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.polynomial.legendre import leggauss
from scipy.special import erf

from jaxstab.theory.activations import evaluate, homogeneous_slopes
from jaxstab.theory.sampling import NODES, Q_MAX, Q_MIN, WEIGHTS, Sampled, sampled, split
from jaxstab.typing import Function

_PAIR_NODES, _PAIR_WEIGHTS = leggauss(10)  # in two dimensions nodes cost their square
_PAIR_EDGES, _PAIR_CUT = 256, 9.0  # at most so many panels; standard deviations
_TERMS, _PAIR_ERROR = 256, 1e-10  # of Hermite series; what they may leave out, of E[f^2]


class Moments(NamedTuple):
    """E[phi], E[phi^2] and E[phi'^2] at sqrt(q) z, of q's shape; NaN where phi is not resolved.

    At q = 0 they are the limits q -> 0+: with a kink at 0, slope_square is not phi'(0)^2.
    """

    mean: np.ndarray
    square: np.ndarray
    slope_square: np.ndarray


def moments(phi: Function, q: float | np.ndarray) -> Moments:
    """The moments at any q: in closed form for a homogeneous phi, else with an error about 1e-12 of max |phi|."""
    slopes = homogeneous_slopes(phi)
    if slopes is None:
        nodes = sampled(phi)
        return Moments(*nodes.mean(np.stack([nodes.value, nodes.value**2, nodes.slope**2]), q))
    right, left = slopes
    q, square = np.asarray(q, np.float64), (right**2 + left**2) / 2
    return Moments((right - left) * np.sqrt(q / (2 * np.pi)), square * q, np.where(np.isnan(q), q, square))


def second_moment_slope(phi: Function, q: float | np.ndarray) -> np.ndarray:
    """d E[phi(sqrt(q) z)^2] / dq, of q's shape, as E[(z^2 - 1) phi^2] / 2q: exact for jumps of phi too."""
    q = np.clip(np.asarray(q, np.float64), Q_MIN, Q_MAX)
    if homogeneous_slopes(phi) is not None:
        return moments(phi, q).slope_square  # E[phi^2] = q E[phi'^2]
    nodes = sampled(phi)
    square = nodes.value**2 - nodes.value[:, :1] ** 2  # E[z^2 - 1] = 0: what is constant would only cancel
    with_radius, without = nodes.mean(np.stack([nodes.radius**2 * square, square]), q)
    return np.asarray((with_radius / q - without) / (2 * q))


def expect_pair(function: Function, correlation: float | np.ndarray, q: float | np.ndarray) -> np.ndarray:
    """E[f(u) f(v)] for u, v ~ N(0, q) of the given correlation; of their common shape. Error about 1e-9 E[f^2].

    In closed form for homogeneous f; by Hermite coefficients (20 us a pair) where these bound the error; else,
    which is near correlation 1 and for kinks or jumps off 0, by an iterated integral (2 ms). NaN where f is not
    resolved, or oscillates more than some hundred times in 9 sqrt(q).
    """
    c, q = np.broadcast_arrays(
        np.asarray(correlation, np.float64), np.clip(np.asarray(q, np.float64), Q_MIN, Q_MAX)
    )
    slopes = homogeneous_slopes(function)
    if slopes is not None:  # f = (a + b)/2 x + (a - b)/2 |x|
        odd, even = (slopes[0] + slopes[1]) / 2, (slopes[0] - slopes[1]) / 2
        return np.asarray(q * (odd**2 * c + even**2 * _absolute_pair(c)))
    pairs, inverse = np.unique(np.stack([np.ravel(c), np.ravel(q)]), axis=1, return_inverse=True)
    mean = _hermite_pairs(function, *pairs)
    left = np.isnan(mean)
    mean[left] = _iterated_pairs(function, *pairs[:, left])
    return mean[np.ravel(inverse)].reshape(c.shape)


def _absolute_pair(c: np.ndarray) -> np.ndarray:
    """E[|u| |v|] for u, v ~ N(0, 1). Cho & Saul 2009, eq. 6."""
    return np.asarray(2 / np.pi * (np.sqrt(np.maximum(1 - c**2, 0.0)) + c * np.arcsin(np.clip(c, -1.0, 1.0))))


def _hermite_pairs(function: Function, c: np.ndarray, q: np.ndarray) -> np.ndarray:
    """E[f(u) f(v)] by Hermite series, of flat arrays [pair]; NaN where none is known to be near enough.

    A kink at 0, of f itself or of what f is from afar, is taken out as alpha |x|.
    """
    nodes = sampled(function)
    mean = np.full(c.shape, np.nan)
    if nodes.kinks.size:
        return mean
    square = nodes.mean(nodes.value**2, q)
    for alpha in _kinks_at_zero(function):
        left = np.flatnonzero(np.isnan(mean) & np.isfinite(square))
        order = left[np.argsort(np.abs(c[left]))]  # so that pairs done together need as many terms
        for part in split(order, 256):
            mean[part] = _hermite_series(function, alpha, c[part], np.sqrt(q[part]), square[part])
    return mean


@functools.lru_cache(maxsize=256)
def _kinks_at_zero(function: Function) -> tuple[float, ...]:
    """0 for none, and half of how much the slope of f grows across 0 and from -infinity to infinity, where it does."""
    near, far = sampled(function).slope[:, 0], evaluate(function, np.array([1e12, -1e12])) / [1e12, -1e12]
    alphas = np.array([near, far]) @ [0.5, -0.5]
    alphas = alphas[np.isfinite(alphas) & (np.abs(alphas) > 1e-6)]
    return tuple(dict.fromkeys([0.0, *alphas.tolist()]))


def _hermite_series(
    function: Function, alpha: float, c: np.ndarray, sigma: np.ndarray, square: np.ndarray
) -> np.ndarray:
    """E[f(u) f(v)] as alpha^2 E[|u||v|] + 2 alpha E[|u| r(v)] + E[r(u) r(v)], f = alpha |x| + r. All [pair].

    E[r(u) r(v)] = sum of a_k^2 c^k with a_k = E[r(sigma z) He_k(z)] / sqrt(k!) (Mehler 1866); all terms from the
    K-th on are at most |c|^K times what the first K leave of E[r^2]. NaN where that is too much, or where the
    grid does not give E[f^2], `square`, as it should.
    """
    z, weight, hermite = _hermite_grid()
    x = sigma[:, None] * z
    values = evaluate(function, np.stack([x, -x]))
    rest = values - alpha * x
    with np.errstate(divide="ignore"):
        enough = np.log(_PAIR_ERROR / 10) / np.log(np.max(np.abs(c), initial=0.0))
    terms = 2 * int(np.clip(np.ceil(enough / 2), 1, _TERMS // 2)) if enough >= 0 else _TERMS
    parts = (rest[0] + rest[1], rest[0] - rest[1])
    coefficient = np.stack(
        [_product_of_few_rows(p, h[:, : terms // 2]) for p, h in zip(parts, hermite, strict=True)], axis=-1
    )
    powers = coefficient.reshape(len(c), terms) ** 2
    mean = np.sum(powers * c[:, None] ** np.arange(terms), axis=1)
    left = np.maximum(np.sum(rest**2, axis=0) @ weight - np.sum(powers, axis=1), 0.0) * np.abs(c) ** terms
    if alpha:
        absolute = np.sum(_absolute_given(c[:, None], z) * (rest[0] + rest[1]) * weight, axis=1)
        mean = mean + alpha * sigma * (alpha * sigma * _absolute_pair(c) + 2 * absolute)
    seen = np.abs(np.sum(values**2, axis=0) @ weight - square) <= 1e-11 * square
    return np.where(seen & (left <= _PAIR_ERROR * square), mean, np.nan)


def _product_of_few_rows(rows: np.ndarray, table: np.ndarray) -> np.ndarray:
    """rows @ table, four rows at a time: so small a product is not worth the threads that BLAS would wait for."""
    blocks = np.pad(rows, ((0, -len(rows) % 4), (0, 0))).reshape(-1, 4, rows.shape[1])
    return (blocks @ np.ascontiguousarray(table)).reshape(-1, table.shape[1])[: len(rows)]


def _absolute_given(c: np.ndarray, z: np.ndarray) -> np.ndarray:
    """E[|u| given v = z] for u, v ~ N(0, 1) of correlation c."""
    spread = np.sqrt(np.maximum(1 - c**2, 1e-30))
    ratio = c * z / (spread * np.sqrt(2))
    return c * z * erf(ratio) + spread * np.sqrt(2 / np.pi) * np.exp(-(ratio**2))


@functools.lru_cache(maxsize=1)
def _hermite_grid() -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """(z > 0, their weights in E[f(z)], weights times He_k(z)/sqrt(k!) [node, k] for k even and k odd).

    Panels are finer towards 0, where f(sigma z) is narrow if sigma is large.
    """
    edges = np.concatenate([[0.0], 2.0 ** np.arange(-10, 0), np.arange(1.0, 9.75, 0.5)])
    half = np.diff(edges)[:, None] / 2
    z = np.ravel(edges[:-1, None] + half * (1 + NODES))
    weight = np.ravel(half * WEIGHTS) * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    polynomials = [np.ones_like(z), z]
    for k in range(1, _TERMS - 1):
        polynomials.append((z * polynomials[k] - np.sqrt(k) * polynomials[k - 1]) / np.sqrt(k + 1))
    table = weight[:, None] * np.stack(polynomials, axis=1)
    return z, weight, (table[:, ::2].copy(), table[:, 1::2].copy())


def _iterated_pairs(function: Function, c: np.ndarray, q: np.ndarray) -> np.ndarray:
    """E[f(u) f(v)] as an integral over u = sqrt(q) z of one over v, which given u is N(c u, q (1 - c^2)): [pair].

    Panels of both end at f's edges, and those of u close in on f's kinks, which the inner integral smooths over
    sqrt(q (1 - c^2)).
    """
    nodes, sigma = sampled(function), np.sqrt(q)
    counts = np.searchsorted(nodes.edges, _PAIR_CUT * sigma)  # edges within reach of each pair
    order = np.argsort(sigma)  # so that pairs done together need the same edges
    order = order[(nodes.resolves(sigma) & (counts <= _PAIR_EDGES))[order]]
    most = int(np.max(counts[order], initial=0)) + 20
    mean = np.full(c.shape, np.nan)
    for block in split(order, max(1, 2**23 // (4 * most**2 * _PAIR_NODES.size**2))):
        mean[block] = _pairs_of_alike_panels(function, nodes, c[block], sigma[block])
    return mean


def _pairs_of_alike_panels(
    function: Function, nodes: Sampled, c: np.ndarray, sigma: np.ndarray
) -> np.ndarray:
    """The iterated integral for pairs that take the same panels, in units of sigma: [pair]."""
    if not c.size:
        return np.zeros(0)
    near = nodes.edges[nodes.edges < _PAIR_CUT * np.max(sigma)]
    edges = np.concatenate([-near[::-1], near]) / sigma[:, None]
    kinks = np.concatenate([-nodes.kinks[::-1], [0.0], nodes.kinks]) / sigma[:, None]
    width = np.sqrt(np.maximum(1 - c**2, 1e-17))  # floor: at c = +-1 the conditional law is a point
    slope = np.where(np.abs(c) < 1e-3, 1e-3, c)
    grades = np.array([-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 8.0])
    graded = (kinks[:, :, None] + width[:, None, None] * grades) / slope[:, None, None]
    z, z_weight = _gaussian_nodes(np.concatenate([edges, graded.reshape(len(c), -1)], axis=1))
    centre = c[:, None] * z
    w, w_weight = _gaussian_nodes((edges[:, None, :] - centre[..., None]) / width[:, None, None])
    v = evaluate(function, sigma[:, None, None] * (centre[..., None] + width[:, None, None] * w))
    inner = np.sum(w_weight * v, axis=-1)
    return np.sum(z_weight * evaluate(function, sigma[:, None] * z) * inner, axis=-1)


def _gaussian_nodes(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [..., node] of N(0, 1), with panel boundaries at edges [..., edge]."""
    regular = np.broadcast_to(np.linspace(-_PAIR_CUT, _PAIR_CUT, 9), (*edges.shape[:-1], 9))
    panels = np.sort(np.concatenate([edges, regular], axis=-1).clip(-_PAIR_CUT, _PAIR_CUT), axis=-1)
    half = np.diff(panels)[..., None] / 2
    nodes = panels[..., :-1, None] + half * (1 + _PAIR_NODES)
    weights = half * _PAIR_WEIGHTS * np.exp(-0.5 * nodes**2) / np.sqrt(2 * np.pi)
    shape = (*edges.shape[:-1], -1)
    return nodes.reshape(shape), weights.reshape(shape)
