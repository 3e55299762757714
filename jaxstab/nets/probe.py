"""The size of a matrix's gradient as the cotangent of a zero that the layer is given: the gradient is never formed."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from jaxstab.scaling import outer_rms


@jax.custom_vjp
def watch(probe: Float[Array, ""], h: Float[Array, "batch n"], y: Float[Array, "batch m"]) -> Array:
    """y = h W itself, of which the cotangent of `probe` is the rms of the gradient with respect to W."""
    return y


def _watch_forward(probe: Array, h: Array, y: Array) -> tuple[Array, Array]:
    return y, h


def _watch_backward(h: Array, d: Array) -> tuple[Array, None, Array]:
    return outer_rms(h, d), None, d


watch.defvjp(_watch_forward, _watch_backward)
