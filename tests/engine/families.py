"""Families that tests of the engine sweep, also from processes of their own."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import jaxstab


@jaxstab.family(dims={"loss": ("step",)})
def descent(key, *, steps: int = 200, learning_rate: float = 0.1):
    """A small network trained by gradient descent: rounding grows over its steps."""
    data, start, target = jax.random.split(key, 3)
    x, y = jax.random.normal(data, (16, 8)), jax.random.normal(target, (16, 2))

    def loss(weights):
        return jnp.mean((jnp.tanh(x @ weights) - y) ** 2)

    def step(weights, _):
        value, gradient = jax.value_and_grad(loss)(weights)
        return weights - learning_rate * gradient, value

    return {"loss": jax.lax.scan(step, jax.random.normal(start, (8, 2)), length=steps)[1]}
