"""What every layer of an infinitely wide random stack does to a signal, and to a gradient on its way back.

Everything scale-like is carried as a natural logarithm, so that a thousand layers of any scale neither
overflow nor underflow. Poole et al. 2016 (arXiv:1606.05340), eqs. 3 and 5; Schoenholz et al. 2017
(arXiv:1611.01232) for gradients, both for plain stacks. Weights have standard deviation sigma_w/sqrt(fan_in),
mean 0, and all layers one width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import ndtr

from jaxstab.errors import UsageError, require_choice
from jaxstab.theory.activations import derivative, evaluate, homogeneous_slopes, max_slope, resolve
from jaxstab.theory.gaussian import sampled, second_moment
from jaxstab.theory.pairs import expect_pair
from jaxstab.typing import Activation, Scalar

KINDS = ("plain", "residual", "normalized")
SATURATED = 0.01
"""A unit is saturated where |phi'| is below this part of max |phi'|."""
TINY = 2.0**-126
"""|phi| below this is zero: the smallest normal float32, which is flushed to zero."""

_SETTLED = 1e-13  # a state that a layer moves by no more has settled: quadrature rounds at 1e-15
_LOG_MIN, _LOG_MAX = math.log(1e-18), math.log(1e18)  # beyond, moments follow the power of q they have there


class Trajectory(NamedTuple):
    """A stack's layers 1..depth: arrays [..., depth], the leading shape that of the hyperparameters.

    log_q: ln of the variance of what the activation is applied to.
    log_square: ln of the layer's second moment E[h^2].
    relative_mean: E[h] / sqrt(E[h^2]).
    correlation: cosine between the layer's vectors of two inputs; NaN where none was asked for.
    zero_fraction: share of zeros in h. saturated_fraction: of units with |phi'| < 0.01 max |phi'|.
    log_step: ln of what the gradient's second moment gains on the way back through this layer.
    log_gradient: ln E[g^2] of the gradient with respect to the layer's output h, for a cotangent of N(0, 1)
        entries on the last layer's output.
    log_weight_gradient: ln E[(dL/dW)^2] of this layer's weights for one input; B inputs with independent
        cotangents, summed, have B times that.
    """

    log_q: np.ndarray
    log_square: np.ndarray
    relative_mean: np.ndarray
    correlation: np.ndarray
    zero_fraction: np.ndarray
    saturated_fraction: np.ndarray
    log_step: np.ndarray
    log_gradient: np.ndarray
    log_weight_gradient: np.ndarray

    @property
    def rms(self) -> np.ndarray:
        """sqrt(E[h^2]); inf or 0 where float64 ends."""
        return _exp(self.log_square / 2)

    @property
    def mean(self) -> np.ndarray:
        """E[h]."""
        return self.relative_mean * self.rms

    @property
    def std(self) -> np.ndarray:
        """sqrt(E[h^2] - E[h]^2), over units."""
        return np.sqrt(np.maximum(1 - self.relative_mean**2, 0.0)) * self.rms

    @property
    def gradient_rms(self) -> np.ndarray:
        """sqrt(E[g^2])."""
        return _exp(self.log_gradient / 2)

    @property
    def weight_gradient_rms(self) -> np.ndarray:
        """sqrt(E[(dL/dW)^2]) for one input; sqrt(B) times that for B."""
        return _exp(self.log_weight_gradient / 2)


def trajectory(
    activation: Activation,
    depth: int,
    sigma_w: Scalar,
    sigma_b: Scalar = 0.0,
    *,
    kind: str = "plain",
    branch_scale: Scalar = 1.0,
    q0: Scalar = 1.0,
    c0: Scalar | None = 0.0,
) -> Trajectory:
    """Layers 1..depth, for inputs of mean 0, second moment q0 and cosine c0.

    c0 = None leaves the correlation out, which costs 2 ms a layer where the rest costs 0.5.

    plain: h = phi(z), z = W h_before + b, of variance q = sigma_w^2 E[h_before^2] + sigma_b^2.
    residual: h = h_before + s phi(z), s the branch_scale. z is independent of a unit's own h_before, so
        E[h^2] = E[h_before^2] + 2 s E[h_before] E[phi] + s^2 E[phi^2]: where E[phi] is not 0, means add up.
    normalized: h = phi(layer norm of z), so that the activation always sees variance 1.
    Backward, E[g_before^2] / E[g^2] is sigma_w^2 E[phi'^2], 1 + s^2 times that, or that over q, as if the way
    back had weights of its own. Exact as the width grows; at width n off by O(1/n).
    """
    require_choice(kind, KINDS, "kind of stack")
    if depth < 1:
        raise UsageError(f"depth={depth}: at least 1 is wanted.")
    numbers = (sigma_w, sigma_b, branch_scale, q0, 0.0 if c0 is None else c0)
    arrays = np.broadcast_arrays(*(np.asarray(number, np.float64) for number in numbers))
    w, b, scale, start, cosine = (np.ravel(array) for array in arrays)
    walk = _Walk(resolve(activation), kind, w, b, scale, c0 is not None)
    with np.errstate(invalid="ignore", over="ignore"):  # -inf - -inf, of a signal that is zero
        *columns, log_step, log_local = _rows(walk, _State(_log(start), np.zeros_like(start), cosine), depth)
    after = np.concatenate([log_step[:, 1:], np.zeros_like(log_step[:, :1])], axis=1)
    log_gradient = np.cumsum(after[:, ::-1], axis=1)[:, ::-1]
    columns = (*columns, log_step, log_gradient, log_local + log_gradient)
    return Trajectory(*(column.reshape((*arrays[0].shape, depth)) for column in columns))


def _rows(walk: _Walk, state: _State, depth: int) -> np.ndarray:
    """`_Walk.layer` of every layer: [quantity, point, layer]. Points whose state moves no more are left there."""
    rows = np.empty((8, len(state.cosine), depth))
    moving = np.arange(len(state.cosine))
    for layer in range(depth):
        rows[..., layer] = rows[..., max(layer - 1, 0)]
        if not moving.size:
            rows[..., layer:] = rows[..., [max(layer - 1, 0)]]
            break
        after, rows[:, moving, layer] = walk.at(moving).layer(state)
        changes = [(a != b) & ~(np.abs(a - b) <= _SETTLED) for a, b in zip(after, state, strict=True)]
        moves = np.any(changes, axis=0)
        state, moving = _State(*(x[moves] for x in after)), moving[moves]
    return rows


class _State(NamedTuple):
    """Of a layer's output h: ln E[h^2], E[h] / sqrt(E[h^2]), cosine between two inputs' vectors."""

    log_square: np.ndarray
    mean: np.ndarray
    cosine: np.ndarray


class _Moments(NamedTuple):
    """Of phi(sqrt(q) z): ln E[phi^2], E[phi] / sqrt(E[phi^2]), ln E[phi'^2]."""

    log_square: np.ndarray
    mean: np.ndarray
    log_slope: np.ndarray


class _Walk(NamedTuple):
    """One kind of stack with its hyperparameters; all arrays here, as those of its states, [point]."""

    phi: Callable[..., jax.Array]
    kind: str
    sigma_w: np.ndarray
    sigma_b: np.ndarray
    branch_scale: np.ndarray
    correlates: bool

    def at(self, points: np.ndarray) -> _Walk:
        """Some of its points."""
        w, b, scale = (x[points] for x in (self.sigma_w, self.sigma_b, self.branch_scale))
        return self._replace(sigma_w=w, sigma_b=b, branch_scale=scale)

    def layer(self, state: _State) -> tuple[_State, np.ndarray]:
        """The next state, and what `Trajectory` has of it; last ln E[(dL/dW)^2] for a gradient of 1."""
        log_w = 2 * _log(self.sigma_w)
        log_linear = np.logaddexp(log_w + state.log_square, 2 * _log(self.sigma_b))
        log_q = np.zeros_like(log_linear) if self.kind == "normalized" else log_linear
        moments = _moments(self.phi, log_q)
        slope = moments.log_slope - (log_linear if self.kind == "normalized" else 0.0)
        after = _State(moments.log_square, moments.mean, self._cosine(state, log_linear, log_q))
        log_step = log_w + slope
        if self.kind == "residual":
            slope = slope + 2 * _log(self.branch_scale)
            log_step = np.logaddexp(0.0, log_w + slope)
            after = self._add(state, after)
        zeros, saturated = _shares(self.phi, log_q)
        if self.kind == "residual":
            zeros = np.zeros_like(log_q)
        return after, np.stack([log_q, *after, zeros, saturated, log_step, slope + state.log_square])

    def _cosine(self, state: _State, log_linear: np.ndarray, log_q: np.ndarray) -> np.ndarray:
        """E[phi(u) phi(v)] / E[phi^2], u and v with the correlation that z has for two inputs."""
        if not self.correlates:
            return np.full_like(log_q, np.nan)
        weights = np.exp(2 * _log(self.sigma_w) + state.log_square - log_linear)
        own = np.where(self.sigma_b == 0, 1.0, weights)  # the weights' share in z
        q = np.exp(np.clip(log_q, _LOG_MIN, _LOG_MAX))
        correlation = np.clip(own * state.cosine + (1 - own), -1.0, 1.0)
        return np.minimum(expect_pair(self.phi, correlation, q) / second_moment(self.phi, q), 1.0)

    def _add(self, state: _State, branch: _State) -> _State:
        """h + s phi, in units of sqrt(E[h^2])."""
        s = self.branch_scale * _exp((branch.log_square - state.log_square) / 2)
        cross = 2 * s * state.mean * branch.mean
        square = 1 + cross + s**2
        return _State(
            state.log_square + np.log(square),
            (state.mean + s * branch.mean) / np.sqrt(square),
            (state.cosine + cross + s**2 * branch.cosine) / square,
        )


def _moments(phi: Callable[..., jax.Array], log_q: np.ndarray) -> _Moments:
    """Of phi(sqrt(q) z), for any ln q [point]; beyond 1e-18 < q < 1e18 by the power law phi has there."""
    slopes = homogeneous_slopes(phi)
    if slopes is not None:
        right, left = slopes
        with np.errstate(divide="ignore", invalid="ignore"):
            square = np.float64(right**2 + left**2) / 2
            relative = np.nan_to_num((right - left) / np.sqrt(2 * np.pi * square))
            log_slope = np.where(np.isnan(log_q), np.nan, np.log(square))
            return _Moments(log_q + np.log(square), relative + 0 * log_slope, log_slope)
    log_q, inverse = np.unique(log_q, return_inverse=True)
    inside = np.clip(log_q, _LOG_MIN, _LOG_MAX)
    square, mean, slope = _moments_within(phi, np.exp(inside))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.stack([square, slope]))
        relative = np.where(square > 0, mean / np.sqrt(square), 0.0)
    low, high = _powers(phi)
    beyond = log_q - inside
    power = np.where(beyond < 0, low[:, None], high[:, None])
    log_square, log_slope = np.where(beyond == 0, logs, logs + power * beyond)
    return _Moments(log_square[inverse], relative[inverse], log_slope[inverse])


def _moments_within(phi: Callable[..., jax.Array], q: np.ndarray) -> np.ndarray:
    """E[phi^2], E[phi], E[phi'^2] of phi(sqrt(q) z): [3, *q.shape]."""
    nodes = sampled(phi)
    return nodes.mean(np.stack([nodes.value**2, nodes.value, nodes.slope**2]), q)


@functools.lru_cache(maxsize=256)
def _powers(phi: Callable[..., jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """d ln E[phi^2] / d ln q and d ln E[phi'^2] / d ln q, [2] each, at the lower and the upper end of q."""
    ends = np.array([[_LOG_MIN, _LOG_MIN + 1], [_LOG_MAX - 1, _LOG_MAX]])
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(_moments_within(phi, np.exp(ends))[::2])
        powers = np.round(logs[..., 1] - logs[..., 0], 6)  # what is left beyond is not yet the limit
    return np.nan_to_num(powers[:, 0]), powers[:, 1]


def _shares(phi: Callable[..., jax.Array], log_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(|phi| < TINY) and P(|phi'| < SATURATED max |phi'|) at sqrt(q) z, each of log_q's shape."""
    sigma = np.exp(np.clip(log_q, _LOG_MIN, _LOG_MAX) / 2)
    slopes = homogeneous_slopes(phi)
    if slopes is not None:
        flat = [abs(slope) < SATURATED * max(map(abs, slopes)) for slope in slopes]
        zero = [slope == 0 for slope in slopes]
        return np.where(np.isnan(log_q), np.nan, np.mean(zero)), np.where(
            np.isnan(log_q), np.nan, np.mean(flat)
        )
    thresholds = ((phi, TINY), (derivative(phi), SATURATED * max_slope(phi)))
    zeros, saturated = (_share(sigma, *_crossings(f, phi, threshold)) for f, threshold in thresholds)
    resolved = sampled(phi).resolves(sigma)
    return np.where(resolved, zeros, np.nan), np.where(resolved, saturated, np.nan)


def _share(sigma: np.ndarray, starts_below: bool, edges: np.ndarray) -> np.ndarray:
    """P(|f(sigma z)| is below the threshold), of sigma's shape, from where it crosses it."""
    below = np.full_like(sigma, float(starts_below))
    for i, edge in enumerate(edges):  # P(x > edge) enters with the sign of what changes there
        below += (1.0 if (i % 2 == 1) == starts_below else -1.0) * ndtr(-edge / sigma)
    return np.clip(below, 0.0, 1.0)


@functools.lru_cache(maxsize=256)
def _crossings(
    function: Callable[..., jax.Array], phi: Callable[..., jax.Array], threshold: float
) -> tuple[bool, np.ndarray]:
    """(whether |f| is below the threshold at the far left, every x where that changes, ascending).

    f is phi or its slope: nodes of phi show both.
    """
    radius = sampled(phi).radius
    x = np.concatenate([-radius[::-1], radius])
    below = np.abs(evaluate(function, x)) < threshold
    at = np.flatnonzero(below[:-1] != below[1:])
    low, high = x[at], x[at + 1]
    for _ in range(60 if at.size else 0):
        middle = (low + high) / 2
        same = (np.abs(evaluate(function, middle)) < threshold) == below[at]
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return bool(below[0]), (low + high) / 2


def _log(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.abs(x)))


def _exp(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(x))
