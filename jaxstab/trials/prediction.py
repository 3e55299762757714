"""Theory's twin of a propagation trial: the same variable names, from the infinitely wide network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxstab.errors import UsageError
from jaxstab.nets import initializers
from jaxstab.nets.stacks import GAUSSIAN
from jaxstab.theory import activations, finite_width, floats
from jaxstab.theory.trajectory import Trajectory, trajectory

LN_10 = math.log(10.0)
VARIABLES = (
    "forward_mean", "forward_std", "forward_rms", "zero_fraction", "saturated_fraction", "correlation",
    "backward_rms", "weight_gradient_rms", "log10_forward_rms", "log10_backward_rms",
)  # fmt: skip
FORECASTS = (
    "first_bad_layer_forward", "first_bad_layer_backward", "first_lost_layer_forward", "first_lost_layer_backward",
    "loss_scale",
)  # fmt: skip


def sigmas(spec: Any, hparams: Any) -> tuple[float, float]:
    """(sigma_w, sigma_b): standard deviation of a weight times sqrt(width), and of a bias."""
    sigma_w = (
        initializers.weight_std(spec.init, spec.width, spec.width) * math.sqrt(spec.width) * hparams.gain
    )
    own = initializers.bias_std(spec.init, spec.width)
    return abs(sigma_w), math.hypot(hparams.sigma_b, own)


def has_theory(spec: Any) -> bool:
    """Whether mean-field theory speaks of this Spec: weights of mean 0, and no gates."""
    return spec.kind != "lstm" and spec.init != "constant"


def has_spread(spec: Any) -> bool:
    """Whether the law over networks of this width is known: Gaussian weights, each layer's its own."""
    return spec.kind == "plain" and spec.init in GAUSSIAN


def predict(spec: Any, hparams: Any) -> dict[str, np.ndarray]:
    """What `propagation` measures, as the width grows, [layer], and 95 % of networks of this width as *_low, *_high.

    NaN where no theory is known. The bounds are of finite width only (`theory.finite_width`): exact for linear and
    ReLU stacks without bias. Layers that break are forecast as those of the Spec's dtype.

    A recurrent stack's variances are those of the plain one: using one matrix at every step changes the joint law
    over steps, not the law of each (Yang 2019, arXiv:1902.04760). Backward, as if the way back had weights of its
    own, which holds for a read-out that is independent of them.
    """
    if not has_theory(spec):
        nothing = dict.fromkeys(VARIABLES, np.full(spec.depth, np.nan))
        return nothing | _spread(spec, 0.0, 0.0) | dict.fromkeys(FORECASTS, np.asarray(np.nan))
    sigma_w, sigma_b = sigmas(spec, hparams)
    walked = trajectory(
        spec.activation, spec.depth, sigma_w, sigma_b, kind="plain" if spec.kind == "recurrent" else spec.kind,
        branch_scale=hparams.branch_scale, c0=0.0 if spec.batch > 1 else None,
    )  # fmt: skip
    variables = _variables(walked, spec.batch)
    return variables | _spread(spec, sigma_w, sigma_b) | _forecast(spec, variables)


def _variables(walked: Trajectory, batch: int) -> dict[str, np.ndarray]:
    values = {
        "forward_mean": walked.mean,
        "forward_std": walked.std,
        "forward_rms": walked.rms,
        "zero_fraction": walked.zero_fraction,
        "saturated_fraction": walked.saturated_fraction,
        "correlation": walked.correlation,
        "backward_rms": walked.gradient_rms,
        "weight_gradient_rms": math.sqrt(batch) * walked.weight_gradient_rms,
        "log10_forward_rms": walked.log_square / (2 * LN_10),
        "log10_backward_rms": walked.log_gradient / (2 * LN_10),
    }
    assert tuple(values) == VARIABLES
    return values


def _spread(spec: Any, sigma_w: float, sigma_b: float) -> dict[str, np.ndarray]:
    """Bounds of 95 % of networks, NaN where their law is not known."""
    bounds = {f"{name}_{end}": np.full(spec.depth, np.nan) for name in VARIABLES for end in ("low", "high")}
    if not has_spread(spec) or sigma_w == 0:
        return bounds
    arguments = (spec.activation, spec.width, spec.depth, spec.batch, sigma_w, sigma_b)
    for direction, interval in (
        ("forward", finite_width.log10_rms_interval(*arguments)),
        ("backward", finite_width.log10_rms_interval_backward(*arguments)),
    ):
        for end, value in (("low", interval.low), ("high", interval.high)):
            bounds[f"log10_{direction}_rms_{end}"] = value
            with np.errstate(over="ignore"):
                bounds[f"{direction}_rms_{end}"] = 10.0**value
    return bounds


def _forecast(spec: Any, variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Where the dtype ends, in the direction of travel, and the loss scale that keeps every gradient in it.

    `loss_scale` is NaN where no single scale does.
    """
    count, phi, found = spec.batch * spec.width, activations.resolve(spec.activation), {}
    for direction, forth in (("forward", 1), ("backward", -1)):
        travelled = variables[f"log10_{direction}_rms"][::forth]
        for what, first in (("bad", floats.first_overflow_layer), ("lost", floats.first_underflow_layer)):
            step = int(first(travelled, spec.dtype, count))
            layer = step if forth == 1 or step == 0 else spec.depth + 1 - step
            found[f"first_{what}_layer_{direction}"] = np.asarray(float(layer))
    dead = 0 < found["first_lost_layer_forward"] < spec.depth
    if (
        dead
        and spec.kind == "plain"
        and activations.evaluate(activations.derivative(phi), np.zeros(1))[0] == 0
    ):
        # where every input of the last activation is zero and so is its slope there, no gradient begins
        found["first_lost_layer_backward"] = np.asarray(float(spec.depth - 1))
    try:
        scale = floats.loss_scale(variables["log10_backward_rms"], spec.dtype, count)
    except UsageError:
        scale = math.nan
    return found | {"loss_scale": np.asarray(scale)}
