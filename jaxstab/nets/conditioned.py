"""A random layer drawn in law, without its matrix.

For inputs H (the examples as rows, fewer than the units) a layer y = H W of a Gaussian or Haar-orthogonal W is a
random matrix whose law is known given H alone; and given H and y, so is that of the gradient G = D W' which goes
back, for any cotangent D that depends on W through y only. Both are drawn here with O((m + n) B) random numbers
in place of m n, in O(n B^2) operations, exactly in law at any rank of H (equal inputs, dead layers).

With H = L Q, the rows of Q orthonormal (or zero, where H has less rank than rows), U and Z independent of H:

- Gaussian entries of standard deviation s:  y = s L Z,  G = s [D Z'Q + L_D Z2 (I - Q'Q)],  L_D L_D' = D D'
- g times a Haar matrix:  y = g L U,  G = g [D U'Q + L_E V],  E = D (I - U'U),  L_E L_E' = E E'

Z and Z2 are standard normal, U and V uniform with orthonormal rows, V's orthogonal to Q's. There is no inverse:
the textbook form with (H H')^-1 is the same law on paper and goes wrong in float32 where inputs align. Where
the examples are not few (B >= n, or 2 B > n for Haar) the matrix itself is drawn: that is then the cheaper way.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxstab import random
from jaxstab.nets.haar import cholesky, haar_matrix, lq, orthonormal_rows
from jaxstab.nets.probe import watch
from jaxstab.reductions import absmax, total
from jaxstab.scaling import power_of_two
from jaxstab.typing import Scalar

HIGHEST = jax.lax.Precision.HIGHEST
EPSILON = 2.0**-23


def gaussian_layer(
    key: jax.Array, h: Float[Array, "batch n"], std: Scalar, units: int, probe: Scalar = 0.0
) -> Float[Array, "batch units"]:
    """h W in law, W [n, units] with independent N(0, std^2) entries; differentiable in h and std.

    Each call stands for one matrix: calls with equal keys on different h are not calls on the same matrix. The
    cotangent of `probe` is the rms of the gradient with respect to W.
    """
    batch, n = h.shape
    std, probe = jnp.asarray(std, jnp.float32), _probe_of(probe, h)
    if batch >= n:
        matrix = std * random.normal(key, (n, units))
        return watch(probe, h, _matmul(h.astype(jnp.float32), matrix).astype(h.dtype))
    return _gaussian(units, jax.random.key_data(key), h, std, probe)


def haar_layer(
    key: jax.Array, h: Float[Array, "batch n"], gain: Scalar, probe: Scalar = 0.0
) -> Float[Array, "batch n"]:
    """h W in law, W [n, n] `gain` times a Haar-distributed orthogonal matrix; differentiable in h and gain.

    The cotangent of `probe` is the rms of the gradient with respect to W.
    """
    batch, n = h.shape
    gain, probe = jnp.asarray(gain, jnp.float32), _probe_of(probe, h)
    if 2 * batch > n:
        return watch(probe, h, _matmul(h.astype(jnp.float32), gain * haar_matrix(key, n, n)).astype(h.dtype))
    return _haar(jax.random.key_data(key), h, gain, probe)


def _probe_of(probe: Scalar, h: Array) -> Float[Array, ""]:
    return jnp.asarray(probe, jnp.promote_types(h.dtype, jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gaussian(units: int, key_data: Array, h: Array, std: Array, probe: Array) -> Array:
    return _gaussian_forward(units, key_data, h, std, probe)[0]


def _gaussian_forward(
    units: int, key_data: Array, h: Array, std: Array, probe: Array
) -> tuple[Array, tuple[Array, ...]]:
    frame, lower, exponent = _factor(h)
    z_key, rest_key = random.split(key_data)
    z = random.normal(z_key, (h.shape[0], units))
    y = (std * _matmul(lower, z) * power_of_two(exponent)).astype(h.dtype)
    return y, (jax.random.key_data(rest_key), frame, z, lower, exponent, std)


def _gaussian_backward(units: int, saved: tuple[Array, ...], d: Array) -> tuple[None, Array, Array, Array]:
    rest_key, frame, z, lower, own_exponent, std = saved
    scaled, exponent = _rescale_rows(d)
    gram = _matmul(scaled, scaled.T)
    rest = random.normal(jax.random.wrap_key_data(rest_key), frame.shape)
    rest = _matmul(_root(gram), rest)
    known = _matmul(_matmul(scaled, z.T) - _matmul(rest, frame.T), frame)
    g = (std * (known + rest) * power_of_two(exponent)).astype(d.dtype)
    of_std = total(d.astype(jnp.float32) * _matmul(lower, z) * power_of_two(own_exponent))
    return None, g, of_std, _probed(lower, gram, own_exponent + exponent, frame.shape[1], d)


_gaussian.defvjp(_gaussian_forward, _gaussian_backward)


@jax.custom_vjp
def _haar(key_data: Array, h: Array, gain: Array, probe: Array) -> Array:
    return _haar_forward(key_data, h, gain, probe)[0]


def _haar_forward(key_data: Array, h: Array, gain: Array, probe: Array) -> tuple[Array, tuple[Array, ...]]:
    frame, lower, exponent = _factor(h)
    u_key, rest_key = random.split(key_data)
    u = haar_matrix(u_key, *h.shape)
    u = jnp.where(jnp.diagonal(lower)[:, None] > 0, u, 0.0)  # no image where there is no direction
    y = (gain * _matmul(lower, u) * power_of_two(exponent)).astype(h.dtype)
    return y, (jax.random.key_data(rest_key), frame, u, lower, exponent, gain)


def _haar_backward(saved: tuple[Array, ...], d: Array) -> tuple[None, Array, Array, Array]:
    rest_key, frame, u, lower, own_exponent, gain = saved
    scaled, exponent = _rescale_rows(d)
    known = _matmul(scaled, u.T)
    beyond = scaled - _matmul(known, u)
    v = random.normal(jax.random.wrap_key_data(rest_key), frame.shape)
    for _ in range(2):
        v = v - _matmul(_matmul(v, frame.T), frame)
    rest = _matmul(_root(_matmul(beyond, beyond.T)), orthonormal_rows(v))
    g = (gain * (_matmul(known, frame) + rest) * power_of_two(exponent)).astype(d.dtype)
    of_gain = total(d.astype(jnp.float32) * _matmul(lower, u) * power_of_two(own_exponent))
    gram = _matmul(scaled, scaled.T)
    return None, g, of_gain, _probed(lower, gram, own_exponent + exponent, frame.shape[1], d)


_haar.defvjp(_haar_forward, _haar_backward)


def _probed(lower: Array, gram: Array, exponents: Array, n: int, d: Array) -> Array:
    """rms of the entries of h'd: |h'd|^2 = trace((h h')(d d')), and h h' = L L', rows' powers of two apart."""
    own = _matmul(lower, lower.T)
    is_there = (jnp.diagonal(own) * jnp.diagonal(gram) > 0)[:, None]  # a row of zeros has no exponent
    most = jnp.max(exponents, initial=-512, where=is_there)
    weight = power_of_two(jnp.minimum(exponents - most, 0))
    square = total(own * weight * gram * weight.T)
    square = jnp.where(square < 0, 0.0, square) / (float(n) * d.shape[1])
    return jnp.ldexp(jnp.sqrt(square), most).astype(jnp.promote_types(d.dtype, jnp.float32))


def _factor(h: Float[Array, "batch n"]) -> tuple[Array, Array, Array]:
    """(Q, L, e): h = 2^e L Q by rows, the rows of Q orthonormal or zero."""
    rows, exponent = _rescale_rows(h)
    lower, frame = lq(rows)
    return frame, lower, exponent


def _rescale_rows(x: Float[Array, "batch n"]) -> tuple[Float[Array, "batch n"], Int[Array, "batch 1"]]:
    """(m, e) with x = m 2^e exactly, m in float32 with the largest magnitude of each row in [1/2, 4)."""
    x = x.astype(jnp.float32)
    largest = absmax(x, kept=1)[:, None]
    exponent = jnp.where(jnp.isfinite(largest), jnp.clip(jnp.frexp(largest)[1], -126, 126), 0)
    return x * power_of_two(-exponent), exponent


def _root(gram: Float[Array, "batch batch"]) -> Float[Array, "batch batch"]:
    """A lower triangular L with L L' = gram, at any rank."""
    return cholesky(gram, 4 * len(gram) * EPSILON)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=HIGHEST)
