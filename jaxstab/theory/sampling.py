"""The nodes on which a function is sampled, once for all Gaussian expectations of it, in float64.

They are Gauss-Legendre nodes over panels that are bisected until the function is a polynomial on each; a kink or
a jump, wherever it lies, ends up on a panel boundary. The same nodes serve every variance q, as E[f(sqrt(q) z)] =
integral of f(x) N(x; 0, q) dx, z ~ N(0, 1).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.legendre import leggauss, legvander

from jaxstab.theory.activations import derivative, evaluate
from jaxstab.typing import Function

Q_MIN, Q_MAX = 1e-20, 1e20
"""Variances outside are clipped to these: the limits q -> 0+ and q -> inf, as far as float64 tells."""

NODES, WEIGHTS = leggauss(16)
_ENDS = np.array([-1 + 1e-9, 1 - 1e-9])  # a jump closer to a panel's end than this goes unseen
_BETWEEN = np.concatenate([np.ravel(np.array([-0.75, -0.25, 0.25, 0.75])[:, None] + NODES / 4), _ENDS])
_INTERPOLATE = legvander(_BETWEEN, 15) @ np.linalg.inv(legvander(NODES, 15))  # [66, 16]
_UNIT = 1.0837  # panels end at this times powers of two: nobody puts a kink there, so that kinks show
_SMALL_EDGES = _UNIT * 2.0 ** np.arange(-37, 0)
_LARGE_EDGES = _UNIT * 2.0 ** np.arange(0, 38)
_OPEN = 512  # panels bisected at once, the nearest to 0; what lies farther out is then left unresolved
_HUGE = 1e150  # values beyond count as infinite: their squares must be finite
_TOLERANCES = ((1e-11, 1e-14), (1e-5, 1e-5))  # relative to the scale there and near 0; then as for float32
_KINK = 1e-12  # relative width of a panel that is called a kink
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
        for s in split(np.ravel(sigma), 64):
            near = slice(np.searchsorted(radius, 2 * _TAIL * np.nanmax(s, initial=1e-10)))  # all that counts
            density = np.exp(-0.5 * (radius[near] / s[:, None]) ** 2) / s[:, None]
            parts.append(weighted[..., near] @ density.T)
        mean = np.concatenate(parts, axis=-1)
        mean = mean.reshape((*weighted.shape[:-1], *sigma.shape)) / np.sqrt(2 * np.pi)
        edge = np.exp(-0.5 * (radius[-1] / sigma) ** 2) * radius[-1] / sigma
        last = np.multiply.outer(np.abs(folded[..., use][..., -1]), edge)
        return np.where((_TAIL * sigma > reach) | (last > 1e-9 * np.abs(mean)), np.nan, mean)


@functools.lru_cache(maxsize=256)
def sampled(function: Function) -> Sampled:
    """Sample a function on nodes of its own. Cached: the same function is sampled once."""
    edges, kinks, reach = _smooth_panels(function, _TOLERANCES[0])
    if reach < _TAIL:
        edges, kinks, reach = _smooth_panels(function, _TOLERANCES[1])
    panels = np.unique(np.concatenate([edges, _SMALL_EDGES]))  # for small q, where the Gaussian is narrow
    half = np.diff(panels) / 2
    radius = np.ravel((panels[:-1] + half)[:, None] + half[:, None] * NODES)
    weight = np.ravel(half[:, None] * WEIGHTS)
    x = np.stack([radius, -radius])
    value, slope = evaluate(function, x), evaluate(derivative(function), x)
    return Sampled(radius, weight, value, slope, edges, kinks, reach)


def _smooth_panels(
    function: Function, tolerance: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, float]:
    """(edges, kinks, reach) by bisecting twice: with boundaries at the kinks first found, few panels are left."""
    octaves = np.concatenate([[0.0], _LARGE_EDGES])
    _, kinks, _ = _bisect(function, octaves, tolerance)
    edges, _, reach = _bisect(function, np.unique(np.concatenate([octaves, kinks])), tolerance)
    return edges, kinks, reach


def _bisect(
    function: Function, edges: np.ndarray, tolerance: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, float]:
    """(edges, kinks, reach): panels of |x| halved until the function is resolved on each, at +x and at -x."""
    # by hand: no root is looked for, and scipy's adaptive quadratures integrate instead of handing out their panels
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
    function: Function, left: np.ndarray, right: np.ndarray, tolerance: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(fine, finite) [panel]: fine where the polynomial through the nodes meets the function in between."""
    half = (right - left)[:, None] / 2
    x, between = left[:, None] + half * (1 + NODES), left[:, None] + half * (1 + _BETWEEN)
    fine, finite = np.full(left.size, True), np.full(left.size, True)
    for f in (function, derivative(function)):
        at_nodes = evaluate(f, np.stack([x, -x]))
        peak = np.nanmax(np.abs(evaluate(f, _UNIT * NODES)), initial=0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(at_nodes @ _INTERPOLATE.T - evaluate(f, np.stack([between, -between])))
            scale = np.max(np.abs(at_nodes), axis=(0, 2))  # of both signs: they weigh the same
            fine &= np.max(error, axis=(0, 2)) <= np.maximum(tolerance[0] * scale, tolerance[1] * peak)
        finite &= np.any(np.abs(at_nodes) < _HUGE, axis=2).all(axis=0)
    return fine, finite


def split(flat: np.ndarray, block: int | np.integer) -> list[np.ndarray]:
    """Pieces of `block` entries, the last one shorter; one empty piece of an empty array."""
    return [flat[i : i + block] for i in range(0, max(flat.size, 1), block)]
