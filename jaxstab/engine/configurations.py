"""A space's configurations as columns of numbers, apart by the Spec that they share."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from jaxstab.engine.space import Space
from jaxstab.errors import UsageError, require_hashable
from jaxstab.trials.family import Family

Column = np.ndarray | tuple[np.ndarray, ...]


class Configurations(NamedTuple):
    """Those of one Spec, hence of one program.

    members: their numbers in the space. hparams: the family's HParams of columns [configuration], float64; a tuple
    of columns for a hyperparameter that is one.
    """

    spec: Any
    members: Int[np.ndarray, " configuration"]
    hparams: Any

    def one(self, i: int) -> Any:
        """The HParams of one configuration, as Python has numbers."""
        return jax.tree.map(lambda column: float(column[i]), self.hparams)


def by_spec(family: Family, space: Space) -> list[Configurations]:
    """A space's configurations by Spec, in the order of their first appearance.

    Each value of an axis is coerced once, whatever the number of configurations. UsageError, one line, for names,
    values and combinations that the family does not take.
    """
    family.require_names([axis.name for axis in (*space.fixed, *space.axes)])
    fixed = {axis.name: family.coerce(axis.name, axis.values[0]) for axis in space.fixed}
    walked = np.unravel_index(np.arange(len(space)), space.shape) if space.shape else ()
    axes: dict[str, tuple[list[Any], np.ndarray]] = {}
    for dimension, index in zip(space.dimensions, walked, strict=True):
        for axis in dimension.axes:
            axes[axis.name] = [family.coerce(axis.name, value) for value in axis.values], index
    members: dict[Any, list[np.ndarray]] = {}
    static = {name: own for name, own in axes.items() if name in family.spec_types}
    for rows in _alike([_codes(name, values)[index] for name, (values, index) in static.items()], len(space)):
        varied = {name: values[index[rows[0]]] for name, (values, index) in static.items()}
        settings = {name: value for name, value in fixed.items() if name in family.spec_types} | varied
        members.setdefault(family.Spec(**settings), []).append(rows)
    found = []
    for spec, parts in members.items():
        rows = np.sort(np.concatenate(parts))
        found.append(Configurations(spec, rows, _columns(family, fixed, axes, rows)))
        if hasattr(family.HParams, "validate"):
            found[-1].hparams.validate(spec)
    return found


def _codes(name: str, values: list[Any]) -> Int[np.ndarray, " value"]:
    """Equal numbers for equal values."""
    for value in values:
        require_hashable(name, value)
    codes: dict[Any, int] = {}
    return np.array([codes.setdefault(value, len(codes)) for value in values])


def _alike(codes: list[np.ndarray], rows: int) -> list[np.ndarray]:
    """Rows that agree in all codes, in the order of their first one."""
    key = np.zeros(rows, np.int64)
    for code in codes:
        _, key = np.unique(key * (1 + int(code.max())) + code, return_inverse=True)
    _, first, counts = np.unique(key, return_index=True, return_counts=True)
    parts = np.split(np.argsort(key, kind="stable"), np.cumsum(counts)[:-1])
    return [parts[i] for i in np.argsort(first)]


def _columns(
    family: Family, fixed: dict[str, Any], axes: dict[str, tuple[list[Any], np.ndarray]], rows: np.ndarray
) -> Any:
    """The HParams of columns of some configurations."""
    columns = {}
    for name in family.hparam_types:
        if name in axes:
            values, index = axes[name]
            columns[name] = _column(name, values, index[rows])
        elif name in fixed:
            columns[name] = _column(name, [fixed[name]], np.zeros(len(rows), int))
        else:
            columns[name] = _column(name, [family.HParams._field_defaults[name]], np.zeros(len(rows), int))  # type: ignore[attr-defined]
    return family.HParams(**columns)


def _column(name: str, values: list[Any], index: np.ndarray) -> Column:
    if not any(isinstance(value, tuple) for value in values):
        return np.array(values, np.float64)[index]
    used = [values[i] for i in np.unique(index)]
    if not all(isinstance(value, tuple) for value in used):
        if any(isinstance(value, tuple) for value in used):
            raise UsageError(
                f"{name}: configurations of one Spec hold one number and several; sweep them apart."
            )
        return np.array([math.nan if isinstance(value, tuple) else value for value in values])[index]
    lengths = {len(value) for value in used}
    if len(lengths) > 1:
        raise UsageError(
            f"{name}: configurations of one Spec hold {sorted(lengths)} numbers; one length is wanted."
        )
    held = [isinstance(value, tuple) and len(value) in lengths for value in values]
    padded = np.array(
        [value if fits else used[0] for value, fits in zip(values, held, strict=True)], np.float64
    )
    return tuple(padded[index, i] for i in range(lengths.pop()))
