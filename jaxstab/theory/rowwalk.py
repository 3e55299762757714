"""Random walks of a plain stack's rows, in law: where in a floating-point format its signal or gradient ends.

The preactivations of one input are independent Gaussian numbers given the layer before (Hanin & Nica 2018,
arXiv:1812.05994), so that a network is, per input, a walk of u = ln of their variance. Its steps are the layers'
means of phi^2 over n units: with a relative variance E[phi^4]/E[phi^2]^2 - 1 over n, of which inputs of
correlation c share a part. What the largest of all entries does is integrated out at each step, not drawn.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, pdtrik

from jaxstab.theory import entries
from jaxstab.theory.entries import Ends, Moments

# a trapezoid over what rows have in common, with weights of N(0, 1)
_X = np.linspace(-6.5, 6.5, 37, dtype=np.float32)
_X_WEIGHT = np.exp(-0.5 * _X**2) / np.sum(np.exp(-0.5 * _X**2))
_ALIKE = 0.98  # correlations are taken as at most this, beyond which that trapezoid is too coarse
_SEEN = 1e-5  # hazards below it are not worth more than a bound
_CDF = ndtr(np.arange(-9.0, 9.0, 1 / 512, dtype=np.float32))  # a tenth of the time of working it out
FLOOR = -690.0  # ln of a variance that no format holds


class Stack(NamedTuple):
    """One plain stack: numbers, the laws of its entries, and how many walks and rows stand for it.

    rows: of the batch that are walked, each for batch/rows. orthogonal: matrices are sigma_w times Haar ones.
    """

    width: int
    depth: int
    batch: int
    sigma_w: float
    sigma_b: float
    dtype: str
    ends: Ends
    moments: Moments
    of_gradient: Moments
    orthogonal: bool
    walks: int
    rows: int


class Walked(NamedTuple):
    """A stack's signal. bad, lost: [layer, walk], probability that it first happens there.

    log_q, noise: [layer, row, walk], of the preactivations. broken: [row, walk], a layer (from 0) drawn of the
    law of where that row first breaks, depth for nowhere; hits: [row, walk], of how many entries. dead: [walk],
    likewise where the layer is all zero. correlation: [layer], of two inputs' preactivations.
    """

    bad: np.ndarray
    lost: np.ndarray
    log_q: np.ndarray
    noise: np.ndarray
    correlation: np.ndarray
    broken: np.ndarray
    hits: np.ndarray
    dead: np.ndarray


class Draws:
    """N(0, 1) numbers [row, walk] for each layer, the same in each run; rows share a part of them.

    Their sums over layers, which decide most, are of a low-discrepancy set.
    """

    def __init__(self, stack: Stack, which: int):
        self.rng = np.random.default_rng(which)
        shape = (stack.depth + 1, stack.rows + 1, stack.walks)
        from scipy.stats.qmc import Sobol  # here: scipy.stats costs a second of every start

        points = Sobol(2 * (stack.rows + 1), scramble=False).random(stack.walks)[:, which::2]
        points = (points + self.rng.random(points.shape[1])) % 1
        self.numbers = self.rng.standard_normal(shape)
        root = np.sqrt(stack.depth + 1)
        self.numbers += (ndtri(points).T - np.sum(self.numbers, axis=0) / root) / root

    def rows(self, layer: int, shared: float) -> np.ndarray:
        """A layer's numbers, with the correlation `shared` between rows."""
        common, own = self.numbers[layer, 0], self.numbers[layer, 1:]
        return np.sqrt(shared) * common + np.sqrt(1 - shared) * own

    def others(self, shared: float | np.ndarray = 0.0) -> np.ndarray:
        """More numbers like a layer's, for what is not summed over layers; shared: one number, or [walk]."""
        rows, walks = self.numbers.shape[1:]
        common, own = self.rng.standard_normal(walks), self.rng.standard_normal((rows - 1, walks))
        return np.sqrt(shared) * common + np.sqrt(1 - shared) * own

    def uniform(self) -> np.ndarray:
        """Uniform numbers in (0, 1), [walk]."""
        return self.rng.random(self.numbers.shape[2])


def walk_signal(stack: Stack) -> Walked:
    """Walk the signal from N(0, 1) inputs to the last layer."""
    draws, n, moments = Draws(stack, 0), stack.width, stack.moments
    own = np.zeros((stack.depth, stack.rows, stack.walks))
    log_q, noise = own, own.copy()
    bad, lost = np.zeros((2, stack.depth, stack.walks))
    correlation = np.zeros(stack.depth)
    broken, hits = np.full((stack.rows, stack.walks), stack.depth), np.ones((stack.rows, stack.walks))
    dead, intact = np.full(stack.walks, stack.depth), np.ones(stack.walks)
    q = _log_linear(stack, scaled(2.0 / n, draws.rows(0, 0.0)))  # chi^2_n / n of each input
    c = _with_bias(stack, float(np.median(q)), 1 / np.sqrt(n))
    for layer in range(stack.depth):
        log_q[layer], correlation[layer] = q, c
        hazard = _beyond_sides(stack, q, stack.ends.bad, c)
        bad[layer] = intact * hazard
        breaks, many = _broken_rows(stack, q, c, draws)
        first = breaks & (broken == stack.depth)
        broken[first], hits[first] = layer, many[first]
        gone = _all_zero(stack, q, c)
        lost[layer] = intact * (1 - hazard) * gone
        dead[(dead == stack.depth) & (draws.uniform() < gone)] = layer
        intact = intact * (1 - hazard) * (1 - gone)
        if np.max(intact) < 1e-6 and np.all((np.max(broken, axis=0) < stack.depth) | (dead < stack.depth)):
            break
        shared, c_next = _signal_correlations(stack, float(np.median(q)), c)
        noise[layer] = draws.rows(layer + 1, shared)
        spread = relative_variance(stack, q)
        mean = q + moments.at(moments.log_gain, q)
        q = _log_linear(stack, np.maximum(mean, FLOOR) + scaled(spread / n, noise[layer]))
        c = c_next
    return Walked(bad, lost, log_q, noise, correlation, broken, hits, dead)


def scaled(variance: float | np.ndarray, noise: np.ndarray) -> np.ndarray:
    """ln of a mean of 1 with this relative variance and the skewness of a sum of squares.

    Of a gamma distribution by Wilson & Hilferty 1931; logs taken as Gaussian would have no skewness.
    """
    variance = np.minimum(variance, 3.0)
    root = 1 - variance / 9 + noise * np.sqrt(variance) / 3
    return 3 * np.log(np.maximum(root, 0.02))


def _log_linear(stack: Stack, log_square: np.ndarray) -> np.ndarray:
    """ln(sigma_w^2 E[h^2] + sigma_b^2)."""
    with np.errstate(divide="ignore"):
        logs = 2 * np.log(np.array([stack.sigma_w, stack.sigma_b]))
        return np.maximum(np.logaddexp(log_square + logs[0], logs[1]), FLOOR)


def _with_bias(stack: Stack, log_q: float, c: float) -> float:
    """The preactivations' correlation, for activations whose is c: biases are common to all inputs."""
    bias = min(stack.sigma_b**2 * np.exp(-log_q), 1.0) if stack.sigma_b > 0 else 0.0
    return (1 - bias) * c + bias


def relative_variance(stack: Stack, q: np.ndarray) -> np.ndarray:
    """n times that of a layer's mean square, [row, walk].

    An orthogonal matrix keeps lengths, so that the preactivations' is given: phi^2 loses its part along z^2.
    """
    along = stack.moments.square[:, 2] ** 2 if stack.orthogonal else 0.0
    return stack.moments.at(np.maximum(stack.moments.spread - along, 0.0), q)


def _signal_correlations(stack: Stack, log_q: float, c: float) -> tuple[float, float]:
    """(the share of a step's noise that rows have in common, the next preactivations' correlation)."""
    m = stack.moments
    i = m.line(log_q)
    fourth = float(m.spread[i]) + 1
    both = entries.pair_mean(m.square[i], m.square[i], c, fourth)
    along = float(m.square[i, 2]) ** 2 if stack.orthogonal else 0.0  # see relative_variance
    spread = fourth - 1 - along
    shared = (both - 1 - along * c**2) / spread if spread > 1e-9 else 0.0
    r = entries.pair_mean(m.value[i], m.value[i], c, 1.0)
    cube = entries.pair_mean(m.cube[i], m.value[i], c, fourth)
    # the cosine's own variance, by its derivatives: where the mean map is at 0 nothing else makes inputs alike
    variance = both + r**2 - 2 * r * cube + r**2 / 2 * (fourth + both - 2)
    if stack.orthogonal:  # Gram matrices of z are given: what a linear map would add is not there
        variance -= (1 - c**2) ** 2 * float(m.value[i, 1]) ** 4
    after = np.sqrt(min(r**2 + max(variance, 0.0) / stack.width, 1.0))
    after = after if r >= 0 else -after
    next_q = float(_log_linear(stack, log_q + m.log_gain[i : i + 1])[0])
    return float(np.clip(shared, 0.0, 1.0)), float(np.clip(_with_bias(stack, next_q, after), -0.0, 1.0))


def any_beyond(stack: Stack, t: np.ndarray, sides: int, c: float) -> np.ndarray:
    """P(an entry of N(0, 1) exceeds its row's threshold), [walk]; t: [row, walk].

    The layer's n columns are independent, a column's rows have the correlation c. Two sides are taken as if they
    excluded each other, as they do far out.
    """
    total = sides * _column(stack, t, c)
    return -np.expm1(stack.width * np.log1p(-np.minimum(total, 1 - 1e-16)))


def _beyond_sides(stack: Stack, q: np.ndarray, sides: tuple[float, float], c: float) -> np.ndarray:
    """P(an entry of N(0, e^q) reaches the magnitude of its side, + or -), [walk]."""
    reached = [any_beyond(stack, x * np.exp(-q / 2), sides.count(x), c) for x in {*sides} if np.isfinite(x)]
    return 1 - np.prod([1 - p for p in reached], axis=0) if reached else np.zeros(q.shape[1])


def _column(stack: Stack, t: np.ndarray, c: float) -> np.ndarray:
    """P(a column has an entry beyond t) for rows' thresholds t [row, walk]: [walk]."""
    weight = stack.batch / stack.rows
    with np.errstate(over="ignore"):
        tails = ndtr(-t)
    union = np.minimum(weight * np.sum(tails, axis=0), 1.0)
    alone = c < 0.01 or (stack.rows == 1 and weight == 1)
    if alone:
        return -np.expm1(weight * np.sum(np.log1p(-np.minimum(tails, 1 - 1e-16)), axis=0))
    walks = np.flatnonzero((union * stack.width > _SEEN) & (np.max(tails, axis=0) * stack.width < 40))
    c = min(c, _ALIKE)
    scale = 512 / math.sqrt(1 - c)
    at = scale * np.minimum(t[:, walks], 100.0).astype(np.float32) + (
        9 * 512 - scale * math.sqrt(c) * _X[:, None, None]
    )
    given = np.take(_CDF, np.clip(at, 0, len(_CDF) - 1).astype(np.int32))
    union[walks] = 1 - _X_WEIGHT @ np.prod(given, axis=1) ** weight
    return np.maximum(union, 0.0)


def _all_zero(stack: Stack, q: np.ndarray, c: float) -> np.ndarray:
    """P(phi of every entry is 0), [walk]."""
    if stack.ends.zero == (0.0, 0.0):
        return np.zeros(q.shape[1])
    return 1 - _beyond_sides(stack, q, stack.ends.zero, c)


def _broken_rows(stack: Stack, log_q: np.ndarray, c: float, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Draw which rows have a number that is not finite, and how many of them: [row, walk] each.

    Rows' largest entries are joined by a Gaussian copula whose correlation gives two rows the conditional
    probability that their entries have in the column of the largest.
    """
    sides = [side for side in stack.ends.bad if np.isfinite(side)]
    t = [side * np.exp(-log_q / 2) for side in sides]
    tail = sum((ndtr(-side) for side in t), np.zeros_like(log_q))
    p = -np.expm1(stack.width * np.log1p(-np.minimum(tail, 1 - 1e-16)))
    if not np.any(p > 1e-6):
        return np.zeros(p.shape, bool), np.ones(p.shape)
    far, near = (-ndtri(np.clip(np.max(x, axis=0), 1e-12, 0.4)) for x in (tail, p))
    ratio = (far / near) ** 2 * (1 - c) / (1 + c)
    found = ndtr(draws.others(np.clip((1 - ratio) / (1 + ratio), 0.0, 1.0))) < p
    hits = np.ones(p.shape)
    expected = np.clip(stack.width * tail[found], 1e-9, 60.0)  # of 60 and more none agree, see _slopes
    at = np.broadcast_to(draws.uniform(), p.shape)[found]
    none = np.exp(-expected)  # a Poisson number given that it is at least 1
    hits[found] = np.maximum(np.ceil(pdtrik(none + at * (1 - none), expected)), 1.0)
    return found, hits
