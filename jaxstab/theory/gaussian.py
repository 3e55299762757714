"""Gaussian expectations of any elementwise function, kinks and jumps included, in float64.

A function is sampled once, on Gauss-Legendre nodes over panels that are bisected until the function is a
polynomial on each; a kink or a jump, wherever it lies, ends up on a panel boundary. The same nodes then serve
every variance q, as E[f(sqrt(q) z)] = integral of f(x) N(x; 0, q) dx, z ~ N(0, 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from numpy.polynomial.legendre import leggauss, legvander
from scipy.special import erf

from jaxstab.errors import UsageError
from jaxstab.theory.activations import derivative, evaluate, homogeneous_slopes

Q_MIN, Q_MAX = 1e-20, 1e20
"""Variances outside are clipped to these: the limits q -> 0+ and q -> inf, as far as float64 tells."""

_NODES, _WEIGHTS = leggauss(16)
_PAIR_NODES, _PAIR_WEIGHTS = leggauss(10)  # in two dimensions nodes cost their square
_PAIR_EDGES, _PAIR_CUT = 256, 9.0  # at most so many panels; standard deviations
_ENDS = np.array([-1 + 1e-9, 1 - 1e-9])  # a jump closer to a panel's end than this goes unseen
_BETWEEN = np.concatenate([np.ravel(np.array([-0.75, -0.25, 0.25, 0.75])[:, None] + _NODES / 4), _ENDS])
_INTERPOLATE = legvander(_BETWEEN, 15) @ np.linalg.inv(legvander(_NODES, 15))  # [66, 16]
_UNIT = 1.0837  # panels end at this times powers of two: nobody puts a kink there, so that kinks show
_SMALL_EDGES = _UNIT * 2.0 ** np.arange(-37, 0)
_LARGE_EDGES = _UNIT * 2.0 ** np.arange(0, 38)
_OPEN = 512  # panels bisected at once, the nearest to 0; what lies farther out is then left unresolved
_HUGE = 1e150  # values beyond count as infinite: their squares must be finite
_TOLERANCES = ((1e-11, 1e-14), (1e-5, 1e-5))  # relative to the scale there and near 0; then as for float32
_KINK = 1e-12  # relative width of a panel that is called a kink
_TERMS, _PAIR_ERROR = 256, 1e-10  # of Hermite series; what they may leave out, of E[f^2]
_TAIL = 10.0  # standard deviations beyond which nothing counts: P(|z| > 10) = 1.5e-23


@dataclass(frozen=True)
class Sampled:
    """A function and its slope on quadrature nodes. The Gaussian is even, so nodes come in pairs +-radius.

    radius, weight: [node]. value, slope: [2, node], at +radius and at -radius. edges: the boundaries |x| of
    panels on which the function is smooth, from 0 up; kinks: those at which it is not. reach: the function is
    resolved for |x| up to this.
    """

    radius: np.ndarray
    weight: np.ndarray
    value: np.ndarray
    slope: np.ndarray
    edges: np.ndarray
    kinks: np.ndarray
    reach: float

    def resolves(self, sigma: np.ndarray) -> np.ndarray:
        """Whether the function is resolved as far as N(0, sigma^2) reaches."""
        return _TAIL * sigma <= self.reach

    def mean(self, values: np.ndarray, q: float | np.ndarray) -> np.ndarray:
        """E[f(sqrt(q) z)] of functions f given by their `values` [..., 2, node]; shape [..., *q.shape].

        Error about 1e-12 of the largest |f| that counts. NaN where f is not resolved. q is clipped to
        [Q_MIN, Q_MAX].
        """
        folded = np.sum(values, axis=-2)
        finite = np.isfinite(np.sum(folded.reshape(-1, folded.shape[-1]), axis=0))
        reach = min(self.reach, np.min(self.radius[~finite], initial=np.inf))
        use = finite & (self.radius < reach)
        radius, weighted = self.radius[use], (folded * self.weight)[..., use]
        if not radius.size:
            return np.full((*values.shape[:-2], *np.shape(q)), np.nan)
        sigma = np.sqrt(np.clip(np.asarray(q, np.float64), Q_MIN, Q_MAX))
        parts = []
        for s in _split(np.ravel(sigma), 64):
            near = slice(np.searchsorted(radius, 2 * _TAIL * np.nanmax(s, initial=1e-10)))  # all that counts
            density = np.exp(-0.5 * (radius[near] / s[:, None]) ** 2) / s[:, None]
            parts.append(weighted[..., near] @ density.T)
        mean = np.concatenate(parts, axis=-1)
        mean = mean.reshape((*weighted.shape[:-1], *sigma.shape)) / np.sqrt(2 * np.pi)
        edge = np.exp(-0.5 * (radius[-1] / sigma) ** 2) * radius[-1] / sigma
        last = np.multiply.outer(np.abs(folded[..., use][..., -1]), edge)
        return np.where((_TAIL * sigma > reach) | (last > 1e-9 * np.abs(mean)), np.nan, mean)


@functools.lru_cache(maxsize=256)
def sampled(function: Callable[..., jax.Array]) -> Sampled:
    """The function on its own nodes. Cached: the same function is sampled once."""
    edges, kinks, reach = _smooth_panels(function, _TOLERANCES[0])
    if reach < _TAIL:
        edges, kinks, reach = _smooth_panels(function, _TOLERANCES[1])
    panels = np.unique(np.concatenate([edges, _SMALL_EDGES]))  # for small q, where the Gaussian is narrow
    half = np.diff(panels) / 2
    radius = np.ravel((panels[:-1] + half)[:, None] + half[:, None] * _NODES)
    weight = np.ravel(half[:, None] * _WEIGHTS)
    x = np.stack([radius, -radius])
    value, slope = evaluate(function, x), evaluate(derivative(function), x)
    return Sampled(radius, weight, value, slope, edges, kinks, reach)


def expect(function: Callable[..., jax.Array]) -> float:
    """E[f(z)], z ~ N(0, 1), for any elementwise JAX function; error about 1e-12 (1e-6 for one in float32).

    Raises UsageError where the function is not finite or oscillates too fast to be resolved within 10 sigma.
    """
    nodes = sampled(function)
    mean = float(nodes.mean(nodes.value, 1.0))
    if not np.isfinite(mean):
        raise UsageError(f"the Gaussian expectation of {function!r} does not exist or cannot be resolved.")
    return mean


def first_moment(phi: Callable[..., jax.Array], q: float | np.ndarray) -> np.ndarray:
    """E[phi(sqrt(q) z)], of q's shape."""
    nodes = sampled(phi)
    return nodes.mean(nodes.value, q)


def second_moment(phi: Callable[..., jax.Array], q: float | np.ndarray) -> np.ndarray:
    """E[phi(sqrt(q) z)^2], of q's shape."""
    nodes = sampled(phi)
    return nodes.mean(nodes.value**2, q)


def slope_moment(phi: Callable[..., jax.Array], q: float | np.ndarray) -> np.ndarray:
    """E[phi'(sqrt(q) z)^2], of q's shape. At q = 0 the limit q -> 0+: with a kink at 0 not phi'(0)^2."""
    nodes = sampled(phi)
    return nodes.mean(nodes.slope**2, q)


def second_moment_slope(phi: Callable[..., jax.Array], q: float | np.ndarray) -> np.ndarray:
    """d E[phi(sqrt(q) z)^2] / dq, of q's shape, as E[(z^2 - 1) phi^2] / 2q: exact for jumps of phi too."""
    nodes = sampled(phi)
    q = np.clip(np.asarray(q, np.float64), Q_MIN, Q_MAX)
    square = nodes.value**2 - nodes.value[:, :1] ** 2  # E[z^2 - 1] = 0: what is constant would only cancel
    with_radius, without = nodes.mean(np.stack([nodes.radius**2 * square, square]), q)
    return np.asarray((with_radius / q - without) / (2 * q))


def expect_pair(
    function: Callable[..., jax.Array], correlation: float | np.ndarray, q: float | np.ndarray
) -> np.ndarray:
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


def _hermite_pairs(function: Callable[..., jax.Array], c: np.ndarray, q: np.ndarray) -> np.ndarray:
    """`expect_pair` of flat arrays [pair] by Hermite series; NaN where none is known to be near enough.

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
        for part in _split(order, 256):
            mean[part] = _hermite_series(function, alpha, c[part], np.sqrt(q[part]), square[part])
    return mean


@functools.lru_cache(maxsize=256)
def _kinks_at_zero(function: Callable[..., jax.Array]) -> tuple[float, ...]:
    """0, and half of how much the slope of f grows across 0, and from -infinity to infinity, where it does."""
    (near_right, near_left), (right, left) = sampled(function).slope[:, 0], _slopes_afar(function)
    alphas = np.array([0.0, (near_right - near_left) / 2, (right - left) / 2])
    return tuple(
        dict.fromkeys(alphas[np.isfinite(alphas) & ((np.abs(alphas) > 1e-6) | (alphas == 0))].tolist())
    )


def _slopes_afar(function: Callable[..., jax.Array]) -> tuple[float, float]:
    right, left = evaluate(function, np.array([1e12, -1e12])) / 1e12
    return float(right), -float(left)


def _hermite_series(
    function: Callable[..., jax.Array], alpha: float, c: np.ndarray, sigma: np.ndarray, square: np.ndarray
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
        [_small(p, h[:, : terms // 2]) for p, h in zip(parts, hermite, strict=True)], axis=-1
    )
    powers = coefficient.reshape(len(c), terms) ** 2
    mean = np.sum(powers * c[:, None] ** np.arange(terms), axis=1)
    left = np.maximum(np.sum(rest**2, axis=0) @ weight - np.sum(powers, axis=1), 0.0) * np.abs(c) ** terms
    if alpha:
        absolute = np.sum(_absolute_given(c[:, None], z) * (rest[0] + rest[1]) * weight, axis=1)
        mean = mean + alpha * sigma * (alpha * sigma * _absolute_pair(c) + 2 * absolute)
    seen = np.abs(np.sum(values**2, axis=0) @ weight - square) <= 1e-11 * square
    return np.where(seen & (left <= _PAIR_ERROR * square), mean, np.nan)


def _small(rows: np.ndarray, table: np.ndarray) -> np.ndarray:
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
    z = np.ravel(edges[:-1, None] + half * (1 + _NODES))
    weight = np.ravel(half * _WEIGHTS) * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    polynomials = [np.ones_like(z), z]
    for k in range(1, _TERMS - 1):
        polynomials.append((z * polynomials[k] - np.sqrt(k) * polynomials[k - 1]) / np.sqrt(k + 1))
    table = weight[:, None] * np.stack(polynomials, axis=1)
    return z, weight, (table[:, ::2].copy(), table[:, 1::2].copy())


def _iterated_pairs(function: Callable[..., jax.Array], c: np.ndarray, q: np.ndarray) -> np.ndarray:
    """`expect_pair` of flat arrays [pair] by an iterated integral: u = sqrt(q) z; v given u is N(c u, q (1 - c^2)).

    Panels of both end at f's edges, and those of u close in on f's kinks, which the inner integral smooths over
    sqrt(q (1 - c^2)).
    """
    nodes, sigma = sampled(function), np.sqrt(q)
    counts = np.searchsorted(nodes.edges, _PAIR_CUT * sigma)  # edges within reach of each pair
    order = np.argsort(sigma)  # so that pairs done together need the same edges
    order = order[(nodes.resolves(sigma) & (counts <= _PAIR_EDGES))[order]]
    most = int(np.max(counts[order], initial=0)) + 20
    mean = np.full(c.shape, np.nan)
    for block in _split(order, max(1, 2**23 // (4 * most**2 * _PAIR_NODES.size**2))):
        mean[block] = _expect_pairs(function, nodes, c[block], sigma[block])
    return mean


def _expect_pairs(
    function: Callable[..., jax.Array], nodes: Sampled, c: np.ndarray, sigma: np.ndarray
) -> np.ndarray:
    """`_iterated_pairs` of pairs that take the same panels, in units of sigma."""
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


def _smooth_panels(
    function: Callable[..., jax.Array], tolerance: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, float]:
    """`_bisect` done twice: with boundaries at the kinks that the first one finds, few panels are left."""
    octaves = np.concatenate([[0.0], _LARGE_EDGES])
    _, kinks, _ = _bisect(function, octaves, tolerance)
    edges, _, reach = _bisect(function, np.unique(np.concatenate([octaves, kinks])), tolerance)
    return edges, kinks, reach


def _bisect(
    function: Callable[..., jax.Array], edges: np.ndarray, tolerance: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, float]:
    """(edges, kinks, reach): panels of |x| halved until the function is resolved on each, at +x and at -x."""
    left, right = edges[:-1], edges[1:]
    done, found, reach = [0.0], [], np.inf
    while left.size:
        fine, finite = _resolved(function, left, right, tolerance)
        tiny = (right - left <= _KINK * right) | (right < _KINK)
        reach = min(reach, np.min(left[~finite], initial=np.inf))
        found.extend(((left + right) / 2)[finite & ~fine & tiny & (right >= _KINK)])
        done.extend(right[finite & (fine | tiny)])
        halve = finite & ~fine & ~tiny & (left < reach)
        middle = (left[halve] + right[halve]) / 2
        left, right = np.concatenate([left[halve], middle]), np.concatenate([middle, right[halve]])
        order = np.argsort(left)
        reach = min(reach, np.min(left[order][_OPEN:], initial=np.inf))
        left, right = left[order][:_OPEN], right[order][:_OPEN]
        if reach < _TAIL:  # too little for any use at q = 1: not worth the finest panels
            reach = min(reach, np.min(left, initial=np.inf))
            break
    smooth, kinks = np.unique(done), np.unique(found)
    return smooth[smooth <= reach], kinks[kinks <= reach], float(reach)


def _resolved(
    function: Callable[..., jax.Array], left: np.ndarray, right: np.ndarray, tolerance: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(fine, finite) [panel]: fine where the polynomial through the nodes meets the function in between."""
    half = (right - left)[:, None] / 2
    x, between = left[:, None] + half * (1 + _NODES), left[:, None] + half * (1 + _BETWEEN)
    fine, finite = np.full(left.size, True), np.full(left.size, True)
    for f in (function, derivative(function)):
        at_nodes = evaluate(f, np.stack([x, -x]))
        peak = np.nanmax(np.abs(evaluate(f, _UNIT * _NODES)), initial=0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(at_nodes @ _INTERPOLATE.T - evaluate(f, np.stack([between, -between])))
            scale = np.max(np.abs(at_nodes), axis=(0, 2))  # of both signs: they weigh the same
            fine &= np.max(error, axis=(0, 2)) <= np.maximum(tolerance[0] * scale, tolerance[1] * peak)
        finite &= np.any(np.abs(at_nodes) < _HUGE, axis=2).all(axis=0)
    return fine, finite


def _split(flat: np.ndarray, block: int | np.integer) -> list[np.ndarray]:
    return [flat[i : i + block] for i in range(0, max(flat.size, 1), block)]
