"""Numbers that are kept of an array: few and cheap by default, more on demand.

The cheap ones are taken without rescaling, since reading the maximum first would cost a second pass over every
activation. Where squaring overflows or underflows, `absmax` beside `rms` tells (`is_rms_in_range`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.errors import UsageError, require_choice
from jaxstab.reductions import absmax, mean_square, mean_square_and_absmax, total
from jaxstab.scaling import power_of_two

DEFAULT = ("rms", "absmax")


@dataclass(frozen=True)
class Statistic:
    """A scalar of an array of float32 or float64, and how those of a while loop's iterations become one."""

    long_name: str
    of: Callable[[jax.Array], jax.Array] = lambda x: x
    merge: Callable[[jax.Array, jax.Array], jax.Array] = jnp.maximum
    units: str = "1"
    knows_axes: bool = False
    """Whether it depends on where the entries stand."""


def _mean(x: jax.Array) -> jax.Array:
    return total(x) / x.size


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(mean_square(x))


def _log2_rms(x: jax.Array) -> jax.Array:
    largest = absmax(x)
    _, exponent = jnp.frexp(largest)
    exponent = jnp.where(jnp.isfinite(largest), jnp.clip(exponent, -126, 126), 0)
    scaled = x * power_of_two(-exponent).astype(x.dtype)
    return jnp.log2(_rms(scaled)) + exponent.astype(x.dtype)


def _absmin(x: jax.Array) -> jax.Array:
    magnitude = jnp.abs(x)
    return jnp.min(jnp.where(magnitude > 0, magnitude, jnp.inf))


def _spread(x: jax.Array, axis: int) -> jax.Array:
    """rms of the deviations from the mean over one axis, relative to the rms; NaN where the axis has no two entries."""
    if x.ndim < 2 or x.shape[axis] < 2:
        return jnp.full((), jnp.nan, x.dtype)
    scaled = x / jnp.maximum(absmax(x), jnp.finfo(x.dtype).tiny)
    return _rms(scaled - scaled.mean(axis, keepdims=True)) / jnp.maximum(
        _rms(scaled), jnp.finfo(x.dtype).tiny
    )


def _dead_units(x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.all(x == 0, axis=tuple(range(x.ndim - 1))), dtype=x.dtype)


def _larger_magnitude(old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(new) | (jnp.abs(new) > jnp.abs(old)), new, old)


def _share(happens: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: _mean(happens(x).astype(x.dtype))


STATISTICS: dict[str, Statistic] = {
    "rms": Statistic("root mean square of all entries", _rms),
    "absmax": Statistic("largest magnitude; NaN if any entry is", absmax),
    "mean": Statistic("mean of all entries", _mean, _larger_magnitude),
    "absmin": Statistic("smallest magnitude that is not zero; inf if all are zero", _absmin, jnp.minimum),
    "zeros": Statistic("share of entries that are zero", _share(lambda x: x == 0)),
    "nans": Statistic("share of entries that are NaN", _share(jnp.isnan)),
    "infs": Statistic("share of entries that are infinite", _share(jnp.isinf)),
    "unit_spread": Statistic(
        "spread over the last axis (units) relative to the rms; 0: all units alike",
        lambda x: _spread(x, -1),
        knows_axes=True,
    ),
    "sample_spread": Statistic(
        "spread over the first axis (samples) relative to the rms; 0: all samples alike",
        lambda x: _spread(x, 0),
        knows_axes=True,
    ),
    "dead_units": Statistic(
        "share of units (of the last axis) that are zero in every sample", _dead_units, knows_axes=True
    ),
    "log2_rms": Statistic(
        "log2 of the root mean square, right over the whole range", _log2_rms, units="octave"
    ),
}
"""What can be asked for, by name. Those of complex arrays are of the magnitudes."""


SIMULATED: dict[str, Statistic] = {
    "absmax": Statistic("largest magnitude in float32"),
    "absmax_rounded": Statistic("largest magnitude in the format; inf and NaN show"),
    "magnitude": Statistic("mean magnitude in float32 of what is finite"),
    "error": Statistic("mean error over mean magnitude, of what is finite in both"),
    "error_made": Statistic("the same of rounding the float32 value alone: made by storing it"),
    "error_brought": Statistic(
        "the same of the value on rounded inputs, rounded or not: brought in with them"
    ),
    "overflow": Statistic("share of entries beyond the format's largest number"),
    "underflow": Statistic("share of entries that are not zero in float32, and are in the format"),
}
"""What `what_if` records of every operation: the largest magnitudes of all entries, the others of a sample."""


def require_statistics(names: object) -> tuple[str, ...]:
    """The names as a tuple; UsageError for one that is unknown, named twice, or for none."""
    listed: object = [names] if isinstance(names, str) else names
    if not isinstance(listed, Iterable):
        raise UsageError(f"statistics must be names, not {names!r}. Choices: {', '.join(STATISTICS)}.")
    known = tuple(require_choice(name, STATISTICS, "statistic") for name in listed)
    if not known or len({*known}) < len(known):
        raise UsageError(f"statistics must be one name or more, each once, not {known!r}.")
    return known


def measure(names: tuple[str, ...], x: jax.Array) -> jax.Array:
    """Statistics of all entries of `x`, shape (len(names),): float64 if `x` is, else float32.

    Halves are widened first. Nothing is differentiated through them.
    """
    x = jax.lax.stop_gradient(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.abs(x)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    known = {}
    if {"rms", "absmax"} <= {*names}:
        mean_square, largest = mean_square_and_absmax(wide)
        known = {"rms": jnp.sqrt(mean_square), "absmax": largest}
    values = [known[name] if name in known else STATISTICS[name].of(wide) for name in names]
    return jnp.stack([value.astype(wide.dtype) for value in values])


def merge(old: jax.Array, new: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """One vector of statistics, the last axis, for both; each by its own rule (mostly the larger)."""
    merged = [STATISTICS[name].merge(old[..., i], new[..., i]) for i, name in enumerate(names)]
    return jnp.stack(merged, axis=-1)


def is_rms_in_range(rms: np.ndarray, absmax: np.ndarray) -> np.ndarray:
    """Whether squares of float32 neither overflowed nor lost the largest entry; False where NaN stands in either.

    False means that the rms is wrong (or not a number) though the array may be well; `log2_rms` is right there.
    """
    low = float(np.sqrt(np.finfo(np.float32).tiny)) * 1e3
    return np.isfinite(rms) & ((absmax == 0) | (absmax > low))
