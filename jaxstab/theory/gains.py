"""Gains: the factor on 1/sqrt(fan_in) that keeps the scale from layer to layer. The edge of chaos."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from jaxstab.errors import UsageError, require_choice
from jaxstab.theory.activations import ACTIVATIONS, is_homogeneous, name_of, resolve
from jaxstab.theory.moments import moments, second_moment_slope
from jaxstab.theory.roots import root_between
from jaxstab.theory.sampling import Q_MIN
from jaxstab.typing import Activation, Function, Scalar

PYTORCH_GAINS: Mapping[str, float] = MappingProxyType(
    {
        "linear": 1.0,
        "relu": math.sqrt(2),
        "leaky_relu": math.sqrt(2 / (1 + 0.01**2)),
        "selu": 3 / 4,
        "sigmoid": 1.0,
        "tanh": 5 / 3,
    }
)
"""What `torch.nn.init.calculate_gain` returns (leaky ReLU: slope 0.01). Conventions, not expectations."""

_ROUNDING = 1e-14  # a variance of the activation below this part of its second moment is rounding


def gain(activation: Activation, kind: str = "forward") -> float:
    """The gain of an activation; weights of standard deviation gain/sqrt(fan_in) then keep

    - `forward`: the second moment of the signal, 1/sqrt(E[phi(z)^2]), z ~ N(0, 1);
    - `backward`: that of the gradient, 1/sqrt(E[phi'(z)^2]);
    - `std`: the standard deviation alone, 1/std(phi(z)): for ReLU 1.7129, not sqrt 2;
    - `pytorch`: what PyTorch's calculate_gain returns, where it has one.

    Error about 1e-12 for any elementwise callable, kinks included. Raises UsageError where there is none.

    >>> round(gain("relu"), 6), round(gain("tanh"), 6), round(gain(lambda x: x**2), 6)
    (1.414214, 1.592537, 0.57735)
    """
    require_choice(kind, ("forward", "backward", "std", "pytorch"), "kind of gain")
    if kind == "pytorch":
        return _pytorch_gain(activation)
    phi = resolve(activation)
    mean, square, slope_square = (float(x) for x in moments(phi, 1.0))
    variance = square - mean**2
    variance = 0.0 if variance <= _ROUNDING * square else variance
    moment = {"forward": square, "backward": slope_square, "std": variance}[kind]
    if not (0 < moment < math.inf):
        raise UsageError(f"{name_of(phi)!r} has no {kind} gain: the moment to be kept is {moment:.3g}.")
    return 1 / math.sqrt(moment)


def critical_initialization(activation: Activation, sigma_b: Scalar = 0.0) -> tuple[float, float]:
    """(sigma_w, sigma_b) at the edge of chaos: chi = 1 at the fixed point q* that this pair has.

    At a fixed point of variance q, chi = sigma_w^2 E[phi'^2] = 1 gives sigma_w, and q = sigma_w^2 E[phi^2] +
    sigma_b^2 leaves one equation in q alone: q - E[phi^2] / E[phi'^2] = sigma_b^2. Its smallest root at which
    the fixed point attracts is returned (Poole et al. 2016; Schoenholz et al. 2017). Where sigma_b = 0 and
    phi(0) = 0, q* = 0 is such a root if it attracts: tanh, sigma_w = 1; but GELU's, SiLU's and Mish's repels.

    Raises UsageError beginning "none:" where there is no such point, and says why. Relative error about 1e-9.

    >>> [round(x, 4) for x in critical_initialization("tanh", 0.2)]
    [1.3041, 0.2]
    """
    phi, sigma_b = resolve(activation), float(sigma_b)
    name = name_of(phi)
    if not (math.isfinite(sigma_b) and sigma_b >= 0):
        raise UsageError(f"sigma_b must be a finite number, 0 or more; got {sigma_b!r}.")
    if not np.any(moments(phi, np.geomspace(1e-3, 1e3, 7)).slope_square > 0):
        raise UsageError(f"none: the slope of {name!r} is zero, and so is chi.")
    if is_homogeneous(phi):
        if sigma_b > 0:
            why = (
                "where chi = 1, any bias lets q grow without bound; its only critical point has sigma_b = 0."
            )
            raise UsageError(f"none: {name!r} is homogeneous; {why}")
        return gain(phi), 0.0
    if sigma_b == 0 and _origin_attracts(phi):
        return 1 / math.sqrt(float(moments(phi, 0.0).slope_square)), 0.0
    for q in _critical_variances(phi, sigma_b):
        sigma_w = 1 / math.sqrt(float(moments(phi, q).slope_square))
        if sigma_w**2 * float(second_moment_slope(phi, q)) <= 1:
            return sigma_w, sigma_b
    raise UsageError(f"none: {name!r} has no attracting fixed point with chi = 1 at sigma_b = {sigma_b:g}.")


def _pytorch_gain(activation: Activation) -> float:
    name = name_of(activation)
    if name not in PYTORCH_GAINS:
        names = ", ".join(PYTORCH_GAINS)
        raise UsageError(f"PyTorch has no gain for {name!r}. It has one for: {names} (of slope 0.01).")
    if resolve(activation) is not ACTIVATIONS[name]:
        why = f"is not PyTorch's {name!r}, whose gain is kind='pytorch' of the name."
        raise UsageError(f"the activation given {why}")
    return PYTORCH_GAINS[name]


def _origin_attracts(phi: Function) -> bool:
    """Whether q -> E[phi^2] / E[phi'^2 at q -> 0+] grows no small q: then q* = 0 is critical and attracts."""
    q = np.geomspace(1e-6, 1e-2, 9)  # the deviation from q is of order q^(3/2) or q^2: seen at these
    _, square, slope = (float(x) for x in moments(phi, 0.0))
    if square > 2 * slope * Q_MIN:
        return False  # phi(0) is not 0, so neither is q*
    return bool(slope > 0 and np.all(moments(phi, q).square <= slope * q * (1 + 1e-12)))


@functools.lru_cache(maxsize=256)
def _critical_variances(phi: Function, sigma_b: float) -> tuple[float, ...]:
    """Every q in [1e-6, 1e8], ascending, with q - E[phi^2] / E[phi'^2] = sigma_b^2."""

    def excess(log_q: np.ndarray) -> np.ndarray:
        q = np.exp(log_q)
        _, square, slope_square = moments(phi, q)
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - (square / slope_square + sigma_b**2) / q

    log_q = np.linspace(math.log(1e-6), math.log(1e8), 701)
    values = np.round(excess(log_q), 10)  # rounding errors of a phi that is linear near 0 are no roots
    change = np.flatnonzero(values[:-1] * values[1:] < 0)  # NaN, where phi is not resolved, is no change
    return tuple(np.exp(root_between(excess, log_q[change], log_q[change + 1])).tolist())
