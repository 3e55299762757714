"""How a plain stack's gradient walks back through its rows, in law, and where a floating-point format ends it.

Given the signal, a gradient's entries are independent Gaussian numbers with the same variance but for the part
along the signal, which the layers above have decided: for homogeneous activations the product of gradient and
signal is the same in all layers (Euler's theorem), so that gradients are drawn to where the signal grew.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri

from jaxstab.theory import entries
from jaxstab.theory.floats import FLOATS, flushes_subnormals
from jaxstab.theory.rowwalk import FLOOR, Draws, Stack, Walked, any_beyond, relative_variance, scaled

_LARGEST_SLOPE = 1e150  # a slope far out beyond which its square is no number
_T = np.exp(np.linspace(-6.0, 4.0, 201))  # thresholds of a product of two N(0, 1) numbers
_Z = (np.arange(1200) + 0.5) / 100
_TAIL = ndtr(-_T[:, None] / _Z) @ np.exp(-0.5 * _Z**2) / np.sum(np.exp(-0.5 * _Z**2))
_AS_NORMAL = -ndtri(_TAIL)  # the threshold of one N(0, 1) number that is exceeded as often


def walk_gradient(stack: Stack, signal: Walked) -> tuple[np.ndarray, np.ndarray]:
    """Walk the gradient back: probabilities (bad, lost) that either first happens at a layer's output, [layer, walk].

    From an N(0, 1) cotangent of the last layer's output to the first layer's output.
    """
    draws, n, linear = Draws(stack, 1), stack.width, stack.of_gradient
    bad, lost = np.zeros((2, stack.depth, stack.walks))
    intact, kappa = np.ones(stack.walks), 1.0 / n
    log_v = np.zeros(
        (stack.rows, stack.walks)
    )  # ln of the variance of a row's gradient; -inf where it is zero
    along = draws.rows(stack.depth, 0.0)  # g h/(|h| root of v): N(0, 1), as that of any direction
    for layer in range(stack.depth - 1, 0, -1):  # through this layer, to the output of the one before
        q = signal.log_q[layer]
        log_slope, undefined, ordinary = _slopes(stack, signal, layer)
        shared, relation, after = _correlations(stack, layer, signal, kappa)
        noise = relation * signal.noise[layer] + np.sqrt(1 - relation**2) * draws.rows(layer, shared)
        spread, fourth = _relative_variance(stack, q, ordinary)
        log_d = log_v + log_slope + np.log(np.maximum(fourth, 1.0))  # phi' g, of the slopes that count
        drawn = scaled(np.maximum(spread + fourth * (linear.at(linear.spread, log_d) - 2), 0.0) / n, noise)
        hazard = np.maximum(_product_hazard(stack, q, log_v), np.any(undefined, axis=0))
        grown = scaled(relative_variance(stack, q) / n, signal.noise[layer]) - drawn
        excess, moved = _along(stack, q, along, log_d, grown, draws.others())
        excess = np.where(ordinary, excess, 0.0)
        along = np.where(ordinary, moved * np.exp(-excess / 2), draws.others())
        kept = linear.at(linear.log_gain, log_d)  # what rounding leaves
        log_v = log_v + log_slope + kept + 2 * np.log(stack.sigma_w) + drawn + excess
        log_v, kappa = np.where(log_v < FLOOR, -np.inf, log_v), after
        hazard = 1 - (1 - hazard) * (1 - _overflow_hazard(stack, log_v, kappa))
        gone = _all_zero(stack, log_d, log_v, kappa)
        bad[layer - 1] = intact * hazard
        lost[layer - 1] = intact * (1 - hazard) * gone
        intact = intact * (1 - hazard) * (1 - gone)
        if np.max(intact) < 1e-6:
            break
    return bad, lost


def _overflow_hazard(stack: Stack, log_v: np.ndarray, kappa: float) -> np.ndarray:
    """P(an entry of the gradient overflows), [walk]."""
    t = FLOATS[stack.dtype].overflow * np.exp(-log_v / 2)
    return any_beyond(stack, t, 2, float(np.sqrt(kappa)))


def _product_hazard(stack: Stack, q: np.ndarray, log_v: np.ndarray) -> np.ndarray:
    """P(a product of gradient and preactivation overflows on the way to phi' g), [walk]; see `entries.Ends`."""
    if np.isinf(stack.ends.product):
        return np.zeros(q.shape[1])
    log_t = np.log(stack.ends.product) - (q + log_v) / 2
    return any_beyond(stack, np.interp(log_t, np.log(_T), _AS_NORMAL, right=np.inf), 2, 0.0)


def _all_zero(stack: Stack, log_d: np.ndarray, log_v: np.ndarray, kappa: float) -> np.ndarray:
    """P(all entries round to zero), [walk]: of phi' g, or of the gradient."""
    vanishing = FLOATS[stack.dtype].vanishing(flushes_subnormals(stack.dtype))
    c = float(np.sqrt(kappa))
    left = [any_beyond(stack, vanishing * np.exp(-x / 2), 2, c) for x in (log_d, log_v)]
    return np.where(np.all(np.isneginf(log_v), axis=0), 1.0, 1 - np.minimum(*left))


def _along(
    stack: Stack, q: np.ndarray, along: np.ndarray, log_d: np.ndarray, grown: np.ndarray, chance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(what the part along the signal adds to ln of the gradient's variance, that part after the step), [row, walk].

    h passes a layer's slopes other than a random direction does, and rounding forgets it. grown: how much more the
    signal's noise adds to ln of a mean square than the gradient's.
    """
    m, n = stack.moments, stack.width
    if len({*stack.ends.slopes, stack.ends.slope_at_zero}) == 1:  # the same whatever the signal is
        return np.zeros_like(q), along
    own = 1 - stack.sigma_b**2 * np.exp(-q) if stack.sigma_b > 0 else 1.0  # the weights' share in z
    kept = own * m.at(m.carried, q)
    fresh = np.maximum(own * m.at(m.aligned, q) + (1 - own) - kept, 0.0)
    known = stack.of_gradient.at(stack.of_gradient.value[:, 1] ** 2, log_d)
    weight = known * np.minimum((1 + m.at(m.shared, q)) / n, 1.0)
    excess = np.log1p((np.minimum(along**2, n) - 1) * weight)
    new = np.sqrt(fresh + kept * (1 - known)) * chance
    return excess, new + np.sqrt(kept * known) * along * np.exp(grown / 2)


def _relative_variance(stack: Stack, q: np.ndarray, ordinary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n times that of a step's mean of phi'^2 g^2, E[phi'^4]/E[phi'^2]^2), [row, walk]; g as yet not rounded.

    An orthogonal matrix keeps |g| and |z|. Where a row is not ordinary, all slopes that count are one number.
    """
    m = stack.moments
    fourth = np.where(ordinary, m.at(m.slope_spread, q), 1.0)
    along = 2 + np.where(ordinary, m.at(m.slope_square[:, 2] ** 2, q), 0.0) if stack.orthogonal else 0.0
    return np.maximum(3 * fourth - 1 - along, 0.0), fourth


def _correlations(stack: Stack, layer: int, signal: Walked, kappa: float) -> tuple[float, float, float]:
    """(share of the noise in common, its correlation with the signal's, kappa after the layer).

    kappa: the squared cosine of two inputs' gradients.
    """
    m, c = stack.moments, float(signal.correlation[layer])
    i = m.line(float(np.median(signal.log_q[layer])))
    fourth = float(m.slope_spread[i])
    both = entries.pair_mean(m.slope_square[i], m.slope_square[i], c, fourth)
    r = entries.pair_mean(m.slope[i], m.slope[i], c, 1.0)
    total, common = 3 * fourth - 1, both * (1 + 2 * kappa) - 1
    if stack.orthogonal:
        along = float(m.slope_square[i, 2]) ** 2
        total, common = total - 2 - along, common - 2 * kappa - along * c**2
    shared = float(np.clip(common / total, 0.0, 1.0)) if total > 1e-9 else 0.0
    relation = float(m.shared[i]) / np.sqrt(max(float(m.spread[i]) * total, 1e-9))
    after = kappa * r**2 + (0.0 if stack.orthogonal else both * (1 - kappa) ** 2 / stack.width)
    return shared, float(np.clip(relation, -1.0, 1.0)), float(min(after, 1.0))


def _slopes(stack: Stack, signal: Walked, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ln of the mean of phi'^2, whether some phi' is NaN, whether z is ordinary) of one layer: [row, walk] each.

    A row whose first inf is h of some layer has +inf, -inf and NaN among its z one layer on (of k infs, NaN
    unless all k products agree in sign), and nothing but NaN from two layers on.
    """
    ends, m = stack.ends, stack.moments
    age = layer - signal.broken
    agree = np.where(any(ends.nan_there), 0.0, 0.5**signal.hits)  # the share of either sign
    agree = np.where(agree * stack.width < 0.5, 0.0, agree)  # less than one entry
    slopes = np.clip(np.nan_to_num(np.asarray(ends.slopes, np.float64)), -_LARGEST_SLOPE, _LARGEST_SLOPE)
    plus, minus, nan = (slopes**2).tolist()
    no_plus, no_minus, no_nan = np.isnan(ends.slopes)
    dead = (layer >= signal.dead) & np.all(age < 0, axis=0)
    of_first = [no for no, side in zip((no_plus, no_minus), ends.bad, strict=True) if np.isfinite(side)]
    factor = np.exp(m.at(m.log_slope, signal.log_q[layer]))
    factor = np.where(age == 1, agree * (plus + minus) + (1 - 2 * agree) * nan, factor)
    factor = np.where(age >= 2, nan, factor)
    factor = np.where(dead, np.nan_to_num(ends.slope_at_zero) ** 2, factor)
    undefined = (age == 0) & any(of_first)
    undefined |= (age == 1) & (((agree > 0) & (no_plus | no_minus)) | ((agree < 0.5) & no_nan))
    undefined |= ((age >= 2) & no_nan) | (dead & np.isnan(ends.slope_at_zero))
    with np.errstate(divide="ignore"):
        return np.log(factor), undefined, (age < 1) & ~dead
