"""Theory's twin of a propagation trial: the same variable names, from the infinitely wide network."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np

from jaxstab.nets import initializers
from jaxstab.nets.weights import GAUSSIAN
from jaxstab.theory import activations, breaking, finite_width, floats, fluctuations
from jaxstab.theory.trajectories import Trajectory, trajectory
from jaxstab.trials import parts
from jaxstab.trials.family import Vectorized
from jaxstab.trials.parts import FARTHEST, LN_10, NARROWEST, leaves_float32, roughly_out_of_range
from jaxstab.trials.scales import by_layer, is_by_layer, sigmas

VARIABLES = (
    "forward_mean", "forward_std", "forward_rms", "zero_fraction", "saturated_fraction", "correlation",
    "backward_rms", "weight_gradient_rms", "log10_forward_rms", "log10_backward_rms",
)  # fmt: skip
FORWARD = tuple(name for name in VARIABLES if "gradient" not in name and "backward" not in name)
BACKWARD = ("backward_rms", "log10_backward_rms")
BACKWARD_STORED = ("backward_rms", "weight_gradient_rms")
INTERVALS = tuple(
    f"{name}_{end}"
    for name in ("forward_rms", "backward_rms", "log10_forward_rms", "log10_backward_rms")
    for end in ("low", "high")
)
MOST_REMEMBERED = 64
"""Configurations whose walk through the layers is kept for whoever asks again."""
MOST_DEAD = 0.05
"""Share of networks in which one input's layer is all zero."""
MOST_EXCESS = 0.05
"""Of a mean square over what mean field says, where paths through the layers add up instead of averaging out."""

UNKNOWN_GRADIENT = "no loss scale: the gradient of such networks is not known."


def has_theory(spec: Any, hparams: Any) -> bool:
    """Whether mean-field theory speaks of these stacks: kinds that it walks, weights of mean 0."""
    is_block = spec.kind in ("pre_ln", "post_ln") and spec.sublayers == "ffn"
    is_walked = spec.kind in ("plain", "residual", "normalized", "rms_norm") or (
        spec.kind in ("recurrent", "convolution") and not hparams.dropout
    )
    if not (is_walked or is_block) or not isinstance(spec.init, str) or spec.init == "constant":
        return False
    if isinstance(hparams.gain, tuple) and spec.kind == "recurrent":
        return False
    # a scheme's own biases follow the width, and layers are told one sigma_b
    return not (isinstance(spec.width, tuple) and initializers.bias_std(spec.init, 1))


def has_range(spec: Any, hparams: Any) -> np.ndarray:
    """Of which stacks it is derived where networks of finite width leave mean field, and where they break."""
    is_simple = spec.kind in ("plain", "residual", "normalized", "recurrent") and spec.branch_matrices == 1
    is_simple = is_simple and not is_by_layer(spec, hparams)
    is_whole = (np.asarray(hparams.skip_scale) == 1) | (spec.kind != "residual")
    return np.asarray(is_whole & (is_simple and not hparams.dropout))


def has_spread(spec: Any) -> bool:
    """Whether the law over networks of this width is known: Gaussian weights, each layer's its own."""
    return spec.kind == "plain" and spec.init in GAUSSIAN


def _walk(spec: Any, hparams: Any) -> tuple[Trajectory, np.ndarray, np.ndarray, np.ndarray]:
    """(the infinitely wide stack's layers, sigma_w, sigma_b, branch_scale), of hyperparameters [configuration]."""
    leaves, structure = jax.tree.flatten(hparams)
    columns = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in leaves))
    if columns[0].size > MOST_REMEMBERED:
        return _walked(spec, jax.tree.unflatten(structure, columns))
    return _remembered(spec, structure, tuple(column.tobytes() for column in columns))


@functools.lru_cache(maxsize=32)
def _remembered(spec: Any, structure: Any, columns: tuple[bytes, ...]) -> tuple[Trajectory, Any, Any, Any]:
    """`_walked`, which a prediction and its explanation ask for again and again; columns as bytes of float64."""
    return _walked(spec, jax.tree.unflatten(structure, [np.frombuffer(column) for column in columns]))


def _walked(spec: Any, hparams: Any) -> tuple[Trajectory, Any, Any, Any]:
    sigma_w, sigma_b = sigmas(spec, hparams)
    branch_scale, rates = hparams.branch_scale, hparams.dropout
    walked = trajectory(
        spec.activation,
        spec.depth,
        sigma_w,
        sigma_b,
        kind=_kind(spec),
        branch_scale=branch_scale,
        skip_scale=hparams.skip_scale,
        branch_matrices=spec.branch_matrices,
        dropout=rates[0] if rates else 0.0,
        c0=0.0 if spec.batch > 1 else None,
        **by_layer(spec, hparams),
    )  # fmt: skip - an argument a line otherwise
    return walked, sigma_w, sigma_b, branch_scale


def _predict(spec: Any, hparams: Any) -> dict[str, np.ndarray]:
    """What `propagation` measures: mean field's values where they hold at this width, 95 % of networks beside them.

    hparams: arrays [configuration]. Returns arrays [configuration, layer], and of where the format ends
    [configuration]. A value by layer is the root of a mean square over networks, or a mean, in exact arithmetic; NaN
    where no theory is known, and where networks of the given width do something else: see `NARROWEST`, `FARTHEST`,
    `MOST_DEAD`, `MOST_EXCESS`. `infinite_width` has it all the same.

    *_low, *_high: 95 % of networks of this width, exact for linear and ReLU stacks without bias
    (`theory.finite_width`). Layers that break are forecast as those of the Spec's dtype (`theory.breaking`).
    """
    if not has_theory(spec, hparams) or spec.kind == "convolution":
        return _in_part(spec, hparams)
    derived = has_range(spec, hparams)
    if not derived.all():
        return _mixed(spec, hparams, derived) if derived.any() else _rough(spec, hparams)
    walked, sigma_w, sigma_b, branch_scale = _walk(spec, hparams)
    values = _variables(walked, spec.batch)
    ends = breaking.forecast(
        spec.activation, kind=spec.kind, width=spec.width, depth=spec.depth, batch=spec.batch, sigma_w=sigma_w,
        sigma_b=sigma_b, branch_scale=branch_scale, dtype=spec.dtype, log10_forward_rms=values["log10_forward_rms"],
        log10_backward_rms=values["log10_backward_rms"], weights=_law_of(spec.init),
    )  # fmt: skip
    for names, fails in _out_of_range(spec, walked, sigma_b, branch_scale):
        for name in names:
            values[name] = np.where(fails, np.nan, values[name])
    return values | _spread(spec, sigma_w, sigma_b) | ends | _loss_scales(spec, values["log10_backward_rms"])


def _in_part(spec: Any, hparams: Any) -> dict[str, np.ndarray]:
    """The same of stacks of which theory knows a part, or nothing."""
    tell = (
        parts.of_images
        if spec.kind == "convolution" and has_theory(spec, hparams)
        else parts.of_batch_norm
        if spec.kind == "batch_norm"
        else parts.of_tokens
        if isinstance(spec.kind, str)
        else parts.of_ones_own
    )  # fmt: skip - a line each otherwise
    told = tell(spec, hparams)
    known = "log10_backward_rms" in told
    scales = _loss_scales(spec, told["log10_backward_rms"]) if known else {}
    return _nothing(spec, len(np.atleast_1d(hparams.sigma_b))) | told | scales


def _rough(spec: Any, hparams: Any) -> dict[str, np.ndarray]:
    """The same of stacks whose range is not derived: `ROUGH_DISPLACEMENT` bounds it; where they break is not known."""
    walked, *_ = _walk(spec, hparams)
    values = _variables(walked, spec.batch)
    fails = [np.broadcast_to(fail, walked.log_q.shape) for fail in roughly_out_of_range(spec)]
    if spec.kind == "residual" and spec.branch_matrices == 1:
        beyond = _excess(walked) / spec.width > MOST_EXCESS
        fails[1:] = [fail | beyond for fail in fails[1:]]
    for names, fail in zip((FORWARD, BACKWARD, ("weight_gradient_rms",)), fails, strict=True):
        for name in names:
            values[name] = np.where(fail, np.nan, values[name])
    silent = _nothing(spec, len(walked.log_q))
    return silent | values | _loss_scales(spec, values["log10_backward_rms"])


def _mixed(spec: Any, hparams: Any, derived: np.ndarray) -> dict[str, np.ndarray]:
    """Each configuration as if it were alone."""
    parts = [
        (rows, _predict(spec, jax.tree.map(lambda x, rows=rows: x[rows], hparams)))
        for rows in (derived, ~derived)
    ]
    order = np.argsort(np.concatenate([np.flatnonzero(rows) for rows, _ in parts]))
    return {name: np.concatenate([told[name] for _, told in parts])[order] for name in parts[0][1]}


def has_digits(spec: Any, log10_rms: np.ndarray) -> np.ndarray:
    """Whether signals of that rms are normal numbers of the Spec's format; not where the rms is not known."""
    limits, count = floats.range_of(spec.dtype), math.prod(spec.shape[:-1]) * max(spec.widths)
    most = math.log10(limits.overflow / floats.largest_of(count))
    return (math.log10(limits.smallest_normal) <= log10_rms) & (log10_rms <= most)


def _predict_in_format(spec: Any, hparams: Any) -> dict[str, np.ndarray]:
    """`_predict`, without what a format that float32 simulates makes of a signal outside its normal numbers.

    Such formats are narrow: there a signal leaves them, and loses most of its digits, long before it is lost.
    """
    told = _predict(spec, hparams)
    if spec.dtype in floats.FLOATS:
        return told
    there, back = (~has_digits(spec, told[f"log10_{way}_rms"]) for way in ("forward", "backward"))
    there = np.logical_or.accumulate(there, axis=1)
    back = np.logical_or.accumulate(back[:, ::-1], axis=1)[:, ::-1] | there[:, -1:]
    for name, values in told.items():
        fails = back if name.startswith(BACKWARD_STORED) else there
        if values.shape[1:2] == (spec.depth,) and not name.startswith("log10"):
            told[name] = np.where(fails.reshape(*fails.shape, *(1,) * (values.ndim - 2)), np.nan, values)
    return told


predict = Vectorized(_predict_in_format)
infinite_width = Vectorized(lambda spec, hparams: _variables(_walk(spec, hparams)[0], spec.batch))
"""`VARIABLES` as the width grows, whatever the Spec's width; of a Spec that `has_theory`.

A recurrent stack's variances are those of the plain one: using one matrix at every step changes the joint law over
steps, not the law of each (Yang 2019, arXiv:1902.04760). Backward, as if the way back had weights of its own, which
holds for a read-out that is independent of them.
"""


def _kind(spec: Any) -> str:
    """The kind of stack whose variances a Spec's are; a norm's mean over units vanishes as the width grows."""
    kind: str = spec.kind
    return {"recurrent": "plain", "rms_norm": "normalized"}.get(kind, kind)


def _nothing(spec: Any, count: int) -> dict[str, np.ndarray]:
    """Of a Spec of which no theory speaks."""
    by_layer = {name: np.full((count, spec.depth), np.nan) for name in (*VARIABLES, *INTERVALS)}
    single = {name: np.full(count, np.nan) for name in (*breaking.NAMES, "loss_scale")}
    return by_layer | single | {"loss_scale_reason": np.full(count, UNKNOWN_GRADIENT)}


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


def _out_of_range(
    spec: Any, walked: Trajectory, sigma_b: np.ndarray, branch_scale: np.ndarray
) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """(names of variables, where a network of this width does something else [configuration, layer])."""
    there, back = fluctuations.displacements(
        spec.activation, walked, kind=_kind(spec), width=spec.width, sigma_b=sigma_b, branch_scale=branch_scale,
        orthogonal=spec.init == "orthogonal",
    )  # fmt: skip
    before = np.concatenate([np.full_like(there[:, :1], 1 / spec.width), there[:, :-1]], axis=1)
    dead = 1 - np.cumprod(1 - walked.zero_fraction**spec.width, axis=1) > MOST_DEAD
    fails = [
        ~(x <= FARTHEST) | lost
        for x, lost in ((there, dead), (back, dead[:, -1:]), (before + back, dead[:, -1:]))
    ]
    if not activations.is_homogeneous(spec.activation):  # its signal is measured in float32, which ends there
        fails[0] = fails[0] | leaves_float32(walked.log_square)
    if spec.kind == "residual":
        excess = _excess(walked) / spec.width
        fails[1:] = [fail | (excess > MOST_EXCESS) for fail in fails[1:]]
    if spec.kind == "recurrent":
        there, back = fluctuations.reuse_excess(spec.activation, walked, width=spec.width, sigma_b=sigma_b)
        both = np.maximum(back[:, :1], there)  # a weight's gradient has steps of both, L in all
        fails = [fail | ~(x <= MOST_EXCESS) for fail, x in zip(fails, (there, back, both), strict=True)]
    if spec.width < NARROWEST:
        fails = [np.full_like(fail, True) for fail in fails]
    return list(zip((FORWARD, BACKWARD, ("weight_gradient_rms",)), fails, strict=True))


def _excess(walked: Trajectory) -> np.ndarray:
    """By how much the squared gradient exceeds mean field's, times the width: [configuration, layer].

    Means that add up in h add up in the gradient: for a homogeneous branch, by Euler's theorem, the sum over units of
    gradient times activation is the same at every layer L and l, so that E[g_l^2] is at least E[h_L^2]/(n E[h_l^2]).
    Measured, 4 to 6 times that; nothing where the branch has mean 0, and E[h^2] grows no faster than E[g^2].
    """
    growth = walked.log_square[:, -1:] - walked.log_square
    with np.errstate(over="ignore"):
        return 5 * np.expm1(np.maximum(growth - walked.log_gradient, 0.0))


def _spread(spec: Any, sigma_w: np.ndarray, sigma_b: np.ndarray) -> dict[str, np.ndarray]:
    """Bounds of 95 % of networks, NaN where their law is not known."""
    bounds = {name: np.full((len(sigma_w), spec.depth), np.nan) for name in INTERVALS}
    if not has_spread(spec):
        return bounds
    known = sigma_w > 0
    arguments = (spec.activation, spec.width, spec.depth, spec.batch, sigma_w[known], sigma_b[known])
    for direction, interval in (
        ("forward", finite_width.log10_rms_interval(*arguments)),
        ("backward", finite_width.log10_rms_interval_backward(*arguments)),
    ):
        for end, value in (("low", interval.low), ("high", interval.high)):
            bounds[f"log10_{direction}_rms_{end}"][known] = value
            with np.errstate(over="ignore"):
                bounds[f"{direction}_rms_{end}"][known] = 10.0**value
    return bounds


def _law_of(init: str) -> str:
    """The law of an initialization's weights, as `theory.breaking` calls it."""
    return "gaussian" if init in GAUSSIAN else "orthogonal" if init == "orthogonal" else "independent"


def _loss_scales(spec: Any, log10_gradient: np.ndarray) -> dict[str, np.ndarray]:
    """The loss scale that keeps every layer's gradient in the format, or NaN and the reason why none does."""
    count = math.prod(spec.shape[:-1]) * max(spec.widths)
    found = [
        (math.nan, UNKNOWN_GRADIENT)
        if np.isnan(row).any()
        else floats.loss_scale_or_reason(row, spec.dtype, count)
        for row in log10_gradient
    ]
    scales, reasons = zip(*found, strict=True)
    return {"loss_scale": np.array(scales), "loss_scale_reason": np.array(reasons)}
