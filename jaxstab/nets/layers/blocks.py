"""Sublayers of a transformer: feed-forward and attention, with a skip, before or after the norm, or alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab import random
from jaxstab.nets.layers.layer import Make, Numbers, Params, preactivation
from jaxstab.nets.layers.single import add, draw_mask, masked, normalize


@dataclasses.dataclass(frozen=True)
class FeedForward(Make):
    """W2 phi(W1 x + b), both matrices width x width."""

    def draw(self, key: jax.Array, numbers: Numbers) -> dict[str, Any]:
        """Two weights and a bias."""
        first, second, bias = random.split(key, 3)
        weights = {
            name: self.weights.draw(k, self.width, self.width, numbers.gain)
            for name, k in {"first": first, "second": second}.items()
        }
        return weights | {"bias": self.draw_bias(bias, numbers)}

    def __call__(self, params: Params, x: Float[Array, "*batch width"], numbers: Numbers) -> Array:
        return params["second"](self.phi(preactivation(params["first"](x) + params["bias"], self.activation)))


@dataclasses.dataclass(frozen=True)
class Attention(Make):
    """Softmax attention of `heads` heads over the tokens of each input: W_o sum_j A_ij W_v x_j.

    Logits are `qk_scale` q.k / sqrt(width / heads). Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.
    """

    heads: int = 1

    def draw(self, key: jax.Array, numbers: Numbers) -> dict[str, Any]:
        """Weights of query, key, value and output."""
        keys = dict(zip(("query", "key", "value", "output"), random.split(key, 4), strict=True))
        return {name: self.weights.draw(k, self.width, self.width, numbers.gain) for name, k in keys.items()}

    def __call__(
        self, params: Params, x: Float[Array, "batch tokens width"], numbers: Numbers
    ) -> Float[Array, "batch tokens width"]:
        query, key, value = (
            params[name](x).reshape(*x.shape[:-1], self.heads, -1) for name in ("query", "key", "value")
        )
        qk_scale = jnp.asarray(numbers.qk_scale, jnp.promote_types(x.dtype, jnp.float32))
        scale = (qk_scale / math.sqrt(self.width // self.heads)).astype(x.dtype)
        precision = self.weights.precision
        logits = jnp.einsum("bqhd,bkhd->bhqk", scale * query, key, precision=precision)
        share = jax.nn.softmax(logits, axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", share, value, precision=precision)
        return params["output"](mixed.reshape(x.shape))


@dataclasses.dataclass(frozen=True)
class Block(Make):
    """One sublayer with its norm and its skip, feed-forward or attention.

    `order` pre: a x + b f(norm(x)), with a last norm before the read-out. post: norm(a x + b f(x)). skip: a x + b f(x).
    alone: f(x). a is `skip_scale`, b `branch_scale`; dropout is f's. Xiong et al. 2020 (arXiv:2002.04745).
    """

    order: str
    sublayer: str
    heads: int

    @property
    def part(self) -> FeedForward | Attention:
        """f."""
        made = (self.width, self.activation, self.weights)
        return FeedForward(*made) if self.sublayer == "ffn" else Attention(*made, heads=self.heads)

    def draw(self, key: jax.Array, numbers: Numbers) -> dict[str, Any]:
        """What f draws, and the key of a dropout mask."""
        return self.part.draw(key, numbers) | draw_mask(key, numbers)

    def __call__(
        self, params: Params, state: Float[Array, "*batch width"], numbers: Numbers
    ) -> Float[Array, "*batch width"]:
        inner = normalize("layer", state) if self.order == "pre" else state
        branch = masked(params, self.part(params, inner, numbers), numbers)
        if self.order == "alone":
            return branch
        after = add(state, branch, numbers)
        return normalize("layer", after) if self.order == "post" else after

    def end(self, state: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """What the read-out reads: of a pre-norm stack the norm of the last state."""
        return normalize("layer", state) if self.order == "pre" else state
