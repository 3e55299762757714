"""What one entry of a layer does in a floating-point format: where it breaks or vanishes, and its moments.

An activation is tried out in the format itself, so that callables are treated as the named functions are: at inf
and NaN, at the last number it keeps finite, at the last it turns into zero, and, for the moments, on a grid of z.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial.hermite_e import hermevander
from scipy.special import gammaln

from jaxstab.theory.activations import derivative, evaluate_in_dtype
from jaxstab.theory.floats import FLOATS, flushes_subnormals
from jaxstab.typing import Function

_POINTS, _CUT = 1024, 8.0  # midpoints of [-8, 8]: a kink at 0 lies between two of them
_Z = (np.arange(_POINTS) + 0.5) * (2 * _CUT / _POINTS) - _CUT
_WEIGHT = np.exp(-0.5 * _Z**2) / np.sum(np.exp(-0.5 * _Z**2))
_ORDERS = 24  # Hermite coefficients kept; what is left is taken as of the next order
_HERMITE = hermevander(_Z, _ORDERS - 1) * np.exp(-0.5 * gammaln(np.arange(_ORDERS) + 1.0))  # orthonormal
_STEP = 0.5  # of ln q between a table's lines


class Ends(NamedTuple):
    """An activation at the ends of a format. Sides are (+, -): the magnitude of z from which on it happens.

    bad: phi(z) is no finite number, inf where it always is. zero: phi is 0 up to here, inf where it always is.
    nan_there: whether phi at that side's break is NaN rather than inf.
    slopes: phi' at +inf, -inf and NaN; slope_at_zero: phi'(0), which dead layers have.
    product: the |z g| from which on phi'(z) g, as JAX works it out, is no finite number though phi' is; inf where
        there is none. The derivative of x Phi(x) has x times g in it, before the factor that makes it small.
    """

    bad: tuple[float, float]
    zero: tuple[float, float]
    nan_there: tuple[bool, bool]
    slopes: tuple[float, float, float]
    slope_at_zero: float
    product: float


class Moments(NamedTuple):
    """Gaussian moments of phi(z) in a format, z ~ N(0, q), by ln q: arrays [line] and [line, order].

    log_gain, log_slope: ln E[phi^2]/q and ln E[phi'^2]. spread, slope_spread: E[phi^4]/E[phi^2]^2 - 1 and
    E[phi'^4]/E[phi'^2]^2. shared: E[phi^2 phi'^2]/(E[phi^2] E[phi'^2]) - 1.
    aligned: E[z^2 phi'^2]/(q E[phi'^2]). carried: E[z phi phi']^2/(q E[phi^2] E[phi'^2]). Both are 1 of a
    homogeneous phi.
    value, square, cube, slope, slope_square: coefficients in orthonormal Hermite polynomials of phi/r, (phi/r)^2,
    (phi/r)^3, r the root of E[phi^2], and of phi'/r', (phi'/r')^2.
    """

    log_q: np.ndarray
    log_gain: np.ndarray
    log_slope: np.ndarray
    spread: np.ndarray
    slope_spread: np.ndarray
    shared: np.ndarray
    aligned: np.ndarray
    carried: np.ndarray
    value: np.ndarray
    square: np.ndarray
    cube: np.ndarray
    slope: np.ndarray
    slope_square: np.ndarray

    def at(self, values: np.ndarray, log_q: np.ndarray) -> np.ndarray:
        """A column's `values` [line] at ln q, linear in between and constant outside; of log_q's shape."""
        return np.interp(log_q, self.log_q, values)

    def line(self, log_q: float) -> int:
        """The table's nearest line to ln q."""
        return int(np.argmin(np.abs(self.log_q - log_q)))


def pair_mean(first: np.ndarray, second: np.ndarray, correlation: float, at_one: float) -> float:
    """E[f(u) g(v)] of Hermite coefficients [order], u and v of that correlation (Mehler 1866).

    at_one: E[f g], which says what the orders left out sum to.
    """
    products = first * second
    rest = at_one - float(np.sum(products))
    return float(products @ correlation ** np.arange(_ORDERS)) + rest * correlation**_ORDERS


def _evaluate_in(function: Function, x: np.ndarray, dtype: str) -> np.ndarray:
    """function(x), computed by JAX in dtype, as float64 of x's shape; also while a program is traced."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = _flushed(np.asarray(x, np.float64).astype(jnp.dtype(dtype)), dtype)
    return _flushed(evaluate_in_dtype(function, cast), dtype)


@functools.lru_cache(maxsize=256)
def ends(phi: Function, dtype: str) -> Ends:
    """Find where phi leaves the format, by trying."""
    limits = FLOATS[dtype]
    specials = np.array([np.inf, -np.inf, np.nan, 0.0])
    slopes = _evaluate_in(derivative(phi), specials, dtype)
    value = _evaluate_in(phi, specials, dtype)
    grid = np.concatenate([[0.0], np.geomspace(limits.smallest_subnormal / 4, limits.largest, 600), [np.inf]])
    (bad, zero, is_nan), (bad_left, zero_left, is_nan_left) = (
        _side(phi, s, dtype, grid) for s in (1.0, -1.0)
    )
    return Ends(
        bad=(bad, bad_left),
        zero=(zero, zero_left) if value[3] == 0 else (0.0, 0.0),
        nan_there=(is_nan, is_nan_left),
        slopes=(float(slopes[0]), float(slopes[1]), float(slopes[2])),
        slope_at_zero=float(slopes[3]),
        product=min(_product(phi, dtype, 16.0), _product(phi, dtype, -16.0)),
    )


def _side(phi: Function, sign: float, dtype: str, grid: np.ndarray) -> tuple[float, float, bool]:
    """(`bad`, `zero`, `nan_there`) of `Ends` on one side of 0, tried at magnitudes on a grid."""
    along = _evaluate_in(phi, sign * grid, dtype)
    bad = _first_where(phi, sign, dtype, ~np.isfinite(along), grid, lambda y: ~np.isfinite(y))
    zero = _first_where(phi, sign, dtype, along != 0, grid, lambda y: y != 0)
    return bad, zero, bool(np.isfinite(bad) and np.isnan(along[np.argmax(~np.isfinite(along))]))


@functools.lru_cache(maxsize=64)
def moments(phi: Function, dtype: str) -> Moments:
    """Tabulate the moments, from below the least to beyond the largest number of the format."""
    limits = FLOATS[dtype]
    least, most = np.log(limits.smallest_subnormal) - 3, np.log(limits.overflow) + 1
    log_q = np.arange(2 * least, 2 * most, _STEP)
    z = np.clip(np.exp(log_q / 2)[:, None] * _Z, -limits.largest, limits.largest)
    value, slope = (_finite(_evaluate_in(f, z, dtype), dtype) for f in (phi, derivative(phi)))
    root, slope_root = (np.sqrt((f / _peak(f)) ** 2 @ _WEIGHT) * _peak(f)[:, 0] for f in (value, slope))
    with np.errstate(divide="ignore"):
        log_gain, log_slope = 2 * np.log(root) - log_q, 2 * np.log(slope_root)
    value, slope = (f / np.where(r > 0, r, 1.0)[:, None] for f, r in ((value, root), (slope, slope_root)))
    square, slope_square = value**2, slope**2
    project = _WEIGHT[:, None] * _HERMITE
    logs = np.maximum(log_gain, -700.0), np.maximum(log_slope, -700.0)
    spreads = square**2 @ _WEIGHT - 1, slope_square**2 @ _WEIGHT, (square * slope_square) @ _WEIGHT - 1
    along = slope_square @ (_WEIGHT * _Z**2), ((value * slope) @ (_WEIGHT * _Z)) ** 2
    hermite = (f @ project for f in (value, square, value * square, slope, slope_square))
    return Moments(log_q, *logs, *spreads, *along, *hermite)


def _product(phi: Function, dtype: str, z: float) -> float:
    """|z g| from which on the pull-back of g at z is not finite; inf where g overflows about as soon."""

    def pulled(g: jax.Array) -> jax.Array:
        at = jnp.where(g < 0, jnp.zeros_like(g), z)  # what the compiler knew it would fold into a factor
        return jax.vjp(phi, at)[1](g)[0]

    largest = FLOATS[dtype].largest
    g = largest * 2.0 ** np.linspace(-12, 0, 1201)
    bad = ~np.isfinite(_evaluate_in(pulled, g, dtype))
    return abs(z) * float(g[np.argmax(bad)]) if np.any(bad[g < largest / 4]) else np.inf


def _first_where(
    phi: Function,
    sign: float,
    dtype: str,
    found: np.ndarray,
    grid: np.ndarray,
    test: Callable[[np.ndarray], np.ndarray],
) -> float:
    """The least magnitude where the test holds, between the grid's points by bisection; inf for none."""
    if not np.any(found):
        return np.inf
    at = int(np.argmax(found))
    if at == 0:
        return 0.0
    low, high = grid[at - 1], min(grid[at], 2 * FLOATS[dtype].largest)
    # by hand: a test that holds or not has no sign to bracket, and the numbers asked for are those of a format
    for _ in range(4):  # each to a 64th of what was left
        inner = low + (high - low) * np.arange(65) / 64
        holds = test(_evaluate_in(phi, sign * inner, dtype))
        holds[-1] = True
        first = max(int(np.argmax(holds)), 1)
        low, high = inner[first - 1], inner[first]
    return float(high)


def _flushed(values: np.ndarray, dtype: str) -> np.ndarray:
    if not flushes_subnormals(dtype):
        return values
    tiny = np.abs(values.astype(np.float64)) < FLOATS[dtype].smallest_normal
    return np.where(tiny, np.zeros_like(values), values)


def _finite(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values with the largest number in place of what is none: who asks for moments has not broken yet."""
    largest = FLOATS[dtype].largest
    return np.nan_to_num(values, nan=largest, posinf=largest, neginf=-largest)


def _peak(values: np.ndarray) -> np.ndarray:
    peak = np.max(np.abs(values), axis=1, keepdims=True)
    return np.where(peak > 0, peak, 1.0)
