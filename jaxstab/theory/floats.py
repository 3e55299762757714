"""What floating-point formats hold: in which layer a scale leaves them, what loss scale keeps it inside."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from jaxstab import formats
from jaxstab.errors import UsageError


class FloatRange(NamedTuple):
    """A format's numbers. `overflow`, half a step above `largest`, is the first that rounds to inf."""

    largest: float
    overflow: float
    smallest_normal: float
    smallest_subnormal: float
    epsilon: float

    def vanishing(self, flush_subnormals: bool) -> float:
        """The magnitude below which a number is 0: half the smallest subnormal, or the smallest normal."""
        return self.smallest_normal if flush_subnormals else max(self.smallest_subnormal / 2, 5e-324)


@functools.lru_cache
def range_of(dtype: str) -> FloatRange:
    """Of float64, or of a format that float32 simulates: a name, or e4m3 for 4 bits of exponent and 3 of mantissa."""
    if dtype == "float64":
        info = np.finfo(np.float64)
        largest, smallest, epsilon = float(info.max), float(info.smallest_normal), float(info.eps)
    else:
        format_ = formats.format_of(dtype)
        largest, smallest, epsilon = format_.largest, format_.smallest_normal, format_.epsilon
    step = epsilon * 2.0 ** (math.frexp(largest)[1] - 1)
    overflow = min(largest + step / 2, float(np.finfo(np.float64).max))  # which is that of float64 as well
    return FloatRange(largest, overflow, smallest, smallest * epsilon, epsilon)


FLOATS: Mapping[str, FloatRange] = MappingProxyType(
    {dtype: range_of(dtype) for dtype in ("float16", "bfloat16", "float32")}
)
"""Ranges of the dtypes that JAX computes in by default, as jax.numpy.finfo has them; of any other, `range_of`."""


@functools.lru_cache(maxsize=8)
def flushes_subnormals(dtype: str) -> bool:
    """Whether a compiled program, on JAX's default device, takes subnormal numbers of `dtype` for zero.

    Found by halving the smallest normal number. CPUs keep float16's, and flush bfloat16's, float32's and float64's
    (jax#16200, jax#37762). A format that float32 simulates keeps them, but for those that are float32's own.
    """
    if dtype not in formats.COMPUTED:
        return range_of(dtype).smallest_normal == FLOATS["float32"].smallest_normal
    smallest = np.full((8,), range_of(dtype).smallest_normal, jnp.dtype(dtype))
    with jax.ensure_compile_time_eval(), formats.storage(dtype).computing():
        # a product with what is given at run time, which the compiler cannot work out for itself; and
        # magnified in float64 only, on the host: no comparison on the device then has a subnormal operand
        half = jax.jit(lambda x, factor: x * factor)(smallest, np.full((8,), 0.5, jnp.dtype(dtype)))
    return bool(np.all(np.asarray(half).astype(np.float64) == 0))


def largest_of(count: int) -> float:
    """Median of the largest magnitude among `count` independent N(0, 1) numbers; near sqrt(2 ln count)."""
    if count < 1:
        raise UsageError(f"count={count}: at least 1 is wanted.")
    return float(ndtri((1 + 0.5 ** (1 / count)) / 2))


def first_overflow_layer(
    log10_rms: np.ndarray, dtype: str, count: int, headroom: float = 1.0
) -> int | np.ndarray:
    """The first layer, counting from 1, with a number that `dtype` rounds to inf; 0 where there is none.

    log10_rms: [..., layer], of layers of `count` entries, taken as Gaussian: the largest is
    `largest_of(count)` times the rms. headroom: how many times larger intermediate numbers are. Later layers
    hold inf or NaN. Where log10_rms is NaN (not known), nothing overflows.

    >>> log10_rms = np.arange(1, 101) * np.log10(16)  # N(0, 1) weights, width 256: 16 a layer
    >>> [jaxstab.theory.first_overflow_layer(log10_rms, dtype, count=4096) for dtype in ("float16", "float32")]
    [4, 32]
    """
    largest = _by_layer(log10_rms) + math.log10(largest_of(count) * headroom)
    return _first_layer_where(largest >= math.log10(range_of(dtype).overflow))


def first_underflow_layer(
    log10_rms: np.ndarray, dtype: str, count: int, flush_subnormals: bool | None = None
) -> int | np.ndarray:
    """The first layer, counting from 1, whose `count` entries are all zero in `dtype`; 0 where there is none.

    log10_rms: [..., layer], as for `first_overflow_layer`. flush_subnormals: whether subnormal numbers are
    taken for zero; None as `flushes_subnormals` finds it.

    >>> log10_rms = -np.arange(1, 101) * np.log10(16)
    >>> jaxstab.theory.first_underflow_layer(log10_rms, "float32", count=4096, flush_subnormals=True)
    32
    """
    flushes = flushes_subnormals(dtype) if flush_subnormals is None else flush_subnormals
    largest = _by_layer(log10_rms) + math.log10(largest_of(count))
    return _first_layer_where(largest < math.log10(range_of(dtype).vanishing(flushes)))


def loss_scale(log10_gradient: np.ndarray, dtype: str, count: int) -> float:
    """The power of two to multiply the loss with, so that `dtype` holds the gradients of every layer.

    log10_gradient: [layer], log10 rms of each layer's gradients, of `count` entries each. With the scale the
    largest entry stays below overflow and the smallest rms above the smallest normal number, with equal room
    on either side. Micikevicius et al. 2018 (arXiv:1710.03740), section 3.2.

    Raises UsageError where no single scale does: the layers' scales span more than the format, or the scale
    itself does not fit float32, in which the loss is computed.

    >>> jaxstab.theory.loss_scale(np.array([-6.0, -4.0]), "float16", count=4096)
    131072.0
    """
    scale, reason = loss_scale_or_reason(log10_gradient, dtype, count)
    if reason:
        raise UsageError(reason)
    return scale


def loss_scale_or_reason(log10_gradient: np.ndarray, dtype: str, count: int) -> tuple[float, str]:
    """(`loss_scale`, ''), or NaN and why no single scale does. An unknown dtype and no layers still raise."""
    logs = _by_layer(log10_gradient).ravel() / math.log10(2)
    floats = range_of(dtype)
    if not np.all(np.isfinite(logs)):
        return math.nan, "a loss scale needs finite gradients that are not zero; got log10 rms of inf or NaN."
    highest = math.log2(floats.overflow) - float(np.max(logs)) - math.log2(largest_of(count))
    lowest = math.log2(floats.smallest_normal) - float(np.min(logs))
    exponent = round((lowest + highest) / 2)
    if not lowest <= exponent < highest:
        span = math.log10(2) * (float(np.ptp(logs)) + math.log2(largest_of(count)))
        holds = math.log10(floats.overflow / floats.smallest_normal)
        return (
            math.nan,
            f"no single loss scale: gradients span {span:.1f} decades and {dtype} holds {holds:.1f}.",
        )
    if not math.log2(FLOATS["float32"].smallest_normal) <= exponent < math.log2(FLOATS["float32"].overflow):
        return math.nan, f"no loss scale: 2^{exponent} is beyond float32, in which the loss is computed."
    return 2.0**exponent, ""


def _by_layer(values: np.ndarray) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise UsageError("log10 rms is wanted by layer, in an array [..., layer]; got no layers.")
    return array


def _first_layer_where(happens: np.ndarray) -> int | np.ndarray:
    """1 + the first index along the last axis at which it happens, 0 where it never does."""
    layers = np.where(happens.any(axis=-1), happens.argmax(axis=-1) + 1, 0)
    return int(layers) if layers.ndim == 0 else layers
