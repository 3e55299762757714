"""Results with names: one xarray.Dataset whose dimensions are the axes, `seed`, and the family's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxstab.engine.space import Axis, Dimension, Space
from jaxstab.trials.family import NOT_RUN, Family
from jaxstab.trials.outputs import Doc, Labels, Output, measured, predicted, spell

WORDS = "words"
"""Key of a record under which stands what is said of the numbers: no part of what a sweep is."""
STATUS = Output((), "how the lane ended")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What names results: the family's words and the sweep's axes. It goes into a store and comes back."""

    family: str
    outputs: Mapping[str, Output]
    docs: Mapping[str, Doc]
    flags: tuple[str, ...]
    space: Space
    seeds: np.ndarray | None
    labels: Mapping[str, Labels] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, family: Family, space: Space, seeds: np.ndarray | None) -> Layout:
        """The layout of a sweep (or of its theory, which has no seeds)."""
        rows = predicted(family.outputs) if seeds is None else measured(family.outputs)
        return cls(family.name, rows, family.docs, family.flags, space, seeds, family.labels)

    def record(self) -> dict[str, Any]:
        """The layout as JSON has it: labels in place of values."""
        return {
            "family": self.family,
            "dims": {name: list(row.dims) for name, row in self.outputs.items()},
            "flags": list(self.flags),
            "dimensions": [
                {"name": d.name, "axes": {a.name: list(a.labels) for a in d.axes}}
                for d in self.space.dimensions
            ],
            "fixed": {axis.name: axis.labels[0] for axis in self.space.fixed},
            "seeds": [] if self.seeds is None else self.seeds.tolist(),
            WORDS: {
                "outputs": {name: _words(row) for name, row in self.outputs.items()},
                "parameters": {name: list(doc) for name, doc in self.docs.items()},
                "labels": {name: dataclasses.asdict(one) for name, one in self.labels.items()},
            },
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
        rows = {
            name: Output(tuple(dims), **_row(record[WORDS]["outputs"][name]))
            for name, dims in record["dims"].items()
        }
        docs = {name: Doc(*doc) for name, doc in record[WORDS]["parameters"].items()}
        labels = {
            name: Labels(one["dim"], tuple(one["values"]), one["long_name"])
            for name, one in record[WORDS].get("labels", {}).items()
        }
        seeds = np.array(record["seeds"], np.int64)
        return cls(record["family"], rows, docs, tuple(record["flags"]), space, seeds, labels)


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
        self.lengths: dict[str, np.ndarray] = {}

    def fill(self, lanes: tuple[np.ndarray, ...], values: Mapping[str, np.ndarray]) -> None:
        """Write `values` [lane, ...] at the lanes' (configuration, seed) numbers."""
        for name, value in values.items():
            inside = tuple(slice(n) for n in value.shape[1:])
            self.arrays[name][(*lanes, *inside)] = value
            for dim, length in zip(self._row(name).dims, value.shape[1:], strict=True):
                self.lengths.setdefault(dim, np.full(len(self.layout.space), -1, np.int32))[lanes[0]] = length

    def dataset(self, attrs: Mapping[str, Any]) -> xr.Dataset:
        """The labelled whole."""
        layout, space = self.layout, self.layout.space
        axes = [d.name for d in space.dimensions] + ([] if layout.seeds is None else ["seed"])
        variables, coordinates = {}, self._coordinates()
        for name, array in self.arrays.items():
            row = self._row(name)
            values = array.reshape(space.shape + array.shape[1:])
            variables[name] = xr.Variable((*axes, *row.dims), values, row.attrs(name))
            for dim, length in zip(row.dims, array.shape[array.ndim - len(row.dims) :], strict=True):
                coordinates[dim] = xr.Variable(
                    dim, np.arange(1, length + 1, dtype=np.int32), _attrs(Doc(dim))
                )
        coordinates |= self._counts() | {
            name: xr.Variable(one.dim, list(one.values), one.attrs(name))
            for name, one in layout.labels.items()
            if one.dim in coordinates
        }
        if "status" in variables:
            flags = np.array([*range(len(layout.flags)), NOT_RUN], np.int8)
            meanings = " ".join([*layout.flags, "not_run"])
            variables["status"].attrs |= {"flag_values": flags, "flag_meanings": meanings}
        return xr.Dataset(variables, coordinates, {"family": layout.family, **attrs})

    def _row(self, name: str) -> Output:
        return STATUS if name == "status" else self.layout.outputs.get(name, Output())

    def _counts(self) -> dict[str, xr.Variable]:
        """How many layers (epochs, ...) each configuration has, where that differs: what lies behind is padding."""
        axes = [d.name for d in self.layout.space.dimensions]
        found = {}
        for dim, lengths in self.lengths.items():
            most = np.max(lengths)
            counts = np.where(lengths < 0, most, lengths).reshape(
                self.layout.space.shape
            )  # not run: not known
            if np.any(counts < most):
                words = Doc(f"number of values along {dim}; what lies behind is padding")
                found[count_name(dim)] = xr.Variable(axes, counts, _attrs(words))
        return found

    def _coordinates(self) -> dict[str, Any]:
        doc = lambda name: _attrs(self.layout.docs.get(name, Doc(spell(name))))  # noqa: E731
        coordinates: dict[str, Any] = {}
        for dimension in self.layout.space.dimensions:
            if [axis.name for axis in dimension.axes] != [dimension.name]:
                number = np.arange(len(dimension), dtype=np.int32)
                coordinates[dimension.name] = xr.Variable(dimension.name, number, doc(dimension.name))
            for axis in dimension.axes:
                coordinates[axis.name] = xr.Variable(dimension.name, _column(axis.labels), doc(axis.name))
        for axis in self.layout.space.fixed:
            coordinates[axis.name] = xr.Variable((), axis.labels[0], doc(axis.name))
        for one in coordinates.values():
            if one.dtype.kind not in "biuf":
                del one.attrs["units"]  # names have none, and plots would say "[1]" of them
        if self.layout.seeds is not None:
            words = Doc("seed of a lane's random numbers")
            coordinates["seed"] = xr.Variable("seed", self.layout.seeds.astype(np.int32), _attrs(words))
        return coordinates


def count_name(dim: str) -> str:
    """The coordinate that says how many values along `dim` a configuration has."""
    return f"{dim}_count"


def _attrs(doc: Doc) -> dict[str, str]:
    return {"long_name": doc.long_name, "units": doc.units}


def _words(row: Output) -> dict[str, Any]:
    """What a row says beside its dimensions, as JSON has it."""
    return {**dataclasses.asdict(row), "dims": None, "diverged": repr(row.diverged)}


def _row(words: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in words.items() if name != "dims"}
    return {**given, "diverged": float(given["diverged"])}


def _column(labels: Sequence[Any]) -> np.ndarray:
    if any(isinstance(label, str) for label in labels):
        return np.array([str(label) for label in labels])
    return np.array(labels)


def _storable(dtype: Any) -> np.dtype:
    """float32 for the dtypes that NumPy's own functions and netCDF do not know."""
    dtype = np.dtype(dtype)
    return dtype if dtype.kind in "biuf" and dtype != np.float16 else np.dtype(np.float32)
