"""Where iterating a layer's maps leads, in which phase that is, and over how many layers.

Poole et al. 2016 (arXiv:1606.05340), section 2; Schoenholz et al. 2017 (arXiv:1611.01232), sections 2 and 3.
Hyperparameters are numbers, or arrays that broadcast; weights have standard deviation sigma_w / sqrt(fan_in).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from jaxstab.theory import maps
from jaxstab.theory.activations import derivative, is_homogeneous, resolve
from jaxstab.theory.moments import expect_pair, second_moment_slope
from jaxstab.theory.roots import root_between
from jaxstab.theory.sampling import Q_MIN
from jaxstab.typing import Activation, Function, Scalar

MARGIN = 1e-6
"""A factor per layer that differs from 1 by no more counts as 1: float32 hyperparameters are no better."""

_COLLAPSED = 1e-12  # without a bias, a fixed point below is 0 up to rounding
_ROWS = 256


class FixedPoint(NamedTuple):
    """Where iterating the variance map leads, as floats or as arrays of the hyperparameters' common shape.

    q: the variance reached: inf where it grows without bound (beyond 1e20), 0 where the signal dies out.
    chi: sigma_w^2 E[phi'^2] there (the limit where q is inf or 0). slope: dQ/dq there. stable: whether q is
    finite and |slope| is at most 1, within MARGIN; a variance map that rises never leads elsewhere.

    >>> jaxstab.theory.fixed_point("relu", sigma_w=1.0, sigma_b=0.5)
    FixedPoint(q=0.5, chi=0.5, slope=0.5, stable=True)
    """

    q: float | np.ndarray
    chi: float | np.ndarray
    slope: float | np.ndarray
    stable: bool | np.ndarray


def fixed_point(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0, q0: Scalar = 1.0
) -> FixedPoint:
    """Where the variance map leads from inputs of second moment q0, that is from sigma_w^2 q0 + sigma_b^2.

    The nearest root in the direction of the first step; exact where the map rises with q, as those of all
    named activations do. Relative error of q about 1e-9. A homogeneous activation of sigma_w^2 E[phi^2] = 1,
    within MARGIN, and no bias keeps any q. 4096 points take about a fifth of a second.

    >>> point = jaxstab.theory.fixed_point("tanh", sigma_w=5 / 3)
    >>> round(point.q, 6), round(point.chi, 6)
    (1.17848, 1.209831)
    """
    phi = resolve(activation)
    w, b, q0 = maps.broadcast(sigma_w, sigma_b, q0)
    start = w**2 * q0 + b**2
    limit = _homogeneous_limit if is_homogeneous(activation) else _limit
    q = limit(phi, *(np.ravel(x) for x in (w, b, start))).reshape(w.shape)
    slope = w**2 * second_moment_slope(phi, q)
    chi_star = w**2 * np.exp(maps.log_moments(phi, maps.log_of(q)).slope_square)
    stable = np.isfinite(q) & (np.abs(slope) <= 1 + MARGIN)
    found = maps.number_or_array(q), maps.number_or_array(chi_star), maps.number_or_array(slope)
    return FixedPoint(*found, stable if w.shape else bool(stable))


def correlation_fixed_point(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0, q0: Scalar = 1.0
) -> float | np.ndarray:
    """c*: what the correlation of two inputs (of correlation 0 or more) tends to, at the fixed point of q.

    C(c) is convex on [0, 1] with C(1) = 1, so c* = 1 where its slope there is at most 1, and one root below 1
    otherwise. Error about 1e-8; about 2 ms for each point with c* < 1.

    >>> jaxstab.theory.correlation_fixed_point("tanh", np.array([0.9, 1.5]), sigma_b=0.3).round(6)  # order, chaos
    array([1.      , 0.766753])
    """
    return maps.number_or_array(_correlation(activation, sigma_w, sigma_b, q0)[0])


def phase(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0, tolerance: float = MARGIN
) -> str | np.ndarray:
    """`ordered` (gradients vanish), `critical` or `chaotic` (they explode); an array of these for arrays.

    That is chi at the fixed point: below 1, within `tolerance` of 1, above 1.

    >>> jaxstab.theory.phase("tanh", np.array([0.9, 1.0, 1.1])).tolist()
    ['ordered', 'critical', 'chaotic']
    """
    chi_star = np.asarray(fixed_point(activation, sigma_w, sigma_b).chi)
    names = np.where(chi_star < 1, "ordered", "chaotic")
    names = np.where(np.abs(chi_star - 1) <= tolerance, "critical", names)
    return str(names) if names.ndim == 0 else names


def depth_scale_gradient(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0
) -> float | np.ndarray:
    """Layers over which a gradient's second moment changes by e: 1/|ln chi|. Schoenholz et al. 2017.

    >>> round(jaxstab.theory.depth_scale_gradient("tanh", sigma_w=0.5), 3)  # chi = 1/4
    0.721
    """
    return _depth_scale(fixed_point(activation, sigma_w, sigma_b).chi)


def depth_scale_length(activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0) -> float | np.ndarray:
    """Layers over which q - q* shrinks by e: xi_q = 1/|ln dQ/dq|. Schoenholz et al. 2017, section 3.

    >>> round(jaxstab.theory.depth_scale_length("relu", sigma_w=1.0, sigma_b=0.5), 3)  # dQ/dq = 1/2
    1.443
    """
    return _depth_scale(fixed_point(activation, sigma_w, sigma_b).slope)


def depth_scale_correlation(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar = 0.0
) -> float | np.ndarray:
    """Layers over which c - c* shrinks by a factor e: xi_c = -1/ln(sigma_w^2 E[phi'(u) phi'(v)]) at c*.

    Schoenholz et al. 2017, section 3. In the ordered phase c* = 1, and it is 1/|ln chi|.

    >>> round(jaxstab.theory.depth_scale_correlation("tanh", sigma_w=1.5, sigma_b=0.3), 3)
    19.916
    """
    return _depth_scale(_correlation(activation, sigma_w, sigma_b, 1.0)[1])


def _depth_scale(factor: float | np.ndarray) -> float | np.ndarray:
    with np.errstate(divide="ignore"):
        return maps.number_or_array(1 / np.abs(maps.log_of(np.asarray(factor))))


def _correlation(
    activation: Activation, sigma_w: Scalar, sigma_b: Scalar, q0: Scalar
) -> tuple[np.ndarray, np.ndarray]:
    """(c*, slope of the correlation map at c*), of the hyperparameters' common shape."""
    phi, arrays = resolve(activation), maps.broadcast(sigma_w, sigma_b, q0)
    w, b, q0 = (np.ravel(x) for x in arrays)
    log_q = np.clip(maps.log_of(np.asarray(fixed_point(activation, w, b, q0).q)), maps.LOG_MIN, maps.LOG_MAX)
    square, _, slope_square = maps.log_moments(phi, log_q)
    share = maps.weights_share(square, w, b)
    growth = share * np.exp(log_q - square)  # sigma_w^2 q / Q(q): sigma_w^2, or the limit where q is 0 or inf
    slope, c = growth * np.exp(slope_square), np.ones_like(growth)

    def excess(c: np.ndarray, log_q: np.ndarray, share: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """(C(c) - c) / (1 - c): without the root at 1, where it is 1 - slope."""
        mapped = share * maps.activation_cosine(phi, c, log_q) + (1 - share)
        return np.divide(mapped - c, 1 - c, out=1 - slope, where=c < 1)

    below = slope > 1 + MARGIN
    arguments = [x[below] for x in (log_q, share, slope)]
    c[below] = root_between(excess, np.zeros(arguments[0].shape), np.ones(arguments[0].shape), arguments)
    slope[below] = growth[below] * expect_pair(derivative(phi), c[below], np.exp(log_q[below]))
    return c.reshape(arrays[0].shape), slope.reshape(arrays[0].shape)


def _homogeneous_limit(phi: Function, w: np.ndarray, b: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The limit of q <- growth q + b^2: b^2 / (1 - growth), or inf. All arrays [point]."""
    growth = w**2 * np.exp(maps.log_moments(phi, np.zeros(1)).square)
    neutral = np.abs(growth - 1) <= MARGIN
    with np.errstate(divide="ignore", invalid="ignore"):
        limit = np.where((growth < 1) & ~neutral, b**2 / np.abs(1 - growth), np.inf)
    limit = np.where(neutral & (b == 0), start, limit)
    return np.where(start == 0, 0.0, limit)


def _limit(phi: Function, w: np.ndarray, b: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The first fixed point from `start` in the direction of the first step. All arrays [point]."""
    grid, squares = _square_table(phi)
    first = _log_excess(phi, maps.log_of(start), w, b)
    rises, stop = first > 0, np.empty_like(w)
    for i in range(0, w.size, _ROWS):
        rows = slice(i, i + _ROWS)
        up, begin = rises[rows, None], start[rows, None]
        excess = w[rows, None] ** 2 * squares + b[rows, None] ** 2 - grid
        stops = np.where(up, (grid > begin) & (excess <= 0), (grid < begin) & (excess >= 0))
        nearest = np.where(up[:, 0], stops.argmax(axis=1), grid.size - 1 - stops[:, ::-1].argmax(axis=1))
        stop[rows] = np.where(stops.any(axis=1), grid[nearest], np.where(up[:, 0], np.inf, 0.0))
    q, between = stop.copy(), np.isfinite(stop) & (stop > 0)
    begin, end = maps.log_of(np.maximum(start[between], Q_MIN)), maps.log_of(stop[between])
    ends, arguments = (np.minimum(begin, end), np.maximum(begin, end)), (w[between], b[between])
    q[between] = np.exp(root_between(functools.partial(_log_excess, phi), *ends, arguments))
    q[(b == 0) & (q < _COLLAPSED)] = 0.0
    return np.where(np.isnan(first) & (start != 0), np.nan, q)


def _log_excess(phi: Function, log_q: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """ln Q(q) - ln q."""
    with np.errstate(invalid="ignore"):
        return maps.log_variance(maps.log_moments(phi, log_q).square, w, b) - log_q


@functools.lru_cache(maxsize=256)
def _square_table(phi: Function) -> tuple[np.ndarray, np.ndarray]:
    """(q, E[phi(sqrt(q) z)^2]) on a grid that is fine enough to tell fixed points apart."""
    log_q = np.linspace(maps.LOG_MIN, maps.LOG_MAX, 1024)
    return np.exp(log_q), np.exp(maps.log_moments(phi, log_q).square)
