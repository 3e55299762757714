"""`jax.random`'s numbers from its own keys, up to twice as fast on the CPU: drawing is most of jaxstab's time.

On the CPU `jax.random` runs threefry's rounds as a loop over arrays in memory, to compile soon, and makes normals by
erf_inv, of two branches and log1p. Here the rounds are written out and normals are one logarithm and one polynomial,
so that a number is made in registers. Bits and uniforms are jax.random's to the last bit, normals to rounding
(these are the closer ones to the law's quantiles).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt32

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)
"""Threefry-2x32 with 20 rounds. Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3, section 4.2."""

NORMAL = (
    3.7638425827026367, 1.9952514171600342, -0.45756426453590393, 0.1779465675354004, -0.05160437151789665,
    -0.024028655141592026, 0.05971371382474899, -0.0557362362742424, 0.045568253844976425, -0.04354740306735039,
    0.0011499871034175158, 0.05114898830652237, -0.029483478516340256, -0.012554586865007877, 0.010171809233725071,
)  # fmt: skip
"""z / x as a polynomial in w / 8 - 1, where x = erf(z / sqrt 2) and w = -ln(1 - x^2) in [0, 16]: the best one of
degree 14, right to 6e-8 before rounding and to 1e-6 in float32 (against `scipy.special.ndtri`)."""


def bits(key: Array, shape: Sequence[int]) -> UInt32[Array, "*shape"]:
    """`jax.random.bits`: uniformly distributed unsigned integers of 32 bits, from a key of any implementation."""
    key, count = _typed(key), math.prod(shape)
    if not _is_threefry(key) or count >= 2**32:
        return jax.random.bits(key, tuple(shape), jnp.uint32)
    first, second = threefry_2x32(jax.random.key_data(key), jax.lax.iota(jnp.uint32, count))
    return (first ^ second).reshape(tuple(shape))


def split(key: Array, count: int = 2) -> Array:
    """`jax.random.split`: typed keys [count]."""
    key = _typed(key)
    if not _is_threefry(key):
        return jax.random.split(key, count)
    words = threefry_2x32(jax.random.key_data(key), jax.lax.iota(jnp.uint32, count))
    return jax.random.wrap_key_data(jnp.stack(words, axis=1), impl="threefry2x32")


def fold_in(key: Array, number: Integer[Array, ""]) -> Array:
    """`jax.random.fold_in`: a typed key for each number."""
    key = _typed(key)
    if not _is_threefry(key):
        return jax.random.fold_in(key, number)
    words = threefry_2x32(jax.random.key_data(key), jnp.asarray(number).astype(jnp.uint32))
    return jax.random.wrap_key_data(jnp.stack(words), impl="threefry2x32")


def _typed(key: Array) -> Array:
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _is_threefry(key: Array) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"


@jax.jit
def threefry_2x32(key: UInt32[Array, " two"], counter: UInt32[Array, "*shape"]) -> tuple[Array, Array]:
    """Two random words for each counter."""
    words = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x, y = words[0], counter + words[1]  # the counter's upper word is 0
    for block in range(5):
        for rotation in ROTATIONS[block % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation)))
        x = x + words[(block + 1) % 3]
        y = y + words[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


def uniform(key: Array, shape: Sequence[int]) -> Float[Array, "*shape"]:
    """`jax.random.uniform`: multiples of 2^-23 in [0, 1), float32."""
    return _uniform_of(bits(key, shape))


def normal(key: Array, shape: Sequence[int]) -> Float[Array, "*shape"]:
    """`jax.random.normal`: standard normal numbers, float32, up to 5.4 in magnitude."""
    return _normal_of(bits(key, shape))


def _uniform_of(word: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    one = np.uint32(0x3F800000)  # 1.0, whose mantissa the upper 23 bits become
    return jax.lax.bitcast_convert_type((word >> np.uint32(9)) | one, jnp.float32) - 1


@jax.jit
def _normal_of(word: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    x = jnp.maximum(2 * _uniform_of(word) + lowest, lowest)
    t = -jnp.log((1 - x) * (1 + x)) * np.float32(1 / 8) - 1  # where 1 - x^2 is small nothing cancels
    ratio = jnp.full_like(t, NORMAL[-1])
    for coefficient in NORMAL[-2::-1]:
        ratio = ratio * t + np.float32(coefficient)
    return x * ratio
