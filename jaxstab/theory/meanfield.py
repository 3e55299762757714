"""Infinitely wide random networks: maps of the variance and the correlation, their fixed points, their phase.

Weights have standard deviation sigma_w / sqrt(fan_in), biases sigma_b. q is the variance of a preactivation,
c the correlation of two inputs' preactivations, z ~ N(0, 1), phi the activation; chi = sigma_w^2 E[phi'^2] is
the factor on a gradient's second moment per layer. Every function takes numbers, or arrays that broadcast.

Poole et al. 2016 (arXiv:1606.05340), section 2; Schoenholz et al. 2017 (arXiv:1611.01232), sections 2 and 3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxstab.errors import UsageError
from jaxstab.theory.activations import derivative, is_homogeneous, resolve
from jaxstab.theory.gaussian import (
    Q_MAX,
    Q_MIN,
    second_moment,
    second_moment_slope,
    slope_moment,
)
from jaxstab.theory.pairs import expect_pair
from jaxstab.typing import Activation, Scalar

MARGIN = 1e-6
"""A factor per layer that differs from 1 by no more counts as 1: float32 hyperparameters are no better."""

_COLLAPSED = 1e-12  # without a bias, a fixed point below is 0 up to rounding
_ROWS = 256


class FixedPoint(NamedTuple):
    """Where iterating the variance map leads, as floats or as arrays of the hyperparameters' common shape.

    q: the variance reached: inf where it grows without bound (beyond 1e20), 0 where the signal dies out.
    chi: sigma_w^2 E[phi'^2] there (the limit where q is inf or 0). slope: dQ/dq there. stable: whether q is
    finite and |slope| is at most 1, within MARGIN; a variance map that rises never leads elsewhere.
    """

    q: float | np.ndarray
    chi: float | np.ndarray
    slope: float | np.ndarray
    stable: bool | np.ndarray


def q_map(activation: Activation, q: Scalar, sigma_w: Scalar, sigma_b: Scalar = 0.0) -> float | np.ndarray:
    """Variance after one layer: sigma_w^2 E[phi(sqrt(q) z)^2] + sigma_b^2. Poole et al. 2016, eq. 3."""
    q, w, b = _arrays(q, sigma_w, sigma_b)
    return _plain(w**2 * second_moment(resolve(activation), q) + b**2)


def q_map_slope(activation: Activation, q: Scalar, sigma_w: Scalar) -> float | np.ndarray:
    """dQ/dq of the variance map. Below 1 at a stable fixed point. (Not chi: that is the correlation's.)"""
    q, w = _arrays(q, sigma_w)
    return _plain(w**2 * second_moment_slope(resolve(activation), q))


def c_map(
    activation: Activation, c: Scalar, q: Scalar, sigma_w: Scalar, sigma_b: Scalar = 0.0
) -> float | np.ndarray:
    """Correlation after one layer, of two inputs with variance q each and correlation c.

    (sigma_w^2 E[phi(u) phi(v)] + sigma_b^2) / Q(q), u, v ~ N(0, q) with correlation c: Poole et al. 2016,
    eq. 5, which has q* for q and for Q(q). Error about 1e-9; 1.5 ms each.
    """
    c, q, w, b = _arrays(c, q, sigma_w, sigma_b)
    if np.any(np.abs(c) > 1):
        raise UsageError(f"a correlation lies in [-1, 1]; got {c[np.abs(c) > 1].flat[0]:g}.")
    phi = resolve(activation)
    variance = w**2 * second_moment(phi, q) + b**2
    return _plain((w**2 * expect_pair(phi, c, q) + b**2) / variance)


def chi(activation: Activation, q: Scalar, sigma_w: Scalar) -> float | np.ndarray:
    """sigma_w^2 E[phi'(sqrt(q) z)^2]: a gradient's second moment after one layer back, and, at a fixed point,

    the slope of the correlation map at c = 1. Poole et al. 2016, eq. 6; Schoenholz et al. 2017, section 2.
    """
    q, w = _arrays(q, sigma_w)
    return _plain(w**2 * slope_moment(resolve(activation), q))


def fixed_point(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0, q0: Scalar = 1.0
) -> FixedPoint:
    """Where the variance map leads from inputs of second moment q0, that is from sigma_w^2 q0 + sigma_b^2.

    The nearest root in the direction of the first step; exact where the map rises with q, as those of all
    named activations do. Relative error of q about 1e-9. A homogeneous activation of sigma_w^2 E[phi^2] = 1,
    within MARGIN, and no bias keeps any q. 4096 points take about a second.
    """
    phi = resolve(activation)
    w, b, start = _arrays(sigma_w, sigma_b, q0)
    shape, w, b = w.shape, np.ravel(w**2), np.ravel(b**2)
    start = w * np.ravel(start) + b
    q = _homogeneous_limit(phi, w, b, start) if is_homogeneous(activation) else _limit(phi, w, b, start)
    slope = w * second_moment_slope(phi, q)
    stable = np.isfinite(q) & (np.abs(slope) <= 1 + MARGIN)
    q, chi_star, slope = (_plain(x.reshape(shape)) for x in (q, w * slope_moment(phi, q), slope))
    return FixedPoint(q, chi_star, slope, stable.reshape(shape) if shape else bool(stable[0]))


def correlation_fixed_point(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0, q0: Scalar = 1.0
) -> float | np.ndarray:
    """c*: what the correlation of two inputs (of correlation 0 or more) tends to, at the fixed point of q.

    C(c) is convex on [0, 1] with C(1) = 1, so c* = 1 where its slope there is at most 1, and one root below 1
    otherwise, found by Newton's method. Error about 1e-8; about 20 ms for each point with c* < 1.
    """
    return _plain(_correlation(activation, sigma_w, sigma_b, q0)[0])


def phase(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0, tolerance: float = MARGIN
) -> str | np.ndarray:
    """`ordered` (gradients vanish), `critical` or `chaotic` (they explode); an array of these for arrays.

    That is chi at the fixed point: below 1, within `tolerance` of 1, above 1.
    """
    chi_star = np.asarray(fixed_point(activation, sigma_w, sigma_b).chi)
    names = np.where(chi_star < 1, "ordered", "chaotic")
    names = np.where(np.abs(chi_star - 1) <= tolerance, "critical", names)
    return str(names) if names.ndim == 0 else names


def depth_scale_gradient(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0
) -> float | np.ndarray:
    """Layers over which a gradient's second moment changes by e: 1/|ln chi|. Schoenholz et al. 2017."""
    return _depth_scale(np.asarray(fixed_point(activation, sigma_w, sigma_b).chi))


def depth_scale_length(activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0) -> float | np.ndarray:
    """Layers over which q - q* shrinks by e: xi_q = 1/|ln dQ/dq|. Schoenholz et al. 2017, section 3."""
    return _depth_scale(np.asarray(fixed_point(activation, sigma_w, sigma_b).slope))


def depth_scale_correlation(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0
) -> float | np.ndarray:
    """Layers over which c - c* shrinks by a factor e: xi_c = -1/ln(sigma_w^2 E[phi'(u) phi'(v)]) at c*.

    Schoenholz et al. 2017, section 3. In the ordered phase c* = 1, and it is 1/|ln chi|.
    """
    return _depth_scale(_correlation(activation, sigma_w, sigma_b, 1.0)[1])


def _depth_scale(factor: np.ndarray) -> float | np.ndarray:
    with np.errstate(divide="ignore"):
        return _plain(1 / np.abs(np.log(np.abs(factor))))


def _correlation(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar, q0: Scalar
) -> tuple[np.ndarray, np.ndarray]:
    """(c*, slope of the correlation map at c*), of the hyperparameters' common shape."""
    phi = resolve(activation)
    w, b, start = _arrays(sigma_w, sigma_b, q0)
    q = np.clip(np.asarray(fixed_point(activation, w, b, start).q), Q_MIN, Q_MAX)
    w, b = w**2, b**2
    scale = w * q / (w * second_moment(phi, q) + b)  # 1 at a fixed point; else the limit of q / Q(q)
    slope = np.asarray(scale * slope_moment(phi, q))
    c = np.ones_like(slope)
    below = slope > 1 + MARGIN
    if np.any(below):
        wb, bb, qb, sb = (x[below] for x in (w, b, q, scale))
        variance = wb * second_moment(phi, qb) + bb
        cb = np.zeros_like(qb)
        for _ in range(50):  # from the left of a convex function Newton's steps rise to the root
            slope_b = sb * expect_pair(derivative(phi), cb, qb)
            step = ((wb * expect_pair(phi, cb, qb) + bb) / variance - cb) / (1 - slope_b)
            cb = np.clip(cb + step, 0.0, 1.0)
            if not np.any(np.abs(step) > 1e-10):
                break
        c[below], slope[below] = cb, sb * expect_pair(derivative(phi), cb, qb)
    return c, slope


def _homogeneous_limit(
    phi: Callable[..., jax.Array], w: np.ndarray, b: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """The limit of q <- growth q + b: b / (1 - growth), or inf. All arrays [point], w and b squared."""
    growth = w * second_moment(phi, 1.0)
    neutral = np.abs(growth - 1) <= MARGIN
    with np.errstate(divide="ignore", invalid="ignore"):
        limit = np.where((growth < 1) & ~neutral, b / np.abs(1 - growth), np.inf)
    limit = np.where(neutral & (b == 0), start, limit)
    return np.where(start == 0, 0.0, limit)


def _limit(phi: Callable[..., jax.Array], w: np.ndarray, b: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The first fixed point from `start` in the direction of the first step. All [point], w and b squared."""
    grid, moments = _length_table(phi)
    rises = w * second_moment(phi, start) + b > start
    low, high = np.empty_like(w), np.empty_like(w)
    for i in range(0, w.size, _ROWS):
        rows = slice(i, i + _ROWS)
        excess = w[rows, None] * moments + b[rows, None] - grid
        ahead = np.where(rises[rows, None], grid > start[rows, None], grid < start[rows, None])
        stop = ahead & np.where(rises[rows, None], excess <= 0, excess >= 0)
        up = np.where(stop.any(axis=1), stop.argmax(axis=1), grid.size)
        down = np.where(stop.any(axis=1), grid.size - 1 - stop[:, ::-1].argmax(axis=1), -1)
        edge = np.concatenate([[0.0], grid, [np.inf]])  # edge[j + 1] = grid[j]
        low[rows] = np.where(rises[rows], np.maximum(edge[up], start[rows]), edge[down + 1])
        high[rows] = np.where(rises[rows], edge[up + 1], np.minimum(edge[down + 2], start[rows]))
    q = np.where(np.isinf(high), np.inf, 0.0)
    between = np.isfinite(high) & (low > 0)
    q[between] = _bracketed_root(phi, w[between], b[between], low[between], high[between])
    q[(b == 0) & (q < _COLLAPSED)] = 0.0
    return np.where(np.isnan(second_moment(phi, start)), np.nan, q)


def _bracketed_root(
    phi: Callable[..., jax.Array], w: np.ndarray, b: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Root of ln Q(q) - ln q between low and high, by Newton's method in ln q, kept inside by bisection."""
    low, high = np.log(low), np.log(high)
    at_low, at_high = (_log_excess(phi, w, b, x)[0] for x in (low, high))
    falls = at_low > at_high
    with np.errstate(divide="ignore", invalid="ignore"):
        guess = low - at_low * (high - low) / (at_high - at_low)
    x = np.where((guess > low) & (guess < high), guess, (low + high) / 2)
    active = np.arange(x.size)
    for _ in range(40):
        if not active.size:
            break
        excess, slope = _log_excess(phi, w[active], b[active], x[active])
        right = (excess > 0) == falls[active]  # the root lies to the right of x
        low[active], high[active] = (
            np.where(right, x[active], low[active]),
            np.where(right, high[active], x[active]),
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = x[active] - excess / slope
        inside = (newton > low[active]) & (newton < high[active])
        moved = np.where(inside, newton, (low[active] + high[active]) / 2)
        step, x[active] = np.abs(moved - x[active]), moved
        active = active[step > 1e-10]
    return np.exp(x)


def _log_excess(
    phi: Callable[..., jax.Array], w: np.ndarray, b: np.ndarray, log_q: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ln Q(q) - ln q and its slope in ln q."""
    q = np.exp(log_q)
    mapped = w * second_moment(phi, q) + b
    return np.log(mapped) - log_q, q * w * second_moment_slope(phi, q) / mapped - 1


@functools.lru_cache(maxsize=256)
def _length_table(phi: Callable[..., jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """(q, E[phi(sqrt(q) z)^2]) on a grid that is fine enough to tell fixed points apart."""
    q = np.geomspace(Q_MIN, Q_MAX, 1024)
    return q, second_moment(phi, q)


def _arrays(*numbers: Scalar) -> list[np.ndarray]:
    """Numbers as float64 arrays of their common shape."""
    return [np.array(x) for x in np.broadcast_arrays(*(np.asarray(x, np.float64) for x in numbers))]


def _plain(array: np.ndarray | np.number) -> float | np.ndarray:
    return float(array) if array.ndim == 0 else np.asarray(array)
