"""What was seen: one vector of statistics a site, with the sites known before anything runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr

from jaxstab.errors import UsageError
from jaxstab.observation.sites import Site
from jaxstab.observation.statistics import SIMULATED, STATISTICS, is_rms_in_range

DESCRIBED = {**STATISTICS, **SIMULATED}
DESCRIPTIONS = {
    "path": "names of the enclosing modules and scopes, outermost first",
    "kind": "class of the module, 'scope', 'mark', or name of the operation",
    "direction": "forward: a value; backward: the gradient with respect to it; "
    "tangent: its directional derivative; recomputed: again, for the backward pass",
    "output": "which output of several",
    "shape": "shape of the array in one iteration",
    "dtype": "dtype of the array",
    "source": "file and line of the call outside of libraries",
    "branch": "number of the branch of a cond, outermost first; empty outside of any",
    "iterations": "length of the scans around it, outermost first; empty outside of any",
    "in_while": "whether it stands in a while loop: each statistic is then the largest over its iterations",
}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["sites", "statistics"]
)
@dataclasses.dataclass(frozen=True)
class Seen:
    """Statistics of every site of one run: a pytree whose leaves are `values` and whose sites are static.

    `values[i]` has the shape (leading axes of vmap..., iterations of scans..., statistic) and belongs to `sites[i]`,
    in the order of the program. Of a branch of a cond that was not taken, and of a while loop that never ran, it
    is NaN.
    """

    values: tuple[Any, ...]
    sites: tuple[Site, ...]
    statistics: tuple[str, ...]

    def to_dataset(self, axes: Sequence[str] = ()) -> xr.Dataset:
        """Every statistic over (axes of vmap, site, iterations of scans), padded with NaN after a site's last.

        `axes` names the axes that vmap put in front, outermost first; without it they are axis_0, axis_1, ...
        A site outside of any scan stands at iteration 0. Where rms and absmax were taken, `rms_in_range` says
        whether float32 held the squares, and where absmax was taken, `finite` whether every entry was finite.
        """
        lead = self._leading_shape()
        names = tuple(axes) or tuple(f"axis_{i}" for i in range(len(lead)))
        if len(names) != len(lead):
            raise UsageError(
                f"axes={list(names)} names {len(names)} axes, but vmap put {len(lead)} in front."
            )
        table = self._pad(lead)
        depth = table.ndim - len(lead) - 2
        dims = (*names, "site", *(f"iteration{'' if i == 0 else f'_{i + 1}'}" for i in range(depth)))
        data = {
            name: (
                dims,
                table[..., i],
                {"long_name": DESCRIBED[name].long_name, "units": DESCRIBED[name].units},
            )
            for i, name in enumerate(self.statistics)
        }
        data |= self._flags(dims, table)
        ordinal = {
            dim: (
                dim,
                np.arange(table.shape[dims.index(dim)]),
                {"long_name": dim.replace("_", " "), "units": "1"},
            )
            for dim in dims
        }
        return xr.Dataset(data, coords=self._coordinates() | ordinal)

    def to_pandas(self, axes: Sequence[str] = ()) -> pd.DataFrame:
        """One row for each site, iteration and axis of vmap, with the site's description; no rows of padding."""
        return self.table(self.to_dataset(axes))

    def table(self, data: xr.Dataset) -> pd.DataFrame:
        """The rows of a dataset with this one's sites, without those of padding."""
        frame = data.to_dataframe().reset_index()
        steps = [name for name in data.dims if str(name).startswith("iteration")]
        loops = [self.sites[i].loops for i in frame["site"]]
        keep = np.ones(len(frame), bool)
        for depth, step in enumerate(steps):
            length = np.array([one[depth] if depth < len(one) else 1 for one in loops])
            keep &= frame[step].to_numpy() < length
        return pd.DataFrame(frame[keep]).reset_index(drop=True)

    def _leading_shape(self) -> tuple[int, ...]:
        if not self.sites:
            return ()
        first = np.shape(self.values[0])
        return first[: len(first) - len(self.sites[0].loops) - 1]

    def _pad(self, lead: tuple[int, ...]) -> np.ndarray:
        """(leading..., site, iterations..., statistic); NaN where a site has no such iteration."""
        depth = max((len(site.loops) for site in self.sites), default=0)
        sizes = [max((s.loops[d] for s in self.sites if d < len(s.loops)), default=1) for d in range(depth)]
        dtype = np.result_type(np.float32, *(value.dtype for value in self.values))
        table = np.full((*lead, len(self.sites), *sizes, len(self.statistics)), np.nan, dtype)
        for i, (site, value) in enumerate(zip(self.sites, self.values, strict=True)):
            inner = [slice(n) for n in site.loops] + [0] * (depth - len(site.loops))
            table[(*[slice(None)] * len(lead), i, *inner)] = np.asarray(value)
        return table

    def _flags(self, dims: tuple[str, ...], table: np.ndarray) -> dict[str, tuple]:
        flags = {}
        if "absmax" in self.statistics:
            absmax = table[..., self.statistics.index("absmax")]
            about = {"long_name": "every entry is finite", "units": "1"}
            flags["finite"] = (dims, np.isfinite(absmax), about)
            if "rms" in self.statistics:
                held = is_rms_in_range(table[..., self.statistics.index("rms")], absmax)
                about = {"long_name": "the squares under the rms stayed within range", "units": "1"}
                flags["rms_in_range"] = (dims, held, about)
        return flags

    def _coordinates(self) -> dict[str, tuple]:
        columns = {}
        for name, text in DESCRIPTIONS.items():
            values = [getattr(site, name) for site in self.sites]
            if name == "shape":
                values = ["x".join(map(str, shape)) for shape in values]
            column = np.array(values, dtype=bool if name == "in_while" else np.str_)
            columns[name] = ("site", column, {"long_name": text, "units": "1"})
        return columns
