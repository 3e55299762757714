"""In which layer a floating-point format ends a stack's signal or gradient, as a law over random networks.

Before any walk is made, the mean-field scale with a generous margin for finite width says whether anything can
break at all: where it cannot, the answer is 0 and costs nothing. Plain stacks are then walked (`rowwalk`,
`rowgradient`); for other kinds no law is known here, and all is NaN.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from jaxstab.errors import require_choice
from jaxstab.theory import entries, rowgradient, rowwalk
from jaxstab.theory.activations import ACTIVATIONS, is_homogeneous, resolve
from jaxstab.theory.floats import FLOATS, flushes_subnormals, largest_of, range_of
from jaxstab.typing import Activation

WEIGHTS = ("gaussian", "independent", "orthogonal")
"""Laws of the weights: Gaussian; independent entries of another law (uniform, truncated); Haar-orthogonal."""
WALKS, ROWS = 1024, 64  # of a larger batch 64 rows are walked, each for several inputs
_MANY = 8192  # layers times rows from which on fewer walks are made, for their memory
_LEVEL = 0.95
NAMES = tuple(
    name
    for direction in ("forward", "backward")
    for what, share in (("bad", "break"), ("lost", "lost"))
    for name in (
        *(f"first_{what}_layer_{direction}{end}" for end in ("", "_low", "_high")),
        f"{share}_fraction_{direction}",
    )
)
_RARE = 1e-4  # a smaller share of networks is none
_DEVIATIONS = 8.0  # of ln(mean square), whose variance is about 5 L/n (Hanin & Nica 2018)
_DECADES = 1.0  # more margin, for what is not of that order


def forecast(
    activation: Activation,
    *,
    kind: str,
    width: int,
    depth: int,
    batch: int,
    sigma_w: np.ndarray,
    sigma_b: np.ndarray,
    branch_scale: np.ndarray,
    dtype: str,
    log10_forward_rms: np.ndarray,
    log10_backward_rms: np.ndarray,
    weights: str = "gaussian",
) -> dict[str, np.ndarray]:
    """Where networks break: for each of `NAMES` an array [point].

    sigma_w, sigma_b, branch_scale: [point]; weights have standard deviation sigma_w/sqrt(width), biases sigma_b.
    log10_forward_rms, log10_backward_rms: [point, layer], as the width grows.

    first_X_layer_D: the median, *_low and *_high the 2.5 % and 97.5 % quantiles, among the networks that break (X =
    bad: a number is inf or NaN) or whose layer is all zero (X = lost); counting from 1. The median is 0 where fewer
    than half do; low and high are NaN where fewer than one in 10,000 do. break_fraction_D, lost_fraction_D: the
    share of networks that do. Inputs and cotangents are N(0, 1), `batch` of them.

    Derived: leading order in 1/width, checked against measurement; `experiments.benchmarks.forecasts` has by how
    much it errs. All of a point is NaN where something may break and the law is not known: stacks that are not
    plain, formats other than `FLOATS`, mean-field scales that are NaN, weights near the ends of the format itself.
    branch_scale only ever matters to a residual stack's scales, which are given.
    """
    require_choice(weights, WEIGHTS, "law of the weights")
    gain, bias, forward, backward, _ = (
        np.asarray(x, np.float64)
        for x in (sigma_w, sigma_b, log10_forward_rms, log10_backward_rms, branch_scale)
    )
    found = {name: np.full(gain.shape, np.nan if name.endswith(("_low", "_high")) else 0.0) for name in NAMES}
    may = _may_break(activation, kind, width, depth, batch, dtype, forward, backward)
    unknown = np.isnan(forward).any(axis=1) | np.isnan(backward).any(axis=1)
    unknown |= may & ((kind != "plain") | (dtype not in FLOATS) | _weights_leave(gain, width, dtype))
    for values in found.values():
        values[unknown] = np.nan
    for point in np.flatnonzero(may & ~unknown):
        numbers = (float(gain[point]), float(bias[point]))
        with np.errstate(divide="ignore"):  # the logarithm of a weight or of a slope that is 0
            one = _of_plain(activation, width, depth, batch, *numbers, dtype, weights == "orthogonal")
        for name, value in zip(NAMES, one, strict=True):
            found[name][point] = value
    return found


def _may_break(
    activation: Activation,
    kind: str,
    width: int,
    depth: int,
    batch: int,
    dtype: str,
    forward: np.ndarray,
    backward: np.ndarray,
) -> np.ndarray:
    """Whether anything can break, [point]: rms beyond the format's ends by a margin that no network crosses."""
    limits = range_of(dtype)
    margin = _DECADES + _DEVIATIONS * math.sqrt(5 * depth / width) / (2 * math.log(10))
    above = math.log10(limits.overflow / largest_of(batch * width)) - margin
    below = math.log10(limits.vanishing(flushes_subnormals(dtype))) + margin
    scales = np.concatenate([forward, backward], axis=1)
    if kind == "residual":
        # means that add up in h add up in the gradient too: E g_0^2 >= E h_L^2 / n E h_0^2 (Euler's theorem)
        above, scales = above - 0.5, np.concatenate([scales, backward + np.maximum(forward, 0.0)], axis=1)
    if kind == "plain" and not is_homogeneous(activation):  # products of both, see `entries.Ends`
        above_product = above - math.log10(largest_of(batch * width))
        scales = np.concatenate([scales, forward + backward + above - above_product], axis=1)
    with np.errstate(invalid="ignore"):
        beyond = (np.max(scales, axis=1) > above) | (np.min(scales, axis=1) < below)
    return beyond | (kind == "plain" and _may_die(activation, width, depth))


def _may_die(activation: Activation, width: int, depth: int) -> bool:
    """Whether a layer may be all zero by chance, as of 2^-width for one input to a ReLU: at small widths."""
    if is_homogeneous(activation) and isinstance(activation, str) and activation != "relu":
        return False
    if depth * 0.5**width < _RARE:
        return False
    return bool(np.any(np.isinf(entries.ends(resolve(activation), "float32").zero)))


def _weights_leave(sigma_w: np.ndarray, width: int, dtype: str) -> np.ndarray:
    """Whether weights overflow the format, or are so small that it rounds them coarsely or to zero."""
    limits, std = range_of(dtype), np.abs(sigma_w) / math.sqrt(width)
    least = 8 * (limits.smallest_normal if flushes_subnormals(dtype) else limits.smallest_subnormal)
    return (std * largest_of(width**2) > limits.overflow / 2) | ((std < least) & (std > 0))


@functools.lru_cache(maxsize=512)
def _of_plain(
    activation: Activation,
    width: int,
    depth: int,
    batch: int,
    sigma_w: float,
    sigma_b: float,
    dtype: str,
    orthogonal: bool,
) -> tuple[float, ...]:
    """The forecast for one plain stack, in the order of `NAMES`."""
    phi, rows = resolve(activation), min(batch, ROWS)
    walks = WALKS if depth * rows <= _MANY else WALKS // 4
    laws = (
        entries.ends(phi, dtype),
        entries.moments(phi, dtype),
        entries.moments(ACTIVATIONS["linear"], dtype),
    )
    numbers = width, depth, batch, abs(sigma_w), sigma_b, dtype
    stack = rowwalk.Stack(*numbers, *laws, orthogonal, walks, rows)
    signal = rowwalk.walk_signal(stack)
    laws = (signal.bad, signal.lost, *rowgradient.walk_gradient(stack, signal))
    return tuple(value for law in laws for value in _summary(np.mean(law, axis=1)))


def _summary(probability: np.ndarray) -> tuple[float, float, float, float]:
    """(median, low, high, share) of a law of layers [layer] that may sum to less than 1."""
    share = min(float(np.sum(probability)), 1.0)
    if share < _RARE:
        return 0.0, math.nan, math.nan, 0.0
    cumulative = np.cumsum(probability) / np.sum(probability)
    levels = np.array([0.5, (1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    median, low, high = (np.searchsorted(cumulative, levels - 1e-12) + 1.0).tolist()
    return median if share >= 0.5 else 0.0, low, high, share
