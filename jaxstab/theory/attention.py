"""What softmax attention does at initialization to the size of tokens, to their likeness and to gradients.

T tokens have mean square q and pairwise cosine c. Queries and keys are W x with independent Gaussian entries, so that
for large heads the logits of one query are Gaussian with variance sigma^2 and covariance c sigma^2. What all keys have
in common softmax takes away; s^2 = sigma^2 (1 - c) is left, and between two queries' logits the covariance c s^2. With
many tokens softmax's sums are their means, and the shares A_ij obey T sum_j A_ij^2 = e^(s^2) and T sum_j A_ij A_kj =
e^(c s^2), from which everything here follows. Derived here; that tokens become one without a skip is Dong et al. 2021
(arXiv:2103.03404), with one Noci et al. 2022 (arXiv:2206.03126).

The next orders say how far off that is: e^(4 s^2)/T (a few keys take all), s^4/head, and s^2 T/width (cosines of random
tokens scatter). Where they pass `MOST_ERROR` all is NaN. In simulations at widths of 64 to 512 and 4 to 256 tokens mean
squares, relatively, and cosines, absolutely, were off by no more than that estimate.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxstab.errors import UsageError, require_choice
from jaxstab.theory import maps
from jaxstab.typing import Scalar

ORDERS = ("pre", "post")
MOST_ERROR = 0.1
"""Share of a mean square, and part of a cosine, that the neglected orders may make up."""


class TokenTrajectory(NamedTuple):
    """Behind layers 1..depth, [..., depth]: ln of the mean square of tokens' entries, and their pairwise cosine."""

    log_square: np.ndarray
    correlation: np.ndarray


class UniformBlocks(NamedTuple):
    """Behind sublayers 0 (the input) to depth, [..., depth + 1].

    Mean square of tokens' entries, their pairwise cosine, mean square of the gradient with respect to them.
    """

    square: np.ndarray
    correlation: np.ndarray
    gradient: np.ndarray


def token_maps(
    q: Scalar,
    c: Scalar,
    tokens: Scalar,
    sigma: Scalar,
    *,
    skip_scale: Scalar = 0.0,
    branch_scale: Scalar = 1.0,
    width: float = math.inf,
    head: float = math.inf,
) -> tuple[float | np.ndarray, float | np.ndarray]:
    """(mean square, cosine) of tokens a x + b f(x), f attention whose values have the mean square q of its inputs.

    sigma: standard deviation of the logits of orthogonal tokens, which grows as q (`token_trajectory`). Arrays that
    broadcast. f's mean square is q (c + (1 - c) e^(s^2)/T), of two of its tokens the product has e^(c s^2) there.
    Logits of no variance make all tokens one at once; near c = 1, without a skip, 1 - c' is sigma^2 (1 - c)^3/T.

    >>> [round(x, 4) for x in jaxstab.theory.token_maps(1.0, 0.3, tokens=64, sigma=1.0)]
    [0.322, 0.9735]
    """
    q, c, tokens, sigma, a, b = maps.broadcast(q, c, tokens, sigma, skip_scale, branch_scale)
    factor, cosine, error = _layer(c, tokens, sigma, a, b, width, head)
    holds = error <= MOST_ERROR
    square, cosine = (np.where(holds, x, np.nan) for x in (q * factor, cosine))
    return maps.number_or_array(square), maps.number_or_array(cosine)


def token_trajectory(
    depth: int,
    tokens: Scalar,
    sigma_w: Scalar = 1.0,
    *,
    qk_scale: Scalar = 1.0,
    skip_scale: Scalar = 0.0,
    branch_scale: Scalar = 1.0,
    order: str = "",
    c0: Scalar = 0.0,
    width: float = math.inf,
    head: float = math.inf,
) -> TokenTrajectory:
    """Tokens behind each of `depth` layers x <- a x + b f(x), f attention, for inputs of mean square 1 and cosine c0.

    order: "pre" for a x + b f(norm(x)), "post" for norm(a x + b f(x)), "" without a norm.

    Query, key, value and output weights have standard deviation sigma_w/sqrt(width): logits of tokens of mean square q
    have sigma = qk_scale sigma_w^2 q, values sigma_w^4 q; behind a norm q is 1. Neglected orders add up. Tokens are
    taken as equally far from one another; without a skip they no longer are behind the first layer, and the distance
    from 1 that is left of a cosine is larger, if small: behind the second of 64 tokens at sigma = 0.5, 6e-4 for 1e-4.

    >>> tokens = jaxstab.theory.token_trajectory(100, tokens=16, qk_scale=0.0, skip_scale=1.0, branch_scale=0.1)
    >>> float(tokens.correlation[-1].round(4))  # (e - 1)/(e + T - 1) = 0.0970 as depth grows
    0.0963
    """
    _require_layers(depth)
    require_choice(order, ("", *ORDERS), "order of norm and branch")
    c, tokens, w, qk, a, b = maps.broadcast(c0, tokens, sigma_w, qk_scale, skip_scale, branch_scale)
    log_q, error, rows = np.zeros_like(c), np.zeros_like(c), np.empty((2, *c.shape, depth))
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(depth):
            attended = np.zeros_like(log_q) if order else log_q  # ln of the mean square of what f is given
            sigma, scale = qk * w**2 * np.exp(attended), b * w**2 * np.exp((attended - log_q) / 2)
            factor, c, own = _layer(c, tokens, np.asarray(sigma), a, np.asarray(scale), width, head)
            log_q, error = np.where(order == "post", 0.0, log_q + maps.log_of(factor)), error + own
            rows[..., i] = np.where(error <= MOST_ERROR, [log_q, c], np.nan)
    return TokenTrajectory(*rows)


def _layer(
    c: np.ndarray,
    tokens: np.ndarray,
    sigma: np.ndarray,
    skip_scale: np.ndarray,
    branch_scale: np.ndarray,
    width: float,
    head: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(factor on the mean square, next cosine, what of either is neglected), of one shape."""
    tokens, s2 = _effective(tokens, sigma, c)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        own = (1 - c) * np.exp(s2) / tokens
        product = c + (1 - c) * np.exp(c * s2) / tokens
        factor = skip_scale**2 + branch_scale**2 * (c + own)
        cosine = (skip_scale**2 * c + branch_scale**2 * product) / factor
        neglected = own * (np.expm1(4 * s2) / tokens + s2**2 / head) + s2 * (1 - c) ** 2 / width
        error = branch_scale**2 * neglected / factor
    return np.asarray(factor), np.asarray(np.minimum(cosine, 1.0)), np.asarray(error)


def attention_entropy(tokens: Scalar, sigma: Scalar, c: Scalar = 0.0) -> float | np.ndarray:
    """Mean entropy [nat] of a query's shares: ln T - s^2/2, s^2 = sigma^2 (1 - c). Arrays that broadcast.

    NaN where the next order, at most s^2 e^(s^2)/T, may be more than a twentieth of it: well below s = sqrt(2 ln T),
    where a few keys take all.

    >>> jaxstab.theory.attention_entropy(1024, np.arange(4)).round(4)
    array([6.9315, 6.4315, 4.9315,    nan])
    """
    tokens, s2 = _effective(*maps.broadcast(tokens, sigma, c))
    entropy = np.log(tokens) - s2 / 2
    with np.errstate(over="ignore"):
        holds = s2 * np.exp(s2) / tokens <= entropy / 20
    return maps.number_or_array(np.where(holds, entropy, np.nan))


def attention_concentration(tokens: Scalar, sigma: Scalar, c: Scalar = 0.0) -> float | np.ndarray:
    """T times the mean sum of squares of a query's shares: e^(s^2). 1 where all are alike, T where one takes all.

    Arrays that broadcast. NaN where the next order, 2 e^(2 s^2)/T of it, passes `MOST_ERROR`: before the entropy's.

    >>> jaxstab.theory.attention_concentration(1024, np.arange(3)).round(3)
    array([1.   , 2.718,   nan])
    """
    tokens, s2 = _effective(*maps.broadcast(tokens, sigma, c))
    with np.errstate(over="ignore"):
        holds = 2 * np.expm1(2 * s2) / tokens <= MOST_ERROR
        return maps.number_or_array(np.where(holds, np.exp(s2), np.nan))


def _effective(tokens: np.ndarray, sigma: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, NaN where there are none or c is no cosine; variance of the logits that softmax sees)."""
    possible = np.where((tokens >= 1) & (np.abs(c) <= 1), tokens, np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        return possible, np.where(tokens > 1, sigma**2 * (1 - c), 0.0)  # of one token the share is 1


def uniform_blocks(
    order: str, depth: int, tokens: Scalar, *, branch_scale: Scalar = 1.0, c0: Scalar = 0.0
) -> UniformBlocks:
    """Sublayers of uniform attention, all logits 0: x + b f(norm(x)) (pre), or norm(x + b f(x)) (post).

    Inputs have mean square 1 and cosine c0, values their input's mean square; the cotangent has N(0, 1) entries and
    stands behind the last norm, which a pre-norm stack has before its read-out. f makes all tokens one: it multiplies
    what they have in common, M of the gradient, and the rest, D, passes by. With r = c + (1 - c)/T, forward and back:
    pre Q' = Q + b^2 r, M *= 1 + b^2/Q; post M *= (1 + b^2)/(1 + b^2 r), D /= 1 + b^2 r. M is 1/T at first and stays so
    once tokens are one: a post-norm gradient does not vanish. As the width grows.

    >>> stack = jaxstab.theory.uniform_blocks("post", 24, tokens=16)
    >>> float(stack.gradient[12].round(4)), float(stack.gradient[0].round(2))
    (0.063, 1.0)
    """
    require_choice(order, ORDERS, "order of norm and branch")
    _require_layers(depth)
    tokens, b2, c = maps.broadcast(tokens, np.square(branch_scale), c0)
    tokens, _ = _effective(tokens, b2, c)
    q, rows = np.ones_like(c), np.empty((3, *c.shape, depth + 1))
    mixed = np.empty((*c.shape, depth))
    for i in range(depth):
        rows[:2, ..., i], mixed[..., i] = (q, c), c + (1 - c) / tokens
        c = (q * c + b2 * mixed[..., i]) / (q + b2 * mixed[..., i])
        q = q + b2 * mixed[..., i] if order == "pre" else q
    rows[:2, ..., depth] = q, c
    common, rest = 1 / tokens / q, (1 - 1 / tokens) / q
    rows[2, ..., depth] = common + rest
    for i in reversed(range(depth)):
        norm = 1.0 if order == "pre" else 1 + b2 * mixed[..., i]
        common, rest = common * (1 + b2 / rows[0, ..., i]) / norm, rest / norm
        rows[2, ..., i] = common + rest
    return UniformBlocks(*rows)


def _require_layers(depth: int) -> None:
    if depth < 1:
        raise UsageError(f"depth={depth}: at least 1 is wanted.")
