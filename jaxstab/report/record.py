"""What an experiment leaves behind: labelled data, figures, claims, and what should be said aloud."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jaxstab.errors import UsageError
from jaxstab.report.claims import Claim


@dataclasses.dataclass(frozen=True)
class Record:
    """An experiment's results. `notes` are said in the terminal, the report and data.nc (substituted data, say)."""

    data: xr.Dataset
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """An experiment as the report shows it: `figures` are PNGs with an SVG beside each, `chart` is Vega-Lite's."""

    name: str
    question: str
    answer: str
    text: str
    figures: tuple[Path, ...]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]
    seconds: float
    chart: Mapping[str, Any] | None = None


def write_netcdf(record: Record, path: Path) -> None:
    """Write the data so that xarray with scipy alone reads it (netCDF 3: no booleans, no integers over 32 bits)."""
    data = record.data.map(_netcdf3, keep_attrs=True).assign_coords(
        {n: _netcdf3(c) for n, c in record.data.coords.items()}
    )
    data.attrs = {k: v for k, v in record.data.attrs.items() if isinstance(v, (str, int, float))}
    if record.notes:
        data.attrs["notes"] = "\n".join(record.notes)
    replace_file(path, lambda temporary: data.to_netcdf(temporary, engine="scipy"))


def _netcdf3(array: xr.DataArray) -> xr.DataArray:
    if array.dtype == bool:
        return array.astype(np.int8)
    if (array.dtype.kind in "iu" and array.dtype.itemsize > 4) or array.dtype.kind == "u":
        limits = np.iinfo(np.int32)
        inside = array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max)
        return array.astype(np.int32 if inside else np.float64)
    return array


def environment() -> dict[str, Any]:
    """Versions and devices that the numbers were made with."""
    import jax

    packages = ("jaxstab", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "xarray")
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in devices],
        "versions": {name: metadata.version(name) for name in packages},
        "arguments": sys.argv[1:],
    }


def write_scoreboard(claims: Iterable[Claim], path: Path, about: Mapping[str, Any]) -> None:
    """Write scoreboard.json; numbers that are not finite become null."""
    text = json.dumps(
        {"environment": about, "claims": [c.record() for c in claims]}, indent=1, allow_nan=False
    )
    replace_file(path, lambda temporary: temporary.write_text(text + "\n"))


def require_folder(path: Path, option: str) -> None:
    """UsageError for a folder that nothing can be written to; it is made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option} {path}: no folder that can be written to ({error.strerror}).") from None
    if not os.access(path, os.W_OK):
        raise UsageError(f"{option} {path}: no folder that can be written to.")


def require_file(path: Path, option: str) -> None:
    """UsageError for a file that cannot be written; its folder is made."""
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder; a file is wanted.")
    require_folder(path.parent, f"{option} {path}:")


def replace_file(path: Path, write: Any) -> None:
    """Write beside and rename, so that an interrupted run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
