"""How far networks of finite width scatter around the infinite one: where mean-field numbers may be trusted.

To leading order in 1/width the logarithm of a mean square is a sum of small independent terms, one a layer: its
variance says both how widely networks scatter and, halved, how far the typical one lies below the mean. Hanin &
Nica 2018 (arXiv:1812.05994) for ReLU, where the variance is 5 L/n after L layers of width n.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from jaxstab.theory.activations import homogeneous_slopes, resolve
from jaxstab.theory.moments import second_moment_slope
from jaxstab.theory.sampling import sampled
from jaxstab.theory.trajectories import Trajectory
from jaxstab.typing import Activation, Function


def displacements(
    activation: Activation,
    walked: Trajectory,
    *,
    kind: str,
    width: int,
    sigma_b: np.ndarray,
    branch_scale: np.ndarray,
    orthogonal: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """How far typical networks stray from mean field, in ln of the mean square.

    Of a layer's output, and of the gradient with respect to it. For one input of N(0, 1) entries and a cotangent of
    N(0, 1) entries; Gaussian weights, each layer its own, or orthogonal ones, which keep lengths and so add 2/n
    less a layer.

    walked: as of `trajectory`, [point, layer]; sigma_b, branch_scale: [point]. Returns two arrays [point, layer]:
    the greater of half the variance over networks, and of the drift of the mean of the logarithm. Both are 5 L/2n
    for ReLU. Forward, what a layer finds is multiplied by d ln Q / d ln q, so that deviations die out at a stable
    fixed point and grow at an unstable one; backward nothing dies out, and what the forward pass does to slopes counts.
    """
    forward, backward, follows, bends = _by_layer(activation, walked, kind, sigma_b, branch_scale)
    if orthogonal and kind == "plain":
        forward, backward = np.maximum(forward - 2 * follows**2, 0.0), np.maximum(backward - 2.0, 0.0)
    points, layers = forward.shape
    variance = np.full((points, layers + 1), 2.0)  # of the input's own length at first
    drift = variance / 2
    for i in range(layers):
        variance[:, i + 1] = np.minimum(forward[:, i] + follows[:, i] ** 2 * variance[:, i], 1e100)
        drift[:, i + 1] = np.minimum(forward[:, i] / 2 + follows[:, i] * drift[:, i], 1e100)
    behind = np.empty_like(forward)
    # sensitive: d ln E[g^2] / d ln E[h^2], through all slopes above; the others: what the layers above add
    sensitive, bent, own, noise = np.zeros(points), np.zeros(points), np.ones(points), np.full(points, 2.0)
    for i in reversed(range(layers)):
        scatter = noise + sensitive**2 * variance[:, i + 1]
        behind[:, i] = np.maximum(scatter / 2, own + np.abs(bent))
        noise = noise + backward[:, i] + sensitive**2 * forward[:, i]
        own = own + backward[:, i] / 2
        bent = bent + bends[:, i] * drift[:, i]
        sensitive = np.clip(bends[:, i] + follows[:, i] * sensitive, -1e100, 1e100)
    return np.maximum(variance / 2, drift)[:, 1:] / width, behind / width


def reuse_excess(
    activation: Activation, walked: Trajectory, *, width: int, sigma_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What one matrix for all steps adds to ln of the mean square of the signal and of the gradient: [point, step].

    Of a linear stack after l steps ln(sinh(x)/x) with x = l (l + 1)/2n, the trace of a power of a Gaussian matrix
    (Ginibre's ensemble), and to leading order l^4/24n^2. Forward, deviations die out as d ln Q/d ln q has it, and l
    is the number of steps that are remembered; backward all are. An estimate of where the law of fresh weights ends.
    """
    _, _, follows, _ = _by_layer(activation, walked, "plain", sigma_b, np.ones(len(sigma_b)))
    forward, memory, excess = np.empty_like(follows), np.zeros(len(follows)), np.zeros(len(follows))
    for step in range(follows.shape[1]):
        memory = 1 + np.abs(follows[:, step]) * memory
        excess = np.abs(follows[:, step]) * excess + memory**3 / (6 * width**2)
        forward[:, step] = excess
    behind = np.arange(follows.shape[1])[::-1] ** 4 / (24 * width**2)
    return forward, np.broadcast_to(behind, forward.shape)


def _by_layer(
    activation: Activation, walked: Trajectory, kind: str, sigma_b: np.ndarray, branch_scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What each layer adds and passes on, [point, layer]: four arrays.

    The variances it adds to ln E[h^2] and to ln E[g^2], times the width; the slopes of ln E[h^2] and of ln of the
    gradient's factor in ln of the mean square that comes in.
    """
    log_square, fourth, slope_fourth, elastic, bends = _moments(activation, walked.log_q)
    with np.errstate(invalid="ignore", over="ignore"):
        weights = np.clip(1 - np.exp(2 * np.log(np.abs(sigma_b) + 1e-300)[:, None] - walked.log_q), 0.0, 1.0)
    if kind == "normalized":
        zeros = np.zeros_like(fourth)
        return fourth - 1, slope_fourth - 1, zeros, zeros - 1.0
    elastic, bends = elastic * weights, bends * weights
    if kind != "residual":
        return fourth - 1, slope_fourth - 1, elastic, bends
    with np.errstate(invalid="ignore", over="ignore"):
        scale = branch_scale[:, None] ** 2
        share = np.minimum(scale * np.exp(np.minimum(log_square - walked.log_square, 50.0)), 1.0)  # of E[h^2]
        step = 1 - np.exp(-walked.log_step)  # of the way through the branch in the gradient's factor
    added = 4 * share * (1 - share) + share**2 * (fourth - 1)
    added_back = 4 * step * (1 - step) + step**2 * (slope_fourth - 1)
    return added, added_back, 1 - share + share * elastic, step * bends


def _moments(activation: Activation, log_q: np.ndarray) -> list[np.ndarray]:
    """The quantities of `_table` at each ln q: straight lines between its points are as good as any estimate."""
    grid, columns = _table(resolve(activation))
    return [np.where(np.isnan(log_q), np.nan, np.interp(log_q, grid, column)) for column in columns]


@functools.lru_cache(maxsize=256)
def _table(phi: Function) -> tuple[np.ndarray, np.ndarray]:
    """(ln q, quantities [quantity, point] there).

    ln E[phi^2]; E[phi^4]/E[phi^2]^2; 3 E[phi'^4]/E[phi'^2]^2; d ln E[phi^2]/d ln q; d ln E[phi'^2]/d ln q.
    """
    grid = np.linspace(math.log(1e-18), math.log(1e18), 512)
    slopes = homogeneous_slopes(phi)
    if slopes is not None:
        square = np.float64(slopes[0] ** 2 + slopes[1] ** 2) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            fourth = 3 * (slopes[0] ** 4 + slopes[1] ** 4) / 2 / square**2
            columns = np.log(square) + grid, fourth + 0 * grid, fourth + 0 * grid, 1 + 0 * grid, 0 * grid
        return grid, np.stack(columns)
    q, nodes = np.exp(grid), sampled(phi)
    value, slope = nodes.value**2, nodes.slope**2
    functions = np.stack([value, value**2, slope, slope**2, nodes.radius**2 * slope])
    square, fourth, of_slope, slope_fourth, twisted = nodes.mean(functions, q)
    with np.errstate(divide="ignore", invalid="ignore"):
        elastic = q * second_moment_slope(phi, q) / square
        bends = (twisted / q / of_slope - 1) / 2
        columns = np.log(square), fourth / square**2, 3 * slope_fourth / of_slope**2, elastic, bends
    return grid, np.stack(columns)
