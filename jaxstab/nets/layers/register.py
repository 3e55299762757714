"""The layers of this package by name."""

from __future__ import annotations

import functools
import itertools

from jaxstab.errors import UsageError
from jaxstab.nets.layers.blocks import Block
from jaxstab.nets.layers.layer import Layer
from jaxstab.nets.layers.single import Convolution, Lstm, Normalized, Plain, Residual
from jaxstab.nets.weights import GAUSSIAN, Weights
from jaxstab.typing import Activation

NORMS = {"normalized": "layer", "rms_norm": "rms", "batch_norm": "batch"}
ORDERS = {"pre_ln": "pre", "post_ln": "post", "attention": "alone", "residual_attention": "skip"}
KINDS = ("plain", "residual", "recurrent", "lstm", *NORMS, *ORDERS, "convolution")
REUSED = ("recurrent", "lstm")
"""Kinds that apply one draw at every step."""
ATTENDING = ("attention", "residual_attention")
RECTANGULAR = ("plain", *NORMS)
"""Kinds whose layers may differ in width: nothing is added to what came before."""
SUBLAYERS = ("ffn", "attention", "alternate")
_IN_TURN = {"alternate": ("attention", "ffn")}


def make_layers(
    kind: str,
    width: int | tuple[int, ...],
    activation: Activation,
    weights: Weights,
    *,
    branch_matrices: int = 1,
    sublayers: str = "ffn",
    heads: int = 1,
    padding: str = "zero",
) -> tuple[Layer, ...]:
    """The layers of that name, which a stack repeats in turn: mostly one.

    width: units, or those before the first layer and behind each.

    Errors: UsageError where they cannot be drawn as asked, or sizes do not fit together.
    """
    if kind in REUSED and weights.sampler == "conditioned":
        choices = ", ".join(name for name in KINDS if name not in REUSED)
        raise UsageError(
            f"kind={kind!r} uses one matrix at every step, which sampler='conditioned' cannot draw."
            f" Choices: {choices}; or sampler='dense'."
        )
    if branch_matrices not in (1, 2):
        raise UsageError(f"branch_matrices={branch_matrices}: 1 or 2 is wanted.")
    if isinstance(width, tuple):
        return _of_widths(kind, width, activation, weights)
    if width % heads or heads < 1:
        raise UsageError(f"heads={heads}: a divisor of width={width} is wanted.")
    made = (width, activation, weights)
    if kind in ORDERS:
        parts = ("attention",) if kind in ATTENDING else _IN_TURN.get(sublayers, (sublayers,))
        return tuple(Block(*made, ORDERS[kind], part, heads) for part in parts)
    if kind == "residual":
        return (Residual(*made, matrices=branch_matrices),)
    if kind in NORMS:
        return (Normalized(*made, norm=NORMS[kind]),)
    if kind == "convolution":
        _require_square(weights, "kind='convolution'")
        return (Convolution(*made, padding=padding),)
    return (Lstm(*made) if kind == "lstm" else Plain(*made, is_reused=kind == "recurrent"),)


def _of_widths(
    kind: str, widths: tuple[int, ...], activation: Activation, weights: Weights
) -> tuple[Layer, ...]:
    """A layer from each width to the next."""
    if kind not in RECTANGULAR:
        raise UsageError(f"kind={kind!r} wants one width. Choices of several: {', '.join(RECTANGULAR)}.")
    _require_square(weights, "widths by layer")
    make = functools.partial(Normalized, norm=NORMS[kind]) if kind in NORMS else Plain
    return tuple(make(n, activation, weights, fan_in=m) for m, n in itertools.pairwise(widths))


def _require_square(weights: Weights, what: str) -> None:
    if weights.sampler == "conditioned" and weights.init == "orthogonal":
        raise UsageError(
            f"{what}: sampler='conditioned' draws orthogonal matrices that are square only. Choices: "
            f"{', '.join(GAUSSIAN)}; or sampler='dense'."
        )
