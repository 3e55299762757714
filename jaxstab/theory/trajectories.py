"""What every layer of an infinitely wide random stack does to a signal, and to a gradient on its way back.

Everything scale-like is carried as a natural logarithm, so that a thousand layers of any scale neither
overflow nor underflow. Poole et al. 2016 (arXiv:1606.05340), eqs. 3 and 5; Schoenholz et al. 2017
(arXiv:1611.01232) for gradients, both for plain stacks. Weights have standard deviation sigma_w/sqrt(fan_in),
mean 0.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize.elementwise import find_minimum
from scipy.special import ndtr

from jaxstab.errors import UsageError, require_choice
from jaxstab.theory import maps
from jaxstab.theory.activations import derivative, evaluate, homogeneous_slopes, resolve
from jaxstab.theory.roots import root_between
from jaxstab.theory.sampling import sampled
from jaxstab.typing import Activation, Function, Scalar

KINDS = ("plain", "residual", "normalized", "pre_ln", "post_ln")
SATURATED = 0.01
"""A unit is saturated where |phi'| is below this part of max |phi'|."""
TINY = 2.0**-126
"""|phi| below this is zero: the smallest normal float32, which is flushed to zero."""

_SETTLED = 1e-13  # a state that a layer moves by no more has settled: quadrature rounds at 1e-15


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

    >>> jaxstab.theory.trajectory("linear", depth=3, sigma_w=2.0).gradient_rms  # the last layer's is the cotangent
    array([4., 2., 1.])
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
        return _exponential(self.log_square / 2)

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
        return _exponential(self.log_gradient / 2)

    @property
    def weight_gradient_rms(self) -> np.ndarray:
        """sqrt(E[(dL/dW)^2]) for one input; sqrt(B) times that for B."""
        return _exponential(self.log_weight_gradient / 2)


def trajectory(
    activation: Activation,
    depth: int,
    sigma_w: Scalar,
    sigma_b: Scalar = 0.0,
    *,
    kind: str = "plain",
    branch_scale: Scalar = 1.0,
    skip_scale: Scalar = 1.0,
    branch_matrices: int = 1,
    dropout: Scalar = 0.0,
    q0: Scalar = 1.0,
    c0: Scalar | None = 0.0,
    gains: Scalar = 1.0,
    widths: Sequence[int] = (),
) -> Trajectory:
    """Walk through layers 1..depth and back, for inputs of mean 0, second moment q0 and cosine c0.

    c0 = None leaves the correlation out, which costs 2 ms a layer where the rest costs 0.5. gains: [..., depth], what
    multiplies each layer's sigma_w. widths: units before the first layer and behind each, [depth + 1], of which the
    gradient depends; none: all are one.

    plain: h = phi(z), z = W h_before + b, of variance q = sigma_w^2 E[h_before^2] + sigma_b^2.
    residual: h = a h_before + s f, a the skip_scale, s the branch_scale, f = phi(z). z is independent of a unit's own
        h_before, so E[h^2] = a^2 E[h_before^2] + 2 a s E[h_before] E[f] + s^2 E[f^2]: where E[f] is not 0, means add
        up. Of two branch_matrices f = W2 phi(z) has mean 0.
    normalized: h = phi(layer norm of z), so that the activation always sees variance 1.
    pre_ln: a residual of two matrices, z = W norm(h_before) + b, and a last norm before the read-out. post_ln: the norm
        of a residual of two matrices. Xiong et al. 2020 (arXiv:2002.04745).
    Dropout of that rate is of phi(z), of a residual's f: E[.^2] is divided by 1 - rate, a cosine multiplied with it.
    Backward, E[g_before^2] / E[g^2] is sigma_w^2 E[phi'^2], a^2 + s^2 times that, or that over q, as if the way
    back had weights of its own. Exact as the width grows; at width n off by O(1/n).

    >>> walked = jaxstab.theory.trajectory("relu", depth=100, sigma_w=1.0)
    >>> walked.log_square.shape
    (100,)
    >>> float(np.log2(walked.rms[-1]).round(9))  # ReLU halves the second moment a layer
    -50.0
    """
    require_choice(kind, KINDS, "kind of stack")
    if depth < 1:
        raise UsageError(f"depth={depth}: at least 1 is wanted.")
    numbers = (sigma_w, sigma_b, branch_scale, skip_scale, dropout, q0, 0.0 if c0 is None else c0)
    w, *rest, q0, cosine = maps.broadcast(*numbers)
    is_double = branch_matrices == 2 or kind in ("pre_ln", "post_ln")
    layer = _Layer(resolve(activation), kind, is_double, c0 is not None, *map(np.ravel, (w, *rest)))
    signal = _Signal(np.ravel(maps.log_of(q0)), np.zeros(w.size), np.ravel(cosine))
    with np.errstate(invalid="ignore", over="ignore"):  # -inf - -inf, of a signal that is zero
        factors = np.broadcast_to(gains, (*w.shape, depth)).reshape(-1, depth)
        *columns, log_step, log_local = _layers(layer, signal, factors)
    if len(widths):
        log_step = log_step + np.diff(np.log(widths))
    after = np.concatenate([log_step[:, 1:], np.zeros_like(log_step[:, :1])], axis=1)
    log_gradient = np.cumsum(after[:, ::-1], axis=1)[:, ::-1]
    if kind == "pre_ln":
        log_gradient = log_gradient - columns[1][:, -1:]  # the last norm divides by the signal's rms
    columns = (*columns, log_step, log_gradient, log_local + log_gradient)
    return Trajectory(*(column.reshape((*w.shape, depth)) for column in columns))


def _layers(layer: _Layer, signal: _Signal, gains: np.ndarray) -> np.ndarray:
    """Steps through all layers, but for points whose signal has settled: what `_Layer.step` says, with a last axis.

    gains: [point, layer].
    """
    count, depth = gains.shape
    rows, moving = np.empty((8, count, depth)), np.arange(count)
    settles = np.all(gains == gains[:, :1])
    for i in range(depth):
        rows[..., i] = rows[..., max(i - 1, 0)]
        if not moving.size:
            rows[..., i:] = rows[..., [max(i - 1, 0)]]
            break
        own = layer.at(moving)
        after, rows[:, moving, i] = own._replace(sigma_w=own.sigma_w * gains[moving, i]).step(signal)
        changes = [(a != b) & ~(np.abs(a - b) <= _SETTLED) for a, b in zip(after, signal, strict=True)]
        moves = np.any(changes, axis=0) | (not settles)
        signal, moving = _Signal(*(x[moves] for x in after)), moving[moves]
    return rows


class _Signal(NamedTuple):
    """A layer's output h: ln E[h^2], E[h] / sqrt(E[h^2]), cosine between two inputs' vectors; [point] each."""

    log_square: np.ndarray
    mean: np.ndarray
    cosine: np.ndarray


class _Layer(NamedTuple):
    """One kind of layer with its hyperparameters, as those of its signals [point]."""

    phi: Function
    kind: str
    is_double: bool
    correlates: bool
    sigma_w: np.ndarray
    sigma_b: np.ndarray
    branch_scale: np.ndarray
    skip_scale: np.ndarray
    dropout: np.ndarray

    def at(self, points: np.ndarray) -> _Layer:
        """The same layer at some of its points."""
        return self._replace(**{name: getattr(self, name)[points] for name in self._fields[4:]})

    def step(self, signal: _Signal) -> tuple[_Signal, np.ndarray]:
        """The next signal, and what `Trajectory` has of it; last ln E[(dL/dW)^2] for a gradient of 1."""
        log_w, log_kept = 2 * maps.log_of(self.sigma_w), maps.log_of(1 - self.dropout)
        is_normalized, is_pre = self.kind == "normalized", self.kind == "pre_ln"
        given = signal._replace(log_square=np.zeros_like(signal.log_square)) if is_pre else signal
        log_linear = maps.log_variance(given.log_square, self.sigma_w, self.sigma_b)
        log_q = np.zeros_like(log_linear) if is_normalized else log_linear
        log_square, mean, log_slope = maps.log_moments(self.phi, log_q)
        local = (
            log_slope - log_kept - (log_linear if is_normalized else 0.0)
        )  # of W's outputs, for a gradient of 1
        after = _Signal(log_square, mean, self._cosine(given, log_q))
        zeros, saturated = _shares(self.phi, log_q)
        log_weights = local + given.log_square
        if self.is_double:
            local, of_second = local + log_w, log_square - log_kept
            log_weights = np.logaddexp(log_weights + log_w, of_second) - np.log(2.0)
            after = _Signal(log_square + log_w, np.zeros_like(mean), after.cosine)
        after = self._dropped(after, log_kept)
        zeros = self.dropout + (1 - self.dropout) * zeros
        log_step = log_w + local - (signal.log_square if is_pre else 0.0)
        if self.kind in ("residual", "pre_ln", "post_ln"):
            log_branch = 2 * maps.log_of(self.branch_scale)
            log_step = np.logaddexp(2 * maps.log_of(self.skip_scale), log_step + log_branch)
            after, zeros, log_weights = (
                self._add(signal, after),
                np.zeros_like(log_q),
                log_weights + log_branch,
            )
        if self.kind == "post_ln":
            log_step, log_weights = log_step - after.log_square, log_weights - after.log_square
            after = after._replace(log_square=np.zeros_like(log_q))
        return after, np.stack([log_q, *after, zeros, saturated, log_step, log_weights])

    @staticmethod
    def _dropped(signal: _Signal, log_kept: np.ndarray) -> _Signal:
        """A signal behind a mask that keeps that share, masks of two inputs independent."""
        mean = signal.mean * np.exp(log_kept / 2)
        return _Signal(signal.log_square - log_kept, mean, signal.cosine * np.exp(log_kept))

    def _cosine(self, signal: _Signal, log_q: np.ndarray) -> np.ndarray:
        """Cosine between two inputs' phi(z), NaN where none was asked for."""
        if not self.correlates:
            return np.full_like(log_q, np.nan)
        share = maps.weights_share(signal.log_square, self.sigma_w, self.sigma_b)
        return maps.activation_cosine(
            self.phi, np.clip(share * signal.cosine + (1 - share), -1.0, 1.0), log_q
        )

    def _add(self, signal: _Signal, branch: _Signal) -> _Signal:
        """The signal of a h + s f, in units of sqrt(E[h^2])."""
        a, s = self.skip_scale, self.branch_scale * _exponential((branch.log_square - signal.log_square) / 2)
        cross = 2 * a * s * signal.mean * branch.mean
        square = a**2 + cross + s**2
        return _Signal(
            signal.log_square + np.log(square),
            (a * signal.mean + s * branch.mean) / np.sqrt(square),
            (a**2 * signal.cosine + cross + s**2 * branch.cosine) / square,
        )


def _shares(phi: Function, log_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(|phi| < TINY) and P(|phi'| < SATURATED max |phi'|) at sqrt(q) z, each of log_q's shape."""
    slopes = homogeneous_slopes(phi)
    if slopes is not None:
        zero = np.mean([slope == 0 for slope in slopes])
        flat = np.mean([abs(slope) < SATURATED * max(map(abs, slopes)) for slope in slopes])
        return np.where(np.isnan(log_q), np.nan, zero), np.where(np.isnan(log_q), np.nan, flat)
    sigma = np.exp(np.clip(log_q, maps.LOG_MIN, maps.LOG_MAX) / 2)
    thresholds = ((phi, TINY), (derivative(phi), SATURATED * max_slope(phi)))
    zeros, saturated = (_share_below(sigma, *_crossings(f, phi, threshold)) for f, threshold in thresholds)
    resolved = sampled(phi).resolves(sigma)
    return np.where(resolved, zeros, np.nan), np.where(resolved, saturated, np.nan)


@functools.lru_cache(maxsize=256)
def max_slope(phi: Function) -> float:
    """max |phi'| over [-20, 20], in float64; error about 1e-12. For the named activations the supremum to 3e-9.

    A slope that is not a number, as that of sqrt |x| at 0 may be, is passed over.
    """

    def negative(x: np.ndarray) -> np.ndarray:
        return -np.abs(evaluate(derivative(phi), x))

    x = np.linspace(-20.0, 20.0, 40_001)
    slopes = -negative(x)
    if np.all(np.isnan(slopes)):
        return 0.0
    at = np.clip([np.nanargmax(slopes)], 1, x.size - 2)
    found = find_minimum(negative, (x[at - 1], x[at], x[at + 1]))
    return float(np.nanmax([*slopes, *-found.f_x]))


def _share_below(sigma: np.ndarray, starts_below: bool, edges: np.ndarray) -> np.ndarray:
    """P(|f(sigma z)| is below the threshold), of sigma's shape, from where it crosses it."""
    below = np.full_like(sigma, float(starts_below))
    for i, edge in enumerate(edges):  # P(x > edge) enters with the sign of what changes there
        below += (1.0 if (i % 2 == 1) == starts_below else -1.0) * ndtr(-edge / sigma)
    return np.clip(below, 0.0, 1.0)


@functools.lru_cache(maxsize=256)
def _crossings(function: Function, phi: Function, threshold: float) -> tuple[bool, np.ndarray]:
    """(whether |f| is below the threshold at the far left, every x where that changes, ascending).

    f is phi or its slope: nodes of phi show both.
    """

    def above(x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(evaluate(function, x)) < threshold, -1.0, 1.0)

    radius = sampled(phi).radius
    x = np.concatenate([-radius[::-1], radius])
    side = above(x)
    change = np.flatnonzero(side[:-1] != side[1:])
    return bool(side[0] < 0), root_between(above, x[change], x[change + 1], error=1e-15)


def _exponential(x: np.ndarray) -> np.ndarray:
    """e^x, inf beyond float64."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(x))
