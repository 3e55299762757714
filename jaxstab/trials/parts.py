"""What is known of stacks of which theory knows a part: images, tokens, layers that tell of themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxstab.nets.layers import register
from jaxstab.nets.layers.layer import Numbers
from jaxstab.theory import attention, floats
from jaxstab.theory.batchnorm import batch_norm_moments
from jaxstab.theory.convolutions import profiles
from jaxstab.trials.scales import by_layer, is_by_layer, sigmas

LN_10 = math.log(10.0)
NARROWEST = 8
"""Fewer units a layer are no average: what mean field leaves out, of order 1/width, is then 10 % and more."""
FARTHEST = 1.0
"""How far the ln of a typical network's mean square may lie from mean field's, whose rms is then 0.6 of it."""
ROUGH_DISPLACEMENT = 2.0
"""Times layers over width: how far the ln of a mean square lies from mean field's, where it is not derived.

Measured, 0.6 to 1.6 for blocks before and after a norm and for residual branches of two matrices.
"""
LEAST_VARIANCE = 1e-3
"""Of what a norm divides, which adds 1e-6 to it."""
MOST_LEANING = 2.0
"""Layers times inputs over width: layers of few units come to prefer directions among a batch's inputs.

Measured at 2.5, batch norm's means are off by 3 % (GELU; 2 % of ReLU), and by 28 % at 20, where mean squares are
off by 3 %.
"""


def of_images(spec: Any, hparams: Any) -> dict[str, np.ndarray]:
    """Of convolutions the mean squares over pixels, and by pixel."""
    sigma_w, sigma_b = sigmas(spec, hparams)
    walked = profiles(
        spec.activation,
        spec.depth,
        sigma_w,
        sigma_b,
        kernel=spec.kernel,
        side=spec.side,
        padding=spec.padding,
        gains=by_layer(spec, hparams).get("gains", 1.0),
    )  # fmt: skip - an argument a line otherwise
    there, back, _ = roughly_out_of_range(spec)
    log_there = np.where(there, np.nan, walked.log_square / (2 * LN_10))
    log_back = np.where(back, np.nan, walked.log_gradient / (2 * LN_10))
    with np.errstate(over="ignore"):
        return {
            "forward_rms": 10.0**log_there,
            "backward_rms": 10.0**log_back,
            "log10_forward_rms": log_there,
            "log10_backward_rms": log_back,
            "forward_profile": np.where(there[:, None, None], np.nan, np.exp(walked.log_profile / 2)),
        }


def of_tokens(spec: Any, hparams: Any) -> dict[str, np.ndarray]:
    """Size of tokens and mean cosine within an input, of attention whose weights have mean 0; else nothing."""
    order = {"pre_ln": "pre", "post_ln": "post"}.get(spec.kind, "") if spec.sublayers == "attention" else ""
    is_random = isinstance(spec.init, str) and spec.init != "constant"
    is_known = (order or spec.kind in register.ATTENDING) and is_random and not hparams.dropout
    if not is_known or is_by_layer(spec, hparams):
        return {}
    has_skip = order or spec.kind == "residual_attention"
    walked = attention.token_trajectory(
        spec.depth,
        spec.tokens,
        sigmas(spec, hparams)[0],
        qk_scale=hparams.qk_scale,
        skip_scale=hparams.skip_scale if has_skip else 0.0,
        branch_scale=hparams.branch_scale if has_skip else 1.0,
        order=order,
        width=spec.width,
        head=spec.width // spec.heads,
    )  # fmt: skip - an argument a line otherwise
    far = ROUGH_DISPLACEMENT * np.arange(1, spec.depth + 1) / spec.width > FARTHEST
    fails = far | (spec.width < NARROWEST) | leaves_float32(walked.log_square)
    log_rms = np.where(fails, np.nan, walked.log_square / 2)
    cosine = np.where(fails | (spec.tokens == 1), np.nan, walked.correlation)
    return {"forward_rms": np.exp(log_rms), "log10_forward_rms": log_rms / LN_10, "correlation": cosine}


def of_batch_norm(spec: Any, hparams: Any) -> dict[str, np.ndarray]:
    """Each layer's mean and size behind batch norm, whatever came before it; nothing of one input, or with dropout."""
    is_random = isinstance(spec.init, str) and spec.init != "constant"
    if not is_random or hparams.dropout or spec.batch < 2:
        return {}
    mean, square = batch_norm_moments(spec.activation, spec.batch)
    sigma_w = by_layer(spec, hparams).get("gains", np.reshape(sigmas(spec, hparams)[0], (-1, 1)))
    far = roughly_out_of_range(spec)[0] | (sigma_w**2 * min(square, 1.0) < LEAST_VARIANCE)
    leaning = far | (spec.batch * np.cumsum(1 / np.broadcast_to(spec.widths[1:], spec.depth)) > MOST_LEANING)
    told = {
        "forward_mean": np.where(leaning, np.nan, mean),
        "forward_std": np.where(leaning, np.nan, math.sqrt(max(square - mean**2, 0.0))),
        "forward_rms": np.where(far, np.nan, math.sqrt(square)),
    }
    with np.errstate(divide="ignore"):
        return told | {"log10_forward_rms": np.log10(told["forward_rms"])}


def of_ones_own(spec: Any, hparams: Any) -> dict[str, np.ndarray]:
    """Mean squares that layers of the user's own tell of themselves, where all of them do; else nothing."""
    layers = () if isinstance(spec.kind, str) else spec.layers
    if not layers or not all(hasattr(layer, "predict") for layer in layers):
        return {}
    square, squares, factors = np.ones(np.shape(hparams.sigma_b)), [], []
    for i in range(spec.depth):
        gain = hparams.gain[i] if isinstance(hparams.gain, tuple) else hparams.gain
        square, factor = layers[i % len(layers)].predict(square, Numbers(*hparams)._replace(gain=gain))
        squares.append(np.broadcast_to(square, np.shape(hparams.sigma_b)))
        factors.append(np.broadcast_to(factor, np.shape(hparams.sigma_b)))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        there, steps = np.log(np.stack(squares, axis=-1)), np.log(np.stack(factors, axis=-1))
        back = np.cumsum(steps[:, ::-1], axis=1)[:, ::-1] - steps  # what the layers behind this one do
        told = {}
        for way, log_square, fails in zip(
            ("forward", "backward"), (there, back), roughly_out_of_range(spec), strict=False
        ):
            told[f"log10_{way}_rms"] = np.where(fails, np.nan, log_square / (2 * LN_10))
            told[f"{way}_rms"] = 10.0 ** told[f"log10_{way}_rms"]
    return told


def roughly_out_of_range(spec: Any) -> list[np.ndarray]:
    """Where `ROUGH_DISPLACEMENT` leads too far: forward, backward, of weights' gradients, [layer] each."""
    narrow = 1 / np.broadcast_to(spec.widths[1:], spec.depth)
    there = ROUGH_DISPLACEMENT * np.cumsum(narrow)
    far = (there, there[-1] - there, np.full(spec.depth, there[-1]))
    return [(x > FARTHEST) | (min(spec.widths) < NARROWEST) for x in far]


def leaves_float32(log_square: np.ndarray) -> np.ndarray:
    """Where a signal that is measured in float32 is about to end, one whose scale is not carried apart."""
    return np.abs(log_square / 2) > math.log(floats.FLOATS["float32"].largest) - LN_10
