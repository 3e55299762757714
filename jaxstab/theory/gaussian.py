"""Gaussian expectations of any elementwise function, kinks and jumps included, in float64.

A function is sampled once, on Gauss-Legendre nodes over panels that are bisected until the function is a polynomial
on each; a kink or a jump, wherever it lies, ends up on a panel boundary. The same nodes then serve every variance q,
as E[f(sqrt(q) z)] = integral of f(x) N(x; 0, q) dx, z ~ N(0, 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from numpy.polynomial.legendre import leggauss, legvander

from jaxstab.errors import UsageError
from jaxstab.theory.activations import derivative, evaluate

Q_MIN, Q_MAX = 1e-20, 1e20
"""Variances outside are clipped to these: the limits q -> 0+ and q -> inf, as far as float64 tells."""

_NODES, _WEIGHTS = leggauss(16)
_UNIT = 1.0837  # panels end at this times powers of two: numbers at which nobody puts a kink, so that kinks show
_SMALL_EDGES = _UNIT * 2.0 ** np.arange(-37, 0)
_LARGE_EDGES = _UNIT * 2.0 ** np.arange(0, 38)
_PANELS = 2_000  # at most so many; what lies farther out is then left unresolved
_TOLERANCES = (1e-11, 1e-6)  # the second is for functions that compute in float32
_KINK = 1e-12  # relative width of a panel that is called a kink
_TAIL = 10.0  # standard deviations beyond which nothing counts: P(|z| > 10) = 1.5e-23


@dataclass(frozen=True)
class Sampled:
    """A function and its slope on quadrature nodes. The Gaussian is even, so nodes come in pairs +-radius.

    radius, weight: [node]. value, slope: [2, node], at +radius and at -radius. edges: the boundaries |x| of panels
    on which the function is smooth, from 0 up; kinks: those at which it is not. reach: resolved for |x| up to this.
    """

    radius: np.ndarray
    weight: np.ndarray
    value: np.ndarray
    slope: np.ndarray
    edges: np.ndarray
    kinks: np.ndarray
    reach: float

    def mean(self, values: np.ndarray, q: float | np.ndarray) -> np.ndarray:
        """E[f(sqrt(q) z)] of q's shape, for f given by its `values` [2, node]; NaN where f is not resolved.

        Error about 1e-12 of the largest |f| that counts. q is clipped to [Q_MIN, Q_MAX].
        """
        folded = values[0] + values[1]
        finite = np.isfinite(folded)
        reach = min(self.reach, np.min(self.radius[~finite], initial=np.inf))
        use = finite & (self.radius < reach)
        radius, weighted = self.radius[use], np.where(use, folded * self.weight, 0.0)[use]
        sigma = np.sqrt(np.clip(np.asarray(q, np.float64), Q_MIN, Q_MAX))
        flat = np.ravel(sigma)
        blocks = [np.exp(-0.5 * (radius / s[:, None]) ** 2) @ weighted / s for s in _split(flat, 256)]
        mean = np.concatenate(blocks).reshape(sigma.shape) / np.sqrt(2 * np.pi)
        return np.where(_TAIL * sigma > reach, np.nan, mean)


@functools.lru_cache(maxsize=256)
def sampled(function: Callable[..., jax.Array]) -> Sampled:
    """The function on its own nodes. Cached: the same function is sampled once."""
    for tolerance in _TOLERANCES:
        _, kinks, _ = _bisect(function, np.concatenate([[0.0], _LARGE_EDGES]), tolerance)
        base = np.unique(np.concatenate([[0.0], _LARGE_EDGES, kinks]))
        edges, _, reach = _bisect(function, base, tolerance)  # with boundaries at the kinks few panels are left
        if reach > _TAIL:
            break
    panels = np.unique(np.concatenate([edges, _SMALL_EDGES]))  # small ones for small q, where the Gaussian is narrow
    half = np.diff(panels) / 2
    radius = np.ravel((panels[:-1] + half)[:, None] + half[:, None] * _NODES)
    weight = np.ravel(half[:, None] * _WEIGHTS)
    x = np.stack([radius, -radius])
    return Sampled(radius, weight, evaluate(function, x), evaluate(derivative(function), x), edges, kinks, reach)


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
    """E[phi'(sqrt(q) z)^2], of q's shape; at q = 0 the limit q -> 0+, which a kink at 0 makes unlike phi'(0)^2."""
    nodes = sampled(phi)
    return nodes.mean(nodes.slope**2, q)


def second_moment_slope(phi: Callable[..., jax.Array], q: float | np.ndarray) -> np.ndarray:
    """d E[phi(sqrt(q) z)^2] / dq = E[(z^2 - 1) phi^2] / 2q, of q's shape: the Gaussian's derivative, not phi's."""
    nodes = sampled(phi)
    q = np.clip(np.asarray(q, np.float64), Q_MIN, Q_MAX)
    square = nodes.value**2 - nodes.value[:, :1] ** 2  # E[z^2 - 1] = 0: what is constant would only cancel
    return (nodes.mean(nodes.radius**2 * square, q) / q - nodes.mean(square, q)) / (2 * q)


def expect_pair(
    function: Callable[..., jax.Array], correlation: float | np.ndarray, q: float | np.ndarray
) -> np.ndarray:
    """E[f(u) f(v)] for u, v ~ N(0, q) with the given correlation; of the shape they broadcast to. Error about 1e-9.

    As an iterated integral: u = sqrt(q) z, v given u is N(c u, q (1 - c^2)). Panels of both end at f's edges; those
    of u also close in on the kinks of f, which the inner integral smooths over a width of sqrt(q (1 - c^2)).
    """
    nodes = sampled(function)
    c, sigma = np.broadcast_arrays(
        np.asarray(correlation, np.float64), np.sqrt(np.clip(np.asarray(q, np.float64), Q_MIN, Q_MAX))
    )
    flat_c, flat_sigma = np.ravel(c), np.ravel(sigma)
    per_pair = 16 * (len(nodes.edges) + 20) ** 2 * 100
    block = max(1, 2**25 // per_pair)
    parts = [
        _expect_pairs(function, nodes, *pair)
        for pair in zip(_split(flat_c, block), _split(flat_sigma, block), strict=True)
    ]
    mean = np.concatenate(parts).reshape(c.shape)
    return np.where(_TAIL * sigma > nodes.reach, np.nan, mean)


def _expect_pairs(
    function: Callable[..., jax.Array], nodes: Sampled, c: np.ndarray, sigma: np.ndarray
) -> np.ndarray:
    """`expect_pair` of flat arrays [pair], in units of sigma."""
    cut = 9.0
    near = nodes.edges[nodes.edges < cut * np.max(sigma)]
    edges = np.concatenate([-near[::-1], near]) / sigma[:, None]
    kinks = np.concatenate([-nodes.kinks[::-1], [0.0], nodes.kinks]) / sigma[:, None]
    width = np.sqrt(np.maximum(1 - c**2, 1e-14))  # floor: at c = +-1 the conditional law is a point
    slope = np.where(np.abs(c) < 1e-3, 1e-3, c)
    grades = np.array([-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 8.0])
    graded = (kinks[:, :, None] + width[:, None, None] * grades) / slope[:, None, None]
    z, z_weight = _gaussian_nodes(np.concatenate([edges, graded.reshape(len(c), -1)], axis=1), cut)
    centre = c[:, None] * z
    w, w_weight = _gaussian_nodes((edges[:, None, :] - centre[..., None]) / width[:, None, None], cut)
    v = evaluate(function, sigma[:, None, None] * (centre[..., None] + width[:, None, None] * w))
    inner = np.sum(w_weight * v, axis=-1)
    return np.sum(z_weight * evaluate(function, sigma[:, None] * z) * inner, axis=-1)


def _gaussian_nodes(edges: np.ndarray, cut: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights [..., node] of the standard normal on [-cut, cut], with boundaries at edges [..., edge]."""
    regular = np.broadcast_to(np.linspace(-cut, cut, 9), (*edges.shape[:-1], 9))
    panels = np.sort(np.clip(np.concatenate([edges, regular], axis=-1), -cut, cut), axis=-1)
    half = np.diff(panels)[..., None] / 2
    nodes = panels[..., :-1, None] + half * (1 + _NODES)
    weights = half * _WEIGHTS * np.exp(-0.5 * nodes**2) / np.sqrt(2 * np.pi)
    shape = (*edges.shape[:-1], -1)
    return nodes.reshape(shape), weights.reshape(shape)


def _bisect(
    function: Callable[..., jax.Array], edges: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """(edges, kinks, reach): panels of |x| halved until the function is resolved on each, at +x and at -x."""
    left, right = edges[:-1], edges[1:]
    done, kinks, reach = [0.0], [], np.inf
    peak = np.max(np.abs(evaluate(function, np.linspace(-_UNIT, _UNIT, 101))))
    while left.size:
        fine, finite = _resolved(function, left, right, tolerance, peak)
        tiny = (right - left <= _KINK * right) | (right < _KINK)
        reach = min(reach, np.min(left[~finite], initial=np.inf))
        kinks.extend(((left + right) / 2)[finite & ~fine & tiny & (right >= _KINK)])
        done.extend(right[finite & (fine | tiny)])
        open_ = finite & ~fine & ~tiny & (left < reach)
        middle = (left[open_] + right[open_]) / 2
        left, right = np.concatenate([left[open_], middle]), np.concatenate([middle, right[open_]])
        order = np.argsort(left)
        room = max(0, _PANELS - len(done))
        reach = min(reach, np.min(left[order][room:], initial=np.inf))
        left, right = left[order][:room], right[order][:room]
    return np.unique(done), np.unique(kinks), float(reach)


def _resolved(
    function: Callable[..., jax.Array], left: np.ndarray, right: np.ndarray, tolerance: float, peak: float
) -> tuple[np.ndarray, np.ndarray]:
    """(fine, finite) [panel]: does the polynomial through the nodes meet the function and its slope in between?"""
    half = (right - left)[:, None] / 2
    x, between = left[:, None] + half * (1 + _NODES), left[:, None] + half * (1 + _BETWEEN)
    fine, finite = np.full(left.size, True), np.full(left.size, False)
    for f in (function, derivative(function)):
        at_nodes = evaluate(f, np.stack([x, -x]))
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(at_nodes @ _INTERPOLATE.T - evaluate(f, np.stack([between, -between])))
            scale = np.max(np.abs(at_nodes), axis=(0, 2))  # of both signs: the Gaussian gives them equal weight
            fine &= np.max(error, axis=(0, 2)) <= tolerance * np.maximum(scale, 1e-14 * peak)
        finite |= np.any(np.isfinite(at_nodes), axis=2).all(axis=0)
    return fine, finite


def _split(flat: np.ndarray, block: int) -> list[np.ndarray]:
    return [flat[i : i + block] for i in range(0, max(flat.size, 1), block)]


_BETWEEN = np.ravel(np.array([-0.75, -0.25, 0.25, 0.75])[:, None] + _NODES / 4)
_INTERPOLATE = legvander(_BETWEEN, 15) @ np.linalg.inv(legvander(_NODES, 15))  # [64, 16]
