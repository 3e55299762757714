"""Small models that can be made in float32 or in a half, and how far the half is off."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

WIDTH, BATCH = 32, 16
EXACT = {"xla_allow_excess_precision": False}
"""Without it XLA leaves roundings out that the program asks for."""


class MLP(nn.Module):
    dtype: object = None
    is_normalized: bool = False

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.Dense(WIDTH, dtype=self.dtype)(x)
            x = nn.LayerNorm(dtype=self.dtype)(x) if self.is_normalized else x
            x = nn.gelu(x)
        return nn.Dense(4, dtype=self.dtype)(x)


class Block(nn.Module):
    dtype: object

    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm(dtype=self.dtype)(x)
        x = x + nn.MultiHeadDotProductAttention(2, dtype=self.dtype)(y, y)
        y = nn.Dense(2 * WIDTH, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
        return x + nn.Dense(WIDTH, dtype=self.dtype)(nn.gelu(y)), None


class Transformer(nn.Module):
    """Blocks under nn.scan, recomputed."""

    dtype: object = None

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block, prevent_cse=False)
        blocks = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x = nn.Dense(WIDTH, dtype=self.dtype)(x)
        return nn.Dense(4, dtype=self.dtype)(blocks(self.dtype)(x, None)[0])


class CNN(nn.Module):
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.Conv(8, (3, 3), dtype=self.dtype)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False, dtype=self.dtype)(x))
        return nn.Dense(4, dtype=self.dtype)(x.mean((1, 2)))


class Residual(nnx.Module):
    def __init__(self, dtype, rngs):
        self.norm = nnx.LayerNorm(WIDTH, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(WIDTH, WIDTH, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return x + nnx.silu(self.up(self.norm(x)))


SHAPES = {
    "mlp": (BATCH, WIDTH),
    "layernorm": (BATCH, WIDTH),
    "transformer": (2, 8, WIDTH),
    "cnn": (4, 8, 8, 3),
    "nnx": (BATCH, WIDTH),
}
KINDS = {
    "mlp": MLP,
    "layernorm": functools.partial(MLP, is_normalized=True),
    "transformer": Transformer,
    "cnn": CNN,
}


def inputs(case):
    return jax.random.normal(jax.random.key(1), SHAPES[case])


def draw(case, seed):
    """float32 variables of a model."""
    if case == "nnx":
        return nnx.state(Residual(None, nnx.Rngs(seed)))
    return KINDS[case]().init(jax.random.key(seed), inputs(case))


def apply(case, dtype=None):
    """The model's function of (variables, inputs) -> outputs in its dtype."""
    if case == "nnx":
        graph = nnx.graphdef(Residual(dtype, nnx.Rngs(0)))
        return lambda state, x: nnx.merge(graph, state)(x)
    return lambda v, x: KINDS[case](dtype=dtype).apply(v, x, mutable=["batch_stats"])[0]


def step(case):
    """(variables, inputs) -> loss and gradients, float32."""
    return jax.value_and_grad(lambda v, x: jnp.mean(apply(case)(v, x) ** 2), allow_int=True)


def relative(found, wanted):
    a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return np.abs(a - b).mean() / np.abs(b).mean()
