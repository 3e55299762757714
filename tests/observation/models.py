"""Small models of several libraries, and a function without any, with the losses that observation is held against."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

WIDTH, BATCH, LENGTH = 8, 4, 3


class LinenMLP(nn.Module):
    """Dense layers, optionally recomputed in the backward pass."""

    is_remat: bool = False

    @nn.compact
    def __call__(self, x):
        dense = nn.remat(nn.Dense) if self.is_remat else nn.Dense
        for i in range(3):
            x = jnp.tanh(dense(WIDTH, name=f"layer_{i}")(x))
        return nn.Dense(2, name="head")(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(WIDTH, name="up")(jax.nn.relu(nn.LayerNorm(name="norm")(x))), None


class LinenScan(nn.Module):
    """One block under nn.scan, recomputed."""

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block, prevent_cse=False)
        blocks = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LENGTH)
        return nn.Dense(2, name="head")(blocks(name="blocks")(x, None)[0])


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.up = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + jnp.tanh(self.up(self.norm(x)))


class Nnx(nnx.Module):
    """Residual blocks in a list, called as they are, each under nnx.jit, or stacked under nnx.scan and nnx.remat."""

    def __init__(self, how, rngs):
        self.how = how
        if how == "scan":
            make = nnx.vmap(Residual, in_axes=(0,), out_axes=0)
            self.blocks = nnx.split_rngs(splits=LENGTH)(make)(rngs)
        else:
            self.blocks = nnx.List([Residual(rngs) for _ in range(LENGTH)])
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        if self.how == "scan":
            step = nnx.scan(nnx.remat(lambda block, h: block(h)), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            return self.head(step(self.blocks, x))
        call = nnx.jit(lambda block, h: block(h)) if self.how == "jit" else lambda block, h: block(h)
        for block in self.blocks:
            x = call(block, x)
        return self.head(x)


def inputs() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (BATCH, WIDTH))


def linen(model):
    """(loss of (variables, inputs), variables) of a linen module."""
    return lambda v, x: jnp.mean(model.apply(v, x) ** 2), model.init(jax.random.key(0), inputs())


def of_nnx(how):
    """(loss of (state, inputs), state) of the NNX model."""
    graph, state = nnx.split(Nnx(how, nnx.Rngs(0)))
    return lambda s, x: jnp.mean(nnx.merge(graph, s)(x) ** 2), state


def plain():
    """A function of named scopes: a scan with remat inside, a cond, and a while loop."""
    weights = np.random.default_rng(0).normal(size=(LENGTH, WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5

    @jax.checkpoint
    def layer(h, w):
        with jax.named_scope("layer"):
            return jnp.tanh(h @ w)

    def loss(weights, x):
        with jax.named_scope("stack"):
            h, _ = jax.lax.scan(lambda h, w: (layer(h, w), None), x, weights)
        with jax.named_scope("choice"):
            h = jax.lax.cond(jnp.sum(x) > 1e6, jnp.sin, scaled, h)
        with jax.named_scope("search"):
            still = jax.lax.stop_gradient(h)
            grown = jax.lax.while_loop(lambda c: c[0] < 4, doubled, (0, still))[1]
        return jnp.mean(h**2) + 1e-3 * jnp.mean(grown)

    return loss, jnp.asarray(weights)


def scaled(h):
    with jax.named_scope("scaled"):
        return 3.0 * h


def doubled(carry):
    with jax.named_scope("doubled"):
        return carry[0] + 1, 2.0 * carry[1]


CASES = {
    "linen": lambda: linen(LinenMLP()),
    "linen_remat": lambda: linen(LinenMLP(is_remat=True)),
    "linen_scan": lambda: linen(LinenScan()),
    "nnx": lambda: of_nnx("plain"),
    "nnx_jit": lambda: of_nnx("jit"),
    "nnx_scan": lambda: of_nnx("scan"),
    "plain": plain,
}
