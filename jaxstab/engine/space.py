"""Spaces of configurations: grids, zipped lists, samples, and their products.

A space is a tuple of dimensions; each dimension is walked by one or several axes at once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxstab.engine import room
from jaxstab.errors import UsageError
from jaxstab.names import name_of_callable, spell


@dataclasses.dataclass(frozen=True)
class Axis:
    """A parameter's values along a dimension, with the labels that its coordinate shows."""

    name: str
    values: tuple[Any, ...]
    labels: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One dimension of a space: all of its axes advance together."""

    name: str
    axes: tuple[Axis, ...]

    def __len__(self) -> int:
        return len(self.axes[0].values)


@dataclasses.dataclass(frozen=True)
class Space:
    """Every configuration of a sweep: the product of its dimensions, at fixed values of the rest.

    `a * b` is the product of two spaces.
    """

    dimensions: tuple[Dimension, ...]
    fixed: tuple[Axis, ...] = ()

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes] + [axis.name for axis in self.fixed]
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise UsageError(f"axis {sorted(twice)[0]!r} is given twice.")
        dims = [d.name for d in self.dimensions]
        if len(set(dims)) < len(dims):
            raise UsageError(f"dimension {next(n for n in dims if dims.count(n) > 1)!r} is given twice.")

    def __mul__(self, other: Space) -> Space:
        return Space(self.dimensions + other.dimensions, self.fixed + other.fixed)

    def __len__(self) -> int:
        return int(np.prod(self.shape, dtype=int))

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension."""
        return tuple(len(d) for d in self.dimensions)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes that vary."""
        return tuple(axis for d in self.dimensions for axis in d.axes)

    def settled(self, chosen: Mapping[str, Any]) -> Space:
        """The same space, which says what was chosen for parameters that no axis varies."""
        varying = {axis.name for axis in self.axes}
        said = tuple(Axis(name, (value,), (value,)) for name, value in chosen.items() if name not in varying)
        return Space(self.dimensions, (*(axis for axis in self.fixed if axis.name not in chosen), *said))

    def configurations(self) -> Iterator[dict[str, Any]]:
        """Settings of each configuration, the last dimension fastest."""
        fixed = {axis.name: axis.values[0] for axis in self.fixed}
        for index in itertools.product(*(range(n) for n in self.shape)):
            walked = zip(self.dimensions, index, strict=True)
            yield fixed | {axis.name: axis.values[i] for d, i in walked for axis in d.axes}


def grid(**axes: Any) -> Space:
    """The product of all axes: each a list or array, a scalar, or a mapping {label: value}.

    A scalar is no dimension; values that are not scalars (hidden sizes, a callable) need a mapping.
    """
    made = {name: _axis(name, value) for name, value in axes.items()}
    for axis in made.values():
        if len(set(axis.labels)) < len(axis.labels):
            repeated = next(label for label in axis.labels if axis.labels.count(label) > 1)
            cure = f"; tell them apart by labels: {axis.name}={{'first': ..., 'second': ...}}" if any(
                callable(value) for value in axis.values
            ) else ""  # fmt: skip
            raise UsageError(f"axis {axis.name!r}: {repeated!r} stands there twice{cure}.")
    varying = tuple(Dimension(name, (axis,)) for name, axis in made.items() if not _is_scalar(axes[name]))
    return Space(varying, tuple(axis for name, axis in made.items() if _is_scalar(axes[name])))


def zipped(**axes: Any) -> Space:
    """Axes of equal length that advance together, along one dimension `configuration`."""
    made = {name: _axis(name, value) for name, value in axes.items()}
    varying = tuple(axis for name, axis in made.items() if not _is_scalar(axes[name]))
    lengths = {axis.name: len(axis.values) for axis in varying}
    if not varying:
        raise UsageError("zipped: at least one axis must be a list.")
    if len(set(lengths.values())) > 1:
        raise UsageError(f"zipped: the axes differ in length: {lengths}.")
    return Space((Dimension("configuration", varying),), tuple(made[n] for n in axes if _is_scalar(axes[n])))


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A distribution by its quantile function, as scipy.stats' frozen ones have it."""

    name: str
    arguments: tuple[Any, ...]

    def ppf(self, q: np.ndarray) -> Any:
        """The values at the probabilities `q`."""
        if self.name == "choice":
            return [
                self.arguments[i]
                for i in np.minimum((q * len(self.arguments)).astype(int), len(self.arguments) - 1)
            ]
        low, high = self.arguments
        return low * (high / low) ** q if self.name == "log_uniform" else low + (high - low) * q


def uniform(low: float, high: float) -> Distribution:
    """Uniform between `low` and `high`, for `sample`."""
    if not low < high:
        raise UsageError(f"uniform({low}, {high}): the first must be below the second.")
    return Distribution("uniform", (float(low), float(high)))


def log_uniform(low: float, high: float) -> Distribution:
    """Uniform in the logarithm between two positive numbers, for `sample`."""
    if not 0 < low < high:
        raise UsageError(f"log_uniform({low}, {high}): 0 < low < high is wanted.")
    return Distribution("log_uniform", (float(low), float(high)))


def choice(values: Sequence[Any]) -> Distribution:
    """One of `values`, each as likely, for `sample`."""
    if not len(values):
        raise UsageError("choice([]): at least one value is wanted.")
    return Distribution("choice", tuple(_plain(v) for v in values))


def sample(n: int, key: jax.Array, **distributions: Any) -> Space:
    """`n` configurations drawn at random, along one dimension `configuration`.

    Each axis is `uniform(low, high)`, `log_uniform(low, high)`, `choice(values)`, any object with a quantile
    function `ppf` (scipy.stats' frozen distributions), or a scalar. An axis' draws depend on its name alone,
    so that adding an axis leaves the others as they are.
    """
    if n < 1:
        raise UsageError(f"sample: n={n}: at least 1 is wanted.")
    if not distributions:
        raise UsageError("sample: at least one axis is wanted.")
    axes = {}
    for name, distribution in distributions.items():
        if hasattr(distribution, "ppf"):
            own = key
            for letter in name.encode():
                own = jax.random.fold_in(own, letter)
            axes[name] = list(distribution.ppf(np.asarray(jax.random.uniform(own, (n,)), np.float64)))
        elif _is_scalar(distribution):
            axes[name] = distribution
        else:
            raise UsageError(
                f"sample: {name}={distribution!r} is no distribution. Choices: uniform(low, high),"
                " log_uniform(low, high), choice(values), a frozen distribution of scipy.stats, or a scalar."
            )
    return zipped(**axes)


def _is_scalar(value: Any) -> bool:
    if isinstance(value, (str, bytes)) or callable(value):
        return True
    return not isinstance(value, (Mapping, Sequence, range)) and np.ndim(value) == 0


def _plain(value: Any) -> Any:
    return (
        value.item()
        if isinstance(value, (np.generic, np.ndarray, jax.Array)) and np.ndim(value) == 0
        else value
    )


def _axis(name: str, value: Any) -> Axis:
    """An axis of whatever the user gave, refused where its values cannot be a coordinate."""
    if isinstance(value, Mapping):
        labels, values = tuple(map(str, value.keys())), tuple(value.values())
    elif _is_scalar(value):
        values = (_plain(value),)
        labels = (_label(name, values[0]),)
    else:
        if np.ndim(value) > 1 and not isinstance(value, Sequence):
            raise UsageError(f"axis {name!r}: an array of {np.ndim(value)} dimensions; one is wanted.")
        values = tuple(_plain(v) for v in value)
        labels = tuple(_label(name, v) for v in values)
    if not values:
        raise UsageError(f"axis {name!r} is empty.")
    if name == "seed":
        raise UsageError("axis 'seed': give seeds=..., not an axis.")
    return Axis(name, values, labels)


def _label(name: str, value: Any) -> Any:
    if callable(value):
        return name_of_callable(value)
    if isinstance(value, (str, bool, int, float)):
        return value
    raise UsageError(
        f"axis {name!r}: {spell(value)} is no scalar; give it a label: {name}={{'label': value}}."
    )


def parse_seeds(seeds: Any) -> np.ndarray:
    """Distinct integers in [0, 2^31), int64: 0..N-1 for an int N."""
    if isinstance(seeds, bool) or (np.ndim(seeds) == 0 and not isinstance(seeds, (int, np.integer))):
        raise UsageError(f"seeds={seeds!r}: a whole number or distinct whole numbers are wanted.")
    if isinstance(seeds, (int, np.integer)):
        if not 1 <= seeds <= 2**31:
            raise UsageError(f"seeds={seeds}: at least 1 and at most 2^31 is wanted.")
        most = int(room.host_memory() / 32)  # 8 bytes a seed, and some room to handle them
        if seeds > most:
            raise UsageError(
                f"seeds={seeds}: their numbers alone do not fit this machine's memory; {most} would."
            )
        return np.arange(seeds, dtype=np.int64)
    found = np.asarray(seeds if isinstance(seeds, (np.ndarray, range)) else list(seeds))
    if not found.size:
        raise UsageError("seeds is empty: at least 1 is wanted.")
    if found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise UsageError(f"seeds={seeds!r}: a whole number or distinct whole numbers are wanted.")
    found = found.astype(np.int64)
    if found.min() < 0 or found.max() >= 2**31:
        bad = found.min() if found.min() < 0 else found.max()
        raise UsageError(f"seeds: {bad} is outside [0, 2^31).")
    values, counts = np.unique(found, return_counts=True)
    if counts.max() > 1:
        raise UsageError(f"seeds: {values[counts.argmax()]} repeats; distinct integers are wanted.")
    return found
