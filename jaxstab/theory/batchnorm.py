"""What batch norm does to a stack whatever the weights' scale: every unit's signal, and gradients of ReLU that grow."""

from __future__ import annotations

import numpy as np

from jaxstab.theory import activations, maps
from jaxstab.typing import Activation, Scalar

NODES = 8192
"""Points of the quadrature over one entry's law."""


def batch_norm_moments(activation: Activation, batch: int) -> tuple[float, float]:
    """(E[h], E[h^2]) of h = phi(batch norm(W h_before)), as the width grows, for a batch of two inputs or more.

    W's entries have mean 0. Over the batch a unit's y behind the norm has mean 0 and mean square 1, in a direction
    that inputs do not prefer: independent inputs do not, nor does what a layer makes of them. So y is uniform on a
    sphere of d = B - 1 dimensions, and each entry sqrt(d) cos(t), t of density ~ sin(t)^(d - 2) (Yang et al. 2019,
    arXiv:1902.08129). A norm's epsilon is left out. Relative error below 1e-6.

    >>> [round(value, 4) for value in jaxstab.theory.batch_norm_moments("relu", 16)]
    [0.4056, 0.5]
    """
    phi, d = activations.resolve(activation), batch - 1
    if d == 1:
        y, weight = np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    else:
        reach = min(np.pi / 2, 12 / np.sqrt(d))
        t = reach * ((2 * np.arange(NODES) + 1) / NODES - 1)  # from the equator
        log_weight = (d - 2) * np.log(np.cos(t))
        y, weight = np.sqrt(d) * np.sin(t), np.exp(log_weight - log_weight.max())
    h = activations.evaluate(phi, y)
    return tuple(float(np.average(power, weights=weight)) for power in (h, h * h))  # type: ignore[return-value]


def batch_norm_growth(batch: Scalar) -> float | np.ndarray:
    """Factor on a gradient's second moment per layer on the way back through h = ReLU(batch norm(W h_before)).

    batch: B inputs, or an array of such numbers. As the width grows; tends to pi/(pi - 1) for large batches (Yang et
    al. 2019, arXiv:1902.08129); for finite ones derived here. NaN below 4, where the mean of 1/variance over a batch
    diverges. At 4 the mean of its square still does, and typical networks stay below the factor.

    Over the batch a unit's y behind the norm is uniform on a sphere of B - 1 dimensions, with correlation -1/(B - 1),
    and its gradient has the covariance P = I - 11'/B up to a factor. With D = ReLU'(y), u = E[h^2] - E[h h'], and so
    B/(u (B - 3)) for the mean of 1/variance, the factor is that times the mean of tr(D P D P) - y'DPDy/B, over B - 1.

    >>> jaxstab.theory.batch_norm_growth(np.array([3, 8, 64, 10**9])).round(4)
    array([   nan, 1.7882, 1.4931, 1.4669])
    """
    (size,) = maps.broadcast(batch)
    size = np.where(size >= 4, size, np.nan)
    correlation = -1 / (size - 1)
    both_on = 0.25 + np.arcsin(correlation) / (2 * np.pi)
    product = (np.sqrt(1 - correlation**2) + correlation * (np.pi - np.arccos(correlation))) / (2 * np.pi)
    pairs = size * (size - 1)
    on_square, sum_square = size / 2 + pairs * both_on, size / 2 + pairs * product  # of the sums over a batch
    trace = size / 2 - 1 + on_square / size**2
    along = 0.5 - sum_square / size**2
    return maps.number_or_array((trace - along) * size / ((0.5 - product) * (size - 3) * (size - 1)))
