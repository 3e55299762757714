"""What figures share: one style, bands over seeds that forget no diverged lane, and theory's dashes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import xarray as xr

from jaxstab.engine import summary
from jaxstab.errors import UsageError, require_choice

STYLE = Path(__file__).with_name("jaxstab.mplstyle")
MEASURED = "#0b5fa5"
THEORY = "#222222"
PUBLISHED = "#c0392b"


@contextlib.contextmanager
def style() -> Iterator[None]:
    """jaxstab's style, drawn without a screen."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    with plt.style.context(STYLE):
        yield


def require_picture(path: Path) -> None:
    """UsageError for a file that no picture can be written to; its folder is made."""
    from matplotlib.backend_bases import FigureCanvasBase

    require_choice(
        path.suffix[1:].lower(), FigureCanvasBase.get_supported_filetypes(), "format of --plot's file:"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--plot {path}: cannot be written ({error}).") from None


def save(figure: Any, path: Path) -> None:
    """Write the picture that --plot asked for, and let go of the figure; its folder is made."""
    import matplotlib.pyplot as plt

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot {path}: cannot be written ({error}).") from None
    finally:
        plt.close(figure)


def quantiles(values: xr.DataArray, level: float = 0.95, dim: str = "seed") -> tuple[Any, Any, Any]:
    """(low, median, high) over seeds by `summary.quantiles`, which forgets no diverged lane."""
    low, median, high = summary.quantiles(values, ((1 - level) / 2, 0.5, (1 + level) / 2), dim)
    return low, median, high


def band(axes: Any, values: xr.DataArray, x: str = "layer", level: float = 0.95, **line: Any) -> None:
    """The median over seeds against `x`, and the central `level` as a band; gaps where it is not finite."""
    low, median, high = (q.where(np.isfinite(q)) for q in quantiles(values, level))
    (drawn,) = axes.plot(values[x], median, **line)
    axes.fill_between(values[x], low, high.fillna(median), color=drawn.get_color(), alpha=0.2, linewidth=0)


def theory(axes: Any, x: Any, y: Any, **line: Any) -> None:
    """A prediction: dashed and dark, over the measurement."""
    axes.plot(x, y, **{"color": THEORY, "linestyle": (0, (4, 2)), "linewidth": 1.1, **line})


def histogram(axes: Any, sample: Any, bins: int = 60, **patch: Any) -> None:
    """Density of a sample's finite values."""
    finite = np.asarray(sample, float)
    finite = finite[np.isfinite(finite)]
    axes.hist(finite, bins=bins, density=True, **{"color": MEASURED, "alpha": 0.45, "linewidth": 0, **patch})


def diverged(values: xr.DataArray, dim: str = "seed") -> str:
    """`` or a remark on how many seeds diverged, for a title."""
    numbers = values.transpose(dim, ...).values.reshape(values.sizes[dim], -1)
    count = int(summary.is_diverged(numbers).any(axis=1).sum())
    return f" ({count} of {values.sizes[dim]} seeds diverged)" if count else ""
