"""Results with names: one xarray.Dataset whose dimensions are the axes, `seed`, and the family's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxstab.engine.space import Space
from jaxstab.trials.family import NOT_RUN, Family


class Table:
    """Arrays [configuration, seed, ...] of all outputs, filled lane by lane, padded where Specs differ in size."""

    def __init__(self, family: Family, space: Space, seeds: np.ndarray | None):
        self.family, self.space, self.seeds = family, space, seeds
        self.lanes = (len(space),) if seeds is None else (len(space), len(seeds))
        self.arrays: dict[str, np.ndarray] = {}

    def reserve(self, outputs: Sequence[Mapping[str, Any]]) -> None:
        """Make room for outputs whose shapes and dtypes are those of each Spec."""
        for name in {name: None for spec in outputs for name in spec}:
            shapes = [spec[name].shape for spec in outputs if name in spec]
            size = tuple(max(lengths) for lengths in zip(*shapes, strict=True))
            dtype = np.result_type(*(_storable(spec[name].dtype) for spec in outputs if name in spec))
            if (len(shapes) < len(outputs) or len(set(shapes)) > 1) and dtype.kind != "f":
                dtype = np.dtype(np.float64)  # NaN stands for what a Spec does not have
            fill = NOT_RUN if name == "status" else np.nan if np.issubdtype(dtype, np.floating) else 0
            self.arrays[name] = np.full((*self.lanes, *size), fill, dtype)

    def fill(self, lanes: tuple[np.ndarray, ...], values: Mapping[str, np.ndarray]) -> None:
        """Write `values` [lane, ...] at the lanes' (configuration, seed) numbers."""
        for name, value in values.items():
            inside = tuple(slice(n) for n in value.shape[1:])
            self.arrays[name][(*lanes, *inside)] = value

    def dataset(self, attrs: Mapping[str, Any]) -> xr.Dataset:
        """The labelled whole."""
        axes = [d.name for d in self.space.dimensions] + ([] if self.seeds is None else ["seed"])
        variables, coordinates = {}, self._coordinates()
        for name, array in self.arrays.items():
            own = self.family.dims.get(name.removesuffix("_low").removesuffix("_high"), ())
            shape = self.space.shape + array.shape[1:]
            variables[name] = xr.Variable((*axes, *own), array.reshape(shape))
            for dim, length in zip(own, array.shape[array.ndim - len(own) :], strict=True):
                coordinates[dim] = np.arange(1, length + 1, dtype=np.int32)
        if "status" in variables:
            flags = [*self.family.flags]
            values = np.array([*range(len(flags)), NOT_RUN], np.int8)
            variables["status"].attrs = {"flag_values": values, "flag_meanings": " ".join([*flags, "not_run"])}
        return xr.Dataset(variables, coordinates, {"family": self.family.name, **attrs})

    def _coordinates(self) -> dict[str, Any]:
        coordinates: dict[str, Any] = {}
        for dimension in self.space.dimensions:
            if [axis.name for axis in dimension.axes] != [dimension.name]:
                coordinates[dimension.name] = np.arange(len(dimension), dtype=np.int32)
            for axis in dimension.axes:
                coordinates[axis.name] = (dimension.name, _column(axis.labels))
        for axis in self.space.fixed:
            coordinates[axis.name] = axis.labels[0]
        if self.seeds is not None:
            coordinates["seed"] = self.seeds.astype(np.int32)
        return coordinates


def _column(labels: Sequence[Any]) -> np.ndarray:
    if any(isinstance(label, str) for label in labels):
        return np.array([str(label) for label in labels])
    return np.array(labels)


def _storable(dtype: Any) -> np.dtype:
    """float32 for the dtypes that NumPy's own functions and netCDF do not know."""
    dtype = np.dtype(dtype)
    return dtype if dtype.kind in "biuf" and dtype != np.float16 else np.dtype(np.float32)
