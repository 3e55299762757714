"""Results with names: one xarray.Dataset whose dimensions are the axes, `seed`, and the family's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxstab.engine.space import Axis, Dimension, Space
from jaxstab.trials.family import NOT_RUN, Family


@dataclasses.dataclass(frozen=True)
class Layout:
    """What names results: the family's words and the sweep's axes. It goes into a store and comes back."""

    family: str
    dims: Mapping[str, tuple[str, ...]]
    flags: tuple[str, ...]
    space: Space
    seeds: np.ndarray | None

    @classmethod
    def of(cls, family: Family, space: Space, seeds: np.ndarray | None) -> Layout:
        """The layout of a sweep (or of its theory, which has no seeds)."""
        return cls(family.name, dict(family.dims), family.flags, space, seeds)

    def record(self) -> dict[str, Any]:
        """The layout as JSON has it: labels in place of values."""
        return {
            "family": self.family,
            "dims": {name: list(dims) for name, dims in self.dims.items()},
            "flags": list(self.flags),
            "dimensions": [
                {"name": d.name, "axes": {a.name: list(a.labels) for a in d.axes}}
                for d in self.space.dimensions
            ],
            "fixed": {axis.name: axis.labels[0] for axis in self.space.fixed},
            "seeds": [] if self.seeds is None else self.seeds.tolist(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Layout:
        """The layout that was recorded; its axes hold labels only."""
        axis = lambda name, labels: Axis(name, tuple(labels), tuple(labels))  # noqa: E731
        space = Space(
            tuple(
                Dimension(d["name"], tuple(axis(*a) for a in d["axes"].items())) for d in record["dimensions"]
            ),
            tuple(axis(name, [label]) for name, label in record["fixed"].items()),
        )
        dims = {name: tuple(dims) for name, dims in record["dims"].items()}
        return cls(record["family"], dims, tuple(record["flags"]), space, np.array(record["seeds"], np.int64))


class Table:
    """Arrays [configuration, seed, ...] of all outputs, filled lane by lane, padded where Specs differ in size."""

    def __init__(self, layout: Layout, outputs: Sequence[Mapping[str, Any]]):
        """Make room for outputs whose shapes and dtypes are those of each Spec."""
        self.layout = layout
        configurations = len(layout.space)
        lanes = (configurations,) if layout.seeds is None else (configurations, len(layout.seeds))
        self.arrays: dict[str, np.ndarray] = {}
        for name in {name: None for spec in outputs for name in spec}:
            shapes = [tuple(spec[name].shape) for spec in outputs if name in spec]
            size = tuple(max(lengths) for lengths in zip(*shapes, strict=True))
            dtype = np.result_type(*(_storable(spec[name].dtype) for spec in outputs if name in spec))
            if (len(shapes) < len(outputs) or len(set(shapes)) > 1) and dtype.kind != "f":
                dtype = np.dtype(np.float64)  # NaN stands for what a Spec does not have
            fill = NOT_RUN if name == "status" else np.nan if dtype.kind == "f" else 0
            self.arrays[name] = np.full((*lanes, *size), fill, dtype)

    def fill(self, lanes: tuple[np.ndarray, ...], values: Mapping[str, np.ndarray]) -> None:
        """Write `values` [lane, ...] at the lanes' (configuration, seed) numbers."""
        for name, value in values.items():
            inside = tuple(slice(n) for n in value.shape[1:])
            self.arrays[name][(*lanes, *inside)] = value

    def dataset(self, attrs: Mapping[str, Any]) -> xr.Dataset:
        """The labelled whole."""
        layout, space = self.layout, self.layout.space
        axes = [d.name for d in space.dimensions] + ([] if layout.seeds is None else ["seed"])
        variables, coordinates = {}, self._coordinates()
        for name, array in self.arrays.items():
            own = layout.dims.get(name, layout.dims.get(name.removesuffix("_low").removesuffix("_high"), ()))
            variables[name] = xr.Variable((*axes, *own), array.reshape(space.shape + array.shape[1:]))
            for dim, length in zip(own, array.shape[array.ndim - len(own) :], strict=True):
                coordinates[dim] = np.arange(1, length + 1, dtype=np.int32)
        if "status" in variables:
            flags = np.array([*range(len(layout.flags)), NOT_RUN], np.int8)
            meanings = " ".join([*layout.flags, "not_run"])
            variables["status"].attrs = {"flag_values": flags, "flag_meanings": meanings}
        return xr.Dataset(variables, coordinates, {"family": layout.family, **attrs})

    def _coordinates(self) -> dict[str, Any]:
        coordinates: dict[str, Any] = {}
        for dimension in self.layout.space.dimensions:
            if [axis.name for axis in dimension.axes] != [dimension.name]:
                coordinates[dimension.name] = np.arange(len(dimension), dtype=np.int32)
            for axis in dimension.axes:
                coordinates[axis.name] = (dimension.name, _column(axis.labels))
        for axis in self.layout.space.fixed:
            coordinates[axis.name] = axis.labels[0]
        if self.layout.seeds is not None:
            coordinates["seed"] = self.layout.seeds.astype(np.int32)
        return coordinates


def _column(labels: Sequence[Any]) -> np.ndarray:
    if any(isinstance(label, str) for label in labels):
        return np.array([str(label) for label in labels])
    return np.array(labels)


def _storable(dtype: Any) -> np.dtype:
    """float32 for the dtypes that NumPy's own functions and netCDF do not know."""
    dtype = np.dtype(dtype)
    return dtype if dtype.kind in "biuf" and dtype != np.float16 else np.dtype(np.float32)
