"""What one infinitely wide random layer does to a variance, to a correlation and to a gradient.

Weights have standard deviation sigma_w / sqrt(fan_in), biases sigma_b. q is the variance of a preactivation, c the
correlation of two inputs' preactivations, z ~ N(0, 1), phi the activation. Whatever is scale-like goes in and comes
out as a natural logarithm, of any size; only the public functions take numbers, or arrays that broadcast.

Poole et al. 2016 (arXiv:1606.05340), section 2; Schoenholz et al. 2017 (arXiv:1611.01232), sections 2 and 3.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from jaxstab.errors import UsageError
from jaxstab.theory.activations import resolve
from jaxstab.theory.moments import expect_pair, moments, second_moment_slope
from jaxstab.theory.sampling import Q_MAX, Q_MIN
from jaxstab.typing import Activation, Function, Scalar

LOG_MIN, LOG_MAX = math.log(Q_MIN), math.log(Q_MAX)
"""Ends of ln q within which moments are integrals; beyond, they follow the power of q that they have there."""


def q_map(activation: Activation, q: Scalar, sigma_w: Scalar, sigma_b: Scalar = 0.0) -> float | np.ndarray:
    """Variance after one layer: sigma_w^2 E[phi(sqrt(q) z)^2] + sigma_b^2. Poole et al. 2016, eq. 3.

    >>> round(jaxstab.theory.q_map("relu", 3.0, sigma_w=2**0.5, sigma_b=0.1), 9)
    3.01
    """
    q, w, b = broadcast(q, sigma_w, sigma_b)
    log_square = log_moments(resolve(activation), log_of(q)).square
    return number_or_array(np.exp(log_variance(log_square, w, b)))


def q_map_slope(activation: Activation, q: Scalar, sigma_w: Scalar) -> float | np.ndarray:
    """Slope dQ/dq of the variance map: below 1 at a stable fixed point. (Not chi, which is the correlation map's.)

    >>> round(jaxstab.theory.q_map_slope("gelu", 1.0, jaxstab.gain("gelu")), 3)  # above 1: its gain is not stable
    1.144
    """
    q, w = broadcast(q, sigma_w)
    return number_or_array(w**2 * second_moment_slope(resolve(activation), q))


def c_map(
    activation: Activation, c: Scalar, q: Scalar, sigma_w: Scalar, sigma_b: Scalar = 0.0
) -> float | np.ndarray:
    """Correlation after one layer, of two inputs with variance q each and correlation c.

    (sigma_w^2 E[phi(u) phi(v)] + sigma_b^2) / Q(q), u, v ~ N(0, q) with correlation c: Poole et al. 2016,
    eq. 5, which has q* for q and for Q(q). Error about 1e-9; 1.5 ms each. UsageError for c outside [-1, 1].

    >>> round(jaxstab.theory.c_map("relu", 0.0, 1.0, sigma_w=2**0.5), 6)  # 1/pi: ReLU makes strangers alike
    0.31831
    """
    c, q, w, b = broadcast(c, q, sigma_w, sigma_b)
    if np.any(np.abs(c) > 1):
        raise UsageError(f"a correlation lies in [-1, 1]; got {c[np.abs(c) > 1].flat[0]:g}.")
    phi, log_q = resolve(activation), log_of(q)
    share = weights_share(log_moments(phi, log_q).square, w, b)
    return number_or_array(share * activation_cosine(phi, c, log_q) + (1 - share))


def chi(activation: Activation, q: Scalar, sigma_w: Scalar) -> float | np.ndarray:
    """Factor on a gradient's second moment per layer on the way back: sigma_w^2 E[phi'(sqrt(q) z)^2].

    At a fixed point it is also the slope of the correlation map at c = 1. Poole et al. 2016, eq. 6; Schoenholz et
    al. 2017, section 2.

    >>> round(jaxstab.theory.chi("tanh", 1.0, jaxstab.gain("tanh")), 6)
    1.177807
    """
    q, w = broadcast(q, sigma_w)
    return number_or_array(w**2 * np.exp(log_moments(resolve(activation), log_of(q)).slope_square))


class LogMoments(NamedTuple):
    """Moments of phi(sqrt(q) z), of ln q's shape: ln E[phi^2]; E[phi] / sqrt(E[phi^2]); ln E[phi'^2]."""

    square: np.ndarray
    relative_mean: np.ndarray
    slope_square: np.ndarray


def log_moments(phi: Function, log_q: np.ndarray) -> LogMoments:
    """Logarithms of moments at any ln q, limits at infinite ones; NaN where phi is not resolved."""
    log_q, inverse = np.unique(log_q, return_inverse=True)
    inside = np.clip(log_q, LOG_MIN, LOG_MAX)
    logs, relative_mean = _log_moments_within(phi, inside)
    low, high = _powers(phi)
    beyond = log_q - inside
    power = np.where(beyond < 0, low[:, None], high[:, None])
    with np.errstate(invalid="ignore"):
        square, slope_square = np.where((beyond == 0) | (power == 0), logs, logs + power * beyond)
    return LogMoments(*(np.asarray(x[inverse]) for x in (square, relative_mean, slope_square)))


def _log_moments_within(phi: Function, log_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ln E[phi^2] and ln E[phi'^2], [2, *log_q.shape]; E[phi] / sqrt(E[phi^2]))."""
    mean, square, slope_square = moments(phi, np.exp(log_q))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_mean = np.where(square == 0, 0.0, mean / np.sqrt(square))
        return np.log(np.stack([square, slope_square])), relative_mean


@functools.lru_cache(maxsize=256)
def _powers(phi: Function) -> np.ndarray:
    """d ln E[phi^2] / d ln q and d ln E[phi'^2] / d ln q at the lower and at the upper end of q: [end, 2]."""
    logs, _ = _log_moments_within(phi, np.array([[LOG_MIN, LOG_MIN + 1], [LOG_MAX - 1, LOG_MAX]]))
    with np.errstate(invalid="ignore"):
        powers = np.round(logs[..., 1] - logs[..., 0], 6)  # what is left beyond is not yet the limit
    return np.nan_to_num(powers.T)


def log_variance(log_square: np.ndarray, sigma_w: np.ndarray, sigma_b: np.ndarray) -> np.ndarray:
    """ln of the variance of z = W h + b, from ln E[h^2]."""
    return np.asarray(np.logaddexp(2 * log_of(sigma_w) + log_square, 2 * log_of(sigma_b)))


def weights_share(log_square: np.ndarray, sigma_w: np.ndarray, sigma_b: np.ndarray) -> np.ndarray:
    """Share of W h in the variance of z = W h + b, whose biases are common to all inputs, from ln E[h^2].

    Of the cosine r between two inputs' h it leaves the correlation share r + 1 - share between their z.
    """
    with np.errstate(invalid="ignore"):  # of h that is zero
        share = np.exp(2 * log_of(sigma_w) + log_square - log_variance(log_square, sigma_w, sigma_b))
    return np.where(sigma_b == 0, 1.0, share)


def activation_cosine(phi: Function, c: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Cosine of two inputs' phi(z), E[phi(u) phi(v)] / E[phi^2], from the correlation c of their z."""
    q = np.exp(np.clip(log_q, LOG_MIN, LOG_MAX))
    with np.errstate(invalid="ignore"):  # of phi that is zero
        return np.asarray(np.minimum(expect_pair(phi, c, q) / moments(phi, q).square, 1.0))


def log_of(x: np.ndarray) -> np.ndarray:
    """ln |x|, -inf for 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.abs(x)))


def broadcast(*numbers: Scalar) -> list[np.ndarray]:
    """Numbers as float64 arrays of their common shape."""
    return [np.array(x) for x in np.broadcast_arrays(*(np.asarray(x, np.float64) for x in numbers))]


def number_or_array(array: np.ndarray | np.number) -> float | np.ndarray:
    """A float of an array without axes, else the array."""
    return float(array) if array.ndim == 0 else np.asarray(array)
