"""The regressions of Zhang et al., Dive into Deep Learning, chapter 4, drawn inside a trial from a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab import random
from jaxstab.errors import UsageError
from jaxstab.typing import Scalar

POLYNOMIAL_WEIGHTS = (5.0, 1.2, -3.4, 5.6)
"""y = 5 + 1.2 x - 3.4 x^2/2! + 5.6 x^3/3! + noise. Section 4.4."""


class Regression(NamedTuple):
    """Inputs and targets of a regression with one output, split; float32."""

    train_inputs: Float[Array, "train features"]
    train_targets: Float[Array, " train"]
    test_inputs: Float[Array, "test features"]
    test_targets: Float[Array, " test"]


def polynomial(
    key: Array,
    *,
    n_train: int = 100,
    n_test: int = 100,
    degrees: int = 20,
    weights: Sequence[float] | Float[Array, " terms"] = POLYNOMIAL_WEIGHTS,
    noise: Scalar = 0.1,
) -> Regression:
    """x ~ N(0, 1); feature i is x^i / i!, i < `degrees`; targets are `weights` . features + N(0, noise^2).

    The factorial keeps high powers in range. Section 4.4.4 of the source. `weights` may be fewer than
    `degrees`: the others are 0. UsageError if they are more.
    """
    if len(weights) > degrees:
        raise UsageError(f"{len(weights)} weights are too many for a polynomial of {degrees} degrees.")
    x_key, noise_key = random.split(key)
    x = random.normal(x_key, (n_train + n_test, 1))
    inputs = power_features(x[:, 0], degrees)
    truth = jnp.zeros(degrees, jnp.float32).at[: len(weights)].set(jnp.asarray(weights, jnp.float32))
    return _noisy(noise_key, inputs, jnp.matmul(inputs, truth, precision="highest"), noise, n_train)


def power_features(x: Float[Array, " n"], degrees: int) -> Float[Array, "n degrees"]:
    """x^i / i! for i = 0, ..., degrees - 1, as a running product: no power overflows on the way."""
    ratios = x[:, None] / jnp.arange(1, degrees, dtype=x.dtype)
    return jnp.cumprod(jnp.concatenate([jnp.ones_like(x)[:, None], ratios], axis=1), axis=1)


def linear(
    key: Array,
    *,
    n_train: int = 20,
    n_test: int = 100,
    n_inputs: int = 200,
    weight: Scalar = 0.01,
    bias: Scalar = 0.05,
    noise: Scalar = 0.01,
) -> Regression:
    """x ~ N(0, 1), targets bias + sum_i weight x_i + N(0, noise^2): more inputs than examples.

    Section 4.5.2 of the source.
    """
    x_key, noise_key = random.split(key)
    inputs = random.normal(x_key, (n_train + n_test, n_inputs))
    targets = _float32(bias) + _float32(weight) * inputs.sum(axis=1)
    return _noisy(noise_key, inputs, targets, noise, n_train)


def _noisy(key: Array, inputs: Array, targets: Array, noise: Scalar, n_train: int) -> Regression:
    targets = targets + _float32(noise) * random.normal(key, targets.shape)
    return Regression(inputs[:n_train], targets[:n_train], inputs[n_train:], targets[n_train:])


def _float32(number: Scalar) -> Array:
    return jnp.asarray(number, jnp.float32)
