"""What every layer of an infinitely wide stack of convolutions does to a signal, pixel by pixel.

Where the patch of a pixel at the border is filled up with zeros, that pixel receives less: images darken from the
border inwards. Xiao et al. 2018 (arXiv:1806.05393) have the circular case, in which every pixel is as in a dense stack.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxstab.errors import UsageError, require_choice
from jaxstab.theory import maps
from jaxstab.theory.activations import resolve
from jaxstab.typing import Activation, Scalar

PADDINGS = ("zero", "circular")


class Profiles(NamedTuple):
    """A stack's layers 1..depth, of leading shape [...] that of the hyperparameters; natural logarithms.

    log_profile: [..., depth, row, column], of E[h^2] by pixel. log_square: [..., depth], of its mean over pixels.
    log_gradient: [..., depth], of E[g^2], mean over pixels, of the gradient with respect to the layer's output, for a
        cotangent of N(0, 1) entries on the last layer's.
    """

    log_profile: np.ndarray
    log_square: np.ndarray
    log_gradient: np.ndarray


def profiles(
    activation: Activation,
    depth: int,
    sigma_w: Scalar,
    sigma_b: Scalar = 0.0,
    *,
    kernel: int = 3,
    side: int = 8,
    padding: str = "zero",
    q0: Scalar = 1.0,
    gains: Scalar = 1.0,
) -> Profiles:
    """Walk through layers 1..depth and back, for images whose entries have mean 0 and second moment q0.

    h = phi(z), z the convolution of h_before with weights of standard deviation sigma_w / sqrt(kernel^2 channels), + b:
    at each pixel q = sigma_w^2 (mean over the patch of E[h_before^2], zero outside the image) + sigma_b^2. Backward the
    mean over the patches that a pixel is in, as if the way back had weights of its own. gains: [..., depth], what
    multiplies each layer's sigma_w.

    >>> walked = profiles("linear", depth=1, sigma_w=1.0, side=3)
    >>> np.exp(walked.log_profile[0]).round(3)  # 4 of 9 taps see the image from a corner, 6 from an edge
    array([[0.444, 0.667, 0.444],
           [0.667, 1.   , 0.667],
           [0.444, 0.667, 0.444]])
    """
    require_choice(padding, PADDINGS, "padding")
    if min(depth, kernel, side) < 1:
        raise UsageError(f"depth={depth}, kernel={kernel}, side={side}: at least 1 is wanted.")
    phi = resolve(activation)
    w, b, q0 = (x[..., None, None] for x in maps.broadcast(sigma_w, sigma_b, q0))
    factors = np.broadcast_to(gains, (*w.shape[:-2], depth))[..., None, None]
    log_square, squares, slopes = np.broadcast_to(maps.log_of(q0), (*w.shape[:-2], side, side)), [], []
    for i in range(depth):
        own = w * factors[..., i, :, :]
        log_q = np.logaddexp(
            2 * maps.log_of(own) + _log_patch_mean(log_square, kernel, padding), 2 * maps.log_of(b)
        )
        log_square, _, log_slope = maps.log_moments(phi, log_q)
        squares.append(log_square)
        slopes.append(2 * maps.log_of(own) + log_slope)
    log_gradient, gradients = np.zeros_like(log_square), []
    for log_slope in slopes[::-1]:
        gradients.append(_log_mean(log_gradient))
        log_gradient = _log_patch_mean(log_gradient + log_slope, kernel, padding, is_back=True)
    profile = np.stack(squares, axis=-3)
    return Profiles(profile, _log_mean(profile), np.stack(gradients[::-1], axis=-1))


def _log_patch_mean(log_x: np.ndarray, kernel: int, padding: str, *, is_back: bool = False) -> np.ndarray:
    """ln of the mean over the patch around each pixel (`is_back`: over the patches that hold it) of x, by its ln."""
    before, side = (kernel - 1) // 2, log_x.shape[-1]
    around = (kernel - 1 - before, before) if is_back else (before, kernel - 1 - before)
    for axis in (-2, -1):
        edges = [around if i == log_x.ndim + axis else (0, 0) for i in range(log_x.ndim)]
        is_wrapped = padding == "circular"
        padded = np.pad(log_x, edges, "wrap") if is_wrapped else np.pad(log_x, edges, constant_values=-np.inf)
        taps = [np.take(padded, np.arange(i, i + side), axis) for i in range(kernel)]
        log_x = np.logaddexp.reduce(taps, axis=0) - np.log(kernel)
    return log_x


def _log_mean(log_x: np.ndarray) -> np.ndarray:
    """ln of the mean over pixels of x, by its ln."""
    return np.asarray(np.logaddexp.reduce(log_x, axis=(-2, -1)) - np.log(log_x.shape[-1] * log_x.shape[-2]))
