"""How training runs ended, in colours: trained, at numbers that are not finite, diverged, untrained."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from jaxstab.report import figures
from jaxstab.trials.training import FLAGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS: Mapping[str, str] = MappingProxyType(
    {"ok": "#0b5fa5", "nonfinite": "#4a1a10", "diverged": "#d1603d", "untrained": "#d9d9d9"}
)
"""flag of `jaxstab.training` -> colour, in the order of a legend."""


def shares(status: xr.DataArray) -> dict[str, xr.DataArray]:
    """flag -> share of the seeds that ended so."""
    return {flag: (status == FLAGS.index(flag)).mean("seed") for flag in COLORS}


def draw_legend(figure: Figure, status: xr.DataArray) -> None:
    """The colours of those ends that occur, edged, since dark ones would be lost on a dark page."""
    from matplotlib.patches import Patch

    seen = {FLAGS[int(flag)] for flag in np.unique(status)}
    patches = [
        Patch(facecolor=color, edgecolor=figures.THEORY, linewidth=0.8, label=flag)
        for flag, color in COLORS.items()
        if flag in seen
    ]
    figure.legend(handles=patches, loc="outside lower left", ncols=len(patches))


def draw_map(axes: Axes, status: xr.DataArray, x: str, y: str) -> None:
    """Every point of (x, y) in the colours of its seeds' ends, mixed by their shares; both axes logarithmic."""
    from matplotlib.colors import to_rgb

    colors = np.array([to_rgb(color) for color in COLORS.values()])
    mixed = np.stack([share.transpose(y, x).values for share in shares(status).values()], axis=-1) @ colors
    axes.pcolormesh(status[x], status[y], mixed, shading="nearest", rasterized=True)
    axes.set(xscale="log", yscale="log")
    axes.grid(False)


def draw_shares(axes: Axes, status: xr.DataArray, x: str) -> None:
    """Shares of the four ends against `x`, stacked; x logarithmic."""
    heights = [share.transpose(x).values for share in shares(status).values()]
    axes.stackplot(status[x], heights, colors=list(COLORS.values()))
    axes.set(xscale="log", ylim=(0, 1))
    axes.margins(x=0)
