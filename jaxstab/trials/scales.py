"""Scales of a stack's weights and biases, as theory counts them: one for all layers, or by layer."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from jaxstab.nets import initializers


def sigmas(spec: Any, hparams: Any) -> tuple[Any, Any]:
    """(sigma_w, sigma_b): standard deviation of a weight times sqrt(fan_in), and of a bias; of the numbers' shape.

    Where gains or widths differ by layer, see `by_layer`, sigma_w is that of weights of variance 1/fan_in.
    """
    own = initializers.bias_std(spec.init, _fans(spec)[0][0])
    if is_by_layer(spec, hparams):
        return np.ones(np.shape(hparams.sigma_b)), np.hypot(hparams.sigma_b, own)
    return abs(_scales(spec)[0] * hparams.gain), np.hypot(hparams.sigma_b, own)


def is_by_layer(spec: Any, hparams: Any) -> bool:
    """Whether widths or gains differ from layer to layer."""
    return isinstance(spec.width, tuple) or isinstance(hparams.gain, tuple)


def by_layer(spec: Any, hparams: Any) -> dict[str, Any]:
    """What `trajectory` is told of each layer: gains [configuration, layer], and the widths."""
    if not is_by_layer(spec, hparams):
        return {}
    gain = np.stack(hparams.gain, axis=-1) if isinstance(hparams.gain, tuple) else hparams.gain[..., None]
    return {"gains": abs(gain * _scales(spec)), "widths": spec.width if isinstance(spec.width, tuple) else ()}


def _fans(spec: Any) -> list[tuple[int, int]]:
    """(fan_in, fan_out) of each layer, or those of all."""
    taps = spec.kernel**2 if spec.kind == "convolution" else 1
    return [(taps * m, taps * n) for m, n in itertools.pairwise(spec.widths)]


def _scales(spec: Any) -> np.ndarray:
    """Standard deviation of a weight times sqrt(fan_in), of each layer, or of all, at gain 1."""
    return np.array([initializers.weight_std(spec.init, *fans) * math.sqrt(fans[0]) for fans in _fans(spec)])
