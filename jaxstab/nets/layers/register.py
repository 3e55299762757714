"""The layers of this package by name."""

from __future__ import annotations

from jaxstab.errors import UsageError
from jaxstab.nets.layers.blocks import Block
from jaxstab.nets.layers.layer import Layer
from jaxstab.nets.layers.single import Lstm, Normalized, Plain, Residual
from jaxstab.nets.weights import Weights
from jaxstab.typing import Activation

NORMS = {"normalized": "layer", "rms_norm": "rms", "batch_norm": "batch"}
ORDERS = {"pre_ln": "pre", "post_ln": "post", "attention": "alone", "residual_attention": "skip"}
KINDS = ("plain", "residual", "recurrent", "lstm", *NORMS, *ORDERS)
REUSED = ("recurrent", "lstm")
"""Kinds that apply one draw at every step."""
ATTENDING = ("attention", "residual_attention")


def make_layer(
    kind: str,
    width: int,
    activation: Activation,
    weights: Weights,
    *,
    branch_matrices: int = 1,
    sublayers: str = "ffn",
    heads: int = 1,
) -> Layer:
    """The layer of that name.

    Errors: UsageError where it cannot be drawn as asked, or its sizes do not fit together.
    """
    if kind in REUSED and weights.sampler == "conditioned":
        choices = ", ".join(name for name in KINDS if name not in REUSED)
        raise UsageError(
            f"kind={kind!r} uses one matrix at every step, which sampler='conditioned' cannot draw."
            f" Choices: {choices}; or sampler='dense'."
        )
    if branch_matrices not in (1, 2):
        raise UsageError(f"branch_matrices={branch_matrices}: 1 or 2 is wanted.")
    if width % heads or heads < 1:
        raise UsageError(f"heads={heads}: a divisor of width={width} is wanted.")
    made = (width, activation, weights)
    if kind == "residual":
        return Residual(*made, matrices=branch_matrices)
    if kind in NORMS:
        return Normalized(*made, norm=NORMS[kind])
    if kind in ORDERS:
        return Block(*made, ORDERS[kind], "attention" if kind in ATTENDING else sublayers, heads)
    return Lstm(*made) if kind == "lstm" else Plain(*made, is_reused=kind == "recurrent")
